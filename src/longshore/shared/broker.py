"""The broker's host: a process of its own, which is a Longshore server on a Unix socket.

The only file that joins the core to sockets, pids and time.  It lets in who knows the secret and is of its user, or of
the user who has started it; others get no byte, and are logged.  It ends when its owner does: by the end of the pipe
that it inherited, or by the owner's pidfd.  It never unpickles, and it is started by `starting.py`.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import os
import resource
import selectors
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.config import Limits, Timeouts
from longshore.errors import FramingError, LongshoreError
from longshore.handlers import MessageHandler
from longshore.owners import credentials_of
from longshore.server import Server
from longshore.shared.conduit import Conduit, can_conduct
from longshore.shared.core import Core
from longshore.shared.journal import make_journal
from longshore.shared.ledger import forget_ledgers, make_ledger
from longshore.shared.lending import BORROWERS
from longshore.shared.places import FENCE_BITS, MAX_ITEM, Status
from longshore.shared.wire import FRAMING, HELLO, TELL, Request, encode_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("main",)

#: A reply may be as large as a whole dict; a client that takes nothing is cut beyond this.
_PENDING = 1 << 30
log = logging.getLogger("longshore.shared")


class _Descriptor:
    """A bare descriptor, as reactors watch it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Its number."""
        return self._number


class _Processes:
    """Watches the processes of the clients: a socket that was inherited outlives whom it belonged to."""

    def __init__(self, watch: Callable[..., Any]) -> None:
        self._watch = watch
        self._known: dict[int, tuple[int, set[_Session]]] = {}

    def add(self, pid: int, session: _Session) -> None:
        """`session` is of `pid`."""
        if pid in self._known:
            self._known[pid][1].add(session)
            return
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):
            # It is gone, of another namespace, or the system has none: the end of its stream tells.
            return
        self._known[pid] = (descriptor, {session})
        self._watch(descriptor, selectors.EVENT_READ, lambda _events: self._died(pid))

    def remove(self, pid: int, session: _Session) -> None:
        """`session` is over."""
        descriptor, sessions = self._known.get(pid, (-1, set()))
        sessions.discard(session)
        if descriptor >= 0 and not sessions:
            self._forget(pid)

    def _died(self, pid: int) -> None:
        sessions = self._forget(pid)
        for session in list(sessions):
            session.end()

    def _forget(self, pid: int) -> set[_Session]:
        descriptor, sessions = self._known.pop(pid, (-1, set()))
        if descriptor >= 0:
            self._watch(descriptor, 0, None)
            os.close(descriptor)
        return sessions


class _Desk:
    """What all sessions share."""

    def __init__(self, core: Core, secret: bytes, users: frozenset[int]) -> None:
        self.core = core
        self.secret = secret
        #: Whose processes may come in.
        self.users = users
        self.server: Server
        #: Requests that came in.
        self.requests = 0
        self.processes = _Processes(self._watch)
        self._timer: Any = None
        self._armed = 0.0

    def _watch(self, descriptor: int, events: int, callback: Any) -> None:
        reactor: Any = self.server.reactor
        reactor.watch(_Descriptor(descriptor), events, callback)

    def deliver(self, own: object = None) -> list[bytes]:
        """Send the replies that are due, but those of `own`, which are returned; look at the clock again."""
        core = self.core
        mine: list[bytes] = []
        while core.effects:
            effects, core.effects = core.effects, []
            for client, message in effects:
                if not isinstance(message, bytes):
                    client.refuse(message)
                elif client is own:
                    mine.append(message)
                else:
                    client.post(message)
        deadline = core.deadline
        if deadline is not None and (self._timer is None or deadline < self._armed):
            self._arm(deadline)
        return mine

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = deadline
        self._timer = self.server.reactor.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.core.expire(time.monotonic())
        self.deliver()


class _Session(MessageHandler):
    """One connection: a client of the core, once it has said the secret."""

    framing = FRAMING
    desk: _Desk

    def connected(self) -> None:
        """Look who it is."""
        self.trusted = self.gone = False
        # Whoever is gone already, or cannot be told, is nobody's process, and is refused as a stranger.
        self.pid, uid, _ = credentials_of(self.connection) or (0, -1, -1)
        if uid not in self.desk.users:
            log.warning("refused process %d of user %d: this broker serves user %d only", self.pid, uid, os.geteuid())
            self.gone = True
            self.connection.abort()

    def message(self, message: Any) -> Any:
        """One message comes as a batch of one."""
        return self.messages([message])

    def messages(self, batch: list[Any]) -> list[bytes] | None:
        """Have the core do what was asked."""
        if self.gone or not batch:
            return None
        if not self.trusted:
            greeting, *batch = batch
            reply = self._greet(greeting)
            if reply is None:
                return None
            return [reply, *(self.messages(batch) or ())]
        desk = self.desk
        core = desk.core
        now = time.monotonic()
        desk.requests += len(batch)
        try:
            for message in batch:
                core.receive(self, message, now)
        except FramingError as error:
            self.refuse(error)
            return None
        replies = desk.deliver(self)
        return None if self.gone else replies

    def _greet(self, message: bytes) -> bytes | None:
        try:
            request = Request(self, message)
        except FramingError:
            request = None
        core = self.desk.core
        if (
            request is None
            or request.verb not in (HELLO, TELL)
            or not hmac.compare_digest(request.key, self.desk.secret)
        ):
            log.warning("refused process %d of this user: it does not know the key of this broker", self.pid)
            self.gone = True
            self.connection.abort()
            return None
        if request.verb == TELL:
            figures = (self.desk.requests, *core.figures)
            return encode_reply(request.id, Status.OK, core.epoch, [b"%d" % figure for figure in figures])
        self.trusted = True
        number = core.client_came(self)
        self.desk.processes.add(self.pid, self)
        return encode_reply(request.id, Status.OK, core.epoch, (b"%d" % core.max_item, b"%d" % number))

    def post(self, message: bytes) -> None:
        """Send a reply that somebody else has caused."""
        try:
            self.connection.send(message)
        except (LongshoreError, OSError):
            # Gone, or it takes nothing: then it is a client no more, or the reply it waits for would be missing.
            self.end()

    def hand_over(self, descriptors: Sequence[int]) -> None:
        """Send descriptors, with a byte before the reply; a client that asks for them has all replies of before."""
        with socket.socket(fileno=os.dup(self.connection.fileno())) as sock:
            socket.send_fds(sock, [b"\0"], list(descriptors))

    def refuse(self, error: FramingError) -> None:
        """What it sent, or wrote into its journal, is nothing that a client of ours would."""
        if not self.gone:
            log.warning("process %d sent what is no request: %s", self.pid, error)
            self.end()

    def end(self) -> None:
        """It is no client any more."""
        if not self.gone:
            self.gone = True
            self._forget()
            self.connection.abort()

    def disconnected(self, error: BaseException | None) -> None:
        """The stream is over."""
        if not self.gone:
            self.gone = True
            self._forget()

    def _forget(self) -> None:
        if self.trusted:
            self.desk.processes.remove(self.pid, self)
            self.desk.core.client_gone(self)
            self.desk.deliver()


def _most_connections() -> int:
    """As many clients, and journals, as the system lets this process have; a connection is a thread of a client's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 100_000 if hard == resource.RLIM_INFINITY else max(16, min(100_000, hard - 256 - BORROWERS))


def _next_epoch(directory: Path) -> int:
    """An epoch higher than any that this directory has seen, and than those of other directories before it."""
    # A directory of another user's may hold a link to anything, which root must not write to.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(directory / "epoch", flags, 0o600), "r+", encoding="ascii") as file:
        epoch = max(int(time.time()), int(file.read() or 0) + 1)
        file.seek(0)
        file.write(str(epoch))
    return epoch


def main(arguments: list[str] | None = None) -> None:
    """Serve the directory that is named, until the owner ends."""
    parser = argparse.ArgumentParser(prog="longshore.shared.broker")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--owner", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--ready", type=int, required=True)
    parser.add_argument("--max-item", type=int, default=MAX_ITEM)
    parser.add_argument("--user", type=int, nargs=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="longshore broker: %(message)s")
    os.umask(0o077)
    if os.fork():
        # It is no child of its owner's, whose children are counted and waited for by others.
        os._exit(0)
    users = {os.geteuid()}
    if options.user is not None:
        users.add(options.user[0])
    directory: Path = options.directory
    epoch = _next_epoch(directory)
    core = Core(
        epoch,
        options.max_item,
        ledger=make_ledger(directory, epoch, epoch << FENCE_BITS),
        conduits=Conduit if can_conduct() else None,
        journals=lambda number: make_journal(directory, epoch, number),
    )
    desk = _Desk(core, (directory / "key").read_bytes(), frozenset(users))
    handler = type("Broker", (_Session,), {"desk": desk})
    server = Server(
        handler,
        f"unix://{directory}/socket?mode=0600",
        strategy="reactor",
        limits=Limits(max_connections=_most_connections(), max_pending_bytes=_PENDING),
        timeouts=Timeouts(idle=None, write=None, first_byte=10, blocked=None),
    )
    desk.server = server
    _serve(server, options)


def _become(directory: Path, uid: int, gid: int) -> None:
    """Be that user from now on, with all that lies in the directory.

    Once it serves, as what it imports until then may be of a Python that only the user of before can read.  Where a
    broker has died before, its user could put links into the directory, which are not followed.
    """
    for file in sorted(directory.iterdir(), key=lambda file: file.name == "socket"):
        # The socket is the last, as with it clients come in, who open the others.
        os.chown(file, uid, gid, follow_symlinks=False)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _serve(server: Server, options: argparse.Namespace) -> None:
    """Serve until the owner is gone."""
    server.start()
    if options.user is not None:
        _become(options.directory, *options.user)
    # It stays open, as its end tells the owner of this process's.
    os.write(options.ready, b"%d" % os.getpid())
    waiting = selectors.DefaultSelector()
    waiting.register(options.lifeline, selectors.EVENT_READ)
    try:
        waiting.register(os.pidfd_open(options.owner), selectors.EVENT_READ)
    except (OSError, AttributeError):
        # Gone already, and then the pipe says so; or the system has no pidfds.
        pass
    threading.Thread(target=lambda: (waiting.select(), server.stop()), name="owner", daemon=True).start()
    server.wait_stopped()
    for name in ("key", "epoch"):
        (options.directory / name).unlink(missing_ok=True)
    forget_ledgers(options.directory)
    try:
        options.directory.rmdir()
    except OSError:
        # Somebody has put something beside it.
        pass


if __name__ == "__main__":
    main()
