"""`longshore serve` as systemd runs it: what it is told, what it keeps, and what it passes at the start."""

from __future__ import annotations

import array
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from longshore import connect

pytestmark = pytest.mark.slow
WORKERS = [[], ["--workers", "2"]]


class Manager:
    """systemd's side of the notification socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(15)
        #: What was left with us, by name.
        self.kept = {}

    def hear(self, name):
        """The next message that has `name`, as a dict."""
        while True:
            message = self.next()
            if name in message:
                return message

    def next(self):
        """The next message."""
        data, ancillary, _, _ = self.socket.recvmsg(8192, socket.CMSG_SPACE(64))
        message = dict(line.split("=", 1) for line in data.decode().split("\n"))
        for *_, content in ancillary:
            fds = array.array("i")
            fds.frombytes(content)
            for former in self.kept.get(message["FDNAME"], ()):
                former.close()
            self.kept[message["FDNAME"]] = [socket.socket(fileno=fd) for fd in fds]
        return message

    def said_since(self):
        """Whether something is waiting to be heard."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self):
        self.socket.close()
        for sockets in self.kept.values():
            for sock in sockets:
                sock.close()


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def call(url):
    with connect(url) as client:
        client.sendall(b"hello")
        assert client.read_exactly(5) == b"hello"


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
def test_systemd_is_told_of_readiness_life_and_the_end(serving, app, manager, tmp_path, workers):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", *workers, cwd=app, **environ) as server:
        ready = manager.hear("READY")
        assert ready["STATUS"] == f"serving echo on {server.url}"
        call(server.url)
        begun = time.monotonic()
        for _ in range(3):
            manager.hear("WATCHDOG")
        assert time.monotonic() - begun >= 0.15
        assert server.stop() == 0
    assert manager.hear("STOPPING")["STATUS"].startswith("draining")


def test_systemd_is_told_when_a_reload_begins_and_ends_and_how(serving, app, manager, tmp_path):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", "--workers", "2", cwd=app, **environ) as server:
        manager.hear("READY")
        os.kill(server.pid, signal.SIGHUP)
        assert int(manager.hear("RELOADING")["MONOTONIC_USEC"]) > 0
        assert manager.hear("READY")["STATUS"] == "serving, generation 2"
        (app / "echo.py").write_text("def echo(connection:\n")
        os.kill(server.pid, signal.SIGHUP)
        manager.hear("RELOADING")
        assert "the last reload failed" in manager.hear("READY")["STATUS"]
        call(server.url)


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
def test_a_reload_is_begun_and_ended_even_if_nothing_can_be_read(serving, app, manager, tmp_path, workers):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", *workers, cwd=app, **environ) as server:
        manager.hear("READY")
        (app / "longshore.toml").write_text("[limit]\n")
        asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        os.kill(server.pid, signal.SIGHUP)
        # Type=notify-reload takes no READY=1 for the end of what has not begun, and waits until its timeout.
        message = manager.next()
        assert int(message["MONOTONIC_USEC"]) >= asked
        assert message["RELOADING"] == "1"
        assert "no table [limit]" in manager.next()["STATUS"]
        (app / "longshore.toml").unlink()
        os.kill(server.pid, signal.SIGHUP)
        manager.hear("RELOADING")
        assert manager.hear("READY")["STATUS"] == "serving, generation 2"


def test_an_upgrade_makes_the_new_program_the_service_which_goes_on_with_the_signs_of_life(
    command, environment, app, manager, tmp_path
):
    # WATCHDOG_PID is the process that systemd has started, as $$ is.
    words = " ".join([*command, "serve", "echo.py", "--bind", "tcp://127.0.0.1:0", "--workers", "2"])
    environ = environment(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
    with subprocess.Popen(
        ["/bin/bash", "-c", f"export WATCHDOG_PID=$$; exec {words}"], cwd=app, env=environ, stderr=subprocess.DEVNULL
    ) as process:
        new = process.pid
        try:
            manager.hear("READY")
            process.send_signal(signal.SIGUSR2)
            new = int(manager.hear("MAINPID")["MAINPID"])
            manager.hear("STOPPING")
            assert process.wait(15) == 0
            # Of whom else, as the old program has ended; but what it said may still be in the queue.
            while manager.hear("WATCHDOG") and manager.said_since():
                pass
            manager.hear("WATCHDOG")
        finally:
            os.kill(new, signal.SIGTERM)
        manager.hear("STOPPING")


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
def test_a_listening_socket_is_kept_over_a_restart_and_who_waits_is_served(
    serving, command, environment, app, manager, tmp_path, workers
):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", *workers, cwd=app, **environ) as server:
        url = server.url
        manager.hear("READY")
        assert server.stop() == 0
    ((name, (kept,)),) = manager.kept.items()
    # Nobody serves now, and nobody is refused.
    with connect(url) as client:
        client.sendall(b"hello")
        # systemd passes it as descriptor 3, under its name, to the process whose number it says.
        words = " ".join([*command, "serve", "echo.py", "--bind", "tcp://127.0.0.1:0", *workers])
        shell = f"exec 3<&{kept.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name}; exec {words}"
        with subprocess.Popen(
            ["/bin/bash", "-c", shell],
            cwd=app,
            env=environment(**environ),
            pass_fds=[kept.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            first = process.stderr.readline()
            assert url in first, first
            assert client.read_exactly(5) == b"hello"
            process.terminate()
            process.communicate(timeout=15)
    assert process.returncode == 0


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate")
@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "workers"])
def test_the_first_connection_activates_the_server_that_takes_the_socket_by_its_name(app, environment, workers):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=echo"]
    passed = [f"-E{name}" for name in ("PYTHONPATH", "PATH", "TERM")]
    serve = [sys.executable, "-m", "longshore", "serve", "echo.py", "--bind", "systemd://echo", *workers]
    with subprocess.Popen(
        [*words, *passed, *serve], cwd=app, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert "Listening on" in process.stderr.readline()
        call(f"tcp://127.0.0.1:{port}")
        process.terminate()
        process.communicate(timeout=15)
    assert process.returncode == 0
