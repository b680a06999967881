"""`longshore ctl`: what somebody at a terminal, or a script, asks of a running server.

The only place that makes tables of a server's answers; with `--json` they are printed as they came.  What is asked and
how it is answered stands in `longshore.control`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from longshore.control.client import Commanded
from longshore.errors import LongshoreError, PeerClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("CtlArguments", "age", "ctl", "size", "table")


class CtlArguments(NamedTuple):
    """What stands on a command line of `longshore ctl`."""

    verb: str
    arguments: dict[str, Any]
    control: str | None = None
    as_json: bool = False
    events: int | None = None
    """Events of a trace to end after."""


def ctl(arguments: CtlArguments) -> int:
    """Ask, and print the answer; the exit status.

    Raises:
        LongshoreError: the server cannot be reached, or refuses.
    """
    with Commanded(arguments.control) as server:
        waiting = _Progress(arguments.control) if arguments.verb == "reload" else contextlib.nullcontext()
        try:
            with waiting:
                result = server.ask(arguments.verb, **arguments.arguments)
        except PeerClosed:
            if arguments.verb not in ("drain", "stop"):
                raise
            # It was asked to end, and was quicker than its answer.
            result = None
        if arguments.as_json and arguments.verb != "trace":
            print(json.dumps(result, indent=2))
            return 0
        if arguments.verb == "trace":
            return _trace(server, result, arguments)
        show = _SHOWN.get(arguments.verb)
        text = _DONE.get(arguments.verb, "") if show is None else show(result)
        if text:
            print(text.rstrip("\n"))
        silent = result.get("silent") if isinstance(result, dict) else None
        if silent:
            numbers = ", ".join(map(str, silent))
            print(f"note: no answer in time from worker {numbers}: blocked, or only starting", file=sys.stderr)
    return 0


class _Progress:
    """Shows on a terminal how far a reload is, while somebody waits for it: for more than half a second.

    Args:
        control: the server's control socket.
    """

    #: Seconds between two looks, the first of which is as late.
    INTERVAL = 0.5

    def __init__(self, control: str | None) -> None:
        self._control = control
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True) if sys.stderr.isatty() else None

    def __enter__(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        if self._over.wait(self.INTERVAL):
            return
        # What cannot be looked at is told by the answer that is waited for.
        with contextlib.suppress(LongshoreError, OSError), Commanded(self._control) as server:
            wanted, serving = _new_workers(server.ask("status"))
            bar = click.progressbar(
                length=wanted, label="new workers that serve", show_pos=True, show_eta=False, file=sys.stderr
            )
            with bar:
                bar.update(serving)
                while not self._over.wait(self.INTERVAL):
                    bar.update(_new_workers(server.ask("status"))[1] - bar.pos)


def _new_workers(status: dict[str, Any]) -> tuple[int, int]:
    """How many workers are wanted, and how many of the newest generation serve."""
    supervisor = status["supervisor"]
    new = [each for each in status["workers"] if each["generation"] == supervisor["generation"]]
    return supervisor["wanted"], min(supervisor["wanted"], sum(each["state"] == "serving" for each in new))


# -- words ---------------------------------------------------------------------------------------------------


def age(seconds: float | None) -> str:
    """A duration in the two units that matter."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, unit, below, name in ((60, 1, 0, "s"), (3600, 60, 1, "m"), (86_400, 3600, 60, "h")):
        if seconds < limit:
            whole, rest = divmod(int(seconds), unit)
            return f"{whole}{name}" + (f"{rest // below:02d}{'s' if below == 1 else 'm'}" if below else "")
    days, rest = divmod(int(seconds), 86_400)
    return f"{days}d{rest // 3600:02d}h"


def size(count: float | None) -> str:
    """Bytes, or anything else that is counted, in three digits and a unit of 1000."""
    if count is None:
        return "-"
    for unit in ("", "k", "M", "G", "T"):
        if abs(count) < 999.5:
            return f"{count:.0f}{unit}" if unit == "" or count >= 99.5 else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}P"


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns under titles: numbers to the right, words to the left; what a peer may have put into it is escaped."""
    cells = [titles, *([_plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    right = [bool(rows) and all(_numeric(row[column]) for row in cells[1:]) for column in range(len(titles))]
    lines = (
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _plain(cell: Any) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(cell))


def _numeric(text: str) -> bool:
    return text == "-" or text[:1].isdigit()


# -- answers -------------------------------------------------------------------------------------------------


def _status(result: dict[str, Any]) -> str:
    supervisor = result["supervisor"]
    words = [result["state"], "ready" if result["ready"] else "not ready"]
    if result["paused"]:
        words.append("paused")
    workers = result["workers"]
    head = (
        f"{', '.join(words)}: {len(workers)} of {supervisor['wanted']} workers, generation {supervisor['generation']}"
    )
    handlers = {each["handler"] for each in workers if "handler" in each}
    addresses: list[str] = supervisor.get("addresses") or next(
        (each["addresses"] for each in workers if "addresses" in each), []
    )
    if handlers:
        head += f"\n{', '.join(sorted(handlers))} on {' and '.join(addresses)}"
    if result["set"]:
        head += "\nset by hand: " + " ".join(f"{name}={value}" for name, value in result["set"].items())
    rows = [
        [
            each["worker"],
            each["pid"],
            each["generation"],
            each["state"],
            age(each.get("age")),
            each.get("connections", "-"),
            *(size(each.get(name)) for name in ("accepted", "received", "sent", "messages", "failed")),
        ]
        for each in workers
    ]
    titles = ("worker", "pid", "gen", "state", "age", "conns", "accepted", "in", "out", "messages", "failed")
    return f"{head}\n\n{table(titles, rows)}"


def _connections(result: dict[str, Any]) -> str:
    rows = [
        [
            each["id"],
            each["peer"] + (f" via {each['via']}" if each["via"] else ""),
            each["state"],
            age(each["age"]),
            age(each["idle"]),
            *(size(each[name]) for name in ("received", "sent", "pending", "messages")),
            each["tls"] or "-",
            each["handler"],
        ]
        for each in result["connections"]
    ]
    titles = ("id", "peer", "state", "age", "idle", "in", "out", "pending", "messages", "tls", "handler")
    shown = (
        "" if len(rows) == result["total"] else f"\n{len(rows)} of {result['total']} connections; --limit shows more"
    )
    return table(titles, rows) + shown


def _limits(result: dict[str, Any]) -> str:
    return table(("name", "value"), [[name, _value(value)] for name, value in result.items()])


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(value) if isinstance(value, list) else str(value)


_SHOWN: dict[str, Callable[[Any], str]] = {
    "status": _status,
    "connections": _connections,
    "limits": _limits,
    "turn": lambda result: (
        "set in every worker, until the next reload: "
        + " ".join(f"{name}={value}" for name, value in result["set"].items())
    ),
    "cut": lambda result: f"{_plain(result['peer'])} is cut",
    "add": lambda result: f"{result} workers" if result else "one worker more",
    "remove": lambda result: f"{result} workers" if result else "one worker less",
}
_DONE = {
    "pause": "paused: nothing is accepted until longshore ctl resume",
    "resume": "accepting",
    "drain": "draining",
    "stop": "stopping",
    "reload": "reloaded: new workers serve",
    "kill": "killed: another worker takes its place",
}


def _trace(server: Commanded, result: dict[str, Any], arguments: CtlArguments) -> int:
    """Print what happens to a peer, until it was enough."""
    peer = arguments.arguments["peer"]
    if not arguments.as_json:
        now = f", open now: {', '.join(result['open'])}" if result["open"] else ""
        print(f"tracing {_plain(peer)}{now}; Ctrl-C ends it", file=sys.stderr, flush=True)
    for seen, message in enumerate(server.told(), start=1):
        if arguments.as_json:
            print(json.dumps(message), flush=True)
        else:
            if message["dropped"]:
                print(f"({message['dropped']} events were left out)", flush=True)
            print(_event(message), flush=True)
        if arguments.events is not None and seen >= arguments.events:
            break
    return 0


def _event(message: dict[str, Any]) -> str:
    event = dict(message["event"])
    name = event.pop("event")
    moment = time.strftime("%H:%M:%S", time.localtime(message["time"])) + f".{int(message['time'] * 1000) % 1000:03d}"
    fields = " ".join(
        f"{key}={value!r}" if isinstance(value, str) else f"{key}={value}"
        for key, value in event.items()
        if value not in (None, 0, "")
    )
    return f"{moment} worker {message['worker']} {name} {fields}"
