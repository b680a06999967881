"""`longshore serve --reload`: real files that change, under a real server that clients talk to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pexpect
import pytest

pytestmark = pytest.mark.slow

VERSION = """\
def answer(connection):
    while data := connection.recv(65536):
        connection.sendall(b"%s " + data)
"""


@pytest.fixture
def source(tmp_path):
    """Writes `app.py` at once, as editors do: `source("one")` for a handler that answers "one ..."."""

    def write(version, text=VERSION):
        new = tmp_path / "app.new"
        new.write_text(text % version if "%s" in text else text)
        new.replace(tmp_path / "app.py")

    write("one")
    return write


@pytest.fixture
def reloading(serving, tmp_path, source):
    """`longshore serve app.py --reload`, entered once it accepts and watches."""
    servers = []

    def start(*arguments, target="app.py", bind="tcp://127.0.0.1:0", **variables):
        server = serving(target, "--reload", "--bind", bind, *arguments, cwd=tmp_path, **variables)
        servers.append(server)
        assert "://" in server.first_line, server.first_line + server.line()
        server.notice = server.line()
        return server

    yield start
    for server in servers:
        server.stop()


def until(server, pattern):
    """The lines up to the first that has `pattern`."""
    lines = []
    while not lines or not re.search(pattern, lines[-1]):
        lines.append(server.line())
        assert lines[-1], f"no {pattern} in {lines}"
    return lines


def dial(url):
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def ask(url):
    with dial(url) as sock:
        sock.sendall(b"hello")
        return sock.recv(100)


def test_a_change_starts_the_server_anew_on_the_same_port(reloading, source):
    server = reloading()
    assert ask(server.url) == b"one hello"
    source("two")
    lines = until(server, "longshore: serving")
    assert "app.py changed: starting anew" in lines[0]
    assert lines[-1] == server.first_line
    assert ask(server.url) == b"two hello"


def test_what_is_watched_is_told_after_the_first_line(reloading, tmp_path):
    server = reloading()
    assert server.first_line.startswith("longshore: serving answer on tcp://127.0.0.1:")
    assert server.notice.endswith(f"watching Python files in {tmp_path}\n")


def test_nobody_is_refused_while_the_server_starts_anew(reloading, source, tmp_path):
    os.mkfifo(tmp_path / "gate")
    server = reloading()
    # The new server waits at the gate, so it cannot accept; who connects meanwhile is served afterwards.
    source("two", "open('gate').read()\n" + VERSION)
    until(server, "stopped in")
    with dial(server.url) as sock:
        sock.sendall(b"early")
        (tmp_path / "gate").write_text("")
        assert sock.recv(100) == b"two early"


def test_source_that_cannot_be_imported_is_told_and_the_next_change_serves_again(reloading, source):
    server = reloading()
    source("two", "def broken(:\n")
    lines = until(server, "the next change of a Python file starts it again")
    assert [line for line in lines if line.startswith("longshore: ")] == [
        "longshore: cannot import app.py: app.py, line 1: SyntaxError: invalid syntax\n"
    ]
    with dial(server.url) as sock:
        sock.sendall(b"patient")
        source("three")
        until(server, "longshore: serving")
        assert sock.recv(100) == b"three patient"


def test_source_that_is_broken_from_the_start_is_waited_for(serving, source, tmp_path):
    source("", "def broken(:\n")
    with serving("app.py", "--reload", "--bind", "tcp://127.0.0.1:0", cwd=tmp_path) as server:
        assert server.first_line.startswith("longshore: cannot import app.py: app.py, line 1: SyntaxError")
        until(server, "not serving")
        source("two")
        assert ask(re.search(r"tcp://\S+", until(server, "longshore: serving")[-1]).group()) == b"two hello"


def test_a_server_that_was_never_there_ends_with_its_status(serving, source, tmp_path):
    source("", "def broken(:\n")
    with serving("app.py", "--reload", "--bind", "tcp://127.0.0.1:0", cwd=tmp_path) as server:
        until(server, "not serving")
        assert server.stop() == 2


def test_a_server_that_crashes_is_told_and_started_by_the_next_change(reloading, source):
    source("two", "import os, signal\ndef answer(connection):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    server = reloading()
    dial(server.url).close()
    until(server, "ended by SIGKILL: the next change")
    source("three")
    until(server, "longshore: serving")
    assert ask(server.url) == b"three hello"


def test_a_server_that_ends_itself_ends_the_command(reloading, source):
    source("two", "def answer(connection):\n    connection.server.drain()\n")
    server = reloading()
    dial(server.url).close()
    until(server, "stopped in")
    assert server.stop(0) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains(reloading, number):
    server = reloading()
    with dial(server.url) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"one hello"
        assert server.stop(number) == 0
        assert sock.recv(100) == b""
    assert b"draining 1 connection" in server.rest
    assert b"Traceback" not in server.rest


#: Busy until somebody opens the gate, and then once more.
BUSY = """\
def answer(connection):
    connection.sendall(b"busy")
    open("gate").read()
    connection.sendall(b"done")
    open("gate").read()
"""


def test_a_second_signal_stops_at_once(reloading, source, tmp_path):
    os.mkfifo(tmp_path / "gate")
    source("", BUSY)
    server = reloading("--drain-timeout", "600")
    with dial(server.url) as sock:
        assert sock.recv(4) == b"busy"
        os.kill(server.pid, signal.SIGINT)
        until(server, "draining 1 connection")
        assert server.stop(signal.SIGINT) == 0


def test_ctrl_c_on_a_terminal_counts_once(command, environment, source, tmp_path):
    os.mkfifo(tmp_path / "gate")
    source("", BUSY)
    words = [*command[1:], "serve", "app.py", "--reload", "--bind", "tcp://127.0.0.1:0", "--drain-timeout", "600"]
    child = pexpect.spawn(command[0], words, cwd=str(tmp_path), env=environment(), encoding="utf-8", timeout=15)
    child.expect(r"serving answer on (tcp://\S+)")
    url = child.match.group(1)
    child.expect("watching Python files")
    with dial(url) as sock:
        assert sock.recv(4) == b"busy"
        child.sendintr()
        child.expect("draining 1 connection")
        # The terminal has sent it to the server's process too; counted twice, it would have cut the connection.
        (tmp_path / "gate").write_text("")
        assert sock.recv(4) == b"done"
        child.sendintr()
        child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_unix_socket_s_file_stays_over_a_restart_and_goes_at_the_end(reloading, source, tmp_path):
    server = reloading(bind=f"unix://{tmp_path}/app.sock")
    assert f" on unix://{tmp_path}/app.sock (" in server.first_line
    before = (tmp_path / "app.sock").stat().st_ino
    source("two")
    assert until(server, "longshore: serving")[-1] == server.first_line
    assert (tmp_path / "app.sock").stat().st_ino == before
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{tmp_path}/app.sock")
        sock.sendall(b"hello")
        assert sock.recv(100) == b"two hello"
    assert server.stop() == 0
    assert not (tmp_path / "app.sock").exists()


def test_datagrams_wait_for_the_new_server(reloading, source):
    source("one", "def answer(message, peer):\n    return b'%s ' + message\n")
    server = reloading(bind="udp://127.0.0.1:0")
    host, _, port = server.url.removeprefix("udp://").rpartition(":")
    source("two", "def answer(message, peer):\n    return b'%s ' + message\n")
    until(server, "stopped in")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect((host, int(port)))
        sock.send(b"early")
        assert sock.recv(100) == b"two early"


def test_tls_is_spoken_before_and_after(reloading, source, tmp_path, run):
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    server = reloading("--certfile", "cert.pem", bind="tls://127.0.0.1:0")
    assert server.url.startswith("tls://")
    for version in (b"one", b"two"):
        result = run("connect", server.url, "--cafile", "ca.pem", stdin=b"hello", cwd=tmp_path)
        assert result.stdout == version + b" hello"
        if version == b"one":
            source("two")
            assert until(server, "longshore: serving")[-1] == server.first_line


def test_a_module_is_watched_with_what_lies_beside_it(reloading, tmp_path):
    package = tmp_path / "gateway"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "meters.py").write_text("from texts import TEXT\ndef meter(connection):\n    connection.sendall(TEXT)\n")
    (tmp_path / "texts.py").write_text("TEXT = b'one'\n")
    server = reloading(target="gateway.meters:meter")
    assert server.notice.endswith(f"watching Python files in {tmp_path}\n")
    with dial(server.url) as sock:
        assert sock.recv(100) == b"one"
    (tmp_path / "texts.new").write_text("TEXT = b'two'\n")
    (tmp_path / "texts.new").replace(tmp_path / "texts.py")
    assert "texts.py changed" in until(server, "longshore: serving")[0]
    with dial(server.url) as sock:
        assert sock.recv(100) == b"two"


def test_another_directory_is_watched_too_and_other_files_are_not(reloading, source, tmp_path_factory, tmp_path):
    other = tmp_path_factory.mktemp("library")
    server = reloading("--reload-dir", str(other))
    assert server.notice.endswith(f"watching Python files in {tmp_path} and {other}\n")
    (tmp_path / "notes.txt").write_text("no Python")
    (other / "library.py").write_text("x = 1\n")
    # The first change that it tells of is that of the Python file, though the other came first.
    assert "library.py changed" in server.line()
    until(server, "longshore: serving")


def test_with_json_every_line_is_json(reloading, source):
    server = reloading("--log-format", "json")
    source("two")
    lines = [server.first_line, server.notice, *until(server, '"ServerStarted"')]
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events][:2] == ["ServerStarted", "log"]
    assert "watching Python files" in events[1]["message"]
    server.stop()
    assert all(json.loads(line) for line in server.rest.splitlines())


def test_the_server_drains_when_the_one_who_keeps_its_sockets_is_gone(reloading, source):
    source(
        "", "import os\ndef answer(connection):\n    connection.sendall(b'%d' % os.getpid())\n    connection.recv(1)\n"
    )
    server = reloading()
    with dial(server.url) as sock:
        child = int(sock.recv(100))
        assert child != server.pid
        os.kill(server.pid, signal.SIGKILL)
        sock.settimeout(5)
        try:
            assert sock.recv(100) == b""
            until(server, "stopped in")
        finally:
            # Nobody else ends it where it has not noticed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_processes_that_a_handler_starts_inherit_nothing_of_it(reloading, source):
    source(
        "",
        "import os, subprocess, sys\n"
        "def answer(connection):\n"
        '    code = \'import os; print(os.environ.get("LONGSHORE_HANDOVER"), sorted(os.listdir("/proc/self/fd")))\'\n'
        "    connection.sendall(subprocess.check_output([sys.executable, '-c', code], close_fds=False))\n",
    )
    server = reloading()
    with dial(server.url) as sock:
        # Standard streams, and the one that lists them.
        assert sock.makefile().read() == "None ['0', '1', '2', '3']\n"


WITHOUT_WATCHFILES = """
import sys
sys.modules["watchfiles"] = None
from longshore.cli import main
main()
"""


def test_without_the_watcher_it_is_told_how_to_get_it(source, environment, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_WATCHFILES, "serve", "app.py", "--reload", "--bind", "tcp://127.0.0.1:0"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "longshore: --reload needs the watchfiles package, which is not installed",
        "hint: pip install 'longshore[reload]'",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["app.py", "--reload"], 2, "no address to serve on"),
        (["ap.py", "--reload", "--bind", "tcp://127.0.0.1:0"], 2, "Did you mean app.py?"),
        (["nowhere.app:x", "--reload", "--bind", "tcp://127.0.0.1:0"], 2, "there is no module 'nowhere.app'"),
        (["app.py", "--reload", "--bind", "tcp://192.0.2.1:0"], 1, "192.0.2.1"),
        (
            ["app.py", "--reload", "--bind", "tcp://127.0.0.1:0", "--workers", "2"],
            2,
            "--reload serves with one process",
        ),
        (["app.py", "--reload", "--bind", "tcp://127.0.0.1:0", "--reload-dir", "gone"], 2, "no such directory"),
        (["app.py", "--bind", "tcp://127.0.0.1:0", "--reload-dir", "."], 2, "Add --reload"),
    ],
)
def test_what_cannot_work_ends_it_at_once(run, source, tmp_path, arguments, status, words):
    result = run("serve", *arguments, cwd=tmp_path)
    assert result.returncode == status
    assert words in result.stderr.decode()
    assert len(result.stderr.splitlines()) == 2
