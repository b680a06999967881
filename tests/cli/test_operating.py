"""A server that somebody operates: reloads, logs that are rotated, disks that are full, terminals that are closed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess

import pytest
import trustme

from longshore import TLS, Retry, connect

ONE = ["--bind", "tcp://127.0.0.1:0"]
WORKERS = [[], ["--workers", "2"]]


def limited(app, count):
    (app / "longshore.toml").write_text(f"[limits]\nmax_connections = {count}\noverflow = 'reject'\n")


def answers(client):
    """Whether it is served: what it sends comes back."""
    try:
        client.sendall(b"x")
        return client.recv(1) == b"x"
    except OSError:
        return False


def test_hup_has_one_process_take_limits_as_they_are_now_and_go_on(serving, app):
    limited(app, 10)
    with serving("echo.py", *ONE, cwd=app) as server, connect(server.url) as open_before:
        limited(app, 1)
        os.kill(server.pid, signal.SIGHUP)
        assert "reloading: generation 2 starts" in server.line()
        assert "reloaded in " in server.line()
        assert answers(open_before)
        with connect(server.url) as one_too_many:
            assert not answers(one_too_many)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits]\nmax_conections = 1\n", ["no key 'max_conections'", "Did you mean max_connections?"]),
        ("[limits]\nmax_connections = 1\n[serve]\nstrategy = 'inline'\n", ["strategy cannot change", "--pid-file"]),
        (
            "[limits]\nmax_connections = 1\noverflow = 'reject'\n[serve]\nlog_file = 'nowhere/app.log'\n",
            ["--log-file nowhere/app.log: No such file or directory"],
        ),
    ],
    ids=["a mistake", "what takes another process", "a log file that cannot be"],
)
def test_a_reload_that_one_process_cannot_do_changes_nothing_and_says_why(serving, app, text, words):
    with serving("echo.py", *ONE, cwd=app) as server:
        (app / "longshore.toml").write_text(text)
        os.kill(server.pid, signal.SIGHUP)
        assert "reloading" in server.line()
        told = server.line()
        assert "the reload failed, everything goes on as before: " in told
        for word in words:
            assert word in told
        with connect(server.url) as first, connect(server.url) as second:
            assert answers(first)
            assert answers(second)


def test_hup_loads_the_certificate_anew(serving, app):
    def certify(authority):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(app / "server.pem"))
        authority.cert_pem.write_to_path(str(app / "ca.pem"))

    certify(trustme.CA())
    with serving("echo.py", "--bind", "tls://127.0.0.1:0", "--certfile", "server.pem", cwd=app) as server:
        certify(trustme.CA())
        os.kill(server.pid, signal.SIGHUP)
        while "reloaded" not in server.line():
            pass
        with connect(server.url, tls=TLS(client_ca=str(app / "ca.pem"))) as client:
            assert answers(client)


def test_a_certificate_that_is_gone_from_the_configuration_is_kept_and_told_of(serving, app):
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(app / "server.pem"))
    (app / "longshore.toml").write_text("[tls]\ncertfile = 'server.pem'\n")
    with serving("echo.py", "--bind", "tls://127.0.0.1:0", cwd=app) as server:
        (app / "longshore.toml").write_text("[limits]\nmax_connections = 1\n")
        os.kill(server.pid, signal.SIGHUP)
        assert "reloading" in server.line()
        assert "everything goes on as before: tls is gone from the configuration" in server.line()


@pytest.mark.slow
def test_workers_that_cannot_start_leave_the_log_as_it_was(serving, app):
    with serving("echo.py", *ONE, *WORKERS[1], cwd=app) as server:
        (app / "longshore.toml").write_text("[serve]\nlog_format = 'json'\n")
        (app / "echo.py").write_text("raise RuntimeError('not today')\n")
        os.kill(server.pid, signal.SIGHUP)
        told = []
        while not told or "the reload failed" not in told[-1]:
            told.append(server.line())
        assert not any(line.startswith("{") for line in told)


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
def test_the_log_goes_to_a_file_that_usr1_opens_anew(serving, run, app, workers):
    (app / "failing.py").write_text("def failing(connection):\n    raise ValueError(connection.recv(10))\n")
    path = app / "app.log"
    options = ["--log-file", "app.log", "--log-format", "json", *workers]
    with serving("failing.py", *ONE, *options, cwd=app) as server:
        assert server.first_line.startswith("longshore: serving failing on ")
        run("connect", server.url, stdin=b"first")
        path.rename(app / "app.log.1")
        os.kill(server.pid, signal.SIGUSR1)
        while not path.exists() or b"second" not in path.read_bytes():
            run("connect", server.url, stdin=b"second")
        assert server.stop() == 0
        assert server.rest == b""
    texts = [(app / name).read_text() for name in ("app.log.1", "app.log")]
    before, after = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert any(line["event"] == "ServerStarted" for line in before)
    assert any("first" in line.get("error", "") for line in before)
    assert after[-1]["event"] == "ServerStopped"


def test_a_handler_that_has_lost_its_broker_has_failed_and_its_peer_has_not_vanished(serving, run, app):
    (app / "sharing.py").write_text(
        "from longshore import BrokerLost\n\ndef share(connection):\n    raise BrokerLost('the broker is gone')\n"
    )
    with serving("sharing.py", *ONE, cwd=app) as server:
        run("connect", server.url)
        assert "share failed for 127.0.0.1:" in server.line()


def test_a_log_file_that_cannot_be_written_is_told_before_anything_is_served(run, app):
    result = run("serve", "echo.py", *ONE, "--log-file", "nowhere/app.log", cwd=app)
    assert result.returncode == 2
    assert result.stderr.decode().startswith("longshore: --log-file nowhere/app.log: No such file or directory\nhint: ")


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
@pytest.mark.parametrize("place", ["--log-file", "standard error"])
def test_a_full_disk_costs_log_lines_and_nothing_else(command, environment, app, workers, place):
    where = f"unix://{app}/app.sock"
    words = [*command, "serve", "echo.py", "--bind", where, "--log-level", "debug", *workers]
    if place == "--log-file":
        words += ["--log-file", "/dev/full"]
    with open("/dev/full", "wb") as full:
        stderr = full if place == "standard error" else subprocess.PIPE
        with subprocess.Popen(words, cwd=app, env=environment(), stderr=stderr) as process:
            try:
                if process.stderr is not None:
                    # Nothing is logged before all workers accept.
                    assert b"serving echo" in process.stderr.readline()
                for _ in range(3):
                    with connect(where, retry=Retry(attempts=100, maximum=0.1)) as client:
                        assert answers(client)
            finally:
                process.terminate()
            assert process.wait(15) == 0
            if process.stderr is not None:
                told = process.stderr.read().decode()
                assert "/dev/full cannot be written: No space left on device" in told
                assert "Traceback" not in told


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
def test_a_terminal_that_is_closed_ends_what_was_started_in_it(command, environment, app, workers):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(app)
        words = [*command, "serve", "echo.py", *ONE, *workers]
        os.execve(words[0], words, environment())
    text = b""
    while b"Ctrl-C drains" not in text:
        text += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
