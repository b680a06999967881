"""A server in a process of its own, hostile clients in another, and good ones whose answers are timed here.

`served(...)`, `attacked(kind, ...)` and `measured(...)` are what the tests are made of; run as a program, this is the
server (`serve`) or one kind of attacker (the functions of `ATTACKS`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Bytes of a good client's request, whose answer is the same in capitals.
REQUEST = b"a good request of forty bytes, with a dot.\n"
#: How much less than everybody else attackers get of this machine, which they would not have elsewhere: nice(2).
NICE = 15


# -- the server ------------------------------------------------------------------------------------------------


def serve(options: dict[str, Any]) -> None:
    """Serve lines until standard input ends; each line that comes there is answered with the server's figures."""
    import dataclasses
    import logging

    from longshore import TLS, Limits, Lines, Server, Timeouts
    from longshore.config import Proxy

    # What is measured is the server, and not the terminal that its log would go to.
    logging.getLogger("longshore").addHandler(logging.NullHandler())
    logging.getLogger("longshore").propagate = False

    def shout(message: bytes, connection: Any) -> bytes:
        return message.upper()

    def loud(connection: Any) -> None:
        for message in connection:
            connection.send(message.upper())

    tls, proxy = options.get("tls"), options.get("proxy")
    server = Server(
        shout if options.get("kind", "message") == "message" else loud,
        options["url"],
        framing=Lines(max_size=options.get("max_size", 65536)),
        strategy=options["strategy"],
        limits=Limits(**options.get("limits", {})),
        timeouts=Timeouts(**options.get("timeouts", {})),
        tls=TLS(certfile=tls) if tls else None,
        proxy=Proxy(**proxy) if proxy else None,
    )
    causes: dict[str, int] = {}

    def note(event: Any) -> None:
        name = getattr(event, "cause", None) or getattr(event, "limit", None)
        if name is not None:
            causes[name] = causes.get(name, 0) + getattr(event, "count", 1)

    server.subscribe(note)
    with server:
        print(server.addresses[0], flush=True)
        for _ in sys.stdin:
            print(json.dumps(dataclasses.asdict(server.statistics()) | {"causes": causes}), flush=True)


class Served:
    """The server's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def statistics(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    @property
    def memory(self) -> int:
        """Bytes of it that are in memory."""
        with open(f"/proc/{self._process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def served(**options: Any) -> Iterator[Served]:
    options = {"url": "tcp://127.0.0.1:0", "strategy": "reactor"} | options
    with subprocess.Popen(
        [sys.executable, __file__, "serve", json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Served(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


# -- good clients ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What good clients have seen; seconds."""

    answers: int
    median: float
    p99: float
    worst: float
    #: The slowest of those that connected anew meanwhile: what a full queue of the kernel costs is in here.
    connecting: float

    def __str__(self) -> str:
        return (
            f"{self.answers} answers, median {self.median * 1e3:.2f} ms, p99 {self.p99 * 1e3:.2f} ms, "
            f"worst {self.worst * 1e3:.1f} ms, slowest to connect {self.connecting * 1e3:.1f} ms"
        )


def measured(url: str, seconds: float, *, clients: int = 20, prefix: bytes = b"", context: Any = None) -> Measured:
    """Ask in turns from an address of our own, each 100th time on a fresh connection, and check the answers."""
    from longshore.testing import Client

    def fresh() -> Client:
        plain = url.replace("tls:", "tcp:")
        client = Client(plain, source="127.0.0.200", timeout=30)
        client.send(prefix) if prefix else None
        if context is not None:
            client.start_tls(context)
        return client

    found = []
    connecting = 0.0
    pool = [fresh() for _ in range(clients)]
    end = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < end:
        index = turn % clients
        turn += 1
        if turn % 100 == 0:
            began = time.perf_counter()
            pool[index].close()
            pool[index] = fresh()
            connecting = max(connecting, time.perf_counter() - began)
        began = time.perf_counter()
        pool[index].send(REQUEST)
        answer = pool[index].recv_line()
        found.append(time.perf_counter() - began)
        assert answer == REQUEST.upper(), answer
        time.sleep(0.002)
    for client in pool:
        client.close()
    found.sort()
    return Measured(len(found), found[len(found) // 2], found[int(len(found) * 0.99)], found[-1], connecting)


# -- attackers -----------------------------------------------------------------------------------------------------


class Attacked:
    """The attackers' process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.report: dict[str, Any] = {}

    def end(self) -> dict[str, Any]:
        """Stop, and say what was done."""
        if not self.report:
            out, _ = self._process.communicate("\n", timeout=60)
            self.report = json.loads(out.splitlines()[-1])
        return self.report


@functools.cache
def compiled() -> str | None:
    """The program of `flood.c`, which no interpreter keeps up with; None where there is no C compiler."""
    if shutil.which("cc") is None:
        return None
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place)
    source = pathlib.Path(__file__).with_name("flood.c")
    subprocess.run(["cc", "-O2", "-o", f"{place}/flood", source], check=True)
    return f"{place}/flood"


@contextlib.contextmanager
def attacked(kind: str, port: int, count: int) -> Iterator[Attacked]:
    """Attack in one way until the end of the block; it begins once all attackers are at work.

    There are `count` of them; of a flood it is the connections a second.
    """
    words = [sys.executable, __file__, "attack", kind]
    if kind == "flood" and (program := compiled()) is not None:
        # Not made to wait for others, as a rate was asked for: it takes a third of a core.
        words = [program]
    with subprocess.Popen(
        [*words, str(port), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        attack = Attacked(process)
        try:
            yield attack
        finally:
            attack.end()


class Over(Exception):
    """Standard input has said that it is enough."""


class Crowd:
    """Many sockets on one selector, each opened again when it is closed."""

    def __init__(self, port: int, count: int) -> None:
        self.port, self.count = port, count
        self.selector = selectors.DefaultSelector()
        self.figures = {"connected": 0, "closed": 0, "sent": 0}
        self.sockets: list[socket.socket] = []
        self.over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        sys.stdin.readline()
        self.over.set()

    def connect(self, number: int, *, receive_buffer: int | None = None) -> socket.socket | None:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            # What attackers have not got rid of would be in other machines' memory: here thousands of them would bring
            # the kernel's for all sockets near its bound (tcp_mem), and what it does then is not the server's doing.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        # 250 to an address, in another net than the good ones.
        sock.bind((f"127.1.{number // 250 % 250}.{1 + number // 62500}", 0))
        try:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            return None
        sock.setblocking(False)
        self.figures["connected"] += 1
        return sock

    def fill(self, **options: Any) -> None:
        for number in range(self.count):
            sock = self.connect(number, **options)
            if sock is not None:
                self.sockets.append(sock)
        print("at work", flush=True)

    def each_second(self, data: bytes) -> None:
        """Send `data` on every socket once a second, spread over it."""
        share = max(1, len(self.sockets) // 20)
        while not self.over.is_set():
            for start in range(0, len(self.sockets), share):
                for sock in self.sockets[start : start + share]:
                    try:
                        self.figures["sent"] += sock.send(data)
                    except BlockingIOError:
                        pass
                    except OSError:
                        self.figures["closed"] += 1
                if self.over.wait(0.05):
                    return


def trickle(crowd: Crowd) -> None:
    """One byte a second, and never a line end."""
    crowd.fill()
    crowd.each_second(b"x")


def deaf(crowd: Crowd) -> None:
    """Requests without end, and no answer is ever read."""
    crowd.fill(receive_buffer=4096)
    # More than the kernels of both sides hold together, so that the server itself has to wait.
    crowd.each_second((b"y" * 1000 + b"\n") * 4096)


def fat(crowd: Crowd) -> None:
    """The beginning of a message that is as large as it may be, and never ends."""
    crowd.fill()
    crowd.each_second(b"z" * 16384)


def stalled(crowd: Crowd) -> None:
    """TLS handshakes that stop after the first bytes, begun again when they are cut off."""
    crowd.fill()
    hello = bytes.fromhex("16030100c8010000c4")
    begun: set[socket.socket] = set()
    while not crowd.over.is_set():
        for number, sock in enumerate(crowd.sockets):
            try:
                if sock not in begun:
                    begun.add(sock)
                    crowd.figures["sent"] += sock.send(hello)
                if not sock.recv(1):
                    raise ConnectionResetError
            except BlockingIOError:
                continue
            except OSError:
                begun.discard(sock)
                sock.close()
                crowd.figures["closed"] += 1
                crowd.sockets[number] = crowd.connect(number) or sock
            if crowd.over.is_set():
                return
        crowd.over.wait(0.05)


def flood(crowd: Crowd) -> None:
    """Connections from one address, as fast as Python makes them: where `flood.c` cannot be compiled."""
    print("at work", flush=True)
    from_one = ("127.1.1.1", 0)
    began = time.monotonic()
    while not crowd.over.is_set():
        socks = []
        for _ in range(64):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.setblocking(False)
            try:
                sock.bind(from_one)
                sock.connect(("127.0.0.1", crowd.port))
            except BlockingIOError:
                pass
            except OSError:
                sock.close()
                continue
            crowd.figures["connected"] += 1
            socks.append(sock)
        for sock in socks:
            sock.close()
    crowd.figures["per_second"] = int(crowd.figures["connected"] / (time.monotonic() - began))


def proxies(crowd: Crowd) -> None:
    """PROXY headers: forged by whoever is no proxy, cut off, oversized, malformed, in turns."""
    from longshore.proxy import header

    good = header(("203.0.113.9", 1), ("198.51.100.1", 2), fields={"authority": b"x" * 200})
    kinds = [good, good[:20], good[:14] + b"\xff\xff", b"PROXY TCP4 " + b"9" * 100, b"PROXY TCP4 a b c d\r\n"]
    print("at work", flush=True)
    number = 0
    while not crowd.over.is_set():
        number += 1
        sock = socket.socket()
        try:
            # Every second one is a trusted proxy's own.
            sock.bind(("127.2.0.1" if number % 2 else "127.1.0.1", 0))
            sock.connect(("127.0.0.1", crowd.port))
            sock.send(kinds[number % len(kinds)])
            crowd.figures["connected"] += 1
        except OSError:
            pass
        sock.close()
        # Some hundred a second: how many there may be is another limit's business (`flood`).
        crowd.over.wait(0.002)


ATTACKS = {function.__name__: function for function in (trickle, deaf, fat, stalled, flood, proxies)}


if __name__ == "__main__":
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "serve":
        serve(json.loads(sys.argv[2]))
    else:
        # Elsewhere they would have machines of their own, and not take this one's time from the server.
        os.nice(NICE)
        crowd = Crowd(int(sys.argv[3]), int(sys.argv[4]))
        ATTACKS[sys.argv[2]](crowd)
        print(json.dumps(crowd.figures), flush=True)
