"""Results are awaited from anywhere, and nowhere is a reactor or a loop stopped for them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time

import pytest

import longshore
from longshore import ConfigError, LimitExceeded, Lines, MessageHandler, Server, WorkerDied, WouldBlock, serve
from longshore.events import ServerStarted
from longshore.testing import Client, running_server
from pool import tasks
from pool.places import PATIENCE, gone, text_of


def squared(connection):
    """A blocking handler, for every strategy that has such: one number a line."""
    for line in connection:
        future = connection.server.pool.submit(tasks.square, int(line), timeout=PATIENCE)
        connection.send(b"%d" % future.result())


async def squared_async(connection):
    async for line in connection:
        number = await connection.server.pool.run(tasks.square, int(line), timeout=PATIENCE)
        await connection.send(b"%d" % number)


def squared_message(message, connection):
    future = connection.server.pool.submit(tasks.square, int(message))
    future.add_done_callback(lambda future: connection.send(b"%d" % future.result()))


@pytest.mark.parametrize(
    ("handler", "strategy"),
    [
        (squared, "inline"),
        (squared, "threads"),
        (squared, "green"),
        (squared, "processes"),
        (squared_async, "async"),
        (squared_message, "reactor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_handlers_of_every_strategy_have_the_servers_pool(make_warm, handler, strategy):
    pool = make_warm(2)
    with running_server(handler, framing=Lines(), strategy=strategy, pool=pool) as server:
        assert server.pool is pool
        with Client(server.url) as client:
            for number in range(5):
                assert client.request(b"%d" % number) == b"%d" % number**2


def test_a_child_of_processes_hears_of_errors_and_uses_the_servers_own_processes(make_warm):
    def handler(connection):
        pool = connection.server.pool
        with pytest.raises(WorkerDied):
            pool.submit(tasks.die).result(PATIENCE)
        with pytest.raises(TimeoutError):
            pool.submit(tasks.forever, timeout=0.1).result(PATIENCE)
        connection.sendall(b"%d\n" % pool.submit(tasks.pid).result(PATIENCE))

    pool = make_warm(1)
    # Not one that is compared with before: the pool's process is another one afterwards.
    with Server(handler, "tcp://127.0.0.1:0", strategy="processes", pool=pool) as server:
        with Client(server.addresses[0]) as client:
            number = int(client.recv_line())
    assert number == pool.submit(tasks.pid).result(PATIENCE)


def test_a_green_handler_that_waits_lets_the_others_run(make_warm, tmp_path):
    go = tmp_path / "go"

    def handler(connection):
        for line in connection:
            if line == b"wait":
                connection.server.pool.submit(tasks.say_and_wait, str(tmp_path / "began"), str(go)).result()
            connection.send(line)

    with running_server(handler, framing=Lines(), strategy="green", pool=make_warm(1)) as server:
        with Client(server.url) as patient, Client(server.url) as other:
            patient.send(b"wait\n")
            text_of(tmp_path / "began")
            assert other.request(b"hello") == b"hello"
            go.touch()
            assert patient.recv_line() == b"wait\n"


def test_a_green_handlers_wait_has_a_timeout_and_wakes_nothing_else(make_warm, tmp_path):
    go = tmp_path / "go"

    def handler(connection):
        future = connection.server.pool.submit(tasks.wait_for, str(go))
        with pytest.raises(TimeoutError):
            future.result(0.05)
        go.touch()
        began = time.monotonic()
        # It is done meanwhile, which is nothing to this sleep.
        longshore.sleep(0.3)
        connection.sendall(b"%d" % (time.monotonic() - began >= 0.3))
        future.result(PATIENCE)

    with running_server(handler, strategy="green", pool=make_warm(1)) as server, Client(server.url) as client:
        assert client.recv_until_closed() == b"1"


def test_a_green_handler_waits_for_room(make_warm):
    def handler(connection):
        pool = connection.server.pool
        futures = [pool.submit(tasks.square, number) for number in range(20)]
        connection.sendall(b"%d" % sum(future.result() for future in futures))

    with running_server(handler, strategy="green", pool=make_warm(1, max_pending=2)) as server:
        with Client(server.url) as client:
            assert client.recv_until_closed() == b"%d" % sum(number * number for number in range(20))


def test_where_nothing_may_wait_a_wait_is_refused_with_its_cure(make_warm, tmp_path):
    go = tmp_path / "go"

    class Impatient(MessageHandler):
        framing = Lines()

        def message(self, message):
            pool = self.server.pool
            future = pool.submit(tasks.wait_for, str(go))
            try:
                future.result()
            except WouldBlock as error:
                told = error.hint
            try:
                pool.submit(tasks.square, 2)
            except LimitExceeded as error:
                told += str(error)
            with pytest.raises(TimeoutError):
                future.result(0)
            go.touch()
            return told.encode()

    pool = make_warm(1, max_pending=1)
    with running_server(Impatient, strategy="reactor", pool=pool) as server, Client(server.url) as client:
        answer = client.request(b"please")
    assert b"add_done_callback" in answer
    assert b"max_pending=1" in answer


def test_a_callback_that_waits_on_the_pools_own_thread_is_refused(make_pool, tmp_path):
    pool = make_pool(2)
    told = concurrent.futures.Future()
    other = pool.submit(tasks.wait_for, str(tmp_path / "go"))

    def wait(_):
        try:
            told.set_result(other.result())
        except WouldBlock as error:
            told.set_result(error)

    pool.submit(tasks.wait_for, str(tmp_path / "first")).add_done_callback(wait)
    (tmp_path / "first").touch()
    assert isinstance(told.result(PATIENCE), WouldBlock)
    (tmp_path / "go").touch()
    assert other.result(PATIENCE)


def test_a_callback_that_raises_anything_leaves_the_pool_alone(make_pool, tmp_path, caplog):
    def leave(_):
        raise SystemExit(3)

    pool = make_pool(1)
    pool.submit(tasks.wait_for, str(tmp_path / "go")).add_done_callback(leave)
    (tmp_path / "go").touch()
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert "exception calling callback" in caplog.text


def test_an_asyncio_program_awaits_tasks(make_pool, tmp_path):
    async def main():
        pool = make_pool(2, max_pending=3)
        assert await asyncio.gather(*(pool.run(tasks.square, number) for number in range(20))) == [
            number * number for number in range(20)
        ]
        assert await asyncio.wrap_future(pool.submit(tasks.square, 3)) == 9
        assert await asyncio.get_running_loop().run_in_executor(pool, tasks.square, 4) == 16
        with pytest.raises(LookupError):
            await pool.run(tasks.fail)
        future = pool.submit(tasks.wait_for, str(tmp_path / "go"))
        with pytest.raises(WouldBlock, match="asyncio loop") as caught:
            future.result()
        assert "await" in caught.value.hint.lower()
        (tmp_path / "go").touch()
        await asyncio.wrap_future(future)
        assert future.result()
        assert [value async for value in pool.map(tasks.square, range(3))] == [0, 1, 4]
        assert sorted([value async for value in pool.imap_unordered(tasks.square, range(2))]) == [0, 1]

    asyncio.run(main())


def test_cancelling_a_task_of_a_loop_ends_the_pools_task(make_pool, tmp_path):
    async def main():
        pool = make_pool(1)
        running = asyncio.ensure_future(pool.run(tasks.touch_and_sleep, str(tmp_path / "pid")))
        await asyncio.to_thread(text_of, tmp_path / "pid")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.run(tasks.forever), 0.1)
        # There is but one process, so both have ended.
        assert await pool.run(tasks.square, 3) == 9

    asyncio.run(main())


def test_async_with_waits_for_the_end_without_stopping_the_loop(make_pool, tmp_path):
    async def main():
        turns = []
        async with make_pool(1) as pool:
            future = pool.submit(tasks.wait_for, str(tmp_path / "go"))
            asyncio.get_running_loop().call_later(0.05, lambda: (turns.append(1), (tmp_path / "go").touch()))
        assert turns
        assert future.result(0)
        with pytest.raises(WouldBlock, match="end of the pool's tasks"):
            other = make_pool(1)
            other.submit(tasks.sleep, 0.05)
            other.shutdown()

    asyncio.run(main())


def test_threads_share_a_pool(make_pool):
    pool = make_pool(2, max_pending=10)
    wrong = []

    def work(start):
        for number in range(start, start + 100):
            if pool.submit(tasks.square, number).result(PATIENCE) != number * number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(100 * each,)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.statistics().pending == 0


def test_a_server_takes_a_pool_and_serve_a_number():
    with pytest.raises(ConfigError, match="takes a pool"):
        Server(squared, "tcp://127.0.0.1:0", pool=4)
    with pytest.raises(ConfigError, match="no such place"):
        serve(squared, "tcp://127.0.0.1:0", pool="here")


def test_serve_makes_a_pool_and_ends_it(tmp_path):
    pids = []

    def handler(connection):
        pool = connection.server.pool
        pool.submit(tasks.touch_and_sleep, str(tmp_path / "pid"))
        pids.append(int(text_of(tmp_path / "pid")))
        connection.server.stop()

    @contextlib.contextmanager
    def begin(server):
        def connect():
            with contextlib.suppress(OSError), Client(server.addresses[0]) as client:
                client.recv_until_closed()

        server.subscribe(lambda event: isinstance(event, ServerStarted) and threading.Thread(target=connect).start())
        yield

    serve(handler, "tcp://127.0.0.1:0", strategy="threads", pool=1, lifespan=begin)
    gone(pids[0])
