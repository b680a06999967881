"""The least that Python can do with datagrams: `recvfrom` and `sendto` in a loop."""

from __future__ import annotations

import socket

from listening import CHUNK, announce, parse

options = parse()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(options.address)
    announce(options, server.getsockname())
    if options.behaviour == "ingest":
        while True:
            server.recvfrom(CHUNK)
    while True:
        data, address = server.recvfrom(CHUNK)
        server.sendto(data, address)
