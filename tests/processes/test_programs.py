"""Programs that serve with processes: what the terminal, the system and a violent end do to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from longshore.testing import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked at through /proc"),
]

HANDLER = """
    import os

    def handler(connection):
        for line in iter(connection.readline, b""):
            connection.sendall(b"%d\\n" % os.getpid())
            if line == b"hang\\n":
                # Neither Python nor anybody but the kernel gets a word in here.
                import ctypes
                ctypes.PyDLL(None).sleep(1000)
"""


@pytest.fixture
def program(tmp_path):
    """Start `longshore serve` on the handler above, in a group of its own; the process and its URL."""
    (tmp_path / "program.py").write_text(textwrap.dedent(HANDLER))
    started = []

    def start():
        command = [sys.executable, "-m", "longshore", "serve", "program:handler", "--bind", "tcp://127.0.0.1:0"]
        process = subprocess.Popen(
            [*command, "--strategy", "processes"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process, re.search(r"tcp://\S+", process.stderr.readline()).group()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def group(process) -> set[int]:
    """The pids of the group of `process` that are not zombies."""
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == process.pid and fields[0] != "Z":
            found.add(int(name))
    return found


def eventually(holds, seconds: float = 8) -> None:
    pause = threading.Event()
    for _ in range(int(seconds * 100)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("never")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_drains(program, number):
    """Ctrl-C in a terminal goes to every process of the group; only the serving one acts on it."""
    process, url = program()
    with Client(url) as idle, Client(url) as owed:
        assert idle.request(b"pid")
        assert owed.request(b"pid")
        if number == signal.SIGINT:
            owed.send(b"half")
            os.killpg(process.pid, number)
            assert idle.recv_until_closed() == b""
            # A message that has begun is answered, although its child has got the signal too.
            owed.send(b" a line\n")
            assert owed.recv_until_closed()
        else:
            process.send_signal(number)
            assert idle.recv_until_closed() == b""
            owed.close()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert group(process) == set()


def test_a_serving_process_that_is_killed_leaves_nobody_behind(program):
    process, url = program()
    with Client(url) as one, Client(url) as two:
        pids = {int(one.request(b"pid")), int(two.request(b"pid"))}
        eventually(lambda: len(group(process)) == 5)
        assert pids < group(process)
        process.kill()
        assert one.recv_until_closed() == two.recv_until_closed() == b""
        eventually(lambda: group(process) == set())


def test_a_child_that_hears_nothing_ends_with_the_serving_process_too(program):
    process, url = program()
    with Client(url) as client:
        int(client.request(b"hang"))
        eventually(lambda: len(group(process)) == 4)
        process.kill()
        eventually(lambda: group(process) == set())


def test_a_child_that_hears_nothing_is_killed_at_a_stop_and_named(program):
    process, url = program()
    with Client(url) as client:
        pid = int(client.request(b"hang"))
        process.send_signal(signal.SIGTERM)
        # A second one does not wait for the drain.
        eventually(lambda: "draining" in process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert re.search(rf"abandoned handler for \S+ \(process {pid}, killed\)", errors), errors
    assert group(process) == set()
