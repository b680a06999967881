"""Two hosts on this machine, each with a network of its own, and a wire between them that loses, delays and can be cut.

A `Host` is a thread in a network namespace (network_namespaces(7)) whose one device is a TUN (the kernel's
networking/tuntap.rst): what the host sends comes out of a descriptor.  `Wire` carries packets from one descriptor to
the other.  Nothing leaves the machine: its addresses are of TEST-NET-1 (RFC 5737), and no route leads anywhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
NEAR, FAR = "192.0.2.1", "192.0.2.2"
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A thread with a network of its own; what it is called with runs there, and what that starts stays there."""

    def __init__(self, address: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        try:
            #: Where packets come out and go in.
            self.wire: int = self(self._plug, address)
        except BaseException:
            self._thread.shutdown()
            raise

    def _plug(self, address: str) -> int:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(wire, TUNSETIFF, struct.pack("16sH14x", b"wire", IFF_TUN | IFF_NO_PI))
        for words in (f"addr add {address}/24 dev wire", "link set wire up", "link set lo up"):
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        return wire

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._thread.submit(function, *args, **options).result()

    def close(self) -> None:
        os.close(self.wire)
        self._thread.shutdown()


class Wire(threading.Thread):
    """Carries packets between two hosts; `loss` is a share, `delay` is in seconds, for each way."""

    def __init__(self, hosts: tuple[Host, Host], *, loss: float, delay: float, seed: int) -> None:
        super().__init__()
        self._ends = [host.wire for host in hosts]
        self._chance = random.Random(seed)
        self._waker = os.eventfd(0)
        self.loss, self.delay = loss, delay
        #: Whether nothing arrives, either way.
        self.cut = False
        self.carried = self.lost = 0

    def run(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        poller = select.poll()
        for end in (*self._ends, self._waker):
            poller.register(end, select.POLLIN)
        while True:
            patience = None if not under_way else max(0.0, (under_way[0][0] - time.monotonic()) * 1000)
            for ready, _ in poller.poll(patience):
                if ready == self._waker:
                    return
                for packet in self._packets(ready):
                    if self.cut or self._chance.random() < self.loss:
                        self.lost += 1
                        continue
                    self.carried += 1
                    to = self._ends[self._ends[0] == ready]
                    heapq.heappush(under_way, (time.monotonic() + self.delay, self.carried, to, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(under_way)
                with contextlib.suppress(BlockingIOError):
                    os.write(to, packet)

    @staticmethod
    def _packets(end: int) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield os.read(end, 65536)

    def end(self) -> None:
        os.eventfd_write(self._waker, 1)
        self.join()
        os.close(self._waker)


@contextlib.contextmanager
def hosts_on_a_wire(*, loss: float = 0.0, delay: float = 0.0, seed: int = 1) -> Iterator[tuple[Host, Host, Wire]]:
    """Two hosts, `NEAR` and `FAR`, and the wire; skips where the machine does not allow that."""
    if shutil.which("ip") is None:
        pytest.skip("networks of one's own are made with ip (iproute2), which is not installed")
    with contextlib.ExitStack() as stack:
        try:
            near = Host(NEAR)
            stack.callback(near.close)
            far = Host(FAR)
            stack.callback(far.close)
        except OSError as error:
            pytest.skip(f"this machine allows no network namespaces or no TUN devices: {error}")
        wire = Wire((near, far), loss=loss, delay=delay, seed=seed)
        wire.start()
        stack.callback(wire.end)
        yield near, far, wire
