"""The primitives from handlers of every strategy: what waits there, what it holds, and what refuses to wait."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from functools import partial

import pytest

from longshore import MessageHandler, Server, WouldBlock, connect, shared, socketserver
from longshore.framing import Lines
from shared.test_primitives import in_thread

pytestmark = pytest.mark.slow


def said(connection):
    return json.loads(connection.receive())


def say(connection, value):
    connection.sendall(json.dumps(value).encode() + b"\n")


def test_a_handler_waits_for_what_others_do(place, strategy, serving):
    def handler(connection):
        work, answers = shared.Queue("work"), shared.Queue("answers")
        say(connection, "here")
        answers.put(work.get(timeout=10) * 2)
        with shared.Lock("l") as lock:
            say(connection, lock.fence > 0)
        say(connection, shared.Event("go").wait(10))

    with shared.Lock("l"):
        client = serving(handler, strategy)
        assert said(client) == "here"
        shared.Queue("work").put(21)
        assert shared.Queue("answers").get(timeout=10) == 42
    assert said(client) is True
    shared.Event("go").set()
    assert said(client) is True


def test_what_a_handler_run_holds_is_released_when_it_ends(place, strategy, serving):
    def handler(connection):
        shared.Lock("l").acquire()
        shared.Queue("q").get(ack=True)
        say(connection, "holding")
        connection.readline()

    shared.Queue("q").put("job")
    client = serving(handler, strategy)
    assert said(client) == "holding"
    assert not shared.Lock("l").acquire(timeout=0)
    client.sendall(b"end\n")
    lock = shared.Lock("l")
    assert lock.acquire(timeout=10)
    assert lock.recovered
    assert shared.Queue("q").get(timeout=10) == "job"


def test_green_handlers_wait_for_one_another(place, serving):
    def handler(connection):
        order = shared.Queue("order")
        with shared.Lock("l"):
            order.put(connection.readline().strip())
        say(connection, "done")

    clients = serving(handler, "green", connections=3)
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
    assert [said(client) for client in clients] == ["done"] * 3
    assert sorted(shared.Queue("order").get(timeout=5) for _ in clients) == [b"0", b"1", b"2"]


def test_async_handlers_await(place, serving):
    async def handler(connection):
        async with shared.Lock("l") as lock:
            await connection.sendall(json.dumps(lock.fence > 0).encode() + b"\n")
        item = await shared.Queue("work").aget(10)
        await shared.Queue("answers").aput(item * 2)
        told = await shared.Event("go").await_set(10)
        await connection.sendall(json.dumps(told).encode() + b"\n")

    client = serving(handler, "async")
    assert said(client) is True
    shared.Queue("work").put(21)
    assert shared.Queue("answers").get(timeout=10) == 42
    shared.Event("go").set()
    assert said(client) is True


@pytest.mark.parametrize("kind", ["reactor", "async"])
def test_where_nothing_may_wait_a_wait_is_refused_and_the_cure_named(place, serving, kind):
    def look():
        pipe, condition = shared.Pipe("p", 0), shared.Condition("c")
        condition.acquire(timeout=0)
        waits = {
            shared.Lock("l").acquire: "Lock.aacquire()",
            shared.Semaphore("s").acquire: "Semaphore.aacquire()",
            shared.Event("e").wait: "Event.await_set()",
            condition.wait: "Condition.await_notified()",
            shared.Barrier("b", 2).wait: "Barrier.await_all()",
            shared.Queue("q").get: "Queue.aget()",
            shared.Queue("q").join: "Queue.ajoin()",
            partial(shared.Queue("b", 1).put, 1): "Queue.aput()",
            shared.Topic("t").subscribe().get: "Topic.subscribe().aget()",
            pipe.recv: "Pipe.arecv()",
            partial(pipe.send, 1): "Pipe.asend()",
        }
        cures = []
        for wait, twin in waits.items():
            with pytest.raises(WouldBlock) as refused:
                wait()
            cures.append([refused.value.hint, twin])
        return cures

    if kind == "reactor":

        def handler(message, connection):
            return json.dumps(look()).encode()
    else:

        async def handler(message, connection):
            return json.dumps(look()).encode()

    client = serving(handler, kind, framing=Lines())
    client.send(b"go")
    for cure, twin in said(client):
        assert (twin if kind == "async" else 'strategy="threads"') in cure


def test_what_never_waits_may_be_done_on_the_reactor(place, serving):
    def handler(message, connection):
        shared.Event("e").set()
        shared.Queue("q").put("item")
        shared.Topic("t").publish("news")
        shared.Dict("d")["k"] = shared.Counter("c").add()
        return json.dumps([shared.Lock("l").acquire(timeout=0)]).encode()

    subscription = shared.Topic("t").subscribe()
    client = serving(handler, "reactor", framing=Lines())
    client.send(b"go")
    assert said(client)[0] is True
    assert shared.Event("e").wait(5)
    assert shared.Queue("q").get(timeout=5) == "item"
    assert subscription.get(timeout=5) == "news"
    assert shared.Dict("d")["k"] == 1
    # The call of the handler is over, and what it held with it.
    assert shared.Lock("l").acquire(timeout=5)


@pytest.mark.parametrize("kind", ["threads", "green", "async"])
def test_what_one_message_holds_is_released_before_the_next(place, serving, kind):
    if kind == "async":

        class Handler(MessageHandler):
            framing = Lines()

            async def message(self, message):
                return json.dumps(await shared.Lock("l").aacquire(timeout=5)).encode()
    else:

        class Handler(MessageHandler):
            framing = Lines()

            def message(self, message):
                return json.dumps(shared.Lock("l").acquire(timeout=5)).encode()

    client = serving(Handler, kind)
    for _ in range(3):
        client.send(b"go")
        assert said(client) is True


def test_a_stop_of_the_server_ends_waits_and_loses_no_wake_up(place, strategy, serving):
    from longshore import Server, connect

    def handler(connection):
        say(connection, "waiting")
        shared.Queue("q").get(timeout=30)

    if strategy in ("inline", "threads"):
        pytest.skip("a thread that waits cannot be ended; the report names it as abandoned")
    with Server(handler, "tcp://127.0.0.1:0", strategy=strategy) as server:
        with connect(server.addresses[0], framing=Lines(), timeout=10) as client:
            assert said(client) == "waiting"
            server.stop()
    shared.Queue("q").put("kept")
    assert shared.Queue("q").get(timeout=5) == "kept"


def test_a_cancelled_task_gives_back_what_came_for_it(place):
    import asyncio

    async def main():
        work, lock = shared.Queue("q"), shared.Lock("l")
        for turn in range(30):
            task = asyncio.create_task(work.aget())
            locking = asyncio.create_task(lock.aacquire())
            await asyncio.sleep(0)
            if turn % 2:
                await asyncio.sleep(0.001)
            await work.aput(turn)
            task.cancel()
            locking.cancel()
            results = await asyncio.gather(task, locking, return_exceptions=True)
            if isinstance(results[0], BaseException):
                assert await work.aget(5) == turn
            assert await shared.Lock("l").aacquire(timeout=5)
            lock.release()

    asyncio.run(main())


def test_an_interrupted_wait_gives_back_what_came_for_it(place):
    import signal

    class Interrupt(Exception):
        pass

    def interrupt(*_args):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        lock = shared.Lock("l")
        holder = threading.Thread(target=lambda: (shared.Lock("l").acquire(), ready.set(), go.wait(10)))
        ready, go = threading.Event(), threading.Event()
        holder.start()
        ready.wait(10)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupt):
            lock.acquire()
        go.set()
        holder.join()
        assert shared.Lock("l").acquire(timeout=5)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_use_the_primitives_while_its_thread_waits(place):
    import signal

    def on_signal(*_args):
        shared.Counter("c").add()
        shared.Queue("q").put("from the handler")

    before = signal.signal(signal.SIGALRM, on_signal)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert shared.Queue("q").get(timeout=10) == "from the handler"
        assert shared.Counter("c").value == 1
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "GreenTCPServer"])
def test_a_handler_of_socketserver_waits_and_what_it_holds_is_released_when_it_ends(place, kind):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            shared.Event("go").wait(10)
            self.wfile.write(b"%d\n" % shared.Lock("x").acquire(timeout=5))

    with getattr(socketserver, kind)(("127.0.0.1", 0), Handler) as server:
        serving = in_thread(server.serve_forever)
        for _ in range(2):
            with connect(f"tcp://127.0.0.1:{server.server_address[1]}", timeout=10) as client:
                shared.Event("go").set()
                assert client.readline() == b"1\n"
        assert shared.Lock("x").acquire(timeout=5)
        server.shutdown()
        serving()


@pytest.mark.parametrize("kind", ["inline", "reactor", "TCPServer"])
def test_what_a_thread_holds_stays_its_own_while_it_serves(place, kind):
    def taken():
        return b"%d%d" % (shared.Lock("own").acquire(timeout=0), shared.Lock("x").acquire(timeout=0))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            self.wfile.write(taken() + b"\n")

    with contextlib.ExitStack() as stack:
        if kind == "TCPServer":
            server = stack.enter_context(socketserver.TCPServer(("127.0.0.1", 0), Handler))
            port, stop = server.server_address[1], server.shutdown
        else:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listening.getsockname()[1]
            handler, framing = (Handler, None) if kind == "inline" else (lambda _message, _connection: taken(), Lines())
            server = Server(handler, listening, strategy=kind, framing=framing)
            stop = server.stop

        def ask():
            answers = []
            for _ in range(2):
                with connect(f"tcp://127.0.0.1:{port}", framing=Lines(), timeout=10) as client:
                    answers.append(client.request(b"go"))
            stop()
            return answers

        with shared.Lock("own"):
            answers = in_thread(ask)
            server.serve_forever()
            assert answers() == [b"01", b"01"]
            assert not in_thread(shared.Lock("own").acquire, 0)()
        assert shared.Lock("x").acquire(timeout=5)
