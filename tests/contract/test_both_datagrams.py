"""Datagrams on the native reactor and on the portable one: the same datagrams, faults and times, the same story."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from longshore import Limits, Lines, MessageHandler
from longshore.events import DatagramDropped, HandlerFailed, ServerStarted
from longshore.testing import RecordedServer, running_server

pytest.importorskip("longshore.reactor.native", reason="the native reactor was not built", exc_type=ImportError)

REACTORS = ("native", "portable")
both = pytest.mark.parametrize("reactor", REACTORS)


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, reactor: str, *arguments: Any, **options: Any) -> Iterator[RecordedServer]:
    monkeypatch.setenv("LONGSHORE_REACTOR", reactor)
    with running_server(*arguments, strategy="reactor", **options) as server:
        assert server.events.wait_for(ServerStarted).reactor == reactor
        yield server


@contextlib.contextmanager
def asking(url: str, folder: Any = None) -> Iterator[socket.socket]:
    """A client's socket, connected to the server and bound to a name of its own."""
    scheme, _, place = url.partition("://")
    family = socket.AF_UNIX if scheme == "unixgram" else socket.AF_INET6 if "[" in place else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        if family == socket.AF_UNIX:
            client.bind(f"{folder}/client-{len(list(folder.iterdir()))}")
            client.connect(place)
        else:
            host, _, port = place.rpartition(":")
            client.connect((host.strip("[]"), int(port)))
        yield client


@contextlib.contextmanager
def held(server: RecordedServer) -> Iterator[None]:
    """Meanwhile the server takes nothing, so that what is sent inside comes to it at once."""
    reached, released = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        released.wait()

    server.reactor.post(hold)
    reached.wait()
    try:
        yield
    finally:
        released.set()


class Conversing(MessageHandler):
    """Does whatever its datagrams say."""

    def connected(self) -> None:
        self.seen = 0

    def message(self, message: bytes) -> Any:
        return say(message, self.connection, self)


def say(message: bytes, connection: Any, session: Any = None) -> Any:
    word = message[:1]
    if word == b"x":
        raise RuntimeError(message)
    if word == b"n":
        return None
    if word == b"s":
        connection.send(b"sent")
        return bytearray(message)
    if word == b"l":
        return b"long" * 17_000
    if word == b"c":
        connection.close()
    connection.state["seen"] = connection.state.get("seen", 0) + 1
    if session is not None:
        session.seen += 1
        return b"%d %s" % (session.seen, message)
    return b"%d %s" % (connection.state["seen"], message)


class Batching(MessageHandler):
    """Answers all that has come of one peer."""

    def connected(self) -> None:
        self.seen = 0

    def messages(self, batch: list[bytes]) -> Any:
        for message in batch:
            reply = say(message, self.connection, self)
            if reply is not None:
                yield reply


WORDS = (b"hello", b"", b"n", b"s", b"x", b"l", b"c", b"w" * 1400, b"z" * 1400)


def answers_of(client: socket.socket) -> list[bytes]:
    """All answers to what was asked before."""
    client.send(b"end")
    answers = []
    while not answers or not answers[-1].endswith(b"end"):
        answers.append(client.recv(70_000))
    return answers


def story(monkeypatch: pytest.MonkeyPatch, reactor: str, handler: Any, url: str, seed: int, folder: Any) -> Any:
    """What two clients and the server's observers see of one random conversation."""
    chance = random.Random(seed)
    questions = [(chance.randrange(2), chance.choice(WORDS)) for _ in range(chance.randint(1, 120))]
    with serving(monkeypatch, reactor, handler, url) as server, asking(server.url, folder) as one:
        with asking(server.url, folder) as two:
            clients = one, two
            names = {str(client.getsockname()): number for number, client in enumerate(clients)}
            answers: list[list[bytes]] = [[], []]
            if one.family == socket.AF_UNIX:
                # A queue of Unix datagrams holds few, so here each is answered before the next.
                for number, question in questions:
                    clients[number].send(question)
                    answers[number] += answers_of(clients[number])
            else:
                with held(server):
                    for number, question in questions:
                        clients[number].send(question)
            for number, client in enumerate(clients):
                answers[number] += answers_of(client)
            server.stop()
            dropped = sorted(
                (event.reason, event.size, repr(event.error)) for event in server.events.of(DatagramDropped)
            )
            failed = [
                (repr(event.error), names.get(event.peer, event.peer)) for event in server.events.of(HandlerFailed)
            ]
    return answers, dropped, sorted(error for error, _ in failed), server.statistics().datagrams


URLS = ("udp://127.0.0.1:0", "udp://0.0.0.0:0", "udp://[::1]:0", "unixgram")


def place(url: str, folder: Any) -> str:
    folder.mkdir(exist_ok=True)
    return f"unixgram://{folder}/server" if url == "unixgram" else url


@pytest.mark.slow
@pytest.mark.parametrize("handler", [say, Conversing], ids=["function", "session"])
@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("seed", range(3))
def test_a_random_conversation_is_the_same_on_both(handler, url, seed, monkeypatch, tmp_path):
    def told(reactor: str) -> Any:
        folder = tmp_path / reactor
        return story(monkeypatch, reactor, handler, place(url, folder), seed, folder)

    assert told("native") == told("portable")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_says_what_its_datagrams_say_one_by_one(seed, monkeypatch, tmp_path):
    def told(reactor: str, handler: Any) -> Any:
        answers, dropped, _failed, count = story(monkeypatch, reactor, handler, URLS[0], seed, tmp_path)
        return answers, dropped, count

    def careful(message: bytes) -> bytes:
        # What ends a batch, or a session, ends all of it.
        return message.translate(bytes.maketrans(b"xc", b"yy"))

    class CarefulBatching(Batching):
        def messages(self, batch: list[bytes]) -> Any:
            return super().messages([careful(message) for message in batch])

    class Careful(Conversing):
        def message(self, message: bytes) -> Any:
            return super().message(careful(message))

    assert told("native", CarefulBatching) == told("portable", Careful)


@pytest.mark.slow
@pytest.mark.parametrize("faulty", REACTORS)
def test_a_planted_fault_on_either_side_is_found(faulty, monkeypatch, tmp_path):
    def wrong(message: bytes, connection: Any) -> Any:
        return say(message.replace(b"h", b"j"), connection)

    def told(reactor: str, seed: int) -> Any:
        handler = wrong if reactor == faulty else say
        return story(monkeypatch, reactor, handler, URLS[0], seed, tmp_path)

    assert any(told("native", seed) != told("portable", seed) for seed in range(4))


@both
def test_what_has_come_of_a_peer_is_taken_at_once_and_of_each_apart(reactor, monkeypatch):
    taken: dict[Any, list[bytes]] = {}

    class Ingest(MessageHandler):
        def messages(self, batch: list[bytes]) -> Any:
            taken.setdefault(self.client_address[1], []).extend(batch)
            return [b"done"] if b"last" in batch else None

    with serving(monkeypatch, reactor, Ingest, "udp://127.0.0.1:0") as server:
        with asking(server.url) as one, asking(server.url) as two:
            with held(server):
                for number in range(100):
                    one.send(b"%d" % number)
                    two.send(b"%d" % -number)
                one.send(b"last")
                two.send(b"last")
            assert one.recv(10) == two.recv(10) == b"done"
            ports = one.getsockname()[1], two.getsockname()[1]
        assert server.statistics().datagrams == 202
    assert taken[ports[0]] == [b"%d" % number for number in range(100)] + [b"last"]
    assert taken[ports[1]] == [b"%d" % -number for number in range(100)] + [b"last"]


@both
def test_datagrams_of_many_peers_reach_a_function_in_the_order_in_which_they_came(reactor, monkeypatch):
    seen: list[bytes] = []

    def note(message: bytes, peer: Any) -> Any:
        seen.append(message)
        return message if message == b"end" else None

    with serving(monkeypatch, reactor, note, "udp://127.0.0.1:0") as server, asking(server.url) as one:
        with asking(server.url) as two, asking(server.url) as three, held(server):
            for number in range(99):
                (one, two, three)[number % 3].send(b"%d" % number)
            one.send(b"end")
        assert one.recv(10) == b"end"
    assert seen == [b"%d" % number for number in range(99)] + [b"end"]


@both
def test_a_malformed_datagram_in_a_batch_costs_the_others_nothing(reactor, monkeypatch):
    class Batches(MessageHandler):
        def messages(self, batch: list[bytes]) -> Any:
            return batch

    with serving(monkeypatch, reactor, Batches, "udp://127.0.0.1:0", framing=Lines()) as server:
        with asking(server.url) as client:
            with held(server):
                for text in (b"one\ntwo\n", b"unfinished", b"three\n"):
                    client.send(text)
            assert [client.recv(100) for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]
        dropped = server.events.wait_for(DatagramDropped)
        assert (dropped.reason, dropped.size) == ("malformed", 10)


@both
def test_a_datagram_that_is_too_long_is_told_and_not_handled(reactor, monkeypatch, tmp_path):
    with serving(monkeypatch, reactor, say, f"unixgram://{tmp_path}/server") as server:
        with asking(server.url, tmp_path) as client:
            client.send(b"x" * 65_536)
            client.send(b"hello")
            assert client.recv(100) == b"1 hello"
        dropped = server.events.wait_for(DatagramDropped)
        assert (dropped.reason, dropped.size, dropped.peer) == ("truncated", 65_535, client_name(tmp_path))
        assert server.statistics().datagrams == 2


def client_name(folder: Any) -> str:
    return str(next(folder.glob("client-*")))


@both
def test_whoever_has_no_name_gets_no_answer_and_an_event_says_so(reactor, monkeypatch, tmp_path):
    with serving(monkeypatch, reactor, say, f"unixgram://{tmp_path}/server") as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", f"{tmp_path}/server")
        dropped = server.events.wait_for(DatagramDropped)
        assert (dropped.peer, dropped.reason) == ("an unnamed peer", "it has no address to reply to")


@both
def test_an_abstract_name_is_answered(reactor, monkeypatch):
    def name(message: bytes, peer: Any) -> bytes:
        return peer.peer.encode()

    with serving(monkeypatch, reactor, name, f"unixgram://@longshore-{reactor}-{id(monkeypatch)}") as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.bind(f"\0asking-{reactor}")
            client.sendto(b"?", "\0" + server.url.partition("@")[2])
            assert client.recv(100) == f"@asking-{reactor}".encode()


@both
def test_what_a_full_queue_refuses_is_told_in_order_and_the_next_is_answered(reactor, monkeypatch, tmp_path):
    def many(message: bytes, peer: Any) -> None:
        for number in range(int(message)):
            peer.send(b"%d" % number)

    with serving(monkeypatch, reactor, many, f"unixgram://{tmp_path}/server") as server:
        with asking(server.url, tmp_path) as client:
            client.send(b"3000")
            dropped = server.events.wait_for(DatagramDropped, lambda event: event.size == 4)
            assert dropped.reason == "the reply could not be sent"
            assert isinstance(dropped.error, BlockingIOError)
            assert dropped.error.errno == errno.EAGAIN
            with held(server):
                # It is through with the first.
                client.setblocking(False)
            told = [b""]
            with contextlib.suppress(BlockingIOError):
                while True:
                    told.append(client.recv(10))
            # The first ones came, without a gap.
            assert told[1:] == [b"%d" % number for number in range(len(told) - 1)]
            client.settimeout(5)
            client.send(b"1")
            assert client.recv(10) == b"0"


@both
def test_a_peer_that_a_handler_keeps_is_his_and_answers_later(reactor, monkeypatch):
    kept: list[Any] = []
    enough = threading.Event()

    def keep(message: bytes, peer: Any) -> None:
        kept.append(peer)
        if len(kept) == 3:
            enough.set()

    with serving(monkeypatch, reactor, keep, "udp://127.0.0.1:0") as server, asking(server.url) as one:
        with asking(server.url) as two:
            for client in (one, two, one):
                client.send(b"?")
            assert enough.wait(5)
            assert len({id(peer) for peer in kept}) == len({peer.id for peer in kept}) == 3
            for number, peer in enumerate(kept):
                peer.send(b"%d" % number)
            assert [one.recv(10), one.recv(10), two.recv(10)] == [b"0", b"2", b"1"]


@both
def test_nothing_that_a_function_leaves_in_a_peer_is_there_for_the_next_datagram(reactor, monkeypatch):
    def count(message: bytes, peer: Any) -> bytes:
        peer.state["count"] = peer.state.get("count", 0) + 1
        return b"%d" % peer.state["count"]

    with serving(monkeypatch, reactor, count, "udp://127.0.0.1:0") as server, asking(server.url) as client:
        answers = []
        for _ in range(3):
            client.send(b"?")
            answers.append(client.recv(10))
    assert answers == [b"1", b"1", b"1"]


@both
def test_what_has_come_is_answered_before_a_server_drains(reactor, monkeypatch):
    with serving(monkeypatch, reactor, say, "udp://127.0.0.1:0", limits=Limits()) as server:
        with asking(server.url) as client:
            with held(server):
                threading.Thread(target=server.drain, daemon=True).start()
                for number in range(90):
                    client.send(b"%d" % number)
            assert [client.recv(10) for _ in range(90)] == [b"1 %d" % number for number in range(90)]


@both
def test_an_interrupt_leaves_the_server_and_what_was_answered_before_it_still_goes(reactor, monkeypatch):
    def handler(message: bytes, peer: Any) -> bytes:
        if message == b"stop":
            raise SystemExit
        return message

    with serving(monkeypatch, reactor, handler, "udp://127.0.0.1:0") as server, asking(server.url) as client:
        with held(server):
            client.send(b"one")
            client.send(b"stop")
        assert client.recv(10) == b"one"
        server.wait_stopped()
        assert server.status == "stopped"
