"""Start, pause, drain, stop: verbs that end what they must, keep what they may, and never hang."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import socket
import threading

import pytest

from longshore import ClosedError, ConfigError, Limits, Lines, MessageHandler, Server, Timeouts
from longshore.events import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRejected,
    HandlerBlocked,
    HandlerFailed,
    LimitNear,
    ServerDraining,
    ServerPaused,
    ServerResumed,
    ServerStarted,
    ServerStopped,
)
from longshore.testing import Client, RecordedServer, running_server


def in_thread(function, *args):
    """Call it on a thread; returns how to wait for what it returns."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()

    def wait():
        thread.join(10)
        assert not thread.is_alive(), f"{function} hangs"
        return results[0]

    return wait


def test_a_server_tells_when_it_starts_and_when_it_has_stopped(shape, serve):
    server = serve(shape)
    started = server.events.wait_for(ServerStarted)
    assert (started.addresses, started.strategy) == (server.addresses, shape.strategy)
    assert server.status == "serving"
    report = server.stop()
    assert (report.finished, report.cut, report.abandoned) == (0, 0, ())
    assert len(server.events.of(ServerStopped)) == 1
    assert server.status == "stopped"


def wait_for_a_turn(server):
    """Until the reactor has ended what it was at: a drain is announced before it shuts the doors."""
    turned = threading.Event()
    server.reactor.post(turned.set)
    assert turned.wait(10)


def test_a_server_that_could_not_be_made_is_in_nobodys_way(together, serve):
    with pytest.raises(ConfigError) as kept:
        Server(lambda connection: None, "tcp://127.0.0.1:0", strategy="reactor")
    with Client(serve(together).url) as client:
        assert client.request(b"hello") == b"hello"
    assert kept.tb is not None  # and with it what was half made


def test_drain_closes_idle_connections_at_once(shape, serve):
    server = serve(shape)
    with Client(server.url) as idle, contextlib.ExitStack() as stack:
        assert idle.request(b"hello") == b"hello"
        if shape.strategy != "inline":
            silent = stack.enter_context(Client(server.url))
            server.events.wait_for_count(ConnectionOpened, 2)
        drained = in_thread(server.drain)
        assert idle.recv_until_closed() == b""
        if shape.strategy != "inline":
            assert silent.recv_until_closed() == b""
        report = drained()
    assert (report.cut, report.abandoned) == (0, ())
    assert report.finished == (1 if shape.strategy == "inline" else 2)
    assert report.seconds < 1
    assert {event.cause for event in server.events.of(ConnectionClosed)} == {"drained"}


def test_drain_lets_a_message_that_has_begun_finish(framed, serve):
    server = serve(framed)
    with Client(server.url) as client:
        assert client.request(b"first") == b"first"
        client.send(b"sec")
        wait_until_received(server, 6 + 3)
        drained = in_thread(server.drain)
        server.events.wait_for(ServerDraining)
        client.send(b"ond\n")
        assert client.recv_until_closed() == b"second\n"
        report = drained()
    assert (report.finished, report.cut) == (1, 0)


def wait_until_received(server, count):
    """Until the only connection has taken `count` bytes from the kernel."""
    (connection,) = server.connections
    deadline = threading.Event()
    for _ in range(2000):
        (session,) = server._admission.sessions
        if session.traffic()[0] >= count:
            return
        # There is no event for a byte that came; the kernel is fast, and this is rarely reached twice.
        deadline.wait(0.001)
    raise AssertionError(f"{connection} has not received {count} bytes")


def test_the_drains_deadline_cuts_who_is_not_done(framed, serve):
    server = serve(framed)
    with Client(server.url) as client:
        assert client.request(b"first") == b"first"
        client.send(b"half a mess")
        wait_until_received(server, 6 + 11)
        report = server.drain(0.1)
        assert client.recv_until_closed() == b""
    assert (report.finished, report.cut, report.abandoned) == (0, 1, ())
    assert server.events.wait_for(ConnectionClosed).cause == "cut"


def test_drain_answers_who_was_queued(shape, serve):
    """Connections that the kernel has accepted before the drain are served."""
    server = serve(shape)
    clients = [Client(server.url) for _ in range(1 if shape.strategy == "inline" else 5)]
    try:
        for client in clients:
            client.send(b"hello\n")
        drained = in_thread(server.drain)
        for client in clients:
            assert client.recv_until_closed() == b"hello\n"
        drained()
    finally:
        for client in clients:
            client.close()


def test_new_connections_are_refused_once_it_drains(together, serve):
    server = serve(together)
    with Client(server.url) as client:
        assert client.request(b"first") == b"first"
        client.send(b"half")
        wait_until_received(server, 6 + 4)
        drained = in_thread(server.drain)
        server.events.wait_for(ServerDraining)
        wait_for_a_turn(server)
        with pytest.raises(ConnectionRefusedError):
            Client(server.url)
        client.send(b"\n")
        assert client.recv_line() == b"half\n"
        drained()


def test_stop_cuts_and_flushes(shape, serve):
    server = serve(shape)
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
        report = server.stop()
        assert client.recv_until_closed() == b""
    assert (report.finished, report.cut, report.abandoned) == (0, 1, ())
    assert [event.cause for event in server.events.of(ConnectionClosed)] == ["cut"]
    assert len(server.events.of(HandlerFailed)) == 0


def test_a_handler_that_does_not_end_is_abandoned_by_name(longshore_server):
    release = threading.Event()

    def stubborn(connection):
        connection.readline()
        release.wait(10)

    server = longshore_server(stubborn, strategy="threads")
    try:
        with Client(server.url) as client:
            client.send(b"hello\n")
            peer = server.events.wait_for(ConnectionOpened).peer
            wait_until_received(server, 6)
            report = server.stop()
    finally:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("longshore")]
        release.set()
        for thread in threads:
            thread.join(5)
    assert len(report.abandoned) == 1
    assert "stubborn" in report.abandoned[0]
    assert peer in report.abandoned[0]


def test_every_verb_may_be_said_twice(shape, serve):
    server = serve(shape)
    assert server.start() is server
    server.pause()
    server.pause()
    server.resume()
    server.resume()
    first = server.drain()
    assert server.drain() == first
    assert server.stop() == first
    server.wait_stopped()
    server.pause()
    server.resume()
    assert len(server.events.of(ServerPaused)) == len(server.events.of(ServerResumed)) == 1


def test_verbs_before_start_do_not_hang():
    for verb in ("stop", "drain"):
        server = Server(lambda message, connection: message, "tcp://127.0.0.1:0", framing=Lines())
        server.pause()
        server.resume()
        report = getattr(server, verb)()
        assert (report.finished, report.cut) == (0, 0)
        with pytest.raises(ClosedError):
            server.start()


def test_two_threads_may_stop_it_at_once(shape, serve):
    server = serve(shape)
    waits = [in_thread(verb) for verb in (server.stop, server.drain, server.stop)]
    reports = {wait() for wait in waits}
    assert len(reports) == 1


@pytest.mark.parametrize("verb", ["stop", "drain"])
def test_a_handler_may_end_its_server(framed, serve, verb, notes):
    def answer(message, connection):
        notes.append(getattr(connection.server, verb)())
        return b"as you wish"

    server = serve(framed, answer)
    with Client(server.url) as client:
        client.send(b"end\n")
        server.wait_stopped()
        if verb == "drain":
            assert client.recv_until_closed() == b"as you wish\n"
    assert notes.values == [None]


def test_a_handler_may_pause_its_server_and_another_thread_resumes_it(together, serve):
    def answer(message, connection):
        connection.server.pause()
        return b"paused"

    server = serve(together, answer)
    with Client(server.url) as client:
        assert client.request(b"pause") == b"paused"
        server.events.wait_for(ServerPaused)
        with Client(server.url) as waiting:
            waiting.send(b"hello\n")
            assert client.request(b"still served") == b"paused"
            assert len(server.events.wait_for_count(ConnectionOpened, 1)) == 1
            server.resume()
            assert waiting.recv_line() == b"paused\n"


def test_serve_forever_returns_once_another_thread_stops_it(shape):
    server = RecordedServer(shape.handler(), "tcp://127.0.0.1:0", **shape.options())

    def stopper():
        server.events.wait_for(ServerStarted)
        with Client(server.url) as client:
            answer = client.request(b"hello")
            server.stop()
            return answer

    wait = in_thread(stopper)
    server.serve_forever()
    assert wait() == b"hello"
    assert server.status == "stopped"


def test_a_signal_handler_over_the_loop_may_drain(shape):
    server = RecordedServer(shape.handler(), "tcp://127.0.0.1:0", **shape.options())
    returned = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: returned.append(server.drain()))
    try:

        def killer():
            server.events.wait_for(ServerStarted)
            with Client(server.url) as client:
                answer = client.request(b"hello")
                # Once only: whatever the main thread is about to wait for, it hears of this.
                os.kill(os.getpid(), signal.SIGUSR1)
                assert client.recv_until_closed() == b""
                return answer

        wait = in_thread(killer)
        server.serve_forever()
        assert wait() == b"hello"
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert returned == [None]


def test_a_signal_handler_over_a_waiting_main_thread_may_stop(shape, serve):
    server = serve(shape)
    previous = signal.signal(signal.SIGUSR1, lambda *_: server.stop())
    try:
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
        server.serve_forever()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert server.status == "stopped"


def test_a_full_server_pauses_and_serves_the_next_one_after(framed, serve):
    server = serve(framed, limits=Limits(max_connections=1))
    with Client(server.url) as second_or_first:
        assert second_or_first.request(b"first") == b"first"
        with Client(server.url) as waiting:
            waiting.send(b"second\n")
            assert second_or_first.request(b"still alone") == b"still alone"
            assert len(server.events.wait_for_count(ConnectionOpened, 1)) == 1
            second_or_first.close()
            assert waiting.recv_line() == b"second\n"
    assert server.events.of(LimitNear)[0].limit == "max_connections"


def test_a_full_server_rejects_with_a_farewell_if_asked(framed, serve):
    server = serve(framed, limits=Limits(max_connections=1, overflow="reject", farewell=b"full\n"))
    with Client(server.url) as first:
        assert first.request(b"first") == b"first"
        with Client(server.url) as second:
            assert second.recv_until_closed() == b"full\n"
        rejected = server.events.wait_for(ConnectionRejected)
        assert rejected.limit == "max_connections"
        assert first.request(b"still here") == b"still here"
    server.events.wait_for(ConnectionClosed)
    assert server.statistics().rejected == 1


def wait_until_idle(server, count):
    """Until `count` handlers have answered and wait again, which happens after their answer has come."""
    pause = threading.Event()
    for _ in range(2000):
        answered = [session for session in tuple(server._admission.sessions) if session.traffic()[1]]
        if len([session for session in answered if session.idle_since() is not None]) >= count:
            return
        pause.wait(0.001)
    raise AssertionError(f"fewer than {count} handlers wait")


def test_a_full_server_evicts_the_longest_idle_if_asked(together, serve):
    server = serve(together, limits=Limits(max_connections=2, overflow="evict-idle"))
    with Client(server.url) as oldest, Client(server.url) as other:
        assert oldest.request(b"one") == b"one"
        wait_until_idle(server, 1)
        assert other.request(b"two") == b"two"
        wait_until_idle(server, 2)
        with Client(server.url) as newest:
            assert newest.request(b"three") == b"three"
            assert oldest.recv_until_closed() == b""
            assert other.request(b"still here") == b"still here"
    assert server.events.wait_for(ConnectionClosed).cause == "evicted"


def test_max_threads_bounds_threads_exactly(serve, longshore_server):
    busy = []
    most = []
    lock = threading.Lock()

    def handler(connection):
        with lock:
            busy.append(connection)
            most.append(len(busy))
        connection.sendall(connection.readline())
        with lock:
            busy.remove(connection)

    server = longshore_server(handler, strategy="threads", limits=Limits(max_threads=2))
    clients = [Client(server.url) for _ in range(6)]
    try:
        for client in clients:
            client.send(b"hello\n")
        for client in clients:
            assert client.recv_until_closed() == b"hello\n"
    finally:
        for client in clients:
            client.close()
    assert max(most) <= 2


def test_every_repeats_under_a_turned_clock(shape, serve, longshore_clock):
    called = threading.Semaphore(0)
    server = serve(shape)
    server.every(10, called.release)
    for _ in range(3):
        longshore_clock.advance(10)
        # The next one is armed before this one is called.
        assert called.acquire(timeout=5)


def test_what_fails_in_every_is_an_event_and_it_goes_on(shape, serve, longshore_clock):
    def fail():
        raise RuntimeError("every time")

    server = serve(shape)
    server.every(10, fail)
    for count in (1, 2):
        longshore_clock.advance(10)
        failures = server.events.wait_for_count(HandlerFailed, count)
    assert failures[0].peer is None
    assert str(failures[0].error) == "every time"


def test_the_lifespan_is_entered_before_and_left_after_everything(shape, serve):
    seen = []

    @contextlib.contextmanager
    def lifespan(server):
        seen.append(("enter", server.status))
        yield {"answer": b"42"}
        seen.append(("exit", len(server.connections)))

    server = serve(shape, lambda message, connection: message, lifespan=lifespan)
    assert server.state == {"answer": b"42"}
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
    server.drain()
    assert seen == [("enter", "starting"), ("exit", 0)]


def test_a_lifespan_that_fails_fails_the_start_and_leaves_nothing(shape):
    @contextlib.contextmanager
    def lifespan():
        raise RuntimeError("no database")
        yield

    with (
        pytest.raises(RuntimeError, match="no database"),
        running_server(shape.handler(), **shape.options(lifespan=lifespan)),
    ):
        pass


def test_an_async_lifespan_works_under_async(longshore_server):
    seen = []

    @contextlib.asynccontextmanager
    async def lifespan():
        await asyncio.sleep(0)
        yield "state"
        seen.append("exit")

    async def echo(connection):
        await connection.sendall(await connection.readline())

    server = longshore_server(echo, lifespan=lifespan)
    assert server.state == "state"
    server.stop()
    assert seen == ["exit"]


def test_a_server_runs_inside_of_a_running_loop(framed):
    async def main():
        server = RecordedServer(framed.handler(), "tcp://127.0.0.1:0", **framed.options())
        async with server:
            reader, writer = await asyncio.open_connection(*server.url.removeprefix("tcp://").split(":"))
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()
        return server

    if framed.strategy == "inline":
        pytest.skip("inline owns the thread that it runs on")
    server = asyncio.run(main())
    assert server.status == "stopped"


@pytest.mark.parametrize("strategy", ["reactor", "green"])
def test_the_watchdog_names_who_blocks(longshore_server, strategy):
    release = threading.Event()

    class Blocker(MessageHandler):
        framing = Lines()

        def message(self, message):
            release.wait(10)
            return message

    server = longshore_server(Blocker, strategy=strategy, timeouts=Timeouts(blocked=0.05))
    server.subscribe(lambda event: release.set() if isinstance(event, HandlerBlocked) else None)
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
        blocked = server.events.wait_for(HandlerBlocked)
        host, port = client.socket.getsockname()
    assert blocked.handler == "Blocker"
    assert blocked.peer == f"{host}:{port}"
    assert "release.wait(10)" in blocked.stack


def test_the_watchdog_names_who_blocks_the_event_loop(longshore_server):
    release = threading.Event()

    async def blocker(message, connection):
        release.wait(10)
        return message

    server = longshore_server(blocker, framing=Lines(), timeouts=Timeouts(blocked=0.05))
    server.subscribe(lambda event: release.set() if isinstance(event, HandlerBlocked) else None)
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
    blocked = server.events.wait_for(HandlerBlocked)
    assert "release.wait(10)" in blocked.stack


def test_each_handler_has_a_context_of_its_own(longshore_server):
    name = contextvars.ContextVar("name", default="nobody")
    name.set("the program")
    seen = []

    def handler(connection):
        seen.append(name.get())
        while line := connection.readline():
            if line.startswith(b"I am "):
                name.set(line[5:-1].decode())
            connection.sendall(name.get().encode() + b"\n")

    for strategy in ("green", "threads"):
        server = longshore_server(handler, strategy=strategy)
        with Client(server.url) as one, Client(server.url) as two:
            assert one.request(b"I am one") == b"one"
            assert two.request(b"I am two") == b"two"
            assert one.request(b"who am I?") == b"one"
            assert two.request(b"who am I?") == b"two"
        server.stop()
    assert seen == ["the program"] * 4
    assert name.get() == "the program"


def test_a_ready_made_socket_is_served_and_closed(shape):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with running_server(shape.handler(), listener, **shape.options()) as server:
        assert server.url.endswith(f":{port}")
        with Client(f"tcp://127.0.0.1:{port}") as client:
            assert client.request(b"hello") == b"hello"
    assert listener.fileno() == -1


def test_a_unix_socket_file_is_gone_after_the_server(shape, tmp_path):
    path = tmp_path / "echo"
    with running_server(shape.handler(), f"unix://{path}", **shape.options()):
        assert path.is_socket()
    assert not path.exists()


@pytest.mark.slow
def test_a_handler_that_blocks_for_ever_does_not_keep_whoever_stops_the_server(shape, monkeypatch):
    if shape.blocks:
        pytest.skip("a handler with a thread of its own blocks nobody else")
    monkeypatch.setattr("longshore.server.BLOCKED", 0.2)
    entered, release = threading.Event(), threading.Event()

    def stubborn(message, connection):
        entered.set()
        release.wait(20)
        return message

    with running_server(shape.handler(stubborn), **shape.options()) as server, Client(server.url) as client:
        client.send(b"hello\n")
        assert entered.wait(5)
        try:
            report = server.stop()
        finally:
            release.set()
        assert report.abandoned == (f"{server.handler.name}, which blocks the reactor",)
        server.wait_stopped()


def test_message_handlers_on_the_reactor_see_the_context_that_the_server_was_made_in(longshore_server):
    name = contextvars.ContextVar("name", default="nobody")
    name.set("the program")
    server = longshore_server(lambda message, connection: name.get().encode(), framing=Lines())
    with Client(server.url) as client:
        assert client.request(b"who am I?") == b"the program"
