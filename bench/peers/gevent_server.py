"""gevent: a greenlet per connection over blocking calls."""

from __future__ import annotations

from gevent import socket, ssl
from gevent.server import DatagramServer, StreamServer

from listening import BACKLOG, CHUNK, announce, parse


def lines(connection: socket.socket, _address: object) -> None:
    """Answer each line with itself."""
    with connection.makefile("rb") as source:
        for line in source:
            connection.sendall(line)


def raw(connection: socket.socket, _address: object) -> None:
    """Answer what comes with itself."""
    while data := connection.recv(CHUNK):
        connection.sendall(data)


class Datagrams(DatagramServer):
    """Answers each datagram with itself."""

    def handle(self, data: bytes, address: object) -> None:
        """One datagram."""
        self.socket.sendto(data, address)


options = parse()
if options.scheme == "udp":
    server = Datagrams(options.address)
    server.init_socket()
else:
    if options.scheme == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.path)
        listener.listen(BACKLOG)
    tls = {}
    if options.certificate:
        # The standard library's context would wait for one peer and let all others wait as well.
        tls["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls["ssl_context"].load_cert_chain(options.certificate)
    place = listener if options.scheme == "unix" else options.address
    server = StreamServer(place, lines if options.behaviour == "lines" else raw, **tls)
    server.backlog = BACKLOG
server.start()
announce(options, server.socket.getsockname())
server.serve_forever()
