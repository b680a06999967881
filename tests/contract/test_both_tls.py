"""TLS on the native reactor and on the portable one: the same ciphertext, cuts and faults tell the same story."""

from __future__ import annotations

import contextlib
import random
import ssl
from typing import Any

import pytest

from longshore import TLS, Lines, MessageHandler, Timeouts
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed, ServerStarted
from longshore.framing import Json
from longshore.testing import Client, Clock, running_server
from longshore.tls import Session
from tests.contract.test_both_reactors import WEIGHTS, WORDS, Conversing, Reading, settle, settle_and_reset

pytest.importorskip("longshore.reactor.native", reason="the native reactor was not built", exc_type=ImportError)

#: A record of the right form that no key has sealed.
FORGED = b"\x17\x03\x03\x00\x20" + bytes(32)


class Speaker:
    """The client's half of TLS over bytes, so that a test cuts them where it likes."""

    def __init__(self, context: ssl.SSLContext, client: Client, first: bytes = b"") -> None:
        """Make the handshake, and send `first` together with the last of it."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        #: Bytes that were sent.
        self.count = 0
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send(client)
                self._incoming.write(client.recv())
            else:
                self._tls.write(first)
                self._send(client)
                return

    def _send(self, client: Client) -> None:
        data = self._outgoing.read()
        client.send(data)
        self.count += len(data)

    def seal(self, piece: bytes) -> bytes:
        """One record of its own."""
        self._tls.write(piece)
        return self._outgoing.read()

    def farewell(self) -> bytes:
        """That we send no more."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def open(self, sealed: bytes) -> tuple[bytes, bool | str]:
        """What was said, and whether it was ended in order, or the alert that ended it."""
        self._incoming.write(sealed)
        said = b""
        while True:
            try:
                data = self._tls.read(65536)
            except ssl.SSLWantReadError:
                return said, False
            except ssl.SSLZeroReturnError:
                return said, True
            except ssl.SSLError as alert:
                return said, alert.reason
            if not data:
                return said, True
            said += data


def story(reactor: str, seed: int, certificates: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a client and the server's observers see of one random conversation over TLS."""
    monkeypatch.setenv("LONGSHORE_REACTOR", reactor)
    chance = random.Random(seed)
    pieces = [
        chance.choices(WORDS, WEIGHTS)[0] + (b"\n" if chance.random() < 0.98 else b"long" * 40)
        for _ in range(chance.randint(1, 30))
    ]
    context = certificates.client_context()
    context.maximum_version = chance.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
    ending = chance.choice(("in order", "truncated", "silence", "reset", "forged"))
    clock = Clock()
    options: Any = {"framing": Lines(max_size=100), "strategy": "reactor", "timeouts": Timeouts(idle=50)}
    tls = certificates.server_tls()
    with running_server(Conversing, "tls://127.0.0.1:0", clock=clock, tls=tls, **options) as server:
        assert server.events.wait_for(ServerStarted).reactor == reactor
        with Client(server.url.replace("tls://", "tcp://")) as client:
            speaker = Speaker(context, client)
            server.events.wait_for(ConnectionOpened)
            data = b"".join(map(speaker.seal, pieces))
            farewell = speaker.farewell() if ending == "in order" and chance.random() < 0.8 else b""
            try:
                client.split(data, [chance.randint(1, 200) for _ in range(len(data))])
                client.send(farewell)
                if ending in ("in order", "truncated"):
                    client.half_close()
            except OSError:
                # It has ended already: what it was told before stands.
                pass
            count = speaker.count + len(data)
            if ending == "reset":
                answer = settle_and_reset(server, client, count)
            else:
                reader = Reading(client)
                if ending in ("silence", "forged"):
                    settle(server, count)
                if ending == "forged":
                    with contextlib.suppress(OSError):
                        client.send(FORGED)
                    settle(server, count + len(FORGED))
                clock.advance(60 if ending in ("silence", "forged") else 0)
                answer = reader.wait()
        closed = server.events.wait_for(ConnectionClosed)
        failures = [repr(failure.error) for failure in server.events.of(HandlerFailed)]
    error = None if closed.error is None else str(closed.error).replace(closed.peer, "the peer")
    said = (answer, None) if answer == b"reset" else speaker.open(answer)
    return ending, said, closed.cause, type(closed.error), error, closed.messages, failures


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_a_random_conversation_over_tls_is_the_same_on_both(seed, certificates, monkeypatch):
    native = story("native", seed, certificates, monkeypatch)
    assert native == story("portable", seed, certificates, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("faulty", ["native", "portable"])
def test_a_planted_fault_on_either_side_is_found(faulty, certificates, monkeypatch):
    receive = Session.receive

    def hears_wrong(self: Session, ciphertext: bytes) -> tuple[bytes, bool, bytes]:
        plain, ended, owed = receive(self, ciphertext)
        return plain.replace(b"h", b"j"), ended, owed

    def told(reactor: str, seed: int) -> Any:
        with monkeypatch.context() as patch:
            if reactor == faulty:
                patch.setattr(Session, "receive", hears_wrong)
            return story(reactor, seed, certificates, patch)

    assert any(told("native", seed) != told("portable", seed) for seed in range(8))


@pytest.mark.parametrize("at_once", [True, False], ids=["in the handshake", "after it"])
def test_a_stream_over_tls_that_takes_up_a_framing_of_ones_own_goes_on_portably(at_once, certificates, monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", "native")
    tls = certificates.server_tls()

    def handler(message: Any, connection: Any) -> Any:
        if message == b"STARTTLS":
            connection.send(b"go ahead")
            connection.start_tls(tls)
            if at_once:
                connection.framing = Json()
            return None
        if message == b"json":
            connection.framing = Json()
            return None
        return message

    with running_server(handler, framing=Lines(), strategy="reactor") as server, Client(server.url) as client:
        assert client.request(b"STARTTLS") == b"go ahead"
        client.start_tls(certificates.client_context())
        client.send(b"" if at_once else b"one\njson\n")
        client.send(b'{"a":1}\n')
        assert at_once or client.recv_line() == b"one\n"
        assert client.recv_line().replace(b" ", b"") == b'{"a":1}\n'
        assert client.request(b"[2]") == b"[2]"
    assert server.events.of(HandlerFailed) == []


@pytest.mark.parametrize("name", ["native", "portable"])
def test_what_came_with_the_last_of_the_handshake_is_heard_in_the_framing_that_is_chosen_then(
    name, certificates, monkeypatch
):
    class Choosing(MessageHandler):
        def connected(self) -> None:
            self.connection.framing = Json()

        def message(self, message: Any) -> Any:
            return message

    monkeypatch.setenv("LONGSHORE_REACTOR", name)
    options: Any = {"framing": Lines(), "strategy": "reactor", "tls": certificates.server_tls()}
    with running_server(Choosing, "tls://127.0.0.1:0", **options) as server:
        with Client(server.url.replace("tls://", "tcp://")) as client:
            speaker = Speaker(certificates.client_context(), client, b"[1]\n")
            said = b""
            while not said.endswith(b"\n"):
                said += speaker.open(client.recv())[0]
            assert said == b"[1]\n"


@pytest.mark.parametrize("name", ["native", "portable"])
def test_a_session_that_raises_anything_ends_its_own_connection_only(name, certificates, monkeypatch):
    class Broken(ssl.SSLObject):
        """A user's own."""

        def read(self, *arguments: Any) -> Any:
            found = super().read(*arguments)
            if found == b"break\n":
                raise RuntimeError("broken by hand")
            return found

    monkeypatch.setenv("LONGSHORE_REACTOR", name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.sslobject_class = Broken
    tls = TLS(context=context)
    options: Any = {"framing": Lines(), "strategy": "reactor", "tls": tls}
    with running_server(lambda message, _: message, "tls://127.0.0.1:0", **options) as server:
        trusting = certificates.client_context()
        with Client(server.url, tls=trusting) as one, Client(server.url, tls=trusting) as two:
            assert one.request(b"hello") == b"hello"
            one.send(b"break\n")
            assert one.recv_until_closed() == b""
            closed = server.events.wait_for(ConnectionClosed)
            assert (closed.cause, str(closed.error)) == ("error", "TLS failed: broken by hand")
            assert two.request(b"still here") == b"still here"
