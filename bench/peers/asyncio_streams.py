"""Streams of asyncio, and with `--uvloop` the same on uvloop."""

from __future__ import annotations

import asyncio

from listening import BACKLOG, CHUNK, announce, parse


async def lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with itself."""
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer what comes with itself."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    """Listen, say where, and serve."""
    handler = lines if options.behaviour == "lines" else raw
    if options.scheme == "unix":
        server = await asyncio.start_unix_server(handler, options.path, backlog=BACKLOG)
    else:
        server = await asyncio.start_server(handler, *options.address, ssl=options.tls, backlog=BACKLOG)
    announce(options, server.sockets[0].getsockname())
    await server.serve_forever()


options = parse()
if options.uvloop:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
