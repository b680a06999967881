"""EasyNetwork: its asynchronous TCP server with a serializer of lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from easynetwork.protocol import StreamProtocol
from easynetwork.serializers import StringLineSerializer
from easynetwork.servers import AsyncTCPNetworkServer
from easynetwork.servers.handlers import AsyncStreamClient, AsyncStreamRequestHandler

from listening import BACKLOG, announce, parse


class Lines(AsyncStreamRequestHandler[str, str]):
    """Answers each line with itself."""

    async def handle(self, client: AsyncStreamClient[str]) -> AsyncGenerator[None, str]:
        """One line."""
        line: str = yield
        await client.send_packet(line)


async def main() -> None:
    """Listen, say where, and serve."""
    protocol = StreamProtocol(StringLineSerializer(newline="LF"))
    async with AsyncTCPNetworkServer(*options.address, protocol, Lines(), "asyncio", backlog=BACKLOG) as server:
        ready = asyncio.Event()
        serving = asyncio.create_task(server.serve_forever(is_up_event=ready))
        await ready.wait()
        announce(options, tuple(server.get_addresses()[0])[:2])
        await serving


options = parse()
asyncio.run(main())
