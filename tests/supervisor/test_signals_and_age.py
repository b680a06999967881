"""What an operator asks of a service by signals, and what becomes of workers that have grown old or large."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from longshore import Workers
from longshore.supervisor.pulse import Pulse
from longshore.supervisor.region import Region
from tests.supervisor.conftest import WHO, alive, wait_for

pytestmark = pytest.mark.slow

LOGGING = """
import logging
import os
logging.basicConfig(filename="app.log", format="%(process)d %(message)s", level="INFO")
def who(connection):
    while line := connection.readline():
        logging.getLogger("app").info("asked")
        connection.sendall(b"%d %s" % (os.getpid(), line))
"""


def test_usr1_has_every_worker_write_to_a_new_log_and_no_line_is_lost(service, app):
    (app / "app.py").write_text(LOGGING)
    server = service("--workers", "2")
    workers = set(server.workers())
    asked = 0

    def lines(name):
        path = app / name
        return path.read_text().splitlines() if path.exists() else []

    def written(name):
        nonlocal asked
        asked += 1
        server.ask()
        return {int(line.split()[0]) for line in lines(name)} == workers

    wait_for(lambda: written("app.log"))
    (app / "app.log").rename(app / "app.log.1")
    server.send(signal.SIGUSR1)
    wait_for(lambda: written("app.log"))
    # What sends it to all processes of the command sends it to workers as well.
    (app / "app.log").rename(app / "app.log.2")
    for pid in workers:
        os.kill(pid, signal.SIGUSR1)
    wait_for(lambda: written("app.log"))
    assert set(server.workers()) == workers
    assert sum(len(lines(name)) for name in ("app.log", "app.log.1", "app.log.2")) == asked


def test_quit_cuts_what_is_at_work_and_ends_at_once(service, app):
    (app / "app.py").write_text(
        "import longshore, os\n"
        "def stubborn(connection):\n"
        "    connection.sendall(b'%d\\n' % os.getpid())\n"
        "    while True:\n"
        "        longshore.sleep(0.05)\n"
    )
    server = service("--workers", "2", "--strategy", "green", "--drain-timeout", "1000")
    workers = server.workers()
    with server.connect() as peer:
        assert int(peer.file.readline()) in workers
        assert server.stop(signal.SIGQUIT) == 0
        assert peer.file.readline() == b""
    assert [pid for pid in workers if alive(pid)] == []
    server.line(r"stopped in .*1 cut")


def test_a_worker_that_has_grown_is_replaced_before_it_drains(service, app):
    (app / "app.py").write_text(
        WHO.replace("    while line", "    global kept\n    while line").replace(
            "        connection",
            "        if line == b'grow\\n':\n            kept = [b'x' * 2**20 for _ in range(200)]\n        connection",
        )
    )
    server = service("--workers", "2", "--worker-heartbeat", "1", "--worker-max-memory", str(150 << 20))
    workers = server.workers()
    with server.connect() as peer:
        grown = peer.ask(b"grow")
        (other,) = [pid for pid in workers if pid != grown]
        match = server.line(rf"process {grown}\) is to drain: it uses (\d+) MiB \(max_memory\)")
        # It may have been looked at while it was still growing.
        assert int(match[1]) >= 150
        before = server.output[: server.output.index(match.string)]
        assert any("worker 3 " in line and "accepts" in line for line in before)
        # It waits for a request when it drains, and owes nothing.
        assert peer.file.readline() == b""
    wait_for(lambda: not alive(grown))
    assert other in server.workers()
    assert server.ask() != grown


def test_workers_that_grow_old_together_leave_one_after_the_other(service):
    server = service("--workers", "3", "--worker-heartbeat", "1", "--worker-max-age", "0.4")
    server.line(r"is to drain: .* s old \(max_age\)", count=5)
    accepting = 0
    for line in server.output:
        accepting += ") accepts" in line
        accepting -= "is to drain" in line
        if "is to drain" in line:
            assert accepting >= 3, "a worker left before another one accepted in its place"


def test_ages_and_connections_differ_between_workers_by_the_jitter():
    pulse = Pulse(Region([], [], {}), lambda event: None)
    workers = [SimpleNamespace(ready_at=1000.0, expires_at=None, max_connections=None) for _ in range(100)]
    for worker in workers:
        pulse.set_ends(worker, Workers(max_age=100, max_connections=5000, jitter=0.2))
    ages = [worker.expires_at - 1000 for worker in workers]
    counts = [worker.max_connections for worker in workers]
    assert all(80 <= age <= 120 for age in ages)
    assert all(4000 <= count <= 6000 for count in counts)
    # By chance once in 10^30 runs.
    assert max(ages) - min(ages) > 20
    assert max(counts) - min(counts) > 1000
