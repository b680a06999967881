"""Running a class of the standard library's manner over a connection of ours.

The only place that takes the steps of `BaseRequestHandler.__init__` itself: called as a class, it would have its
handler run inside of the interpreter's frames for making objects, which are copied at every switch of a greenlet, and
write through a file that makes a memoryview of each line.  It knows no strategy.
"""

from __future__ import annotations

from typing import Any

__all__ = ("run_class",)


def run_class(kind: Any, request: Any, client_address: Any, server: Any) -> None:
    """As `kind(request, client_address, server)`; a class that makes itself in a way of its own is just called."""
    # Light: who has such a class has imported it.
    from socketserver import BaseRequestHandler

    makes_itself = getattr(kind, "__init__", None) is not getattr(BaseRequestHandler, "__init__")  # noqa: B009
    if makes_itself or getattr(kind, "__new__", None) is not object.__new__ or type(kind) is not type:
        kind(request, client_address, server)
        return
    handler = object.__new__(kind)
    handler.request = request
    handler.client_address = client_address
    handler.server = server
    handler.setup()
    try:
        # By its type alone: a name for the file would keep it as long as the handler runs.
        written = type(getattr(handler, "wfile", None))
        if written.__name__ == "_SocketWriter" and written.__module__ == "socketserver":
            handler.wfile = handler.connection.makefile("wb", 0)
        handler.handle()
    finally:
        handler.finish()
