"""Each example runs as its users run it: as a program of its own, on real sockets.

The one thing that is changed is the port, to 0, so that tests never meet on one; the program says which it got in its
first line, and that is also when it accepts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from longshore import shared
from shared.redis_servers import PROGRAM, WHY_NOT, RedisProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 10

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    """The tests' own, where the clone's Longshore is found first."""
    return {**os.environ, "PYTHONPATH": str(EXAMPLES.parent / "src")}


@contextlib.contextmanager
def serving(tmp_path: Path, name: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """The example on a free port; gives its address. It must end well, and in silence, when it is told to."""
    text = (EXAMPLES / name).read_text()
    assert text.count("://127.0.0.1:5000") == 1, f"{name} must name its address once"
    copy = tmp_path / name
    copy.write_text(text.replace("://127.0.0.1:5000", "://127.0.0.1:0"))
    process = subprocess.Popen(
        [sys.executable, str(copy), *arguments], stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        first_line = process.stderr.readline()
        found = re.search(r"://127\.0\.0\.1:(\d+)", first_line)
        assert found, first_line + process.stderr.read()
        yield "127.0.0.1", int(found[1])
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextlib.contextmanager
def talking_to(address: tuple[str, int]) -> Iterator[tuple[socket.socket, object]]:
    with socket.create_connection(address, timeout=SECONDS) as client, client.makefile("rwb") as stream:
        yield client, stream


@pytest.mark.parametrize("name", ["echo.py", "echo_async.py"])
def test_an_echo_gives_back_each_line(tmp_path, name):
    with serving(tmp_path, name) as address, talking_to(address) as (client, stream):
        for line in (b"hello\n", b"\xff\x00 bytes\n"):
            client.sendall(line)
            assert stream.readline() == line
        client.shutdown(socket.SHUT_WR)
        assert stream.read() == b""


def test_shout_answers_in_capitals(tmp_path):
    with serving(tmp_path, "shout.py") as address, talking_to(address) as (client, stream):
        client.sendall(b"hel")
        client.sendall(b"lo\nagain\n")
        assert [stream.readline(), stream.readline()] == [b"HELLO\n", b"AGAIN\n"]


def test_counter_counts_each_connection_for_itself(tmp_path):
    with serving(tmp_path, "counter.py") as address:
        with talking_to(address) as (client, stream):
            client.sendall(b"a\nb\n")
            assert [stream.readline(), stream.readline()] == [b"1 a\n", b"2 b\n"]
        with talking_to(address) as (client, stream):
            client.sendall(b"c\n")
            assert stream.readline() == b"1 c\n"


def test_chat_tells_everybody(tmp_path):
    with serving(tmp_path, "chat.py") as address, talking_to(address) as (ann, to_ann):
        assert to_ann.readline() == b"Who are you?\n"
        ann.sendall(b"Ann\n")
        assert to_ann.readline() == b"* Ann is here\n"
        with talking_to(address) as (bob, to_bob):
            assert to_bob.readline() == b"Who are you?\n"
            bob.sendall(b"Bob\nhello\n")
            assert [to_bob.readline(), to_bob.readline()] == [b"* Bob is here\n", b"Bob: hello\n"]
            assert [to_ann.readline(), to_ann.readline()] == [b"* Bob is here\n", b"Bob: hello\n"]
        assert to_ann.readline() == b"* Bob has left\n"


def count_primes(address):
    with talking_to(address) as (client, stream):
        client.sendall(b"10\n1000\n")
        return [stream.readline(), stream.readline()]


def test_primes_counts_on_processes_of_this_machine(tmp_path):
    with serving(tmp_path, "primes.py") as address:
        assert count_primes(address) == [b"4\n", b"168\n"]


@pytest.mark.timeout(60)  # five processes import Dask
def test_primes_counts_on_the_cluster_that_cluster_starts(tmp_path):
    pytest.importorskip("distributed")
    command = [sys.executable, str(EXAMPLES / "cluster.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as cluster:
        try:
            with serving(tmp_path, "primes.py", cluster.stdout.readline().strip()) as address:
                assert count_primes(address) == [b"4\n", b"168\n"]
        finally:
            cluster.terminate()
            assert cluster.wait(3 * SECONDS) == 0


def test_telemetry_speaks_json_in_length_prefixed_messages(tmp_path):
    with serving(tmp_path, "telemetry.py") as address, talking_to(address) as (client, stream):
        answers = []
        for value in (10, 20):
            message = json.dumps({"sensor": "t1", "value": value}).encode()
            client.sendall(struct.pack(">I", len(message)) + message)
            (size,) = struct.unpack(">I", stream.read(4))
            answers.append(json.loads(stream.read(size)))
        assert answers == [{"sensor": "t1", "count": 1, "mean": 10}, {"sensor": "t1", "count": 2, "mean": 15}]


def test_udp_echo_answers_each_datagram_to_its_sender(tmp_path):
    with (
        serving(tmp_path, "udp_echo.py") as address,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(SECONDS)
        for datagram in (b"one", b"", b"x" * 60_000):
            client.sendto(datagram, address)
            assert client.recvfrom(65_535) == (datagram, address)


def test_tls_echo_is_trusted_by_a_client_that_verifies(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "certificate.pem", append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        serving(tmp_path, "tls_echo.py", str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")) as address,
        socket.create_connection(address, timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_client_prints_the_answer_to_each_word(tmp_path):
    with serving(tmp_path, "shout.py") as (host, port):
        command = [sys.executable, str(EXAMPLES / "client.py"), f"tcp://{host}:{port}", "one", "two"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ONE\nTWO\n", "")


def test_ping_hears_the_answers_and_watches_what_comes():
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    except PermissionError:
        pytest.skip("raw sockets need the capability CAP_NET_RAW")
    command = [sys.executable, str(EXAMPLES / "ping.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    answers = [line for line in lines if "answers" in line]
    assert answers == [f"127.0.0.1 answers: {number}" for number in (1, 2, 3)]
    assert {f"the server sees: echo {kind} from 127.0.0.1" for kind in ("request", "reply")} <= set(lines)


def demo(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/demo.py", str(port)],
        input="hello\nworld\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=EXAMPLES.parent,
        env=environment(),
        check=False,
    )


def test_the_demo_fed_from_a_pipe_prints_the_answers_and_nothing_else():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = demo(port)
    assert (done.returncode, done.stdout) == (0, "hello\nworld\n"), done.stderr
    assert f"tcp://127.0.0.1:{port}" in done.stderr.splitlines()[0]


def test_the_demo_takes_the_next_port_if_its_own_is_taken_and_says_so():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = demo(port)
    assert (done.returncode, done.stdout) == (0, "hello\nworld\n"), done.stderr
    notice, first_line = done.stderr.splitlines()[:2]
    assert notice.startswith(f"Port {port} is taken; the demo uses ")
    assert first_line.split("tcp://127.0.0.1:")[1] != str(port)


@pytest.fixture(params=["local", "redis"])
def place(request, monkeypatch, tmp_path):
    """A broker, or a Redis server, that the examples find in their environment."""
    if request.param == "local":
        with shared.start_broker() as broker:
            monkeypatch.setenv("LONGSHORE_SHARED", broker.url)
            yield
        return
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    server = RedisProcess(tmp_path)
    try:
        monkeypatch.setenv("LONGSHORE_SHARED", server.url)
        yield
    finally:
        server.kill()


def test_a_shared_chat_tells_everybody_in_every_process(tmp_path, place):
    with serving(tmp_path, "shared_chat.py") as one, serving(tmp_path, "shared_chat.py") as other:
        with talking_to(one) as (ann, to_ann), talking_to(other) as (bob, to_bob):
            # Whoever has got an answer of his own is connected, and hears what comes later.
            bob.sendall(b"here I am\n")
            assert to_bob.readline() == b"here I am\n"
            ann.sendall(b"hello\n")
            assert to_bob.readline() == b"hello\n"
            heard = to_ann.readline()
            assert heard == b"hello\n" or (heard == b"here I am\n" and to_ann.readline() == b"hello\n")


def test_the_rate_limiter_counts_for_all_processes_together(tmp_path, place):
    with serving(tmp_path, "rate_limiter.py") as one, serving(tmp_path, "rate_limiter.py") as other:
        answers = []
        for number in range(20):
            with talking_to((one, other)[number % 2]) as (client, stream):
                client.sendall(b"x\n")
                answers.append(stream.readline())
        # A new minute may have begun meanwhile, but not two.
        assert 5 <= answers.count(b"X\n") <= 10


def test_every_example_is_run_here():
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in text] == []


def of_the_container(instruction: str, port: str, pages: str) -> list[str]:
    """The words of an instruction of the Containerfile, as they are run here: this Python, on free ports."""
    text = (EXAMPLES / "container/Containerfile").read_text().replace("\\\n", "")
    (found,) = re.findall(rf"^{instruction} (\[.*\])$", text, re.MULTILINE)
    words = json.loads(found.replace("0.0.0.0", "127.0.0.1").replace(":9100", f":{pages}"))
    words = [word.replace("tcp://:5000", f"tcp://127.0.0.1:{port}") for word in words]
    if words[0] == "/opt/app/bin/longshore":
        return [sys.executable, "-m", "longshore", *words[1:]]
    return [sys.executable if word == "/opt/app/bin/python" else word for word in words]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a process namespace")
def test_what_the_image_runs_serves_as_process_1_is_healthy_and_drains_when_it_is_told_to():
    words = [*of_the_container("ENTRYPOINT", "0", "0"), *of_the_container("CMD", "0", "0")]
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    process = subprocess.Popen([*unshare, *words], cwd=EXAMPLES, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        serves = re.search(r"serving Echo on tcp://127\.0\.0\.1:(\d+)", process.stderr.readline())
        while not (watched := re.search(r"http://127\.0\.0\.1:(\d+)/metrics", process.stderr.readline())):
            pass
        port, pages = serves[1], watched[1]
        healthy = subprocess.run(of_the_container("HEALTHCHECK --interval=10s CMD", port, pages), timeout=SECONDS)
        assert healthy.returncode == 0
        with socket.create_connection(("127.0.0.1", int(port)), SECONDS) as sock:
            sock.sendall(b"ahoy\n")
            assert sock.recv(100) == b"ahoy\n"
        # As an engine does it, which knows the process by its number outside.
        (init,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(init), signal.SIGTERM)
        process.communicate(timeout=SECONDS)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
