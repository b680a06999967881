"""A supervisor and its workers, as the users of `longshore serve --workers N` see them."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import pytest

from longshore import ConfigError, Server, Workers, serve
from tests.supervisor.conftest import COMMAND, WHO, alive, wait_for

pytestmark = pytest.mark.slow


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def test_the_first_line_names_url_and_workers_and_a_signal_ends_it_with_0(service):
    server = service("--workers", "2")
    assert server.output[0].startswith("longshore: serving who on tcp://127.0.0.1:")
    assert "2 workers" in server.output[0]
    workers = server.workers()
    assert len(workers) == 2
    assert server.ask() in workers
    assert server.stop() == 0
    assert [pid for pid in workers if alive(pid)] == []
    assert any("stopped in" in line for line in server.output)


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(service):
    server = service("--workers", "2")
    with server.connect() as first:
        mine = first.ask()
        (other,) = [pid for pid in server.workers() if pid != mine]
        os.kill(other, signal.SIGKILL)
        server.line(rf"process {other}\) ended.*killed by SIGKILL")
        wait_for(lambda: len(server.workers()) == 2)
        assert first.ask() == mine
        new = set(server.workers()) - {mine, other}
        assert len(new) == 1
    server.line(rf"process {new.pop()}\) accepts")


def test_the_parent_imports_nothing_of_the_users(service, app):
    (app / "app.py").write_text(WHO + "open(f'imported-{os.getpid()}', 'w').close()\n")
    server = service("--workers", "2")
    imported = {int(path.name.partition("-")[2]) for path in app.glob("imported-*")}
    assert imported == set(server.workers())
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1


def test_a_target_that_cannot_be_imported_is_told_once_as_without_workers(service, app):
    (app / "app.py").write_text("import os\nopen(f'tried-{os.getpid()}', 'w').close()\nimport nowhere\n")
    server = service("--workers", "1", "--worker-max-age", "1000", enter=False)
    assert server.wait() == 2
    assert len(list(app.glob("tried-*"))) == 1
    assert server.output == [
        "longshore: cannot import app.py: app.py, line 3: ModuleNotFoundError: No module named 'nowhere'",
        "hint: --debug shows the whole traceback.",
    ]


def test_debug_shows_the_traceback_of_the_worker_that_could_not_import(service, app):
    (app / "app.py").write_text("def deep():\n    raise RuntimeError('no dice')\n\ndeep()\n")
    server = service("--workers", "1", "--worker-max-age", "1000", "--debug", enter=False)
    assert server.wait() == 1
    assert any("in deep" in line for line in server.output), server.output


def test_a_start_is_given_up_after_three_deaths_before_anybody_was_ready(service, app):
    (app / "app.py").write_text(
        "import os, signal\nopen(f'tried-{os.getpid()}', 'w').close()\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    server = service("--workers", "1", "--worker-max-age", "1000", enter=False)
    assert server.wait() == 1
    assert len(list(app.glob("tried-*"))) == 3
    assert "SIGSEGV" in server.output[0]


def test_a_reload_serves_the_new_code_and_lets_the_old_finish(service, app):
    server = service("--workers", "2")
    with server.connect() as old:
        before = old.ask()
        (app / "app.py").write_text(WHO.replace("%d %s", "%d new %s"))
        server.send(signal.SIGHUP)
        server.line("reloaded in .* generation 2")
        with server.connect() as peer:
            peer.sock.sendall(b"hello\n")
            assert b" new hello" in peer.file.readline()
        assert old.file.readline() == b"", "what waits for input is closed by the drain"
    wait_for(lambda: not alive(before) and len(server.workers()) == 2)


@pytest.mark.parametrize("target", ["app.py", "app:who"], ids=["a file", "a module"])
def test_a_reload_follows_the_link_to_another_release(service, app, target):
    for release in ("1", "2"):
        (app / release).mkdir()
        (app / release / "app.py").write_text("from own import NAME\n" + WHO.replace("%d %s", "%d " + release + " %s"))
        (app / release / "own.py").write_text("NAME = 1\n")
    link = app / "current"
    link.symlink_to("1")
    # A shell says by PWD what it has entered.
    words = " ".join([*COMMAND, target, "--bind", "tcp://127.0.0.1:0", "--pid-file", str(app / "run.pid")])
    server = service(command=["/bin/sh", "-c", f"cd {link} && exec {words}"])
    link.unlink()
    link.symlink_to("2")
    shutil.rmtree(app / "1")
    server.send(signal.SIGHUP)
    server.line("reloaded")
    with server.connect() as peer:
        peer.sock.sendall(b"hello\n")
        assert peer.file.readline().endswith(b" 2 hello\n")


def test_a_reload_that_fails_keeps_the_old_workers_and_says_why(service, app):
    server = service("--workers", "2")
    with server.connect() as old:
        before = old.ask()
        workers = sorted(server.workers())
        (app / "app.py").write_text("raise ValueError('half an edit')\n")
        server.send(signal.SIGHUP)
        server.line("reload failed.*half an edit")
        wait_for(lambda: sorted(server.workers()) == workers)
        assert old.ask() == before
        (app / "app.py").write_text(WHO)
        server.send(signal.SIGHUP)
        server.line("reloaded in")
    wait_for(lambda: not any(map(alive, workers)))
    assert server.ask() in server.workers()


def test_a_reload_reads_the_configuration_again_and_binds_what_is_new(service, app):
    (app / "longshore.toml").write_text("[serve]\nworkers = 1\n[prefork]\nmax_age = 5000\n")
    server = service("--worker-heartbeat", "20")
    path = app / "second.sock"
    (app / "longshore.toml").write_text("[serve]\nworkers = 2\n[limits]\nmax_connections = 0\n")
    server.send(signal.SIGHUP)
    server.line("reload failed.*max_connections")
    (app / "longshore.toml").write_text("[serve]\nworkers = 3\n")
    server.send(signal.SIGHUP)
    server.line("reloaded in")
    wait_for(lambda: len(server.workers()) == 3)
    assert not path.exists()


def test_ttin_and_ttou_are_a_worker_more_and_one_less(service):
    server = service("--workers", "1", "--worker-heartbeat", "20")
    server.send(signal.SIGTTIN)
    wait_for(lambda: len(server.workers()) == 2)
    server.line(r"worker 2 .* accepts")
    server.send(signal.SIGTTOU)
    wait_for(lambda: len(server.workers()) == 1)
    server.send(signal.SIGTTOU)
    server.send(signal.SIGTTIN)
    server.line(r"worker 2 .* accepts", count=2)


def test_a_second_signal_ends_it_at_once(service, app):
    (app / "app.py").write_text(
        "import longshore, os\n"
        "def stubborn(connection):\n"
        "    connection.recv(1)\n"
        "    connection.sendall(b'%d\\n' % os.getpid())\n"
        "    while True:\n"
        "        longshore.sleep(0.05)\n"
    )
    server = service("--workers", "2", "--strategy", "green")
    with server.connect() as peer:
        peer.sock.sendall(b"x")
        assert int(peer.file.readline()) in server.workers()
        server.send(signal.SIGTERM)
        server.line("draining 1 connection")
        assert server.stop(signal.SIGINT, timeout=8) == 0
    assert any("1 cut" in line for line in server.output if "stopped in" in line)


def test_workers_end_when_their_parent_is_killed(service):
    server = service("--workers", "2")
    with server.connect() as peer:
        peer.ask()
        workers = server.workers()
        os.kill(server.pid, signal.SIGKILL)
        assert peer.file.readline() == b""
        wait_for(lambda: not any(map(alive, workers)))


def test_workers_are_deaf_to_what_a_terminal_sends(service):
    server = service("--workers", "2")
    workers = server.workers()
    for pid in workers:
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    with server.connect() as peer:
        assert peer.ask() in workers
    assert server.workers() == workers


def test_max_connections_holds_over_all_workers_and_who_waits_gets_the_first_free_place(service):
    server = service("--workers", "3", "--max-connections", "4")
    peers = [server.connect() for _ in range(4)]
    for peer in peers:
        peer.ask()
    waiting = server.connect()
    waiting.sock.settimeout(0.3)
    waiting.sock.sendall(b"me\n")
    with pytest.raises(TimeoutError):
        waiting.sock.recv(100)
    peers.pop().close()
    waiting.sock.settimeout(10)
    assert waiting.sock.recv(100).endswith(b"me\n")
    for peer in [*peers, waiting]:
        peer.close()


def test_the_places_of_a_dead_worker_are_free_again(service):
    server = service("--workers", "2", "--max-connections", "3")
    peers = [server.connect() for _ in range(3)]
    holders = [peer.ask() for peer in peers]
    os.kill(holders[0], signal.SIGKILL)
    with server.connect() as peer:
        assert peer.ask() != holders[0]
    for peer in peers:
        peer.close()


def test_a_blocked_worker_is_named_with_its_stack_and_replaced(service, app):
    (app / "app.py").write_text(
        WHO + "def block(message, connection):\n    import time\n    if message == b'block':\n"
        "        time.sleep(1000)\n    return b'%d %s' % (os.getpid(), message)\n"
    )
    server = service("--workers", "1", "--worker-heartbeat", "0.5", "--framing", "lines", target="app.py:block")
    with server.connect() as victim:
        pid = victim.ask()
        victim.sock.sendall(b"block\n")
        server.line(rf"process {pid}\) gave no sign of life for .*app\.py.*in block")
        assert server.ask() != pid
    assert not alive(pid)


def test_a_stopped_worker_is_replaced(service):
    server = service("--workers", "2", "--worker-heartbeat", "0.5")
    pid = server.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    server.line(rf"process {pid}\) gave no sign of life for .*stopped by a signal")
    wait_for(lambda: not alive(pid) and len(server.workers()) == 2)


@pytest.mark.parametrize(
    ("option", "words"), [(("--worker-max-connections", "3"), "has served"), (("--worker-max-age", "0.5"), "s old")]
)
def test_a_worn_out_worker_is_replaced_before_it_drains(service, option, words):
    server = service("--workers", "1", "--worker-heartbeat", "1", *option)
    first = server.ask()
    for _ in range(3):
        server.ask()
    match = server.line(rf"process {first}\) is to drain: .*{words}")
    accepted = next(index for index, line in enumerate(server.output) if "worker 2 " in line and "accepts" in line)
    assert accepted < server.output.index(match.string)
    wait_for(lambda: not alive(first))
    assert server.ask() != first


def test_a_program_of_ones_own_serves_with_workers(service, app):
    (app / "program.py").write_text(
        "import atexit, os\nfrom longshore import serve, Workers\n"
        "atexit.register(print, 'the end')\n" + WHO + "serve(who, 'tcp://127.0.0.1:0', workers=Workers(2))\n"
    )
    server = service(command=[sys.executable, "program.py"])
    assert server.ask() in server.workers()
    assert server.stop() == 0
    assert server.process.stdout.read() == b"the end\n"


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green", "async", "inline"])
def test_every_strategy_serves_and_drains_in_workers(service, app, strategy):
    (app / "app.py").write_text(
        WHO + "async def later(connection):\n    while line := await connection.readline():\n"
        "        await connection.sendall(b'%d %s' % (os.getpid(), line))\n"
        "def reply(message, connection):\n    return b'%d %s' % (os.getpid(), message)\n"
    )
    target = {"reactor": "app.py:reply", "async": "app.py:later"}.get(strategy, "app.py:who")
    framing = ("--framing", "lines") if strategy == "reactor" else ()
    server = service("--workers", "2", "--strategy", strategy, *framing, target=target)
    with server.connect() as peer:
        assert peer.ask() in server.workers()
        assert server.stop(timeout=5) == 0
        assert peer.file.readline() == b""


def test_a_unix_socket_is_served_by_all_and_its_file_is_gone_at_the_end(service, app):
    server = service("--workers", "2", bind=f"unix://{app}/app.sock?mode=0660")
    path = app / "app.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    os.kill(server.workers()[0], signal.SIGKILL)
    server.line("killed by SIGKILL")
    assert path.exists()
    assert server.stop() == 0
    assert not path.exists()


def test_a_server_of_ones_own_is_one_process_and_says_so():
    with pytest.raises(ConfigError, match="one process") as caught:
        Server(echo, "tcp://127.0.0.1:0", workers=2)
    assert "serve(" in caught.value.hint


def test_processes_and_workers_do_not_go_together(service):
    with pytest.raises(ConfigError, match="processes"):
        serve(echo, "tcp://127.0.0.1:0", strategy="processes", workers=Workers(2))
    server = service("--workers", "2", "--strategy", "processes", enter=False)
    assert server.wait() == 2
    assert "a process for each connection" in server.output[0]
