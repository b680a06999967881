"""Hooks: each of them is called, in the standard order, on the standard thread, whatever treats the requests."""

from __future__ import annotations

import concurrent.futures
import socket
import socketserver as standard
import threading
from typing import Any

import pytest

from dropin.servers import ADDRESS, Upper, ask, client_of, make, served
from longshore import socketserver
from longshore.events import ConnectionClosed, ConnectionOpened
from longshore.testing import no_leaks

# Servers serve on threads here, and ForkingMixIn forks all the same: since Python 3.12 that is worth a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Noting(socketserver.BaseServer):
    """Notes which hooks were called, and on which thread."""

    def note(self, hook: str) -> None:
        vars(self).setdefault("called", []).append(hook)
        vars(self).setdefault("threads", {})[hook] = threading.current_thread()

    def get_request(self) -> Any:
        self.note("get_request")
        return super().get_request()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.note("verify_request")
        return super().verify_request(request, client_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.note("process_request")
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.note("finish_request")
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.note("shutdown_request")
        super().shutdown_request(request)

    def close_request(self, request: Any) -> None:
        self.note("close_request")
        super().close_request(request)


IN_ORDER = ["get_request", "verify_request", "process_request", "finish_request", "shutdown_request", "close_request"]


@pytest.mark.parametrize("manner", ["inline", "threads", "green"])
def test_the_hooks_are_called_in_the_standard_order(serve, manner):
    server = serve(manner, Noting)
    assert ask(server, b"hello") == b"HELLO"
    server.events.wait_for(ConnectionClosed)
    assert server.called == IN_ORDER
    serving = server.threads["get_request"]
    assert [server.threads[hook] for hook in IN_ORDER[:3]] == [serving] * 3
    assert (server.threads["finish_request"] is serving) == (manner == "inline")


def test_in_the_parent_of_a_child_only_the_socket_is_closed(serve):
    server = serve("children", Noting)
    assert ask(server, b"hello") == b"HELLO"
    # The child's own calls are the child's.
    assert server.called == ["get_request", "verify_request", "process_request", "close_request"]


def test_the_hooks_see_one_and_the_same_request(serve, manner):
    seen: dict[str, Any] = {}

    class Seeing(socketserver.BaseServer):
        def get_request(self) -> Any:
            request, client_address = super().get_request()
            seen["got"] = request
            return request, client_address

        def verify_request(self, request: Any, client_address: Any) -> bool:
            seen["verified"] = request
            return True

        def close_request(self, request: Any) -> None:
            seen["closed"] = request
            super().close_request(request)
            seen["event"].set()

    seen["event"] = threading.Event()
    server = serve(manner, Seeing)
    assert ask(server, b"hello") == b"HELLO"
    assert seen["event"].wait(5)
    assert seen["got"] is seen["verified"] is seen["closed"]


def test_a_request_that_is_not_verified_is_shut_down_without_a_handler(serve, manner):
    class Strict(socketserver.BaseServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    with client_of(serve(manner, Strict)) as client:
        assert client.recv_until_closed() == b""


def test_a_handlers_failure_is_handled_by_the_hook_and_costs_one_connection(serve, manner, capfd):
    server = serve(manner)
    with client_of(server) as bad, client_of(server) as good:
        bad.send(b"die\n")
        if manner == "inline":
            assert bad.recv_until_closed() == b""
        assert good.request(b"still there") == b"STILL THERE"
        assert bad.recv_until_closed() == b""
        good.half_close()
    assert capfd.readouterr().err.count("LookupError: told to") == 1


def test_a_server_may_hand_its_requests_to_a_pool_of_its_own(serve):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:

        class Pooled(socketserver.ThreadingMixIn):
            def process_request(self, request: Any, client_address: Any) -> None:
                pool.submit(self.process_request_thread, request, client_address)

        server = serve("inline", Pooled)
        for number in range(5):
            assert ask(server, b"%d" % number) == b"%d" % number
        assert len(server.events.wait_for_count(ConnectionClosed, 5)) == 5


def test_service_actions_of_ones_own_are_called_while_nobody_comes():
    called = threading.Event()

    class Busy(socketserver.TCPServer):
        def service_actions(self) -> None:
            called.set()

    with no_leaks(), Busy(ADDRESS, Upper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert called.wait(5)
        server.shutdown()
        thread.join()


def test_what_service_actions_raises_leaves_serve_forever():
    class Failing(socketserver.TCPServer):
        def service_actions(self) -> None:
            raise ZeroDivisionError

    with no_leaks(), Failing(ADDRESS, Upper) as server, pytest.raises(ZeroDivisionError):
        server.serve_forever(0.001)


def test_a_timeout_set_in_get_request_holds_for_the_handler(serve, manner):
    if manner == "children":
        pytest.skip("what a child sees cannot be noted here")
    seen: list[float | None] = []

    class Impatient(socketserver.BaseServer):
        def get_request(self) -> Any:
            request, client_address = self.socket.accept()
            request.settimeout(7.5)
            return request, client_address

    class Looking(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.request.gettimeout())

    with client_of(serve(manner, Impatient, handler=Looking)) as client:
        assert client.recv_until_closed() == b""
    assert seen == [7.5]


def test_handle_request_serves_just_one(manner):
    with no_leaks(), make(manner) as server:
        for number in range(3):
            with client_of(server) as client, client_of(server) as next_client:
                client.send(b"%d\n" % number)
                client.half_close()
                server.handle_request()
                assert client.recv_until_closed() == b"%d\n" % number
                next_client.half_close()
                server.handle_request()
                assert next_client.recv_until_closed() == b""


def test_handle_request_gives_up_after_its_timeout(manner):
    given_up: list[bool] = []
    with no_leaks(), make(manner, timeout=0.01, handle_timeout=lambda _self: given_up.append(True)) as server:
        server.handle_request()
    assert given_up == [True]


def test_a_source_of_requests_may_be_any_descriptor():
    ours, theirs = socket.socketpair()

    class Pipes(socketserver.ThreadingMixIn, socketserver.BaseServer):
        def fileno(self) -> int:
            return ours.fileno()

        def get_request(self) -> Any:
            return ours.recv(100), "the pipe"

        def finish_request(self, request: Any, client_address: Any) -> None:
            ours.sendall(request.upper())

    with ours, theirs, no_leaks(), served(Pipes("no address", Upper)):
        theirs.settimeout(5)
        theirs.sendall(b"hello")
        assert theirs.recv(100) == b"HELLO"


@pytest.mark.parametrize("mixins", [(), (socketserver.ThreadingMixIn,), (socketserver.GreenMixIn,)])
def test_datagrams_are_answered(mixins):
    class Shout(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read().upper())

    server_class = type("Datagrams", (*mixins, socketserver.UDPServer), {})
    with no_leaks(), served(server_class(ADDRESS, Shout)) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            for size in (1, 1000, 60_000):
                client.sendto(b"a" * size, server.server_address)
                assert client.recv(65536) == b"A" * size


@pytest.mark.parametrize("mixin", [socketserver.ThreadingMixIn, socketserver.GreenMixIn, socketserver.ForkingMixIn])
def test_the_mixins_work_on_servers_of_the_standard_module(mixin):
    class Theirs(standard.TCPServer):
        request_queue_size = 7

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.asked = True
            return True

    class Fast(mixin, Theirs):
        pass

    with no_leaks(), served(Fast(ADDRESS, Upper)) as server:
        assert ask(server, b"hello") == b"HELLO"
        assert server.asked
        assert server.request_queue_size == 7


def test_a_mixin_in_the_wrong_order_works_all_the_same():
    class Backwards(socketserver.TCPServer, socketserver.ThreadingMixIn):
        pass

    with no_leaks(), served(Backwards(ADDRESS, Upper)) as server:
        with client_of(server) as first, client_of(server) as second:
            assert second.request(b"second") == b"SECOND"
            assert first.request(b"first") == b"FIRST"


def test_every_class_is_a_subclass_of_the_standard_one():
    for name in standard.__all__:
        assert issubclass(getattr(socketserver, name), getattr(standard, name)), name
    assert socketserver.socket is socket


def test_who_subscribes_to_some_events_hears_of_those(serve):
    server = serve("threads")
    heard = []
    server.subscribe(heard.append, ConnectionClosed)
    assert ask(server, b"hello") == b"HELLO"
    server.events.wait_for(ConnectionClosed)
    assert [type(event) for event in heard] == [ConnectionClosed]


def test_events_tell_of_each_connection(serve):
    server = serve("threads")
    assert ask(server, b"hello") == b"HELLO"
    opened = server.events.wait_for(ConnectionOpened)
    closed = server.events.wait_for(ConnectionClosed)
    assert (opened.id, closed.received, closed.sent, closed.cause) == (closed.id, 6, 6, "finished")
