"""Guarded sockets over real descriptors: interruption, deadlines, TLS from two threads, and handing over."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest
import trustme

from longshore.config import Timeouts
from longshore.errors import ClosedError, ReadTimeout, WriteTimeout
from longshore.guard import Guard
from longshore.limits import Watch
from longshore.sockets import GuardedSocket, guarded, upgrade
from longshore.tls import TLSError

BIG = b"x" * (1 << 23)


class SignallingGuard(Guard):
    """Tells when its socket is about to wait, so that nobody needs to sleep for it."""

    __slots__ = ("reads", "writes")

    def __init__(self):
        super().__init__("the peer", Watch(Timeouts(), time.monotonic()), time.monotonic)
        self.reads = threading.Event()
        self.writes = threading.Event()

    def begin_wait(self):
        super().begin_wait()
        self.reads.set()

    def begin_output(self):
        super().begin_output()
        self.writes.set()


def in_thread(function, *args):
    """Run it in a thread; join() gives its result or its exception."""
    outcome = []

    def work():
        try:
            outcome.append(function(*args))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def join():
        thread.join(10)
        assert not thread.is_alive()
        return outcome[0]

    return join


def send_until_full(sock):
    while True:
        sock.send_now(BIG)


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.settimeout(10)
    return server, client


@pytest.fixture(params=["tcp", "unix"])
def pair(request):
    server, client = tcp_pair() if request.param == "tcp" else socket.socketpair()
    server.setblocking(False)
    guard = SignallingGuard()
    sock = guarded(server, guard)
    yield sock, client, guard
    guard.on_release = None
    sock.close()
    client.close()


@pytest.fixture(scope="module")
def contexts():
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.fixture
def tls_pair(contexts):
    server, plain = tcp_pair()
    server.setblocking(False)
    guard = SignallingGuard()
    sock = guarded(server, guard, contexts[0])
    shaken = in_thread(sock.do_handshake)
    client = contexts[1].wrap_socket(plain, server_hostname="localhost")
    assert shaken() is None
    yield sock, client, guard
    guard.on_release = None
    sock.close()
    client.close()


def test_bytes_are_counted_and_a_peer_that_sent_is_owed_until_we_write(pair):
    sock, client, guard = pair
    client.sendall(b"hello")
    assert sock.recv(100) == b"hello"
    assert guard.owing
    sock.sendall(b"hi")
    assert client.recv(100) == b"hi"
    assert (guard.received, guard.sent, guard.owing) == (5, 2, False)


def test_every_way_to_receive_is_guarded(pair):
    sock, client, guard = pair
    buffer = bytearray(3)
    client.sendall(b"aaabbbcccddd")
    assert sock.recv(3, socket.MSG_PEEK) == b"aaa"
    assert guard.received == 0
    assert sock.recv_into(buffer) == 3
    assert sock.recvfrom(3)[0] == b"bbb"
    assert sock.recvmsg(3)[0] == b"ccc"
    assert sock.recvfrom_into(buffer)[0] == 3
    assert (bytes(buffer), guard.received) == (b"ddd", 12)


def test_an_interruption_wakes_a_blocked_recv_with_its_error(pair):
    sock, _client, guard = pair
    outcome = in_thread(sock.recv, 100)
    assert guard.reads.wait(10)
    assert guard.waiting
    sock.interrupt("timeout", ReadTimeout("too late"))
    assert isinstance(outcome(), ReadTimeout)
    assert not guard.waiting


def test_an_interruption_wakes_a_blocked_send_with_its_error(pair):
    sock, _client, guard = pair
    outcome = in_thread(sock.sendall, BIG)
    assert guard.writes.wait(10)
    sock.interrupt("timeout", WriteTimeout("too slow"))
    assert isinstance(outcome(), WriteTimeout)


def test_after_an_interruption_every_call_raises_and_the_first_one_counts(pair):
    sock, _client, guard = pair
    sock.interrupt("cut", ClosedError("stopping"))
    sock.interrupt("timeout", ReadTimeout("too late"))
    with pytest.raises(ClosedError):
        sock.recv(1)
    with pytest.raises(ClosedError):
        sock.send(b"x")
    assert guard.failure[0] == "cut"


def test_interrupting_a_closed_socket_does_nothing(pair):
    sock, _client, _guard = pair
    sock.close()
    sock.interrupt("cut", ClosedError("stopping"))


def test_the_users_own_timeout_works_as_on_any_socket(pair):
    sock, _client, _guard = pair
    sock.settimeout(0.01)
    with pytest.raises(TimeoutError, match="timed out"):
        sock.recv(1)
    with pytest.raises(TimeoutError, match="timed out"):
        sock.sendall(BIG)
    sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_large_output_shows_its_progress_to_the_watch(pair):
    sock, client, guard = pair
    outcome = in_thread(sock.sendall, BIG)
    assert guard.writes.wait(10)
    assert guard.watch.pending
    left = len(BIG)
    while left:
        left -= len(client.recv(1 << 20))
    assert outcome() is None
    assert not guard.watch.pending
    assert guard.sent == len(BIG)


def test_send_now_never_waits(pair):
    sock, client, guard = pair
    for timeout in (None, 60):
        sock.settimeout(timeout)
        with pytest.raises(BlockingIOError):
            send_until_full(sock)
    assert guard.sent
    left = guard.sent
    while left:
        left -= len(client.recv(1 << 20))


def test_a_drain_ends_a_wait_that_owes_nothing(pair):
    sock, _client, guard = pair
    outcome = in_thread(sock.recv, 100)
    assert guard.reads.wait(10)
    guard.drain()
    assert outcome() == b""
    sock.sendall(b"bye")


def test_a_drain_lets_what_is_owed_be_answered_first(pair):
    sock, client, guard = pair
    client.sendall(b"question")
    assert sock.recv(100) == b"question"
    guard.drain()
    assert not guard.input_ended
    sock.sendall(b"answer")
    assert sock.recv(100) == b""
    assert client.recv(100) == b"answer"


def test_the_reactor_hears_of_a_nearer_deadline_only(pair):
    sock, client, guard = pair
    heard = []
    guard.on_deadline = lambda: heard.append(guard.armed)
    client.sendall(b"ab")
    sock.recv(1)
    sock.recv(1)
    assert len(heard) == 1
    assert heard[0] == guard.watch.ready + 60


def test_files_made_of_it_work(pair):
    sock, client, guard = pair
    with sock.makefile("rwb") as file:
        client.sendall(b"one\ntwo\n")
        assert file.readline() == b"one\n"
        file.write(b"1\n")
        file.flush()
        assert file.readline() == b"two\n"
    assert client.recv(10) == b"1\n"
    assert guard.received == 8


def test_sendfile_goes_through_the_guard(pair, tmp_path):
    sock, client, guard = pair
    path = tmp_path / "file"
    path.write_bytes(b"content of a file")
    with path.open("rb") as file:
        assert sock.sendfile(file, 8) == 9
    assert client.recv(100) == b"of a file"
    assert guard.sent == 9


def test_shutdown_of_the_output_leaves_the_input_open(pair):
    sock, client, _guard = pair
    sock.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.sendall(b"still here")
    assert sock.recv(100) == b"still here"


def test_surrender_gives_a_plain_socket_just_once(pair):
    sock, client, _guard = pair
    plain = sock.surrender()
    assert type(plain) is socket.socket
    assert plain.gettimeout() == 0
    assert sock.surrender() is None
    with plain:
        plain.sendall(b"by the plain one")
        assert client.recv(100) == b"by the plain one"


def test_closing_hands_the_descriptor_on_so_that_unread_input_destroys_no_reply():
    server, client = tcp_pair()
    guard = SignallingGuard()
    handed = []
    guard.on_release = handed.append
    sock = guarded(server, guard)
    client.sendall(b"never read")
    assert sock.recv(1) == b"n"
    sock.sendall(b"reply")
    sock.close()
    assert sock.surrender() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.recv(1)
    (plain,) = handed
    plain.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b"reply"
    assert client.recv(100) == b""
    plain.close()
    client.close()


def test_a_file_that_is_still_open_puts_the_close_off():
    server, client = socket.socketpair()
    guard = SignallingGuard()
    handed = []
    guard.on_release = handed.append
    sock = guarded(server, guard)
    file = sock.makefile("rb", 0)
    sock.close()
    assert not handed
    file.close()
    assert len(handed) == 1
    handed[0].close()
    client.close()


def test_a_duplicate_is_an_ordinary_socket(pair):
    sock, client, guard = pair
    with sock.dup() as copy:
        assert isinstance(copy, GuardedSocket)
        copy.sendall(b"x")
        client.sendall(b"y")
        assert copy.recv(1) == b"y"
    assert (guard.received, guard.sent) == (0, 0)
    assert client.recv(1) == b"x"


def test_tls_carries_bytes_both_ways_and_the_context_stays_as_it_was(tls_pair, contexts):
    sock, client, guard = tls_pair
    assert isinstance(sock, ssl.SSLSocket)
    assert contexts[0].sslsocket_class is ssl.SSLSocket
    client.sendall(b"hello")
    assert sock.recv(100) == b"hello"
    sock.sendall(b"hi")
    assert client.recv(100) == b"hi"
    assert (guard.received, guard.sent, guard.owing) == (5, 2, False)


def test_an_interruption_wakes_tls_as_well(tls_pair):
    sock, _client, guard = tls_pair
    outcome = in_thread(sock.recv, 100)
    assert guard.reads.wait(10)
    sock.interrupt("timeout", ReadTimeout("too late"))
    assert isinstance(outcome(), ReadTimeout)


def test_an_interruption_wakes_a_blocked_tls_write(tls_pair):
    sock, _client, guard = tls_pair
    outcome = in_thread(sock.sendall, BIG)
    assert guard.writes.wait(10)
    sock.interrupt("timeout", WriteTimeout("too slow"))
    assert isinstance(outcome(), WriteTimeout)


def test_tls_is_written_while_another_thread_waits_for_input(tls_pair):
    sock, client, guard = tls_pair
    reading = in_thread(sock.recv, 100)
    assert guard.reads.wait(10)
    sock.sendall(b"unasked")
    assert client.recv(100) == b"unasked"
    client.sendall(b"at last")
    assert reading() == b"at last"


def test_tls_is_read_while_another_thread_is_stuck_in_a_write(tls_pair):
    sock, client, guard = tls_pair
    writing = in_thread(sock.sendall, BIG)
    assert guard.writes.wait(10)
    client.sendall(b"meanwhile")
    assert sock.recv(100) == b"meanwhile"
    with pytest.raises(BlockingIOError):
        sock.send_now(b"in between")
    received = 0
    while received < len(BIG):
        received += len(client.recv(1 << 20))
    assert writing() is None


def test_the_users_own_timeout_works_over_tls(tls_pair):
    sock, _client, _guard = tls_pair
    assert sock.gettimeout() is None
    sock.settimeout(0.01)
    assert (sock.gettimeout(), sock.timeout, sock.getblocking()) == (0.01, 0.01, True)
    with pytest.raises(TimeoutError, match="timed out"):
        sock.recv(1)
    sock.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        sock.recv(1)


def test_files_work_over_tls(tls_pair):
    sock, client, _guard = tls_pair
    with sock.makefile("rwb") as file:
        client.sendall(b"one\n")
        assert file.readline() == b"one\n"
        file.write(b"1\n")
        file.flush()
    assert client.recv(10) == b"1\n"


def test_a_drain_ends_a_tls_wait_with_the_end_of_the_stream(tls_pair):
    sock, _client, guard = tls_pair
    outcome = in_thread(sock.recv, 100)
    assert guard.reads.wait(10)
    guard.drain()
    assert outcome() == b""


def test_half_closing_tls_tells_the_peer_and_still_reads(tls_pair):
    sock, client, _guard = tls_pair
    client.suppress_ragged_eofs = False
    sock.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.sendall(b"still here")
    assert sock.recv(100) == b"still here"


def test_a_tls_socket_tells_about_its_session_as_any_ssl_socket(tls_pair, contexts):
    sock, client, _guard = tls_pair
    assert (sock.version(), sock.cipher(), sock.server_side) == (client.version(), client.cipher(), True)
    assert (sock.getpeercert(), sock.selected_alpn_protocol(), sock.context) == (None, None, contexts[0])
    binding = "tls-unique" if sock.version() == "TLSv1.2" else "tls-exporter"
    assert binding not in ssl.CHANNEL_BINDING_TYPES or sock.get_channel_binding(binding)
    client.sendall(b"ready")
    assert sock.recv(1) == b"r"
    assert sock.pending() == 4
    buffer = bytearray(10)
    assert (sock.recv_into(buffer), bytes(buffer[:4])) == (4, b"eady")
    assert (sock.pending(), sock.send(b"x" * 20_000), sock.write(b"abc")) == (0, 16_384, 3)
    for call in (lambda: sock.recv(1, socket.MSG_PEEK), lambda: sock.send(b"x", 1), lambda: sock.sendto(b"x", ("", 1))):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(NotImplementedError):
        sock.dup()


def test_the_callback_for_server_names_is_given_the_socket_and_may_change_its_context(contexts):
    server, plain = tcp_pair()
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(other)
    called = []

    def choose(sock, name, context):
        called.append((sock, name))
        sock.context = contexts[0]

    other.sni_callback = choose
    sock = guarded(server, SignallingGuard(), other)
    shaken = in_thread(sock.do_handshake)
    with contexts[1].wrap_socket(plain, server_hostname="localhost"):
        assert shaken() is None
    assert called == [(sock, "localhost")]
    assert sock.context is contexts[0]
    sock.close()


@pytest.mark.parametrize("guarding", [True, False], ids=["guarded", "unguarded"])
def test_unwrapping_goes_on_in_plain_text_and_reads_none_of_it(contexts, guarding):
    server, raw = tcp_pair()
    guard = SignallingGuard() if guarding else None
    sock = guarded(server, guard, contexts[0])
    shaken = in_thread(sock.do_handshake)
    client = contexts[1].wrap_socket(raw, server_hostname="localhost")
    assert shaken() is None
    sock.sendall(b"last over TLS")
    unwrapped = in_thread(sock.unwrap)
    assert client.recv(100) == b"last over TLS"
    plain_client = client.unwrap()
    plain_client.sendall(b"plain text")
    plain = unwrapped()
    assert type(plain) is (GuardedSocket if guarding else socket.socket)
    assert plain.recv(100) == b"plain text"
    plain.sendall(b"likewise")
    assert plain_client.recv(100) == b"likewise"
    assert guard is None or guard.received == 10
    plain.close()
    plain_client.close()


def test_a_tls_socket_made_without_a_guard_is_an_ordinary_one_until_it_gets_one(contexts):
    server, raw = tcp_pair()
    sock = guarded(server, None, contexts[0])
    shaken = in_thread(sock.do_handshake)
    client = contexts[1].wrap_socket(raw, server_hostname="localhost")
    assert shaken() is None
    client.sendall(b"a")
    assert sock.recv(1) == b"a"
    guard = SignallingGuard()
    guard.adopt(sock)
    outcome = in_thread(sock.recv, 1)
    assert guard.reads.wait(10)
    guard.interrupt("cut", ClosedError("stopping"))
    assert isinstance(outcome(), ClosedError)
    sock.close()
    client.close()


def test_one_record_that_the_kernel_does_not_take_stays_behind_and_is_given_on(tls_pair):
    sock, client, _guard = tls_pair
    with pytest.raises(BlockingIOError):
        send_until_full(sock)
    assert sock.behind
    client.setblocking(True)
    received = in_thread(lambda: b"".join(iter(lambda: client.recv(1 << 20), b"")))
    plain = sock.surrender()
    plain.setblocking(True)
    plain.sendall(sock.take_behind())
    plain.close()
    data = received()
    assert len(data) % 16_384 == 0
    assert set(data) == {ord("x")}


def test_surrendered_tls_has_said_goodbye(tls_pair):
    sock, client, _guard = tls_pair
    client.suppress_ragged_eofs = False
    sock.sendall(b"reply")
    plain = sock.surrender()
    assert type(plain) is socket.socket
    assert client.recv(100) == b"reply"
    assert client.recv(100) == b""
    plain.close()


def test_a_failed_handshake_names_the_peer_and_the_reason(contexts):
    server, client = tcp_pair()
    sock = guarded(server, SignallingGuard(), contexts[0])
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(TLSError, match="the peer: TLS handshake failed: http request"):
        sock.do_handshake()
    sock.close()
    client.close()


def test_a_handshake_is_ended_by_its_deadline(contexts):
    server, client = tcp_pair()
    guard = SignallingGuard()
    armed = threading.Event()
    guard.on_deadline = armed.set
    sock = guarded(server, guard, contexts[0])
    outcome = in_thread(sock.do_handshake)
    assert armed.wait(10)
    assert guard.watch.deadline()[1] == "handshake"
    sock.interrupt("handshake", ReadTimeout("too late"))
    assert isinstance(outcome(), ReadTimeout)
    sock.close()
    client.close()


def test_a_plain_socket_can_change_to_tls(contexts):
    server, plain = tcp_pair()
    guard = SignallingGuard()
    sock = guarded(server, guard)
    plain.sendall(b"STARTTLS\n")
    assert sock.recv(100) == b"STARTTLS\n"
    secure = upgrade(sock, guard, contexts[0])
    shaken = in_thread(secure.do_handshake)
    client = contexts[1].wrap_socket(plain, server_hostname="localhost")
    assert shaken() is None
    client.sendall(b"secret")
    assert secure.recv(100) == b"secret"
    outcome = in_thread(secure.recv, 100)
    guard.interrupt("cut", ClosedError("stopping"))
    assert isinstance(outcome(), ClosedError)
    secure.close()
    client.close()
