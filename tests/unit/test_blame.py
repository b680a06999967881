"""Whose fault a handler's error is: the peer's, where it names the peer and not an address that has it inside."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from longshore.errors import PeerClosed
from longshore.strategies import Session

PEER = "10.0.0.1:5000"


@pytest.fixture
def session():
    host = SimpleNamespace(reactor=SimpleNamespace(now=lambda: 0.0))
    return Session(host, PEER, "10.0.0.9:80")


def test_an_error_that_names_the_peer_is_of_its_connection(session):
    assert session.has_raised(PeerClosed(f"{PEER} closed the connection"))


@pytest.mark.parametrize("other", ["10.0.0.1:50001", "110.0.0.1:5000"])
def test_an_error_of_a_peer_whose_address_has_this_one_inside_is_not(session, other):
    assert not session.has_raised(PeerClosed(f"{other} closed the connection"))
