"""Workers of one program find one place, without being told."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import longshore

pytestmark = pytest.mark.slow


def test_the_workers_of_a_program_count_together(tmp_path):
    (tmp_path / "counting.py").write_text(
        "def count(message, connection):\n"
        "    from longshore import shared\n"
        "    return b'%d %d' % (shared.Counter('c').add(), __import__('os').getpid())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LONGSHORE_SHARED"}
    environment["PYTHONPATH"] = f"{tmp_path}:{Path(longshore.__file__).parents[1]}"
    command = [sys.executable, "-m", "longshore", "serve", "counting:count", "--bind", "tcp://127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--framing", "lines", "--workers", "2"], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[1])
        counts, pids = [], set()
        while len(pids) < 2:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client, client.makefile("rwb") as stream:
                client.sendall(b"x\n")
                count, pid = stream.readline().split()
                counts.append(int(count))
                pids.add(pid)
        assert counts == list(range(1, len(counts) + 1))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
