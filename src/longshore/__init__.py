"""Longshore: the socket server framework. You write a handler, Longshore serves it.

Public names are imported when they are first used, so that a program pays only for what it needs: the
command line starts fast, and asyncio or ssl are not loaded for a server without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longshore.errors import __all__ as _errors

if TYPE_CHECKING:
    from longshore.client import Retry as Retry
    from longshore.client import connect as connect
    from longshore.client import open_connection as open_connection
    from longshore.concurrency import asleep as asleep
    from longshore.concurrency import local as local
    from longshore.concurrency import sleep as sleep
    from longshore.concurrency import spawn as spawn
    from longshore.concurrency import to_thread as to_thread
    from longshore.config import TLS as TLS
    from longshore.config import Limits as Limits
    from longshore.config import Proxy as Proxy
    from longshore.config import Timeouts as Timeouts
    from longshore.config import Workers as Workers
    from longshore.connection import AsyncConnection as AsyncConnection
    from longshore.connection import Connection as Connection
    from longshore.errors import *  # noqa: F403
    from longshore.framing import Delimited as Delimited
    from longshore.framing import FixedSize as FixedSize
    from longshore.framing import Json as Json
    from longshore.framing import LengthPrefixed as LengthPrefixed
    from longshore.framing import Lines as Lines
    from longshore.framing import MsgPack as MsgPack
    from longshore.framing import Netstring as Netstring
    from longshore.framing import Raw as Raw
    from longshore.handlers import MessageHandler as MessageHandler
    from longshore.handlers import messages as messages
    from longshore.handlers import stream as stream
    from longshore.reports import DrainReport as DrainReport
    from longshore.server import Server as Server
    from longshore.serving import serve as serve
    from longshore.settings import Config as Config

__version__ = "0.1.0"

_HOME = {
    "client": ("Retry", "connect", "open_connection"),
    "concurrency": ("asleep", "local", "sleep", "spawn", "to_thread"),
    "config": ("TLS", "Limits", "Proxy", "Timeouts", "Workers"),
    "connection": ("AsyncConnection", "Connection"),
    "errors": _errors,
    "framing": ("Delimited", "FixedSize", "Json", "LengthPrefixed", "Lines", "MsgPack", "Netstring", "Raw"),
    "handlers": ("MessageHandler", "messages", "stream"),
    "reports": ("DrainReport",),
    "server": ("Server",),
    "serving": ("serve",),
    "settings": ("Config",),
}
#: Modules that are names of their own, as one says `longshore.shared.Lock`.
_MODULES = ("events", "framing", "shared", "socketserver", "testing")
_HOME_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = tuple(sorted(_HOME_OF))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"longshore.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"longshore.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
