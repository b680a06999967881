"""`longshore connect` over pipes and on a terminal."""

from __future__ import annotations

import signal
import socket
import subprocess

import pexpect
import pytest
import trustme


@pytest.fixture
def listener():
    """A plain TCP listener, to be the peer by hand."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        yield sock


def url_of(sock):
    return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def piped(command, environment):
    """`longshore connect` with pipes that stay open until the test closes them."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [*command, "connect", *arguments],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        if process.stdin.closed:
            process.stdin = None
        process.communicate()


@pytest.fixture
def terminal(command, environment):
    """`longshore connect` on a pseudo-terminal."""
    children = []

    def start(*arguments):
        child = pexpect.spawn(
            command[0], [*command[1:], "connect", *arguments], env=environment(), encoding="utf-8", timeout=10
        )
        child.delaybeforesend = None
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def test_a_pipe_sends_each_line_prints_each_answer_and_ends_with_0(serving, run, app):
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        result = run("connect", server.url, stdin=b"one\ntwo\nno line end")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"one\ntwo\nno line end", b"")


def test_bytes_go_through_as_they_are(serving, run, app):
    data = bytes(range(256)) * 4000
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        result = run("connect", server.url, stdin=data)
        assert (result.returncode, result.stdout, result.stderr) == (0, data, b"")


def test_no_input_at_all_ends_with_the_stream(serving, run, app):
    with serving("echo.py", "--bind", f"unix://{app}/echo.sock", cwd=app) as server:
        result = run("connect", server.url)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_what_the_peer_sends_is_printed_as_it_comes(listener, piped):
    process = piped(url_of(listener))
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b"welcome\n")
        assert process.stdout.readline() == b"welcome\n"
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert peer.recv(100) == b"hello\n"
        process.stdin.close()
        assert peer.recv(100) == b""
        peer.sendall(b"bye\n")
    assert process.stdout.read() == b"bye\n"
    assert process.wait(10) == 0
    assert process.stderr.read() == b""


def test_the_end_of_the_stream_ends_the_command_though_the_input_goes_on(listener, piped):
    process = piped(url_of(listener))
    peer, _ = listener.accept()
    peer.close()
    assert process.wait(10) == 0
    assert process.stderr.read() == b""


def test_a_reset_is_told_in_one_line_and_ends_with_1(listener, piped):
    process = piped(url_of(listener))
    peer, _ = listener.accept()
    # What was sent shows that the client is through with connecting, where a reset has another message.
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert peer.recv(100) == b"hello\n"
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    assert process.wait(10) == 1
    text = process.stderr.read().decode()
    assert text.startswith("longshore: ")
    assert "reset" in text.lower()
    assert text.count("\n") == 1


@pytest.mark.slow
def test_silence_after_the_end_of_input_is_told_when_there_is_a_timeout(listener, piped):
    process = piped(url_of(listener), "--timeout", "0.3")
    peer, _ = listener.accept()
    with peer:
        process.stdin.close()
        assert process.wait(10) == 1
        assert b"sent nothing for 0.3 s" in process.stderr.read()


def test_ctrl_c_ends_quietly(listener, piped):
    process = piped(url_of(listener))
    peer, _ = listener.accept()
    with peer:
        # What it printed shows that it is past its start.
        peer.sendall(b"ready\n")
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 130)
        assert process.stderr.read() == b""


def test_a_reader_that_has_enough_is_no_error(serving, command, environment, app):
    (app / "endless.py").write_text(
        "def endless(connection):\n    while True:\n        connection.sendall(b'more\\n' * 1000)\n"
    )
    with serving("endless.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        process = subprocess.Popen(
            [*command, "connect", server.url],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stdout.readline() == b"more\n"
            process.stdout.close()
            assert process.wait(10) == 0
            assert process.stderr.read() == b""


@pytest.mark.parametrize("framing", ["lines", "length-prefixed:2", "netstring", "length-prefixed:varint"])
def test_with_a_framing_each_line_is_a_message_and_each_reply_a_line(serving, run, app, framing):
    arguments = ["several.py:answer", "--bind", "tcp://127.0.0.1:0", "--framing", framing]
    with serving(*arguments, cwd=app) as server:
        result = run("connect", server.url, "--framing", framing, stdin=b"one\ntwo\nthree")
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout == b"got one\ngot two\ngot three\n"


def test_values_are_typed_and_shown_as_json(serving, run, app):
    (app / "adder.py").write_text("def add(message, connection):\n    return {'sum': sum(message), 'as': 'Grüße'}\n")
    with serving("adder.py", "--bind", "tcp://127.0.0.1:0", "--framing", "json", cwd=app) as server:
        result = run("connect", server.url, "--framing", "json", stdin=b"[1, 2]\n[]\n")
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.decode() == '{"sum": 3, "as": "Grüße"}\n{"sum": 0, "as": "Grüße"}\n'


@pytest.mark.slow
def test_a_line_that_is_no_message_is_told(serving, run, app):
    (app / "same.py").write_text("def same(message, connection):\n    return message\n")
    with serving("same.py", "--bind", "tcp://127.0.0.1:0", "--framing", "json", cwd=app) as server:
        result = run("connect", server.url, "--framing", "json", stdin=b"{oops\n")
        assert result.returncode == 2
        assert result.stderr.startswith(b"longshore: not JSON: '{oops'")
    with serving("same.py", "--bind", "tcp://127.0.0.1:0", "--framing", "fixed:4", cwd=app) as server:
        result = run("connect", server.url, "--framing", "fixed:4", stdin=b"far too long\n")
        assert result.returncode == 2
        assert b"Traceback" not in result.stderr


def test_a_stream_that_ends_in_the_middle_of_a_message_is_an_error(listener, piped):
    process = piped(url_of(listener), "--framing", "length-prefixed:2")
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b"\0\2ok\0\7hal")
    assert process.wait(10) == 1
    assert process.stdout.read() == b"ok\n"
    assert b"middle of a message" in process.stderr.read()


@pytest.mark.parametrize("address", ["udp://127.0.0.1:0", "unixgram://{app}/d.sock", "seqpacket://{app}/s.sock"])
@pytest.mark.slow
def test_on_addresses_of_messages_each_line_is_one_message_and_each_reply_one_line(serving, run, app, address):
    with serving("several.py:answer", "--bind", address.format(app=app), cwd=app) as server:
        result = run("connect", server.url, stdin=b"one\ntwo\n")
        assert (result.returncode, result.stderr) == (0, b"")
        assert sorted(result.stdout.splitlines()) == [b"got one", b"got two"]


@pytest.mark.slow
def test_a_datagram_server_that_never_replies_does_not_keep_the_command(serving, run, app):
    (app / "silent.py").write_text("def silent(message, connection):\n    return None\n")
    with serving("silent.py", "--bind", "udp://127.0.0.1:0", cwd=app) as server:
        result = run("connect", server.url, stdin=b"one\ntwo\n")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.fixture
def authority(app):
    """Writes `ca.pem` and `server.pem` beside the handlers."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(app / "ca.pem"))
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(app / "server.pem"))
    return ca


@pytest.mark.slow
def test_tls_verifies_unless_told_otherwise(serving, run, app, authority):
    with serving("echo.py", "--bind", "tls://localhost:0", "--certfile", "server.pem", cwd=app) as server:
        url = f"tls://localhost:{server.url.rpartition(':')[2]}"
        trusting = run("connect", url, "--cafile", "ca.pem", stdin=b"secret\n", cwd=app)
        assert (trusting.returncode, trusting.stdout, trusting.stderr) == (0, b"secret\n", b"")
        careless = run("connect", url, "--insecure", stdin=b"secret\n")
        assert (careless.returncode, careless.stdout, careless.stderr) == (0, b"secret\n", b"")
        refused = run("connect", url, stdin=b"secret\n")
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert refused.stderr.startswith(b"longshore: ")
        assert b"certificate" in refused.stderr
        assert b"Traceback" not in refused.stderr


def test_a_plain_server_at_a_tls_address_is_told(serving, run, app):
    (app / "plain.py").write_text("def plain(connection):\n    connection.sendall(b'hello, this is no TLS\\n')\n")
    with serving("plain.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        result = run("connect", server.url.replace("tcp://", "tls://"), "--insecure")
        assert (result.returncode, result.stdout) == (1, b"")
        assert result.stderr.startswith(b"longshore: ")
        assert b"Traceback" not in result.stderr


@pytest.mark.slow
def test_a_terminal_has_a_prompt_and_shows_replies_above_it(serving, terminal, app):
    with serving("echo.py", "--bind", "tcp://127.0.0.1:0", cwd=app) as server:
        child = terminal(server.url)
        child.expect_exact(f"connected to {server.url}")
        child.expect_exact(">>: ")
        child.sendline("hello")
        child.expect(r"hello\r+\n.*hello\r+\n>>: ")
        child.sendeof()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


def test_a_terminal_keeps_history_and_edits_lines(serving, terminal, app):
    with serving("several.py:answer", "--bind", "tcp://127.0.0.1:0", "--framing", "lines", cwd=app) as server:
        child = terminal(server.url, "--framing", "lines")
        child.expect_exact(">>: ")
        child.sendline("first")
        child.expect_exact("got first")
        child.expect_exact(">>: ")
        child.send("\x1b[A")
        child.expect_exact("first")
        child.send("\x01the \r")
        child.expect_exact("got the first")


def test_a_terminal_is_told_that_the_peer_has_ended(listener, terminal):
    child = terminal(url_of(listener))
    peer, _ = listener.accept()
    child.expect_exact(">>: ")
    peer.sendall(b"bye")
    child.expect_exact("bye")
    peer.close()
    child.expect_exact(f"longshore: {url_of(listener)} ended the connection")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_terminal_is_told_of_a_reset(listener, terminal):
    child = terminal(url_of(listener))
    peer, _ = listener.accept()
    child.expect_exact(">>: ")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    child.expect("(?i)longshore: .*reset")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1


def test_what_is_being_typed_survives_a_reply(listener, terminal):
    child = terminal(url_of(listener))
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(10)
        child.expect_exact(">>: ")
        child.send("half")
        child.expect_exact("half")
        peer.sendall(b"news\n")
        child.expect(r"news\r+\n>>: half")
        child.sendline(" done")
        assert peer.recv(100) == b"half done\n"


def test_ctrl_c_at_the_prompt_ends_quietly(listener, terminal):
    child = terminal(url_of(listener))
    peer, _ = listener.accept()
    with peer:
        child.expect_exact(">>: ")
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130
        assert "Traceback" not in child.before


def test_a_line_that_is_no_message_is_told_on_a_terminal_and_the_next_one_is_sent(serving, terminal, app):
    (app / "same.py").write_text("def same(message, connection):\n    return message\n")
    with serving("same.py", "--bind", "tcp://127.0.0.1:0", "--framing", "json", cwd=app) as server:
        child = terminal(server.url, "--framing", "json")
        child.expect_exact(">>: ")
        child.sendline("{oops")
        child.expect_exact("longshore: not JSON")
        child.expect_exact(">>: ")
        child.sendline("[1,2]")
        child.expect_exact("[1, 2]")
