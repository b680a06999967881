"""What is wrong on a command line is told in one line and a hint, with the right exit status and no traceback."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from longshore.addresses import parse
from longshore.errors import ConfigError


def assert_told(result, status, *words):
    text = result.stderr.decode()
    lines = text.splitlines()
    assert result.returncode == status, text
    assert "Traceback" not in text
    assert lines[0].startswith("longshore: "), text
    assert len(lines) == 2, text
    assert lines[1].startswith("hint: "), text
    for word in words:
        assert word in text, text
    assert result.stdout == b""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_port_that_is_taken_is_told_with_the_process_that_has_it(run, serving, app):
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        result = run("serve", "echo.py", "--bind", server.url, cwd=app)
        assert_told(result, 1, server.url, "in use", str(server.pid), "hint: ")


def test_a_unix_socket_that_is_taken_is_told_with_the_process_that_has_it(run, serving, app):
    url = f"unix://{app}/echo.sock"
    with serving("echo.py", "--bind", url, cwd=app) as server:
        assert_told(run("serve", "echo.py", "--bind", url, cwd=app), 1, url, "in use", str(server.pid))


#: Gives up what lets root write everywhere, and then is the command; owned files stay readable (capset(2)).
WITHOUT_PRIVILEGES = """
import ctypes
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
nothing = (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0
from longshore.cli import main
main()
"""


def test_a_missing_permission_is_told(app, environment):
    closed = app / "closed"
    closed.mkdir(mode=0o500)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVILEGES, "serve", "echo.py", "--bind", f"unix://{closed}/echo.sock"],
        cwd=app,
        env=environment(),
        capture_output=True,
        timeout=15,
    )
    assert_told(result, 1, f"unix://{closed}/echo.sock", "ermission", "hint: ")


def test_an_unknown_host_is_told(run, app):
    url = "tcp://no-such-host.invalid:5000"
    assert_told(run("serve", "echo.py", "--bind", url, cwd=app), 1, "no-such-host.invalid")
    assert_told(run("connect", url), 1, "no-such-host.invalid")


def test_an_address_of_another_machine_is_told(run, app):
    assert_told(run("serve", "echo.py", "--bind", "tcp://192.0.2.1:5000", cwd=app), 1, "192.0.2.1")


def test_a_file_that_is_not_there_is_told_with_the_one_that_may_be_meant(run, app):
    result = run("serve", "ecko.py", "--bind", "tcp://127.0.0.1:0", cwd=app)
    assert_told(result, 2, "ecko.py", "no such file", "hint: Did you mean echo.py?")


def test_a_module_that_is_not_there_is_told(run, app):
    assert_told(run("serve", "no_such.module:Echo", "--bind", "tcp://127.0.0.1:0", cwd=app), 2, "no_such.module")


def test_a_name_that_is_not_in_the_file_is_told_with_the_one_that_may_be_meant(run, app):
    result = run("serve", "several.py:Uper", "--bind", "tcp://127.0.0.1:0", cwd=app)
    assert_told(result, 2, "'Uper'", "hint: Did you mean Upper?")


def test_several_handlers_in_a_file_are_told_as_targets_to_choose_from(run, app):
    result = run("serve", "several.py", "--bind", "tcp://127.0.0.1:0", cwd=app)
    assert_told(result, 2, "3 handlers", "several.py:Upper", "several.py:Old", "several.py:answer")


def test_a_file_without_a_handler_is_told(run, app):
    (app / "empty.py").write_text("LIMIT = 3\n")
    assert_told(run("serve", "empty.py", "--bind", "tcp://127.0.0.1:0", cwd=app), 2, "empty.py", "no handler", "hint: ")


def test_a_name_that_is_no_handler_is_told(run, app):
    (app / "value.py").write_text("LIMIT = 3\n")
    assert_told(run("serve", "value.py:LIMIT", "--bind", "tcp://127.0.0.1:0", cwd=app), 2, "not a handler")


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("import os\nimport no_such_thing\n", 2, "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def broken(:\n", 1, "SyntaxError"),
        ("x = 1\n\ny = x / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('not today')\n", 2, "SystemExit: not today"),
    ],
)
def test_a_target_that_cannot_be_imported_is_told_with_file_line_and_exception(run, app, source, line, words):
    (app / "broken.py").write_text(source)
    for target in ("broken.py", "broken:Echo"):
        result = run("serve", target, "--bind", "tcp://127.0.0.1:0", cwd=app)
        assert_told(result, 2, f"broken.py, line {line}: {words}")


def test_debug_shows_the_traceback(run, app):
    (app / "broken.py").write_text("1 / 0\n")
    result = run("serve", "broken.py", "--bind", "tcp://127.0.0.1:0", "--debug", cwd=app)
    assert result.returncode == 1
    assert b"Traceback" in result.stderr
    assert b"ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(("words", "status"), [(["--version"], 0), (["serve", "nothing.py"], 2)])
def test_a_closed_standard_error_leaves_the_status_and_standard_output_alone(command, environment, words, status):
    shut = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command, *words]
    result = subprocess.run(shut, env=environment(), stdout=subprocess.PIPE, timeout=15)
    assert result.returncode == status
    assert b"longshore: " not in result.stdout


@pytest.mark.parametrize(
    "url", ["127.0.0.1:5000", "http://127.0.0.1:5000", "tcp://", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:1?nodely=0"]
)
def test_a_wrong_url_is_told(run, app, url):
    assert_told(run("serve", "echo.py", "--bind", url, cwd=app), 2, url)
    assert_told(run("connect", url), 2, url)


@pytest.mark.parametrize(("scheme", "meant"), [("http", "tcp"), ("https", "tls"), ("ucp", "udp"), ("unx", "unix")])
def test_a_scheme_of_others_or_misspelt_is_told_with_the_one_that_may_be_meant(scheme, meant):
    with pytest.raises(ConfigError) as caught:
        parse(f"{scheme}://127.0.0.1:5000")
    assert caught.value.hint == f"Did you mean {meant}://127.0.0.1:5000?"


def test_a_url_without_a_scheme_is_completed_in_the_hint(run):
    assert_told(run("connect", "127.0.0.1:5000"), 2, "hint: Did you mean tcp://127.0.0.1:5000?")


def test_no_address_is_told_with_an_example(run, app):
    assert_told(run("serve", "echo.py", cwd=app), 2, "--bind tcp://127.0.0.1:5000")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stratgy", "green"], ["--stratgy", "--strategy"]),
        (["--strategy", "gren"], ["'gren'", "Did you mean green?"]),
        (["--strategy", "reactor"], ["reactor", "threads"]),
        (["--framing", "lnes"], ["'lnes'", "Did you mean lines?"]),
        (["--framing", "echo:echo"], ["echo:echo is no framing"]),
        (["--framing", "jsno:lines"], ["jsno:lines", "Did you mean json?"]),
        (["--framing", "length-prefixed:5"], ["length-prefixed:5"]),
        (["--max-connections", "many"], ["--max-connections", "'many'", "whole number"]),
        (["--max-connections", "0"], ["--max-connections 0", "at least 1"]),
        (["--idle-timeout", "soon"], ["--idle-timeout", "'soon'", "number, or none"]),
        (["--idle-timeout=-1"], ["--idle-timeout -1", "above 0"]),
        (["--overflow", "burst"], ["--overflow burst", "'evict-idle'"]),
        (["--tls-minimum", "1.1"], ["--tls-minimum 1.1", "'1.3'"]),
        (["--connection-rate", "0"], ["--connection-rate 0", "must be a number above 0"]),
        (["--workers", "many"], ["--workers", "'many'", "whole number, or auto"]),
        (["--workers", "0"], ["workers 0", "at least 1"]),
        (["--workers", "2", "--pool", "1"], ["pool of 1 processes", "2 workers"]),
        (["--log-format", "jsn"], ["'jsn'", "Did you mean json?"]),
        (["--config", "nowhere.toml"], ["nowhere.toml"]),
        (["--max-connections"], ["--max-connections"]),
        (["another.py"], ["another.py"]),
    ],
)
def test_an_unknown_option_or_a_wrong_value_is_told(run, app, options, words):
    assert_told(run("serve", "echo.py", "--bind", "tcp://127.0.0.1:0", *options, cwd=app), 2, *words)


def test_a_wrong_variable_is_told_by_its_name(run, app):
    result = run("serve", "echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app, LONGSHORE_MAX_THREADS="-3")
    assert_told(result, 2, "LONGSHORE_MAX_THREADS=-3", "at least 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits]\nmax_conections = 3\n", ["[limits] has no key 'max_conections'", "Did you mean max_connections?"]),
        ("[limit]\nmax_connections = 3\n", ["no table [limit]", "Did you mean limits?"]),
        ("[limits]\nmax_connections = 'x'\n", ["[limits] max_connections = 'x'", "whole number"]),
        ("[timeouts]\nidle = 0\n", ["[timeouts] idle = 0", "above 0"]),
        ("limits\n", ["not TOML"]),
        ("serve = 3\n", ["serve must be a table"]),
    ],
)
def test_a_mistake_in_the_file_is_told_with_file_key_and_near_match(run, app, text, words):
    (app / "longshore.toml").write_text(text)
    assert_told(run("serve", "echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app), 2, "longshore.toml", *words)


def test_a_tls_address_without_a_certificate_is_told(run, app):
    assert_told(run("serve", "echo.py", "--bind", "tls://127.0.0.1:0", cwd=app), 2, "certificate", "--certfile")


def test_a_certificate_that_is_not_there_is_told(run, app):
    result = run("serve", "echo.py", "--bind", "tls://127.0.0.1:0", "--certfile", "nowhere.pem", cwd=app)
    assert_told(result, 2, "nowhere.pem")


def test_messages_on_a_stream_without_framing_are_told(run, app):
    assert_told(run("serve", "several.py:answer", "--bind", "tcp://127.0.0.1:0", cwd=app), 2, "--framing lines")


def test_no_server_at_the_other_end_is_told(run, tmp_path):
    assert_told(run("connect", f"tcp://127.0.0.1:{free_port()}"), 1, "refused", "hint: ")
    assert_told(run("connect", f"unix://{tmp_path}/nobody.sock"), 1, "nobody.sock", "hint: ")


def test_no_server_on_a_datagram_port_is_told(run):
    url = f"udp://127.0.0.1:{free_port()}"
    assert_told(run("connect", url, stdin=b"anyone?\n"), 1, url)


def test_tls_options_on_a_plain_address_are_told(run):
    assert_told(run("connect", "tcp://127.0.0.1:5000", "--insecure"), 2, "--insecure", "tls://")


@pytest.mark.parametrize("timeout", ["0", "-1", "soon"])
def test_a_wrong_timeout_is_told(run, timeout):
    assert_told(run("connect", "tcp://127.0.0.1:5000", "--timeout", timeout), 2, "--timeout")


def test_an_unknown_command_is_told(run):
    assert_told(run("sevre"), 2, "sevre")
