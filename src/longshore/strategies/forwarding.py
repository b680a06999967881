"""The server as handlers in children see it: a copy whose verbs go to the serving process.

The only place that knows which verbs those are on this side; what the serving process does about them stands in
`processes.py`.
"""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import ConfigError, LongshoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ("forwarding",)


class Asker(Protocol):
    """What reaches the serving process."""

    addresses: tuple[str, ...]

    def ask(self, name: str, *args: Any, **named: Any) -> Any:
        """Have it call something, and wait for what that returns."""


def forwarding(facade: Any, child: Asker) -> Any:
    """This process's copy of the server, with verbs that go to the serving process.

    The object itself changes its class, so that what users' subclasses add works on: their methods call verbs too.
    """
    kind = type(facade)
    facade.__class__ = type(kind.__name__, (_Forwarding, kind), {"__module__": kind.__module__})
    facade.__dict__["_child"] = child
    return facade


class _Forwarding:
    """The verbs of a server, for its handlers in children.

    The serving process has the request when a verb returns, so what the handler sends afterwards comes after it.
    """

    _child: Asker

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound URLs."""
        return self._child.addresses

    @property
    def status(self) -> str:
        """As `Server.status`."""
        return self._child.ask("status")  # type: ignore[no-any-return]

    @property
    def connections(self) -> tuple[_Fellow, ...]:
        """The connections that are open now, as far as this process can do something with them."""
        return tuple(_Fellow(self, *each) for each in self._child.ask("connections"))

    @property
    def pool(self) -> _ForwardedPool | None:
        """The serving process's pool: a child has none of its own."""
        return None if self.__dict__.get("pool") is None else _ForwardedPool(self._child)

    def statistics(self) -> Any:
        """As `Server.statistics`."""
        return self._child.ask("statistics")

    def broadcast(self, message: Any, to: Iterable[Any] | None = None, slow: str = "drop") -> int:
        """As `Server.broadcast`."""
        numbers = None if to is None else [connection.id for connection in to]
        return self._child.ask("broadcast", message, numbers, slow)  # type: ignore[no-any-return]

    def stop(self) -> None:
        """As `Server.stop`: on a handler's thread it requests and returns."""
        self._child.ask("stop")

    def drain(self, timeout: float | None = None) -> None:
        """As `Server.drain`, likewise."""
        self._child.ask("drain", timeout)

    def pause(self) -> None:
        """As `Server.pause`."""
        self._child.ask("pause")

    def resume(self) -> None:
        """As `Server.resume`."""
        self._child.ask("resume")

    def reconfigure(self, **options: Any) -> None:
        """As `Server.reconfigure`."""
        self._child.ask("reconfigure", **options)

    def wait_stopped(self) -> None:
        """As `Server.wait_stopped`: inside of a handler it returns at once."""

    def start(self) -> Any:
        """As `Server.start`: it has started."""
        return self

    serve_forever = wait_stopped

    def subscribe(self, observer: Any) -> Any:
        """Events happen in the serving process."""
        raise _elsewhere("subscribe()")

    def every(self, seconds: float, function: Any) -> Any:
        """So does what is repeated."""
        raise _elsewhere("every()")


class _ForwardedPool(concurrent.futures.Executor):
    """The serving process's pool, as far as an executor goes; to cancel a task that runs ends the waiting only."""

    def __init__(self, child: Asker) -> None:
        self._child = child

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Have the serving process submit it, with its `timeout` if there is one."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def ask() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._child.ask("submit", fn, *args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=ask, name="longshore-pool-call", daemon=True).start()
        return future


def _elsewhere(what: str) -> LongshoreError:
    return ConfigError(
        f"{what} was called in a child process, which ends with its connection",
        hint="Call it before the server starts.",
    )


class _Fellow:
    """Another connection of the server, which this process can send to."""

    def __init__(self, server: Any, id: int, peer: str, local: str) -> None:
        self.server = server
        self.id = id
        self.peer = peer
        self.local = local

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.local} with {self.peer}>"

    def send(self, message: Any) -> None:
        """Send one message, unless the peer does not keep up."""
        self.server.broadcast(message, to=[self])
