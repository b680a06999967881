"""The native reactor and the portable one, given the same bytes, cuts, faults and times, tell the same story."""

from __future__ import annotations

import contextlib
import gc
import queue
import random
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from longshore import Limits, Lines, MessageHandler, Timeouts
from longshore.errors import ConfigError, InternalError
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed, ServerStarted
from longshore.framing import LengthPrefixed
from longshore.reactor import create
from longshore.testing import Client, Clock, running_server

native = pytest.importorskip(
    "longshore.reactor.native", reason="the native reactor was not built", exc_type=ImportError
)


class Conversing(MessageHandler):
    """A handler that does whatever its messages say, so that random input finds many ways."""

    def connected(self) -> None:
        self.seen = 0

    def message(self, message: bytes) -> Any:
        self.seen += 1
        word = message[:1]
        if word == b"c":
            self.connection.close()
        elif word == b"x":
            raise RuntimeError(message)
        elif word == b"n":
            return None
        elif word == b"s":
            self.connection.send(b"sent")
            return bytearray(message)
        elif word == b"f":
            self.connection.framing = LengthPrefixed(1)
        elif word == b"r":
            return b"no\nline"
        elif word == b"b":
            self.connection.sendall(b"b" * 300_000)
            return None
        return b"%d %s" % (self.seen, message)


#: What a client may say, and how often: what ends a conversation is rare, so that most go on for a while.
WORDS = (b"hello", b"n", b"s", b"b", b"", b"y", b"x", b"r", b"f", b"c")
WEIGHTS = (40, 10, 10, 5, 5, 10, 1, 1, 1, 1)


class Reading(threading.Thread):
    """Reads to the end of the stream, beside whoever turns the clock."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._answer = b""
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._client.recv_until_closed()
        except ConnectionResetError:
            self._answer = b"reset"

    def wait(self) -> bytes:
        self.join()
        return self._answer


def settle(server: Any, count: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Return once the server has read `count` bytes and sent what it owes, or the connection has ended.

    It is looked at between two callbacks, and three turns in a row, as one may leave the rest to the next.
    """
    calm = 0
    while calm < 3 and (connections := server.connections):
        looked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        stream = connections[0]._link.stream

        def look(stream: Any = stream, looked: Any = looked) -> None:
            looked.put((stream.state != "open" or stream.received == count) and not stream.pending)

        server.reactor.post(server.reactor.again, look)
        calm = calm + 1 if looked.get() else 0
        meanwhile()


def settle_and_reset(server: Any, client: Client, count: int) -> bytes:
    """Take all answers, and then vanish; what came before."""
    answer = bytearray()

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            while data := client.recv():
                answer.extend(data)

    client.socket.setblocking(False)
    settle(server, count, take)
    with contextlib.suppress(ConnectionResetError):
        take()
    client.reset()
    return bytes(answer)


def story(reactor: str, seed: int, monkeypatch: pytest.MonkeyPatch, handler: Any = Conversing, **options: Any) -> Any:
    """What a client and the server's observers see of one random conversation."""
    monkeypatch.setenv("LONGSHORE_REACTOR", reactor)
    chance = random.Random(seed)
    data = b"".join(
        chance.choices(WORDS, WEIGHTS)[0] + (b"\n" if chance.random() < 0.98 else b"long" * 40)
        for _ in range(chance.randint(1, 30))
    )
    ending = chance.choices(("half close", "silence", "reset"), (4, 3, 3))[0]
    clock = Clock()
    options = {"framing": Lines(max_size=100), "strategy": "reactor", "timeouts": Timeouts(idle=50)} | options
    with running_server(handler, clock=clock, **options) as server:
        assert server.events.wait_for(ServerStarted).reactor == reactor
        with Client(server.url) as client:
            server.events.wait_for(ConnectionOpened)
            try:
                client.split(data, [chance.randint(1, 40) for _ in range(len(data))])
                if ending == "half close":
                    client.half_close()
            except OSError:
                # It has ended already: what it was told before stands.
                pass
            if ending == "reset":
                answer = settle_and_reset(server, client, len(data))
            else:
                reader = Reading(client)
                if ending == "silence":
                    settle(server, len(data))
                    clock.advance(60)
                answer = reader.wait()
        closed = server.events.wait_for(ConnectionClosed)
        failures = [repr(failure.error) for failure in server.events.of(HandlerFailed)]
    error = None if closed.error is None else str(closed.error).replace(closed.peer, "the peer")
    return answer, closed.cause, type(closed.error), error, closed.sent, closed.messages, failures


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(36))
def test_a_random_conversation_is_the_same_on_both(seed, monkeypatch):
    assert story("native", seed, monkeypatch) == story("portable", seed, monkeypatch)


class Faulty(Conversing):
    def message(self, message: bytes) -> Any:
        return super().message(message.replace(b"h", b"j"))


@pytest.mark.slow
@pytest.mark.parametrize("faulty", ["native", "portable"])
def test_a_planted_fault_on_either_side_is_found(faulty, monkeypatch):
    def told(reactor: str, seed: int) -> Any:
        return story(reactor, seed, monkeypatch, Faulty if reactor == faulty else Conversing)

    assert any(told("native", seed) != told("portable", seed) for seed in range(8))


def test_the_one_asked_for_is_the_one_that_serves(monkeypatch):
    for name in ("native", "portable"):
        monkeypatch.setenv("LONGSHORE_REACTOR", name)
        reactor, reason = create()
        reactor.close()
        assert (reactor.name, reason) == (name, "LONGSHORE_REACTOR asks for it")
    monkeypatch.setenv("LONGSHORE_REACTOR", "other")
    with pytest.raises(ConfigError, match="there is no such reactor"):
        create()


def test_two_reactors_turn_in_two_threads(monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", "native")
    with running_server(lambda message, _: b"one", framing=Lines(), strategy="reactor") as one:
        with running_server(lambda message, _: b"two", framing=Lines(), strategy="reactor") as two:
            with Client(one.url) as first, Client(two.url) as second:
                assert (first.request(b"?"), second.request(b"?")) == (b"one", b"two")


def test_a_native_server_counts_what_it_does(monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", "native")
    with running_server(lambda message, _: message, framing=Lines(), strategy="reactor") as server:
        with Client(server.url) as client:
            assert client.request(b"hello") == b"hello"
            assert server.connections[0].messages == 1
        closed = server.events.wait_for(ConnectionClosed)
        counters: Any = server.reactor.counters()  # type: ignore[attr-defined]
    assert (counters["opened"], counters["messages"], counters["received"]) == (1, 1, closed.received)
    assert sum(counters["latency"]) == 1


def test_a_stream_that_takes_up_tls_or_a_framing_of_ones_own_goes_on_portably(monkeypatch):
    from longshore.framing import Json

    monkeypatch.setenv("LONGSHORE_REACTOR", "native")

    def handler(message: Any, connection: Any) -> Any:
        if message == b"json":
            connection.framing = Json()
            return None
        return message

    with running_server(handler, framing=Lines(), strategy="reactor") as server, Client(server.url) as client:
        client.send(b'one\njson\n{"a":1}\n')
        assert client.recv_line() == b"one\n"
        assert client.recv_line().replace(b" ", b"") == b'{"a":1}\n'
        assert server.connections[0].messages == 3


def test_words_that_disagree_are_a_bug_of_ours():
    with pytest.raises(InternalError, match="disagree"):
        native.malformed("peer", Lines(), b"fine\n", False, None)


def test_a_flood_delays_neither_another_client_nor_a_timer(monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", "native")
    limits = Limits(max_pending_bytes=1 << 20)
    with running_server(lambda message, _: None, framing=Lines(), strategy="reactor", limits=limits) as server:
        ended = threading.Event()

        def flood() -> None:
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as sock:
                while not ended.is_set():
                    sock.sendall(b"x\n" * 30_000)

        flooding = [threading.Thread(target=flood) for _ in range(2)]
        for thread in flooding:
            thread.start()
        try:
            server.events.wait_for_count(ConnectionOpened, 2)
            rung = threading.Event()
            server.reactor.post(server.reactor.call_later, 0.01, rung.set)
            assert rung.wait(2)
            with Client(server.url) as client:
                client.half_close()
                assert client.recv_until_closed() == b""
        finally:
            ended.set()
            for thread in flooding:
                thread.join()


def test_a_panic_is_an_error_that_whoever_guards_himself_against_errors_catches(monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", "native")
    reactor, _reason = create()
    gone = socket.socket()
    gone.close()
    try:
        # The reactor's owner never watches a closed socket, so Rust takes for granted that there is a descriptor.
        with pytest.raises(InternalError, match="please report it|broke a promise of its own"):
            reactor.watch(gone, 1, lambda _events: None)
        assert reactor.run_ready() is None
    finally:
        reactor.close()


class Witness:
    """A sink that ends its stream as soon as it hears that much is pending."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_args: self.told.append(name)

    def near(self) -> None:
        self.told.append("near")
        self.stream.abort()


@pytest.mark.parametrize("reactor", ["native", "portable"])
def test_whoever_is_told_that_much_is_pending_may_end_the_stream(reactor, monkeypatch):
    monkeypatch.setenv("LONGSHORE_REACTOR", reactor)
    (turning, _why), (ours, theirs) = create(), socket.socketpair()
    ours.setblocking(False)
    witness = Witness()
    limits = Limits(max_pending_bytes=1 << 20)
    stream = turning.stream(ours, "peer", sink=witness, limits=limits, timeouts=Timeouts())
    witness.stream = stream
    with theirs:
        stream.start()
        stream.write(b"x" * (1 << 22))
        assert (stream.state, witness.told) == ("closed", ["opened", "near", "closed"])
        # Nothing is left that would come back to it, such as a timer for its deadlines.
        forgotten = weakref.ref(witness)
        del stream, witness
        gc.collect()
        assert forgotten() is None
    turning.close()


@pytest.mark.parametrize("reactor", ["native", "portable"])
def test_whoever_only_looks_at_its_input_gives_the_others_their_turn_as_well(reactor, monkeypatch):
    looks, turned = [], []

    def handler(connection: Any) -> None:
        file, input = connection.makefile("rb"), connection._link.input
        file.peek()
        connection._link.stream.reactor.again(lambda: turned.append(len(looks)))
        while not turned:
            looks.append(file.peek())
        assert file.readline() == looks[0] == b"line\n"
        assert input is connection._link.input
        connection.sendall(b"%d\n" % turned[0])

    monkeypatch.setenv("LONGSHORE_REACTOR", reactor)
    with running_server(handler, strategy="green") as server, Client(server.url) as client:
        assert client.request(b"line") == b"63"
