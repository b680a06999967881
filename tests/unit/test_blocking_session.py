"""The deadlines of a handler that has a thread of its own, as its thread and the reactor's take turns."""

from __future__ import annotations

import socket
from types import SimpleNamespace

from longshore import Limits, Timeouts
from longshore.errors import ReadTimeout
from longshore.reactor.portable import PortableReactor
from longshore.strategies.blocking import BlockingSession
from longshore.testing import Clock


def test_a_deadline_is_kept_though_the_reactor_looked_between_two_waits():
    clock = Clock()
    reactor = PortableReactor(clock)
    host = SimpleNamespace(
        reactor=reactor, limits=Limits(), timeouts=Timeouts(idle=1), framing=None, facade=None, emit=lambda _event: None
    )
    ours, theirs = socket.socketpair()
    session = BlockingSession(host, ours, "the peer", "here", None, lambda _session: None)
    guard = session.guard
    session.begin()
    guard.begin_wait()
    guard.came(1)
    guard.end_wait()
    reactor.run_ready()
    guard.begin_wait()
    reactor.run_ready()
    clock.advance(2)
    reactor.run_ready()
    assert guard.failure is not None
    assert isinstance(guard.failure[1], ReadTimeout)
    session.link.socket.surrender().close()
    theirs.close()
    reactor.close()
