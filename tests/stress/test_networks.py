"""Packets that are lost and late, and peers that vanish without a word.  Each test prints its figures."""

from __future__ import annotations

import os
import socket
import time

import pytest

from stress.networks import NEAR, hosts_on_a_wire
from tests.supervisor.conftest import WHO, Peer, app, service, wait_for  # noqa: F401
from tests.supervisor.swarm import Swarm

STRATEGIES = {"reactor": "reply", "green": "who", "threads": "who", "async": "later"}
HANDLERS = WHO + (
    "def reply(message, connection):\n"
    "    return b'x' * 60_000 if message == b'much' else b'%d %s' % (os.getpid(), message)\n"
    "async def later(message, connection):\n    return reply(message, connection)\n"
)


def served(host, service, app, strategy, *options):  # noqa: F811
    (app / "app.py").write_text(
        HANDLERS.replace("connection.sendall(", "connection.sendall(b'x' * 60_000 if line == b'much\\n' else ")
    )
    words = ["--strategy", strategy, "--framing", "lines", "--workers", "1", *options]
    return host(service, *words, target=f"app.py:{STRATEGIES[strategy]}", bind=f"tcp://{NEAR}:0")


def connected(port):
    return Peer(socket.create_connection((NEAR, port), timeout=60))


def held(pid):
    """How many descriptors and threads a process has."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lost_and_late_packets_cost_time_and_no_answer(strategy, service, app):  # noqa: F811
    with hosts_on_a_wire(loss=0.05, delay=0.02) as (near, far, wire):
        server = served(near, service, app, strategy)
        swarm = Swarm(server.port, 20, requests=5, host=NEAR)
        # There, so that its threads are there.
        far(swarm.__enter__)
        try:
            swarm.wait_for(500)
        finally:
            swarm.__exit__()
        assert server.stop() == 0
    print(
        f"\n5 % lost and 20 ms late each way, {strategy}: {wire.lost} of {wire.carried + wire.lost} packets lost, "
        f"{swarm.answers} answers, slowest conversation {swarm.slowest:.1f} s, {dict(swarm.failures)}"
    )
    assert swarm.failures == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_peers_that_vanish_are_given_up_by_deadlines_and_leave_nothing(strategy, service, app):  # noqa: F811
    deadlines = ["--idle-timeout", "2", "--write-timeout", "2", "--first-byte-timeout", "2", "--linger-timeout", "1"]
    with hosts_on_a_wire() as (near, far, wire):
        server = served(near, service, app, strategy, *deadlines, "--max-pending-bytes", "65536")
        worker = server.pid
        with far(connected, server.port) as peer:
            peer.ask()
        time.sleep(4)
        before = held(worker)
        peers = [far(connected, server.port) for _ in range(60)]
        for number, peer in enumerate(peers):
            if number % 3 == 1:
                peer.ask()
            elif number % 3 == 2:
                # Answers for somebody who reads none of them.
                peer.ask()
                peer.sock.sendall(b"much\n" * 20)
        wait_for(lambda: held(worker)[0] >= before[0] + 60)
        wire.cut = True
        began = time.monotonic()
        wait_for(lambda: held(worker) == before, timeout=60)
        seconds = time.monotonic() - began
        wire.cut = False
        for peer in peers:
            peer.close()
        with far(connected, server.port) as peer:
            assert peer.ask() == worker
        assert server.stop() == 0
    print(
        f"\n60 peers cut off, {strategy}: all of theirs given back after {seconds:.1f} s (deadlines of 2 s), {before}"
    )
