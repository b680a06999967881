"""What only holds where each connection has a process: what a child has, how it dies, and what that costs."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import signal
import socketserver
from pathlib import Path

import pytest

from longshore import Limits, Lines
from longshore.errors import WorkerDied
from longshore.events import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRejected,
    DatagramDropped,
    HandlerFailed,
    LimitNear,
)
from longshore.testing import Client, connected_pair, running_server
from processes.questions import answering, ask, descriptors, eventually, pid_of, spawners, state_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes are looked at through /proc")


def test_each_connection_has_a_process_of_its_own(serve):
    server = serve()
    with Client(server.url) as one, Client(server.url) as two:
        pids = {ask(one, "pid"), ask(two, "pid")}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_child_has_no_descriptor_of_anybody_else(serve):
    # Selectors all have one name, and a child has one of its own.
    before = set(descriptors(None).values()) - {"anon_inode:[eventpoll]"}
    server = serve()
    with Client(server.url) as first, Client(server.url) as second, Client(server.url) as third:
        everybody = [ask(client, "fds") for client in (first, second, third)]
    mine = [own(set(found.values()) - before) for found in everybody]
    assert mine[0].isdisjoint(mine[1])
    assert mine[0].isdisjoint(mine[2])
    assert mine[1].isdisjoint(mine[2])


def own(found):
    """What of `found` is a socket or a pipe, after a look at how much it is."""
    sockets = {name for name in found if name.startswith("socket:")}
    pipes = {name for name in found if name.startswith("pipe:")}
    # Its connection, its end of the wire, and its own reactor's pair and selector; pipes that end waits at signals.
    assert len(sockets) == 4, found
    assert len(pipes) <= 2, found
    assert {name for name in found if name.startswith("anon_inode:")} == {"anon_inode:[eventpoll]"}
    return sockets | pipes


def test_a_child_does_not_have_the_sockets_that_the_server_was_given(serve, tmp_path):
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    inherited = socket.create_server(("127.0.0.1", 0))
    names = {os.readlink(f"/proc/self/fd/{sock.fileno()}") for sock in (listener, inherited)}
    server = serve(None, listener, f"fd://{inherited.detach()}")
    for url in server.addresses:
        with Client(url) as client:
            assert not names & set(ask(client, "fds").values())


def test_a_child_of_a_second_server_has_nothing_of_the_first(serve, tmp_path):
    # Selectors all have one name, and a child has one of its own.
    before = set(descriptors(None).values()) - {"anon_inode:[eventpoll]"}
    first = serve(None, "tcp://127.0.0.1:0", f"unix://{tmp_path}/first")
    with Client(first.url) as client:
        ask(client, "pid")
        # What the program itself has open is its own affair.
        before.add(os.readlink(f"/proc/self/fd/{client.socket.fileno()}"))
        second = serve(None, f"unix://{tmp_path}/second")
        with Client(second.url) as other:
            found = set(ask(other, "fds").values()) - before
    own(found)
    assert not [name for name in found if ".lock" in name]


def test_no_zombie_is_left_by_a_connection(serve):
    server = serve()
    pids = []
    for _ in range(5):
        with Client(server.url) as client:
            pids.append(ask(client, "pid"))
    server.events.wait_for_count(ConnectionClosed, 5)
    # The event comes when the child is buried, and not before.
    assert [state_of(pid) for pid in pids] == [""] * 5


def test_never_more_children_than_max_processes(serve):
    server = serve(limits=Limits(max_processes=2))
    with Client(server.url) as one, Client(server.url) as two, Client(server.url) as waiting:
        pids = {ask(one, "pid"), ask(two, "pid")}
        waiting.send(b"pid\n")
        ask(one, "pid")
        assert len(server.events.wait_for_count(ConnectionOpened, 2)) == 2
        assert server.events.of(LimitNear)[0].limit == "max_processes"
        one.close()
        last = ast.literal_eval(waiting.recv_line().decode())
    assert last not in pids
    # Its place was free only when the one before was buried.
    gone = server.events.wait_for(ConnectionClosed)
    order = [event for event in server.events if isinstance(event, (ConnectionOpened, ConnectionClosed))]
    assert order.index(gone) == 2


def test_a_dead_child_that_is_not_buried_still_has_its_place(serve):
    server = serve(limits=Limits(max_processes=1))
    _, younger = spawners(server)
    with Client(server.url) as one, Client(server.url) as waiting:
        pid = ask(one, "pid")
        waiting.send(b"pid\n")
        os.kill(younger, signal.SIGSTOP)
        one.close()
        eventually(lambda: state_of(pid) == "Z")
        # The child has told of the end of its connection, so all that is missing is its burial.
        eventually(lambda: all(item.link.ended for item in tuple(server._admission.sessions)))
        assert (server.statistics().accepted, server.statistics().connections) == (1, 1)
        os.kill(younger, signal.SIGCONT)
        assert waiting.recv_line()


def test_the_bound_may_be_changed_while_it_serves(serve):
    server = serve(limits=Limits(max_processes=1))
    with Client(server.url) as one, Client(server.url) as two:
        ask(one, "pid")
        two.send(b"pid\n")
        server.reconfigure(limits=Limits(max_processes=2))
        assert two.recv_line()


def test_a_full_server_rejects_or_evicts_as_asked(serve):
    server = serve(limits=Limits(max_processes=1, overflow="reject", farewell=b"full\n"))
    with Client(server.url) as one, Client(server.url) as two:
        assert two.recv_until_closed() == b"full\n" if ask(one, "pid") else None
        assert server.events.wait_for(ConnectionRejected).limit == "max_processes"
    evicting = serve(limits=Limits(max_processes=1, overflow="evict-idle"))
    with Client(evicting.url) as one:
        ask(one, "pid")
        with Client(evicting.url) as two:
            assert ask(two, "pid")
            assert one.recv_until_closed() == b""
    assert evicting.events.wait_for(ConnectionClosed).cause == "evicted"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_child_that_a_signal_kills_costs_its_own_connection_only(serve, number):
    server = serve()
    with Client(server.url) as victim, Client(server.url) as other:
        pid, survivor = ask(victim, "pid"), ask(other, "pid")
        # What it has sent is counted a moment after it has left.
        eventually(lambda: sum(item.idle_since() is not None for item in tuple(server._admission.sessions)) == 2)
        os.kill(pid, number)
        assert victim.recv_until_closed() == b""
        closed = server.events.wait_for(ConnectionClosed)
        assert state_of(pid) == ""
        assert ask(other, "pid") == survivor
    assert closed.cause == "handler failed"
    assert isinstance(closed.error, WorkerDied)
    assert number.name in str(closed.error)
    assert str(pid) in str(closed.error)
    assert (closed.received, closed.sent) == (4, len(str(pid)) + 1)
    (failed,) = server.events.of(HandlerFailed)
    assert failed.peer == closed.peer


def test_children_ignore_the_terminals_interrupt(serve):
    server = serve()
    with Client(server.url) as client:
        pid = ask(client, "pid")
        os.kill(pid, signal.SIGINT)
        assert ask(client, "pid") == pid


def test_sys_exit_ends_its_child_quietly_and_os_exit_as_it_says(serve):
    def leave(connection):
        raise SystemExit("quietly")

    server = serve(answering(leave=leave, zero=lambda _: os._exit(0), seven=lambda _: os._exit(7)))
    for count, line in enumerate((b"leave\n", b"zero\n", b"seven\n"), start=1):
        with Client(server.url) as client:
            client.send(line)
            assert client.recv_until_closed() == b""
        server.events.wait_for_count(ConnectionClosed, count)
    causes = [event.cause for event in server.events.of(ConnectionClosed)]
    assert causes == ["finished", "finished", "handler failed"]
    (failed,) = server.events.of(HandlerFailed)
    assert "status 7" in str(failed.error)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_a_failure_keeps_its_type_its_message_and_the_text_of_its_traceback(serve):
    class Local(Exception):
        pass

    def known(connection):
        raise ValueError("the handler's own fault")

    def unpicklable(connection):
        raise Unpicklable("this", "that")

    def local(connection):
        raise Local("nobody else has this class")

    server = serve(answering(known=known, unpicklable=unpicklable, local=local))
    for line in (b"known\n", b"unpicklable\n", b"local\n"):
        with Client(server.url) as client:
            client.send(line)
            client.recv_until_closed()
    failures = server.events.wait_for_count(HandlerFailed, 3)
    by_name = {type(failure.error).__name__.rpartition(".")[2]: failure.error for failure in failures}
    assert isinstance(by_name["ValueError"], ValueError)
    assert {name: str(error) for name, error in by_name.items()} == {
        "ValueError": "the handler's own fault",
        "Unpicklable": "this and that",
        "Local": "nobody else has this class",
    }
    for name, function in (("ValueError", "known"), ("Unpicklable", "unpicklable"), ("Local", "local")):
        assert f"in {function}" in str(by_name[name].__cause__)
    server.events.wait_for_count(ConnectionClosed, 3)
    assert len(server.events.of(HandlerFailed)) == 3


def test_what_a_handler_prints_appears_and_what_was_buffered_before_appears_once(capfd):
    print("before", end=" ")

    def handler(connection):
        print("from the handler", end="")
        connection.sendall(connection.readline())

    with running_server(handler, strategy="processes") as server, Client(server.url) as client:
        client.send(b"hello\n")
        client.recv_until_closed()
    assert capfd.readouterr().out == "before from the handler"


def test_what_a_handler_registers_for_the_exit_runs_and_what_the_program_has_registered_does_not(serve, tmp_path):
    import atexit

    def program():
        (tmp_path / "program").touch()

    def handler(connection):
        atexit.register((tmp_path / "handler").touch)

    atexit.register(program)
    try:
        server = serve(handler)
        with Client(server.url) as client:
            client.recv_until_closed()
        server.events.wait_for(ConnectionClosed)
    finally:
        atexit.unregister(program)
    assert [path.name for path in tmp_path.iterdir()] == ["handler"]


def test_children_do_not_share_their_random_numbers(serve):
    random.seed(1)
    server = serve(answering(number=lambda _: random.random()))
    with Client(server.url) as one, Client(server.url) as two:
        assert ask(one, "number") != ask(two, "number")


def test_the_value_of_the_lifespan_is_in_the_children_and_each_has_a_copy(serve):
    left = []

    @contextlib.contextmanager
    def lifespan():
        yield {"answer": 42, "count": 0}
        left.append(os.getpid())

    def count(connection):
        connection.server.state["count"] += 1
        return connection.server.state

    server = serve(answering(count=count), lifespan=lifespan)
    with Client(server.url) as one, Client(server.url) as two:
        assert ask(one, "count") == ask(two, "count") == {"answer": 42, "count": 1}
        assert ask(one, "count")["count"] == 2
    server.stop()
    assert server.state == {"answer": 42, "count": 0}
    assert left == [os.getpid()]


# -- datagrams --------------------------------------------------------------------------------------------------


class Pid(socketserver.DatagramRequestHandler):
    def handle(self):
        if self.packet == b"bad":
            raise RuntimeError("the handler's own fault")
        if self.packet == b"stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        self.wfile.write(b"%d" % os.getpid())


def test_each_datagram_has_a_process_and_a_full_server_drops_with_an_event(serve):
    import socket

    server = serve(Pid, "udp://127.0.0.1:0", limits=Limits(max_processes=1), framing=None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        client.send(b"pid")
        pid = int(client.recv(100))
        eventually(lambda: state_of(pid) == "")
        eventually(lambda: not server._strategy.children)
        client.send(b"bad")
        failed = server.events.wait_for(HandlerFailed)
        assert str(failed.error) == "the handler's own fault"
        # What was written so far, as the standard library's handler does it.
        assert client.recv(100) == b""
        eventually(lambda: not server._strategy.children)
        client.send(b"stop")
        (child,) = (eventually(lambda: server._strategy.children), server._strategy.children)[1]
        client.send(b"one too many")
        assert server.events.wait_for(DatagramDropped).reason == "the strategy is full"
        eventually(lambda: state_of(child.pid) == "T")
        os.kill(child.pid, signal.SIGCONT)
        assert int(client.recv(100)) == child.pid


def test_the_pair_of_longshore_testing_works_with_processes():
    with connected_pair(answering(pid=pid_of), framing=Lines(), strategy="processes") as connection:
        assert int(connection.request(b"pid")) != os.getpid()
