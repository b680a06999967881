"""Events as log lines, for people and for programs."""

from __future__ import annotations

import io
import json
import logging
import os
import traceback

import pytest

from longshore import events
from longshore.errors import ConfigError
from longshore.logfiles import reopen_logs
from longshore.observers.logs import LogFile, LogObserver, configure, describe


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_traceback_ends_with_what_to_do():
    shown = traceback.format_exception(raised(ConfigError("no port", hint="Take one.")))
    assert "".join(shown).endswith("longshore.errors.ConfigError: no port\nhint: Take one.\n")


STARTED = events.ServerStarted(
    handler="Echo", addresses=("tcp://:1", "unix:///x"), strategy="green", reactor="portable", reason="the only one"
)
OPENED = events.ConnectionOpened(id=7, peer="10.0.0.1:99", local="tcp://:1")
RESET = events.ConnectionClosed(
    id=7,
    peer="10.0.0.1:99",
    local="tcp://:1",
    cause="reset",
    error=raised(ConnectionResetError(104, "reset by peer")),
    received=3,
    sent=4,
    unsent=5,
    messages=1,
    duration=1.25,
)
FAILED = events.HandlerFailed(handler="Echo", peer="10.0.0.1:99", error=raised(ValueError("no good")))
ALL = (
    STARTED,
    events.ServerPaused(),
    events.ServerResumed(),
    events.ServerDraining(connections=1, timeout=None),
    events.ServerStopped(finished=1, cut=2, abandoned=("Echo for 10.0.0.1:99",), seconds=0.5),
    OPENED,
    RESET,
    events.ConnectionRejected(peer="10.0.0.1:99", local="tcp://:1", limit="max_connections"),
    events.AcceptFailed(local="tcp://:1", error=OSError(24, "Too many open files"), retry_in=1.0),
    FAILED,
    events.HandlerBlocked(
        handler="Echo", peer=None, seconds=1.5, stack='  File "a.py", line 3, in handle\n    time.sleep(9)\n'
    ),
    events.DatagramDropped(peer="10.0.0.1:99", local="udp://:1", reason="truncated", size=9),
    events.SlowReceiver(id=7, peer="10.0.0.1:99", pending=9, action="drop"),
    events.LimitNear(limit="max_connections", value=8, maximum=10),
    events.LimitsAdjusted(limit="max_connections", wanted=9, actual=5, reason="RLIMIT_NOFILE"),
    events.SpawnerDied(pid=7, replaced=False),
    events.ThreadsAtFork(threads=("Thread-1", "pool")),
    events.ServerAnnounced(),
    events.WorkerReady(worker=1, pid=7, generation=1, seconds=0.5),
    events.WorkerRetiring(worker=1, pid=7, reason="reload"),
    events.WorkerEnded(worker=1, pid=7, finished=3, cut=1, abandoned=("Echo",), seconds=1.5),
    events.WorkerCrashed(worker=1, pid=7, reason="killed by SIGKILL", connections=3, retry_in=0.0),
    events.WorkerBlocked(worker=1, pid=7, seconds=30.0, stack='Thread 1:\n  File "a.py", line 3 in handle\n'),
    events.Reloading(generation=2),
    events.Reloaded(generation=2, seconds=0.5),
    events.ReloadFailed(reason="a.py: SyntaxError"),
    events.Upgrading(pid=8),
    events.Upgraded(pid=8),
    events.UpgradeFailed(reason="exit status 1"),
    events.BrokerEnded(pid=9, reason="its process is gone", retry_in=0.0),
    events.ControlEnded(pid=9, reason="exit status 1", retry_in=1.0),
    events.CertificateRenewed(certfile="server.pem", expires=2e9),
    events.CertificateRefused(certfile="server.pem", error=OSError(2, "No such file or directory")),
    events.CertificateExpires(certfile="server.pem", expires=2e9, seconds=86400.0),
    events.ControlOpened(metrics=("http://127.0.0.1:9100/metrics",), control=("/run/app.sock",)),
)


@pytest.fixture(autouse=True)
def logger_as_before():
    """The `longshore` logger as it was."""
    logger = logging.getLogger("longshore")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def written():
    """Configure, log some events, and return what was written."""

    def write(*some, stream=None, **options):
        target = stream or io.StringIO()
        observer = LogObserver(configure(stream=target, **options))
        for event in some:
            observer(event)
        return target.getvalue()

    return write


def test_every_event_there_is_has_a_line_of_its_own():
    assert {type(event).__name__ for event in ALL} == set(events.__all__) - {"Event"}
    for event in ALL:
        line = describe(event)
        assert "\n" not in line
        assert type(event).__name__ not in line


def test_lines_say_who_what_and_why():
    assert describe(STARTED) == "serving Echo on tcp://:1 and unix:///x (green, portable reactor: the only one)"
    assert describe(RESET) == (
        "10.0.0.1:99 #7 closed: reset (ConnectionResetError: [Errno 104] reset by peer), after 1.250 s, "
        "3 bytes in, 4 out, 5 unsent, 1 message"
    )
    assert describe(FAILED) == "Echo failed for 10.0.0.1:99: ValueError: no good"
    assert describe(ALL[10]).endswith('for 1.5 s, at File "a.py", line 3, in handle: time.sleep(9)')


def test_an_event_that_is_not_known_here_is_a_line_of_its_fields():
    class NewEvent(events.Event):
        pass

    assert describe(NewEvent()) == "NewEvent"


def test_text_is_one_line_per_event_with_time_and_level(written):
    lines = written(*ALL, level="debug").splitlines()
    heads = [line for line in lines if line[:2] == "20"]
    assert len(heads) == len(ALL)
    assert all(line.split()[2] in ("debug", "info", "warning", "error") for line in heads)


def test_an_event_s_own_level_decides_whether_it_is_logged(written):
    assert written(OPENED, STARTED, level="info").count("\n") == 1
    assert written(OPENED, STARTED, level="debug").count("\n") == 2
    assert written(OPENED, STARTED, level="warning") == ""


def test_a_failed_handler_has_one_traceback_and_a_reset_has_none(written):
    assert written(FAILED).count("Traceback") == 1
    assert written(FAILED).count("ValueError: no good\n") == 2
    assert "Traceback" not in written(RESET, level="debug")


def test_what_a_peer_says_cannot_forge_lines_or_colours(written):
    error = raised(ValueError("bad\n2024-01-01 00:00:00 info forged\x1b[31m"))
    line = describe(events.ConnectionClosed(id=1, peer="p", local="l", cause="framing", error=error))
    assert "bad\\n2024-01-01 00:00:00 info forged\\x1b[31m" in line


def test_json_is_one_object_per_line(written):
    lines = [json.loads(line) for line in written(*ALL, format="json", level="debug").splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in ALL]
    assert all(line["level"] == event.level.lower() for line, event in zip(lines, ALL, strict=True))
    assert all(line["time"].endswith("Z") for line in lines)
    started, closed, failed = lines[0], lines[6], lines[9]
    assert started["addresses"] == ["tcp://:1", "unix:///x"]
    assert closed["error"] == "ConnectionResetError: [Errno 104] reset by peer"
    assert (closed["cause"], closed["received"], closed["duration"]) == ("reset", 3, 1.25)
    assert failed["traceback"].startswith("Traceback")
    assert [line["event"] for line in lines if "traceback" in line] == ["HandlerFailed"]


def test_other_records_of_the_logger_are_json_too():
    stream = io.StringIO()
    configure("json", stream=stream).warning("disk at %d %%", 93)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["message"]) == ("log", "warning", "disk at 93 %")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_lines_are_coloured_on_a_terminal_that_has_colours(written, monkeypatch, variables, coloured):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in written(FAILED, stream=Terminal())) is coloured
    assert "\x1b[" not in written(FAILED)


def test_configuring_again_replaces_the_former_handler():
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first)
    LogObserver(configure(stream=second))(STARTED)
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize("options", [{"format": "xml"}, {"level": "loud"}])
def test_an_unknown_format_or_level_is_a_config_error(options):
    with pytest.raises(ConfigError, match=r"xml|loud"):
        configure(**options)


def test_a_logger_of_ones_own_gets_the_event_itself():
    records = []
    logger = logging.Logger("mine", logging.DEBUG)
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    LogObserver(logger)(RESET)
    assert records[0].longshore_event is RESET
    assert records[0].getMessage() == describe(RESET)
    assert records[0].levelname == "DEBUG"


def record(text):
    return logging.makeLogRecord({"msg": text, "name": "longshore", "levelno": logging.INFO, "levelname": "INFO"})


def test_a_log_file_that_was_moved_away_is_opened_anew(tmp_path):
    path = tmp_path / "app.log"
    logger = configure(stream=LogFile(str(path)))
    logger.info("before")
    path.rename(tmp_path / "app.log.1")
    reopen_logs()
    logger.info("after")
    assert (tmp_path / "app.log.1").read_text().endswith("before\n")
    assert path.read_text().endswith("after\n")
    configure(stream=io.StringIO())


def test_a_log_file_that_nothing_was_written_to_yet_is_not_made_by_being_opened_anew(tmp_path):
    path = tmp_path / "rare.log"
    logger, handler = logging.getLogger("rare"), logging.FileHandler(path, delay=True)
    logger.addHandler(handler)
    reopen_logs()
    assert not path.exists()
    logger.warning("now")
    assert path.read_text() == "now\n"
    logger.removeHandler(handler)
    handler.close()


def test_a_log_file_whose_directory_is_gone_goes_on_where_it_is(tmp_path):
    (tmp_path / "logs").mkdir()
    logger = configure(stream=LogFile(str(tmp_path / "logs" / "app.log")))
    (tmp_path / "logs").rename(tmp_path / "old")
    reopen_logs()
    logger.info("still here")
    assert (tmp_path / "old" / "app.log").read_text().endswith("still here\n")
    configure(stream=io.StringIO())


def test_a_full_disk_is_told_once_and_costs_nothing_but_lines(capsys):
    handler = LogFile("/dev/full")
    for number in range(1000):
        handler.handle(record(f"line {number} of many that fill every buffer there may be"))
    told = capsys.readouterr().err
    assert told == "longshore: /dev/full cannot be written: No space left on device; serving goes on\n"
    logging.getLogger("longshore").addHandler(handler)
    configure(stream=io.StringIO())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_log_file_is_given_to_those_who_will_write_it_and_a_device_is_not(tmp_path):
    path = tmp_path / "app.log"
    LogFile(str(path), (65534, 65534)).close()
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    before = os.stat("/dev/null").st_uid
    LogFile("/dev/null", (65534, 65534)).close()
    assert os.stat("/dev/null").st_uid == before
