"""A stream that takes up TLS goes from the native reactor to the portable one, with every byte that was on its way."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from longshore import Limits, Lines
from longshore.events import ConnectionClosed, HandlerFailed
from longshore.testing import Client
from longshore.tls import TLSError


class Caller:
    """The client's half of TLS over bytes, so that a test says what is sent together with what."""

    def __init__(self, context: ssl.SSLContext, client: Client) -> None:
        self._client = client
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def hello(self) -> bytes:
        """The first flight."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def _until_done(self, attempt: Any, *arguments: Any) -> Any:
        while True:
            try:
                done = attempt(*arguments)
            except ssl.SSLWantReadError:
                self._client.send(self._outgoing.read())
                data = self._client.recv()
                if not data:
                    raise EOFError("the server has gone") from None
                self._incoming.write(data)
            else:
                self._client.send(self._outgoing.read())
                return done

    def finish(self) -> None:
        self._until_done(self._tls.do_handshake)

    def request(self, line: bytes) -> bytes:
        self._tls.write(line + b"\n")
        found = b""
        while not found.endswith(b"\n"):
            found += self._until_done(self._tls.read, 65536)
        return found[:-1]


def upgrading(tls: Any, seen: list[bytes], answer: bytes) -> Any:
    """A message handler that answers `answer` to all but STARTTLS."""

    def handler(message: bytes, connection: Any) -> bytes | None:
        seen.append(message)
        if message == b"STARTTLS":
            connection.send(b"go ahead")
            connection.start_tls(tls)
            return None
        return answer + message

    return handler


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 100_000], ids=["little", "much"])
@pytest.mark.parametrize("cut", [None, 1], ids=["together", "byte by byte"])
def test_no_byte_is_lost_before_in_or_after_the_upgrade(reactor, longshore_server, certificates, size, cut):
    seen: list[bytes] = []
    answer = b"x" * size
    handler = upgrading(certificates.server_tls(), seen, answer)
    limits = Limits(max_pending_bytes=1 << 26)
    server = longshore_server(handler, strategy="reactor", framing=Lines(max_size=1 << 20), limits=limits)
    asked = [b"%d" % number for number in range(40)]
    with Client(server.url) as client:
        caller = Caller(certificates.client_context(), client)
        # The first flight comes with the command, so some of it is in the native stream's buffer, which also has
        # answers that the peer has not taken yet.
        data = b"".join(line + b"\n" for line in (*asked, b"STARTTLS")) + caller.hello()
        client.split(data, [len(data) if cut is None else cut])
        assert [client.recv_line() for _ in asked] == [answer + line + b"\n" for line in asked]
        assert client.recv_line() == b"go ahead\n"
        caller.finish()
        assert caller.request(b"hello") == answer + b"hello"
        assert caller.request(b"again") == answer + b"again"
        (connection,) = server.connections
        assert connection.messages == len(seen)
    assert seen == [*asked, b"STARTTLS", b"hello", b"again"]
    closed = server.events.wait_for(ConnectionClosed)
    assert (closed.messages, closed.unsent) == (len(seen), 0)


@pytest.mark.parametrize("at_once", [True, False], ids=["with the command", "after the answer"])
def test_plain_text_in_the_place_of_a_handshake_reaches_no_handler(reactor, longshore_server, certificates, at_once):
    seen: list[bytes] = []
    handler = upgrading(certificates.server_tls(), seen, b"")
    server = longshore_server(handler, strategy="reactor", framing=Lines())
    with Client(server.url) as client:
        client.send(b"one\nSTARTTLS\n" + b"MAIL FROM:<forger>\n" * at_once)
        assert (client.recv_line(), client.recv_line()) == (b"one\n", b"go ahead\n")
        if not at_once:
            client.send(b"MAIL FROM:<forger>\n")
        # Whoever forgot what was slipped in would go on with the handshake that follows it.
        caller = Caller(certificates.client_context(), client)
        with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
            client.send(caller.hello())
            caller.finish()
        closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause == "handshake"
    assert isinstance(closed.error, TLSError)
    assert server.events.of(HandlerFailed) == []
    assert seen == [b"one", b"STARTTLS"]
