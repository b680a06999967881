"""Many clients that check every answer, while things happen to the server."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter


class Swarm:
    """`count` clients, each of which connects, asks a few times, and begins again, until the block is left.

    Attributes:
        answers: good answers.
        failures: what was not answered, by reason; each is one request, or one connection that was refused.
        by: good answers of each process.
        shown: handshakes with each certificate (DER), where there is TLS.
    """

    def __init__(self, port, count, requests=1, context=None, host="127.0.0.1"):
        self._address = (host, port)
        self._context = context
        self._requests = requests
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        self.answers = 0
        self.failures = Counter()
        self.by = Counter()
        self.shown = Counter()
        self.slowest = 0.0

    def _run(self, number):
        turn = 0
        while not self._over.is_set():
            turn += 1
            began = time.monotonic()
            try:
                pids = self._converse(b"%d-%d" % (number, turn))
            except OSError as error:
                with self._lock:
                    self.failures[type(error).__name__] += 1
                continue
            with self._lock:
                self.answers += len(pids)
                self.by.update(pids)
                self.slowest = max(self.slowest, time.monotonic() - began)

    def _converse(self, text):
        pids = []
        with self._connect() as sock, sock.makefile("rb") as file:
            for _ in range(self._requests):
                sock.sendall(text + b"\n")
                answer = file.readline()
                if not answer:
                    raise ConnectionResetError("the end, and no answer")
                pid, _, rest = answer.partition(b" ")
                if rest != text + b"\n":
                    raise AssertionError(f"{answer!r} for {text!r}")
                pids.append(int(pid))
        return pids

    def _connect(self):
        sock = socket.create_connection(self._address, timeout=30)
        if self._context is None:
            return sock
        try:
            sock = self._context.wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise
        with self._lock:
            self.shown[sock.getpeercert(binary_form=True)] += 1
        return sock

    def wait_for(self, answers):
        """Wait until there are so many more good answers."""
        target = self.answers + answers
        end = time.monotonic() + 60
        while self.answers < target:
            assert time.monotonic() < end, (self.answers, self.failures)
            time.sleep(0.005)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc):
        self._over.set()
        for thread in self._threads:
            thread.join()
