"""Programs: the command line's --pool, and what multiprocessing's documentation shows."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longshore.errors import ConfigError
from longshore.serving import made_share
from longshore.testing import Client
from pool.places import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def running(*words):
    """A Python program, and the first line that it prints; it must end well when it is told to."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, *map(str, words)], env=environment, text=True, stderr=-1) as process:
        try:
            yield process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def address_in(line):
    return re.search(r"tcp://127\.0\.0\.1:\d+", line)[0]


@pytest.fixture
def primes(tmp_path):
    text = (ROOT / "examples/primes.py").read_text()
    (tmp_path / "primes.py").write_text(text.replace("tcp://127.0.0.1:5000", "tcp://127.0.0.1:0"))
    return tmp_path / "primes.py"


def test_the_command_line_gives_a_server_its_pool(primes):
    serve = ("-m", "longshore", "serve", f"{primes}:count", "--bind", "tcp://127.0.0.1:0", "--framing", "lines")
    with running(*serve, "--strategy", "threads", "--pool", "1") as line, Client(address_in(line)) as client:
        assert client.request(b"100") == b"25"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for wrong in ("0", "-1", "here"):
        command = [sys.executable, *serve, "--pool", wrong]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr


#: What the chapters on pools of Python's documentation teach, with the import changed.
DIALECT = """
import os, time
from longshore.shared import Pool

def square(number):
    return number * number

def power(base, exponent):
    return base ** exponent

if __name__ == "__main__":
    with Pool(3) as pool:
        print(pool.map(square, [1, 2, 3]))
    with Pool(processes=2) as pool:
        print(pool.map(square, range(5)))
        print(sorted(number for number in pool.imap_unordered(square, range(5))))
        later = pool.apply_async(square, (20,))
        print(later.get(timeout=10))
        print(pool.apply_async(os.getpid, ()).get(timeout=10) != os.getpid())
        several = [pool.apply_async(os.getpid, ()) for _ in range(4)]
        print(len(set(each.get(timeout=10) for each in several)) <= 2)
        slow = pool.apply_async(time.sleep, (60,))
        try:
            slow.get(timeout=0.1)
        except TimeoutError:
            print("not in time")
        print(slow.ready())
        slow.cancel()
        ordered = pool.imap(square, range(4))
        print(next(ordered), next(ordered), ordered.next(timeout=10))
        print(pool.starmap(power, [(2, 3), (3, 2)]), pool.apply(power, (2,), {"exponent": 5}))
        told = []
        pool.map_async(square, [4]).get(10)
        pool.apply_async(square, (5,), callback=told.append).wait(10)
        pool.apply_async(power, (0, -1), error_callback=lambda error: told.append(type(error).__name__)).wait(10)
        print(told)
    pool = Pool(2, max_tasks=1)
    print(len(set(pool.starmap_async(os.getpid, [()] * 4).get(10))))
    pool.close()
    pool.join()
    pool = Pool(1)
    pool.apply_async(time.sleep, (60,))
    pool.terminate()
    pool.join()
    print("joined")
"""

SAID = """[1, 4, 9]
[0, 1, 4, 9, 16]
[0, 1, 4, 9, 16]
400
True
True
not in time
False
0 1 4
[8, 9] 32
[25, 'ZeroDivisionError']
4
joined
"""


def test_programs_for_multiprocessings_pool_run_with_the_import_changed(tmp_path):
    (tmp_path / "program.py").write_text(DIALECT)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=18)
    assert (done.stdout, done.stderr) == (SAID, "")


def test_a_place_that_is_none_is_refused_as_one_by_each_worker():
    with pytest.raises(ConfigError, match="no such place"), made_share("abc", 0, 2):
        pass
