"""A wall clock that is set forward and back under a service: nothing goes by it, so nothing happens."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import time

import pytest

from tests.supervisor.conftest import wait_for
from tests.supervisor.swarm import Swarm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the clock that is set is made by a C compiler (cc)"),
]

#: Moves the wall clock of a process by the seconds that stand in a file, whatever the kernel says; no other clock.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *offset;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    real = dlsym(RTLD_NEXT, "clock_gettime");
    offset = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    int status = real(clock, found);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        found->tv_sec += *offset;
    return status;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
YEAR = 365 * 86_400
#: Seconds for which each time stays, so that the supervisor looks at its workers meanwhile: four times a heartbeat.
FIRST_BYTE = 1.0
BOUNDS = ["--worker-heartbeat", "3", "--worker-max-age", "1000", "--idle-timeout", "500"]
BOUNDS += ["--first-byte-timeout", str(FIRST_BYTE)]

APP = """
import os, time
def who(connection):
    while line := connection.readline():
        connection.sendall(b"%d %s" % (time.time() if line == b"time\\n" else os.getpid(), line))
"""


@pytest.fixture
def clock(tmp_path):
    """Variables for a program whose wall clock is set here, and a function that sets it by so many seconds."""
    (tmp_path / "clock.c").write_text(SHIM)
    library, place = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    place.write_bytes(struct.pack("l", 0))
    with open(place, "r+b") as file, mmap.mmap(file.fileno(), 8) as memory:

        def turn(seconds):
            memory[:8] = struct.pack("l", seconds)

        yield {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(place)}, turn


def turn_clock(server, turn, jumps, clients):
    """Set the clock of a service that serves under load, and see that deadlines stay what they were; its answers."""
    workers = server.workers()
    with server.connect() as peer, Swarm(server.port, clients) as swarm:
        peer.ask()
        for seconds in jumps:
            before = peer.ask(b"time")
            began = time.monotonic()
            with server.connect() as silent:
                turn(seconds)
                # The clock that the handler sees is another one indeed.
                wait_for(lambda before=before: abs(peer.ask(b"time") - before) > YEAR / 2)
                swarm.wait_for(50)
                # Deadlines come when they are due, and not before: this peer was silent, the other one is idle.
                assert silent.file.readline() == b""
                assert time.monotonic() - began > FIRST_BYTE * 0.9
        assert peer.ask() in workers
    assert swarm.failures == {}
    assert server.workers() == workers
    assert server.stop() == 0
    assert server.count("gave no sign of life|is to drain") == 0
    return swarm.answers


def test_a_clock_that_is_set_years_forward_and_back_changes_nothing(service, app, clock):
    variables, turn = clock
    (app / "app.py").write_text(APP)
    server = service("--workers", "2", "--strategy", "green", *BOUNDS, **variables)
    turn_clock(server, turn, (YEAR, -20 * YEAR), 5)
