"""What the doctor measures on a machine, over real files of a machine that is made for it."""

from __future__ import annotations

import resource

import pytest

from longshore.config import Limits
from longshore.doctor.vitals import vitals

SYSCTLS = {
    "net/core/somaxconn": "4096",
    "net/ipv4/tcp_max_syn_backlog": "2048",
    "net/core/rmem_max": "212992",
    "net/core/wmem_max": "212992",
    "net/core/rmem_default": "212992",
    "net/core/wmem_default": "212992",
    "net/ipv4/ip_local_port_range": "32768\t60999",
    "kernel/threads-max": "100000",
}


@pytest.fixture
def machine(tmp_path):
    """Writes the files of a good machine, and those given over them: `machine({"proc/sys/...": "7"})`."""

    def write(files=()):
        good = {f"proc/sys/{name}": f"{value}\n" for name, value in SYSCTLS.items()}
        for name, text in (good | {"proc/self/cgroup": "0::/\n"} | dict(files)).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return {vital.name: vital for vital in vitals(root=str(tmp_path))}

    return write


def test_a_good_machine_is_good(machine):
    assert [vital for name, vital in machine().items() if "." in name and vital.verdict != "ok"] == []


def test_longshore_python_and_the_reactor_are_told_with_the_reason():
    from longshore import reactor

    measured = {vital.name: vital for vital in vitals()}
    active, reason = reactor.create()
    active.close()
    assert (measured["reactor"].value, measured["reactor"].note) == (active.name, reason)
    assert "CPython" in measured["python"].value
    assert "GIL" in measured["python"].value or "free-threaded" in measured["python"].value


def test_a_reactor_that_cannot_be_had_is_something_to_look_at(monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", "steam")
    reactor = next(vital for vital in vitals() if vital.name == "reactor")
    assert reactor.verdict == "look"
    assert "steam" in reactor.note
    assert reactor.fix


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.core.somaxconn", "128"),
        ("net.ipv4.tcp_max_syn_backlog", "128"),
        ("net.core.rmem_max", "65536"),
        ("net.core.wmem_default", "65536"),
        ("net.ipv4.ip_local_port_range", "60000 60999"),
        ("kernel.threads-max", "100"),
    ],
)
def test_a_low_limit_has_the_line_that_raises_it(machine, name, value):
    vital = machine({"proc/sys/" + name.replace(".", "/"): value})[name]
    assert vital.verdict == "look"
    assert vital.fix.startswith(f"sysctl -w {name}=")


def test_datagrams_that_the_kernel_dropped_speak_against_the_buffer(machine):
    table = "Udp: InDatagrams NoPorts RcvbufErrors\nUdp: 5 1 17\n"
    vital = machine({"proc/net/snmp": table})["net.core.rmem_default"]
    assert vital.verdict == "look"
    assert "17 were dropped" in vital.note
    assert vital.fix.startswith("sysctl -w net.core.rmem_default=")


def test_queues_that_were_full_are_mentioned(machine):
    table = "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 0 9\n"
    assert "9 found a full queue" in machine({"proc/net/netstat": table})["net.core.somaxconn"].note


def test_what_cannot_be_read_is_unknown_with_the_reason(tmp_path):
    measured = {vital.name: vital for vital in vitals(root=str(tmp_path))}
    unknown = measured["net.core.somaxconn"]
    assert (unknown.value, unknown.verdict) == ("unknown", "unknown")
    assert "No such file" in unknown.note
    assert measured["cgroup"].verdict == "unknown"


def test_rubbish_in_a_file_is_unknown_and_no_crash(machine):
    rubbish = {f"proc/sys/{name}": "\N{SNOWMAN} -1" for name in SYSCTLS}
    rubbish |= {
        "proc/net/snmp": "Udp:\nUdp: x\nUdp: y",
        "proc/self/cgroup": "::::\nnothing",
        "proc/net/netstat": "TcpExt:",
    }
    measured = machine(rubbish)
    assert {measured[name.replace("/", ".")].verdict for name in SYSCTLS} == {"unknown"}


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/app\n", {"app/memory.max": "max", "app/pids.max": "max", "app/cpu.max": "max 100000"}, ("no limit",) * 3),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "1073741824",
                "a/memory.max": "536870912",
                "a/b/pids.max": "4000",
                "a/cpu.max": "150000 100000",
            },
            ("512 MiB", "4000", "1.5 CPUs"),
        ),
        (
            "9:memory:/x\n8:pids:/x\n7:cpu,cpuacct:/\n",
            {
                "memory/x/memory.limit_in_bytes": "268435456",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "pids/x/pids.max": "900",
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            ("256 MiB", "900", "2 CPUs"),
        ),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "268435456"}, ("256 MiB", "no limit", "no limit")),
    ],
)
def test_limits_of_the_container_are_found_in_both_versions(machine, membership, files, expected):
    measured = machine(
        {"proc/self/cgroup": membership} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    )
    assert tuple(measured[f"cgroup {name}"].value for name in ("memory", "pids", "cpu")) == expected


def test_a_container_that_is_too_small_is_something_to_look_at(machine):
    measured = machine({"sys/fs/cgroup/memory.max": "33554432", "sys/fs/cgroup/pids.max": "64"})
    assert measured["cgroup memory"].verdict == measured["cgroup pids"].verdict == "look"
    assert "--pids-limit" in measured["cgroup pids"].fix


@pytest.mark.parametrize(
    ("maximum", "verdict", "words"),
    [
        (lambda soft, hard: 1, "ok", "65 are needed"),
        (lambda soft, hard: hard, "look", "connections at most"),
    ],
)
def test_descriptors_are_held_against_max_connections(maximum, verdict, words):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this machine has no hard limit of descriptors")
    limits = Limits(max_connections=maximum(soft, hard))
    vital = next(each for each in vitals(limits) if each.name == "descriptors")
    assert vital.verdict == verdict
    assert words in vital.note
    assert vital.fix.startswith("ulimit -n ") == (verdict == "look")


def test_a_soft_limit_that_a_server_raises_itself_is_no_trouble(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda number: (256, 65536))
    vital = next(each for each in vitals() if each.name == "descriptors")
    assert (vital.verdict, vital.fix) == ("ok", "")
    assert "raises its soft limit itself" in vital.note


def test_too_few_processes_for_the_threads_are_something_to_look_at(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda number: (200, 200))
    vital = next(each for each in vitals() if each.name == "processes")
    assert (vital.verdict, vital.fix) == ("look", "ulimit -u 384")
