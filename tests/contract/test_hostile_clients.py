"""The short part of `make stress`: a few hundred clients that mean no good, for a second or two."""

from __future__ import annotations

import pytest

from longshore.proxy import header
from stress.hostile import attacked, measured, served

pytestmark = pytest.mark.slow

MIB = 1 << 20
#: Seconds: generous, as this shares its machine; `make stress` measures.
QUICK = 1.0

ATTACKS = {
    "trickle": (300, {"timeouts": {"min_rate": 100, "first_byte": 1}}, b""),
    "deaf": (50, {"limits": {"max_pending_bytes": 65536}}, b""),
    "flood": (1000, {"limits": {"connection_rate": 30}}, b""),
    "proxies": (
        1,
        {"proxy": {"trusted": ["127.2.0.1", "127.0.0.200"]}},
        header(("203.0.113.7", 7), ("198.51.100.1", 2)),
    ),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_good_clients_are_served_beside_others(kind):
    count, options, prefix = ATTACKS[kind]
    with served(**options) as server:
        before = server.memory
        with attacked(kind, server.port, count):
            answers = measured(server.url, 1.5, clients=5, prefix=prefix)
            grown = server.memory - before
            statistics = server.statistics()
    assert answers.answers > 20
    assert answers.p99 < QUICK, answers
    assert grown < 64 * MIB
    assert statistics["failed"] == 0
