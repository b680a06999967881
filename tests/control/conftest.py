"""The other end of an agent's socket: asks, and keeps what is told unasked."""

from __future__ import annotations

import json
import socket

import pytest

from longshore.control.agent import Agent


class Asker:
    """What a control process does, one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(10)
        self._file = sock.makefile("rb")
        self._ids = iter(range(1, 1_000_000))
        self.told: list[dict] = []

    def line(self) -> dict:
        """The next line, whatever it is."""
        line = self._file.readline()
        assert line, "the agent has hung up"
        return json.loads(line)

    def told_next(self, name: str) -> dict:
        """The next thing told unasked that has `name` in it."""
        while True:
            for index, message in enumerate(self.told):
                if name in message:
                    return self.told.pop(index)
            self.told.append(self.line())

    def answer(self, verb: str, **arguments: object) -> dict:
        """Ask, and wait for the answer to it."""
        number = next(self._ids)
        self.socket.sendall(json.dumps({"id": number, "verb": verb, **arguments}).encode() + b"\n")
        while True:
            message = self.line()
            if message.get("id") == number:
                return message
            self.told.append(message)

    def __call__(self, verb: str, **arguments: object) -> object:
        answer = self.answer(verb, **arguments)
        assert answer["ok"], answer
        return answer["result"]

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def agent_of():
    """Gives a server that has not started an agent; `ask = agent_of(server)`, then start it."""
    askers = []

    def make(server, meter=None):
        ours, theirs = socket.socketpair()
        asker = Asker(ours)
        asker.agent = Agent(server, theirs, meter)
        askers.append(asker)
        return asker

    yield make
    for asker in askers:
        asker.close()
