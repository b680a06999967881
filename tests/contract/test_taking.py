"""What is there is taken at once and what has room is written at once, on either reactor, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextvars
import socketserver
import threading
from typing import Any

import pytest

from longshore import Limits
from longshore.errors import MessageTooLarge, ReadTimeout
from longshore.events import ConnectionClosed, HandlerFailed
from longshore.testing import Client, running_server

pytestmark = pytest.mark.usefixtures("reactor")


def talk(handler: Any, data: bytes, *, half_closes: bool = True, **options: Any) -> bytes:
    with running_server(handler, **options) as server, Client(server.url) as client:
        client.send(data)
        if half_closes:
            client.half_close()
        return client.recv_until_closed()


# -- coroutines ----------------------------------------------------------------------------------------------


def test_what_is_awaited_can_be_a_task_and_be_given_a_deadline():
    async def handler(connection: Any) -> None:
        first = await asyncio.create_task(connection.readline())
        second = await asyncio.wait_for(connection.readline(), 10)
        third, fourth = await asyncio.gather(connection.recv(2), connection.read_until(b";"))
        await connection.sendall(b"|".join((first, second, third, fourth, await connection.readline())))

    assert talk(handler, b"one\ntwo\n34five;rest") == b"one\n|two\n|34|five;|rest"


def test_a_wait_that_is_given_up_takes_nothing():
    async def handler(connection: Any) -> None:
        task = asyncio.create_task(connection.readline())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.sendall(b"go on\n")
        await connection.sendall(b"heard " + await connection.readline())

    with running_server(handler) as server, Client(server.url) as client:
        assert client.recv(6) == b"go on\n"
        client.send(b"you\n")
        assert client.recv_until_closed() == b"heard you\n"


def test_a_task_is_told_why_its_wait_is_cancelled():
    async def handler(connection: Any) -> None:
        task = asyncio.create_task(connection.readline())
        await asyncio.sleep(0)
        assert task.cancel("enough")
        try:
            await task
        except asyncio.CancelledError as error:
            await connection.sendall(f"{error.args} {task.cancelled()}".encode())

    assert talk(handler, b"", half_closes=False) == b"('enough',) True"


def test_a_wait_that_is_over_before_its_task_is_cancelled_ends_as_the_cancelled_one():
    async def handler(connection: Any) -> None:
        task = asyncio.create_task(connection.readline())
        await asyncio.sleep(0)
        stream = connection._link.stream
        stream.input.feed(b"line\n")
        stream.wake()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.sendall(await connection.readline())

    assert talk(handler, b"", half_closes=False) == b"line\n"


def test_a_task_goes_on_in_the_context_in_which_it_waited():
    tone = contextvars.ContextVar("tone", default=b"none")

    async def answer(connection: Any) -> bytes:
        tone.set(await connection.readline())
        await connection.sendall(b"go on\n")
        return await connection.readline() + tone.get()

    async def handler(connection: Any) -> None:
        line = await asyncio.create_task(answer(connection))
        await connection.sendall(line + tone.get())

    with running_server(handler) as server, Client(server.url) as client:
        client.send(b"soft\n")
        assert client.recv_line() == b"go on\n"
        client.send(b"spoken\n")
        assert client.recv_until_closed() == b"spoken\nsoft\nnone"


def test_what_was_never_awaited_takes_nothing():
    async def handler(connection: Any) -> None:
        await connection.recv(1)
        connection.readline().close()
        await connection.sendall(await connection.readline())

    assert talk(handler, b"-line\n") == b"line\n"


def test_nothing_is_awaited_twice():
    async def handler(connection: Any) -> None:
        line = connection.readline()
        assert await line == b"line\n"
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await line
        await connection.sendall(b"once")

    assert talk(handler, b"line\n") == b"once"


def test_what_is_thrown_before_a_wait_leaves_it_at_once():
    async def handler(connection: Any) -> None:
        await connection.recv(1)
        line = connection.readline()
        with pytest.raises(KeyError):
            line.throw(KeyError("thrown"))
        await connection.sendall(await connection.readline())

    assert talk(handler, b"-line\n") == b"line\n"


def test_an_error_of_the_input_leaves_the_await():
    async def handler(connection: Any) -> None:
        with pytest.raises(MessageTooLarge):
            await connection.readline(10)
        await connection.sendall(b"too long")

    assert talk(handler, b"x" * 100) == b"too long"


def test_two_tasks_that_wait_for_one_connection_both_go_on():
    async def handler(connection: Any) -> None:
        connection.settimeout(10)
        slow = asyncio.create_task(connection.readline())
        await asyncio.sleep(0)
        connection.settimeout(None)
        fast = asyncio.create_task(connection.readline())
        await asyncio.sleep(0)
        await connection.sendall(b"go on\n")
        await connection.sendall(b"".join(sorted([await slow, await fast])))

    with running_server(handler) as server, Client(server.url) as client:
        assert client.recv(6) == b"go on\n"
        client.send(b"a\nb\n")
        assert client.recv_until_closed() == b"a\nb\n"


# -- waiters ---------------------------------------------------------------------------------------------------


def test_a_waiter_that_is_taken_back_leaves_the_one_that_expects_input(reactor):
    def handler(connection: Any) -> None:
        stream = connection._link.stream
        expecting, other = threading.Event(), threading.Event()
        assert stream.expect(expecting.set)
        stream.park(other.set)
        stream.unpark(other.set)
        assert stream.watch.waiting
        stream.unpark(expecting.set)
        assert not stream.watch.waiting
        connection.sendall(b"as it should be")

    assert talk(handler, b"", strategy="green") == b"as it should be"


# -- writing -----------------------------------------------------------------------------------------------------


def test_a_peer_that_takes_nothing_makes_a_write_wait(reactor):
    written = threading.Event()

    def handler(connection: Any) -> None:
        for _ in range(16):
            connection.sendall(b"x" * 1_000_000)
        written.set()

    with running_server(handler, strategy="green", limits=Limits(max_pending_bytes=100_000)) as server:
        with Client(server.url) as client:
            client.recv(1)
            turned = threading.Event()
            server.reactor.post(server.reactor.again, turned.set)
            turned.wait(10)
            assert not written.is_set()
            assert len(client.recv_until_closed()) == 16_000_000 - 1


# -- files and classes ---------------------------------------------------------------------------------------------


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def test_lines_come_one_by_one_however_they_were_cut():
    with running_server(Echo, strategy="green") as server, Client(server.url) as client:
        client.split(b"one\ntwo\n\nthree\r\nrest", [1, 3, 2, 1, 4, 2])
        client.half_close()
        assert client.recv_until_closed() == b"one\ntwo\n\nthree\r\nrest"


def test_iterating_a_file_leaves_the_rest_to_others():
    def handler(connection: Any) -> None:
        file = connection.makefile("rb")
        for line in file:
            connection.sendall(b"<" + line + b">")
            if line == b"\n":
                break
        connection.sendall(file.read(4) + file.readline() + next(file))

    assert talk(handler, b"a: b\n\nbodyend\nlast\n", strategy="green") == b"<a: b\n><\n>bodyend\nlast\n"


def test_a_line_without_an_end_leaves_the_iteration(monkeypatch):
    monkeypatch.setattr("longshore.files.FILE_LINE", 10)

    def handler(connection: Any) -> None:
        with pytest.raises(MessageTooLarge):
            list(connection.makefile("rb"))
        connection.sendall(b"too long")

    assert talk(handler, b"short\n" + b"x" * 100, strategy="green") == b"too long"


def test_a_deadline_leaves_the_iteration():
    def handler(connection: Any) -> None:
        connection.settimeout(0.01)
        with pytest.raises(ReadTimeout):
            for line in connection.makefile("rb"):
                connection.sendall(line)
        connection.sendall(b"late")

    with running_server(handler, strategy="green") as server, Client(server.url) as client:
        client.send(b"line\npart")
        assert client.recv_until_closed() == b"line\nlate"


def test_a_class_is_run_in_the_standard_order_and_finished_whatever_happens():
    steps: list[str] = []

    class Stepping(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            super().setup()
            steps.append("setup")

        def handle(self) -> None:
            steps.append("handle")
            assert self.wfile.write(memoryview(b"abc")) == 3
            assert self.wfile.write(bytearray(b"def")) == 3
            self.wfile.flush()
            assert self.wfile.writable()
            raise LookupError("of the handler's own")

        def finish(self) -> None:
            super().finish()
            steps.append(f"finish {self.wfile.closed}")

    with running_server(Stepping, strategy="green") as server, Client(server.url) as client:
        assert client.recv_until_closed() == b"abcdef"
        assert isinstance(server.events.wait_for(HandlerFailed).error, LookupError)
        assert server.events.wait_for(ConnectionClosed).sent == 6
    assert steps == ["setup", "handle", "finish True"]


def test_a_class_that_makes_itself_is_only_called():
    class Own:
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            request.sendall(f"{client_address[0]} {server.limits.max_threads}".encode())

    class Late(Echo):
        def __init__(self, *args: Any) -> None:
            self.said = b"late: "
            super().__init__(*args)

        def handle(self) -> None:
            self.wfile.write(self.said + self.rfile.readline())

    assert talk(Own, b"", strategy="green", limits=Limits(max_threads=7)) == b"127.0.0.1 7"
    assert talk(Late, b"line\n", strategy="green") == b"late: line\n"


def test_files_that_a_class_buffers_stay_its_own():
    class Buffered(Echo):
        wbufsize = 8192

    assert talk(Buffered, b"one\ntwo\n", strategy="green") == b"one\ntwo\n"
