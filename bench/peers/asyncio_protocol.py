"""Protocols of asyncio, with the split into lines written by hand, and with `--uvloop` the same on uvloop.

Written as somebody would who needs speed: the lines that came at once leave in one write.
"""

from __future__ import annotations

import asyncio

from listening import BACKLOG, announce, parse


def answer(line: bytes) -> bytes:
    """What a server would do with a message."""
    return line


class Lines(asyncio.Protocol):
    """Answers each line with itself."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        """Cut off what is complete, and keep the rest."""
        *lines, self.rest = (self.rest + data if self.rest else data).split(b"\n")
        if lines:
            self.transport.write(b"\n".join([answer(line) for line in lines]) + b"\n")

    def pause_writing(self) -> None:
        """Read no further while the peer does not."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self.transport.resume_reading()


class Raw(Lines):
    """Answers what comes with itself."""

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with itself."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        """Send it back."""
        self.transport.sendto(data, address)


class Silence(Datagrams):
    """Takes datagrams."""

    def datagram_received(self, data: bytes, address: tuple) -> None:
        """Do nothing."""


async def main() -> None:
    """Listen, say where, and serve."""
    loop = asyncio.get_running_loop()
    if options.scheme == "udp":
        protocol = Silence if options.behaviour == "ingest" else Datagrams
        transport, _ = await loop.create_datagram_endpoint(protocol, local_addr=options.address)
        announce(options, transport.get_extra_info("sockname"))
        await asyncio.Event().wait()
    protocol = Lines if options.behaviour == "lines" else Raw
    if options.scheme == "unix":
        server = await loop.create_unix_server(protocol, options.path, backlog=BACKLOG)
    else:
        server = await loop.create_server(protocol, *options.address, ssl=options.tls, backlog=BACKLOG)
    announce(options, server.sockets[0].getsockname())
    await server.serve_forever()


options = parse()
if options.uvloop:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
