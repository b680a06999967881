"""Pools for the tests of this folder, on both places, each of which must leave nothing behind."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec

import pytest

from longshore.shared import Pool
from longshore.testing import _settle_event_loops, no_leaks
from pool import tasks
from pool.places import PATIENCE, running_cluster


def pytest_generate_tests(metafunc):
    if "place" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        both = module in ("test_tasks", "test_deaths") and not getattr(metafunc.function, "local_only", False)
        absent = pytest.mark.skipif(find_spec("distributed") is None, reason="Dask is not installed")
        # The first test of each cluster waits until it is there.
        dask = pytest.param("dask", marks=[absent, pytest.mark.slow, pytest.mark.timeout(60)])
        metafunc.parametrize("place", ["local", dask] if both else ["local"], scope="session")


@pytest.fixture(scope="session")
def clusters(tmp_path_factory):
    """URLs of clusters, by their number of workers; each is started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        running = {}

        def url_of(workers):
            if workers not in running:
                running[workers] = stack.enter_context(running_cluster(tmp_path_factory.mktemp("cluster"), workers))
            return running[workers]

        yield url_of


@pytest.fixture
def make_pool(place, clusters):
    """Make pools; when the test is over they are shut down and have left nothing."""
    _settle_event_loops()
    # A client of Dask's keeps threads for whoever comes next.
    with no_leaks() if place == "local" else contextlib.nullcontext(), contextlib.ExitStack() as stack:

        def make(processes=2, *args, **options):
            pool = Pool(processes if place == "local" else clusters(processes), *args, **options)
            stack.callback(pool.shutdown)
            stack.callback(pool.terminate)
            return pool

        yield make


@pytest.fixture
def make_warm(make_pool):
    """Make pools whose processes are there already: what a server starts it is asked for."""

    def make(place, **options):
        pool = make_pool(place, **options)
        while pool.statistics().processes < place:
            for future in [pool.submit(tasks.sleep, 0.05) for _ in range(min(place, pool._room.limit))]:
                future.result(PATIENCE)
        return pool

    return make
