"""Observers: what listens to a server's events, and nothing else.

A folder with one contract, a callable that takes one `Event` (`Server.subscribe` takes it), and one file for
each thing that can be made of events.  An observer never touches a server or a connection, so a server runs the
same with or without it.
"""

from __future__ import annotations

from longshore.observers.logs import LogObserver, configure

__all__ = ("LogObserver", "configure")
