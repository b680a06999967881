"""`limits` of a `socketserver`: what it says of single peers holds there too."""

from __future__ import annotations

import threading

import pytest

from longshore import Limits, socketserver
from longshore.testing import Client


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


@pytest.fixture(params=[socketserver.ThreadingTCPServer, socketserver.GreenTCPServer])
def limited(request):
    started = []

    def start(**limits):
        class Limited(request.param):
            pass

        Limited.limits = Limits(**limits)
        server = Limited(("127.0.0.1", 0), Echo)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        started.append((server, thread))
        return "tcp://127.0.0.1:%d" % server.server_address[1]  # noqa: UP031

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_peer_has_no_more_than_its_share(limited):
    url = limited(max_connections_per_peer=1, farewell=b"enough\n")
    with Client(url) as first, Client(url) as second, Client(url, source="127.0.0.9") as other:
        assert first.request(b"1") == b"1"
        assert second.recv_until_closed() == b"enough\n"
        assert other.request(b"2") == b"2"


def test_who_is_denied_stays_out(limited):
    url = limited(deny=("127.0.0.9",))
    with Client(url, source="127.0.0.9") as denied, Client(url) as good:
        assert denied.recv_until_closed() == b""
        assert good.request(b"hello") == b"hello"


def test_a_peer_that_rushes_is_turned_away(limited):
    url = limited(connection_rate=1)
    with Client(url) as first, Client(url) as second:
        assert first.request(b"1") == b"1"
        assert second.recv_until_closed() == b""
