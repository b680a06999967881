"""The workers as the control process sees them: an agent each, who may be late, or never answer.

The only place that asks agents.  Nobody waits for one that is stuck: what it does not say in time is left out, and it
is named as silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any

from longshore.errors import LongshoreError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

__all__ = ("PATIENCE", "Answers", "Fleet", "Member", "Refusal", "Silence")

#: Seconds that an agent has for an answer.
PATIENCE = 2.0
#: Bytes of one answer.
LONGEST = 1 << 26


class Refusal(LongshoreError):
    """What an agent or the supervisor has answered instead of a result."""


class Silence(LongshoreError):
    """An agent did not answer in time, or has ended."""


class Member:
    """One worker; to be made in the running loop.

    Args:
        worker: its number, from 1 on; the next one that has it comes after its end.
        told: called as `told(member, message)` with what its agent says unasked.
    """

    def __init__(
        self,
        worker: int,
        pid: int,
        generation: int,
        sock: socket.socket,
        told: Callable[[Member, dict[str, Any]], object],
    ) -> None:
        self.worker = worker
        self.pid = pid
        self.generation = generation
        #: As its server last said: serving, paused, draining; "starting" before.
        self.state = "starting"
        self._told = told
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._listen(sock))

    async def _listen(self, sock: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=sock, limit=LONGEST)
        self._connected.set()
        try:
            with contextlib.suppress(ConnectionError, ValueError):
                while line := await reader.readline():
                    self._heard(json.loads(line))
        finally:
            self._writer.close()
            for future in self._waiting.values():
                future.cancel()

    def _heard(self, message: dict[str, Any]) -> None:
        future = self._waiting.pop(message.get("id", 0), None)
        if future is not None:
            if not future.done():
                future.set_result(message)
            return
        if message.get("event") == "state":
            self.state = message["state"]
        self._told(self, message)

    async def ask(self, verb: str, patience: float = PATIENCE, **arguments: Any) -> Any:
        """The result of one request.

        Raises:
            Refusal: it has answered with an error.
            Silence: it did not answer within `patience` seconds, or has ended.
        """
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                await self._connected.wait()
                if self._writer is None or self._task.done():
                    raise Silence(f"worker {self.worker} has ended")
                self._writer.write(json.dumps({"id": number, "verb": verb, **arguments}).encode() + b"\n")
                message = await answer
        except TimeoutError:
            raise Silence(f"worker {self.worker} has not answered within {patience:g} s") from None
        except asyncio.CancelledError:
            if not answer.cancelled():
                raise
            raise Silence(f"worker {self.worker} has ended") from None
        finally:
            self._waiting.pop(number, None)
        if not message.get("ok"):
            raise Refusal(message.get("error", "refused"), hint=message.get("hint", ""))
        return message.get("result")

    async def close(self) -> None:
        """It has ended, or is not of interest any more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class Fleet:
    """All workers that live, those that drain included."""

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, worker: int) -> Member | None:
        """The one of this number."""
        return self._members.get(worker)

    def join(self, member: Member) -> Member | None:
        """It lives; returns the one that had its number before, if its end was not heard of."""
        former = self._members.get(member.worker)
        self._members[member.worker] = member
        return former

    def leave(self, worker: int, pid: int) -> Member | None:
        """It has ended."""
        member = self._members.get(worker)
        return self._members.pop(worker) if member is not None and member.pid == pid else None

    async def ask_all(self, verb: str, patience: float = PATIENCE, **arguments: Any) -> Answers:
        """What each says to one request, all of them asked at once."""
        members = tuple(self)
        answers = await asyncio.gather(
            *(member.ask(verb, patience, **arguments) for member in members), return_exceptions=True
        )
        found = Answers()
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, Silence):
                found.silent.append(member.worker)
            elif isinstance(answer, Refusal):
                found.refusals.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.results[member.worker] = answer
        return found


class Answers:
    """What several workers have said."""

    def __init__(self) -> None:
        #: By worker.
        self.results: dict[int, Any] = {}
        #: Workers that did not answer in time.
        self.silent: list[int] = []
        self.refusals: list[Refusal] = []

    def check(self) -> Answers:
        """This, unless somebody refused.

        Raises:
            Refusal: the first of them.
        """
        if self.refusals:
            raise self.refusals[0]
        return self
