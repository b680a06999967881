"""`longshore top` by its keys (textual's pilot), on a control process and a real server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from textual.widgets import DataTable, Sparkline, Static

from control_harbour import Harbour, ready
from longshore import connect
from longshore.cli.top import Rate, Top
from longshore.control.client import Commanded

pytestmark = pytest.mark.slow


@pytest.fixture
def harbour(tmp_path):
    harbour = Harbour(tmp_path)
    yield harbour
    harbour.close()


@pytest.fixture
def server(harbour):
    server = harbour.start()
    with Commanded(harbour.path) as commanded:
        ready(commanded, 1)
    return server


class Watched(Top):
    """Tells when it has looked."""

    def __init__(self, path):
        super().__init__(path, interval=0.25)
        self.looked = asyncio.Event()

    def _asked(self):
        super()._asked()
        self.looked.set()


def watching(harbour, script):
    """Run `script(app, pilot)` on a screen."""

    async def run():
        app = Watched(harbour.path)
        async with app.run_test(size=(120, 40)) as pilot:
            await script(app, pilot)

    asyncio.run(run())


async def until(app, wanted):
    while not wanted():
        app.looked.clear()
        await app.looked.wait()


def rows(app, name):
    table = app.query_one(f"#{name}", DataTable)
    return [[str(cell) for cell in table.get_row_at(number)] for number in range(table.row_count)]


def text(app, name):
    return str(app.query_one(f"#{name}", Static).render())


def exchange(client, count):
    client.sendall(b"x" * count)
    client.read_exactly(count)


def test_workers_connections_and_rates_are_shown(harbour, server):
    async def script(app, pilot):
        with connect(server.addresses[0]) as client:
            exchange(client, 2000)
            await until(app, lambda: rows(app, "connections"))
            ((number, peer, state, *_, handler),) = rows(app, "connections")
            assert (peer, state, handler) == (client.local, "waiting", "echo")
            assert number.startswith("1:")
            assert rows(app, "workers")[0][:4] == ["1", str(os.getpid()), "1", "serving"]
            assert "echo on tcp://127.0.0.1" in text(app, "head")
            exchange(client, 5000)
            await until(app, lambda: max(app.query_one("#line-received", Sparkline).data) > 0)

    watching(harbour, script)


def test_keys_sort_reverse_and_filter(harbour, server):
    async def script(app, pilot):
        with connect(server.addresses[0]) as one, connect(server.addresses[0]) as two:
            exchange(one, 10)
            exchange(two, 2000)
            peers = lambda: [row[1] for row in rows(app, "connections")]  # noqa: E731
            await until(app, lambda: peers() == [one.local, two.local])
            await pilot.press("s")
            assert app.sort_by == "received"
            await until(app, lambda: peers() == [two.local, one.local])
            assert "by received, the greatest first" in text(app, "note")
            await pilot.press("r")
            await until(app, lambda: peers() == [one.local, two.local])
            await pilot.press("slash", *two.local[-5:].replace(":", ""), "enter")
            await until(app, lambda: peers() == [two.local])
            await pilot.press("escape")
            await until(app, lambda: len(peers()) == 2)

    watching(harbour, script)


def test_the_connection_under_the_cursor_is_ended(harbour, server):
    async def script(app, pilot):
        with connect(server.addresses[0]) as one, connect(server.addresses[0]) as two:
            exchange(one, 10)
            exchange(two, 20)
            await until(app, lambda: len(rows(app, "connections")) == 2)
            await pilot.press("down", "k")
            assert await asyncio.to_thread(two.recv, 1) == b""
            await until(app, lambda: [row[1] for row in rows(app, "connections")] == [one.local])
            exchange(one, 5)

    watching(harbour, script)


def test_a_server_that_ends_is_said_to_be_lost(harbour, server):
    async def script(app, pilot):
        await until(app, lambda: rows(app, "workers"))
        await asyncio.to_thread(harbour.close)
        await until(app, lambda: "lost" in text(app, "head"))
        assert "asking again" in text(app, "note")

    watching(harbour, script)


def test_without_a_terminal_it_says_so(harbour, server):
    words = [sys.executable, "-m", "longshore", "top", "--control", harbour.path]
    result = subprocess.run(words, capture_output=True, text=True, timeout=15, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert result.stderr.startswith("longshore: longshore top needs a terminal\nhint: longshore ctl status")


def test_a_rate_does_not_leap_when_workers_come_and_go():
    rate = Rate()
    rate.saw({1: 1000, 2: 500}, 0)
    rate.saw({1: 1010, 2: 520}, 2)
    assert rate.history[-1] == 15
    rate.saw({1: 1020, 3: 5000}, 1)
    assert rate.history[-1] == 10
    rate.saw({3: 5007}, 1)
    assert rate.history[-1] == 7
