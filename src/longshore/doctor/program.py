"""A Python program as it is written: its imports, classes, calls and assignments.

Its rule: the program is read, never imported or run, so reading one is safe whatever it does.  Names are followed
through imports, aliases of imports, `import *` and plain assignments, and classes through their bases, those of the
standard library's servers included.

It judges nothing; `complaints.py` does.  What only shows at run time (a class made by a call, a name that is bound
twice) is not seen.
"""

from __future__ import annotations

import ast
import warnings
from typing import TYPE_CHECKING, Final, NamedTuple

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("DROP_IN", "Assignment", "Call", "Program", "Use", "canonical", "spelled")

#: The module that takes the standard library's place, as a prefix of names.
DROP_IN: Final = "longshore.socketserver."

#: Other names of `socketserver`: ours, Python 2's, and that of six.
_RENAMED: Final = (DROP_IN, "SocketServer.", "six.moves.socketserver.")

_STREAM_HANDLER, _STREAMS = "socketserver.StreamRequestHandler", "socketserver.TCPServer"

#: The standard library's servers and request handlers, each with its bases.
_BASES: Final[dict[str, tuple[str, ...]]] = {
    "socketserver.BaseServer": (),
    "socketserver.ThreadingMixIn": (),
    "socketserver.ForkingMixIn": (),
    "socketserver.GreenMixIn": (),
    "socketserver.TCPServer": ("socketserver.BaseServer",),
    "socketserver.UDPServer": (_STREAMS,),
    "socketserver.UnixStreamServer": (_STREAMS,),
    "socketserver.UnixDatagramServer": ("socketserver.UDPServer",),
    **{
        f"socketserver.{mixin}{server}": (f"socketserver.{mixin}MixIn", f"socketserver.{server}")
        for mixin in ("Threading", "Forking", "Green")
        for server in ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer")
    },
    "socketserver.BaseRequestHandler": (),
    _STREAM_HANDLER: ("socketserver.BaseRequestHandler",),
    "socketserver.DatagramRequestHandler": ("socketserver.BaseRequestHandler",),
    "http.server.HTTPServer": (_STREAMS,),
    "http.server.ThreadingHTTPServer": ("socketserver.ThreadingMixIn", "http.server.HTTPServer"),
    "http.server.HTTPSServer": ("http.server.HTTPServer",),
    "http.server.ThreadingHTTPSServer": ("socketserver.ThreadingMixIn", "http.server.HTTPSServer"),
    "http.server.BaseHTTPRequestHandler": (_STREAM_HANDLER,),
    "http.server.SimpleHTTPRequestHandler": ("http.server.BaseHTTPRequestHandler",),
    "http.server.CGIHTTPRequestHandler": ("http.server.SimpleHTTPRequestHandler",),
    "xmlrpc.server.SimpleXMLRPCServer": (_STREAMS,),
    "xmlrpc.server.MultiPathXMLRPCServer": ("xmlrpc.server.SimpleXMLRPCServer",),
    "xmlrpc.server.DocXMLRPCServer": ("xmlrpc.server.SimpleXMLRPCServer",),
    "xmlrpc.server.SimpleXMLRPCRequestHandler": ("http.server.BaseHTTPRequestHandler",),
    "xmlrpc.server.DocXMLRPCRequestHandler": ("xmlrpc.server.SimpleXMLRPCRequestHandler",),
    "wsgiref.simple_server.WSGIServer": ("http.server.HTTPServer",),
    "wsgiref.simple_server.WSGIRequestHandler": ("http.server.BaseHTTPRequestHandler",),
}

#: Functions whose arguments and annotations mention a class without using it.
_ASKING: Final = frozenset({"isinstance", "issubclass", "super", "cast", "typing.cast"})

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


def canonical(name: str) -> str:
    """The standard library's name for a class of `socketserver`, whichever module it came from."""
    for prefix in _RENAMED:
        if name.startswith(prefix):
            return "socketserver." + name[len(prefix) :]
    return name


class Call(NamedTuple):
    """One call, and the definitions that it stands in, outermost first."""

    node: ast.Call
    inside: tuple[_Definition, ...]
    awaited: bool

    @property
    def name(self) -> str:
        """The last part of what is called: `shutdown` of `server.shutdown()`."""
        function = self.node.func
        return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")

    @property
    def method(self) -> tuple[str, str]:
        """The class and the method that it stands in, not in a function inside that; empty texts if in none."""
        if len(self.inside) < 2:
            return "", ""
        owner, function = self.inside[-2:]
        if isinstance(owner, ast.ClassDef) and isinstance(function, ast.FunctionDef):
            return owner.name, function.name
        return "", ""

    def argument(self, position: int, *names: str) -> ast.expr | None:
        """An argument, by position (-1: never) or by one of its names; None if it is not given."""
        for keyword in self.node.keywords:
            if keyword.arg in names:
                return keyword.value
        return self.node.args[position] if 0 <= position < len(self.node.args) else None


class Assignment(NamedTuple):
    """One assignment to an attribute of an object."""

    receiver: str
    value: ast.expr


class Use(NamedTuple):
    """Where a class is used first, and how it is spelled there."""

    line: int
    spelling: str


class Program:
    """What stands in a program's source.

    Attributes:
        imports: the full name behind each name that an import or an alias binds.
        moves: by the name that it binds, the line that imports from `socketserver`, and the same from Longshore's.
        classes: the classes that it defines, wherever they stand, by name.
        functions: the functions and methods that it defines, by name.
        variables: what is assigned first to each plain name, `with ... as name` included.
        calls: every call, in the order of the source.
        uses: the classes that are called, passed on or set as a default, and where first.
        assigned: by attribute, what is assigned to it on any object (`server.socket = ...`).
        words: every name and attribute that occurs.

    Raises:
        ConfigError: `source` is no Python that this interpreter can read.
    """

    def __init__(self, source: str) -> None:
        self.imports: dict[str, str] = {}
        self.moves: dict[str, tuple[int, str]] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.calls: list[Call] = []
        self.uses: dict[str, Use] = {}
        self.assigned: dict[str, list[Assignment]] = {}
        self.variables: dict[str, ast.expr] = {}
        self.words: set[str] = set()
        tree = _parse(source)
        for node in ast.walk(tree):
            self._define(node)
        self._read(tree)

    # -- names -------------------------------------------------------------------------------------------

    def resolve(self, node: ast.AST | None) -> str:
        """The full name that `node` spells (`socketserver.TCPServer`, or a class of this program); "" if none."""
        return self.full_name(spelled(node))

    def full_name(self, spelling: str) -> str:
        """The full name behind a dotted name as it is spelled here."""
        first, dot, rest = spelling.partition(".")
        if first not in self.classes:
            first = self.imports.get(first, first)
        return first + dot + rest

    def value(self, node: ast.expr) -> ast.expr:
        """What was first assigned to the name `node`, else `node` itself."""
        return self.variables.get(node.id, node) if isinstance(node, ast.Name) else node

    def ancestors(self, name: str) -> list[str]:
        """The class `name` and its bases as far as they are known, each before its own bases."""
        found: dict[str, None] = {}
        pending = [name]
        while pending:
            each = pending.pop()
            if each in found:
                continue
            found[each] = None
            pending += reversed(self.bases(each))
        return list(found)

    def bases(self, name: str) -> list[str]:
        """The direct bases of a class of this program or of the standard library."""
        own = self.classes.get(name)
        if own is not None:
            return [base for base in map(self.resolve, own.bases) if base]
        prefix = DROP_IN if name.startswith(DROP_IN) else "socketserver."
        return [
            prefix + base.removeprefix("socketserver.") if base.startswith("socketserver.") else base
            for base in _BASES.get(canonical(name), ())
        ]

    def attribute(self, name: str, attribute: str) -> ast.expr | None:
        """What the class `name`, or one of its bases in this program, sets `attribute` to in its body."""
        for each in self.ancestors(name):
            definition = self.classes.get(each)
            for statement in _statements(definition.body) if definition else ():
                targets: list[ast.expr] = []
                if isinstance(statement, ast.Assign):
                    targets = statement.targets
                elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                    targets = [statement.target]
                if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
                    value: ast.expr = statement.value  # type: ignore[attr-defined]  # both kinds above have one
                    return value
        return None

    def methods(self, name: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """The methods in the body of the class `name` of this program."""
        definition = self.classes.get(name)
        for statement in _statements(definition.body) if definition else ():
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                yield statement.name, statement

    # -- reading -----------------------------------------------------------------------------------------

    def _define(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                self._bind(bound, alias.name if alias.asname else bound)
                self._note_move(bound, alias.name, node.lineno, f"from longshore import {_as('socketserver', alias)}")
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            self._import_from(node, node.module)
        elif isinstance(node, ast.ClassDef):
            self.classes[node.name] = node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.functions[node.name] = node
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            self.variables.setdefault(name, node.value)
            known = self.resolve(node.value)
            if canonical(known) in _BASES:
                self._bind(name, known)
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            self.variables.setdefault(node.optional_vars.id, node.context_expr)

    def _import_from(self, node: ast.ImportFrom, module: str) -> None:
        whole = f"from longshore.socketserver import {', '.join(_as(alias.name, alias) for alias in node.names)}"
        for alias in node.names:
            if alias.name == "*":
                prefix = canonical(f"{module}.")
                for name in (known.removeprefix(prefix) for known in _BASES if known.startswith(prefix)):
                    self._bind(name, f"{module}.{name}")
                    self._note_move(name, module, node.lineno, whole)
                continue
            bound, full = alias.asname or alias.name, f"{module}.{alias.name}"
            self._bind(bound, full)
            self._note_move(bound, module, node.lineno, whole)
            self._note_move(bound, full, node.lineno, f"from longshore import {_as('socketserver', alias)}")

    def _bind(self, name: str, full: str) -> None:
        # `try: import socketserver / except ImportError: import SocketServer as socketserver` binds a name twice;
        # the first is the one that holds today.
        self.imports.setdefault(name, full)

    def _note_move(self, bound: str, module: str, line: int, statement: str) -> None:
        if canonical(f"{module}.") == "socketserver." and f"{module}." != DROP_IN:
            self.moves.setdefault(bound, (line, statement))

    def _read(self, tree: ast.Module) -> None:
        """Fill calls, uses and assignments, without recursion: a program may nest deeper than Python does."""
        pending: list[tuple[ast.AST, tuple[_Definition, ...], bool]] = [(tree, (), False)]
        while pending:
            node, inside, awaited = pending.pop()
            left_out: list[ast.AST] = []
            if isinstance(node, ast.Name | ast.Attribute):
                spelling = spelled(node)
                self.words.update(spelling.split(".") if spelling else [node.attr])  # type: ignore[union-attr]
                if spelling:
                    # Only the whole is a use: TCPServer.server_bind(self) calls a base, and makes no server.
                    self._use(node, spelling)
                    continue
            elif isinstance(node, ast.Call):
                self.calls.append(Call(node, inside, awaited))
                if self.resolve(node.func) in _ASKING:
                    left_out += node.args
            elif isinstance(node, ast.Assign):
                if self.resolve(node.value):
                    left_out.append(node.value)
                for target in node.targets:
                    if isinstance(target, ast.Attribute):
                        receiver = self.resolve(target.value)
                        self.assigned.setdefault(target.attr, []).append(Assignment(receiver, node.value))
            elif isinstance(node, ast.AnnAssign):
                left_out.append(node.annotation)
            elif isinstance(node, ast.arg):
                continue
            elif isinstance(node, ast.ClassDef):
                left_out += node.bases
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
                left_out.append(node.returns)
            path = (*inside, node) if isinstance(node, _Definition) else inside
            children = [child for child in ast.iter_child_nodes(node) if not any(child is each for each in left_out)]
            awaits = isinstance(node, ast.Await)
            pending += [(child, path, awaits) for child in reversed(children)]

    def _use(self, node: ast.Name | ast.Attribute, spelling: str) -> None:
        name = self.resolve(node)
        if name in self.classes or canonical(name) in _BASES:
            self.uses.setdefault(name, Use(node.lineno, spelling))


def spelled(node: ast.AST | None) -> str:
    """The dotted name that `node` is, as it is written; "" for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _as(name: str, alias: ast.alias) -> str:
    return f"{name} as {alias.asname}" if alias.asname else name


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, those under its `if`, `try` and `with` included, but not those of definitions."""
    pending = list(reversed(body))
    while pending:
        statement = pending.pop()
        yield statement
        if not isinstance(statement, _Definition):
            pending += [each for each in ast.iter_child_nodes(statement) if isinstance(each, ast.stmt)]


def _parse(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # A stray backslash in somebody's program is none of our business, and must not become an error.
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"line {error.lineno or 1}: {type(error).__name__}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        # NUL characters and lone surrogates; nesting that the parser cannot hold.
        raise ConfigError(f"it cannot be read as Python: {str(error) or 'it is nested too deeply'}") from error
