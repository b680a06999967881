"""Watching and commanding a server from outside, while it runs.

    ctl, top -- control socket --+
    Prometheus -- /metrics ------+-- the control process -- each worker's agent
    the supervisor --------------+

The supervisor runs one process more than it has workers, which serves no user's connection: it asks the agents,
adds up what they count in shared memory, and passes commands on.  So a scrape costs the workers next to nothing, and
works while one of them is blocked.  Both its doors, the control socket and the page of metrics, are servers of ours.

Nothing here runs unless it is asked for, and a server that is embedded in a program can have an agent without a
control process.
"""

from __future__ import annotations

__all__ = ()
