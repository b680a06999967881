"""What the peers' programs share: their command line, and the first line that says where they listen.

Every program of the benchmark is started as `PROGRAM --behaviour lines|raw|ingest [--certificate PEM] URL`, prints
the URL that it has bound, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ("BACKLOG", "CHUNK", "Options", "announce", "parse")

#: Clients come by the thousand at once; the defaults of 5 and 100 would measure the kernel's patience.
BACKLOG = 4096
#: How much one read takes, in bytes.
CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Options:
    """What a server is asked to be."""

    scheme: str
    host: str
    port: int
    path: str
    behaviour: str
    certificate: str | None
    tls: ssl.SSLContext | None
    uvloop: bool

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as `socket` wants them."""
        return self.host, self.port


def parse() -> Options:
    """The command line of a peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", choices=("lines", "raw", "ingest"), default="lines")
    parser.add_argument("--certificate", help="a PEM file with key and certificate, for tls://")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop, where the program runs on asyncio")
    parser.add_argument("url")
    arguments = parser.parse_args()
    url = urlsplit(arguments.url)
    context = None
    if arguments.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.certificate)
    return Options(
        scheme=url.scheme,
        host=url.hostname or "",
        port=url.port or 0,
        path=url.path,
        behaviour=arguments.behaviour,
        certificate=arguments.certificate,
        tls=context,
        uvloop=arguments.uvloop,
    )


def announce(options: Options, name: object) -> None:
    """Say where the server listens; `name` is what `getsockname` gives."""
    place = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else options.path
    print(f"{options.scheme}://{place}", flush=True)
