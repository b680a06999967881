"""The control process: what it knows of the workers, and what it does when it is told to.

The only place where commands become deeds: some are the supervisor's, some every worker's, some one worker's.  It runs
on one asyncio loop; the pages are made on it too, for the threads of another server that wait.

It decides nothing by itself.  What a worker does not say in time is left out of an answer, which then names the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from longshore.config import Limits, Timeouts
from longshore.control import dials, metrics
from longshore.control.commands import Commander
from longshore.control.fleet import PATIENCE, Fleet, Member, Refusal, Silence
from longshore.control.pages import Page, document, serve_pages
from longshore.errors import ConfigError, LongshoreError
from longshore.logfiles import reopen_logs
from longshore.machine import resident
from longshore.server import Server
from longshore.settings import near_match
from longshore.shared.figures import FIGURES, broker_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.listeners import Listener
    from longshore.supervisor.liaison import Liaison

__all__ = ("Plane",)

#: Seconds that a new worker has until it is told what was set by hand.
START = 60.0
#: Seconds that the supervisor has for what takes it no time.
PROMPT = 5.0
#: Seconds for what takes new workers to start and old ones to end; then its outcome is told by the log only.
LONG = 300.0


class Plane:
    """Everything behind the two doors of one control process.

    Args:
        liaison: the supervisor's side.
        pages: bound listeners for `/metrics`, `/ready` and `/live`.
        doors: bound listeners for the control socket.
        version: of Longshore.
    """

    def __init__(
        self, liaison: Liaison, pages: Sequence[Listener] = (), doors: Sequence[Listener] = (), version: str = ""
    ) -> None:
        self._liaison = liaison
        self._pages = pages
        self._doors = doors
        self._version = version
        self._fleet = Fleet()
        self._state = "starting"
        self._paused = False
        #: Limits set by hand: they hold for workers of the generation that they were set in, until a reload.
        self._turned: dict[str, str] = {}
        self._turned_in = 0
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._traces: dict[int, tuple[Commander, str]] = {}
        self._deeds: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event

    # -- life ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._loop.add_signal_handler(signal.SIGTERM, self._over.set)
        self._loop.add_reader(self._liaison.channel.socket, self._read)
        async with contextlib.AsyncExitStack() as stack:
            if self._doors:
                door = Server(
                    Commander,
                    *self._doors,
                    strategy="async",
                    limits=Limits(max_connections=100, max_pending_bytes=1 << 22),
                    timeouts=Timeouts(first_byte=None, idle=None, lifetime=None),
                    lifespan=contextlib.nullcontext(self),
                )
                await stack.enter_async_context(door)
            if self._pages:
                pages = {"/metrics": self._metrics, "/ready": self._ready, "/live": self._live}
                server = serve_pages(self._pages, {path: self._awaited(page) for path, page in pages.items()})
                server.start()
                stack.push_async_callback(asyncio.to_thread, server.stop)
            await self._over.wait()
            self._loop.remove_reader(self._liaison.channel.socket)
            for member in self._fleet:
                await member.close()

    def _awaited(self, page: Callable[[], Any]) -> Callable[[], Page]:
        """A page for threads that wait."""

        def make() -> Page:
            made: Page = asyncio.run_coroutine_threadsafe(page(), self._loop).result(2 * PROMPT)
            return made

        return make

    def _do(self, deed: Any) -> None:
        """Begin something whose end nobody waits for."""
        task = self._loop.create_task(deed)
        self._deeds.add(task)
        task.add_done_callback(self._deeds.discard)

    # -- the supervisor --------------------------------------------------------------------------------

    def _read(self) -> None:
        channel = self._liaison.channel
        for message, fds in channel.receive():
            if "event" in message:
                self._heard(message, fds)
            else:
                answer = self._asked.pop(message.get("id", 0), None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            for fd in fds:
                os.close(fd)
        if channel.ended:
            self._over.set()

    def _heard(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["event"]:
            case "worker-started":
                sock = socket.socket(fileno=fds.pop())
                self._join(Member(message["worker"], message["pid"], message["generation"], sock, self._told))
            case "worker-draining":
                member = self._fleet.get(message["worker"])
                if member is not None:
                    member.state = "draining"
            case "worker-ended":
                member = self._fleet.leave(message["worker"], message["pid"])
                if member is not None:
                    self._do(member.close())
            case "state":
                self._state = message["state"]
            case "reopen-logs":
                reopen_logs()

    async def _command(self, verb: str, patience: float = PROMPT, **arguments: Any) -> Any:
        """What the supervisor does.

        Raises:
            Refusal: it cannot.
            Silence: it has not said so within `patience` seconds.
        """
        number = next(self._ids)
        answer = self._asked[number] = self._loop.create_future()
        channel = self._liaison.channel
        channel.send({"id": number, "verb": verb, **arguments})
        if channel.pending:
            self._loop.add_writer(channel.socket, self._write)
        try:
            async with asyncio.timeout(patience):
                message = await answer
        except TimeoutError:
            raise Silence(
                f"the supervisor has not answered {verb} within {patience:g} s", hint="Its log says what goes on."
            ) from None
        finally:
            self._asked.pop(number, None)
        if not message.get("ok"):
            raise Refusal(message.get("error", "refused"), hint=message.get("hint", ""))
        return message.get("result")

    def _write(self) -> None:
        self._liaison.channel.flush()
        if not self._liaison.channel.pending:
            self._loop.remove_writer(self._liaison.channel.socket)

    # -- the workers -----------------------------------------------------------------------------------

    def _join(self, member: Member) -> None:
        former = self._fleet.join(member)
        if former is not None:
            self._do(former.close())
        self._do(self._instruct(member))

    async def _instruct(self, member: Member) -> None:
        """Tell a new worker what was set by hand before it was there."""
        with contextlib.suppress(LongshoreError):
            if self._paused:
                await member.ask("pause", START)
            if self._turned and member.generation == self._turned_in:
                await member.ask("turn", START, values=self._turned)
            for trace, (_, peer) in tuple(self._traces.items()):
                await member.ask("trace", START, trace=trace, peer=peer)

    def _told(self, member: Member, message: dict[str, Any]) -> None:
        """A worker said something unasked."""
        found = self._traces.get(message.get("trace", 0))
        if found is not None:
            found[0].tell(message | {"worker": member.worker})

    # -- commands --------------------------------------------------------------------------------------

    async def obey(self, verb: str, arguments: dict[str, Any], commander: Commander) -> Any:
        """Do what somebody at the control socket wants; what there is then to say.

        Raises:
            LongshoreError: it cannot be done.
        """
        deed = _DEEDS.get(verb)
        if deed is None:
            raise ConfigError(f"there is no command {verb!r}", hint=near_match(verb, tuple(_DEEDS)))
        if verb == "trace":
            arguments = {**arguments, "commander": commander}
        try:
            return await deed(self, **arguments)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise ConfigError(f"{verb}: these arguments cannot be understood: {error}") from None

    async def status(self) -> dict[str, Any]:
        """The supervisor and each worker."""
        supervisor, answers = await asyncio.gather(self._command("status"), self._fleet.ask_all("status"))
        workers = []
        for each in supervisor.pop("workers", []):
            said = answers.results.get(each["worker"], {})
            state = said.get("state") if each.get("state") == "ready" else each.get("state")
            silent = each["worker"] in answers.silent
            workers.append({**said, **each, "state": "silent" if silent and state is None else state or "starting"})
        return {
            "version": self._version,
            "supervisor": supervisor,
            "state": self._state,
            "ready": self.is_ready,
            "paused": self._paused,
            "set": self._turned,
            "metrics": [listener.url for listener in self._pages],
            "workers": sorted(workers, key=lambda each: each["worker"]),
            "silent": answers.silent,
        }

    async def connections(self, peer: str = "", sort: str = "age", limit: int = 1000) -> dict[str, Any]:
        """The connections of all workers; their `id` is worker:number."""
        answers = (await self._fleet.ask_all("connections", peer=peer, sort=sort, limit=limit)).check()
        found = []
        for worker, result in answers.results.items():
            for row in result["connections"]:
                found.append(row | {"id": f"{worker}:{row['id']}", "worker": worker})
        found.sort(key=lambda row: -1 if row[sort] is None else row[sort], reverse=True)
        total = sum(result["total"] for result in answers.results.values())
        return {"total": total, "connections": found[:limit], "silent": answers.silent}

    async def limits(self) -> dict[str, Any]:
        """All limits and timeouts, as set now."""
        for member in self._fleet:
            with contextlib.suppress(Silence):
                result: dict[str, Any] = await member.ask("limits")
                return result
        raise Silence("no worker answers", hint="longshore ctl status shows them.")

    async def turn(self, values: dict[str, str]) -> dict[str, Any]:
        """Set limits and timeouts in every worker, those to come included, until the next reload."""
        # A mistake is found before the first worker knows of it.
        dials.turned(Limits(), Timeouts(), values)
        answers = (await self._fleet.ask_all("turn", values=values)).check()
        newest = max((member.generation for member in self._fleet), default=0)
        self._turned = {**(self._turned if self._turned_in == newest else {}), **values}
        self._turned_in = newest
        return {"set": self._turned, "silent": answers.silent}

    async def pause(self) -> dict[str, Any]:
        """Accept nothing any more."""
        self._paused = True
        return {"silent": (await self._fleet.ask_all("pause")).silent}

    async def resume(self) -> dict[str, Any]:
        """Accept again."""
        self._paused = False
        return {"silent": (await self._fleet.ask_all("resume")).silent}

    async def drain(self) -> Any:
        """Let everybody finish, and end the server."""
        self._state = "draining"
        return await self._command("drain")

    async def stop(self) -> Any:
        """End the server now."""
        self._state = "draining"
        return await self._command("stop")

    async def reload(self) -> Any:
        """New workers with what is on disk now; the answer comes once they serve."""
        return await self._command("reload", LONG)

    async def add(self) -> Any:
        """One worker more."""
        return await self._command("add")

    async def remove(self) -> Any:
        """One worker less."""
        return await self._command("remove")

    async def kill(self, worker: int) -> Any:
        """Kill a worker; another one takes its place."""
        if self._fleet.get(worker) is None:
            raise ConfigError(f"there is no worker {worker}", hint="longshore ctl status shows them.")
        return await self._command("kill", worker=worker)

    async def cut(self, connection: str) -> Any:
        """End one connection."""
        worker, _, number = str(connection).partition(":")
        member = self._fleet.get(int(worker)) if worker.isdigit() else None
        if member is None or not number.isdigit():
            raise ConfigError(
                f"there is no connection {connection!r}",
                hint="longshore ctl connections shows them; an id is worker:number.",
            )
        return await member.ask("kill", number=int(number))

    async def trace(self, peer: str, commander: Commander) -> dict[str, Any]:
        """Tell what happens to one peer, at every worker, those to come included."""
        trace = next(self._ids)
        self._traces[trace] = (commander, peer)
        commander.traces.add(trace)
        answers = await self._fleet.ask_all("trace", trace=trace, peer=peer)
        if answers.refusals:
            await self.end_trace(trace)
            answers.check()
        found = [f"{worker}:{number}" for worker, result in answers.results.items() for number in result["open"]]
        return {"trace": trace, "open": found, "silent": answers.silent}

    async def end_trace(self, trace: int) -> None:
        """Nobody listens any more."""
        commander, _ = self._traces.pop(trace)
        commander.traces.discard(trace)
        await self._fleet.ask_all("untrace", trace=trace)

    # -- pages -----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether new connections are welcome: off before the first worker begins to drain."""
        return (
            self._state in ("serving", "reloading")
            and not self._paused
            and any(member.state == "serving" for member in self._fleet)
        )

    async def _ready(self) -> Page:
        ready = self.is_ready
        states = {str(member.worker): member.state for member in self._fleet}
        return document(200 if ready else 503, {"ready": ready, "state": self._state, "workers": states})

    async def _live(self) -> Page:
        """Whether the supervisor answers: it looks after all others, and nobody after it."""
        try:
            await self._command("status", PATIENCE)
        except LongshoreError as error:
            return document(503, {"live": False, "error": str(error)})
        return document(200, {"live": True})

    async def _metrics(self) -> Page:
        answers = await self._fleet.ask_all("status", PATIENCE / 2)
        asked: dict[str, list[tuple[list[Any], float]]] = {
            "longshore_ready": [([], float(self.is_ready))],
            "longshore_worker_info": [([each.worker, each.pid, each.generation], 1) for each in self._fleet],
            "longshore_worker_responding": [
                ([each.worker], float(each.worker in answers.results)) for each in self._fleet
            ],
            "longshore_worker_resident_memory_bytes": [
                ([each.worker], memory) for each in self._fleet if (memory := resident(each.pid))
            ],
        }
        ends = {worker: result["certificate_expires"] for worker, result in answers.results.items()}
        asked["longshore_certificate_expiry_timestamp_seconds"] = [
            ([worker], end) for worker, end in ends.items() if end is not None
        ]
        for result in list(answers.results.values())[:1]:
            values = [self._version, result["handler"], result["strategy"], result["reactor"]]
            asked["longshore_info"] = [(values, 1)]
        with contextlib.suppress(LongshoreError):
            numbers = {name: value for name, value in (await self.limits()).items() if type(value) in (int, float)}
            asked["longshore_limit"] = [([name], value) for name, value in numbers.items()]
        with contextlib.suppress(LongshoreError):
            supervisor = await self._command("status", PATIENCE / 2)
            asked["longshore_workers_wanted"] = [([], supervisor["wanted"])]
            now = time.time()
            asked["longshore_worker_start_time_seconds"] = [
                ([each["worker"]], now - each["age"]) for each in supervisor["workers"]
            ]
        found: dict[str, int] = {}
        with contextlib.suppress(LongshoreError, OSError):
            found = await asyncio.to_thread(broker_figures, PATIENCE / 2)
        asked |= {f"longshore_broker_{name}": [([], found[name])] if found else [] for name in FIGURES}
        counters = self._liaison.counters
        body = metrics.text(counters.total(), counters.per_worker(), asked)
        return 200, metrics.CONTENT_TYPE, body


_DEEDS: dict[str, Callable[..., Any]] = {
    "status": Plane.status,
    "connections": Plane.connections,
    "limits": Plane.limits,
    "turn": Plane.turn,
    "pause": Plane.pause,
    "resume": Plane.resume,
    "drain": Plane.drain,
    "stop": Plane.stop,
    "reload": Plane.reload,
    "add": Plane.add,
    "remove": Plane.remove,
    "kill": Plane.kill,
    "cut": Plane.cut,
    "trace": Plane.trace,
}
