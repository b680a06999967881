"""`longshore serve --metrics --control` as it runs: a supervisor, workers and a control process, all real."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from longshore import connect
from longshore.control.client import Commanded, Disobeyed
from running import COMMAND, SOURCE, environment

pytestmark = pytest.mark.slow
ECHO = """
import os
def echo(connection):
    while data := connection.recv(65536):
        if data == b"who":
            data = str(os.getpid()).encode()
        connection.sendall(data)
"""


class Watched:
    """A server in processes of its own, with both doors; entered once it serves."""

    def __init__(self, folder, *words, source=ECHO, **variables):
        (folder / "echo.py").write_text(source)
        self.folder = folder
        self.path = str(folder / "control.sock")
        command = [*COMMAND, "serve", "echo.py", "--bind", "tcp://127.0.0.1:0"]
        doors = ["--control", self.path, "--metrics", "http://127.0.0.1:0", "--log-format", "json"]
        self.process = subprocess.Popen(
            [*command, *doors, *words],
            cwd=folder,
            env=environment(**variables),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self.event("ServerStarted")["addresses"][0]
        self.pages = self.event("ControlOpened")["metrics"][0].removesuffix("/metrics")

    def event(self, name):
        """The next event of this name in its log."""
        for line in self.process.stderr:
            event = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"it ended without {name}")

    def page(self, path):
        try:
            with urllib.request.urlopen(self.pages + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self):
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.page("/metrics")[1])
            for sample in family.samples
        }

    def ask(self, verb, **arguments):
        with Commanded(self.path, timeout=15) as server:
            return server.ask(verb, **arguments)

    def until(self, look, wanted):
        """Look again until it is so; each look is a question to another process, so this is no spin."""
        while not wanted(found := look()):
            pass
        return found

    def serving(self, count):
        """The status once as many workers serve, and no others."""
        return self.until(
            lambda: self.ask("status"),
            lambda status: [each["state"] for each in status["workers"]] == ["serving"] * count,
        )

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=20)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def call(url, data=b"hello"):
    with connect(url) as client:
        client.sendall(data)
        return client.recv(100)


def total(server):
    return server.samples()["longshore_connections_total",]


@pytest.mark.parametrize("words", [[], ["--workers", "2"]], ids=["one worker", "two workers"])
def test_both_doors_are_open_once_it_serves_and_gone_when_it_has_ended(tmp_path, words):
    with Watched(tmp_path, *words) as server:
        server.until(lambda: server.page("/ready")[0], lambda status: status == 200)
        assert server.page("/live")[0] == 200
        status = server.serving(2 if words else 1)
        assert status["supervisor"]["pid"] == server.process.pid
        assert call(server.url) == b"hello"
        assert server.until(lambda: total(server), lambda count: count == 1)
        assert server.stop() == 0
    assert not os.path.exists(server.path)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(server.pages.rpartition(":")[2])), timeout=5)


def test_counters_do_not_go_back_over_reload_and_sigkill(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server:
        for _ in range(10):
            call(server.url)
        server.until(lambda: total(server), lambda count: count == 10)
        server.ask("reload")
        server.serving(2)
        assert total(server) == 10
        for _ in range(5):
            call(server.url)
        server.until(lambda: total(server), lambda count: count == 15)
        victim = server.ask("status")["workers"][0]
        os.kill(victim["pid"], signal.SIGKILL)
        server.event("WorkerCrashed")
        assert server.until(lambda: total(server), lambda count: count >= 15) == 15
        server.serving(2)
        assert total(server) == 15
        assert server.samples()["longshore_connection_duration_seconds_count",] == 15


def test_the_pools_of_all_workers_and_their_broker_are_counted(tmp_path):
    source = (
        "from longshore.shared import Counter\n"
        "def work(connection):\n"
        "    for number in iter(connection.readline, b''):\n"
        "        future = connection.server.pool.submit(int, number)\n"
        "        connection.sendall(repr(future.exception() or Counter('seen').add()).encode() + b'\\n')\n"
    )
    with Watched(tmp_path, "--workers", "2", "--pool", "2", source=source) as server:
        server.serving(2)
        for numbers in ((b"1", b"x"), (b"2", b"y"), (b"3",), (b"4",)):
            with connect(server.url) as client:
                for number in numbers:
                    client.sendall(number + b"\n")
                    client.readline()
        name = "longshore_pool_tasks_total"
        samples = server.until(server.samples, lambda found: found[name, ("outcome", "failed")] == 2)
        assert samples[name, ("outcome", "done")] == 4
        assert samples[name, ("outcome", "cancelled")] == 0
        assert sum(samples["longshore_pool_processes", ("worker", str(each))] for each in (1, 2)) in (1, 2)
        assert samples["longshore_pool_tasks_running", ("worker", "1")] == 0
        assert samples["longshore_broker_names",] == 1
        assert samples["longshore_broker_requests_total",] >= 4
        assert samples["longshore_broker_waiting",] == 0
        # Who looks is no client.
        assert samples["longshore_broker_clients",] == server.samples()["longshore_broker_clients",]


def test_ready_is_off_while_it_drains_and_metrics_are_still_there(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server, connect(server.url) as client:
        server.until(lambda: server.page("/ready")[0], lambda status: status == 200)
        # The first half of what the handler waits for: the client is owed an answer, so the drain waits.
        (server.folder / "echo.py").write_text(ECHO.replace("recv(65536)", "read_exactly(10)"))
        server.ask("reload")
        server.serving(2)
        with connect(server.url) as owed:
            owed.sendall(b"hello")
            server.until(
                lambda: server.ask("connections")["connections"],
                lambda rows: any(row["received"] == 5 for row in rows),
            )
            server.process.terminate()
            server.event("ServerDraining")
            assert server.page("/ready")[0] == 503
            assert server.page("/metrics")[0] == 200
            owed.sendall(b"world")
            assert owed.read_exactly(10) == b"helloworld"
        assert client.recv(1) == b""
        assert server.stop() == 0


def test_workers_are_added_removed_and_killed(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server:
        server.serving(2)
        server.ask("add")
        server.serving(3)
        server.ask("remove")
        status = server.serving(2)
        victim = status["workers"][0]
        server.ask("kill", worker=victim["worker"])
        status = server.until(
            lambda: server.serving(2), lambda status: victim["pid"] not in [each["pid"] for each in status["workers"]]
        )
        assert call(server.url) == b"hello"


def test_a_reload_that_fails_is_told_to_who_asked_and_the_old_workers_go_on(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server:
        server.serving(2)
        (tmp_path / "echo.py").write_text("import no_such_module\n")
        with pytest.raises(Disobeyed, match="no_such_module"):
            server.ask("reload")
        assert call(server.url) == b"hello"
        server.until(lambda: server.page("/ready")[0], lambda status: status == 200)


def test_who_waits_for_a_reload_at_a_terminal_sees_how_far_it_is(tmp_path):
    source = f"import os, time\nwhile os.path.exists({str(tmp_path / 'wait')!r}):\n    time.sleep(0.01)\n{ECHO}"
    with Watched(tmp_path, "--workers", "2", source=source) as server:
        server.serving(2)
        (tmp_path / "wait").touch()
        pid, terminal = pty.fork()
        if pid == 0:
            words = [*COMMAND, "ctl", "--control", server.path, "reload"]
            os.execve(words[0], words, environment())
        text = b""
        while b" 0/2" not in text:
            text += os.read(terminal, 1000)
        (tmp_path / "wait").unlink()
        while b"reloaded: new workers serve" not in text:
            text += os.read(terminal, 1000)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(terminal)


def test_what_is_set_by_hand_holds_for_a_worker_that_takes_anothers_place_and_ends_with_a_reload(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server:
        status = server.serving(2)
        server.ask("turn", values={"idle_timeout": "77"})
        for each in status["workers"]:
            server.ask("kill", worker=each["worker"])
            server.until(
                lambda: server.serving(2),
                lambda now, pid=each["pid"]: pid not in [item["pid"] for item in now["workers"]],
            )
        server.until(lambda: server.ask("limits")["idle_timeout"], lambda seconds: seconds == 77)
        server.ask("reload")
        server.serving(2)
        assert server.ask("limits")["idle_timeout"] == 600


def test_a_control_process_that_is_killed_comes_back_behind_the_same_doors(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server:
        status = server.serving(2)
        call(server.url)
        server.until(lambda: total(server), lambda count: count == 1)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        (control,) = set(map(int, children)) - {each["pid"] for each in status["workers"]}
        os.kill(control, signal.SIGKILL)
        server.event("ControlEnded")
        # Who connects meanwhile waits in the kernel's queue.
        assert [each["pid"] for each in server.serving(2)["workers"]] == [each["pid"] for each in status["workers"]]
        assert total(server) == 1
        assert call(server.url) == b"hello"


def test_a_blocked_worker_is_named_and_the_others_answer(tmp_path):
    with Watched(tmp_path, "--workers", "2") as server:
        status = server.serving(2)
        victim = status["workers"][0]
        os.kill(victim["pid"], signal.SIGSTOP)
        try:
            assert server.ask("status")["silent"] == [victim["worker"]]
            samples = server.samples()
            assert samples["longshore_worker_responding", ("worker", str(victim["worker"]))] == 0
        finally:
            os.kill(victim["pid"], signal.SIGCONT)
        server.serving(2)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_another_user_may_not_command_even_where_he_can_connect(tmp_path):
    with Watched(tmp_path) as server:
        server.serving(1)
        for folder in (tmp_path, *tmp_path.parents):
            if folder == Path("/tmp"):
                break
            os.chmod(folder, 0o755)
        os.chmod(server.path, 0o666)
        script = (
            "import os, socket, sys\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
            'sock.sendall(b\'{"verb": "stop"}\\n\')\n'
            "print(sock.makefile().read())\n"
        )
        result = subprocess.run([sys.executable, "-c", script, server.path], capture_output=True, text=True, timeout=15)
        answer = json.loads(result.stdout.splitlines()[0])
        assert answer == {
            "ok": False,
            "error": "user 65534 may not command this server",
            "hint": "Be its user, or root.",
        }
        assert call(server.url) == b"hello"


def test_metrics_without_the_package_that_writes_them_are_refused_with_the_cure(tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')\n")
    (tmp_path / "echo.py").write_text(ECHO)
    words = [*COMMAND, "serve", "echo.py", "--bind", "tcp://127.0.0.1:0"]
    result = subprocess.run(
        [*words, "--metrics", "http://127.0.0.1:0"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path}:{SOURCE}"),
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "longshore: metrics need the prometheus-client package, which is not installed\n"
        "hint: pip install longshore[metrics]\n"
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("9100", "is no URL"),
        ("http://127.0.0.1:0/stats", "the pages are"),
        ("udp://127.0.0.1:0", "over tcp:// or unix"),
    ],
)
def test_a_metrics_address_that_cannot_be_served_is_refused(tmp_path, url, message):
    from longshore.control.station import Station
    from longshore.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        Station(url, None)


def test_serve_takes_both_doors_from_a_program_of_ones_own(tmp_path):
    (tmp_path / "program.py").write_text(
        ECHO + "\nfrom longshore import serve\n"
        'serve(echo, "tcp://127.0.0.1:0", control="control.sock", metrics="http://127.0.0.1:0")\n'
    )
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "serving echo on tcp://127.0.0.1" in process.stderr.readline()
        assert "watched by http://127.0.0.1" in process.stderr.readline()
        with Commanded(str(tmp_path / "control.sock")) as server:
            assert len(server.ask("status")["workers"]) == 1
        process.terminate()
        process.communicate(timeout=15)
    assert process.returncode == 0
