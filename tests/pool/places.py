"""Where the tests of this folder have their pools: on this machine, and on a Dask cluster of real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

__all__ = ("PATIENCE", "gone", "local_only", "running_cluster", "text_of", "wait_for")

#: Seconds that anything here may take.
PATIENCE = 15

_CLUSTER = """
import os, sys
sys.path[:0] = {path!r}
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers={workers}, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        with open({address!r} + ".new", "w") as file:
            file.write(f"{{os.getpid()}} {{cluster.scheduler_address}}")
        os.rename({address!r} + ".new", {address!r})
        sys.stdin.read()
"""


def local_only(function):
    """This test is about processes of this machine: their numbers, or how many there were."""
    function.local_only = True
    return function


@contextlib.contextmanager
def running_cluster(folder, workers):
    """A scheduler and so many workers, each a process; its URL."""
    address = folder / "cluster.address"
    program = folder / "cluster.py"
    program.write_text(_CLUSTER.format(path=sys.path, workers=workers, address=str(address)))
    with subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            yield text_of(address).split()[1].replace("tcp://", "dask://")
        finally:
            process.stdin.close()
            process.wait(20)


def wait_for(function):
    """What a function returns, once that is something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := function()):
        assert time.monotonic() < deadline, f"{function} gives {found!r}"
        time.sleep(0.001)
    return found


def text_of(path):
    """What is in a file that another process is about to make."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.001)
    return path.read_text()


def gone(pid):
    """Return once there is no such process."""
    deadline = time.monotonic() + PATIENCE
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, f"process {pid} lives"
        time.sleep(0.001)
