"""What the doctor finds in programs, as texts, and that no text is too much for it."""

from __future__ import annotations

import http.server
import logging.config
import multiprocessing.managers
import re
import socketserver
import wsgiref.simple_server
import xmlrpc.server
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.doctor import diagnose
from longshore.errors import ConfigError

#: A handler and a server without a fault, to which each test adds one.
SOUND = """\
import signal
import threading
import socketserver

class Handler(socketserver.StreamRequestHandler):
    timeout = 30
    def handle(self):
        self.wfile.write(self.rfile.readline())

class Server(socketserver.UnixStreamServer):
    request_queue_size = 128

with Server("/tmp/a.sock", Handler) as server:
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
"""


def found(text, *, fixed=False):
    """The findings as (line, rule)."""
    return [(each.line, each.rule) for each in diagnose(dedent(text)).findings if each.fixed == fixed]


def rules(text, *, fixed=False):
    return {rule for _, rule in found(text, fixed=fixed)}


def fix(text, rule):
    return next(each.fix for each in diagnose(dedent(text)).findings if each.rule == rule)


def test_a_sound_program_has_no_finding():
    diagnosis = diagnose(SOUND)
    assert diagnosis.servers == ("Server",)
    assert diagnosis.findings == diagnosis.faults == ()


def test_a_program_without_servers_has_none_and_no_finding():
    text = "import asyncio\nasync def main(server):\n    await server.serve_forever()\n"
    assert diagnose(text).servers == diagnose(text).findings == ()


@pytest.mark.parametrize(
    "bases",
    ["socketserver.ThreadingMixIn, socketserver.TCPServer", "socketserver.ThreadingTCPServer"],
)
def test_threads_without_a_limit_are_found(bases):
    text = f"import socketserver\n\nclass S({bases}):\n    pass\n"
    assert (3, "unbounded-threads") in found(text)
    assert fix(text, "unbounded-threads").startswith("change line 1 to: from longshore import socketserver")


def test_a_server_of_the_standard_library_is_found_where_it_is_used():
    text = "import socketserver\n\nsocketserver.ThreadingTCPServer(('', 1), None)\n"
    assert {(3, "unbounded-threads"), (3, "backlog"), (3, "no-tls")} == set(found(text))


def test_a_name_in_an_annotation_or_in_isinstance_is_no_use():
    text = """\
    import socketserver
    def stop(server: socketserver.TCPServer) -> socketserver.UDPServer:
        other: socketserver.TCPServer = server
        assert isinstance(server, socketserver.TCPServer)
        socketserver.TCPServer.server_close(server)
    """
    assert diagnose(dedent(text)).servers == ()


@pytest.mark.parametrize(
    ("statement", "name", "moved"),
    [
        ("import socketserver", "socketserver.ThreadingTCPServer", "from longshore import socketserver"),
        ("import socketserver as ss", "ss.ThreadingTCPServer", "from longshore import socketserver as ss"),
        ("from socketserver import *", "ThreadingTCPServer", "from longshore.socketserver import *"),
        (
            "from socketserver import ThreadingTCPServer as T, UDPServer",
            "T",
            "from longshore.socketserver import ThreadingTCPServer as T, UDPServer",
        ),
        ("from six.moves import socketserver", "socketserver.ThreadingTCPServer", "from longshore import socketserver"),
        ("import SocketServer", "SocketServer.ThreadingTCPServer", "from longshore import socketserver"),
    ],
)
def test_imports_are_followed_under_every_name(statement, name, moved):
    text = f"{statement}\nBase = {name}\nclass S(Base): pass\nclass T2({name}): pass\n"
    assert {(3, "unbounded-threads"), (4, "unbounded-threads")} <= set(found(text))
    assert all(
        each.fix.startswith(f"change line 1 to: {moved}")
        for each in diagnose(text).findings
        if each.line == 4 and each.rule == "unbounded-threads"
    )


def test_the_line_to_change_is_the_one_that_binds_the_name():
    text = "import socketserver\nfrom socketserver import UDPServer\nclass D(UDPServer): pass\n"
    assert fix(text, "short-datagrams") == "change line 2 to: from longshore.socketserver import UDPServer"


@pytest.mark.parametrize(
    ("statement", "server"),
    [
        ("import http.server", "http.server.HTTPServer"),
        ("import http.server as hs", "hs.ThreadingHTTPServer"),
        ("from http import server", "server.HTTPServer"),
        ("from http.server import HTTPServer", "HTTPServer"),
        ("from xmlrpc.server import SimpleXMLRPCServer", "SimpleXMLRPCServer"),
        ("from wsgiref.simple_server import WSGIServer", "WSGIServer"),
    ],
)
def test_servers_that_others_built_on_socketserver_are_known(statement, server):
    text = f"{statement}\nclass S({server}): pass\n"
    assert {(2, "backlog"), (2, "no-tls")} <= set(found(text))
    assert fix(text, "backlog") == "in class S: request_queue_size = 1024"


def test_a_server_of_another_module_becomes_longshore_s_by_a_mixin():
    text = (
        "from http.server import ThreadingHTTPServer, SimpleHTTPRequestHandler as H\nThreadingHTTPServer(('', 80), H)\n"
    )
    mixed = "class Server(longshore.socketserver.ThreadingMixIn, http.server.HTTPServer): "
    assert fix(text, "unbounded-threads").startswith(mixed + "pass")
    assert fix(text, "no-tls").startswith(mixed + "tls = TLS(")
    assert fix(text, "no-timeout") == "class Handler(H): timeout = 60"


def test_make_server_of_wsgiref_is_a_server():
    text = "from wsgiref.simple_server import make_server\nmake_server('', 80, None).serve_forever()\n"
    assert diagnose(text).servers == ("WSGIServer",)
    assert {"backlog", "no-timeout", "no-tls", "no-graceful-stop"} == rules(text)


def test_a_class_that_others_build_on_is_judged_with_what_they_add():
    text = """\
    import socketserver
    class Base(socketserver.UnixStreamServer): pass
    class Good(Base): request_queue_size = 100
    class Bad(Base): pass
    """
    assert found(text) == [(4, "backlog")]


def test_bases_that_go_round_in_circles_are_survived():
    assert diagnose("class A(B): pass\nclass B(A): pass\nclass C(C): pass\n").servers == ()


def test_a_mixin_behind_the_server_is_found_and_swapped():
    text = "import socketserver as ss\nclass S(ss.TCPServer, ss.ThreadingMixIn): pass\n"
    assert (2, "mixin-order") in found(text)
    assert fix(text, "mixin-order").startswith("class S(ss.ThreadingMixIn, ss.TCPServer)")
    swapped = text.replace("ss.TCPServer, ss.ThreadingMixIn", "ss.ThreadingMixIn, ss.TCPServer")
    assert "mixin-order" not in rules(swapped)


def test_a_mixin_of_one_s_own_behind_the_server_is_found():
    text = """\
    from socketserver import *
    class Mine(ThreadingMixIn): daemon_threads = True
    class S(UnixStreamServer, Mine): pass
    """
    assert (3, "mixin-order") in found(text)


def test_a_server_that_calls_the_mixin_itself_is_in_order():
    text = """\
    from socketserver import *
    class S(TCPServer, ThreadingMixIn):
        def process_request(self, request, address):
            ThreadingMixIn.process_request(self, request, address)
    """
    assert "mixin-order" not in rules(text)


@pytest.mark.parametrize(
    ("change", "rule", "line"),
    [
        (("    timeout = 30\n", ""), "no-timeout", 5),
        (("timeout = 30", "timeout = None"), "no-timeout", 5),
        (("StreamRequestHandler", "BaseRequestHandler"), "no-timeout", 5),
        (("    request_queue_size = 128\n", "    pass\n"), "backlog", 10),
        (("request_queue_size = 128", "request_queue_size = 5"), "backlog", 10),
        (("UnixStreamServer", "TCPServer"), "no-tls", 10),
        (("UnixStreamServer", "UDPServer"), "short-datagrams", 10),
        (("UnixStreamServer", "UnixDatagramServer"), "short-datagrams", 10),
        (("(socketserver.Unix", "(socketserver.ThreadingUnix"), "unbounded-threads", 10),
        (("(socketserver.Unix", "(socketserver.ForkingUnix"), "fork-after-threads", 10),
        (("signal.SIGTERM", "signal.SIGINT"), "no-graceful-stop", 15),
        (("threading.Thread(target=server.shutdown).start()", "server.shutdown()"), "shutdown-deadlock", 14),
        (("self.wfile.write(", "self.server.shutdown() or ("), "shutdown-deadlock", 8),
    ],
)
def test_one_change_to_a_sound_program_makes_one_finding(change, rule, line):
    text = SOUND.replace(*change)
    assert text != SOUND
    assert (line, rule) in found(text)


@pytest.mark.parametrize(
    "change",
    [
        ("    timeout = 30\n", "    def setup(self): self.request.settimeout(3)\n"),
        ("    timeout = 30\n", ""),
        ("    request_queue_size = 128\n", "    request_queue_size = socket.SOMAXCONN\n"),
        ("    request_queue_size = 128\n", "    if True:\n        request_queue_size: int = 128\n"),
        ("    request_queue_size = 128\n", "    pass\nServer.request_queue_size = 128\n"),
        ("self.wfile.write(", "self.request.shutdown(2) or ("),
        ("self.wfile.write(", "threading.Thread(target=lambda: self.server.shutdown()) or ("),
    ],
)
def test_what_is_set_elsewhere_or_done_safely_is_no_finding(change):
    text = SOUND.replace(*change)
    if change[1] == "":
        text += "import socket\nsocket.setdefaulttimeout(30)\n"
    assert text != SOUND
    assert found(text) == []


def test_a_handler_of_datagrams_needs_no_timeout():
    text = """\
    import socketserver
    class H(socketserver.BaseRequestHandler):
        def handle(self): data, sock = self.request
    socketserver.UDPServer(("127.0.0.1", 1), H)
    """
    assert rules(text) == {"short-datagrams"}


def test_a_server_on_loopback_only_needs_no_tls_and_is_told_so_as_a_note():
    text = "import socketserver\nHOST = 'localhost'\nwhere = HOST, 1\nsocketserver.TCPServer(where, None)\n"
    notes = [each.rule for each in diagnose(text).findings if each.note]
    assert notes == ["no-tls"]
    assert "no-tls" not in {each.rule for each in diagnose(text).faults}


@pytest.mark.parametrize(
    "statement",
    [
        "server.socket = context.wrap_socket(server.socket, server_side=True)",
        "server.socket = ssl.wrap_socket(server.socket)",
    ],
)
def test_tls_around_the_listening_socket_is_found(statement):
    text = SOUND.replace("    server.serve_forever()", f"    {statement}\n    server.serve_forever()")
    assert found(text) == [(15, "tls-while-accepting")]
    assert "tls = TLS(" in fix(text, "tls-while-accepting")


def test_tls_in_get_request_is_found_unless_its_handshake_comes_later():
    method = """
    def get_request(self):
        sock, address = super().get_request()
        return context.wrap_socket(sock, server_side=True), address
"""
    text = SOUND.replace("    request_queue_size = 128\n", "    request_queue_size = 128\n" + method)
    assert found(text) == [(15, "tls-while-accepting")]
    assert found(text.replace("server_side=True", "server_side=True, do_handshake_on_connect=False")) == []


@pytest.mark.parametrize("hook", ["service_actions", "get_request", "process_request"])
def test_shutdown_in_what_serve_forever_calls_is_found(hook):
    method = f"\n    def {hook}(self, *args):\n        self.shutdown()\n"
    text = SOUND.replace("    request_queue_size = 128\n", "    request_queue_size = 128\n" + method)
    assert found(text) == [(14, "shutdown-deadlock")]


def test_shutdown_in_a_handler_is_no_deadlock_on_a_thread_of_its_own():
    text = SOUND.replace("self.wfile.write(", "self.server.shutdown() or (")
    threaded = text.replace("(socketserver.Unix", "(socketserver.ThreadingUnix")
    assert "shutdown-deadlock" in rules(text)
    assert "shutdown-deadlock" not in rules(threaded)


def test_shutdown_after_serve_forever_is_no_deadlock():
    assert found(SOUND + "    server.shutdown()\n") == []


def test_shutdown_where_nobody_serves_for_ever_is_found():
    text = SOUND.replace("server.serve_forever()", "server.handle_request()") + "    server.shutdown()\n"
    assert (16, "shutdown-deadlock") in found(text)


def test_shutdown_in_a_signal_handler_is_safe_where_a_thread_serves():
    text = SOUND.replace("threading.Thread(target=server.shutdown).start()", "server.shutdown()").replace(
        "    server.serve_forever()", "    threading.Thread(target=server.serve_forever).start()"
    )
    assert found(text) == []


def test_shutdown_in_a_function_of_xmlrpc_is_found():
    text = """\
    from xmlrpc.server import SimpleXMLRPCServer
    server = SimpleXMLRPCServer(("127.0.0.1", 1))
    def stop():
        server.shutdown()
    server.register_function(stop)
    server.serve_forever()
    """
    assert (4, "shutdown-deadlock") in found(text)


def test_a_thread_that_serves_in_the_background_needs_no_signal():
    text = """\
    import socketserver, threading
    class S(socketserver.UnixDatagramServer): max_packet_size = 65535
    server = S("/tmp/a", None)
    def run():
        server.serve_forever()
    threading.Thread(target=run).start()
    """
    assert found(text) == []


MOVED = (
    SOUND.replace("import socketserver", "from longshore import socketserver")
    .replace("(socketserver.Unix", "(socketserver.ThreadingUnix")
    .replace("    request_queue_size = 128\n", "    pass\n")
    .replace("threading.Thread(target=server.shutdown).start()", "server.shutdown()")
)


def test_a_program_that_has_moved_is_told_what_that_mended():
    diagnosis = diagnose(MOVED)
    assert {each.rule for each in diagnosis.findings} == {"unbounded-threads", "backlog", "shutdown-deadlock"}
    assert all(each.fixed and each.fix == "" for each in diagnosis.findings)
    assert diagnosis.faults == ()


def test_a_program_that_has_moved_is_told_what_is_still_open():
    text = MOVED.replace("ThreadingUnixStreamServer", "ThreadingTCPServer").replace("    timeout = 30\n", "")
    assert rules(text) == {"no-tls", "no-timeout"}
    assert fix(text, "no-tls").startswith("in class Server: tls = TLS(")


@pytest.mark.parametrize(
    ("attribute", "rule"),
    [("timeouts = Timeouts(idle=60)", "no-timeout"), ("tls = TLS('cert.pem', 'key.pem')", "no-tls")],
)
def test_an_attribute_of_longshore_s_closes_what_was_open(attribute, rule):
    text = MOVED.replace("ThreadingUnixStreamServer", "ThreadingTCPServer").replace("    timeout = 30\n", "")
    assert rule in rules(text)
    assert rule not in rules(text.replace("    pass\n", f"    {attribute}\n"))


def test_a_limit_that_is_none_is_unbounded_again():
    text = MOVED.replace("    pass\n", "    limits = Limits(max_threads=None)\n")
    assert rules(text) == {"unbounded-threads"}
    assert "limits = Limits(max_threads=256)" in fix(text, "unbounded-threads")
    assert rules(text.replace("=None", "=50")) == set()


def test_longshore_s_mixin_over_another_module_s_server_bounds_its_threads():
    text = """\
    import http.server
    import longshore.socketserver
    class Server(longshore.socketserver.ThreadingMixIn, http.server.HTTPServer): pass
    """
    assert rules(text, fixed=True) == {"unbounded-threads", "backlog"}
    assert rules(text) == {"no-tls"}


def test_what_is_said_to_be_mended_is_mended_by_the_drop_in():
    from longshore import socketserver as moved

    class Behind(moved.TCPServer, moved.ThreadingMixIn):
        pass

    class Other(moved.ThreadingMixIn, http.server.HTTPServer):
        pass

    assert Behind.process_request is moved.ThreadingMixIn.process_request
    text = "from longshore.socketserver import *\nclass S(TCPServer, ThreadingMixIn): pass\n"
    assert "mixin-order" in rules(text, fixed=True)
    for server in (Behind, Other):
        with server(("127.0.0.1", 0), None) as made:
            assert made.request_queue_size > 1000
            assert made.limits.max_threads == 256
    assert moved.UDPServer.max_packet_size >= 65535


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (http.server, {"ThreadingHTTPServer"}),
        (xmlrpc.server, {"MultiPathXMLRPCServer", "DocXMLRPCServer", "SimpleXMLRPCServer"}),
        (logging.config, {"ConfigSocketReceiver"}),
        (wsgiref.simple_server, {"WSGIServer"}),
        (multiprocessing.managers, set()),
        (socketserver, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_real_programs_are_read(module, expected):
    diagnosis = diagnose(Path(module.__file__).read_text())
    assert expected <= set(diagnosis.servers)
    assert bool(diagnosis.faults) == bool(expected)


def test_the_configuration_listener_of_logging_has_unbounded_threads_and_no_timeout():
    text = Path(logging.config.__file__).read_text()
    lines = text.splitlines()
    complaints = {rule: lines[line - 1].split()[1] for line, rule in found(text)}
    assert complaints["no-timeout"].startswith("ConfigStreamHandler")
    assert {"unbounded-threads", "backlog", "no-tls"} <= rules(text)


@pytest.mark.slow
@pytest.mark.timeout(60)  # two hundred modules
def test_no_module_of_the_standard_library_is_too_much():
    folder = Path(socketserver.__file__).parent
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("asyncio/*.py")):
        diagnose(path.read_text(errors="replace"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", "line 1: SyntaxError"),
        ("a\n\n  b\n", "line 3: IndentationError"),
        ("print 'hello'\n", "line 1: SyntaxError"),
        ("a\0b", "null bytes"),
        ("'\ud800'", "cannot be read as Python"),
        ("(" * 5000, "nested"),
        ("-" * 100_000 + "1", "nested|too complex"),
    ],
)
def test_what_is_no_python_is_told_in_one_error(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        diagnose(text)
    assert "\n" not in str(caught.value)


def test_depth_that_the_parser_takes_is_no_trouble():
    chain = "a" + ".b" * 500
    diagnose(f"import socketserver\nclass S(socketserver.TCPServer, {chain}, {'-' * 80}1): x = {chain}()\n")


def test_a_stray_backslash_is_not_our_business():
    assert diagnose("x = '\\d'\n").servers == ()


PIECES = st.sampled_from(
    [
        "import socketserver",
        "import socketserver as ss",
        "from socketserver import *",
        "from longshore import *",
        "from longshore import socketserver",
        "from . import socketserver",
        "import http.server as h",
        "\n",
        "\n    ",
        "class S(socketserver.TCPServer, socketserver.ThreadingMixIn):",
        "class S(S, *b, k=1):",
        "class H(ss.BaseRequestHandler):",
        "pass",
        "timeout = 3",
        "request_queue_size = -1",
        "max_packet_size = b'x'",
        "limits = None",
        "tls: int = 3",
        "def handle(self):",
        "self.server.shutdown()",
        "self.shutdown()",
        "S(('', 1), H)",
        "S(*a, **k)",
        "s = S",
        "s.socket = c.wrap_socket(s.socket)",
        "lambda: s.shutdown()",
        "signal.signal(signal.SIGTERM, lambda: s.shutdown())",
        "with S() as s:",
        "async def f():",
        "await s.serve_forever()",
        "s.serve_forever()",
        "make_server(1, 2, 3, 4)",
        "from wsgiref.simple_server import make_server",
        "x = y = S",
        "(a := S)",
        "[S for S in S]",
        "S[0].serve_forever()",
    ]
)


@given(st.lists(PIECES, max_size=20).map("".join) | st.text() | st.lists(PIECES, max_size=12).map("\n".join))
def test_any_text_is_a_diagnosis_or_a_config_error(text):
    try:
        diagnosis = diagnose(text)
    except ConfigError:
        return
    for finding in diagnosis.findings:
        assert 1 <= finding.line <= text.count("\n") + 1
        assert bool(finding.fix) != finding.fixed
        assert "\n" not in finding.message + finding.fix + finding.subject


def test_every_rule_is_explained_in_the_reference():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs/reference/command-line.md").read_text().partition("| rule |")[2].partition("\n\n")[0]
    source = (root / "src/longshore/doctor/complaints.py").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == set(
        re.findall(r'^ {8,16}"([a-z]+(?:-[a-z]+)*)",$', source, re.MULTILINE)
    )
