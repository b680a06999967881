"""The standard library's `socketserver`: a thread per connection; one thread for datagrams."""

from __future__ import annotations

import socketserver

from listening import BACKLOG, CHUNK, announce, parse


class Lines(socketserver.StreamRequestHandler):
    """Answers each line with itself."""

    def handle(self) -> None:
        """Until the peer ends."""
        for line in self.rfile:
            self.wfile.write(line)


class Raw(socketserver.BaseRequestHandler):
    """Answers what comes with itself."""

    def handle(self) -> None:
        """Until the peer ends."""
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


class Datagrams(socketserver.BaseRequestHandler):
    """Answers each datagram with itself."""

    def handle(self) -> None:
        """One datagram."""
        data, socket = self.request
        socket.sendto(data, self.client_address)


class Silence(socketserver.BaseRequestHandler):
    """Takes datagrams."""

    def handle(self) -> None:
        """One datagram."""


options = parse()
kinds = {
    "tcp": socketserver.ThreadingTCPServer,
    "unix": socketserver.ThreadingUnixStreamServer,
    "udp": socketserver.UDPServer,
}
if options.scheme == "udp":
    handler = Silence if options.behaviour == "ingest" else Datagrams
else:
    handler = Lines if options.behaviour == "lines" else Raw
kind = kinds[options.scheme]
kind.request_queue_size = BACKLOG
kind.daemon_threads = True
kind.block_on_close = False
with kind(options.path if options.scheme == "unix" else options.address, handler) as server:
    announce(options, server.socket.getsockname())
    server.serve_forever()
