"""What programs written for `socketserver` suffer from, one function for each complaint.

Their rule: a function gets what was read and yields findings; each says what will happen, and the one line that
mends it.  The facts are those of CPython's socketserver.py, the cures those of `longshore.socketserver`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from longshore.doctor.program import canonical, spelled
from longshore.doctor.servers import Server, find_handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshore.doctor.program import Call, Program

__all__ = ("OF_A_PROGRAM", "OF_A_SERVER", "Finding")

#: `TCPServer.request_queue_size` and `UDPServer.max_packet_size` of the standard library.
_BACKLOG: Final = 5
_DATAGRAM: Final = 8192

#: What serve_forever calls on its own thread, whatever the mixin.
_HOOKS: Final = ("service_actions", "get_request", "verify_request", "process_request", "handle_timeout")

_TLS: Final = 'tls = TLS(certfile="cert.pem", keyfile="key.pem")'


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend, or one that the drop-in has mended.

    Attributes:
        line: where it stands.
        rule: its name, for machines: "unbounded-threads".
        subject: the class or the call that has it.
        message: what happens because of it.
        fix: the one line that mends it.
        fixed: whether `longshore.socketserver`, which the program uses, has mended it; `fix` is "" then.
        note: whether it is only worth knowing, and no fault.
    """

    line: int
    rule: str
    subject: str
    message: str
    fix: str
    fixed: bool = False
    note: bool = False


def _unbounded_threads(server: Server) -> Iterator[Finding]:
    if not server.threads:
        return
    fix = server.move("ThreadingMixIn")
    limits = server.program.attribute(server.name, "limits")
    if limits is not None and server.ours:
        if not (isinstance(limits, ast.Call) and any(_is_none(each.value) for each in limits.keywords)):
            return
        fix = "limits = Limits(max_threads=256)"
    elif not fix:
        fix = f"{server.mixed()}: pass"
    yield Finding(
        server.line,
        "unbounded-threads",
        server.title,
        "a thread for every connection, without a limit: enough clients take all memory",
        f"{fix}  (then 256 at most, or what limits = Limits(max_threads=...) in the class says)",
        fixed=limits is None and server.is_mended("ThreadingMixIn"),
    )


def _mixin_order(server: Server) -> Iterator[Finding]:
    wrong = server.misordered
    if wrong is None:
        return
    bases = ", ".join((wrong.mixin, *wrong.others))
    yield Finding(
        wrong.definition.lineno,
        "mixin-order",
        wrong.definition.name,
        f"{wrong.mixin} stands behind {wrong.server} and so has no effect: one connection at a time is served",
        f"class {wrong.definition.name}({bases}): the mixin comes first",
        # Longshore's mixins derive from its BaseServer, so theirs is the process_request in any order.
        fixed=server.is_mended("TCPServer"),
    )


def _small_backlog(server: Server) -> Iterator[Finding]:
    size = server.attribute("request_queue_size")
    value = _whole(size)
    if server.is_datagram or (size is not None and (value is None or value > _BACKLOG)):
        return
    larger = server.setting("request_queue_size = 1024")
    yield Finding(
        server.line,
        "backlog",
        server.title,
        f"a backlog of {_BACKLOG if value is None else value}: of a burst of connections most are dropped or delayed",
        (value is None and server.move("TCPServer")) or larger,
        fixed=value is None and server.ours,
    )


def _short_datagrams(server: Server) -> Iterator[Finding]:
    size = server.attribute("max_packet_size")
    value = _whole(size)
    if not server.is_datagram or (size is not None and (value is None or value > _DATAGRAM)):
        return
    yield Finding(
        server.line,
        "short-datagrams",
        server.title,
        f"a datagram of more than {_DATAGRAM if value is None else value} bytes is cut without a word",
        (value is None and server.move("UDPServer")) or server.setting("max_packet_size = 65535"),
        fixed=value is None and server.ours,
    )


def _no_tls(server: Server) -> Iterator[Finding]:
    if server.is_datagram or server.is_unix or server.program.attribute(server.name, "tls") is not None:
        return
    wraps = {"wrap_socket", "wrap_bio"} & server.program.words
    if wraps or "http.server.HTTPSServer" in server.ancestors:
        return
    plain = "no TLS: whoever is on the way can read and change what is sent"
    local = "no TLS, which is fine as long as it is bound to this machine's own addresses only"
    yield Finding(
        server.line,
        "no-tls",
        server.title,
        local if server.is_local else plain,
        f"{server.setting(_TLS, of_ours=True)}  ({_once(server.ours)}from longshore import TLS)",
        note=server.is_local,
    )


def _fork_after_threads(server: Server) -> Iterator[Finding]:
    if not server.forks or not (server.threads or _starts_threads(server.program)):
        return
    yield Finding(
        server.line,
        "fork-after-threads",
        server.title,
        "forks while threads run: a lock that one of them holds stays locked in the child for ever",
        "longshore serve FILE:HANDLER --strategy processes  (forks its children from a process without threads)",
    )


def _no_timeout(program: Program, servers: list[Server]) -> Iterator[Finding]:
    if any(program.resolve(call.node.func) == "socket.setdefaulttimeout" for call in program.calls):
        return
    # On the connection, in the handler, or in a server's own get_request.
    setting = {
        each.name
        for call in program.calls
        if call.name == "settimeout"
        for each in call.inside
        if isinstance(each, ast.ClassDef)
    }
    for handler in find_handlers(program, servers):
        users = [server for server in servers if handler in server.handlers] or servers
        family = program.ancestors(handler)
        kinds = {canonical(each) for each in family}
        if "socketserver.DatagramRequestHandler" in kinds or all(server.is_datagram for server in users):
            continue
        if setting & {*family, *(each for server in users for each in server.ancestors)}:
            continue
        reads_timeout = "socketserver.StreamRequestHandler" in kinds
        value = program.attribute(handler, "timeout")
        assigned = any(each.receiver in family for each in program.assigned.get("timeout", ()))
        if reads_timeout and (assigned or (value is not None and not _is_none(value))):
            continue
        if all(program.attribute(server.name, "timeouts") is not None for server in users):
            continue
        server = users[0]
        definition = program.classes.get(handler)
        use = program.uses.get(handler)
        own = handler.rpartition(".")[2]
        if reads_timeout:
            spelling = use.spelling if use else own
            fix = f"in class {own}: timeout = 60" if definition else f"class Handler({spelling}): timeout = 60"
        else:
            idle = server.setting("timeouts = Timeouts(idle=60)", of_ours=True)
            fix = f"{idle}  ({_once(server.ours)}from longshore import Timeouts)"
        yield Finding(
            definition.lineno if definition else use.line if use else server.line,
            "no-timeout",
            own,
            "no timeout: a client that goes silent keeps its thread for ever"
            if any(each.is_concurrent for each in users)
            else "no timeout: a client that goes silent keeps all others waiting for ever",
            fix,
        )


def _tls_while_accepting(program: Program, servers: list[Server]) -> Iterator[Finding]:
    wraps = [call for call in program.calls if call.name == "wrap_socket"]
    listening = {id(each.value) for each in program.assigned.get("socket", ())}
    for call in wraps:
        own_class, method = call.method
        accepting = method == "get_request" and any(own_class in server.ancestors for server in servers)
        later = call.argument(-1, "do_handshake_on_connect")
        if not (accepting or id(call.node) in listening) or (isinstance(later, ast.Constant) and not later.value):
            continue
        server = servers[0]
        yield Finding(
            call.node.lineno,
            "tls-while-accepting",
            "wrap_socket()",
            "TLS handshakes run while accepting: one silent client keeps everybody else out",
            f"{server.setting(_TLS, of_ours=True)}  in place of it ({_once(server.ours)}from longshore import TLS)",
            # Of a listening socket, Longshore makes the handshake where the handler runs.
            fixed=not accepting and any(each.ours and each.is_concurrent for each in servers),
        )


def _shutdown_deadlock(program: Program, servers: list[Server]) -> Iterator[Finding]:
    names = {server.name for server in servers}
    held = {
        name: made.removesuffix("make_server") + "WSGIServer" if made.endswith(".make_server") else made
        for name, value in program.variables.items()
        if isinstance(value, ast.Call)
        and ((made := program.resolve(value.func)) in names or made.endswith(".make_server"))
    }
    handlers = find_handlers(program, servers)
    callbacks = _callbacks(program)
    serving = any(_serves(program, call) for call in program.calls)
    for call in program.calls:
        function = call.node.func
        if not isinstance(function, ast.Attribute) or function.attr != "shutdown" or call.node.args:
            continue
        receiver = program.resolve(function.value)
        own_class, method = call.method
        innermost = call.inside[-1] if call.inside else None
        is_server = receiver in held or receiver.rpartition(".")[2] in ("server", "httpd")
        users = [server for server in servers if own_class in server.handlers or server.name == held.get(receiver)]
        users = users or servers
        serial = [server for server in users if not (server.threads and server.is_concurrent)]
        where = ""
        if is_server and innermost in callbacks and (serving or callbacks[innermost] != "a signal handler"):
            where = f"from {callbacks[innermost]}"
        elif is_server and own_class in handlers and serial:
            where = f"from the handler's {method}()"
        elif receiver == "self" and method in _HOOKS and any(own_class in server.ancestors for server in servers):
            where = f"from {method}()"
        elif receiver in held and "serve_forever" not in program.words:
            where = "where serve_forever() never ran"
        if where:
            yield Finding(
                call.node.lineno,
                "shutdown-deadlock",
                f"{receiver}.shutdown()",
                f"called {where}: it waits for serve_forever() to return, which cannot happen then",
                users[0].move("BaseServer") or "take the server, or its mixin, from longshore.socketserver",
                fixed=all(server.ours for server in users),
            )


def _no_graceful_stop(program: Program, servers: list[Server]) -> Iterator[Finding]:
    call = next((each for each in program.calls if _serves(program, each)), None)
    if call is None or "SIGTERM" in program.words:
        return
    server = spelled(call.node.func).removesuffix(".serve_forever") or "server"
    yield Finding(
        call.node.lineno,
        "no-graceful-stop",
        f"{server}.serve_forever()",
        "SIGTERM, by which services are stopped, cuts every connection where it stands",
        f"signal.signal(signal.SIGTERM, lambda *_: {server}.shutdown())  "
        f"({_once(all(each.ours for each in servers))}or longshore serve FILE:HANDLER --bind URL, which drains)",
    )


#: Asked of every server.
OF_A_SERVER: Final[tuple[Callable[[Server], Iterator[Finding]], ...]] = (
    _unbounded_threads,
    _mixin_order,
    _small_backlog,
    _short_datagrams,
    _no_tls,
    _fork_after_threads,
)

#: Asked once, of a program that has a server.
OF_A_PROGRAM: Final[tuple[Callable[[Program, list[Server]], Iterator[Finding]], ...]] = (
    _no_timeout,
    _tls_while_accepting,
    _shutdown_deadlock,
    _no_graceful_stop,
)


def _once(ours: bool) -> str:
    """What must come first where Longshore does not serve the program yet."""
    return "" if ours else "once socketserver is Longshore's; "


def _whole(node: ast.AST | None) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) else None


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _starts_threads(program: Program) -> bool:
    makers = ("threading.Thread", "threading.Timer", "concurrent.futures.ThreadPoolExecutor")
    made = {program.resolve(call.node.func) for call in program.calls}
    bases = {base for name in program.classes for base in program.bases(name)}
    return not (made | bases).isdisjoint(makers)


def _serves(program: Program, call: Call) -> bool:
    """Whether this is a serve_forever() of a program's own thread; a thread that is started for it is another's."""
    if call.name != "serve_forever" or call.awaited or not isinstance(call.node.func, ast.Attribute):
        return False
    return not call.inside or call.inside[-1] not in _passed(program, "target", lambda each: True)


def _callbacks(program: Program) -> dict[ast.AST, str]:
    """The functions that are called on the thread that serves, with what they are."""
    signals = _passed(program, 1, lambda each: program.resolve(each.node.func) == "signal.signal")
    registered = _passed(program, 0, lambda each: each.name == "register_function")
    return dict.fromkeys(registered, "a registered function") | dict.fromkeys(signals, "a signal handler")


def _passed(program: Program, place: int | str, wanted: Callable[[Call], bool]) -> set[ast.AST]:
    """The functions of the program that are passed as the argument `place` of the calls that are `wanted`."""
    found: set[ast.AST] = set()
    for call in program.calls:
        if not wanted(call):
            continue
        value = call.argument(place) if isinstance(place, int) else call.argument(-1, place)
        name = program.resolve(value).rpartition(".")[2]
        if isinstance(value, ast.Lambda):
            found.add(value)
        elif name in program.functions:
            found.add(program.functions[name])
    return found
