"""The unit files, as systemd itself reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from longshore.cli.unit import UnitArguments, unit_files
from longshore.errors import ConfigError

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def units(target="app.py:Echo", *, socket=False, name=None, systemd=252, **values):
    texts = {option: text if isinstance(text, list) else [text] for option, text in values.items()}
    return unit_files(UnitArguments(target, texts, name, socket), "/srv/app", sys.executable, systemd)


def settings(text):
    return [tuple(line.split("=", 1)) for line in text.splitlines() if "=" in line and not line.startswith("#")]


def test_a_service_runs_what_serve_would_with_its_options():
    (service,) = units(bind="tcp://:5000", workers="4", drain_timeout="40").items()
    assert service[0] == "app.service"
    found = dict(settings(service[1]))
    assert found["ExecStart"] == (
        f"{sys.executable} -m longshore serve app.py:Echo --bind tcp://:5000 --workers 4 --drain-timeout 40 "
        "--control /run/app/control.sock"
    )
    assert found["Type"] == "notify"
    assert found["TimeoutStopSec"] == "55"
    assert found["WorkingDirectory"] == "/srv/app"
    assert found["Environment"] == "PWD=/srv/app"
    assert "AmbientCapabilities" not in found


def test_a_socket_unit_binds_what_the_service_takes_over():
    files = units(bind=["tcp://127.0.0.1:5000", "tls://[::1]:5001", "unix:///run/x"], socket=True, name="echo",
                  certfile="c.pem")  # fmt: skip
    assert list(files) == ["echo-1.socket", "echo-2.socket", "echo-3.socket", "echo.service"]
    assert ("ListenStream", "127.0.0.1:5000") in settings(files["echo-1.socket"])
    assert ("ListenStream", "[::1]:5001") in settings(files["echo-2.socket"])
    assert ("ListenStream", "/run/x") in settings(files["echo-3.socket"])
    assert ("FileDescriptorName", "echo-2") in settings(files["echo-2.socket"])
    start = dict(settings(files["echo.service"]))["ExecStart"]
    assert "--bind systemd://echo-1 --bind systemd://echo-2?tls=1 --bind systemd://echo-3" in start


def test_a_port_below_1024_takes_a_capability_and_a_user_takes_the_place_of_the_dynamic_one():
    found = dict(settings(units(bind="udp://:514", user="syslog")["app.service"]))
    assert found["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    assert found["User"] == "syslog"
    assert "DynamicUser" not in found
    assert "--user" not in found["ExecStart"]


def test_a_systemd_that_can_waits_for_the_end_of_a_reload():
    found = dict(settings(units(bind="tcp://:5000", systemd=253)["app.service"]))
    assert (found["Type"], found["ReloadSignal"]) == ("notify-reload", "SIGHUP")
    # Both would send the signal twice.
    assert "ExecReload" not in found
    found = dict(settings(units(bind="tcp://:5000", systemd=0)["app.service"]))
    assert (found["Type"], found["ExecReload"]) == ("notify", "/bin/kill -HUP $MAINPID")


@pytest.mark.parametrize(("version", "kind"), [("systemd 257 (257.9-1~deb13u1)", b"notify-reload"), ("", b"notify")])
def test_which_systemd_it_is_for_is_asked_of_this_machine(run, app, version, kind):
    systemctl = app / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho '{version}'\n")
    systemctl.chmod(0o755)
    result = run("unit", "echo.py:echo", "--bind", "tcp://:5000", cwd=app, PATH=f"{app}:{os.environ['PATH']}")
    assert b"\nType=" + kind + b"\n" in result.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("/var/log/app/app.log", ("LogsDirectory", "app")),
        ("/data/app.log", ("ReadWritePaths", "/data")),
        ("logs/app.log", ("ReadWritePaths", "/srv/app/logs")),
    ],
)
def test_a_log_file_can_be_written_where_it_is(file, line):
    assert line in settings(units(bind="tcp://:5000", log_file=file)["app.service"])


def test_words_are_quoted_as_systemd_reads_them():
    start = dict(settings(units(bind="tcp://:5000", farewell='100% "full"')["app.service"]))["ExecStart"]
    assert r'--farewell "100%% \"full\""' in start


def test_what_serve_would_refuse_is_refused_at_once():
    with pytest.raises(ConfigError, match="no address"):
        units()
    with pytest.raises(ConfigError, match="max_connections=0"):
        units(bind="tcp://:5000", max_connections="0")
    with pytest.raises(ConfigError, match="no name for a unit"):
        units(bind="tcp://:5000", name="../../etc/passwd")
    with pytest.raises(ConfigError, match="systemd binds no raw sockets"):
        units(bind="raw://127.0.0.1?protocol=icmp", socket=True)


@analyze
@pytest.mark.slow
@pytest.mark.parametrize("socket", [False, True])
def test_systemd_finds_nothing_wrong_with_them(run, tmp_path, app, socket):
    words = ["--bind", "tcp://127.0.0.1:5000", "--bind", "udp://127.0.0.1:5000", "--output", str(tmp_path / "units")]
    result = run("unit", "echo.py:echo", *words, *(["--socket"] if socket else []), cwd=app)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines()[-1] == f"wrote {tmp_path}/units/echo.service"
    files = sorted(str(path) for path in (tmp_path / "units").iterdir())
    assert len(files) == (3 if socket else 1)
    verified = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=15)
    ours = [line for line in verified.stderr.splitlines() if "echo" in line]
    assert (verified.returncode, ours) == (0, [])


def test_without_a_folder_they_are_printed_with_their_names(run, app):
    result = run("unit", "echo.py:echo", "--bind", "tcp://:5000", "--socket", cwd=app)
    assert result.returncode == 0
    assert result.stdout.startswith(b"# /etc/systemd/system/echo.socket\n[Unit]\n")
    assert b"\n# /etc/systemd/system/echo.service\n[Unit]\n" in result.stdout
