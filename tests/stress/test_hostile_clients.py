"""Clients that mean no good, thousands of them: the good ones' answers stay quick, and memory stays bounded.

A short part of this is in `tests/contract/test_hostile_clients.py`; this is for `make stress`.  Each test prints its
figures.  The quiet runs before and after an attack are on the same server, two of them, as the machine may have other
work to do; a p99 below `FLOOR` is no delay that anybody notices.
"""

from __future__ import annotations

import ssl

import pytest

from longshore.proxy import header
from stress.hostile import attacked, measured, served

MIB = 1 << 20
#: Times the quiet run's p99, and seconds which are always granted on a machine that has nothing else to do.
FACTOR, FLOOR = 3, 0.025
SECONDS = 8.0


def compared(name, server, kind, count, *, growth, **options):
    """Measure in quiet, under attack and in quiet again, print all, and judge by the worse of the quiet ones."""
    before = measured(server.url, SECONDS / 2, **options)
    memory = server.memory
    with attacked(kind, server.port, count) as attack:
        noisy = measured(server.url, SECONDS, **options)
        grown = server.memory - memory
        statistics = server.statistics()
    report = attack.end()
    after = measured(server.url, SECONDS / 2, **options)
    print(f"\n{name}: quiet {before}\n{' ' * len(name)}  under attack {noisy}, {grown / MIB:+.1f} MiB")
    print(f"{' ' * len(name)}  quiet again {after}")
    print(f"{' ' * len(name)}  attackers: {report}; ended by {statistics['causes']}")
    assert noisy.p99 <= max(FACTOR * before.p99, FACTOR * after.p99, FLOOR)
    assert grown <= growth
    assert statistics["failed"] == 0
    return statistics["causes"], report


@pytest.mark.parametrize(("strategy", "kind"), [("reactor", "message"), ("green", "function")])
def test_thousands_of_clients_of_one_byte_a_second(strategy, kind):
    with served(strategy=strategy, kind=kind, timeouts={"min_rate": 100, "first_byte": 5}) as server:
        causes, _ = compared(f"trickle, {strategy}", server, "trickle", 5000, growth=64 * MIB)
    assert causes.get("timeout", 0) > 4000


@pytest.mark.parametrize(("strategy", "kind"), [("reactor", "message"), ("green", "function"), ("threads", "message")])
def test_clients_that_never_read(strategy, kind):
    limits = {"max_pending_bytes": 65536}
    with served(strategy=strategy, kind=kind, limits=limits, timeouts={"write": 3}) as server:
        # For each as much as may be pending, what is read ahead and one reading more, and what the allocator keeps.
        causes, _ = compared(f"deaf, {strategy}", server, "deaf", 500, growth=500 * 5 * 65536)
    assert causes.get("timeout", 0) > 100


@pytest.mark.parametrize(("strategy", "kind"), [("reactor", "message"), ("threads", "function")])
def test_a_flood_of_connections_from_one_address(strategy, kind):
    with served(strategy=strategy, kind=kind, limits={"connection_rate": 50}) as server:
        causes, _ = compared(f"flood, {strategy}", server, "flood", 20_000, growth=32 * MIB)
    assert causes.get("connection_rate", 0) > 1000


@pytest.mark.parametrize(("strategy", "kind"), [("reactor", "message"), ("threads", "function")])
def test_handshakes_that_stall(strategy, kind, tmp_path):
    import trustme

    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    # Half of all places are for one attacker at most: the others' handshakes always find one.
    limits = {"max_connections_per_peer": 30, "max_handshakes": 200}
    with served(
        url="tls://127.0.0.1:0",
        strategy=strategy,
        kind=kind,
        tls=str(tmp_path / "server.pem"),
        limits=limits,
        timeouts={"handshake": 2},
    ) as server:
        causes, _ = compared(f"stalled, {strategy}", server, "stalled", 100, growth=64 * MIB, context=context)
    # Those who are in are cut off again and again, and those for whom there is no place are turned away meanwhile.
    assert causes.get("handshake", 0) > 60
    assert causes.get("max_connections_per_peer", 0) > 60


@pytest.mark.parametrize(("strategy", "kind"), [("reactor", "message"), ("green", "function"), ("threads", "function")])
def test_headers_that_are_forged_cut_and_oversized(strategy, kind):
    proxy = {"trusted": ["127.2.0.1", "127.0.0.200"], "timeout": 2}
    with served(strategy=strategy, kind=kind, proxy=proxy) as server:
        causes, report = compared(
            f"proxies, {strategy}",
            server,
            "proxies",
            1,
            growth=32 * MIB,
            prefix=header(("203.0.113.7", 7), ("198.51.100.1", 2)),
        )
    # One of ten is a trusted proxy's own, and whole; those at the very end may not have been told yet.
    assert causes.get("proxy", 0) > 0.8 * report["connected"]
