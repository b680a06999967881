"""Listeners: bound sockets, ready to accept or to receive.

The only place that binds, and that puts a Unix socket's file in place and takes it away.  Two rules: `bind` gives
all sockets of an address or none, and what it refuses it explains (`refusals.py`), with the process that is in the way
where the system tells.

Unix socket files.  A file that a dead server left behind must be replaced, one that is in use must not, and two
servers that start at once must not take each other's place.  So whoever binds `app.sock` first locks
`app.sock.lock` with flock(2) and keeps that lock as long as it listens; the kernel gives it back however the
process ends.  Under the lock the socket is bound as `app.sock.new`, gets its mode, starts to listen, and only then
takes its name: nobody ever sees a file that does not answer, or that answers to too many.

Nothing here accepts, receives or knows a reactor; TLS is a flag.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

from longshore.addresses import (
    PATH_LIMIT,
    Address,
    AddressOptions,
    Endpoint,
    format_url,
    inherited_descriptors,
    parse,
    resolve,
)
from longshore.errors import (
    AddressError,
    AddressInUse,
    AddressUnavailable,
    ConfigError,
    LongshoreError,
    PermissionNeeded,
)
from longshore.owners import lock_holders, peer_of, temporary_name, unix_holders
from longshore.refusals import in_use, refuse_to_bind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("Listener", "bind", "inherit", "url_of")

#: What we ask listen(2) for: the kernel caps it at net.core.somaxconn, so a large number means "your own limit".
BACKLOG: Final = max(socket.SOMAXCONN, 4096)

#: Bytes that the kernel takes for a peer beyond what is on its way to it (TCP_NOTSENT_LOWAT in tcp(7)), up to 4 MiB
#: otherwise (net.ipv4.tcp_wmem): so a peer that never reads is noticed before thousands of replies are made for it.
UNSENT: Final = 131_072

#: Seconds that the kernel holds a connection back for its first bytes (`defer=1`).
DEFER: Final = 30

#: A port that is free on IPv4 may be taken on IPv6, so port 0 for both is tried this often.
PORT_TRIES: Final = 16

# The socket module lacks some of these on some versions; the numbers are Linux's.
_IP_PKTINFO: Final = getattr(socket, "IP_PKTINFO", 8)
_IPV6_RECVPKTINFO: Final = getattr(socket, "IPV6_RECVPKTINFO", 49)

_AF_UNIX: Final = getattr(socket, "AF_UNIX", None)
_KINDS: Final = {
    int(socket.SOCK_STREAM): "stream",
    int(socket.SOCK_SEQPACKET): "seqpacket",
    int(socket.SOCK_DGRAM): "datagram",
    int(socket.SOCK_RAW): "datagram",
    int(socket.SOCK_RDM): "datagram",
}
_SCHEMES: Final = {
    (family, int(kind)): scheme
    for scheme, names, kind in (
        ("tcp", ("AF_INET", "AF_INET6"), socket.SOCK_STREAM),
        ("udp", ("AF_INET", "AF_INET6"), socket.SOCK_DGRAM),
        ("raw", ("AF_INET", "AF_INET6"), socket.SOCK_RAW),
        ("unix", ("AF_UNIX",), socket.SOCK_STREAM),
        ("unixgram", ("AF_UNIX",), socket.SOCK_DGRAM),
        ("seqpacket", ("AF_UNIX",), socket.SOCK_SEQPACKET),
        ("vsock", ("AF_VSOCK",), socket.SOCK_STREAM),
        ("rdm", ("AF_TIPC",), socket.SOCK_RDM),
    )
    for family in (getattr(socket, name, None) for name in names)
    if family is not None
}


class Listener:
    """One bound socket: non-blocking, not inherited by programs that are exec'd, and listening if it accepts.

    Attributes:
        socket: The socket itself.
        address: The address it was bound to; None for a ready-made socket.
        options: The address's options, or their defaults.
        url: The bound URL, with the real port.  (For a Unix path, getsockname() gives the temporary name under which
            the file was made, also on accepted connections: show this instead.)
        scheme: The scheme of `url`; for inherited and ready-made sockets, what the socket turned out to be.
        kind: "stream", "seqpacket" (both accept) or "datagram" (receives).
        family: The address family, as the plain number.
        hands_down: Whether accepted connections have the options of connections from the listening socket.
        is_tls: Whether its connections begin with a TLS handshake.
    """

    __slots__ = ("_file", "address", "family", "hands_down", "is_tls", "kind", "options", "scheme", "socket", "url")

    #: Connections that may be accepted in one turn of a reactor, so that a storm here leaves time for all.
    burst = 64

    def __init__(
        self, sock: socket.socket, scheme: str, address: Address | None, file: _SocketFile | None = None
    ) -> None:
        self.socket = sock
        self.address = address
        self.options = AddressOptions() if address is None else address.options
        self.scheme = scheme
        self.family = int(sock.family)
        self.kind = _KINDS[_type(sock)]
        self.hands_down = self.kind == "stream" and _set_connection_options(sock, self.options)
        self.is_tls = scheme == "tls" or self.options.tls
        if scheme == "rdm" and address is not None:
            # TIPC's getsockname(2) gives the number of the socket, never the name that it was bound to.
            self.url = address.text
        else:
            self.url = format_url(scheme, sock) if file is None else file.url
        if self.options.tls:
            # Whoever connects to this URL must speak TLS, which the scheme does not say.
            self.url += "?tls=1"
        self._file = file

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection, in non-blocking mode, and its peer's address.

        Raises:
            OSError: what accept(2) says, as it is.
        """
        sock, address = self.socket.accept()
        sock.setblocking(False)
        return sock, address

    #: For a reactor that calls accept(2) itself; whoever overrides `accept` does not have it.
    accept.is_plain = True  # type: ignore[attr-defined]

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.socket.fileno() < 0

    @property
    def descriptors(self) -> set[int]:
        """The socket's, and its file's lock's; none once it is closed."""
        lock = None if self._file is None else self._file.lock
        return {self.socket.fileno(), -1 if lock is None else lock} - {-1}

    @property
    def lock(self) -> int | None:
        """The descriptor of the lock on its Unix socket file; None if it has none."""
        return None if self._file is None else self._file.lock

    def hand_over(self) -> None:
        """The Unix socket file belongs to another process from now on, which has the lock too: leave it there."""
        file, self._file = self._file, None
        if file is not None and file.lock is not None:
            os.close(file.lock)

    def close(self) -> None:
        """Close the socket; also remove its Unix socket file, if this process made it and it is still the same.

        May be called again.  A ready-made socket is closed too: whoever gave it away gave it for good.
        """
        file, self._file = self._file, None
        if file is not None:
            file.remove()
        self.socket.close()

    def __repr__(self) -> str:
        return f"<Listener {self.url}{' closed' if self.closed else ''}>"


def bind(target: str | Address | socket.socket | Listener) -> list[Listener]:
    """Bind `target`: a URL, a parsed address, or a socket or listener that is bound already.

    Several listeners come back where an address means several sockets: IPv4 and IPv6, a name with more than one
    address, a systemd name with more than one socket.  With port 0 all of them get the same port.  IPv6 that is
    switched off is left out as long as IPv4 is there.

    Raises:
        ConfigError: the URL is wrong, or the socket is of a kind that cannot be served.
        AddressInUse: somebody else has it; the message names the process where the system tells.
        PermissionNeeded: the system does not let this user have it.
        AddressUnavailable: the name is unknown, the address is not this machine's, or the kernel lacks the family.
        AddressError: anything else that the system refuses.
    """
    if isinstance(target, Listener):
        return [target]
    if isinstance(target, socket.socket):
        return [_adopt(target, None)]
    address = target if isinstance(target, Address) else parse(target)
    if address.scheme in ("fd", "systemd"):
        return _all_or_none(_inherit(address, each) for each in inherited_descriptors(address))
    endpoints = resolve(address, True)
    for _ in range(PORT_TRIES - 1):
        try:
            return _all_or_none(_bind_each(address, endpoints))
        except AddressInUse:
            if address.port != 0 or len(endpoints) == 1:
                raise
    return _all_or_none(_bind_each(address, endpoints))


def url_of(sock: socket.socket) -> str:
    """The URL under which a bound socket that somebody else made is reached; its plain name where there is none."""
    scheme = _SCHEMES.get((sock.family, _type(sock)))
    return str(sock.getsockname()) if scheme is None else format_url(scheme, sock)


def inherit(descriptor: int, target: str, url: str, lock: int | None = None) -> Listener:
    """The listener that another process bound for the URL `target`, got as `url`, and passed on as `descriptor`.

    With the descriptor of its `lock`, its Unix socket file is this process' from now on, as it was the other's.
    """
    address = parse(target)
    file = None if lock is None else _SocketFile.taken_over(address, url, lock)
    listener = Listener(socket.socket(fileno=descriptor), url.partition("://")[0], address, file)
    listener.socket.set_inheritable(False)
    # The name of a Unix socket is one under which it was only made, and its file remains its binder's.
    listener.url = url
    return listener


def _all_or_none(listeners: Iterable[Listener]) -> list[Listener]:
    done: list[Listener] = []
    try:
        for listener in listeners:
            done.append(listener)
    except BaseException:
        for listener in done:
            listener.close()
        raise
    return done


def _bind_each(address: Address, endpoints: list[Endpoint]) -> Iterator[Listener]:
    port = 0
    bound = False
    left_out: AddressUnavailable | None = None
    for endpoint in endpoints:
        if port and address.port == 0:
            name = endpoint.sockaddr
            endpoint = dataclasses.replace(endpoint, sockaddr=(name[0], port, *name[2:]))
        try:
            listener = _bind_one(address, endpoint)
        except AddressUnavailable as error:
            # /etc/hosts and getaddrinfo(3) name IPv6 addresses also where the kernel has IPv6 switched off.
            if endpoint.family != socket.AF_INET6:
                raise
            left_out = error
            continue
        if endpoint.family in (socket.AF_INET, socket.AF_INET6):
            port = listener.socket.getsockname()[1]
        bound = True
        yield listener
    if left_out is not None and not bound:
        raise left_out


def _bind_one(address: Address, endpoint: Endpoint) -> Listener:
    file: _SocketFile | None = None
    try:
        sock = socket.socket(endpoint.family, endpoint.type, endpoint.proto)
    except OSError as error:
        refuse_to_bind(address, endpoint, error)
    try:
        sock.setblocking(False)
        _set_options(address, sock)
        if endpoint.family == _AF_UNIX and isinstance(endpoint.sockaddr, str) and endpoint.sockaddr[0] != "\0":
            file = _SocketFile(address, endpoint.sockaddr)
            file.bind(sock)
        else:
            sock.bind(endpoint.sockaddr)
        # Two sockets with SO_REUSEADDR may be bound to one port as long as neither listens, so listen(2) too can
        # find the address in use, and belongs under the same translation of errors.
        if _KINDS[_type(sock)] != "datagram":
            sock.listen(address.options.backlog or BACKLOG)
        if file is not None:
            file.publish()
        return Listener(sock, address.scheme, address, file)
    except BaseException as error:
        if file is not None:
            file.remove()
        sock.close()
        if isinstance(error, OSError) and not isinstance(error, LongshoreError):
            refuse_to_bind(address, endpoint, error)
        raise


def _set_options(address: Address, sock: socket.socket) -> None:
    options = address.options
    if address.scheme in ("tcp", "tls"):
        # Without it a restart must wait until the old connections have left TIME_WAIT.  It does not let anybody
        # take a port that is being listened on, as it would for UDP, where it is therefore not set.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, _constant(address, "SO_REUSEPORT"), 1)
    if options.defer:
        sock.setsockopt(socket.IPPROTO_TCP, _constant(address, "TCP_DEFER_ACCEPT"), DEFER)
    if sock.family == socket.AF_INET6 and address.scheme in ("tcp", "tls", "udp"):
        # IPv4 has a socket of its own: a shared one shows its peers as ::ffff:127.0.0.1, and whether it is shared
        # depends on a setting of the system.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if address.scheme in ("udp", "raw"):
        _ask_for_destinations(sock)


def _set_connection_options(sock: socket.socket, options: AddressOptions) -> bool:
    """Give a listening socket the options of its connections; whether these will have them.

    On Linux an accepted connection begins as a copy of the listening socket, these included, which saves calls of the
    system for each.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    if sys.platform != "linux":
        return not options.nodelay
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        if options.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        # Not TCP, but another protocol of streams.
        return False
    return True


def _constant(address: Address, name: str) -> int:
    value = getattr(socket, name, None)
    if value is None:
        raise ConfigError(f"{address}: this system has no {name}", hint="Leave the option out.")
    return int(value)


def _ask_for_destinations(sock: socket.socket) -> None:
    """Have each datagram say which of our addresses it was sent to: a reply must leave from that one."""
    try:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    except OSError:
        # Not on this system: replies leave from the address that routing picks.
        pass


def _type(sock: socket.socket) -> int:
    # `sock.type` is what the object was told; the kernel knows.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)


def _inherit(address: Address, descriptor: int) -> Listener:
    try:
        sock = socket.socket(fileno=descriptor)
    except (OSError, OverflowError, ValueError) as error:
        what = "is not a socket" if getattr(error, "errno", None) == errno.ENOTSOCK else "is not open in this process"
        raise AddressError(
            f"{address}: descriptor {descriptor} {what}",
            hint="Whoever starts this process must pass it an open, bound socket under that number.",
            errno=getattr(error, "errno", None),
        ) from error
    try:
        return _adopt(sock, address)
    except BaseException:
        # It was not taken, so it is not ours to close.
        sock.detach()
        raise


def _adopt(sock: socket.socket, address: Address | None) -> Listener:
    """A listener over a socket that somebody else made, which is left alone unless it can be served."""
    what = str(address) if address is not None else f"{sock!r}"
    if sock.fileno() < 0:
        raise ConfigError(f"{what}: the socket is closed")
    if hasattr(sock, "do_handshake"):
        raise ConfigError(
            f"{what}: a socket wrapped in TLS would do its handshakes while accepting, one after the other",
            hint=f'Pass the plain one as "fd://{sock.fileno()}?tls=1", and your context as tls=TLS(context=...).',
        )
    scheme = _SCHEMES.get((sock.family, _type(sock)))
    if scheme is None:
        raise ConfigError(f"{what}: sockets of this family and type cannot be served")
    accepts = _KINDS[_type(sock)] != "datagram"
    if accepts and _connected(sock):
        raise ConfigError(
            f"{what}: this is one connection, not a socket that accepts them",
            hint="Under systemd, set Accept=no in the .socket unit.",
        )
    name = sock.getsockname()
    # A raw socket that is bound to nothing receives everything, so only the others can lack a name.
    if not name or (scheme in ("tcp", "udp") and not name[1]):
        raise ConfigError(f"{what}: the socket is not bound", hint="Call its bind() first, or pass a URL.")
    backlog = None if address is None else address.options.backlog
    if accepts and (backlog is not None or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        try:
            # On a socket that listens already this only changes the backlog.
            sock.listen(backlog or BACKLOG)
        except OSError as error:
            refuse_to_bind(what, Endpoint(sock.family, _type(sock), 0, name), error)
    sock.setblocking(False)
    sock.set_inheritable(False)
    if scheme in ("udp", "raw"):
        _ask_for_destinations(sock)
    return Listener(sock, scheme, address)


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


class _SocketFile:
    """The file of one bound Unix socket, and the lock beside it; see the top of this module."""

    __slots__ = ("_address", "_inode", "_pid", "lock", "path", "temporary", "url")

    def __init__(self, address: Address, path: str) -> None:
        self._address = address
        self._inode: tuple[int, int] | None = None
        self._pid = os.getpid()
        self.path = path
        self.temporary = temporary_name(path)
        self.url = address.scheme + address.text.partition("?")[0][len(address.scheme) :]
        # Looked at before anything is made, so that a mistaken path leaves no lock file behind.
        _is_stale(address, path)
        self.lock: int | None = self._take_lock()

    @classmethod
    def taken_over(cls, address: Address, url: str, lock: int) -> _SocketFile:
        """The file that another process made, with the lock that it held and passed on."""
        file = cls.__new__(cls)
        file._address = address
        file._pid = os.getpid()
        file.path = url.partition("://")[2]
        file.temporary = temporary_name(file.path)
        file.url = url
        file.lock = lock
        os.set_inheritable(lock, False)
        found = _status(file.path)
        file._inode = None if found is None else (found.st_dev, found.st_ino)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % file._pid, 0)
        return file

    def bind(self, sock: socket.socket) -> None:
        """Bind `sock` to the temporary name, with the mode of the address."""
        mode = self._address.options.mode
        if mode is not None and sys.platform == "linux":
            # Linux takes the file's first mode from the socket's own, so it is never wider than asked for, not even
            # before chmod; chmod then adds what the umask took away.
            os.fchmod(sock.fileno(), mode)
        found = _status(self.temporary)
        if found is not None:
            # We hold the lock, so whoever made it died before it could take its name.
            _require_socket(self._address, self.temporary, found)
            os.unlink(self.temporary)
        if len(os.fsencode(self.temporary)) <= PATH_LIMIT:
            sock.bind(self.temporary)
        else:
            # The path is within the limit, its temporary name is not: reach the directory by a short name.
            folder, name = os.path.split(self.temporary)
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.bind(f"/proc/self/fd/{directory}/{name}")
            finally:
                os.close(directory)
        status = os.lstat(self.temporary)
        self._inode = (status.st_dev, status.st_ino)
        if mode is not None:
            os.chmod(self.temporary, mode)

    def publish(self) -> None:
        """Give the bound file its real name, over a stale one if there is one, and over nothing else."""
        while True:
            if _is_stale(self._address, self.path):
                os.rename(self.temporary, self.path)
                return
            try:
                # Unlike rename(2), link(2) fails where something has appeared since we looked: a program that does
                # not know our lock may have bound the name, and then it is looked at again.
                os.link(self.temporary, self.path)
            except FileExistsError:
                continue
            except OSError:
                os.rename(self.temporary, self.path)  # a file system without hard links
                return
            os.unlink(self.temporary)
            return

    def remove(self) -> None:
        """Take the file and the lock away, if this process made them; then give the lock back."""
        lock, self.lock = self.lock, None
        if lock is None:
            return
        try:
            # A forked child has the same lock and must not remove what its parent still serves.
            if self._pid == os.getpid():
                for name in (self.path, self.temporary):
                    _unlink_if(name, self._inode)
                status = os.fstat(lock)
                _unlink_if(self.path + ".lock", (status.st_dev, status.st_ino))
        finally:
            # Closing is enough; LOCK_UN would also unlock it for a parent or child that still listens.
            os.close(lock)

    def _take_lock(self) -> int:
        name = self.path + ".lock"
        while True:
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                held = os.pread(lock, 32, 0)
                if not stat.S_ISREG(os.fstat(lock).st_mode) or (held and not held.strip().isdigit()):
                    raise AddressError(
                        f"{self._address}: {name} is there, and it is no lock file of this program",
                        hint="Move it away, or choose another path.",
                    )
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise in_use(self._address, lock_holders(held, self.path, self.temporary)) from None
                # Whoever closes removes the file before it gives up the lock, so the file that we opened may be
                # gone and another in its place: only a lock on the file that bears the name counts.
                found, ours = _status(name), os.fstat(lock)
                if found is not None and (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, b"%d\n" % self._pid, 0)
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _require_socket(address: Address, path: str, found: os.stat_result) -> None:
    if not stat.S_ISSOCK(found.st_mode):
        raise AddressError(
            f"{address}: {path} is there, and it is not a socket; it is left alone",
            hint="Move it away, or choose another path.",
            errno=errno.EEXIST,
        )


def _is_stale(address: Address, path: str) -> bool:
    """Whether a dead socket's file stands at `path` (False: nothing does); anything else there raises."""
    found = _status(path)
    if found is None:
        return False
    _require_socket(address, path, found)
    # connect(2) with SOCK_DGRAM is a question without a trace: on a live socket of another type it fails with
    # EPROTOTYPE, on a live datagram socket it succeeds and sends nothing, on a dead one it is refused.  A real
    # connection would show up at the other server.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return True
            if error.errno == errno.ENOENT:
                return False
            if error.errno == errno.EACCES:
                raise PermissionNeeded(
                    f"{address}: {path} is there, and this user may not ask whether it is in use",
                    hint="Remove it if nothing serves it, or run as its owner.",
                    errno=error.errno,
                ) from error
    raise in_use(address, unix_holders(path, temporary_name(path)) or peer_of(path))


def _unlink_if(path: str, inode: tuple[int, int] | None) -> None:
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == inode:
            os.unlink(path)
    except OSError:
        # Gone already, or the privileges to remove it were dropped; the next start finds it stale.
        pass
