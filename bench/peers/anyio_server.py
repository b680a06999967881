"""AnyIO, on asyncio: its buffered stream for lines."""

from __future__ import annotations

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from listening import BACKLOG, CHUNK, announce, parse


async def lines(stream: SocketStream) -> None:
    """Answer each line with itself."""
    async with stream:
        source = BufferedByteReceiveStream(stream)
        try:
            while True:
                await stream.send(await source.receive_until(b"\n", CHUNK) + b"\n")
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            pass


async def raw(stream: SocketStream) -> None:
    """Answer what comes with itself."""
    async with stream:
        try:
            while True:
                await stream.send(await stream.receive(CHUNK))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass


async def main() -> None:
    """Listen, say where, and serve."""
    if options.scheme == "unix":
        listener = await anyio.create_unix_listener(options.path, backlog=BACKLOG)
    else:
        multi = await anyio.create_tcp_listener(
            local_host=options.host, local_port=options.port, backlog=BACKLOG, reuse_port=False
        )
        listener = multi.listeners[0]
    announce(options, listener.extra(SocketAttribute.raw_socket).getsockname())
    await listener.serve(lines if options.behaviour == "lines" else raw)


options = parse()
anyio.run(main)
