"""Too much at once: unlimited threads, threads that are kept, bursts that are dropped, descriptors that run out."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import threading
import time
import weakref
from typing import Any

from stage import ANYWHERE, PATIENCE, ask, connect, echo, eventually, serving

from longshore import Limits

#: Clients, more than a handful.
MANY = 20


class Crowd:
    """Handlers that stay where they are until they may go, and how many of them there were at once at the most."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._open = False
        self.most = 0

    def stay(self) -> None:
        with self._changed:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open)
            self._inside -= 1

    def wait_for(self, count: int, seconds: float = PATIENCE) -> bool:
        """Whether there are `count` at once within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.most >= count, seconds)

    def go(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


def threads_have_a_limit(module: Any) -> None:
    """odoo/odoo#42021: a thread for every client, until there can be no more."""
    crowd = Crowd()

    class Stay(module.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            crowd.stay()
            self.wfile.write(line)

    class Server(module.ThreadingTCPServer):
        limits = Limits(max_threads=4)
        request_queue_size = MANY

    with contextlib.ExitStack() as stack:
        server = Server(ANYWHERE, Stay)
        stack.enter_context(serving(server))
        clients = [stack.enter_context(connect(server)) for _ in range(MANY)]
        for client in clients:
            client.sendall(b"hello\n")
        assert crowd.wait_for(4), "there are less than four threads"
        assert not crowd.wait_for(5, 0.3), "there is a fifth thread"
        crowd.go()
        answers = [client.makefile("rb").readline() for client in clients]
        assert answers == [b"hello\n"] * MANY, "who has waited gets no answer"
    assert crowd.most == 4, "there is a fifth thread"


def threads_of_datagrams_have_a_limit(module: Any) -> None:
    """ffnord/mesh-announce#44: anybody who can send a datagram can have a thread."""
    crowd = Crowd()

    class Stay(module.DatagramRequestHandler):
        def handle(self) -> None:
            crowd.stay()
            self.wfile.write(self.packet)

    class Server(module.ThreadingUDPServer):
        limits = Limits(max_threads=4)

    server = Server(ANYWHERE, Stay)
    with serving(server), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        for number in range(MANY):
            client.sendto(b"%d" % number, server.server_address)
        assert crowd.wait_for(4), "there are less than four threads"
        assert not crowd.wait_for(5, 0.3), "there is a fifth thread"
        crowd.go()
        answers = {client.recv(100) for _ in range(MANY)}
        assert answers == {b"%d" % number for number in range(MANY)}, "what has waited is not answered"
    assert crowd.most == 4, "there is a fifth thread"


def nothing_is_kept_of_a_burst(module: Any) -> None:
    """python/cpython#81374: the list of threads to be joined grew with every request.

    Since 3.9 those that have finished are taken out of it, but only when the next request comes: until then, all
    threads of the last burst are kept.
    """
    _nothing_is_kept(module, daemon=False)


def nothing_is_kept_of_a_burst_on_daemon_threads(module: Any) -> None:
    """The same with daemon threads, which the standard module has not put into its list any more since 3.9."""
    _nothing_is_kept(module, daemon=True)


def _nothing_is_kept(module: Any, *, daemon: bool) -> None:
    crowd = Crowd()
    handlers: list[weakref.ref[Any]] = []

    class Stay(module.BaseRequestHandler):
        def handle(self) -> None:
            handlers.append(weakref.ref(self))
            crowd.stay()

    class Server(module.ThreadingTCPServer):
        daemon_threads = daemon
        request_queue_size = MANY

    def kept() -> list[Any]:
        gc.collect()
        threads = [thing for thing in gc.get_objects() if isinstance(thing, threading.Thread)]
        finished = [thread for thread in threads if thread.ident is not None and not thread.is_alive()]
        return finished + [handler for handler in (reference() for reference in handlers) if handler is not None]

    server = Server(ANYWHERE, Stay)
    with serving(server):
        clients = [connect(server) for _ in range(MANY)]
        assert crowd.wait_for(MANY), "not all are served at once"
        crowd.go()
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        eventually(lambda: not kept(), lambda: f"{len(kept())} threads and handlers that have finished are kept")


def a_burst_of_connections_is_not_dropped(module: Any) -> None:
    """A queue of five: while one client is served, the seventh of the others is not let in."""
    with module.TCPServer(ANYWHERE, echo(module)) as server, contextlib.ExitStack() as stack:
        for number in range(100):
            try:
                stack.enter_context(socket.create_connection(server.server_address, timeout=0.5))
            except TimeoutError:
                raise AssertionError(f"{number} of 100 clients can connect") from None


def descriptors_may_run_out(module: Any) -> None:
    """A listener whose clients cannot be accepted stays readable, and a loop that tries again at once never rests."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    attempts = 0

    class Server(module.ThreadingTCPServer):
        def get_request(self) -> Any:
            nonlocal attempts
            attempts += 1
            return super().get_request()

    server = Server(ANYWHERE, echo(module))
    with serving(server) as served:
        # Its connection stays meanwhile, so that no descriptor comes back before it shall.
        with connect(server) as early, socket.socket() as late:
            assert ask(early) == b"hello"
            taken = []
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            late.settimeout(PATIENCE)
            late.connect(server.server_address)
            used = time.process_time()
            threading.Event().wait(1.0)
            used = time.process_time() - used
            # Thousands where it is tried again at once, however busy the machine is.
            assert attempts < 50, f"{attempts} attempts are made, and {used:.2f} s of CPU time go in a second"
            assert used < 0.5, f"{used:.2f} s of CPU time go in a second"
            for descriptor in taken:
                os.close(descriptor)
        assert served.is_alive(), "serve_forever() has ended"
        with connect(server) as client:
            assert ask(client) == b"hello", "nobody is served afterwards"
