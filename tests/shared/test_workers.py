"""Workers of one program find one place, without being told."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import longshore

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(tmp_path, code, *more):
    """Serve the function `answer` of `code` by two workers; gives what asks a worker of it, and its answer's words."""
    (tmp_path / "target.py").write_text(f"import os\nfrom longshore import shared\n{code}")
    environment = {name: value for name, value in os.environ.items() if name != "LONGSHORE_SHARED"}
    environment["PYTHONPATH"] = f"{tmp_path}:{Path(longshore.__file__).parents[1]}"
    command = [sys.executable, "-m", "longshore", "serve", "target:answer", "--bind", "tcp://127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--framing", "lines", "--workers", "2", *more], stderr=subprocess.PIPE, text=True, env=environment
    )

    def ask(word):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client, client.makefile("rwb") as stream:
            client.sendall(word + b"\n")
            return stream.readline().split()

    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[1])
        yield ask
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_the_workers_of_a_program_count_together(tmp_path):
    code = "def answer(_, connection): return b'%d %d' % (shared.Counter('c').add(), os.getpid())"
    with serving(tmp_path, code) as ask:
        counts, pids = [], set()
        while len(pids) < 2:
            count, pid = ask(b"x")
            counts.append(int(count))
            pids.add(pid)
        assert counts == list(range(1, len(counts) + 1))


def nobody_can_run_this() -> bool:
    """Whether root is here, and the Python is one that others may read: workers import their target as who they are."""
    if os.geteuid() != 0:
        return False
    try:
        return subprocess.run([sys.executable, "-c", "import longshore.server"], user="nobody").returncode == 0
    except PermissionError:
        return False


def test_the_workers_of_another_user_count_together_also_with_the_broker_that_comes_after_a_lost_one():
    if not nobody_can_run_this():
        pytest.skip("needs root, and a Python that others may read")
    code = """
from longshore.errors import BrokerLost
def answer(word, connection):
    try:
        if word == b"join":
            shared.join()
        return b"%d %d %s" % (shared.Counter('c').add(), os.getuid(), shared.address()[len("local://"):].encode())
    except BrokerLost:
        return b"lost"
"""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        with serving(Path(directory), code, "--user", "nobody") as ask:
            uid = pwd.getpwnam("nobody").pw_uid
            _, user, path = ask(b"x")
            assert int(user) == os.stat(path).st_uid == os.stat(Path(path.decode()).parent).st_uid == uid
            assert stat.S_IMODE(os.stat(Path(path.decode()).parent).st_mode) == 0o700
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                broker, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            os.kill(broker, signal.SIGKILL)
            while len(answer := ask(b"join")) < 3:
                pass
            assert (int(answer[1]), answer[2]) == (uid, path)


def test_a_lost_broker_is_started_again_for_the_workers_who_join_it_again(tmp_path):
    code = """
from longshore.errors import BrokerLost
lock = shared.Lock("l")
def answer(word, connection):
    try:
        if word == b"join":
            shared.join()
        if word == b"where":
            return shared.address()[len("local://"):].encode()
        while not lock.acquire(timeout=0):
            "The other worker has said that it lets go, and the broker has yet to hear it."
        lock.release()
        return b"%d %d" % (os.getpid(), lock.fence)
    except BrokerLost:
        return b"%d lost" % os.getpid()
"""
    with serving(tmp_path, code) as ask:

        def ask_both(word, but=None):
            """What both workers say first, but for this."""
            answers = {}
            while len(answers) < 2:
                pid, fence = ask(word)
                if fence != but:
                    answers.setdefault(pid, fence)
            return answers.values()

        highest = max(map(int, ask_both(b"lock")))
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as broker:
                broker.connect(ask(b"where")[0])
                pid, *_ = struct.unpack("3i", broker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            over = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            assert select.select([over], [], [], 5)[0]
            os.close(over)
            assert set(ask_both(b"lock")) == {b"lost"}
            fences = [int(fence) for fence in ask_both(b"join", but=b"lost")]
            assert min(fences) > highest
            highest = max(fences)
