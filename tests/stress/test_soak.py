"""Does anything grow, hour after hour?  Opt-in: `make stress SOAK=3600`, or `LONGSHORE_SOAK` with seconds.

Services of all kinds are asked by clients of every manner, and one more is reloaded and loses workers all the time.
What a process has is compared when nobody is connected: early, and at the end.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.supervisor.conftest import WHO, app, service, wait_for  # noqa: F401
from tests.supervisor.swarm import Swarm
from tests.supervisor.test_under_load import renewable  # noqa: F401

SECONDS = float(os.environ.get("LONGSHORE_SOAK") or 0)
MIB = 1 << 20
#: What Python's and the C library's allocators may come to keep: a share, and bytes.
SHARE, GRANTED = 0.05, 3 * MIB

pytestmark = pytest.mark.skipif(
    not SECONDS, reason="a soak takes an hour: LONGSHORE_SOAK=3600, or make stress SOAK=3600"
)

HANDLERS = WHO + (
    "def reply(message, connection):\n    return b'%d %s' % (os.getpid(), message)\n"
    "async def later(message, connection):\n    return reply(message, connection)\n"
)
#: Strategies with what they run; `threads` has a thread for each connection, or a pool for messages.
SERVED = [("reactor", "reply"), ("green", "who"), ("threads", "who"), ("threads", "reply"), ("async", "later")]


def figures(pid):
    """Bytes in memory, descriptors, threads and children of a process."""
    process = Path(f"/proc/{pid}")
    return {
        "memory": int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir(process / "fd")),
        "threads": len(os.listdir(process / "task")),
        "children": len((process / "task" / str(pid) / "children").read_text().split()),
    }


def misbehave(port, chance):
    """Be one client that ends in another way than it should."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        match chance.randrange(6):
            case 0:
                sock.sendall(b"cut off in the mid")
            case 1:
                sock.sendall(b"z" * 100_000)
            case 2:
                sock.sendall(b"line\n" * 2000)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case 3:
                sock.sendall(b"half\n")
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
            case 4:
                sock.sendall(os.urandom(1000) + b"\n")
                sock.recv(1)
            case 5:
                pass


class Mischief(threading.Thread):
    """Clients that misbehave, one after the other, until the block is left."""

    def __init__(self, port, seed):
        super().__init__()
        self._port, self._chance, self._over = port, random.Random(seed), threading.Event()
        self.count = 0

    def run(self):
        while not self._over.wait(0.005):
            try:
                misbehave(self._port, self._chance)
            except OSError:
                # Whoever sends what is no message is cut off.
                pass
            self.count += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exc):
        self._over.set()
        self.join()


def settled(pids):
    """The figures of processes once they stay the same for as long as a thread may be idle."""
    end = time.monotonic() + 60
    now = [figures(pid) for pid in pids]
    while True:
        assert time.monotonic() < end, f"not quiet within a minute: {now}"
        before = now
        time.sleep(4)
        now = [figures(pid) for pid in pids]
        if all(then | {"memory": 0} == found | {"memory": 0} for then, found in zip(before, now, strict=True)):
            return now


def watched(pids, seconds):
    """The memory of each of the processes, every second for so long; bytes."""
    found = {pid: [] for pid in pids}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)
        for pid in pids:
            found[pid].append(figures(pid)["memory"])
    return found


@pytest.mark.parametrize(("strategy", "handler"), SERVED)
def test_nothing_grows(strategy, handler, service, app):  # noqa: F811
    (app / "app.py").write_text(HANDLERS)
    options = ["--workers", "2", "--strategy", strategy, "--framing", "lines", "--log-level", "error"]
    server = service(*options, target=f"app.py:{handler}")
    pids = [server.pid, *server.workers()]
    share = SECONDS / len(SERVED) / 2

    def load(seconds):
        with Swarm(server.port, 10, requests=5) as swarm, Mischief(server.port, seconds) as mischief:
            memory = watched(pids, seconds)
        assert swarm.failures == {}
        return swarm.answers + mischief.count, memory

    first, _ = load(share * 0.4)
    early = settled(pids)
    second, memory = load(share * 1.6)
    late = settled(pids)
    print(f"\nsoak, {strategy} ({handler}), {share * 2:.0f} s: {first + second} answers")
    for pid, then, now in zip(pids, early, late, strict=True):
        quarter = max(1, len(memory[pid]) // 4)
        begun, ended = statistics.median(memory[pid][:quarter]), statistics.median(memory[pid][-quarter:])
        print(
            f"  process {pid}: memory {begun / MIB:.1f} MiB, then {ended / MIB:.1f} MiB under load; "
            f"{then} at first, {now} at last"
        )
        assert ended - begun <= SHARE * begun + GRANTED
        assert {name: now[name] for name in now if name != "memory"} == {
            name: then[name] for name in then if name != "memory"
        }
    assert server.workers() == pids[1:]


def test_a_supervisor_whose_workers_come_and_go_grows_neither(service, renewable, app):  # noqa: F811
    path, renew, context = renewable
    options = ["--workers", "2", "--certfile", str(path), "--certificate-check", "0.2", "--log-level", "error"]
    server = service(*options, bind="tls://127.0.0.1:0")
    chance = random.Random(1)
    done = Counter()
    memory = []

    def disturb(swarm, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            what = chance.choice(("reload", "kill", "renew", "reopen", "more and less"))
            done[what] += 1
            workers = server.workers()
            match what:
                case "reload":
                    server.send(signal.SIGHUP)
                    wait_for(lambda workers=workers: not set(server.workers()) & set(workers), timeout=60)
                case "kill":
                    victim = chance.choice(workers)
                    os.kill(victim, signal.SIGKILL)
                    wait_for(lambda victim=victim: victim not in server.workers(), timeout=60)
                case "renew":
                    renew()
                case "reopen":
                    server.send(signal.SIGUSR1)
                case "more and less":
                    server.send(signal.SIGTTIN)
                    wait_for(lambda: len(server.workers()) > 2, timeout=60)
                    server.send(signal.SIGTTOU)
            wait_for(lambda: len(server.workers()) == 2, timeout=60)
            swarm.wait_for(10)
            memory.append(figures(server.pid)["memory"])

    with Swarm(server.port, 10, context=context) as swarm:
        disturb(swarm, SECONDS * 0.05)
    (early,) = settled([server.pid])
    memory.clear()
    with Swarm(server.port, 10, context=context) as swarm:
        disturb(swarm, SECONDS * 0.2)
    (late,) = settled([server.pid])
    quarter = max(1, len(memory) // 4)
    begun, ended = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    print(
        f"\nsoak, supervisor: {dict(done)}, {swarm.answers} answers, {dict(swarm.failures)}; memory "
        f"{begun / MIB:.1f} MiB, then {ended / MIB:.1f} MiB; {early} at first, {late} at last"
    )
    # A killed worker costs what was in flight; a handshake that it had begun ends as no handshake.
    assert set(swarm.failures) <= {"ConnectionResetError", "SSLEOFError", "SSLZeroReturnError"}
    assert ended - begun <= SHARE * begun + GRANTED
    assert late["descriptors"] == early["descriptors"]
    assert (late["threads"], late["children"]) == (1, 2)
