"""What a service tells systemd, heard on a socket such as systemd has."""

from __future__ import annotations

import array
import os
import socket
import time

import pytest

from longshore.systemd import Notifier, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """The datagram socket of a service manager, and the value of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = str(tmp_path / "notify") if request.param == "path" else f"@longshore-test-{os.getpid()}"
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(10)
        yield sock, {"NOTIFY_SOCKET": name}


def heard(sock):
    return dict(line.split("=", 1) for line in sock.recv(4096).decode().split("\n"))


def test_readiness_reload_and_stop_are_told_with_their_status(manager):
    sock, environ = manager
    notifier = Notifier(environ)
    assert notifier.is_heard
    assert notifier.ready("serving on tcp://127.0.0.1:5000")
    assert heard(sock) == {"READY": "1", "STATUS": "serving on tcp://127.0.0.1:5000"}
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading()
    message = heard(sock)
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.stopping()
    assert heard(sock) == {"STOPPING": "1"}
    assert notifier.alive()
    assert heard(sock) == {"WATCHDOG": "1"}


def test_a_status_is_one_line_and_no_field_of_its_own(manager):
    sock, environ = manager
    Notifier(environ).status("two\nMAINPID=1\nlines")
    assert heard(sock) == {"STATUS": "two MAINPID=1 lines"}


def test_listening_sockets_are_stored_under_their_name_and_forgotten(manager):
    sock, environ = manager
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert Notifier(environ).store("web", [listener])
        data, ancillary, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(16))
        assert data.decode().split("\n") == ["FDSTORE=1", "FDNAME=web"]
        fds = array.array("i")
        fds.frombytes(ancillary[0][2])
        with socket.socket(fileno=fds[0]) as stored:
            assert stored.getsockname() == listener.getsockname()
    assert Notifier(environ).forget("web")
    assert heard(sock) == {"FDSTOREREMOVE": "1", "FDNAME": "web"}


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_without_a_manager_nobody_is_told(name):
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert not notifier.is_heard
    assert not notifier.ready("serving")


def test_a_manager_that_is_gone_or_does_not_read_stops_nobody(tmp_path):
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "full"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "full")})
        while notifier.alive():
            pass


def test_signs_of_life_are_due_in_half_of_the_time_that_is_allowed():
    assert watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 15
    assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15
    assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, pid=1) == 15
    for text in ("", "0", "soon"):
        assert watchdog_interval({"WATCHDOG_USEC": text}) is None
