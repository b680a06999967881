"""What people have complained about for years: each scenario passes with Longshore, and fails with the standard module.

The scenarios stand in `complaints/`, with the threads where they were reported.  Each runs alone in a process.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMPLAINTS = Path(__file__).with_name("complaints")
#: Every scenario, and how the standard module fails in it ("" where it does not: there, what works must go on working).
SCENARIOS = {
    "stopping.shutdown_from_the_serving_thread": "serve_forever() hangs",
    "stopping.shutdown_from_a_handler": "no answer comes",
    "stopping.shutdown_from_a_datagram_handler": "serve_forever() hangs",
    "stopping.shutdown_from_a_signal_handler": "shutdown() in a signal handler hangs",
    "stopping.shutdown_before_serve_forever": "shutdown() hangs",
    "stopping.shutdown_twice": "",
    "stopping.shutdown_at_once": "shutdown() takes 0.",
    "stopping.shutdown_at_once_however_long_the_interval": "shutdown() hangs",
    "stopping.server_close_with_an_idle_client": "server_close() hangs",
    "stopping.shutdown_with_an_idle_client": "shutdown() hangs",
    "stopping.shutdown_with_a_client_in_mid_request": "shutdown() hangs",
    "stopping.shutdown_from_a_signal_handler_with_an_idle_client": "shutdown() in a signal handler hangs",
    "stopping.server_close_alone_with_an_idle_client": "",
    "stopping.server_close_waits_for_no_client_to_hang_up": "",
    "stopping.server_close_waits_for_work": "",
    "overload.threads_have_a_limit": "there is a fifth thread",
    "overload.threads_of_datagrams_have_a_limit": "there is a fifth thread",
    "overload.nothing_is_kept_of_a_burst": "20 threads and handlers that have finished are kept",
    "overload.nothing_is_kept_of_a_burst_on_daemon_threads": "",
    "overload.a_burst_of_connections_is_not_dropped": "of 100 clients can connect",
    "overload.descriptors_may_run_out": "of CPU time go in a second",
    "silence.a_silent_client_loses_its_connection": "a silent client is not cut",
    "silence.a_client_that_falls_silent_loses_its_connection": "a silent client is not cut",
    "silence.handle_request_ends_in_time_without_a_client": "",
    "silence.handle_request_ends_in_time_with_a_silent_client": "handle_request() hangs",
    "silence.handle_request_of_http_server_ends_in_time": "a silent client is not cut",
    "endings.a_client_that_vanishes_from_a_reading_handler_is_no_failure": "leaves a traceback",
    "endings.a_client_that_vanishes_from_a_writing_handler_is_no_failure": "leaves a traceback",
    "endings.a_handler_that_fails_leaves_its_traceback": "",
    "endings.a_finished_child_is_no_zombie": "a finished child is not waited for",
    "endings.a_long_datagram_arrives_whole": "8192 of 60000 bytes arrive",
    "endings.a_long_datagram_arrives_whole_on_a_unix_socket": "8192 of 60000 bytes arrive",
    "encryption.recipe_for_one_after_the_other": "",
    "encryption.recipe_for_threads": "a client's handshake does not begin",
    "encryption.recipe_for_threads_under_http_server": "a client's handshake does not begin",
    "encryption.who_speaks_no_tls_is_turned_away": "",
}
#: What only Longshore has.
ADDED = (
    "encryption.recipe_for_green",
    "encryption.recipe_for_green_under_http_server",
    "encryption.tls_as_an_attribute",
    "encryption.tls_as_an_attribute_for_one_after_the_other",
)


LONGSHORE = "longshore.socketserver"
STANDARD = "socketserver"


def run(scenario: str, module: str) -> subprocess.CompletedProcess[str]:
    # What is expected to hang has less time to show that it does not.
    patience = 1.5 if module == STANDARD and SCENARIOS[scenario] else 10
    return subprocess.run(
        [sys.executable, str(COMPLAINTS), scenario, module],
        env=os.environ | {"PATIENCE": str(patience)},
        capture_output=True,
        text=True,
        # What hangs says so itself; this is for a process that has finished and does not end.
        timeout=18,
        check=False,
    )


Done = Callable[[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def done(request: pytest.FixtureRequest) -> Iterator[Done]:
    """How a scenario went with a module; several of those that are selected run at once, for they wait a lot."""
    selected = [item for item in request.session.items if "done" in getattr(item, "fixturenames", ())]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        begun = {
            (scenario, module): pool.submit(run, scenario, module)
            for scenario, module in (item.callspec.params.values() for item in selected)
        }
        yield lambda scenario, module: begun[scenario, module].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", [LONGSHORE])
@pytest.mark.parametrize("scenario", [*SCENARIOS, *ADDED])
def test_longshore_gives_no_cause_for_the_complaint(scenario: str, module: str, done: Done) -> None:
    result = done(scenario, module)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", [STANDARD])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_standard_module_gives_cause_for_the_complaint(scenario: str, module: str, done: Done) -> None:
    """Where this fails because the standard module has been mended, the list above says "" from then on."""
    failure = SCENARIOS[scenario]
    result = done(scenario, module)
    assert result.returncode == (1 if failure else 0), result.stderr
    assert failure in result.stderr
