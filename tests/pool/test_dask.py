"""What is Dask's own: its workers, its scheduler, and what is not installed."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import signal
import socket
import subprocess
import sys

import pytest

from longshore import AddressError, BrokerLost, ConfigError
from longshore.shared import Pool
from longshore.shared.pool import remote
from longshore.strategies.wire import unpack_error
from pool import tasks
from pool.places import PATIENCE, gone, running_cluster, text_of

pytest.importorskip("distributed")


@pytest.mark.slow
@pytest.mark.timeout(60)  # it starts a cluster of its own
def test_the_loss_of_the_scheduler_is_told_to_whoever_waits(tmp_path):
    with running_cluster(tmp_path, 1) as url, Pool(url) as pool:
        future = pool.submit(tasks.touch_and_sleep, str(tmp_path / "pid"))
        pid = int(text_of(tmp_path / "pid"))
        with open(f"/proc/{pid}/stat") as file:
            nursery = int(file.read().rpartition(")")[2].split()[1])
        assert nursery != os.getpid()
        os.kill(int(text_of(tmp_path / "cluster.address").split()[0]), signal.SIGKILL)
        with pytest.raises(BrokerLost, match="is gone"):
            future.result(PATIENCE)
        with pytest.raises(BrokerLost):
            pool.submit(tasks.square, 2).result(PATIENCE)
    gone(pid)


def test_where_no_scheduler_answers_it_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(AddressError, match=f"no Dask scheduler answers at dask://127.0.0.1:{port}"):
        Pool(f"dask://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["dask://", "dask://here", "dask://:8786", "dask://here:http"])
def test_a_url_that_names_no_scheduler_is_refused(url):
    with pytest.raises(ConfigError):
        Pool(url)


def test_without_dask_the_extra_is_named():
    program = (
        "import sys; sys.modules['distributed'] = None\n"
        "from longshore.shared import Pool\n"
        "try: Pool('dask://127.0.0.1:8786')\n"
        "except ValueError as error: print(type(error).__name__, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert done.stdout == "ConfigError pip install longshore[dask]\n"


def test_a_task_that_was_cancelled_before_its_worker_had_begun_with_it_is_never_run():
    # Cancelling goes out of band, and may overtake the task on its way through a thread of the worker.
    options = pickle.dumps(("a pool", b"of nobody"))
    remote.cancel_there(options, 7)
    verb, error = remote.run_there(options, 7, b"", "tasks.square", None)
    assert verb == remote.FAILED
    assert isinstance(unpack_error(pickle.loads(error)), concurrent.futures.CancelledError)
