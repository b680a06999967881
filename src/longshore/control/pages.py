"""`/metrics`, `/ready` and `/live` over HTTP.

The only place that speaks HTTP, and it does so in the standard library's words, on a green server of ours: as many
scrapers and probes as come are served beside each other, and a slow one holds up nobody.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from longshore.concurrency import to_thread
from longshore.config import Limits, Timeouts
from longshore.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.listeners import Listener

__all__ = ("Page", "document", "serve_pages")

Page = tuple[int, str, bytes]
"""A status, a media type and a body."""
#: A scraper sends one short request; what is longer is an attack.
_LIMITS = Limits(max_connections=100, overflow="evict-idle")
_TIMEOUTS = Timeouts(first_byte=10, idle=120, write=10)


class _Request(BaseHTTPRequestHandler):
    """One connection of a scraper or a probe."""

    protocol_version = "HTTP/1.1"
    server_version = "longshore"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with a page, or say which ones there are."""
        pages: dict[str, Callable[[], Page]] = self.server.state  # type: ignore[attr-defined]
        make = pages.get(self.path.partition("?")[0])
        if make is None:
            status, kind, body = 404, "text/plain", f"There are {', '.join(pages)}.\n".encode()
        else:
            # It waits for the workers' answers, on a thread; other requests go on.
            status, kind, body = to_thread(make)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing: a probe comes every few seconds."""


class _Given:
    """A lifespan whose value is what it was made with."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __enter__(self) -> Any:
        return self._value

    def __exit__(self, *_: object) -> None:
        """Nothing was begun."""


def serve_pages(listeners: Sequence[Listener], pages: dict[str, Callable[[], Page]]) -> Server:
    """A server of `pages`, by path, not yet started; each is called on a thread of its own and may wait."""
    return Server(_Request, *listeners, strategy="green", limits=_LIMITS, timeouts=_TIMEOUTS, lifespan=_Given(pages))


def document(status: int, value: Any) -> Page:
    """A JSON page."""
    return status, "application/json", json.dumps(value).encode() + b"\n"
