"""`longshore ctl` as people type it, in a process of its own, against a control process and real servers."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from control_harbour import Harbour, ready
from longshore import connect
from longshore.cli.ctl import age, size, table
from longshore.control.client import Commanded
from running import COMMAND, environment

pytestmark = pytest.mark.slow


@pytest.fixture
def harbour(tmp_path):
    harbour = Harbour(tmp_path)
    yield harbour
    harbour.close()


def command(*words, **variables):
    return subprocess.Popen(
        [*COMMAND, "ctl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


def ctl(*words, **variables):
    with command(*words, **variables) as process:
        output, errors = process.communicate(timeout=15)
    return process.returncode, output, errors


def serving(harbour, count=1):
    servers = [harbour.start() for _ in range(count)]
    with Commanded(harbour.path) as commanded:
        ready(commanded, count)
    return servers


def test_the_status_is_a_table_of_workers(harbour):
    (server,) = serving(harbour)
    status, output, errors = ctl("--control", harbour.path, "status")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == "serving, ready: 1 of 1 workers, generation 1"
    assert lines[1] == f"echo on {server.addresses[0]}"
    assert lines[3].split() == [
        "worker",
        "pid",
        "gen",
        "state",
        "age",
        "conns",
        "accepted",
        "in",
        "out",
        "messages",
        "failed",
    ]
    assert lines[4].split()[:4] == ["1", str(os.getpid()), "1", "serving"]


def test_connections_are_listed_and_one_is_killed_by_its_id(harbour):
    (server,) = serving(harbour)
    with connect(server.addresses[0]) as client:
        client.sendall(b"hello")
        client.read_exactly(5)
        status, output, _ = ctl("connections", "--control", harbour.path, "--json")
        (row,) = json.loads(output)["connections"]
        assert (status, row["peer"]) == (0, client.local)
        status, output, _ = ctl("--control", harbour.path, "connections", "--sort", "received")
        assert status == 0
        assert output.splitlines()[1].split()[:2] == [row["id"], client.local]
        assert ctl("--control", harbour.path, "connection", "kill", row["id"]) == (0, f"{client.local} is cut\n", "")
        assert client.recv(1) == b""


def test_limits_are_set_and_shown(harbour):
    (server,) = serving(harbour)
    where = {"LONGSHORE_CONTROL": harbour.path}
    status, output, _ = ctl("limits", "set", "max-connections=5", "idle_timeout=none", **where)
    assert (status, server.limits.max_connections, server.timeouts.idle) == (0, 5, None)
    assert output == "set in every worker, until the next reload: max_connections=5 idle_timeout=none\n"
    status, output, _ = ctl("limits", "get", **where)
    assert ["max_connections", "5"] in [line.split() for line in output.splitlines()]
    assert ["idle_timeout", "none"] in [line.split() for line in output.splitlines()]


def test_a_refusal_is_one_line_and_a_hint_and_1(harbour):
    serving(harbour)
    assert ctl("--control", harbour.path, "limits", "set", "max_conections=5") == (
        1,
        "",
        "longshore: there is no limit 'max_conections'\nhint: Did you mean max_connections?\n",
    )
    status, _, errors = ctl("--control", harbour.path, "reload")
    assert (status, errors) == (1, "longshore: the new code does not start\n")


def test_a_mistake_on_the_command_line_is_2(harbour):
    status, _, errors = ctl("--control", harbour.path, "limits", "set", "max_connections")
    assert status == 2
    assert "is no NAME=VALUE" in errors
    assert ctl("--control", harbour.path, "workers", "kill", "first")[0] == 2
    status, _, errors = ctl("--control", harbour.path, "statsu")
    assert status == 2
    status, _, errors = ctl("status")
    assert status == 2
    assert "hint: Name one: --control" in errors


def test_where_nobody_listens_the_hint_says_how_to_start_a_server_that_does(tmp_path):
    status, _, errors = ctl("status", "--control", str(tmp_path / "no.sock"))
    assert status == 1
    assert "no server listens for commands at" in errors
    assert "hint: Start it with longshore serve" in errors


def test_a_trace_prints_events_until_it_was_enough(harbour):
    (server,) = serving(harbour)
    with command("--control", harbour.path, "trace", "127.0.0.1", "--count", "2") as process:
        assert process.stderr.readline() == "tracing 127.0.0.1; Ctrl-C ends it\n"
        with connect(server.addresses[0]) as client:
            client.sendall(b"hello")
            client.read_exactly(5)
        output, _ = process.communicate(timeout=15)
    assert process.returncode == 0
    opened, closed = output.splitlines()
    assert "worker 1 ConnectionOpened id=" in opened
    assert f"peer='{client.local}'" in closed
    assert "cause='finished'" in closed
    assert "received=5" in closed


def test_pause_and_resume_say_what_they_did(harbour):
    (server,) = serving(harbour)
    assert ctl("--control", harbour.path, "pause")[0] == 0
    assert harbour.until(lambda: server.status, lambda status: status == "paused")
    assert "paused" in ctl("--control", harbour.path, "status")[1]
    assert ctl("--control", harbour.path, "resume") == (0, "accepting\n", "")


def test_durations_and_counts_are_short():
    assert [age(value) for value in (None, 0.04, 9.94, 59, 61, 3599, 3600, 90_000)] == [
        "-", "0.0s", "9.9s", "59s", "1m01s", "59m59s", "1h00m", "1d01h",
    ]  # fmt: skip
    assert [size(value) for value in (None, 0, 999, 1000, 12_345, 99_600, 1_500_000, 10**15)] == [
        "-", "0", "999", "1.0k", "12.3k", "100k", "1.5M", "1.0P",
    ]  # fmt: skip


def test_a_table_shows_no_escape_sequence_of_a_peer():
    text = table(("id", "peer"), [[1, "\x1b[2Jghost"], [20, "x"]])
    assert text == "id  peer\n 1  \\x1b[2Jghost\n20  x"
