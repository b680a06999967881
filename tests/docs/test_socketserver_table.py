"""The table of `longshore.socketserver` names every public attribute of every class, and none that is not there."""

from __future__ import annotations

import re
import socket
import socketserver as standard
from pathlib import Path

import pytest

from longshore import socketserver

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/socketserver.md").read_text()
CLASSES = sorted(set(socketserver.__all__) | set(standard.__all__))


def public(names):
    return {name for name in names if not name.startswith("_")}


def listed(name):
    """The names in the first cells of the table under a class's heading; empty where it has none."""
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.+?) \|", section[1], re.MULTILINE) if section else []
    return {found for cell in cells for found in re.findall(r"`(\w+)", cell)}


def listed_with_bases(kind):
    return set().union(*(listed(each.__name__) for each in kind.__mro__))


def instance(name):
    """A server or a handler of this class that has served once, over a real socket."""
    seen = []

    class Server(socketserver.UDPServer if name.startswith("Datagram") else socketserver.TCPServer):
        def finish_request(self, request, client_address):
            seen.append(self.RequestHandlerClass(request, client_address, self))

    kind = getattr(socketserver, name)
    if issubclass(kind, socketserver.BaseServer):
        return kind(("127.0.0.1", 0), None, bind_and_activate=False)
    with Server(("127.0.0.1", 0), kind) as server:
        with socket.socket(server.address_family, server.socket_type) as client:
            client.connect(server.server_address)
            client.send(b"hello\n")
            server.handle_request()
    return seen[0]


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_names_the_class(name):
    assert f"`{name}`" in PAGE or f"### {name}\n" in PAGE


@pytest.mark.parametrize("name", CLASSES)
def test_the_table_of_a_class_names_what_the_class_has(name):
    own = getattr(socketserver, name)
    adds = public(vars(own)) | public(vars(getattr(standard, name, object)))
    assert adds - listed(name) == set()


@pytest.mark.parametrize("name", ["TCPServer", "UDPServer", "StreamRequestHandler", "DatagramRequestHandler"])
def test_the_tables_name_what_an_instance_has(name):
    made = instance(name)
    try:
        assert public(vars(made)) - listed_with_bases(type(made)) == set()
    finally:
        if isinstance(made, socketserver.BaseServer):
            made.server_close()


@pytest.mark.parametrize("name", [name for name in CLASSES if listed(name)])
def test_the_table_of_a_class_names_nothing_that_is_not_there(name):
    there = set(dir(getattr(socketserver, name)))
    if name.endswith("Handler"):
        # What a handler has only while it handles.
        there |= set(vars(instance("StreamRequestHandler" if name.startswith("Base") else name)))
    else:
        there |= {"server_address", "RequestHandlerClass", "socket"}
    assert listed(name) - there == set()
