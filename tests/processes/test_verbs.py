"""What a handler asks of its server from a process of its own, and how that ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from longshore import ConfigError, Limits, Lines
from longshore.events import ConnectionClosed, ConnectionOpened, ServerDraining, ServerPaused
from longshore.testing import Client
from processes.questions import answering, ask, eventually, pid_of, state_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes are looked at through /proc")


def test_verbs_in_a_child_are_the_servers(serve):
    def pause(connection):
        connection.server.pause()

    def widen(connection):
        connection.server.reconfigure(limits=Limits(max_processes=7))

    def look(connection):
        server = connection.server
        figures = server.statistics()
        return server.addresses, server.status, figures.connections, [item.peer for item in server.connections]

    server = serve(answering(pause=pause, widen=widen, look=look, resume=lambda c: c.server.resume()))
    with Client(server.url) as client:
        ask(client, "pause")
        server.events.wait_for(ServerPaused)
        host, port = client.socket.getsockname()
        assert ask(client, "look") == (server.addresses, "paused", 1, [f"{host}:{port}"])
        ask(client, "resume")
        ask(client, "widen")
        assert ask(client, "look")[1] == "serving"
    assert server.limits.max_processes == 7


def test_a_broadcast_from_a_child_reaches_every_other_and_itself(serve):
    def shout(connection):
        return connection.server.broadcast(b"to all")

    def whisper(connection):
        others = [item for item in connection.server.connections if item.id != connection.id]
        return connection.server.broadcast(b"to the others", to=others)

    server = serve(answering(shout=shout, whisper=whisper))
    with Client(server.url) as one, Client(server.url) as two, Client(server.url) as three:
        server.events.wait_for_count(ConnectionOpened, 3)
        one.send(b"shout\n")
        assert {one.recv_line(), one.recv_line()} == {b"3\n", b"to all\n"}
        assert two.recv_line() == three.recv_line() == b"to all\n"
        assert ask(one, "whisper") == 2
        assert two.recv_line() == three.recv_line() == b"to the others\n"


def test_a_broadcast_is_encoded_by_the_framing_that_each_handler_has_set(serve):
    def reframe(connection):
        connection.framing = Lines(delimiter=b";")

    server = serve(answering(reframe=reframe))
    with Client(server.url) as plain, Client(server.url) as other:
        server.events.wait_for_count(ConnectionOpened, 2)
        other.send(b"reframe\n")
        assert other.recv_exactly(5) == b"None;"
        assert server.broadcast(b"hello") == 2
        assert plain.recv_exactly(6) == b"hello\n"
        assert other.recv_exactly(6) == b"hello;"


def test_what_cannot_be_done_in_a_child_says_so(serve):
    def refused(connection):
        answers = []
        for call in (lambda: connection.server.subscribe(print), lambda: connection.server.every(1, print)):
            try:
                call()
            except ConfigError as error:
                answers.append(error.hint)
        return answers

    server = serve(answering(refused=refused))
    with Client(server.url) as client:
        assert ask(client, "refused") == ["Call it before the server starts."] * 2


def test_a_drain_from_inside_lets_the_others_finish(serve):
    server = serve(answering(drain=lambda c: c.server.drain(5), pid=pid_of))
    with Client(server.url) as one, Client(server.url) as two:
        ask(two, "pid")
        two.send(b"pi")
        eventually(lambda: sum(item.traffic()[0] for item in tuple(server._admission.sessions)) == 6)
        assert ask(one, "drain") is None
        server.events.wait_for(ServerDraining)
        two.send(b"d\n")
        assert two.recv_until_closed()
        assert one.recv_until_closed() == b""
        server.wait_stopped()
    assert (server.report.finished, server.report.cut, server.report.abandoned) == (2, 0, ())


def test_a_handler_that_does_not_end_is_killed_and_named(serve):
    def handler(connection):
        connection.sendall(b"%d\n" % os.getpid())
        threading.Event().wait()

    server = serve(handler)
    with Client(server.url) as client:
        pid = int(client.recv_line())
        report = server.stop()
        peer = server.events.wait_for(ConnectionOpened).peer
    assert report.cut == 1
    (name,) = report.abandoned
    assert peer in name
    assert str(pid) in name
    assert state_of(pid) == ""
    (closed,) = server.events.of(ConnectionClosed)
    assert (closed.cause, closed.sent) == ("cut", len(str(pid)) + 1)
