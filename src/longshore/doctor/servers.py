"""The servers and request handlers of one program, as `socketserver` will run them.

The only place that knows what follows from a class's bases: what it accepts, what its handlers run on, and whether
Longshore serves it already.  It finds; what is wrong with what it finds is said in `complaints.py`.
"""

from __future__ import annotations

import ast
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from longshore.doctor.program import DROP_IN, canonical, spelled

if TYPE_CHECKING:
    from longshore.doctor.program import Call, Program

__all__ = ("Misordered", "Server", "find_handlers", "find_servers")

_MIXINS: Final = {"socketserver.ThreadingMixIn", "socketserver.ForkingMixIn", "socketserver.GreenMixIn"}
_MAKE_SERVER: Final = "wsgiref.simple_server.make_server"
_WSGI_SERVER: Final = "wsgiref.simple_server.WSGIServer"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def find_servers(program: Program) -> list[Server]:
    """The server classes that are in use: the program's own, and those of the standard library that it calls."""
    places = {name: use.line for name, use in program.uses.items() if name not in program.classes}
    derived = _derived(program)
    for name, definition in program.classes.items():
        # A class that only others build on is judged with what they add to it.
        if name in program.uses or name not in derived:
            places[name] = definition.lineno
    for call in program.calls:
        if program.resolve(call.node.func) == _MAKE_SERVER and call.argument(3, "server_class") is None:
            places.setdefault(_WSGI_SERVER, call.node.lineno)
    ordered = sorted(places.items(), key=lambda item: item[1])
    return [server for server in (Server(program, name, line) for name, line in ordered) if server.is_server]


def find_handlers(program: Program, servers: list[Server]) -> list[str]:
    """The handler classes that are in use: those that a server is made with, and those that nobody builds on."""
    derived = _derived(program)
    given = {name for server in servers for name in server.handlers}
    own = [name for name in program.classes if name in given or name not in derived]
    names = dict.fromkeys([*own, *sorted(given)])
    return [name for name in names if "socketserver.BaseRequestHandler" in map(canonical, program.ancestors(name))]


def _derived(program: Program) -> set[str]:
    return {base for name in program.classes for base in program.bases(name) if base != name}


class Misordered(NamedTuple):
    """A class with a mixin in the wrong place."""

    definition: ast.ClassDef
    server: str
    mixin: str
    others: list[str]
    """Its bases without the mixin, as they are spelled."""


class Server:
    """One server class.

    Attributes:
        name: its full name; `title` is the last part of it.
        line: where it is defined, or used first if it is not the program's own.
        is_server: whether it is a server at all.
        ours: whether Longshore serves it.
        is_datagram: whether it receives datagrams.
        is_unix: whether its sockets are of this machine only.
        threads: whether it has ThreadingMixIn, in whichever place.
        forks: whether it has ForkingMixIn, in whichever place.
    """

    def __init__(self, program: Program, name: str, line: int) -> None:
        self.program = program
        self.name = name
        self.title = name.rpartition(".")[2]
        self.line = line
        self.ancestors = program.ancestors(name)
        self._kinds = {canonical(each) for each in self.ancestors}
        self.is_server = "socketserver.BaseServer" in self._kinds
        self.ours = any(each.startswith(DROP_IN) for each in self.ancestors)
        self.is_datagram = "socketserver.UDPServer" in self._kinds
        self.is_unix = bool(self._kinds & {"socketserver.UnixStreamServer", "socketserver.UnixDatagramServer"})
        self.threads = "socketserver.ThreadingMixIn" in self._kinds
        self.forks = "socketserver.ForkingMixIn" in self._kinds

    @property
    def is_concurrent(self) -> bool:
        """Whether one connection does not wait for another."""
        return bool(self._kinds & _MIXINS) and (self.misordered is None or self.is_mended("TCPServer"))

    def is_mended(self, name: str) -> bool:
        """Whether the class `name` of socketserver, from which it derives, is Longshore's."""
        return DROP_IN + name in self.ancestors

    def attribute(self, name: str) -> ast.expr | None:
        """What the class sets `name` to, or what is assigned to that attribute of anything, as far as is seen."""
        value = self.program.attribute(self.name, name)
        if value is None and name in self.program.assigned:
            value = self.program.assigned[name][0].value
        return None if value is None else self.program.value(value)

    @cached_property
    def _constructions(self) -> list[Call]:
        names = {self.name, _MAKE_SERVER} if self.name == _WSGI_SERVER else {self.name}
        return [call for call in self.program.calls if self.program.resolve(call.node.func) in names]

    @cached_property
    def handlers(self) -> set[str]:
        """The handler classes that it is made with, where that is seen."""
        found = set()
        for call in self._constructions:
            if call.name == "make_server":
                handler = call.argument(4, "handler_class")
                found.add(self.program.resolve(handler) or "wsgiref.simple_server.WSGIRequestHandler")
            else:
                found.add(self.program.resolve(call.argument(1, "RequestHandlerClass", "requestHandler")))
        return found - {""}

    @property
    def is_local(self) -> bool:
        """Whether it is bound to this machine's own addresses only, as far as is seen."""
        hosts = [self._host(call) for call in self._constructions]
        return bool(hosts) and all(host in _LOOPBACK for host in hosts)

    def _host(self, call: Call) -> object:
        value = self.program.value
        address = call.argument(0, "server_address", "addr", "host")
        address = None if address is None else value(address)
        first = value(address.elts[0]) if isinstance(address, ast.Tuple) and address.elts else address
        return first.value if isinstance(first, ast.Constant) else None

    @cached_property
    def misordered(self) -> Misordered | None:
        """The class among its ancestors that has a mixin behind a server, where it has no effect."""
        for each in self.ancestors:
            if "process_request" in {name for name, _ in self.program.methods(each)}:
                return None
            definition = self.program.classes.get(each)
            server = ""
            for base in definition.bases if definition else ():
                kinds = {canonical(ancestor) for ancestor in self.program.ancestors(self.program.resolve(base))}
                if kinds & _MIXINS and not server:
                    break
                if "socketserver.BaseServer" in kinds:
                    server = server or spelled(base)
                elif kinds & _MIXINS and definition is not None:
                    others = [spelled(other) or "..." for other in definition.bases if other is not base]
                    return Misordered(definition, server, spelled(base), others)
        return None

    def move(self, root: str) -> str:
        """The line that makes its class `root` of socketserver Longshore's; "" if it came by another module."""
        definitions = [self.program.classes[each] for each in self.ancestors if each in self.program.classes]
        use = self.program.uses.get(self.name)
        spellings = [spelled(base) for definition in definitions for base in definition.bases]
        if not definitions and use is not None:
            spellings = [use.spelling]
        for spelling in spellings:
            full = self.program.full_name(spelling)
            names = {canonical(ancestor) for ancestor in self.program.ancestors(full)}
            if full in self.program.classes or f"socketserver.{root}" not in names:
                continue
            move = self.program.moves.get(spelling.partition(".")[0])
            if canonical(full).startswith("socketserver.") and move is not None:
                return f"change line {move[0]} to: {move[1]}"
        return ""

    def setting(self, line: str, *, of_ours: bool = False) -> str:
        """How the class gets the attribute of `line`, which only Longshore's classes know if it is `of_ours`."""
        if of_ours and not self.ours and not self.move("BaseServer"):
            # Based on another module's server, it becomes Longshore's by a mixin.
            return f"{self.mixed()}: {line}"
        if self.name in self.program.classes:
            return f"in class {self.title}: {line}"
        use = self.program.uses.get(self.name)
        return f"class Server({use.spelling if use else self.title}): {line}"

    def mixed(self) -> str:
        """The class statement that puts Longshore's mixin over a server of another module."""
        title = self.title if self.name in self.program.classes else "Server"
        others = [each for each in self.ancestors if each not in self.program.classes]
        servers = [each for each in others if "socketserver.BaseServer" in map(canonical, self.program.ancestors(each))]
        server = servers[0] if servers else "socketserver.BaseServer"
        return f"class {title}(longshore.socketserver.ThreadingMixIn, {server.replace('.Threading', '.')})"
