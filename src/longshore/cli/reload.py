"""`longshore serve --reload`: a server that starts anew when its source changes.

The only place that watches files.  This process binds the addresses and keeps them; the server is a process of its
own, which inherits them, so that nobody is refused while one server goes and the next one comes: who connects
meanwhile waits in the kernel's queue.  A server that cannot start says why, and the next change starts another.

Everything that happens (a change, a signal, a server's start and end) is an entry in one queue, which one loop
reads; `SimpleQueue.put` may be called in a signal handler, which most else may not.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from longshore.cli import FAILURE
from longshore.cli.handover import VARIABLE, describe
from longshore.cli.targets import locate
from longshore.errors import ConfigError, LongshoreError
from longshore.listeners import bind
from longshore.settings import Config, options

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator, Sequence

    from longshore.cli.options import ServeArguments
    from longshore.listeners import Listener

__all__ = ("serve_reloading",)

#: Seconds that an old server has to drain, then to stop, before it is pressed harder: who edits, waits.
PATIENCE = 3.0

#: What a server is asked to do, one after the other: drain, stop at once, and what it cannot refuse.
_PRESSURE = (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)


class _Changed(NamedTuple):
    paths: list[str]


class _Signalled(NamedTuple):
    number: int


class _Started(NamedTuple):
    child: _Child


class _Ended(NamedTuple):
    child: _Child
    status: int


class _Watching(NamedTuple):
    error: Exception | None


def serve_reloading(arguments: ServeArguments, more: Sequence[str] = ()) -> int:
    """Serve until a signal ends it, starting anew whenever a Python file changes; the exit status.

    Args:
        arguments: the command line, as for `serve`.
        more: directories to watch besides the target's own.

    Raises:
        LongshoreError: there is nothing to serve or to watch, or an address cannot be bound.
    """
    config = Config.load(arguments.config, arguments=arguments.values)
    if config.is_supervised:
        raise ConfigError(
            f"--reload serves with one process, not with {config.workers} workers",
            hint="It is for development; leave --workers out.",
        )
    if not config.bind:
        raise ConfigError(
            "no address to serve on", hint=f"Say longshore serve {arguments.target} --bind tcp://127.0.0.1:5000"
        )
    directories = _directories(arguments.target, more)
    _require_watchfiles()
    from longshore.observers.logs import configure

    logger = configure(config.log_format, config.log_level)
    with contextlib.ExitStack() as stack:
        listeners = []
        for target in config.bind:
            for listener in bind(target):
                stack.callback(listener.close)
                listeners.append((target, listener))
        return _Reloader(_command(arguments), listeners, directories, logger).run()


def _directories(target: str, more: Sequence[str]) -> list[str]:
    for each in more:
        if not os.path.isdir(each):
            raise ConfigError(f"--reload-dir {each}: there is no such directory", hint="Name a directory to watch.")
    return list(dict.fromkeys([locate(target), *map(os.path.abspath, more)]))


def _require_watchfiles() -> None:
    try:
        import watchfiles  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--reload needs the watchfiles package, which is not installed", hint="pip install 'longshore[reload]'"
        ) from error


def _command(arguments: ServeArguments) -> list[str]:
    """The command line of the server: this one as it was started, without what is about reloading."""
    # Python's own flags, and whether it was `longshore` or `python -m longshore`, stand before our arguments.
    own = len(sys.orig_argv) - len(sys.argv) + 1
    flags = {option.name: option.flag for option in options()}
    given = [f"{flags[name]}={text}" for name, texts in arguments.values.items() for text in texts]
    config = [f"--config={arguments.config}"] if arguments.config else []
    debug = ["--debug"] if arguments.debug else []
    return [sys.executable, *sys.orig_argv[1:own], "serve", *given, *config, *debug, arguments.target]


class _Reloader:
    """The loop: one server at a time, and what happens to it."""

    def __init__(
        self,
        command: list[str],
        listeners: list[tuple[str, Listener]],
        directories: list[str],
        logger: logging.Logger,
    ) -> None:
        self._command = command
        self._listeners = listeners
        self._directories = directories
        self._logger = logger
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._child: _Child | None = None
        self._status = 0
        self._announced = False
        self._restarting = False
        #: How often a signal has asked us to end.
        self._asked = 0

    def run(self) -> int:
        with _signals(self._events), _watch(self._directories, self._events):
            try:
                while True:
                    status = self._step()
                    if status is not None:
                        return status
            finally:
                if self._child is not None:
                    self._child.kill()

    def _step(self) -> int | None:
        """Wait for one thing to happen, and do what follows; the exit status once it is over."""
        patience = PATIENCE if self._restarting and not self._asked else None
        try:
            happened = self._events.get(timeout=patience)
        except queue.Empty:
            assert self._child is not None
            self._child.press(self._child.pressed + 1)
            return None
        match happened:
            case _Watching(error):
                if error is not None:
                    raise LongshoreError(
                        f"cannot watch {' and '.join(self._directories)}: {error}",
                        hint="A smaller directory may do, or more watches: sysctl fs.inotify.max_user_watches.",
                    )
                self._start()
            case _Changed(paths):
                self._change(paths)
            case _Signalled():
                self._asked += 1
                if self._child is None:
                    return self._status
                self._child.press(self._asked)
            case _Started():
                if not self._announced:
                    self._announced = True
                    self._logger.info("watching Python files in %s", " and ".join(self._directories))
            case _Ended(_, status):
                return self._end(status)
        return None

    def _start(self) -> None:
        self._restarting = False
        self._child = _Child(self._command, self._listeners, self._events)

    def _change(self, paths: list[str]) -> None:
        if self._asked:
            return
        if not self._restarting:
            shown = [os.path.relpath(path) for path in paths]
            self._logger.info("%s changed: starting anew", " and ".join(shown[:3]) + ", ..." * (len(shown) > 3))
        if self._child is None:
            self._start()
        else:
            self._restarting = True
            self._child.press(1)

    def _end(self, status: int) -> int | None:
        self._child = None
        self._status = status
        if self._asked:
            # It may have been asked before it could listen to signals; then there was nothing to drain.
            return 0 if status in (0, -signal.SIGTERM) else FAILURE
        if self._restarting:
            self._start()
        elif status == 0:
            # Its own code, or somebody else's signal, has ended it in order.
            return 0
        else:
            how = f"ended by {signal.Signals(-status).name}" if status < 0 else "not serving"
            self._logger.warning("%s: the next change of a Python file starts it again, Ctrl-C ends this", how)
        return None


class _Child:
    """One server in a process of its own, and the thread that waits for it."""

    def __init__(
        self, command: list[str], listeners: list[tuple[str, Listener]], events: queue.SimpleQueue[Any]
    ) -> None:
        self.pressed = 0
        self._channel, theirs = socket.socketpair()
        descriptors = [listener.socket.fileno() for _, listener in listeners]
        with theirs, _blocked(signal.SIGINT):
            self._process = subprocess.Popen(
                command,
                # A cached .pyc is told from its source by size and whole seconds, which an edit may leave as they were.
                env=os.environ | {VARIABLE: describe(listeners, theirs), "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=[*descriptors, theirs.fileno()],
            )
        threading.Thread(target=self._wait, args=(events,), name="longshore-reload-wait", daemon=True).start()

    def _wait(self, events: queue.SimpleQueue[Any]) -> None:
        with self._channel:
            if self._channel.recv(1):
                events.put(_Started(self))
            events.put(_Ended(self, self._process.wait()))

    def press(self, level: int) -> None:
        """Ask it to end: at level 1 to drain, at 2 to stop at once; 3 kills it.  Each is asked once."""
        while self.pressed < min(level, len(_PRESSURE)):
            self._process.send_signal(_PRESSURE[self.pressed])
            self.pressed += 1

    def kill(self) -> None:
        """End it whatever it does."""
        self.press(len(_PRESSURE))
        self._process.wait()


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Hold a signal back here, and in the process that is started meanwhile until it is ready to ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _signals(events: queue.SimpleQueue[Any]) -> Iterator[None]:
    """Put SIGTERM and SIGINT into the queue."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda got, _frame: events.put(_Signalled(got))) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watch(directories: list[str], events: queue.SimpleQueue[Any]) -> Iterator[None]:
    """Put each change of a Python file into the queue; first, whether it can be watched at all."""
    end = _End(events)
    thread = threading.Thread(target=_watch_for, args=(directories, events, end), name="longshore-reload-watch")
    thread.start()
    try:
        yield
    finally:
        end.asked = True
        thread.join()


def _watch_for(directories: list[str], events: queue.SimpleQueue[Any], end: _End) -> None:
    from watchfiles import PythonFilter, watch

    try:
        for changes in watch(*directories, watch_filter=PythonFilter(), stop_event=end):
            events.put(_Changed(sorted({path for _, path in changes})))
    except Exception as error:
        events.put(_Watching(error))


class _End:
    """What the watcher asks between its looks whether it is to end; the first question says that it watches."""

    def __init__(self, events: queue.SimpleQueue[Any]) -> None:
        self.asked = False
        self._events: queue.SimpleQueue[Any] | None = events

    def is_set(self) -> bool:
        events, self._events = self._events, None
        if events is not None:
            events.put(_Watching(None))
        return self.asked
