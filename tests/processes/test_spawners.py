"""The processes that fork children for a server: how they die, and what they leave."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from longshore import Limits, Lines, Server
from longshore.errors import WorkerDied
from longshore.events import ConnectionClosed, SpawnerDied, ThreadsAtFork
from longshore.testing import Client, Recorder
from processes.questions import answering, ask, children_of, eventually, parent_of, spawners, state_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes are looked at through /proc")


@pytest.mark.parametrize("which", [0, 1], ids=["the elder", "the younger"])
def test_a_spawner_that_dies_is_replaced_and_no_connection_notices(serve, which):
    server = serve()
    before = spawners(server)
    assert [parent_of(pid) for pid in before] == [os.getpid(), before[0]]
    with Client(server.url) as old:
        pid = ask(old, "pid")
        os.kill(before[which], signal.SIGKILL)
        died = server.events.wait_for(SpawnerDied)
        assert (died.pid, died.replaced) == (before[which], True)
        assert ask(old, "pid") == pid
        # Whoever dies, a spawner will bury it.
        eventually(lambda: parent_of(pid) == before[1 - which])
        after = spawners(server)
        assert before[1 - which] in after
        assert before[which] not in after
        with Client(server.url) as new:
            assert ask(new, "pid") != pid
            # The one whose spawner is dead is buried all the same, and its place is free.
            old.close()
            server.events.wait_for(ConnectionClosed)
            eventually(lambda: state_of(pid) == "")
            assert server.statistics().connections == 1
    assert len(server.events.of(SpawnerDied)) == 1


def test_a_connection_that_its_spawner_had_not_forked_for_yet_is_served_by_the_next_one(serve):
    server = serve()
    _, younger = spawners(server)
    os.kill(younger, signal.SIGSTOP)
    with Client(server.url) as client:
        client.send(b"pid\n")
        eventually(lambda: server.statistics().connections == 1)
        os.kill(younger, signal.SIGKILL)
        assert client.recv_line()
    assert server.events.wait_for(ConnectionClosed).cause == "finished"


def test_without_any_spawner_living_connections_go_on_and_new_ones_are_turned_away(serve):
    server = serve()
    with Client(server.url) as old:
        pid = ask(old, "pid")
        for spawner in reversed(spawners(server)):
            os.kill(spawner, signal.SIGSTOP)
        for spawner in spawners(server):
            os.kill(spawner, signal.SIGKILL)
        died = server.events.wait_for_count(SpawnerDied, 2)
        assert died[-1].replaced is False
        assert ask(old, "pid") == pid
        with Client(server.url) as new:
            assert new.recv_until_closed() == b""
        assert isinstance(server.events.wait_for(ConnectionClosed).error, WorkerDied)
        old.close()
        server.events.wait_for_count(ConnectionClosed, 2)
    assert server.drain().cut == 0


def test_threads_that_run_at_the_fork_are_named(serve):
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="the programs own")
    thread.start()
    try:
        server = serve()
        assert "the programs own" in server.events.wait_for(ThreadsAtFork).threads
    finally:
        release.set()
        thread.join()


def test_a_server_that_cannot_start_leaves_nothing(serve):
    taken = serve()
    before = children_of(os.getpid())
    server = Server(answering(), taken.url, strategy="processes", framing=Lines())
    server.subscribe(Recorder())
    with pytest.raises(OSError, match="in use"):
        server.start()
    assert children_of(os.getpid()) == before


@pytest.mark.slow
def test_hundreds_of_connections_leave_no_descriptor_no_slot_and_no_child(serve):
    server = serve(limits=Limits(max_processes=8))
    slots = server._strategy.lineage.slots

    def talk(count):
        for _ in range(count):
            with Client(server.url) as client:
                assert ask(client, "pid")
        eventually(lambda: not server._strategy.children)
        elder, younger = spawners(server)
        lists = [Path(f"/proc/{pid}/fd") for pid in (os.getpid(), elder, younger)]
        return [len(os.listdir(path)) for path in lists], children_of(younger)

    before = talk(10)
    assert talk(100) == before
    assert before[1] == set()
    assert slots._next <= 8
