"""The control process between real servers and real clients; the supervisor's side of the seam is played here."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import stat
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest
import trustme

from control_harbour import Harbour, ready
from longshore import Lines, connect
from longshore.config import TLS, Limits
from longshore.control import metrics
from longshore.control.client import Commanded, Disobeyed


@pytest.fixture
def harbour(tmp_path):
    harbour = Harbour(tmp_path)
    yield harbour
    harbour.close()


@pytest.fixture
def ctl(harbour):
    with Commanded(harbour.path) as commanded:
        yield commanded


def test_the_status_names_every_worker_and_what_it_serves(harbour, ctl):
    servers = [harbour.start(), harbour.start()]
    status = ready(ctl, 2)
    assert [each["worker"] for each in status["workers"]] == [1, 2]
    assert [each["addresses"] for each in status["workers"]] == [list(server.addresses) for server in servers]
    assert status["supervisor"]["wanted"] == 2
    assert (status["silent"], status["paused"]) == ([], False)


def test_connections_of_all_workers_are_one_list(harbour, ctl):
    servers = [harbour.start(), harbour.start()]
    ready(ctl, 2)
    with connect(servers[0].addresses[0]) as one, connect(servers[1].addresses[0]) as two:
        for size, client in ((3, one), (5, two)):
            client.sendall(b"x" * size)
            client.read_exactly(size)
        answer = ctl.ask("connections", sort="received")
        assert [(row["peer"], row["received"], row["worker"]) for row in answer["connections"]] == [
            (two.local, 5, 2),
            (one.local, 3, 1),
        ]
        assert ctl.ask("connections", sort="received", limit=1)["total"] == 2
        victim = answer["connections"][0]["id"]
        assert victim.startswith("2:")
        assert ctl.ask("cut", connection=victim) == {"peer": two.local}
        assert two.recv(1) == b""
        one.sendall(b"still here")
        assert one.read_exactly(10) == b"still here"


def test_a_limit_is_turned_in_every_worker_and_in_those_to_come(harbour, ctl):
    servers = [harbour.start(), harbour.start()]
    ready(ctl, 2)
    ctl.ask("turn", values={"max_connections": "77", "idle_timeout": "none"})
    assert [server.limits.max_connections for server in servers] == [77, 77]
    later = harbour.start()
    harbour.until(lambda: later.limits.max_connections, lambda value: value == 77)
    assert later.timeouts.idle is None
    assert ctl.ask("limits")["max_connections"] == 77


def test_a_limit_that_cannot_be_used_reaches_no_worker(harbour, ctl):
    server = harbour.start()
    ready(ctl, 1)
    with pytest.raises(Disobeyed, match="max_connections=0"):
        ctl.ask("turn", values={"max_connections": "0"})
    with pytest.raises(Disobeyed, match="no limit 'max_conections'") as caught:
        ctl.ask("turn", values={"max_conections": "5"})
    assert caught.value.hint == "Did you mean max_connections?"
    assert server.limits == Limits()


def test_pausing_takes_readiness_away_and_resuming_gives_it_back(harbour, ctl):
    harbour.start()
    harbour.until(lambda: harbour.page("/ready")[0], lambda status: status == 200)
    ctl.ask("pause")
    assert harbour.page("/ready")[0] == 503
    later = harbour.start()
    harbour.until(lambda: later.status, lambda status: status == "paused")
    ctl.ask("resume")
    harbour.until(lambda: harbour.page("/ready")[0], lambda status: status == 200)
    harbour.until(lambda: later.status, lambda status: status == "serving")


def test_readiness_is_off_before_the_supervisor_hears_of_a_drain(harbour, ctl):
    harbour.start()
    harbour.until(lambda: harbour.page("/ready")[0], lambda status: status == 200)
    ctl.ask("drain")
    assert harbour.page("/ready")[0] == 503
    assert [each["verb"] for each in harbour.commands if each["verb"] != "status"] == ["drain"]


def test_a_supervisor_that_drains_for_a_signal_takes_readiness_away(harbour, ctl):
    server = harbour.start()
    harbour.until(lambda: harbour.page("/ready")[0], lambda status: status == 200)
    harbour.tell(event="state", state="draining")
    harbour.until(lambda: harbour.page("/ready")[0], lambda status: status == 503)
    assert server.status == "serving"


def test_commands_of_the_supervisor_are_passed_on_and_its_refusals_come_back(harbour, ctl):
    harbour.start()
    ready(ctl, 1)
    ctl.ask("add")
    ctl.ask("remove")
    ctl.ask("kill", worker=1)
    verbs = [(each["verb"], each.get("worker")) for each in harbour.commands if each["verb"] != "status"]
    assert verbs == [("add", None), ("remove", None), ("kill", 1)]
    with pytest.raises(Disobeyed, match="the new code does not start"):
        ctl.ask("reload")
    with pytest.raises(Disobeyed, match="there is no worker 9"):
        ctl.ask("kill", worker=9)


def test_mistakes_are_answered_with_a_hint_and_the_socket_goes_on(harbour, ctl):
    harbour.start()
    ready(ctl, 1)
    with pytest.raises(Disobeyed) as caught:
        ctl.ask("statsu")
    assert caught.value.hint == "Did you mean status?"
    with pytest.raises(Disobeyed, match="cannot be understood"):
        ctl.ask("kill", wroker=1)
    with pytest.raises(Disobeyed, match="no connection '7'"):
        ctl.ask("cut", connection="7")
    with pytest.raises(Disobeyed, match="Did you mean|sorted"):
        ctl.ask("connections", sort="size")
    assert ctl.ask("status")["workers"]


def test_a_trace_follows_a_peer_to_every_worker_also_to_one_that_comes_later(harbour, ctl):
    harbour.start()
    ready(ctl, 1)
    assert ctl.ask("trace", peer="127.0.0.1")["open"] == []
    later = harbour.start()
    with Commanded(harbour.path) as other:
        ready(other, 2)
        other.ask("limits")
    # Traces are told to a new worker before anything else can be asked of it by hand.
    with connect(later.addresses[0]) as client:
        client.sendall(b"bad")
        assert client.recv(1) == b""
    told = ctl.told()
    seen = [next(told) for _ in range(3)]
    assert [each["event"]["event"] for each in seen] == ["ConnectionOpened", "HandlerFailed", "ConnectionClosed"]
    assert {each["worker"] for each in seen} == {2}


def test_a_trace_ends_with_the_connection_that_asked_for_it(harbour, ctl):
    server = harbour.start()
    ready(ctl, 1)
    with Commanded(harbour.path) as other:
        other.ask("trace", peer="127.0.0.1")
    for _ in range(20):
        # Each worker has sixteen traces: more than that have begun here, so the former ones have ended.
        with Commanded(harbour.path) as other:
            other.ask("trace", peer="127.0.0.1")
            harbour.until(lambda: ctl.ask("status")["silent"], lambda silent: silent == [])
    assert server.status == "serving"


def test_the_socket_is_its_users_own(harbour):
    mode = os.stat(harbour.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_prometheus_reads_the_page_and_finds_what_happened(harbour, ctl):
    server = harbour.start()
    ready(ctl, 1)
    with connect(server.addresses[0]) as client:
        client.sendall(b"hello")
        client.read_exactly(5)
        samples = harbour.until(harbour.samples, lambda found: found["longshore_sent_bytes_total",] == 5)
        assert samples["longshore_connections", ("worker", "1")] == 1
        assert samples["longshore_received_bytes_total",] == 5
        assert samples["longshore_connections_total",] == 1
        client.sendall(b"bad")
        assert client.recv(1) == b""
    samples = harbour.until(harbour.samples, lambda found: found["longshore_connections", ("worker", "1")] == 0)
    assert samples["longshore_connections_closed_total", ("cause", "handler failed")] == 1
    assert samples["longshore_connections_closed_total", ("cause", "reset")] == 0
    assert samples["longshore_handler_failures_total",] == 1
    assert samples["longshore_connection_duration_seconds_count",] == 1
    assert samples["longshore_connection_duration_seconds_bucket", ("le", "+Inf")] == 1
    assert samples["longshore_limit", ("limit", "max_connections")] == 10_000
    assert samples["longshore_worker_responding", ("worker", "1")] == 1
    assert samples["longshore_ready",] == 1
    assert samples["longshore_workers_wanted",] == 1


def test_the_end_of_a_certificate_is_on_the_page(harbour, ctl, tmp_path):
    authority = trustme.CA()
    end = datetime.datetime(2040, 1, 2, tzinfo=datetime.UTC)
    certificate = authority.issue_cert("127.0.0.1", not_after=end)
    (tmp_path / "both.pem").write_bytes(
        certificate.private_key_pem.bytes() + b"".join(each.bytes() for each in certificate.cert_chain_pems)
    )
    harbour.start(address="tls://127.0.0.1:0", tls=TLS(certfile=str(tmp_path / "both.pem")))
    ready(ctl, 1)
    samples = harbour.samples()
    assert samples["longshore_certificate_expiry_timestamp_seconds", ("worker", "1")] == end.timestamp()


def test_counters_do_not_go_back_when_workers_are_recycled(harbour, ctl):
    totals = []
    for _ in range(3):
        server = harbour.start()
        ready(ctl, 1)
        with connect(server.addresses[0]) as client:
            client.sendall(b"hello")
            client.read_exactly(5)
        harbour.until(harbour.samples, lambda found: found["longshore_connections", ("worker", "1")] == 0)
        totals.append(harbour.samples()["longshore_connections_total",])
        harbour.end(1)
        totals.append(harbour.samples()["longshore_connections_total",])
        assert ("longshore_connections", ("worker", "1")) not in harbour.samples()
    assert totals == [1, 1, 2, 2, 3, 3]


def test_metrics_are_there_while_a_worker_is_blocked(harbour, ctl):
    entered, go_on = threading.Event(), threading.Event()

    def block(message, connection):
        entered.set()
        go_on.wait(15)

    server = harbour.start(block, framing=Lines(), strategy="reactor")
    ready(ctl, 1)
    with connect(server.addresses[0]) as client:
        client.sendall(b"x\n")
        assert entered.wait(10)
        samples = harbour.samples()
        assert samples["longshore_worker_responding", ("worker", "1")] == 0
        assert ctl.ask("status")["silent"] == [1]
        assert ctl.ask("connections")["silent"] == [1]
        go_on.set()
    assert ready(ctl, 1)


def test_every_metric_is_on_the_page_and_in_the_reference(harbour, ctl):
    harbour.start()
    ready(ctl, 1)
    _, page = harbour.page("/metrics")
    shown = {line.split()[2]: line.split()[3] for line in page.splitlines() if line.startswith("# TYPE")}
    assert shown == {metric.name: metric.kind for metric in metrics.METRICS}
    reference = (Path(__file__).resolve().parents[2] / "docs/reference/metrics.md").read_text()
    listed = re.findall(r"^\| `(longshore_\w+)` \| (\w+) \| (.+?) \|", reference, re.MULTILINE)
    assert [(metric.name, metric.kind) for metric in metrics.METRICS] == [row[:2] for row in listed]
    assert [set(metric.label.split(", ")) - {""} for metric in metrics.METRICS] == [
        set(re.findall(r"`(\w+)`", labels)) for *_, labels in listed
    ]


def test_names_follow_prometheus_conventions():
    for metric in metrics.METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.startswith("longshore_")
        assert metric.help.endswith(".")


def test_live_says_whether_the_supervisor_answers(harbour, ctl):
    assert harbour.page("/live") == (200, '{"live": true}\n')


def test_a_page_that_does_not_exist_names_those_that_do(harbour):
    assert harbour.page("/") == (404, "There are /metrics, /ready, /live.\n")


def test_one_connection_may_ask_for_many_pages_and_for_heads_only(harbour):
    connection = HTTPConnection(harbour.pages.partition("//")[2], timeout=10)
    for method, empty in (("GET", False), ("HEAD", True), ("GET", False)):
        connection.request(method, "/live")
        answer = connection.getresponse()
        assert answer.status == 200
        assert (answer.read() == b"") is empty
    connection.close()


def test_a_scraper_that_says_nothing_holds_up_nobody(harbour):
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(harbour.pages.replace("http:", "tcp:")))
        assert harbour.page("/live")[0] == 200
