"""`start_tls` in the middle of a conversation: no byte is lost, and none that came too early is taken for later."""

from __future__ import annotations

import subprocess
import threading

import pytest

from longshore import TLS, Limits, Lines
from longshore.events import ConnectionClosed, HandlerFailed
from longshore.testing import Client


def speaks(certfile, heard):
    """A handler in each form: it turns to TLS where it is told to, and echoes whatever else it hears."""

    def answer(message):
        heard.append(message.decode("latin-1"))
        return {b"EHLO": b"250 STARTTLS", b"QUIT": b"221 bye"}.get(message.split(b" ")[0], b"250 " + message)

    def function(connection):
        connection.send(b"220 ready")
        for message in connection:
            if message == b"STARTTLS":
                connection.send(b"220 go")
                connection.start_tls(TLS(certfile=certfile))
            else:
                connection.send(answer(message))

    def message_function(message, connection):
        if message == b"STARTTLS":
            connection.send(b"220 go")
            connection.start_tls(TLS(certfile=certfile))
            return None
        return answer(message)

    async def async_function(connection):
        await connection.send(b"220 ready")
        async for message in connection:
            if message == b"STARTTLS":
                await connection.send(b"220 go")
                await connection.start_tls(TLS(certfile=certfile))
            else:
                await connection.send(answer(message))

    async def async_message_function(message, connection):
        if message == b"STARTTLS":
            await connection.send(b"220 go")
            await connection.start_tls(TLS(certfile=certfile))
            return None
        return answer(message)

    return {
        ("function", False): function,
        ("message", False): message_function,
        ("function", True): async_function,
        ("message", True): async_message_function,
    }


@pytest.fixture
def upgrading(framed, longshore_server, certificates, notes):
    if framed.kind == "session":
        pytest.skip("hooks come between in the same way as for a function")
    handler = speaks(certificates.server, notes)[framed.kind, framed.is_async]
    return longshore_server(handler, strategy=framed.strategy, framing=Lines())


def greeted(framed, client):
    if framed.kind == "function":
        assert client.recv_line() == b"220 ready\n"


def test_a_conversation_goes_on_over_tls(framed, upgrading, certificates):
    with Client(upgrading.url) as client:
        greeted(framed, client)
        assert client.request(b"in clear") == b"250 in clear"
        assert client.request(b"STARTTLS") == b"220 go"
        client.start_tls(certificates.client_context())
        for number in range(20):
            assert client.request(b"%d" % number) == b"250 %d" % number
        client.send(b"one\ntwo\n")
        assert client.recv_line() + client.recv_line() == b"250 one\n250 two\n"
    assert upgrading.events.of(HandlerFailed) == []


def test_what_was_put_behind_starttls_in_clear_is_never_taken_for_later(framed, upgrading, notes):
    with Client(upgrading.url) as client:
        greeted(framed, client)
        client.send(b"STARTTLS\nRCPT somebody else\n")
        client.recv_until_closed()
    closed = upgrading.events.wait_for(ConnectionClosed)
    assert closed.cause == "handshake"
    assert notes.values == []


def test_a_handshake_that_follows_at_once_loses_no_byte_or_is_refused(framed, upgrading, certificates):
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with Client(upgrading.url) as client:
        greeted(framed, client)
        client.send(b"STARTTLS\n" + outgoing.read())
        if client.recv_line() != b"220 go\n":
            raise AssertionError("no answer")
        received = b""
        while data := client.recv():
            received += data
            incoming.write(data)
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            client.send(outgoing.read())
            tls.write(b"hello\n")
            client.send(outgoing.read())
            break
        else:
            # A handler with a thread of its own takes what came too early for what it is.
            assert framed.blocks
            client.close()
            assert upgrading.events.wait_for(ConnectionClosed).cause == "handshake"
            return
        while True:
            try:
                assert tls.read(100) == b"250 hello\n"
                break
            except ssl.SSLWantReadError:
                incoming.write(client.recv())


def test_handshakes_in_mid_conversation_count_too(framed, longshore_server, certificates, notes):
    if framed.kind == "session" or framed.strategy in ("inline", "processes"):
        pytest.skip("one at a time, or in a process of its own")
    handler = speaks(certificates.server, notes)[framed.kind, framed.is_async]
    server = longshore_server(handler, strategy=framed.strategy, framing=Lines(), limits=Limits(max_handshakes=1))
    with Client(server.url) as first, Client(server.url) as second:
        for client in (first, second):
            greeted(framed, client)
        assert first.request(b"STARTTLS") == b"220 go"
        # A handler with a thread of its own may not have come to it when its answer is here.
        pause = threading.Event()
        while not any(session.handshaking for session in tuple(server._admission.sessions)):
            pause.wait(0.001)
        second.send(b"STARTTLS\n")
        assert second.recv_until_closed() in (b"220 go\n", b"")
        second.close()
        closed = server.events.wait_for(ConnectionClosed)
        assert closed.cause == "limit"
        assert "Limits.max_handshakes=1" in str(closed.error)
        first.start_tls(certificates.client_context())
        assert first.request(b"hello") == b"250 hello"
        with Client(server.url) as third:
            greeted(framed, third)
            assert third.request(b"STARTTLS") == b"220 go"
            third.start_tls(certificates.client_context())
            assert third.request(b"hello") == b"250 hello"
    assert server.events.of(HandlerFailed) == []


@pytest.mark.slow
def test_openssl_upgrades_as_mail_clients_do(framed, upgrading, certificates, needs):
    if framed.kind != "function":
        pytest.skip("a mail server speaks first")
    command = [needs("openssl"), "s_client", "-starttls", "smtp", "-quiet", "-verify_return_error", "-servername"]
    address = upgrading.url.removeprefix("tcp://")
    with subprocess.Popen(
        [*command, "localhost", "-CAfile", certificates.authority, "-connect", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"250 hello\n"
        process.terminate()
