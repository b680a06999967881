"""Binding real sockets: what comes back, who is named when it fails, and what stays in the file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import longshore
from longshore.addresses import AddressOptions, parse
from longshore.errors import AddressError, AddressInUse, AddressUnavailable, ConfigError, PermissionNeeded
from longshore.listeners import Listener, bind

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = str(Path(longshore.__file__).parents[1])

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the owner is found through /proc")


@contextlib.contextmanager
def bound(target: str | socket.socket) -> Iterator[list[Listener]]:
    listeners = bind(target)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@contextlib.contextmanager
def another_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`, has printed its first line when this is entered, and ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nimport sys; sys.stdin.read()", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            process.first_line = process.stdout.readline().strip()  # type: ignore[attr-defined]
            yield process
        finally:
            if process.poll() is None:
                process.stdin.close()
                process.wait(10)


def first_line(process: subprocess.Popen[str]) -> str:
    return str(process.first_line)  # type: ignore[attr-defined]


def echo_once(listener: Listener) -> None:
    """Prove that the listener accepts: one connection, one message, back."""
    with socket.socket(listener.socket.family, socket.SOCK_SEQPACKET if listener.kind == "seqpacket" else 1) as client:
        client.settimeout(10)
        path = listener.address.path if listener.address else None
        client.connect(path if path and path.startswith("/") else listener.socket.getsockname())
        listener.socket.setblocking(True)
        accepted, _ = listener.socket.accept()
        with accepted:
            client.sendall(b"ping")
            accepted.sendall(accepted.recv(16))
            assert client.recv(16) == b"ping"


def refusal(url: str) -> str:
    with pytest.raises(AddressInUse) as caught:
        bind(url)
    return str(caught.value)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# TCP and UDP


def test_a_tcp_listener_accepts_and_tells_its_real_port() -> None:
    with bound("tcp://127.0.0.1:0?backlog=16&nodelay=0") as (listener,):
        assert listener.url == f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}"
        assert (listener.scheme, listener.kind, listener.is_tls) == ("tcp", "stream", False)
        assert listener.options == AddressOptions(backlog=16, nodelay=False)
        assert listener.address == parse("tcp://127.0.0.1:0?backlog=16&nodelay=0")
        assert not listener.socket.getblocking()
        assert not listener.socket.get_inheritable()
        echo_once(listener)


def test_a_parsed_address_is_bound_like_its_url() -> None:
    (listener,) = bind(parse("tls://127.0.0.1:0"))
    assert listener.is_tls
    assert listener.url.startswith("tls://127.0.0.1:")
    listener.close()


@pytest.mark.parametrize("form", ["tcp://127.0.0.1:0?tls=1", "unix://{0}/s?mode=0600&tls=1", "unix://@{0}?tls=1"])
def test_tls_on_another_scheme_is_told_and_stays_in_the_url(tmp_path: Path, form: str) -> None:
    with bound(form.format(tmp_path)) as (listener,):
        assert listener.is_tls
        assert parse(listener.url).is_tls
        assert parse(listener.url).scheme == listener.scheme


def test_no_host_is_one_port_on_both_families() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    for scheme in ("tcp", "udp"):
        with bound(f"{scheme}://:0") as listeners:
            assert {each.socket.family for each in listeners} == {socket.AF_INET, socket.AF_INET6}
            assert len({each.socket.getsockname()[1] for each in listeners}) == 1


def test_ipv6_sockets_leave_ipv4_to_the_ipv4_socket() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with bound("tcp://[::]:0") as (listener,):
        assert listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert listener.url == f"tcp://[::]:{listener.socket.getsockname()[1]}"


def test_a_host_without_ipv6_just_gets_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, *arguments: int, **options: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    with bound("tcp://:0") as listeners:
        assert [each.socket.family for each in listeners] == [socket.AF_INET]
    with pytest.raises(AddressUnavailable, match="AF_INET6"):
        bind("tcp://[::1]:0")


def test_a_port_taken_on_one_family_is_tried_again_when_any_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    refused = []

    class OnceInUse(socket.socket):
        def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            if self.family == socket.AF_INET6 and not refused:
                refused.append(address)
                raise OSError(errno.EADDRINUSE, "Address already in use")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", OnceInUse)
    with bound("tcp://:0") as listeners:
        assert len(refused) == 1
        assert len({each.socket.getsockname()[1] for each in listeners}) == 1


def test_the_sockets_already_bound_are_closed_when_a_later_one_fails() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with bound("tcp://[::]:0") as (taken,):
        port = taken.socket.getsockname()[1]
        with pytest.raises(AddressInUse):
            bind(f"tcp://:{port}")
        with bound(f"tcp://0.0.0.0:{port}"):
            pass


def test_a_port_that_was_just_served_can_be_bound_again_at_once() -> None:
    with bound("tcp://127.0.0.1:0") as (listener,):
        echo_once(listener)
        url = listener.url
    with bound(url) as (listener,):
        echo_once(listener)


def test_two_listeners_share_a_port_only_when_both_ask_for_it() -> None:
    with bound("tcp://127.0.0.1:0?reuse_port=1") as (first,):
        with bound(f"{first.url}?reuse_port=1") as (second,):
            assert second.url == first.url
        with pytest.raises(AddressInUse):
            bind(first.url)


@linux_only
def test_defer_waits_for_the_first_bytes() -> None:
    with bound("tcp://127.0.0.1:0?defer=1") as (listener,):
        assert listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0
        echo_once_deferred(listener)


def echo_once_deferred(listener: Listener) -> None:
    with socket.create_connection(listener.socket.getsockname(), timeout=10) as client:
        with pytest.raises(BlockingIOError):
            listener.socket.accept()
        client.sendall(b"ping")
        listener.socket.setblocking(True)
        accepted, _ = listener.socket.accept()
        with accepted:
            assert accepted.recv(16) == b"ping"


def test_a_udp_listener_receives_and_is_told_where_each_datagram_went() -> None:
    with bound("udp://127.0.0.1:0") as (listener,), socket.socket(type=socket.SOCK_DGRAM) as client:
        assert listener.kind == "datagram"
        client.sendto(b"ping", listener.socket.getsockname())
        listener.socket.setblocking(True)
        data, control, _, _ = listener.socket.recvmsg(100, 256)
        assert data == b"ping"
        if sys.platform == "linux":
            assert [(level, kind, value[8:12]) for level, kind, value in control] == [
                (socket.IPPROTO_IP, 8, socket.inet_aton("127.0.0.1"))
            ]


def test_closing_twice_is_fine() -> None:
    (listener,) = bind("tcp://127.0.0.1:0")
    assert not listener.closed
    listener.close()
    listener.close()
    assert listener.closed
    assert "closed" in repr(listener)


# What the system refuses


@linux_only
@pytest.mark.parametrize(("scheme", "kind"), [("tcp", "STREAM"), ("udp", "DGRAM")])
def test_a_port_in_use_names_the_process_that_has_it(scheme: str, kind: str) -> None:
    holder = (
        f"import socket; s = socket.socket(type=socket.SOCK_{kind}); s.bind(('127.0.0.1', 0))\n"
        f"if {kind == 'STREAM'}: s.listen()\n"
        "print(s.getsockname()[1], flush=True)"
    )
    with another_process(holder) as process:
        for host in ("127.0.0.1", ""):
            with pytest.raises(AddressInUse) as caught:
                bind(f"{scheme}://{host}:{first_line(process)}")
            assert f"(pid {process.pid})" in str(caught.value)
            assert "python" in str(caught.value)
            assert caught.value.errno == errno.EADDRINUSE
            assert caught.value.hint


@linux_only
def test_a_port_held_by_ipv6_for_both_families_is_named_too() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as holder:
        error = refusal(f"tcp://127.0.0.1:{holder.getsockname()[1]}")
    assert f"this process itself (pid {os.getpid()})" in error


@linux_only
def test_an_owner_that_the_system_does_not_tell_is_left_unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_path: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    with bound("tcp://127.0.0.1:0") as (listener,):
        monkeypatch.setattr(os, "readlink", unreadable)
        with pytest.raises(AddressInUse, match="another process"):
            bind(listener.url)


def test_an_address_that_is_not_this_machines_is_unavailable() -> None:
    with pytest.raises(AddressUnavailable, match=r"192\.0\.2\.1:5000 is no address of this machine") as caught:
        bind("tcp://192.0.2.1:5000")
    assert caught.value.hint


REFUSED = """
import os, sys
from longshore.errors import PermissionNeeded
from longshore.listeners import bind
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    bind(sys.argv[1])
except PermissionNeeded as error:
    print(error, "|", error.hint, flush=True)
else:
    print("bound", flush=True)
"""


@linux_only
@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("tcp://127.0.0.1:1", "CAP_NET_BIND_SERVICE"),
        ("raw://127.0.0.1?protocol=icmp", "CAP_NET_RAW"),
        ("unix:///etc/longshore.sock", "write in /etc"),
    ],
)
def test_what_needs_a_privilege_says_which(url: str, cure: str) -> None:
    if url.startswith("tcp") and int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("every user may bind every port here")
    with another_process(REFUSED, url) as process:
        message, _, hint = first_line(process).partition(" | ")
    assert message.startswith(f"{url}: permission denied")
    assert cure in hint


def test_raw_sockets_receive_packets_where_they_are_allowed() -> None:
    try:
        listeners = bind("raw://127.0.0.1?protocol=icmp")
    except PermissionNeeded:
        pytest.skip("raw sockets need CAP_NET_RAW")
    (listener,) = listeners
    assert (listener.kind, listener.scheme) == ("datagram", "raw")
    assert listener.url == "raw://127.0.0.1?protocol=icmp"
    listener.close()


@pytest.mark.parametrize("url", ["rdm://1000:1", "vsock://:0"])
def test_families_that_the_kernel_lacks_say_so(url: str) -> None:
    try:
        listeners = bind(url)
    except AddressUnavailable as error:
        text, hint = str(error), error.hint
        assert "AF_TIPC" in text or "AF_VSOCK" in text or "no address" in text
        assert hint or "this system" in text
    else:
        for listener in listeners:
            assert listener.url.startswith(url.partition(":")[0])
            listener.close()


def test_the_errors_of_a_system_without_a_family_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def __init__(self, *_arguments: object) -> None:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(AddressUnavailable, match="kernel has no such AF_VSOCK sockets") as caught:
        bind("vsock://:5000")
    assert "modprobe vsock" in caught.value.hint


def test_what_the_system_refuses_for_other_reasons_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(socket, "socket", Exhausted)
    with pytest.raises(AddressError, match="No buffer space available") as caught:
        bind("tcp://127.0.0.1:0")
    assert caught.value.errno == errno.ENOBUFS


# Unix sockets


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


# Sockets that others made


def test_a_bound_socket_is_made_to_listen() -> None:
    ready = socket.socket()
    ready.bind(("127.0.0.1", 0))
    with bound(ready) as (listener,):
        assert listener.socket is ready
        assert listener.address is None
        assert listener.options == AddressOptions()
        assert listener.url == f"tcp://127.0.0.1:{ready.getsockname()[1]}"
        assert not ready.getblocking()
        echo_once(listener)


def test_a_listening_socket_is_taken_as_it_is(tmp_path: Path) -> None:
    ready = socket.socket(socket.AF_UNIX)
    ready.bind(str(tmp_path / "mine.sock"))
    ready.listen()
    with bound(ready) as (listener,):
        assert (listener.scheme, listener.url) == ("unix", f"unix://{tmp_path}/mine.sock")
    assert ready.fileno() < 0
    assert os.listdir(tmp_path) == ["mine.sock"]  # whoever made the file removes it


def test_a_bound_datagram_socket_is_taken() -> None:
    ready = socket.socket(type=socket.SOCK_DGRAM)
    ready.bind(("127.0.0.1", 0))
    with bound(ready) as (listener,):
        assert (listener.scheme, listener.kind) == ("udp", "datagram")


def test_sockets_that_cannot_be_served_are_refused_and_stay_open() -> None:
    left, right = socket.socketpair()
    unbound = socket.socket()
    nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, unbound, nameless:
        with pytest.raises(ConfigError, match="one connection"):
            bind(left)
        for sock in (unbound, nameless):
            with pytest.raises(ConfigError, match="not bound"):
                bind(sock)
        assert all(sock.fileno() >= 0 for sock in (left, unbound, nameless))
    with pytest.raises(ConfigError, match="closed"):
        bind(unbound)


def test_a_socket_that_is_wrapped_in_tls_is_refused_with_the_cure() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    plain = socket.socket()
    plain.bind(("127.0.0.1", 0))
    with context.wrap_socket(plain, server_side=True) as wrapped, pytest.raises(ConfigError) as caught:
        bind(wrapped)
    assert "tls=TLS(context=" in caught.value.hint


def test_a_ready_made_socket_whose_port_is_served_is_in_use() -> None:
    with socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        first.listen()
        with pytest.raises(AddressInUse):
            bind(second)


# Descriptors that were inherited


def test_an_inherited_descriptor_is_served() -> None:
    ready = socket.socket()
    ready.bind(("127.0.0.1", 0))
    port = ready.getsockname()[1]
    descriptor = ready.detach()
    os.set_inheritable(descriptor, True)
    with bound(f"fd://{descriptor}?backlog=5") as (listener,):
        assert listener.socket.fileno() == descriptor
        assert (listener.scheme, listener.url) == ("tcp", f"tcp://127.0.0.1:{port}")
        assert listener.options.backlog == 5
        assert not listener.socket.get_inheritable()
        echo_once(listener)


@pytest.mark.parametrize("descriptor", [2000000000, 4294967295])
def test_a_descriptor_that_is_not_open_is_refused(descriptor: int) -> None:
    with pytest.raises(AddressError, match=f"descriptor {descriptor} is not open"):
        bind(f"fd://{descriptor}")


def test_a_descriptor_that_is_no_socket_is_refused_and_stays_open(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        with pytest.raises(AddressError, match="is not a socket") as caught:
            bind(f"fd://{file.fileno()}")
        assert caught.value.hint
        file.write("still open")


def test_a_descriptor_of_one_connection_is_refused_and_stays_open() -> None:
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ConfigError, match="one connection") as caught:
            bind(f"fd://{left.fileno()}")
        assert "Accept=no" in caught.value.hint
        left.sendall(b"still open")
        assert right.recv(16) == b"still open"


def test_sockets_from_the_service_manager_are_served_by_name() -> None:
    # Copied high first, then to where the service manager would put them: from descriptor 3 on.
    code = (
        "import fcntl, os, sys\n"
        "high = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 50) for text in sys.argv[1:]]\n"
        "for number, descriptor in enumerate(high, 3): os.dup2(descriptor, number)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from longshore.listeners import bind\n"
        "print(*(each.url for each in [*bind('systemd://web'), *bind('systemd://dns')]), flush=True)"
    )
    with socket.create_server(("127.0.0.1", 0)) as web, socket.socket(type=socket.SOCK_DGRAM) as dns:
        dns.bind(("127.0.0.1", 0))
        finished = subprocess.run(
            [sys.executable, "-c", code, str(web.fileno()), str(dns.fileno())],
            pass_fds=(web.fileno(), dns.fileno()),
            env={**os.environ, "PYTHONPATH": SOURCES, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:dns"},
            stdout=subprocess.PIPE,
            text=True,
            timeout=15,
            check=True,
        )
        assert finished.stdout.split() == [
            f"tcp://127.0.0.1:{web.getsockname()[1]}",
            f"udp://127.0.0.1:{dns.getsockname()[1]}",
        ]


@pytest.mark.parametrize(("option", "expected"), [("", 1), ("?nodelay=0", 0)])
def test_connections_are_accepted_with_the_options_of_their_address(option, expected):
    (listener,) = bind(f"tcp://127.0.0.1:0{option}")
    try:
        with socket.create_connection(listener.socket.getsockname()):
            ready, _, _ = select.select([listener.socket], [], [], 5)
            assert ready
            sock, _address = listener.accept()
            with sock:
                # Where a connection begins as a copy of its listener, this is all; elsewhere admission sets them.
                if listener.hands_down:
                    assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == bool(expected)
    finally:
        listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of it is Linux's")
def test_the_kernel_takes_little_for_a_peer_that_never_reads():
    (listener,) = bind("tcp://127.0.0.1:0")
    try:
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(listener.socket.getsockname())
            select.select([listener.socket], [], [], 5)
            sock, _address = listener.accept()
            with sock:
                sock.setblocking(False)
                taken = 0
                with pytest.raises(BlockingIOError):
                    while taken < 1 << 24:
                        taken += sock.send(b"x" * 1024)
        assert taken < 1 << 18
    finally:
        listener.close()


def test_a_native_reactor_accepts_as_the_listener_itself_would():
    native = pytest.importorskip("longshore._native", reason="the native reactor was not built", exc_type=ImportError)
    (listener,) = bind("tcp://127.0.0.1:0")
    try:
        accept = native.Accepting(listener.socket).accept
        with pytest.raises(BlockingIOError):
            accept()
        with socket.create_connection(listener.socket.getsockname()) as client:
            select.select([listener.socket], [], [], 5)
            sock, address = accept()
            with sock:
                assert type(sock) is socket.socket
                assert address == client.getsockname() == sock.getpeername()
                assert (sock.family, sock.type, sock.gettimeout()) == (socket.AF_INET, socket.SOCK_STREAM, 0.0)
                assert not sock.get_inheritable()
                assert not os.get_blocking(sock.fileno())
    finally:
        listener.close()
    with pytest.raises(OSError, match=r"\[Errno"):
        accept()
