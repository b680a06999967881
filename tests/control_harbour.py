"""A supervisor as the control process sees it, whose workers are real servers of the test's own process."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from longshore import Server
from longshore.control.agent import Agent
from longshore.control.plane import Plane
from longshore.listeners import bind
from longshore.supervisor.channel import Channel
from longshore.supervisor.liaison import Liaison
from longshore.supervisor.meter import COUNTERS, GAUGES, HISTOGRAMS, Meter
from longshore.supervisor.region import Region, SharedCounters

__all__ = ("Harbour", "echo", "ready")


def echo(connection):
    while data := connection.recv(65536):
        if data == b"bad":
            raise ValueError("no such thing")
        connection.sendall(data)


class Harbour:
    """A supervisor whose workers are servers of this process, and its control process, which is a thread of it."""

    def __init__(self, directory) -> None:
        self.region = Region(COUNTERS, GAUGES, HISTOGRAMS)
        self.counters = SharedCounters(self.region)
        self.commands: list[dict] = []
        self.workers: dict[int, tuple] = {}
        self._ours, theirs = Channel.pair()
        self._sending = threading.Lock()
        self.path = str(directory / "control.sock")
        page = bind("tcp://127.0.0.1:0")
        self.pages = page[0].url.replace("tcp:", "http:")
        self._doors = bind(f"unix://{self.path}?mode=0600")
        plane = Plane(Liaison(theirs, self.counters, ()), page, self._doors)
        self._theirs = theirs
        self._threads = [threading.Thread(target=plane.run), threading.Thread(target=self._answer)]
        for thread in self._threads:
            thread.start()
        self.tell(event="state", state="serving")

    def tell(self, *fds, **message):
        with self._sending:
            self._ours.send(message, fds)

    def _answer(self):
        self._ours.socket.setblocking(True)
        while not self._ours.ended:
            for message, _ in self._ours.receive():
                self.commands.append(message)
                result = None
                if message["verb"] == "status":
                    workers = [
                        {
                            "worker": number,
                            "pid": os.getpid(),
                            "generation": 1,
                            "state": "ready",
                            "age": 1.0,
                            "beat": 0.1,
                        }
                        for number in self.workers
                    ]
                    result = {"state": "serving", "generation": 1, "wanted": len(workers), "workers": workers, "pid": 1}
                if message["verb"] == "reload":
                    self.tell(id=message["id"], ok=False, error="the new code does not start")
                else:
                    self.tell(id=message["id"], ok=True, result=result)
            select_readable(self._ours.socket)

    def start(self, handler=echo, address="tcp://127.0.0.1:0", **options):
        """One worker more; returns its server."""
        slot = self.region.take_slot(1)
        self.region.row("pid")[slot] = os.getpid()
        meter = Meter(self.region.column(slot))
        server = Server(handler, address, **{"strategy": "green", **options})
        server.subscribe(meter)
        ours, theirs = socket.socketpair()
        self.workers[slot + 1] = (server, slot)
        Agent(server, theirs, meter)
        self.tell(ours.fileno(), event="worker-started", worker=slot + 1, pid=os.getpid(), generation=1)
        ours.close()
        server.start()
        return server

    def end(self, worker):
        """A worker ends."""
        server, slot = self.workers.pop(worker)
        server.stop()
        self.region.free_slot(slot)
        self.tell(event="worker-ended", worker=worker, pid=os.getpid(), reason="recycled")

    def page(self, path):
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(self.pages + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self):
        """What a Prometheus server would keep: by name and labels."""
        status, text = self.page("/metrics")
        assert status == 200
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def until(self, look, wanted):
        """Look again until it is so: what one process says, another one hears later."""
        while not wanted(found := look()):
            pass
        return found

    def close(self):
        for worker in tuple(self.workers):
            self.end(worker)
        with contextlib.suppress(OSError):
            self._ours.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._ours.close()
        self._theirs.close()


def select_readable(sock):
    with contextlib.suppress(OSError, ValueError):
        select.select([sock], [], [])


def ready(ctl, count):
    """The status once all workers have joined and serve."""
    while True:
        status = ctl.ask("status")
        if sum(each["state"] == "serving" for each in status["workers"]) == count:
            return status
