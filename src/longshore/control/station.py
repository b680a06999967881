"""What `metrics=` and `control=` of `serve` become: bound doors, and the control process that is to stand behind them.

The only place that binds them.  They are bound before anything is forked: what cannot be bound fails the start, in the
words of an address, and a control process that has to be started anew finds its doors as they were.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from longshore.addresses import parse
from longshore.control import metrics as words
from longshore.control.commands import default_path
from longshore.errors import ConfigError
from longshore.events import ControlOpened
from longshore.listeners import bind
from longshore.supervisor.liaison import Control

if TYPE_CHECKING:
    import socket
    from typing import Any

    from longshore.listeners import Listener
    from longshore.supervisor.liaison import Liaison
    from longshore.supervisor.meter import Meter

__all__ = ("Station",)


class Station:
    """The doors of one server's control process, until `close`; of the process that binds them only.

    Args:
        metrics: an address for `/metrics`, `/ready` and `/live`: `http://127.0.0.1:9100`, or any URL of a stream.
        control: the path of a control socket, or "default" for the one where `longshore ctl` looks.
        version: of Longshore.

    Raises:
        ConfigError: no such address, or the metrics extra is not installed.
        AddressError: one cannot be bound.
    """

    def __init__(self, metrics: str | None, control: str | None, version: str = "") -> None:
        self.pages: list[Listener] = []
        self.doors: list[Listener] = []
        try:
            if metrics is not None:
                words.require()
                self.pages = bind(_address(metrics))
            if control is not None:
                path = default_path() if control == "default" else control.removeprefix("unix://")
                # Nobody but its user may even connect.
                self.doors = bind(f"unix://{os.path.abspath(path)}?mode=0600")
        except BaseException:
            self.close()
            raise
        self.control = Control(functools.partial(_serve, self.pages, self.doors, version), _attend)

    @property
    def opened(self) -> ControlOpened:
        """Where it is reached."""
        return ControlOpened(
            metrics=tuple(each.url.replace("tcp://", "http://", 1) + "/metrics" for each in self.pages),
            control=tuple(each.url.removeprefix("unix://") for each in self.doors),
        )

    def close(self) -> None:
        """Give the addresses back."""
        for listener in (*self.pages, *self.doors):
            listener.close()


def _address(metrics: str) -> str:
    """The URL of a stream that `metrics` means: what a browser would be given is taken, too."""
    url = metrics
    if metrics.startswith("http://"):
        place, _, path = metrics.removeprefix("http://").partition("/")
        if path not in ("", "metrics"):
            raise ConfigError(f"metrics={metrics!r}: the pages are /metrics, /ready and /live", hint="Leave it out.")
        url = f"tcp://{place}"
    elif "://" not in metrics:
        raise ConfigError(f"metrics={metrics!r}: is no URL", hint="Such as http://127.0.0.1:9100")
    address = parse(url)
    if address.scheme not in ("tcp", "unix", "fd", "systemd"):
        raise ConfigError(
            f"metrics={metrics!r}: they are served over tcp:// or unix://", hint="Such as http://127.0.0.1:9100"
        )
    return url


def _serve(pages: list[Listener], doors: list[Listener], version: str, liaison: Liaison) -> None:
    """Be the control process."""
    from longshore.control.plane import Plane

    Plane(liaison, pages, doors, version).run()


def _attend(server: Any, sock: socket.socket, meter: Meter | None = None) -> None:
    """Give a worker its agent."""
    from longshore.control.agent import Agent

    Agent(server, sock, meter)
