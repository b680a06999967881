"""A stream that takes up TLS goes from the native reactor to the portable one, with every byte that was on its way."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest

from longshore import Limits, Lines, Timeouts, sleep, spawn
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


class Bars(Lines):
    """A framing of one's own, which is not for the native reactor."""


def starting_over(message: bytes, connection: Any) -> bytes:
    if message == b"over":
        connection.framing = Bars()
    return message


def on_the_reactor(server: Any, call: Any) -> Any:
    """What `call()` says on the reactor's thread, once what is queued there is done."""
    said: list[Any] = []
    for each in (lambda: None, lambda: said.append(call())):
        done = threading.Event()
        server.reactor.post(lambda each=each, done=done: (each(), done.set()))
        assert done.wait(10)
    return said[0]


def test_whoever_is_held_is_held_as_well_when_it_speaks_another_framing(reactor, longshore_server, longshore_clock):
    server = longshore_server(starting_over, strategy="reactor", framing=Lines())
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
        (connection,) = server.connections
        session = connection._link.session
        on_the_reactor(server, lambda: session.hold(True))
        on_the_reactor(server, lambda: setattr(connection, "framing", Bars()))
        client.send(b"wait\n")
        assert on_the_reactor(server, lambda: session.traffic()[0]) == len(b"hello\n")
        on_the_reactor(server, lambda: session.hold(False))
        assert client.recv_line() == b"wait\n"


def test_a_lifetime_does_not_begin_anew_with_another_framing(reactor, longshore_server, longshore_clock):
    server = longshore_server(starting_over, strategy="reactor", framing=Lines(), timeouts=Timeouts(lifetime=100))
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
        longshore_clock.advance(60)
        assert client.request(b"over") == b"over"
        assert client.request(b"hello") == b"hello"
        longshore_clock.advance(41)
        assert client.recv_until_closed() == b""
        closed = server.events.wait_for(ConnectionClosed)
    assert "lifetime=100" in str(closed.error)


def test_whoever_waits_for_a_message_gets_it_though_somebody_else_changes_the_framing(reactor, longshore_server):
    def handler(connection: Any) -> None:
        def change() -> None:
            # The handler waits by now.
            sleep(0)
            connection.framing = Bars()
            connection.send(b"changed")

        spawn(change)
        connection.send(b"got " + connection.receive())

    server = longshore_server(handler, strategy="green", framing=Lines())
    with Client(server.url) as client:
        assert client.recv_line() == b"changed\n"
        assert client.request(b"hello") == b"got hello"
