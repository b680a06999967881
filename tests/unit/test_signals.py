"""Signals on the main thread: whatever a guarded socket waits for there, a signal's handler runs at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import sys
import threading
import time

import pytest
import trustme

from longshore import Server
from longshore.config import Timeouts
from longshore.events import ServerStarted
from longshore.guard import Guard
from longshore.limits import Watch
from longshore.serving import serve_until_signalled
from longshore.sockets import guarded, upgrade

BIG = b"x" * (1 << 23)


class WaitingGuard(Guard):
    """Tells when its socket is about to wait."""

    __slots__ = ("waits",)

    def __init__(self):
        super().__init__("the peer", Watch(Timeouts(), time.monotonic()), time.monotonic)
        self.waits = threading.Event()

    def begin_wait(self):
        super().begin_wait()
        self.waits.set()

    def begin_output(self):
        super().begin_output()
        self.waits.set()


@contextlib.contextmanager
def handling(handler):
    previous = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


@contextlib.contextmanager
def signalled_unnoticed(guard):
    """Once `guard` waits, a signal comes that interrupts no system call of the main thread.

    That is what a signal does that comes in the instant before the call; here it is delivered to another thread.
    """

    def work():
        assert guard.waits.wait(10)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        guard.waits.set()
        thread.join()


@pytest.fixture
def pair():
    server, client = socket.socketpair()
    guard = WaitingGuard()
    sock = guarded(server, guard)
    yield sock, client, guard
    sock.close()
    client.close()


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize(
    "receive",
    [
        lambda sock: sock.recv(100),
        lambda sock: sock.recvfrom(100)[0],
        lambda sock: sock.recvmsg(100)[0],
    ],
    ids=["recv", "recvfrom", "recvmsg"],
)
def test_a_signal_just_before_a_wait_for_input_is_heard_at_once(pair, receive, timeout):
    sock, client, guard = pair
    sock.settimeout(timeout)
    with handling(lambda: client.sendall(b"heard")), signalled_unnoticed(guard):
        assert receive(sock) == b"heard"


def test_a_signal_just_before_a_wait_for_room_is_heard_at_once(pair):
    sock, client, guard = pair
    readers = []

    def empty():
        left = len(BIG)
        while left:
            left -= len(client.recv(1 << 20))

    def heard():
        reader = threading.Thread(target=empty)
        readers.append(reader)
        reader.start()

    with handling(heard), signalled_unnoticed(guard):
        sock.sendall(BIG)
    for reader in readers:
        reader.join()
    assert guard.sent == len(BIG)


def test_a_signal_just_before_a_wait_for_tls_is_heard_at_once(pair):
    plain, raw, guard = pair
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(trusting)
    sock = upgrade(plain, guard, server)
    made = []
    thread = threading.Thread(target=lambda: made.append(trusting.wrap_socket(raw, server_hostname="localhost")))
    thread.start()
    sock.do_handshake()
    thread.join()
    guard.waits.clear()
    with made[0] as client:
        with handling(lambda: client.sendall(b"heard")), signalled_unnoticed(guard):
            assert sock.recv(100) == b"heard"


def test_what_a_signal_handler_raises_leaves_the_wait(pair):
    sock, _client, guard = pair

    def refuse():
        raise KeyboardInterrupt

    with handling(refuse), signalled_unnoticed(guard), pytest.raises(KeyboardInterrupt):
        sock.recv(100)
    assert not guard.waiting


def test_the_owner_of_the_processs_wake_up_descriptor_gets_it_back_and_hears_of_the_signal(pair):
    sock, client, guard = pair
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer)
    try:
        with handling(lambda: client.sendall(b"heard")), signalled_unnoticed(guard):
            assert sock.recv(100) == b"heard"
        assert os.read(reader, 10) == bytes([signal.SIGUSR1])
        assert signal.set_wakeup_fd(writer) == writer
    finally:
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)


def test_nothing_is_left_open_once_the_socket_is_closed():
    before = set(os.listdir("/proc/self/fd"))
    server, client = socket.socketpair()
    guard = WaitingGuard()
    sock = guarded(server, guard)
    with handling(lambda: client.sendall(b"heard")), signalled_unnoticed(guard):
        assert sock.recv(100) == b"heard"
    sock.close()
    client.close()
    assert set(os.listdir("/proc/self/fd")) == before


async def ignore_async(connection):
    await connection.recv(1)


def ignore(connection):
    connection.recv(1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["threads", "green", "async", "asyncio", "inline"])
def test_a_signal_just_before_a_server_falls_asleep_is_heard_at_once(strategy, monkeypatch):
    if strategy == "asyncio":
        # As where uvloop is not installed.
        monkeypatch.setitem(sys.modules, "uvloop", None)
        strategy = "async"
    handler = ignore_async if strategy == "async" else ignore
    # Without a watchdog, which would wake the loop now and then.
    server = Server(handler, "tcp://127.0.0.1:0", strategy=strategy, timeouts=Timeouts(blocked=None))
    asleep = threading.Event()
    server.subscribe(lambda event: isinstance(event, ServerStarted) and asleep.set())

    def work():
        assert asleep.wait(10)
        # Nothing tells that a thread sleeps in the kernel.  Where this is too short, less is proved, and nothing fails.
        threading.Event().wait(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=work)
    thread.start()
    report = serve_until_signalled(server)
    thread.join()
    assert report is not None
