"""The courier: one thread per process, which carries verbs to the server, and replies back.

The only file that does I/O with the server.  It has two connections: one for commands, as many at once as there are,
and one on which it waits for mail, the replies of verbs that had to wait.  It keeps the clock of those who wait, renews
the lease of the process every third of it (every second while anybody waits), and lets go of those whose lease has run
out the moment it does.

All I/O is on this thread because nothing interrupts it: a signal's handler runs on the main thread, and an exception
from there, between the halves of a reply, would leave a connection that nobody could use.

Callers add to a queue, which takes no lock, and write one byte; a finaliser may do it anywhere.
"""

from __future__ import annotations

import contextlib
import heapq
import secrets
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.errors import BrokerLost, ClosedError, InternalError, LongshoreError
from longshore.shared.places import Reply, Status
from longshore.shared.redis.scripts import CLIENTS, MAIL, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.shared.redis.server import RedisServer

__all__ = ("Courier", "Errand")

#: What scripts answer besides a `Status`: the client has no lease; the reply will come by mail.
_LOST, _WAITING = -1, -2
#: Commands that are sent at once.
_BATCH = 64
#: Mail that is fetched at once.
_MAIL = 64
#: Seconds after which a server is asked something while anybody waits, so that one which has fallen silent is missed.
_PROBE = 1.0
#: Seconds after the end of a lease at which it is looked for: it is not over before it is.
_AFTER = 0.002
#: Seconds that `close` waits for the server to hear of it.
_FAREWELL = 2.0


class Errand:
    """One verb on its way.  `done` is called once, with its reply or an error; None where no reply is wanted."""

    __slots__ = (
        "base",
        "deadline",
        "done",
        "fields",
        "holder",
        "id",
        "key",
        "number",
        "over",
        "patient",
        "script",
        "verb",
    )

    def __init__(
        self,
        script: Script,
        done: Callable[[Reply | BaseException], object] | None,
        verb: int,
        key: bytes,
        holder: int = 0,
        number: int = 0,
        timeout: float | None = 0,
        fields: tuple[bytes, ...] = (),
        base: int = 0,
    ) -> None:
        self.script = script
        self.done = done
        self.verb = int(verb)
        self.key = key
        self.holder = holder
        self.number = int(number)
        self.patient = timeout is None or timeout > 0
        self.deadline = time.monotonic() + timeout if timeout else None
        self.fields = fields
        #: What the number of a good reply is counted from: the numbers of Lua are exact to 53 bits only.
        self.base = base
        self.id = 0
        self.over = False

    def answer(self, status: int, number: int, fields: Sequence[bytes]) -> None:
        """Finish with what the server says."""
        self.finish(Reply(status, number + self.base if status == Status.OK else number, fields))

    def finish(self, reply: Reply | BaseException) -> None:
        """Call `done`, once."""
        if not self.over:
            self.over = True
            if self.done is not None:
                self.done(reply)


class Courier:
    """The connections and the thread of one process.

    Raises:
        AddressUnavailable: nobody answers.
        PermissionNeeded: the server wants another password.
        ConfigError: the server cannot keep a place.
        BrokerLost: it was lost meanwhile.
    """

    def __init__(self, server: RedisServer, after: int, on_lost: Callable[[BaseException], object]) -> None:
        self._server = server
        self._on_lost = on_lost
        #: No other process, of any machine or time, has this name.
        self.client = secrets.token_hex(8).encode()
        self.lost: BaseException | None = None
        self._queue: deque[Errand] = deque()
        self._waiting: dict[int, Errand] = {}
        self._late: list[tuple[float, int]] = []
        self._last_id = 0
        self._last_letter = b"0"
        self._nudged = False
        self._ending = False
        self._redis: Any = server._module
        self._commands = server.connect()
        try:
            server.check(self._commands)
            self._mail = server.connect()
        except BaseException:
            self._commands.disconnect()
            raise
        try:
            self.epoch = self._join(after)
        except BaseException:
            self._disconnect()
            raise
        self._awake, self._bell = socket.socketpair()
        self._awake.setblocking(False)
        self._bell.setblocking(False)
        self._renew_at = time.monotonic() + server.lease / 3
        self._thread = threading.Thread(target=self._run, name="longshore-redis", daemon=True)
        self._thread.start()

    # -- any thread ------------------------------------------------------------------------------------------

    def carry(self, errand: Errand) -> None:
        """Have an errand done."""
        self._queue.append(errand)
        if not self._nudged:
            self._nudged = True
            try:
                self._bell.send(b"!")
            except OSError:
                # It is full, so the courier will look; or closed, and then it is lost.
                pass
        if self.lost is not None:
            self._fail(self.lost)

    def cancel(self, errand: Errand) -> None:
        """Ask for the end of an errand that was handed to `carry`."""
        if not errand.over:
            self.carry(_Cancel(errand, b"cancel"))

    def close(self) -> None:
        """Give back what this process holds, and end the thread."""
        if self.lost is None:
            self._ending = True
            self.carry(Errand(CLIENTS, None, 0, b"leave"))
            if threading.current_thread() is not self._thread:
                self._thread.join(_FAREWELL)

    def forget(self) -> None:
        """In a child that was forked: the connections and the thread are its parent's."""
        self._disconnect()
        self._close_bell()

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failure: BaseException
        try:
            self._serve()
            failure = ClosedError(f"{self._server.url} was left", hint="shared.join(url) joins again.")
        except LongshoreError as error:
            failure = error
        except (OSError, self._redis.exceptions.RedisError) as error:
            failure = BrokerLost(
                f"{self._server.url}: the place is lost: {error}", hint="Join again: shared.join(url)."
            )
        except BaseException as error:
            failure = BrokerLost(f"{self._server.url}: the place is lost by a fault of Longshore's: {error!r}")
        self._on_lost(failure)
        self.lost = failure
        with contextlib.suppress(Exception):
            self._disconnect()
        self._close_bell()
        self._fail(failure)

    def _serve(self) -> None:
        # A connection of redis-py has no public name for its socket, and its own way to wait knows one socket only.
        mail = self._mail._sock
        poll = select.poll()
        poll.register(mail, select.POLLIN)
        poll.register(self._commands._sock, select.POLLIN)
        poll.register(self._awake, select.POLLIN)
        self._ask_for_mail()
        while True:
            pause = max(0.0, min(self._renew_at, self._late[0][0] if self._late else self._renew_at) - time.monotonic())
            for descriptor, _ in poll.poll(pause * 1000):
                if descriptor == self._awake.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._awake.recv(64)
                elif descriptor == mail.fileno():
                    # TLS has records without data, after which there is nothing to read.
                    if self._mail.can_read(0):
                        self._fetch_mail()
                        self._ask_for_mail()
                elif self._commands.can_read(0):
                    # Nothing was asked, so this is the end of the stream; the error says which.
                    self._commands.read_response()
            self._nudged = False
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                waiting = self._waiting.get(heapq.heappop(self._late)[1])
                if waiting is not None:
                    self._queue.append(_Cancel(waiting, b"late"))
            if now >= self._renew_at:
                self._renew()
            ending = self._ending
            while self._queue:
                self._deliver()
            if ending:
                return

    def _renew(self) -> None:
        """Keep the lease, and let go of others' that have run out; look again when the next one may have."""
        lease = self._server.lease
        status, pause = self._run_script(CLIENTS, b"renew", int(lease * 1000))
        if status == _LOST:
            raise self._no_lease()
        self._renew_at = time.monotonic() + min(lease / 3, pause / 1000 + _AFTER, _PROBE if self._waiting else lease)

    def _deliver(self) -> None:
        """Have a batch of errands done."""
        batch: list[Errand] = []
        while self._queue and len(batch) < _BATCH:
            batch.append(self._queue.popleft())
        try:
            self._send(b"".join([self._command(errand) for errand in batch]))
            answers = [self._read() for _ in batch]
            for errand, answer in zip(batch, answers, strict=True):
                self._settle(errand, answer)
        except BaseException:
            self._queue.extendleft(reversed([errand for errand in batch if errand.id not in self._waiting]))
            raise

    def _command(self, errand: Errand) -> bytes:
        number = errand.number
        if isinstance(errand, _Cancel):
            number = errand.of.id
        elif errand.done is not None:
            self._last_id += 1
            errand.id = self._last_id
        return self._evalsha(
            errand.script,
            b"%d" % errand.verb,
            errand.key,
            b"%d" % errand.holder,
            b"%d" % number,
            b"%d" % errand.id,
            b"1" if errand.patient else b"0",
            *errand.fields,
        )

    def _evalsha(self, script: Script, *arguments: bytes) -> bytes:
        return _pack(b"EVALSHA", script.sha, b"0", self.client, *arguments)

    def _settle(self, errand: Errand, answer: Any) -> None:
        if isinstance(answer, self._redis.exceptions.NoScriptError):
            # The server is new, or somebody has flushed its scripts.
            self._call(_pack(b"SCRIPT", b"LOAD", errand.script.text))
            self._send(self._command(errand))
            answer = self._read()
        if isinstance(answer, Exception):
            errand.finish(self._refusal(answer))
            return
        status = answer[0]
        if status == _WAITING:
            self._waiting[errand.id] = errand
            # Whoever has what this one waits for may be dead: then his lease is the next to run out, or one of them.
            self._renew_at = min(self._renew_at, time.monotonic() + min(answer[1] / 1000 + _AFTER, _PROBE))
            if errand.deadline is not None:
                heapq.heappush(self._late, (errand.deadline, errand.id))
                self._prune()
        elif status == _LOST:
            raise self._no_lease()
        else:
            errand.answer(status, int(answer[1]), answer[2:])

    def _refusal(self, error: Exception) -> Reply | BaseException:
        if isinstance(error, self._redis.exceptions.OutOfMemoryError) or "OOM" in str(error):
            return Reply(Status.TOO_LARGE, 0, (b"the server's maxmemory is reached",))
        if isinstance(error, (self._redis.exceptions.ReadOnlyError, self._redis.exceptions.BusyLoadingError)):
            raise error
        return InternalError(f"{self._server.url}: the server refuses: {error}")

    def _prune(self) -> None:
        """Drop the deadlines of those who wait no more, when they are most of them."""
        if len(self._late) > 64 and len(self._late) > 4 * len(self._waiting):
            self._late = [entry for entry in self._late if entry[1] in self._waiting]
            heapq.heapify(self._late)

    def _ask_for_mail(self) -> None:
        mailbox = b"longshore:m:" + self.client
        command = _pack(b"XREAD", b"COUNT", b"%d" % _MAIL, b"BLOCK", b"0", b"STREAMS", mailbox, self._last_letter)
        self._mail.send_packed_command([command], False)

    def _fetch_mail(self) -> None:
        """Take what has come.  The server hears of it first: what it has not heard of goes to others, if we die."""
        ((_, letters),) = self._mail.read_response(disable_decoding=True)
        self._last_letter = letters[-1][0]
        status, _ = self._run_script(MAIL, b"", 0, self._last_letter)
        if status == _LOST:
            raise self._no_lease()
        for _, letter in letters:
            head, _, rest = letter[1].partition(b"\n")
            id, status, number, *sizes = map(int, head.split())
            fields, at = [], 0
            for size in sizes:
                fields.append(rest[at : at + size])
                at += size
            errand = self._waiting.pop(id, None)
            if errand is not None:
                errand.answer(status, number, fields)

    # -- the connection of commands ----------------------------------------------------------------------------

    def _join(self, after: int) -> int:
        lease = int(self._server.lease * 1000)
        while True:
            status, epoch = self._run_script(CLIENTS, b"join", lease, b"%d" % after)
            if status == Status.OK:
                return int(epoch)
            # The server was started within this second, and the epoch is the second.
            time.sleep(0.05)

    def _run_script(self, script: Script, key: bytes, number: int, *fields: bytes) -> Any:
        command = self._evalsha(script, b"0", key, b"0", b"%d" % number, b"0", b"0", *fields)
        try:
            return self._call(command)
        except self._redis.exceptions.NoScriptError:
            self._call(_pack(b"SCRIPT", b"LOAD", script.text))
            return self._call(command)

    def _call(self, command: bytes) -> Any:
        self._send(command)
        answer = self._read()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send(self, commands: bytes) -> None:
        self._commands.send_packed_command([commands], False)

    def _read(self) -> Any:
        try:
            return self._commands.read_response(disable_decoding=True)
        except self._redis.exceptions.ConnectionError:
            # Some refusals are of this kind, too; after those the server closes, or is of no use.
            raise
        except self._redis.exceptions.ResponseError as error:
            return error

    def _no_lease(self) -> BrokerLost:
        return BrokerLost(
            f"{self._server.url}: this process has no lease any more: it did not run for {self._server.lease:g} s, or "
            "the server has lost its objects.  What it held may be another's.",
            hint="Check the fence before going on; join again: shared.join(url).",
        )

    def _fail(self, failure: BaseException) -> None:
        """Everybody who waits hears it.  Any thread may do this, also twice."""
        while self._waiting:
            with contextlib.suppress(KeyError):
                self._waiting.popitem()[1].finish(failure)
        while self._queue:
            with contextlib.suppress(IndexError):
                self._queue.popleft().finish(failure)

    def _disconnect(self) -> None:
        for connection in (self._commands, self._mail):
            connection.disconnect()

    def _close_bell(self) -> None:
        self._awake.close()
        self._bell.close()


def _pack(*parts: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


class _Cancel(Errand):
    """Ask for the end of another errand, whose id is known once it was sent."""

    __slots__ = ("of",)

    def __init__(self, of: Errand, why: bytes) -> None:
        super().__init__(CLIENTS, None, 0, why)
        self.of = of
