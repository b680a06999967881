"""`longshore doctor` in a process of its own."""

from __future__ import annotations

import http.server
import json

import pexpect
import pytest

FAULTY = """\
import socketserver

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())

class Server(socketserver.TCPServer, socketserver.ThreadingMixIn):
    pass

print("this program must not be run")
Server(("", 5000), Handler).serve_forever()
"""


@pytest.fixture
def faulty(tmp_path):
    (tmp_path / "server.py").write_text(FAULTY)
    return tmp_path


def test_without_a_file_it_reports_the_machine_and_that_is_no_failure(run, tmp_path):
    result = run("doctor", cwd=tmp_path)
    text = result.stdout.decode()
    assert (result.returncode, result.stderr) == (0, b"")
    for name in ("longshore", "python", "reactor", "greenlet", "descriptors", "net.core.somaxconn", "cgroup"):
        assert f"  {name}" in text
    assert "\x1b" not in text


def test_the_machine_as_json(run, tmp_path):
    result = run("doctor", "--json", cwd=tmp_path)
    measured = json.loads(result.stdout)["vitals"]
    assert {"name", "value", "verdict", "note", "fix"} == set(measured[0])
    assert {each["verdict"] for each in measured} <= {"ok", "look", "unknown"}


def test_the_limits_are_those_that_a_server_would_have_here(run, tmp_path):
    (tmp_path / "longshore.toml").write_text("[limits]\nmax_connections = 7\n")
    assert b"for max_connections=7)" in run("doctor", cwd=tmp_path).stdout
    assert b"for max_connections=8)" in run("doctor", cwd=tmp_path, LONGSHORE_MAX_CONNECTIONS="8").stdout


def test_a_configuration_that_cannot_be_used_is_reported_with_the_rest(run, tmp_path):
    (tmp_path / "longshore.toml").write_text("[limits]\nmax_conections = 7\n")
    result = run("doctor", cwd=tmp_path)
    assert result.returncode == 0
    assert b"look  configuration" in result.stdout
    assert b"fix: Did you mean max_connections?" in result.stdout
    assert b"net.core.somaxconn" in result.stdout


def test_a_program_is_read_and_not_run_and_each_finding_has_its_line_and_its_fix(run, faulty):
    result = run("doctor", "server.py", cwd=faulty)
    lines = result.stdout.decode().splitlines()
    assert (result.returncode, result.stderr) == (1, b"")
    assert "this program must not be run" not in lines
    for place in ("3: no-timeout: ", "7: backlog: ", "7: mixin-order: ", "7: no-tls: ", "7: unbounded-threads: "):
        index = next(number for number, line in enumerate(lines) if line.startswith(f"server.py:{place}"))
        assert lines[index + 1].startswith("    fix: ")
    assert lines[-1].startswith("1 server in server.py, 6 things to mend.")
    assert lines[-1].endswith("change line 1 to: from longshore import socketserver")


def test_a_program_as_json(run, faulty):
    result = run("doctor", "server.py", "--json", cwd=faulty)
    report = json.loads(result.stdout)
    assert result.returncode == 1
    assert (report["file"], report["servers"]) == ("server.py", ["Server"])
    assert {"line", "rule", "subject", "message", "fix", "fixed", "note"} == set(report["findings"][0])


def test_a_program_without_faults_ends_with_0_and_says_so(run, tmp_path):
    (tmp_path / "sound.py").write_text(
        "from longshore import TLS, socketserver\n"
        "class Server(socketserver.ThreadingTCPServer):\n"
        "    tls = TLS('cert.pem', 'key.pem')\n"
    )
    result = run("doctor", "sound.py", cwd=tmp_path)
    text = result.stdout.decode()
    assert result.returncode == 0
    assert "Already mended by longshore.socketserver:\nsound.py:2: backlog: Server\n" in text
    assert text.endswith("1 server in sound.py, nothing to mend.\n")


def test_a_program_that_is_no_server_ends_with_0_and_says_so(run, app):
    result = run("doctor", "echo.py", cwd=app)
    assert (result.returncode, result.stdout) == (0, b"echo.py: nothing of socketserver in it, so nothing to say.\n")


def test_a_real_program_is_read(run):
    result = run("doctor", http.server.__file__)
    assert result.returncode == 1
    assert b"unbounded-threads: ThreadingHTTPServer" in result.stdout


def test_a_file_in_another_encoding_is_read(run, tmp_path):
    (tmp_path / "latin.py").write_bytes(
        b"# coding: latin-1\nimport socketserver\nclass M\xfcll(socketserver.UDPServer): 0\n"
    )
    assert "latin.py:3: short-datagrams: Müll" in run("doctor", "latin.py", cwd=tmp_path).stdout.decode()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("broken.py", b"x = 1\ny = (\n", "broken.py, line 2: SyntaxError: '(' was never closed"),
        ("binary.py", b"\x7fELF\x02\x01\x01\0\0\xff\xfe", "binary.py is not text"),
        ("nul.py", b"x = 1\0\n", "nul.py is not text: it has NUL bytes"),
        ("coded.py", b"# coding: no-such-coding\n", "coded.py is not text: unknown encoding"),
    ],
)
def test_what_is_no_python_is_one_line_and_a_hint(run, tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    result = run("doctor", name, cwd=tmp_path)
    lines = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (2, b"")
    assert lines[0].startswith(f"longshore: {words}")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("ecko.py", "ecko.py: No such file or directory", "Did you mean echo.py?"),
        (
            "echo.py:echo",
            "echo.py:echo: No such file or directory",
            "Did you mean echo.py? The doctor reads a whole file.",
        ),
        (".", ". is a directory", "Name a Python file in it."),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_a_hint(run, app, name, words, hint):
    result = run("doctor", name, cwd=app)
    assert result.returncode == 2
    assert result.stderr.decode().splitlines() == [f"longshore: {words}", f"hint: {hint}"]


@pytest.mark.parametrize(
    ("variables", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]
)
def test_colours_are_for_terminals_that_want_them(command, environment, faulty, variables, coloured):
    words = [*command[1:], "doctor", "server.py"]
    output, status = pexpect.run(
        " ".join([command[0], *words]), cwd=str(faulty), env=environment(**variables), withexitstatus=True
    )
    assert status == 1
    assert (b"\x1b[33mmixin-order\x1b[0m" in output) == coloured
