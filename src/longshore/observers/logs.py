"""Events as log records: one readable line each, or one JSON object each.

The only place that turns an event into words, and the only one that logs.  Everything goes through the
`longshore` logger, so an application's own logging configuration decides what becomes of it; `configure` is
for programs that have none, such as the command line.

It decides nothing: which level an event has stands at the event.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, TextIO

from longshore import events
from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import TextIOWrapper

    from longshore.events import Event

__all__ = ("JsonFormatter", "LogFile", "LogObserver", "TextFormatter", "configure", "describe")

#: The attribute of a log record under which its event stands, for handlers of your own.
RECORD_ATTRIBUTE = "longshore_event"


class LogObserver:
    """Log every event: `server.subscribe(LogObserver())`.

    Each is one record with the event's own level and its text from `describe`; a failed handler's record has
    the exception, hence one traceback, and no other record has any.  The event itself is the record's
    attribute `longshore_event`.

    Args:
        logger: where to; the `longshore` logger if None.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger or logging.getLogger("longshore")

    def __call__(self, event: Event) -> None:
        """Log one event, if its level is enabled; from any thread."""
        if self.logger.isEnabledFor(logging.getLevelName(event.level)):
            self.log(event)

    def log(self, event: Event, level: str = "") -> None:
        """Log one event whether its level is enabled or not, as `level` if that is given."""
        logger = self.logger
        error = event.error if isinstance(event, events.HandlerFailed) else None
        exception = None if error is None else (type(error), error, error.__traceback__)
        number = logging.getLevelName(level or event.level)
        extra = {RECORD_ATTRIBUTE: event}
        logger.handle(logger.makeRecord(logger.name, number, "", 0, "%s", (describe(event),), exception, extra=extra))


def describe(event: Event) -> str:
    """The event in one line; what a peer may have put into it is escaped."""
    words = _WORDS.get(type(event))
    return _one_line(words(event) if words else f"{type(event).__name__} {_fields(event)}".strip())


def _one_line(text: str) -> str:
    # A peer may have chosen parts of the text, and a line end or an escape sequence would forge lines.
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _fields(event: Event) -> str:
    return " ".join(f"{name}={value}" for name, value in event.as_dict().items() if name != "event")


def _error(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _started(event: Any) -> str:
    return (
        f"serving {event.handler} on {' and '.join(event.addresses)} ({event.strategy}, {event.reactor} reactor: "
        f"{event.reason})"
    )


def _draining(event: Any) -> str:
    until = "without a deadline" if event.timeout is None else f"for at most {event.timeout:g} s"
    return f"draining {_plural(event.connections, 'connection')} {until}"


def _stopped(event: Any) -> str:
    abandoned = f", abandoned {', '.join(event.abandoned)}" if event.abandoned else ""
    return f"stopped in {event.seconds:.1f} s: {event.finished} finished, {event.cut} cut{abandoned}"


def _opened(event: Any) -> str:
    return f"{event.peer} connected to {event.local}{f' ({event.tls})' if event.tls else ''} as #{event.id}"


def _closed(event: Any) -> str:
    error = f" ({_error(event.error)})" if event.error is not None else ""
    unsent = f", {event.unsent} unsent" if event.unsent else ""
    messages = f", {_plural(event.messages, 'message')}" if event.messages else ""
    return (
        f"{event.peer} #{event.id} closed: {event.cause}{error}, after {event.duration:.3f} s, "
        f"{event.received} bytes in, {event.sent} out{unsent}{messages}"
    )


def _accept_failed(event: Any) -> str:
    again = f"again in {event.retry_in:g} s" if event.retry_in else "again at once"
    return f"cannot accept on {event.local}: {_error(event.error)}; {again}"


def _peer(event: Any) -> str:
    return f" for {event.peer}" if event.peer else ""


def _dropped(event: Any) -> str:
    error = f" ({_error(event.error)})" if event.error is not None else ""
    return f"datagram of {event.size} bytes from {event.peer} to {event.local} dropped: {event.reason}{error}"


def _slow(event: Any) -> str:
    action = "closed" if event.action == "close" else "message dropped"
    return f"{event.peer} #{event.id} is slow, {event.pending} bytes pending: {action}"


def _spawner_died(event: Any) -> str:
    outcome = (
        "another one forks from now on" if event.replaced else "no other is left, so new connections are turned away"
    )
    return f"the spawner (process {event.pid}) has died: {outcome}"


def _worker(event: Any) -> str:
    return f"worker {event.worker} (process {event.pid})"


def _again(event: Any) -> str:
    return f"another one starts in {event.retry_in:g} s" if event.retry_in else "another one starts"


def _worker_ended(event: Any) -> str:
    return f"{_worker(event)} {_stopped(event)}"


def _worker_crashed(event: Any) -> str:
    lost = f" with {_plural(event.connections, 'connection')}" if event.connections else ""
    where = f", at {_innermost(event.stack)}" if event.stack else ""
    return f"{_worker(event)} ended{lost}: {event.reason}{where}; {_again(event)}"


def _worker_blocked(event: Any) -> str:
    stack = " | ".join(line.strip() for line in event.stack.splitlines() if line.strip())
    return f"{_worker(event)} gave no sign of life for {event.seconds:.1f} s and is replaced: {stack}"


_WORDS: dict[type[Event], Callable[[Any], str]] = {
    events.ServerStarted: _started,
    events.ServerAnnounced: lambda event: "the supervisor has told that the server accepts",
    events.ServerPaused: lambda event: "paused: nothing is accepted",
    events.ServerResumed: lambda event: "resumed: accepting again",
    events.ServerDraining: _draining,
    events.ServerStopped: _stopped,
    events.ConnectionOpened: _opened,
    events.ControlOpened: lambda event: f"watched by {', '.join((*event.metrics, *event.control))}",
    events.ConnectionClosed: _closed,
    events.ConnectionRejected: lambda event: f"{event.peer} rejected on {event.local}: {event.limit} reached",
    events.AcceptFailed: _accept_failed,
    events.HandlerFailed: lambda event: f"{event.handler} failed{_peer(event)}: {_error(event.error)}",
    events.HandlerBlocked: lambda event: (
        f"{event.handler} has blocked the reactor for {event.seconds:.1f} s{_peer(event)}, at {_innermost(event.stack)}"
    ),
    events.DatagramDropped: _dropped,
    events.SlowReceiver: _slow,
    events.SpawnerDied: _spawner_died,
    events.ThreadsAtFork: lambda event: (
        f"the spawner was forked while other threads ran ({', '.join(event.threads)}): start the server before them"
    ),
    events.WorkerReady: lambda event: f"{_worker(event)} accepts, {event.seconds:.2f} s after its start",
    events.WorkerRetiring: lambda event: f"{_worker(event)} is to drain: {event.reason}",
    events.WorkerEnded: _worker_ended,
    events.WorkerCrashed: _worker_crashed,
    events.WorkerBlocked: _worker_blocked,
    events.Reloading: lambda event: f"reloading: generation {event.generation} starts",
    events.Reloaded: lambda event: f"reloaded in {event.seconds:.2f} s: generation {event.generation} serves",
    events.ReloadFailed: lambda event: f"the reload failed, everything goes on as before: {event.reason}",
    events.Upgrading: lambda event: f"upgrading: the program starts again as process {event.pid}",
    events.Upgraded: lambda event: f"upgraded: process {event.pid} serves in the place of this one",
    events.UpgradeFailed: lambda event: f"the upgrade failed, this program goes on: {event.reason}",
    events.BrokerEnded: lambda event: (
        f"the broker of the shared primitives ({event.pid}) ended: {event.reason}; {_again(event)}"
    ),
    events.ControlEnded: lambda event: f"the control process ({event.pid}) ended: {event.reason}; {_again(event)}",
    events.LimitNear: lambda event: f"{event.limit} is near: {event.value} of {event.maximum}",
    events.CertificateRenewed: lambda event: f"serving with the new certificate in {event.certfile}",
    events.CertificateRefused: lambda event: (
        f"the new certificate in {event.certfile} cannot be used, the one before is kept: {_error(event.error)}"
    ),
    events.CertificateExpires: lambda event: (
        f"the certificate in {event.certfile} "
        + (f"expires in {event.seconds / 86400:.1f} days" if event.seconds > 0 else "has expired")
    ),
    events.LimitsAdjusted: lambda event: f"{event.limit} is {event.actual}, not {event.wanted}: {event.reason}",
}


def _innermost(stack: str) -> str:
    """The last frame of a formatted stack, in one line."""
    lines = [line.strip() for line in stack.splitlines() if line.strip()]
    start = max((index for index, line in enumerate(lines) if line.startswith("File ")), default=0)
    return ": ".join(lines[start:])


_COLOURS = {"DEBUG": "\x1b[2m", "INFO": "", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m"}


class TextFormatter(logging.Formatter):
    """`2024-01-31 12:00:00 warning  message`, in the level's colour if `colour`."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)-7s  %(message)s", "%Y-%m-%d %H:%M:%S")
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line itself; a traceback follows without colour."""
        level = record.levelname
        record.levelname = level.lower()
        try:
            line = super().formatMessage(record)
        finally:
            # The record is shared with every other handler of the logger.
            record.levelname = level
        colour = _COLOURS.get(level, "") if self._colour else ""
        return f"{colour}{line}\x1b[0m" if colour else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, and the event's fields.

    An error is the text "Type: message", and a failed handler's event has its `traceback`.  A record that is
    no event of ours has `event` "log" and a `message`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The object as text, without the line end."""
        import json
        from datetime import UTC, datetime

        event: Event | None = getattr(record, RECORD_ATTRIBUTE, None)
        fields = {"event": "log", "message": record.getMessage()} if event is None else event.as_dict()
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), **fields}
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_plain)


def _plain(value: object) -> str:
    return _error(value) if isinstance(value, BaseException) else str(value)


class LogFile(logging.FileHandler):
    """Lines at the end of a file; when it cannot be written, say so once, and go on.

    SIGUSR1 opens it anew: `longshore.logfiles`.

    Args:
        path: the file.
        owner: the numbers of the user and the group that a regular file is given to; -1 leaves one of them.

    Raises:
        OSError: it cannot be opened, or given away.
    """

    def __init__(self, path: str, owner: tuple[int, int] = (-1, -1)) -> None:
        self._owner = owner
        self._failure: OSError | None = None
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        try:
            if self._owner != (-1, -1) and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                os.fchown(stream.fileno(), *self._owner)
        except OSError:
            stream.close()
            raise
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        before, self._failure = self._failure, None
        super().emit(record)
        if self._failure is not None and before is None:
            with contextlib.suppress(OSError, ValueError):
                why = self._failure.strerror or self._failure
                sys.stderr.write(f"longshore: {self.baseFilename} cannot be written: {why}; serving goes on\n")

    def handleError(self, record: logging.LogRecord) -> None:
        """Note what the system has refused; anything else is a bug, and shown by `logging` itself."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._failure = error
        else:
            super().handleError(record)


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of `configure` for a stream: of a class of its own, so that a second call finds and replaces it."""


def configure(format: str = "text", level: str = "info", stream: TextIO | LogFile | None = None) -> logging.Logger:
    """Send the `longshore` logger's records to `stream` (standard error if None); again replaces the former call.

    Args:
        format: "text" for a readable line, coloured on a terminal that has colours, or "json".
        level: "debug", "info", "warning" or "error".
        stream: a text file, or a `LogFile`, which the next call closes.

    Raises:
        ConfigError: no such format or level.
    """
    if format not in ("text", "json"):
        raise ConfigError(f"log format {format!r}: must be text or json")
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ConfigError(f"log level {level!r}: must be debug, info, warning or error")
    handler = stream if isinstance(stream, LogFile) else _Handler(sys.stderr if stream is None else stream)
    colour = isinstance(handler, _Handler) and _has_colour(handler.stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(colour=colour))
    logger = logging.getLogger("longshore")
    for former in [each for each in logger.handlers if isinstance(each, (_Handler, LogFile))]:
        logger.removeHandler(former)
        with contextlib.suppress(OSError):
            former.close()
    logger.addHandler(handler)
    logger.setLevel(number)
    # The root logger's handlers, if any, would print each line a second time.
    logger.propagate = False
    return logger


def _has_colour(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
