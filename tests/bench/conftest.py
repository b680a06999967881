import pytest


@pytest.fixture
def entry():
    """A scenario with three servers and two rounds, in the shape in which rounds.py writes it."""

    def sample(number, cpu, **more):
        latency = {"p50": 10, "p99": 20, "p99.9": 30}
        return {
            "round": number,
            "server_cpu_ns_per_message": cpu,
            "rate": 1e9 / cpu,
            "lost": 0,
            "seconds": 1.0,
            "load_cpu_ns": 5e8,
            "latency_ns": latency,
            **more,
        }

    return {
        "title": "Line echo",
        "way": "closed",
        "metric": "ratio",
        "connections": 50,
        "depth": 1,
        "size": 64,
        "families": {"slow": "peer", "limit": "limit", "longshore reactor": "longshore", "absent": "peer"},
        "reactors": {"longshore reactor": "native"},
        "left_out": {"absent": "not installed"},
        "samples": {
            "limit": [sample(0, 1000, load_cpu_ns=9.9e8), sample(1, 2000, load_cpu_ns=9.9e8)],
            "slow": [sample(0, 4000), sample(1, 8000)],
            "longshore reactor": [sample(0, 1100), sample(1, 2200, lost=3)],
        },
    }
