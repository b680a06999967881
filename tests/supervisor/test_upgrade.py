"""A program that is replaced while it serves, and the file that says which process it is."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from longshore.supervisor.privileges import Identity
from tests.supervisor.conftest import COMMAND, WHO, alive, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def ended():
    """Processes that are to be ended when the test is over, as nobody's children."""
    pids = []
    yield pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda pid=pid: not alive(pid))


def test_an_upgrade_serves_on_the_same_sockets_from_a_new_program(service, app, ended):
    path = app / "app.sock"
    server = service("--workers", "2", "--bind", f"unix://{path}", "--pid-file", "run.pid", "--worker-heartbeat", "20")
    assert int((app / "run.pid").read_text()) == server.pid
    inode = path.stat().st_ino
    url = server.url
    with server.connect() as old:
        before = old.ask()
        # Its broker is its own, too: that of before ends with the program of before.
        counting = WHO.replace("%d %s", "%d new %d %s").replace("os.getpid(), ", "os.getpid(), Counter('n').add(), ")
        (app / "app.py").write_text("from longshore.shared import Counter\n" + counting)
        server.send(signal.SIGUSR2)
        new = int(server.line(r"starts again as process (\d+)").group(1))
        ended.append(new)
        server.line(rf"serving who on {url} ", count=2)
        assert server.process.wait(20) == 0
        assert old.file.readline() == b""
    assert not alive(before)
    assert int((app / "run.pid").read_text()) == new
    with server.connect() as peer:
        peer.sock.sendall(b"hello\n")
        assert b" new 1 hello" in peer.file.readline()
    assert path.stat().st_ino == inode
    os.kill(new, signal.SIGTERM)
    wait_for(lambda: not alive(new))
    assert not path.exists()
    assert not (app / "run.pid").exists()


def test_an_upgrade_that_fails_leaves_everything_as_it_was(service, app):
    server = service("--workers", "1", "--pid-file", "run.pid")
    worker = server.workers()[0]
    (app / "app.py").write_text("raise ValueError('half an edit')\n")
    server.send(signal.SIGUSR2)
    server.line("upgrade failed.*exit status 2")
    assert server.ask() == worker
    assert int((app / "run.pid").read_text()) == server.pid
    assert server.stop() == 0
    assert not (app / "run.pid").exists()


def test_a_pid_file_that_cannot_be_written_is_told(service):
    server = service("--workers", "1", "--pid-file", "no/such/place.pid", enter=False)
    assert server.wait() == 2
    assert any("no/such/place.pid for the process number cannot be written" in line for line in server.output)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_workers_become_the_group_and_the_socket_stays_its_binders(service, app):
    (app / "app.py").write_text(
        "import os\ndef who(connection):\n    while line := connection.readline():\n"
        "        connection.sendall(b'%d %d:%d %s' % (os.getpid(), os.getuid(), os.getgid(), line))\n"
    )
    path = app / "app.sock"
    server = service("--group", "nogroup", "--bind", f"unix://{path}?mode=0666")
    with server.connect() as peer:
        peer.sock.sendall(b"hello\n")
        assert b" 0:65534 hello" in peer.file.readline()
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (0, 0o666)
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_who_has_become_a_user_has_its_groups_and_cannot_go_back():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            Identity.of("nobody", None).assume()
            try:
                os.setuid(0)
            except PermissionError:
                os.write(writer, f"{os.getuid()} {os.getgid()} {os.getgroups()}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    assert os.read(reader, 100) == b"65534 65534 [65534]"
    os.close(reader)


def test_a_user_that_does_not_exist_is_told(service):
    server = service("--user", "nobody-of-that-name", enter=False)
    assert server.wait() == 2
    assert "there is no such user" in server.output[0]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a process namespace")
def test_as_process_1_it_buries_orphans_and_refuses_to_replace_itself(service, app):
    (app / "app.py").write_text(
        WHO + "import subprocess\n"
        "def orphan(message, connection):\n"
        "    done = subprocess.run(['sh', '-c', 'sleep 0.05 & echo $!'], stdout=subprocess.PIPE)\n"
        "    return b'%d %s' % (os.getpid(), message)\n"
    )
    options = ["--pid-file", "run.pid", "--framing", "lines", "--strategy", "threads"]
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    server = service(command=[*unshare, *COMMAND, "app.py:orphan", "--bind", "tcp://127.0.0.1:0", *options])
    (init,) = server.workers()
    with server.connect() as peer:
        for _ in range(3):
            peer.ask()

    # The worker and the broker, an orphan that serves on, are all it has, although the shells' children were its own.
    wait_for(lambda: len(Path(f"/proc/{init}/task/{init}/children").read_text().split()) == 2)
    os.kill(init, signal.SIGUSR2)
    server.line("upgrade failed.*process 1")
    os.kill(init, signal.SIGTERM)
    assert server.wait() == 0
