"""The control socket: JSON lines that command a running server, from its own user only.

The only place that lets anybody command.  A request is `{"verb": "status", ...}`, its answer
`{"ok": true, "result": ...}` or `{"ok": false, "error": "...", "hint": "..."}`; an `id` in a request stands in its
answer too.  After `trace`, what happens comes as lines with `trace` in them.  The socket's file has mode 0600, and the
kernel's word on who has connected counts as well (SO_PEERCRED, unix(7)), as files can be handed around.

What verbs do is the plane's affair.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError, LongshoreError
from longshore.framing import Json, Lines
from longshore.handlers import MessageHandler
from longshore.owners import credentials_of

if TYPE_CHECKING:
    from longshore.control.plane import Plane

__all__ = ("FRAMING", "Commander", "default_path")

#: What both sides of the control socket cut by; a list of connections is long.
FRAMING = Json(Lines(max_size=1 << 26))


def default_path(environ: Any = os.environ) -> str:
    """Where a control socket is looked for, and made with `--control default`: in the user's own runtime directory.

    Raises:
        ConfigError: the system names none.
    """
    directory = environ.get("XDG_RUNTIME_DIR", "") or environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not directory:
        raise ConfigError(
            "there is no default place for a control socket: XDG_RUNTIME_DIR is not set",
            hint="Name one: --control /run/app/control.sock",
        )
    return os.path.join(directory, "longshore.sock")


class Commander(MessageHandler):
    """One connection to the control socket; its `server.state` is the plane."""

    framing = FRAMING

    async def connected(self) -> None:
        """Send strangers away."""
        self.traces: set[int] = set()
        told = credentials_of(self.connection)
        # Where the system does not tell, the mode of the file has to do.
        if told is not None and told[1] not in (0, os.geteuid()):
            await self.connection.send(
                {"ok": False, "error": f"user {told[1]} may not command this server", "hint": "Be its user, or root."}
            )
            self.connection.close()

    async def message(self, message: Any) -> dict[str, Any]:
        """Obey."""
        plane: Plane = self.server.state
        known = {"id": message["id"]} if isinstance(message, dict) and "id" in message else {}
        try:
            if not isinstance(message, dict):
                raise ConfigError("a request is a JSON object with a verb")
            arguments = {name: value for name, value in message.items() if name not in ("id", "verb")}
            result = await plane.obey(str(message.get("verb", "")), arguments, self)
        except LongshoreError as error:
            return known | {"ok": False, "error": str(error), "hint": error.hint}
        return known | {"ok": True, "result": result}

    def tell(self, message: dict[str, Any]) -> bool:
        """Send what was not asked for now; False if the other side does not keep up."""
        try:
            self.connection.send(message)
        except (LongshoreError, OSError):
            return False
        return True

    async def disconnected(self, error: BaseException | None) -> None:
        """Nobody listens to its traces any more."""
        plane: Plane = self.server.state
        for trace in tuple(self.traces):
            await plane.end_trace(trace)
