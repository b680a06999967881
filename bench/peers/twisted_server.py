"""Twisted: `LineReceiver` for lines, a `Protocol` for the rest."""

from __future__ import annotations

from twisted.internet import protocol, reactor
from twisted.protocols.basic import LineReceiver

from listening import BACKLOG, announce, parse


class Lines(LineReceiver):
    """Answers each line with itself."""

    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:
        """One line."""
        self.sendLine(line)


class Raw(protocol.Protocol):
    """Answers what comes with itself."""

    def dataReceived(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)


class Datagrams(protocol.DatagramProtocol):
    """Answers each datagram with itself."""

    def datagramReceived(self, datagram: bytes, addr: tuple) -> None:
        """One datagram."""
        self.transport.write(datagram, addr)


options = parse()
if options.scheme == "udp":
    port = reactor.listenUDP(options.port, Datagrams(), interface=options.host, maxPacketSize=65536)
    announce(options, port.socket.getsockname())
else:
    factory = protocol.Factory.forProtocol(Lines if options.behaviour == "lines" else Raw)
    factory.noisy = False
    if options.scheme == "unix":
        port = reactor.listenUNIX(options.path, factory, backlog=BACKLOG)
    else:
        port = reactor.listenTCP(options.port, factory, backlog=BACKLOG, interface=options.host)
    announce(options, port.socket.getsockname())
reactor.run()
