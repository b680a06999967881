from __future__ import annotations

import pytest

from shared.redis_servers import PROGRAM, WHY_NOT, RedisProcess


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory):
    """One server for all tests that do not end it; each finds it empty."""
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    process = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield process
    process.kill()


@pytest.fixture
def redis_server(redis_process):
    """The server, without any key."""
    redis_process.command("FLUSHALL")
    return redis_process


@pytest.fixture
def own_redis(tmp_path):
    """Start a server of this test's own, which it may end: `own_redis(*options)`."""
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    started = []

    def start(*options):
        started.append(RedisProcess(tmp_path, *options))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()
