"""Workers under load, for longer than `make test` has time: `make stress`.  Each test prints its figures."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.supervisor.conftest import COMMAND, WHO, alive, app, service, wait_for  # noqa: F401
from tests.supervisor.swarm import Swarm
from tests.supervisor.test_clock import APP, BOUNDS, YEAR, clock, turn_clock  # noqa: F401
from tests.supervisor.test_under_load import kill_under_load, reload_under_load, renew_under_load, renewable  # noqa: F401

CLIENTS = 100
REPLY = WHO + "def reply(message, connection):\n    return b'%d %s' % (os.getpid(), message)\n"


def test_20_reloads_lose_no_request_and_refuse_no_connection(service):  # noqa: F811
    server = service("--workers", "4")
    with Swarm(server.port, CLIENTS) as swarm:
        seconds = reload_under_load(server, swarm, 20)
    print(
        f"\n20 reloads under {CLIENTS} clients: {swarm.answers} answers, {swarm.failures.total()} failures, "
        f"slowest {swarm.slowest:.2f} s, reload {statistics.median(seconds):.2f} s (longest {max(seconds):.2f} s)"
    )
    assert swarm.failures == {}


def test_20_certificates_lose_no_request_and_refuse_no_connection(service, renewable):  # noqa: F811
    path, renew, context = renewable
    options = ["--certfile", str(path), "--certificate-check", "0.2"]
    server = service("--workers", "4", *options, bind="tls://127.0.0.1:0")
    with Swarm(server.port, CLIENTS, context=context) as swarm:
        seconds = renew_under_load(server, swarm, renew, 20)
    print(
        f"\n20 certificates under {CLIENTS} clients: {swarm.answers} answers, {swarm.failures.total()} failures, "
        f"slowest {swarm.slowest:.2f} s, shown by all after {statistics.median(seconds):.2f} s"
    )
    assert swarm.failures == {}
    assert len(swarm.shown) == 21


def test_50_kills_cost_what_was_in_flight_and_capacity_is_back_within_a_second(service):  # noqa: F811
    server = service("--workers", "4")
    with Swarm(server.port, CLIENTS) as swarm:
        seconds = kill_under_load(server, swarm, 50)
    print(
        f"\n50 SIGKILLs under {CLIENTS} clients: {swarm.answers} answers, {dict(swarm.failures)}, "
        f"capacity back after {statistics.median(seconds):.2f} s (longest {max(seconds):.2f} s)"
    )
    assert set(swarm.failures) <= {"ConnectionResetError"}
    assert statistics.median(seconds) < 1


def test_a_stopped_worker_is_replaced_while_the_others_serve(service):  # noqa: F811
    server = service("--workers", "2", "--worker-heartbeat", "2")
    with Swarm(server.port, 20) as swarm:
        swarm.wait_for(100)
        victim = server.workers()[0]
        began = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        server.line("stopped by a signal", timeout=30)
        wait_for(lambda: not alive(victim) and len(server.workers()) == 2)
        seconds = time.monotonic() - began
        swarm.wait_for(100)
    print(f"\nSIGSTOP: replaced after {seconds:.2f} s (heartbeat 2 s), {swarm.answers} answers, {dict(swarm.failures)}")
    assert seconds < 6
    assert set(swarm.failures) <= {"ConnectionResetError"}


def test_a_worker_that_is_stopped_for_less_than_its_heartbeat_goes_on_and_loses_nothing(service):  # noqa: F811
    server = service("--workers", "2", "--worker-heartbeat", "20")
    workers = server.workers()
    with Swarm(server.port, CLIENTS) as swarm:
        swarm.wait_for(200)
        os.kill(workers[0], signal.SIGSTOP)
        try:
            # Whom the stopped one has accepted waits; so does, in the end, every client.
            swarm.wait_for(200)
            time.sleep(2)
        finally:
            os.kill(workers[0], signal.SIGCONT)
        swarm.wait_for(500)
    print(f"\nSIGSTOP and SIGCONT: {swarm.answers} answers, slowest {swarm.slowest:.2f} s, {dict(swarm.failures)}")
    assert swarm.failures == {}
    assert server.workers() == workers


def test_a_service_that_was_stopped_as_a_whole_goes_on_with_the_same_workers(service):  # noqa: F811
    server = service("--workers", "2", "--worker-heartbeat", "2")
    workers = server.workers()
    everybody = [server.pid, *workers]
    with Swarm(server.port, 20) as swarm:
        swarm.wait_for(100)
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        # As a machine that sleeps, or a container that is frozen.
        time.sleep(5)
        before = cpu_seconds(server.pid)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        swarm.wait_for(500)
        time.sleep(2)
        used = cpu_seconds(server.pid) - before
    print(
        f"\nfrozen for 5 s (heartbeat 2 s): {swarm.answers} answers, {dict(swarm.failures)}, {used:.2f} s of CPU after"
    )
    assert swarm.failures == {}
    assert server.workers() == workers
    assert used < 0.5


@pytest.mark.parametrize("strategy", ["reactor", "green", "threads", "async"])
def test_a_clock_that_is_set_again_and_again_changes_nothing(strategy, service, app, clock):  # noqa: F811
    variables, turn = clock
    (app / "app.py").write_text(
        APP + "def reply(message, connection):\n"
        "    return b'%d %s' % (time.time() if message == b'time' else os.getpid(), message)\n"
        "async def later(message, connection):\n    return reply(message, connection)\n"
    )
    target = {"reactor": "app.py:reply", "async": "app.py:later"}.get(strategy, "app.py:who")
    options = ["--workers", "2", "--strategy", strategy, *BOUNDS, "--framing", "lines"]
    server = service(*options, target=target, **variables)
    jumps = (YEAR, -YEAR, 0, 10 * YEAR, -20 * YEAR, 0)
    answers = turn_clock(server, turn, jumps, CLIENTS)
    print(f"\nthe clock set {len(jumps)} times by years, {strategy}: {answers} answers to {CLIENTS} clients, none lost")


def test_10000_long_lived_connections_spread_within_20_percent(service, app):  # noqa: F811
    (app / "app.py").write_text(REPLY)
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= count + 1000, "the hard limit of descriptors is too low for this test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options = ["--workers", "4", "--framing", "lines", "--max-connections", str(count + 10)]
    server = service(*options, target="app.py:reply", bind="tcp://0.0.0.0:0")
    socks = []
    try:
        for number in range(count):
            # From several addresses, as one has 28,232 ports only.
            socks.append(socket.create_connection((f"127.0.0.{1 + number % 4}", server.port)))
        found = Counter()
        for sock in socks:
            sock.sendall(b"x\n")
        for sock in socks:
            found[int(sock.recv(100).split()[0])] += 1
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    worst = max(abs(value - count / 4) for value in found.values()) / (count / 4)
    print(f"\n{count} connections over 4 workers: {sorted(found.values())}, {worst:.1%} off the mean at most")
    assert len(found) == 4
    assert worst <= 0.2


def test_a_server_out_of_descriptors_neither_spins_nor_stays_out(service, app):  # noqa: F811
    # More than its connections may be, which are fitted to the limit: somebody else in the process has taken the rest.
    (app / "app.py").write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\ntaken = []\n"
        + REPLY.replace(
            "    return",
            "    try:\n        while message == b'take':\n            taken.append(os.open('/dev/null', os.O_RDONLY))\n"
            "    except OSError:\n        pass\n"
            "    while message == b'free' and taken:\n        os.close(taken.pop())\n    return",
        )
    )
    server = service("--workers", "1", "--worker-heartbeat", "20", "--framing", "lines", target="app.py:reply")
    with server.connect() as inside:
        worker = inside.ask(b"take")
        outside = [server.connect() for _ in range(40)]
        server.line("cannot accept on .*Too many open files")
        before = cpu_seconds(worker)
        time.sleep(2)
        used = cpu_seconds(worker) - before
        # Whoever is in is served meanwhile.
        assert inside.ask(b"free") == worker
    answered = 0
    for peer in outside:
        with peer, contextlib.suppress(ConnectionError, AssertionError):
            answered += peer.ask() == worker
    with server.connect() as peer:
        assert peer.ask() == worker
    told = server.count("cannot accept")
    print(
        f"\nno descriptor left for 2 s: {used:.2f} s of CPU; of 40 who came then {answered} were answered afterwards, "
        f"the others cut off, as was told {told} times"
    )
    assert used < 0.5
    # One for each attempt: after 10 ms, 20 ms, and so on.
    assert 40 - answered == told < 12


def test_a_full_accept_queue_makes_clients_wait_and_loses_none(service, app):  # noqa: F811
    # Whoever finds the queue full is told nothing by the kernel, and tries again after 1, 3, 7, ... seconds.
    options = ["--workers", "2", "--max-connections", "4", "--log-level", "error"]
    server = service(*options, bind="tcp://127.0.0.1:0?backlog=8")
    with Swarm(server.port, 20) as swarm:
        swarm.wait_for(2000)
    print(f"\n20 clients, 4 places, 8 in the queue: {swarm.answers} answers, {dict(swarm.failures)}")
    assert swarm.failures == {}


def test_a_disk_that_the_logs_fill_stops_nothing_and_is_written_again_once_there_is_room(service, app):  # noqa: F811
    disk = app / "disk"
    disk.mkdir()
    # Seen by these processes only, and gone with them (mount_namespaces(7)).
    mounted = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=128k tmpfs disk; exec "$@"', "sh"]
    tried = subprocess.run([*mounted, "true"], cwd=app, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no disk of our own can be mounted here: {tried.stderr.strip()}")
    options = ["--workers", "2", "--log-level", "debug", "--log-file", "disk/app.log"]
    server = service(command=[*mounted, *COMMAND, "app.py", "--bind", "tcp://127.0.0.1:0", *options])
    workers = server.workers()
    disk = Path(f"/proc/{server.pid}/root{disk}")
    log, former = disk / "app.log", disk / "former.log"
    former.write_bytes(bytes(1 << 16))
    with Swarm(server.port, CLIENTS) as swarm:
        server.line("disk/app.log cannot be written: No space left on device; serving goes on", count=len(workers))
        full = log.stat().st_size
        swarm.wait_for(2000)
        told = server.count("cannot be written")
        assert log.stat().st_size == full
        former.unlink()
        wait_for(lambda: log.stat().st_size > full)
        swarm.wait_for(200)
    log.write_bytes(b"")
    server.ask()
    wait_for(lambda: b" connected to " in log.read_bytes())
    print(
        f"\na disk of 128 KiB under debug logs: {swarm.answers} answers, {dict(swarm.failures)}; full at {full} bytes, "
        f"which was told {told} times by {1 + len(workers)} processes, and written again once there was room"
    )
    assert swarm.failures == {}
    assert told <= 1 + len(workers)
    assert server.workers() == workers


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
