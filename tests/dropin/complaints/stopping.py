"""Stopping: `shutdown()` that hangs or dawdles, `server_close()` that waits for clients who say nothing."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

from stage import ANYWHERE, PATIENCE, ask, connect, echo, no_longer_than_patience, serving, within_patience

from longshore import Timeouts


def shutdown_from_the_serving_thread(module: Any) -> None:
    """python/cpython#83978: it waits for the loop that it is called from."""

    class Server(module.TCPServer):
        def service_actions(self) -> None:
            self.shutdown()

    with Server(ANYWHERE, echo(module)) as server:
        within_patience(server.serve_forever, 0.01, what="serve_forever()")


def shutdown_from_a_handler(module: Any) -> None:
    """The same, from a handler that has the serving thread; its client still gets its answer, and twice is once."""

    class Last(module.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            self.server.shutdown()
            self.server.shutdown()
            self.wfile.write(line)

    with module.TCPServer(ANYWHERE, Last) as server:
        with connect(server) as client:
            served = threading.Thread(target=server.serve_forever, daemon=True)
            served.start()
            assert ask(client) == b"hello", "no answer comes"
        within_patience(served.join, what="serve_forever()")


def shutdown_from_a_datagram_handler(module: Any) -> None:
    """The same on datagrams."""

    class Last(module.DatagramRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()

    with module.UDPServer(ANYWHERE, Last) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"", server.server_address)
        within_patience(server.serve_forever, what="serve_forever()")


def shutdown_from_a_signal_handler(module: Any) -> None:
    """The natural place for it is where it hangs: a signal handler runs on the main thread, over serve_forever()."""
    with module.TCPServer(ANYWHERE, echo(module)) as server:
        signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())

        def terminate() -> None:
            with connect(server) as client:
                # An answer shows that serve_forever() is under way.
                ask(client)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=terminate, daemon=True).start()
        with no_longer_than_patience("shutdown() in a signal handler"):
            server.serve_forever()


def shutdown_before_serve_forever(module: Any) -> None:
    """It waits for a loop that has not begun; what it asks for must hold nevertheless."""
    with module.TCPServer(ANYWHERE, echo(module)) as server:
        within_patience(server.shutdown, what="shutdown()")
        within_patience(server.serve_forever, what="serve_forever()")


def shutdown_twice(module: Any) -> None:
    """A second time there is nothing to wait for."""
    with module.TCPServer(ANYWHERE, echo(module)) as server:
        with serving(server):
            with connect(server) as client:
                ask(client)
            within_patience(server.shutdown, what="shutdown()")
            within_patience(server.shutdown, what="a second shutdown()")


def shutdown_at_once(module: Any) -> None:
    """python/cpython#88932: the loop looks every half second whether it shall end."""
    quickest = min(_seconds_to_stop(module) for _ in range(3))
    assert quickest < 0.2, f"shutdown() takes {quickest:.2f} s"


def _seconds_to_stop(module: Any) -> float:
    turned = threading.Event()

    class Server(module.TCPServer):
        def service_actions(self) -> None:
            turned.set()

    with Server(ANYWHERE, echo(module)) as server:
        with serving(server):
            turned.wait()
            begun = time.monotonic()
            server.shutdown()
            return time.monotonic() - begun


def shutdown_at_once_however_long_the_interval(module: Any) -> None:
    """The interval is for `service_actions`; nobody who stops the server waits for it."""
    turned = threading.Event()

    class Server(module.TCPServer):
        def service_actions(self) -> None:
            turned.set()

    with Server(ANYWHERE, echo(module)) as server:
        with serving(server, poll_interval=3600):
            with connect(server) as client:
                ask(client)
            # The standard module comes by here before the interval begins; others need not.
            turned.wait(0.2)


def server_close_with_an_idle_client(module: Any) -> None:
    """python/cpython#75416 made it wait for every thread, and so for a client that is silent and stays."""
    server = module.ThreadingTCPServer(ANYWHERE, echo(module))
    with serving(server):
        client = connect(server)
        assert ask(client) == b"hello"
    assert client.recv(1) == b"", "the client is not told"
    client.close()


def shutdown_with_an_idle_client(module: Any) -> None:
    """csernazs/pytest-httpserver#263: the handler of a silent client has the serving thread, and nobody can stop it."""
    server = module.TCPServer(ANYWHERE, echo(module))
    with serving(server):
        client = connect(server)
        assert ask(client) == b"hello"
    assert client.recv(1) == b"", "the client is not told"
    client.close()


def shutdown_with_a_client_in_mid_request(module: Any) -> None:
    """The same with a client that is owed an answer and does not go on: it has `Timeouts.drain`."""

    class Server(module.TCPServer):
        timeouts = Timeouts(drain=0.2)

    server = Server(ANYWHERE, echo(module))
    with serving(server):
        client = connect(server)
        assert ask(client) == b"hello"
        client.sendall(b"hel")
    # What had not been read when the server began to stop was the last line, and was sent back.
    assert client.makefile("rb").read() in (b"", b"hel"), "the client is not told"
    client.close()


def shutdown_from_a_signal_handler_with_an_idle_client(module: Any) -> None:
    """bboe/extended_http_server#7: the signal interrupts the handler that waits, and the handler goes on waiting."""
    with module.TCPServer(ANYWHERE, echo(module)) as server:
        signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
        client = socket.socket()

        def terminate() -> None:
            client.settimeout(PATIENCE)
            client.connect(server.server_address)
            ask(client)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=terminate, daemon=True).start()
        with no_longer_than_patience("shutdown() in a signal handler"):
            server.serve_forever()
    assert client.recv(1) == b"", "the client is not told"
    client.close()


def server_close_alone_with_an_idle_client(module: Any) -> None:
    """Whoever closes without a shutdown before it, was never kept waiting."""
    server = module.TCPServer(ANYWHERE, echo(module))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with connect(server) as client:
        assert ask(client) == b"hello"
        within_patience(server.server_close, what="server_close()")


def server_close_waits_for_no_client_to_hang_up(module: Any) -> None:
    """A client that has its answer, and does not end its side, is nobody to wait for."""
    begun, finish = threading.Event(), threading.Event()

    class Worker(module.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            begun.set()
            finish.wait()
            self.wfile.write(line)

    server = module.ThreadingTCPServer(ANYWHERE, Worker)
    with connect(server) as client:
        served = threading.Thread(target=server.serve_forever, daemon=True)
        served.start()
        client.sendall(b"hello\n")
        begun.wait()
        server.shutdown()
        closing = threading.Thread(target=server.server_close, daemon=True)
        closing.start()
        finish.set()
        finished = time.monotonic()
        within_patience(closing.join, what="server_close()")
        assert time.monotonic() - finished < 1, "server_close() waits until the client hangs up"
        assert client.makefile("rb").read() == b"hello\n", "the answer is lost"


def server_close_waits_for_work(module: Any) -> None:
    """What it is for: a handler that is at work is not cut."""
    begun, finish = threading.Event(), threading.Event()

    class Worker(module.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            begun.set()
            finish.wait()
            self.wfile.write(line)

    server = module.ThreadingTCPServer(ANYWHERE, Worker)
    with connect(server) as client:
        served = threading.Thread(target=server.serve_forever, daemon=True)
        served.start()
        client.sendall(b"hello\n")
        begun.wait()
        server.shutdown()
        closing = threading.Thread(target=server.server_close, daemon=True)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive(), "server_close() does not wait for a handler at work"
        finish.set()
        assert client.makefile("rb").read() == b"hello\n", "the answer is lost"
        within_patience(closing.join, what="server_close()")
