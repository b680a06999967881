"""Binding Unix sockets: what is left in the file system, who is named when it fails, and whose file is replaced."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from longshore.errors import AddressError, AddressInUse, AddressUnavailable
from longshore.listeners import Listener, bind
from tests.unit.listening import another_process, bound, echo_once, first_line, linux_only


@pytest.mark.parametrize("scheme", ["unix", "seqpacket"])
def test_a_unix_listener_accepts_and_leaves_nothing_behind(tmp_path: Path, scheme: str) -> None:
    with bound(f"{scheme}://{tmp_path}/app.sock") as (listener,):
        assert listener.url == f"{scheme}://{tmp_path}/app.sock"
        assert listener.kind == ("stream" if scheme == "unix" else "seqpacket")
        echo_once(listener)
    assert os.listdir(tmp_path) == []


def test_a_unix_datagram_listener_receives(tmp_path: Path) -> None:
    with bound(f"unixgram://{tmp_path}/app.sock") as (listener,):
        assert listener.kind == "datagram"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"ping", str(tmp_path / "app.sock"))
        assert listener.socket.recv(16) == b"ping"
    assert os.listdir(tmp_path) == []


def test_an_abstract_listener_has_no_file() -> None:
    name = f"longshore-test-{os.getpid()}"
    with bound(f"unix://@{name}") as (listener,):
        assert listener.url == f"unix://@{name}"
        echo_once(listener)
        with pytest.raises(AddressInUse, match="this process itself"):
            bind(f"unix://@{name}")


def test_an_escaped_path_is_unescaped_on_disk_and_not_in_the_url(tmp_path: Path) -> None:
    with bound(f"unix://{tmp_path}/a%20b.sock?backlog=5") as (listener,):
        assert (tmp_path / "a b.sock").is_socket()
        assert listener.url == f"unix://{tmp_path}/a%20b.sock"


@pytest.mark.parametrize("umask", [0o077, 0])
def test_the_mode_is_exactly_the_one_asked_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with bound(f"unix://{tmp_path}/app.sock?mode=0660"):
            assert stat.S_IMODE((tmp_path / "app.sock").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def leave_stale(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("scheme", ["unix", "unixgram", "seqpacket"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_file_that_a_dead_server_left_is_replaced(tmp_path: Path, scheme: str, kind: int) -> None:
    leave_stale(tmp_path / "app.sock", kind)
    before = (tmp_path / "app.sock").stat().st_ino
    with bound(f"{scheme}://{tmp_path}/app.sock"):
        assert (tmp_path / "app.sock").stat().st_ino != before
    assert os.listdir(tmp_path) == []


def test_everything_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    leave_stale(tmp_path / "app.sock")
    leave_stale(tmp_path / "app.sock.new")
    (tmp_path / "app.sock.lock").write_text("4194304\n")
    with bound(f"unix://{tmp_path}/app.sock") as (listener,):
        echo_once(listener)
    assert os.listdir(tmp_path) == []


def test_a_server_killed_outright_does_not_keep_the_next_one_out(tmp_path: Path) -> None:
    code = f"from longshore.listeners import bind; kept = bind('unix://{tmp_path}/app.sock'); print('up', flush=True)"
    with another_process(code) as process:
        assert first_line(process) == "up"
        process.kill()
        process.wait(10)
    assert (tmp_path / "app.sock").is_socket()
    with bound(f"unix://{tmp_path}/app.sock") as (listener,):
        echo_once(listener)


@pytest.mark.parametrize("scheme", ["unix", "unixgram", "seqpacket"])
def test_a_live_server_of_ours_is_named(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}://{tmp_path}/app.sock"
    with another_process(
        f"from longshore.listeners import bind; k = bind('{url}'); print('up', flush=True)"
    ) as process:
        with pytest.raises(AddressInUse, match=rf"\(pid {process.pid}\)"):
            bind(url)
        assert sorted(os.listdir(tmp_path)) == ["app.sock", "app.sock.lock"]


@linux_only
@pytest.mark.parametrize("kind", ["STREAM", "DGRAM", "SEQPACKET"])
def test_a_live_server_of_others_is_named_and_not_disturbed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX, getattr(socket, f"SOCK_{kind}")) as other:
        other.bind(str(path))
        if kind != "DGRAM":
            other.listen()
        other.setblocking(False)
        with pytest.raises(AddressInUse, match=rf"\(pid {os.getpid()}\)"):
            bind(f"unix://{path}")
        with pytest.raises(BlockingIOError):
            other.recv(1) if kind == "DGRAM" else other.accept()
    assert os.listdir(tmp_path) == ["app.sock"]


@linux_only
def test_another_users_server_is_named_through_its_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_path: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "readlink", unreadable)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "app.sock"))
        other.listen()
        with pytest.raises(AddressInUse, match=rf"\(pid {os.getpid()}\)"):
            bind(f"unix://{tmp_path}/app.sock")


def test_a_socket_that_is_bound_but_does_not_listen_yet_is_in_use(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "app.sock"))
        with pytest.raises(AddressInUse):
            bind(f"unix://{tmp_path}/app.sock")


def test_only_a_socket_is_ever_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("precious", "link", "directory", "fifo"):
        with pytest.raises(AddressError, match="not a socket"):
            bind(f"unix://{tmp_path}/{name}")
    assert precious.read_text() == "data"
    assert sorted(os.listdir(tmp_path)) == ["directory", "fifo", "link", "precious"]


def test_a_file_in_the_way_of_the_temporary_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "app.sock.new").write_text("data")
    with pytest.raises(AddressError, match=r"app\.sock\.new is there, and it is not a socket"):
        bind(f"unix://{tmp_path}/app.sock")
    assert os.listdir(tmp_path) == ["app.sock.new"]


def test_a_file_that_is_no_lock_file_is_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "app.sock.lock"
    lock.write_text("somebody's notes")
    with pytest.raises(AddressError, match="no lock file"):
        bind(f"unix://{tmp_path}/app.sock")
    assert lock.read_text() == "somebody's notes"
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AddressError):
        bind(f"unix://{tmp_path}/app.sock")
    assert os.listdir(tmp_path) == ["app.sock.lock"]


def test_a_lock_that_vanishes_while_it_is_being_taken_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "app.sock.lock"
    taken = []
    flock = fcntl.flock

    def flock_on_a_file_that_its_owner_just_removed(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        taken.append(descriptor)
        if len(taken) == 1:
            lock.unlink()

    monkeypatch.setattr(fcntl, "flock", flock_on_a_file_that_its_owner_just_removed)
    with bound(f"unix://{tmp_path}/app.sock"):
        assert len(taken) == 2
        assert lock.read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == []


def test_a_name_that_somebody_takes_at_the_last_moment_is_not_taken_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.sock"
    link = os.link

    with socket.socket(socket.AF_UNIX) as other:

        def link_too_late(source: str, target: str) -> None:
            other.bind(str(path))
            link(source, target)

        monkeypatch.setattr(os, "link", link_too_late)
        with pytest.raises(AddressInUse):
            bind(f"unix://{path}")
    assert os.listdir(tmp_path) == ["app.sock"]


def test_of_many_that_start_at_once_exactly_one_gets_the_stale_file(tmp_path: Path) -> None:
    leave_stale(tmp_path / "app.sock")
    barrier = threading.Barrier(8)
    won: list[Listener] = []
    lost: list[AddressError] = []

    def start() -> None:
        barrier.wait(10)
        try:
            won.extend(bind(f"unix://{tmp_path}/app.sock"))
        except AddressInUse as error:
            lost.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(won), len(lost)) == (1, 7)
    echo_once(won[0])
    won[0].close()
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_longer_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with bound(f"unix://{path}"):
        path.unlink()
        path.write_text("data")
    assert os.listdir(tmp_path) == ["app.sock"]
    assert path.read_text() == "data"


def test_only_the_process_that_bound_it_removes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (listener,) = bind(f"unix://{tmp_path}/app.sock")
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        listener.close()
    assert sorted(os.listdir(tmp_path)) == ["app.sock", "app.sock.lock"]


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_a_path_at_the_limit_is_served_and_its_owner_named(tmp_path: Path, scheme: str) -> None:
    name = "x" * (107 - len(os.fsencode(tmp_path)) - 1)
    if not name:
        pytest.skip("the temporary directory's own path is too long")
    with bound(f"{scheme}://{tmp_path}/{name}"):
        assert (tmp_path / name).is_socket()
        with pytest.raises(AddressInUse, match="this process itself"):
            bind(f"{scheme}://{tmp_path}/{name}")
    assert os.listdir(tmp_path) == []
    with pytest.raises(AddressError, match="limit for a Unix socket is 107"):
        bind(f"{scheme}://{tmp_path}/{name}x")


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddressUnavailable, match=rf"no directory {tmp_path}/none"):
        bind(f"unix://{tmp_path}/none/app.sock")


def test_a_failed_bind_leaves_no_file_and_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(socket.socket):
        def listen(self, *_backlog: int) -> None:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    before = os.listdir("/dev/fd")
    monkeypatch.setattr(socket, "socket", Deaf)
    with pytest.raises(AddressError, match="No buffer space"):
        bind(f"unix://{tmp_path}/app.sock")
    assert os.listdir(tmp_path) == []
    assert os.listdir("/dev/fd") == before
