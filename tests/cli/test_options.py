"""The flags of `longshore serve`, read plainly and read by click, and what it serves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from longshore.cli import commands, options, serve
from longshore.settings import options as all_options

FAILING = "def failing(connection):\n    connection.recv(10)\n    raise ValueError('no good')\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["echo.py", "--bind", "tcp://:0"],
        ["--bind", "tcp://:0", "--bind=unix:///x", "echo.py"],
        ["echo.py", "--idle-timeout", "none", "--idle-timeout=3", "--alpn", "h2", "--alpn", "http/1.1"],
        ["echo.py", "--config", "a.toml", "--debug", "--workers", "1"],
        ["echo.py"],
    ],
)
def test_a_plain_command_line_means_the_same_with_and_without_click(monkeypatch, arguments):
    seen = []
    monkeypatch.setattr(serve, "serve", lambda given: seen.append(given) or 0)
    assert commands.run(["serve", *arguments]) == 0
    assert seen == [options.read_plain(arguments)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        [],
        ["a.py", "b.py"],
        ["a.py", "--no-such-option", "1"],
        ["a.py", "--bind"],
        ["a.py", "--bind", "--debug"],
        ["a.py", "--"],
        ["a.py", "-h"],
    ],
)
def test_what_is_not_plain_goes_to_click(arguments):
    assert options.read_plain(arguments) is None


def test_every_option_of_the_dataclasses_is_a_flag_with_its_help(run):
    text = " ".join(run("serve", "--help").stdout.decode().split())
    for option in all_options():
        assert f"{option.flag} " in text
        assert option.help.split()[0] in text


@pytest.mark.parametrize("words", [("--help",), ("serve", "--help"), ("connect", "--help")])
def test_help_teaches_by_example(run, words):
    result = run(*words)
    text = result.stdout.decode()
    assert (result.returncode, result.stderr) == (0, b"")
    assert len(re.findall(r"longshore (?:serve|connect) ", text.partition("Examples:")[2])) >= 3


def test_without_a_command_help_is_shown_and_the_status_is_that_of_a_mistake(run):
    result = run()
    assert result.returncode == 2
    assert b"Examples:" in result.stderr


def test_version_is_one_line(run):
    result = run("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"longshore \d+\.\d+\.\d+\S* \(Python 3\.\d+\.\S+\)\n", result.stdout.decode())


def test_the_first_line_says_what_is_served_where_and_how(serving, app):
    binds = ["--bind", "tcp://127.0.0.1:0", "--bind", f"unix://{app}/echo.sock"]
    with serving("echo.py", *binds, cwd=app) as server:
        assert re.fullmatch(
            rf"longshore: serving echo on tcp://127\.0\.0\.1:[1-9]\d+ and unix://{app}/echo\.sock "
            r"\(threads, \w+ reactor\), Ctrl-C drains\n",
            server.first_line,
        )
    assert server.stop() == 0
    assert not (app / "echo.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(serving, app, number):
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        assert server.stop(number) == 0
        assert b"Traceback" not in server.rest


def test_an_idle_client_does_not_keep_it_from_ending(serving, app):
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        host, _, port = server.url.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port))):
            assert server.stop() == 0


@pytest.mark.slow
def test_a_command_line_wins_over_environment_and_file(serving, app):
    (app / "longshore.toml").write_text(
        f"[serve]\nbind = ['unix://{app}/file.sock']\nstrategy = 'inline'\nframing = 'lines'\n"
    )
    with serving("echo.py", cwd=app) as server:
        assert f"unix://{app}/file.sock (inline," in server.first_line
    with serving("echo.py", cwd=app, LONGSHORE_STRATEGY="green") as server:
        assert f"unix://{app}/file.sock (green," in server.first_line
    with serving("echo.py", "--strategy", "threads", cwd=app, LONGSHORE_STRATEGY="green") as server:
        assert f"unix://{app}/file.sock (threads," in server.first_line


def test_a_variable_may_name_several_addresses(serving, app):
    with serving("echo.py", cwd=app, LONGSHORE_BIND=f"unix://{app}/a unix://{app}/b") as server:
        assert f"unix://{app}/a and unix://{app}/b" in server.first_line


@pytest.mark.slow
def test_a_framing_of_ones_own_is_taken_by_module_and_name(serving, run, app):
    (app / "own.py").write_text(
        "from longshore.framing import Delimited\n\n"
        "SEMICOLONS = Delimited(b';')\n\n"
        "class Bars(Delimited):\n"
        "    def __init__(self):\n"
        "        super().__init__(b'|')\n"
    )
    for name, end in (("SEMICOLONS", b";"), ("Bars", b"|")):
        arguments = ["several.py:answer", "--bind", "tcp://127.0.0.1:0", "--framing", f"own:{name}"]
        with serving(*arguments, cwd=app) as server:
            sent = b"a" + end + b"b" + end
            assert run("connect", server.url, stdin=sent).stdout == b"got a" + end + b"got b" + end
            told = run("connect", server.url, "--framing", f"own.py:{name}", stdin=b"a\nb\n", cwd=app)
            assert told.stdout == b"got a\ngot b\n"


def test_a_proxy_is_believed_that_the_command_line_trusts(serving, run, app):
    (app / "who.py").write_text("def who(connection):\n    connection.sendall(f'{connection.peer}'.encode())\n")
    with serving("who.py", "--bind", "tcp://127.0.0.1:0", "--proxy-trusted", "127.0.0.0/8", cwd=app) as server:
        assert run("connect", server.url, "--proxy-header", "1").stdout.startswith(b"127.0.0.1:")
        assert run("connect", server.url, stdin=b"no header\n").stdout == b""


def test_a_handler_of_the_standard_library_is_served(serving, run, app):
    with serving("several.py:Old", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        assert server.first_line.startswith("longshore: serving Old on tcp://127.0.0.1:")
        assert run("connect", server.url, stdin=b"one\ntwo\n").stdout == b"one\n"


@pytest.mark.slow
def test_a_module_is_found_in_the_current_directory(serving, run, app):
    package = app / "gateway"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "meters.py").write_text("def meter(message, connection):\n    return b'ok'\n")
    for target in ("gateway.meters:meter", "gateway.meters"):
        with serving(target, "--bind", "tcp://127.0.0.1:0", "--framing", "lines", cwd=app) as server:
            assert run("connect", server.url, stdin=b"7\n").stdout == b"ok\n"


def test_notices_come_after_the_first_line_and_a_failed_handler_has_one_traceback(serving, run, app):
    (app / "failing.py").write_text(FAILING)
    with serving("failing.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        assert server.first_line.startswith("longshore: serving failing on ")
        run("connect", server.url, stdin=b"x\n")
        server.stop()
        text = server.rest.decode()
        assert text.count("Traceback") == 1
        assert text.count("failing failed for 127.0.0.1:") == 1
        assert "ValueError: no good" in text


def test_json_lines_are_all_json_the_first_one_too(serving, run, app):
    (app / "failing.py").write_text(FAILING)
    arguments = ["failing.py", "--bind", "tcp://127.0.0.1:0", "--log-format", "json", "--log-level", "debug"]
    with serving(*arguments, cwd=app) as server:
        started = json.loads(server.first_line)
        assert started["event"] == "ServerStarted"
        assert started["level"] == "info"
        run("connect", started["addresses"][0], stdin=b"x\n")
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.rest.decode().splitlines()]
    names = [line["event"] for line in lines]
    assert names.count("HandlerFailed") == 1
    assert names.count("ConnectionOpened") == names.count("ConnectionClosed") == 1
    assert names[-1] == "ServerStopped"
    failed = lines[names.index("HandlerFailed")]
    assert failed["error"] == "ValueError: no good"
    assert failed["traceback"].startswith("Traceback")
    assert all({"time", "level", "event"} <= line.keys() for line in lines)


def test_the_first_line_of_json_comes_at_every_level(serving, app):
    arguments = ["echo.py", "--bind", "tcp://127.0.0.1:0", "--log-format", "json", "--log-level", "error"]
    with serving(*arguments, cwd=app) as server:
        assert json.loads(server.first_line)["event"] == "ServerStarted"
        server.stop()
        assert server.rest == b""


def test_serving_imports_nothing_that_it_does_not_need(app, command, environment):
    program = (
        "import atexit, sys\n"
        "heavy = {'asyncio', 'ssl', 'multiprocessing', 'click', 'rich', 'logging', 'json', 'tomllib',"
        " 'longshore.cli.connect', 'longshore.client', 'readline'}\n"
        "from longshore.events import ServerStarted\n"
        "from longshore.cli import main, serve\n"
        "def started(self, event, start=serve._Printer._start):\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr, flush=True)\n"
        "    start(self, event)\n"
        "serve._Printer._start = started\n"
        "main(['serve', 'echo.py', '--bind', 'tcp://127.0.0.1:0'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=app, env=environment(), stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"[]\n"
        assert process.stderr.readline().startswith(b"longshore: serving echo")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(15) == 0
