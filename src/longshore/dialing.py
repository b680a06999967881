"""Dialling: from an address to a connected socket, blocking and in an asyncio loop.

The only place that calls connect(2).  A host with several addresses is dialled as RFC 8305 says: families
take turns, each attempt has 250 ms before the next one starts beside it, the first that connects wins and
the others are closed.  What is spoken over the socket is not known here.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from longshore.addresses import Address, Endpoint, format_peer, resolve
from longshore.errors import AddressError, AddressUnavailable, ConnectTimeout, LongshoreError, PermissionNeeded
from longshore.refusals import lacks_sockets, no_such_sockets, not_here, raw_refused

if TYPE_CHECKING:
    import asyncio

__all__ = ("Refused", "dial", "dial_async", "left")

#: Seconds between the starts of two attempts (RFC 8305, section 8).
STAGGER = 0.25
#: linux/vm_sockets.h: this machine's own context id, and the number for "any port".
VSOCK_LOCAL, VSOCK_ANY_PORT = 1, 0xFFFFFFFF
#: Seconds until a Unix socket whose queue was full is tried again: its connect(2) does not wait for room.
FULL_QUEUE_PAUSE = 0.01


class Refused(AddressUnavailable, ConnectionRefusedError):
    """Nobody listens there."""


def dial(address: Address, deadline: float | None, timeout: float | None) -> tuple[socket.socket, Endpoint]:
    """A socket connected to `address`, in non-blocking mode, and where it is connected to.

    `deadline` is on the clock of `time.monotonic`; `timeout` is what the caller asked for, for the message.

    Raises:
        AddressUnavailable, PermissionNeeded: nothing answers there.
        ConnectTimeout: the deadline passed.
    """
    return _race(address, _interleaved(_resolve_within(address, deadline, timeout)), deadline, timeout)


async def dial_async(address: Address, timeout: float | None) -> tuple[socket.socket, Endpoint]:
    """As `dial`, within `timeout` seconds, in the running loop."""
    import asyncio

    try:
        async with asyncio.timeout(timeout):
            if _is_literal(address):
                endpoints = resolve(address, passive=False)
            else:
                loop = asyncio.get_running_loop()
                endpoints = await loop.run_in_executor(None, lambda: resolve(address, passive=False))
            return await _race_async(address, _interleaved(endpoints))
    except TimeoutError as error:
        if isinstance(error, LongshoreError):
            raise
        raise _too_late(address, timeout) from None


def left(deadline: float | None) -> float | None:
    """Seconds until `deadline`; None if there is none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _resolve_within(address: Address, deadline: float | None, timeout: float | None) -> list[Endpoint]:
    """Look the name up, but no longer than `deadline`: getaddrinfo(3) has no deadline of its own."""
    if _is_literal(address) or deadline is None:
        return resolve(address, passive=False)
    found: list[list[Endpoint]] = []
    failed: list[BaseException] = []

    def look_up() -> None:
        try:
            found.append(resolve(address, passive=False))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=look_up, name="longshore-resolve", daemon=True)
    thread.start()
    thread.join(left(deadline))
    if failed:
        raise failed[0]
    if not found:
        raise _too_late(address, timeout)
    return found[0]


def _is_literal(address: Address) -> bool:
    """Whether no name service is asked."""
    if address.scheme not in ("tcp", "tls", "udp", "raw") or address.host is None:
        return True
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return False
    return True


def _interleaved(endpoints: list[Endpoint]) -> deque[Endpoint]:
    """Families in turns, in the resolver's order (RFC 8305, section 4)."""
    families: dict[int, list[Endpoint]] = {}
    for endpoint in endpoints:
        families.setdefault(endpoint.family, []).append(endpoint)
    turns = itertools.zip_longest(*families.values())
    return deque(endpoint for turn in turns for endpoint in turn if endpoint is not None)


def _race(
    address: Address, waiting: deque[Endpoint], deadline: float | None, timeout: float | None
) -> tuple[socket.socket, Endpoint]:
    """The first socket that connects, and where to."""
    failures: list[tuple[Endpoint, OSError]] = []
    next_start = time.monotonic()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    raise _too_late(address, timeout)
                if waiting and now >= next_start:
                    endpoint = waiting.popleft()
                    next_start = now + STAGGER
                    try:
                        sock, connected = _started(endpoint)
                    except BlockingIOError:
                        waiting.appendleft(endpoint)
                        next_start = now + FULL_QUEUE_PAUSE
                    except OSError as error:
                        failures.append((endpoint, error))
                        next_start = now
                    else:
                        if connected:
                            return sock, endpoint
                        selector.register(sock, selectors.EVENT_WRITE, endpoint)
                    continue
                ends = [moment for moment in (deadline, next_start if waiting else None) if moment is not None]
                for key, _ in selector.select(max(0.0, min(ends) - now) if ends else None):
                    sock = key.fileobj  # type: ignore[assignment]
                    selector.unregister(sock)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        return sock, key.data
                    sock.close()
                    failures.append((key.data, OSError(code, os.strerror(code))))
                    next_start = now
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
    raise _unreachable(address, failures)


def _started(endpoint: Endpoint) -> tuple[socket.socket, bool]:
    """A socket that connects, and whether it has done so already."""
    sock = socket.socket(endpoint.family, endpoint.type, endpoint.proto)
    try:
        sock.setblocking(False)
        _name_ourselves(sock, endpoint)
        try:
            sock.connect(endpoint.sockaddr)
        except OSError as error:
            # connect(2): EINPROGRESS goes on by itself, EAGAIN (a Unix socket's full queue) has not begun.
            if error.errno != errno.EINPROGRESS:
                raise
            return sock, False
    except BaseException:
        sock.close()
        raise
    return sock, True


def _name_ourselves(sock: socket.socket, endpoint: Endpoint) -> None:
    """Bind a socket that needs an address of its own before it connects."""
    if sock.family == getattr(socket, "AF_VSOCK", None):
        if endpoint.sockaddr[0] == VSOCK_LOCAL:
            # Without a loopback the kernel would carry this out of the machine, to whoever runs it; bind(2) refuses.
            sock.bind((VSOCK_LOCAL, VSOCK_ANY_PORT))
        return
    if sock.family != getattr(socket, "AF_UNIX", None) or sock.type != socket.SOCK_DGRAM:
        return
    # Nobody can reply to a Unix datagram socket without a name.
    if sys.platform == "linux":
        # unix(7), "Autobind feature": the kernel picks an abstract name, which ends with the socket.
        sock.bind("")
    else:
        sock.bind(tempfile.mktemp(prefix="longshore-client-"))


async def _race_async(address: Address, waiting: deque[Endpoint]) -> tuple[socket.socket, Endpoint]:
    import asyncio

    failures: list[tuple[Endpoint, OSError]] = []
    tasks: dict[asyncio.Task[socket.socket], Endpoint] = {}
    try:
        while waiting or tasks:
            if waiting:
                endpoint = waiting.popleft()
                tasks[asyncio.ensure_future(_dialled(endpoint))] = endpoint
            done, _ = await asyncio.wait(
                tasks, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                endpoint = tasks[task]
                error = task.exception()
                if error is None:
                    del tasks[task]
                    return task.result(), endpoint
                del tasks[task]
                if not isinstance(error, OSError):
                    raise error
                failures.append((endpoint, error))
    finally:
        for task in tasks:
            task.cancel()
        for loser in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(loser, socket.socket):
                loser.close()
    raise _unreachable(address, failures)


async def _dialled(endpoint: Endpoint) -> socket.socket:
    import asyncio

    while True:
        try:
            sock, connected = _started(endpoint)
            break
        except BlockingIOError:
            await asyncio.sleep(FULL_QUEUE_PAUSE)
    if connected:
        return sock
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()
    loop.add_writer(descriptor, _settle, writable)
    try:
        await writable
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        loop.remove_writer(descriptor)
        sock.close()
        raise
    loop.remove_writer(descriptor)
    return sock


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _too_late(address: Address, timeout: float | None) -> ConnectTimeout:
    return ConnectTimeout(
        f"{address}: no connection within {timeout:g} s",
        hint="Is the host up, and does a firewall drop the packets? A longer timeout= waits longer.",
    )


def _unreachable(address: Address, failures: list[tuple[Endpoint, OSError]]) -> AddressError:
    endpoint, first = failures[0]
    vsock = endpoint.family == getattr(socket, "AF_VSOCK", None)
    if lacks_sockets(first):
        return no_such_sockets(address, endpoint.family, first)
    if endpoint.type == socket.SOCK_RAW and isinstance(first, PermissionError):
        return raw_refused(address, first)
    if vsock and first.errno == errno.EADDRNOTAVAIL:
        return not_here(address, endpoint, first)
    if len({str(error) for _, error in failures}) == 1:
        text = f"{address}: {first.strerror or first}"
    else:
        each = "; ".join(
            f"{format_peer(endpoint.family, endpoint.sockaddr)}: {error.strerror or error}"
            for endpoint, error in failures
        )
        text = f"{address}: no address answers ({each})"
    errors = [error for _, error in failures]
    if all(isinstance(error, PermissionError) for error in errors):
        return PermissionNeeded(
            text, hint="Look at the socket file's mode and owner, or at what this user may open.", errno=first.errno
        )
    # Over vsock the kernel resets where nobody listens.
    if all(
        isinstance(error, ConnectionRefusedError) or (vsock and error.errno == errno.ECONNRESET) for error in errors
    ):
        return Refused(text, hint="Is the server running, and is this its address?", errno=first.errno)
    if isinstance(first, FileNotFoundError):
        hint = "There is no such socket file: is the server running, and is this its path?"
    else:
        hint = "Is the server running, and is there a route to it?"
    return AddressUnavailable(text, hint=hint, errno=first.errno)
