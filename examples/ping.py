"""Pings 127.0.0.1, or the host named: over a raw socket each packet is a message. Needs CAP_NET_RAW, as root has it."""

import struct
import sys

from longshore import AddressError, ReadTimeout, Server, connect

REPLY, REQUEST = 0, 8  # RFC 792
NAMES = {REPLY: "echo reply", REQUEST: "echo request"}


def request(number):  # type, code, checksum, identifier, sequence number
    return struct.pack("!BBHHH", REQUEST, 0, ~((REQUEST << 8) + number) & 0xFFFF, 0, number)


def watch(packet, connection):
    sys.stdout.write(f"the server sees: {NAMES.get(packet[0], packet[0])} from {connection.peer}\n")


if __name__ == "__main__":
    host = (*sys.argv[1:], "127.0.0.1")[0]
    try:
        with Server(watch, "raw://?protocol=icmp") as server, connect(f"raw://{host}?protocol=icmp", timeout=2) as peer:
            for number in (1, 2, 3):
                peer.send(request(number))
                next(packet for packet in peer if packet[0] == REPLY)
                sys.stdout.write(f"{host} answers: {number}\n")
            server.drain()
    except (AddressError, ReadTimeout) as error:
        sys.exit(f"{error} {error.hint}")
