"""A control process beside the workers, as the seam in `longshore.supervisor.liaison` has it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

import pytest

from tests.supervisor.conftest import WHO, alive, wait_for

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, select, socket, sys
from longshore import Server, Workers
from longshore.supervisor.liaison import Control
from longshore.supervisor.plans import Plan
from longshore.serving import _announce
from longshore.supervisor.supervisor import Supervisor
import contextlib

def control(liaison):
    # A relay: what the supervisor says goes to the test, what the test says goes to the supervisor.
    outside = socket.socket(socket.AF_UNIX)
    outside.connect("control.sock")
    file = outside.makefile("r")
    fds = {}
    outside.sendall(json.dumps({"hello": os.getpid(), "addresses": liaison.addresses}).encode() + b"\\n")
    while True:
        ready, _, _ = select.select([liaison.channel, outside], [], [])
        if liaison.channel in ready:
            for message, got in liaison.channel.receive():
                if got:
                    with socket.socket(fileno=got[0]) as agent:
                        message["agent"] = agent.recv(100).decode()
                outside.sendall(json.dumps(message).encode() + b"\\n")
            if liaison.channel.ended:
                return
        if outside in ready:
            line = file.readline()
            if line == "counters\\n":
                total = liaison.counters.total()
                outside.sendall(json.dumps({"accepted": total["accepted"]}).encode() + b"\\n")
            elif line:
                liaison.channel.send(json.loads(line))

def agent(server, sock, meter):
    sock.sendall(b"agent of %d" % os.getpid())
    server.kept = sock

@contextlib.contextmanager
def build(listeners, place, count):
    yield Server(who, *listeners)

plan = Plan(("tcp://127.0.0.1:0",), Workers(2), 5.0, build)
supervisor = Supervisor(lambda: plan, Control(control, agent))
supervisor.subscribe(_announce)
supervisor.run()
"""


class Outside:
    """The test's side of the relay."""

    def __init__(self, listener):
        self.sock, _ = listener.accept()
        self.sock.settimeout(15)
        self.file = self.sock.makefile("r")
        self.pid = json.loads(self.file.readline())["hello"]

    def until(self, **wanted):
        """Read messages up to one that has all these; that one."""
        while line := self.file.readline():
            message = json.loads(line)
            if wanted.items() <= message.items():
                return message
        raise AssertionError(f"no {wanted}")

    def ask(self, **message):
        self.sock.sendall(json.dumps(message).encode() + b"\n")
        return self.until(id=message["id"])

    def close(self):
        self.file.close()
        self.sock.close()


@pytest.fixture
def controlled(service, app):
    """A service with a control process, and the test's side of it."""
    (app / "program.py").write_text(WHO + PROGRAM)
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(15)
    listener.bind(str(app / "control.sock"))
    listener.listen()
    with listener:
        server = service(command=[sys.executable, "program.py"], enter=True)
        with contextlib.closing(Outside(listener)) as outside:
            yield server, outside, listener


def test_it_is_told_of_every_worker_and_connected_with_it(controlled):
    _, outside, _ = controlled
    first = outside.until(event="worker-started")
    second = outside.until(event="worker-started")
    assert {first["agent"], second["agent"]} == {f"agent of {first['pid']}", f"agent of {second['pid']}"}
    assert sorted([first["worker"], second["worker"]]) == [1, 2]
    outside.until(event="state", state="serving")
    os.kill(first["pid"], signal.SIGKILL)
    gone = outside.until(event="worker-ended", pid=first["pid"])
    assert gone["reason"] == "killed by SIGKILL"
    assert outside.until(event="worker-started")["pid"] not in (first["pid"], second["pid"])


def test_it_asks_and_commands(controlled):
    server, outside, _ = controlled
    outside.until(event="state", state="serving")
    status = outside.ask(id=1, verb="status")["result"]
    assert (status["state"], status["wanted"], status["pid"]) == ("serving", 2, server.pid)
    assert [item["state"] for item in status["workers"]] == ["ready", "ready"]
    assert outside.ask(id=2, verb="add")["result"] == 3
    wait_for(lambda: len(server.workers()) == 4)
    assert outside.ask(id=3, verb="remove")["result"] == 2
    before = outside.ask(id=4, verb="status")["result"]["workers"][0]
    assert outside.ask(id=5, verb="drain", worker=before["worker"])["ok"]
    wait_for(lambda: not alive(before["pid"]))
    assert outside.ask(id=6, verb="reload") == {"id": 6, "ok": True, "result": None}
    assert outside.ask(id=7, verb="kill", worker=99) == {"id": 7, "ok": False, "error": "there is no worker 99"}
    assert "no verb" in outside.ask(id=8, verb="dance")["error"]


def test_it_reads_what_all_workers_have_counted_also_those_that_are_dead(controlled):
    server, outside, _ = controlled
    outside.until(event="state", state="serving")
    pids = {server.ask() for _ in range(10)}

    def accepted():
        outside.sock.sendall(b"counters\n")
        while "accepted" not in (message := json.loads(outside.file.readline())):
            pass
        return message["accepted"]

    wait_for(lambda: accepted() == 10)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        outside.until(event="worker-ended", pid=pid)
    assert accepted() == 10


def test_it_is_started_again_and_told_again(controlled):
    server, outside, listener = controlled
    outside.until(event="state", state="serving")
    os.kill(outside.pid, signal.SIGKILL)
    again = Outside(listener)
    try:
        assert again.pid != outside.pid
        found = {again.until(event="worker-started")["agent"] for _ in range(2)}
        assert found == {f"agent of {pid}" for pid in server.workers() if pid != again.pid}
    finally:
        again.close()


def test_it_hears_that_the_server_drains_before_the_workers_do_and_ends_last(controlled):
    server, outside, _ = controlled
    outside.until(event="state", state="serving")
    with server.connect() as peer:
        peer.ask()
        assert outside.ask(id=1, verb="drain")["ok"] or True
        assert server.wait() == 0
    assert not alive(outside.pid)
