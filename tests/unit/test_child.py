"""A child of the `processes` strategy hears its serving process in the order in which that spoke."""

from __future__ import annotations

import contextvars
import socket
from types import SimpleNamespace

from longshore import Limits, Timeouts
from longshore.strategies.child import _Child
from longshore.strategies.wire import Wire, encode


class Recorder:
    """A job that does nothing, notes what it hears, and ends when it is told to."""

    def __init__(self):
        self.notes = []

    def begin(self):
        pass

    def run(self):
        pass

    def cut(self):
        pass

    def heard(self, verb, *args):
        self.notes.append(verb)
        if verb == "end":
            self.child.reactor.stop()


class Facade:
    """What stands for the server."""


def test_what_came_with_the_welcome_is_heard_before_what_came_after_it():
    serving, own = socket.socketpair()
    job = Recorder()
    with serving, own:
        host = SimpleNamespace(handler=None, framing=None, facade=Facade(), context=contextvars.copy_context)
        welcome = {"limits": Limits(), "timeouts": Timeouts(), "draining": False, "addresses": ()} | {
            "slot": 0,
            "now": None,
        }
        job.child = _Child(host, Wire(own), welcome, SimpleNamespace(at=lambda number: None))
        serving.sendall(encode("third") + encode("end"))
        job.child.run(job, [("first", ()), ("second", ())])
    assert job.notes == ["first", "second", "third", "end"]
