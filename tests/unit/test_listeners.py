"""Binding real sockets: what comes back, and who is named when it fails."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from longshore.addresses import AddressOptions, parse
from longshore.errors import AddressError, AddressInUse, AddressUnavailable, ConfigError, PermissionNeeded
from longshore.listeners import Listener, bind
from tests.unit.listening import SOURCES, another_process, bound, echo_once, first_line, linux_only, refusal


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
