"""What happens to clients while workers come and go; `tests/stress` does the same for longer."""

from __future__ import annotations

import os
import random
import signal
import ssl
import time

import pytest
import trustme

from tests.supervisor.conftest import wait_for
from tests.supervisor.swarm import Swarm

pytestmark = pytest.mark.slow


def reload_under_load(server, swarm, times):
    """Reload, one after the other, with answers between; seconds of each."""
    seconds = []
    for generation in range(2, times + 2):
        began = time.monotonic()
        server.send(signal.SIGHUP)
        server.line(rf"reloaded in .* generation {generation} serves", timeout=60)
        seconds.append(time.monotonic() - began)
        swarm.wait_for(50)
    return seconds


def kill_under_load(server, swarm, times, seed=7):
    """SIGKILL a random worker, one after the other; seconds until there are as many as before, of each."""
    chosen = random.Random(seed)
    seconds = []
    count = len(server.workers())
    for number in range(1, times + 1):
        workers = server.workers()
        victim = chosen.choice(workers)
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        server.line(r"ended.*killed by SIGKILL", count=number, timeout=60)
        ready = count + number
        wait_for(lambda ready=ready: server.count(r"process \d+\) accepts") >= ready, timeout=60)
        seconds.append(time.monotonic() - began)
        assert set(workers) - {victim} < set(server.workers())
        swarm.wait_for(50)
    return seconds


def renew_under_load(server, swarm, renew, times):
    """Replace the certificate's file, one after the other, with answers between; seconds until all workers show it."""
    seconds = []
    count = len(server.workers())
    for number in range(1, times + 1):
        began = time.monotonic()
        renew()
        server.line("serving with the new certificate", timeout=60, count=count * number)
        seconds.append(time.monotonic() - began)
        swarm.wait_for(50)
    return seconds


@pytest.fixture
def renewable(tmp_path):
    """A certificate's file, a function that puts a new one there, and a client's context that trusts all of them."""
    authority, path = trustme.CA(), tmp_path / "server.pem"

    def renew():
        # As certbot and kubelets do it: never a moment with half a file.
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "fresh.pem")
        (tmp_path / "fresh.pem").replace(path)

    renew()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return path, renew, context


def test_reloads_lose_no_request_and_refuse_no_connection(service):
    server = service("--workers", "2")
    with Swarm(server.port, 10) as swarm:
        seconds = reload_under_load(server, swarm, 4)
    print(f"{len(seconds)} reloads, {swarm.answers} answers, {max(seconds):.2f} s the longest, {dict(swarm.failures)}")
    assert swarm.failures == {}
    assert len(swarm.by) > 2


def test_new_certificates_lose_no_request_and_refuse_no_connection(service, renewable):
    path, renew, context = renewable
    options = ["--certfile", str(path), "--certificate-check", "0.1"]
    server = service("--workers", "2", *options, bind="tls://127.0.0.1:0")
    with Swarm(server.port, 10, context=context) as swarm:
        seconds = renew_under_load(server, swarm, renew, 3)
    print(f"{len(seconds)} certificates, {swarm.answers} answers, {dict(swarm.failures)}")
    assert swarm.failures == {}
    assert len(swarm.shown) == 4


def test_a_killed_worker_costs_its_own_requests_only(service):
    server = service("--workers", "2")
    with Swarm(server.port, 10) as swarm:
        seconds = kill_under_load(server, swarm, 4)
    print(f"{len(seconds)} kills, {swarm.answers} answers, {max(seconds):.2f} s the longest, {dict(swarm.failures)}")
    assert set(swarm.failures) <= {"ConnectionResetError"}
    # What was in flight, at most one request of each client at each kill.
    assert swarm.failures.total() <= 10 * len(seconds)
