"""Several results at once: the standard library's functions for it, where nothing may block."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest

from longshore import Lines, MessageHandler, WouldBlock
from longshore.testing import Client, running_server
from pool import tasks
from pool.places import PATIENCE, text_of


def test_a_green_handler_that_waits_for_several_results_lets_the_others_run(make_warm, tmp_path):
    began, go, go_on = (tmp_path / name for name in ("began", "go", "go on"))

    def handler(connection):
        for line in connection:
            if line == b"wait":
                pool = connection.server.pool
                futures = [pool.submit(tasks.say_and_wait, str(began), str(file)) for file in (go, go_on)]
                first = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED).done
                go_on.touch()
                others = list(concurrent.futures.as_completed(futures, PATIENCE))
                connection.send(b"%d and %d" % (len(first), len(others)))
            else:
                connection.send(line)

    with running_server(handler, framing=Lines(), strategy="green", pool=make_warm(1)) as server:
        with Client(server.url) as patient, Client(server.url) as other:
            patient.send(b"wait\n")
            text_of(began)
            assert other.request(b"hello") == b"hello"
            go.touch()
            assert patient.recv_line() == b"1 and 2\n"


def test_a_green_handlers_wait_for_several_results_has_a_timeout(make_warm, tmp_path):
    go = tmp_path / "go"

    def handler(connection):
        futures = [connection.server.pool.submit(tasks.wait_for, str(go)) for _ in range(2)]
        assert concurrent.futures.wait(futures, 0.02).done == set()
        with pytest.raises(TimeoutError):
            next(concurrent.futures.as_completed(futures, 0.02))
        go.touch()
        connection.sendall(b"%d" % len(concurrent.futures.wait(futures).done))

    with running_server(handler, strategy="green", pool=make_warm(1)) as server, Client(server.url) as client:
        assert client.recv_until_closed() == b"2"


def test_where_nothing_may_wait_a_wait_for_several_results_is_refused_with_its_cure(make_warm, tmp_path):
    def told(pool):
        futures = [pool.submit(tasks.wait_for, str(tmp_path / "go")) for _ in range(2)]
        for wait in (concurrent.futures.wait, lambda futures: next(concurrent.futures.as_completed(futures))):
            with pytest.raises(WouldBlock, match="one of several tasks") as caught:
                wait(futures)
        assert len(concurrent.futures.wait(futures, 0).not_done) == 2
        (tmp_path / "go").touch()
        return futures, caught.value.hint

    async def main():
        futures, hint = told(pool)
        assert "asyncio.wrap_future" in hint
        assert all(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        assert len(concurrent.futures.wait(futures).done) == 2

    class Impatient(MessageHandler):
        framing = Lines()

        def message(self, message):
            return told(self.server.pool)[1].encode()

    pool = make_warm(1)
    asyncio.run(main())
    (tmp_path / "go").unlink()
    with running_server(Impatient, strategy="reactor", pool=pool) as server, Client(server.url) as client:
        assert b"add_done_callback" in client.request(b"go")
