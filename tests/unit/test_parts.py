"""What is given to a server or a client in the wrong place is a ConfigError at once that shows what was given."""

from __future__ import annotations

import asyncio

import pytest

from longshore import TLS, ClosedError, ConfigError, Limits, Lines, Server, Workers, connect

ANYWHERE = "tcp://127.0.0.1:0"


def echo(message, connection):
    return message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Server(echo, ANYWHERE, framing=Lines), "framing=Lines: is a class"),
        (lambda: Server(echo, ANYWHERE, framing="lines"), "framing='lines': is no framing"),
        (lambda: connect(ANYWHERE, framing=Lines), "framing=Lines: is a class"),
        (lambda: Server(echo, ANYWHERE, framing=Lines(), limits={"max_connections": 5}), r"must be Limits\(...\)"),
        (lambda: Server(echo, ANYWHERE, framing=Lines(), timeouts=5), r"timeouts=5: must be Timeouts\(...\)"),
        (lambda: Server(echo, ANYWHERE, framing=Lines(), proxy="10.0.0.1"), r"must be Proxy\(...\)"),
        (lambda: Server(echo, "tls://127.0.0.1:0", framing=Lines(), tls="a.pem"), r"tls='a.pem': must be TLS\(...\)"),
        (
            lambda: Server(echo, ANYWHERE, framing=Lines(), tls=TLS("a.pem")),
            "tls= is given, and no address .* speaks TLS",
        ),
        (lambda: connect("tls://127.0.0.1:1", tls="a.pem"), r"tls='a.pem': must be TLS\(...\)"),
        (lambda: Server(echo, ANYWHERE, framing=Lines()).every(0, print), r"every\(0, ...\)"),
        (lambda: Server(echo, ANYWHERE, framing=Lines()).reconfigure(limits=5), r"limits=5: must be Limits\(...\)"),
        (lambda: Limits(max_threads=1.5), "max_threads=1.5"),
        (lambda: Workers(max_connections=1.5), "max_connections=1.5"),
        (lambda: Workers(jitter="some"), "jitter='some'"),
        (lambda: TLS(context="mine"), "must be an ssl.SSLContext"),
    ],
)
def test_what_cannot_work_is_refused_and_shown(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_server_is_served_in_a_loop_only_if_it_was_not_started():
    async def enter(server):
        async with server:
            raise AssertionError("it is served elsewhere")

    with Server(echo, ANYWHERE, framing=Lines()) as server, pytest.raises(ClosedError, match="was started before"):
        asyncio.run(enter(server))
    with pytest.raises(ClosedError, match="was started before"):
        asyncio.run(enter(server))


def test_a_server_that_could_not_be_made_is_in_nobodys_way():
    with pytest.raises(ConfigError) as kept:
        Server(echo, ANYWHERE, framing="lines")
    with Server(echo, ANYWHERE, framing=Lines()) as server:
        assert server.status == "serving"
    assert "framing='lines'" in str(kept.value)
