"""Which place this process is joined to: at most one, which its handles ask for when they are used.

The only place that reads and writes `LONGSHORE_SHARED`.  A process that is told nothing starts a broker of its own when
the first handle is used; what it starts afterwards finds the address in the environment, and the key beside the socket.
A child of `multiprocessing` may come from a server that was started before, with the environment of then; such a child
is told by what every process of that library inherits.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.machine import OWN

if TYPE_CHECKING:
    from longshore.shared.places import Place
    from longshore.shared.starting import Broker

__all__ = ("VARIABLE", "address", "current", "era", "join", "join_for", "joined", "leave", "own_broker")

#: What names the place to the processes that this one starts.
VARIABLE = "LONGSHORE_SHARED"
_PLACES = {
    "local": ("longshore.shared.local", "LocalPlace"),
    "redis": ("longshore.shared.redis", "RedisPlace"),
    "rediss": ("longshore.shared.redis", "RedisPlace"),
}

_lock = threading.RLock()
_place: Place | None = None
_asked: str | None = None
_broker: Broker | None = None
#: The user and group that a broker of this process's own becomes.
_user: tuple[int, int] | None = None
_era = 0


def current() -> Place:
    """The place of this process; joins the one of the environment, or starts one, if there is none yet."""
    return _place if _place is not None else join()


def joined() -> Place | None:
    """The place of this process, if it has one yet."""
    return _place


def era() -> int:
    """How often this process has left or lost a place: parameters of before say nothing about those of now."""
    return _era


def join(url: str | None = None) -> Place:
    """Join this process, and what it starts from now on, to a place.

    Args:
        url: `local:///path/to/socket` as `address()` gives it, `redis://host:port/db`, or `local://` or None for the
            place of the environment, or else a broker of this process's own.

    Returns:
        The place.  A place that was lost is joined anew, and handles of before work again, on what is there now.

    Raises:
        ConfigError: this process is joined to another place, or the URL is none.
        BrokerLost: nobody serves there.
    """
    global _place, _asked, _broker, _era
    with _lock:
        if _place is not None and not _place.is_lost:
            if url in (None, "local://", _asked, _place.url):
                return _place
            raise ConfigError(
                f"this process is joined to {_place.url} and cannot join {url} too",
                hint="shared.leave() first; its handles then belong to the other place.",
            )
        if url in (None, "local://"):
            url = _told() if _broker is None else None
            if url is None:
                url = _started(lost=_place is not None).url
        scheme = str(url).partition("://")[0]
        if scheme not in _PLACES or "://" not in str(url):
            raise ConfigError(f"{url!r} is no place", hint="There are local:///path and redis://host:port/db.")
        module, name = _PLACES[scheme]
        _era += _place is not None
        place: Any = getattr(import_module(module), name)(url)
        _place, _asked = place, url
        if os.environ.get(VARIABLE) != url:
            # Without a password, which the environment would tell to all that is started.
            os.environ[VARIABLE] = place.url
        _inherited()[VARIABLE] = os.environ[VARIABLE]
        if _broker is not None:
            OWN.add(VARIABLE)
        return _place


def join_for(user: tuple[int, int] | None, url: str | None = None) -> Place:
    """`join`, where what this process starts becomes another user: then its own broker becomes that one, too.

    Args:
        user: the numbers of the user and the group.
    """
    global _user
    _user = user
    return join(url)


def address() -> str:
    """The URL by which another process of this user joins the place of this one; starts one if there is none."""
    return current().url


def leave() -> None:
    """Leave the place: what is held is released, and a broker of this process's own ends."""
    global _place, _asked, _broker, _era
    with _lock:
        _era += 1
        place, _place, _asked = _place, None, None
        broker, _broker = _broker, None
        if place is not None:
            place.close()
        if place is not None or broker is not None:
            os.environ.pop(VARIABLE, None)
            _inherited().pop(VARIABLE, None)
        if broker is not None:
            broker.stop()


def _told() -> str | None:
    """The place of whoever has started this process, if there is one."""
    return _inherited().get(VARIABLE) or os.environ.get(VARIABLE)


def _inherited() -> dict[str, Any]:
    """What processes that `multiprocessing` starts have from this one; not loaded, it has started nothing yet."""
    process = sys.modules.get("multiprocessing.process")
    config: dict[str, Any] = {} if process is None else process.current_process()._config
    return config


def own_broker() -> OwnBroker | None:
    """The broker that this process has started for itself and what it starts; None if there is none."""
    return None if _broker is None else OwnBroker()


class OwnBroker:
    """That broker, for whoever watches it: a supervisor."""

    @property
    def pid(self) -> int:
        """Its process; 0 where there is none any more."""
        return 0 if _broker is None else _broker.pid

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended."""
        return -1 if _broker is None else _broker.fileno()

    def begin(self) -> float:
        """Start another one in its place, once it has ended, and do not wait for it; the seconds that it may take.

        Raises:
            OSError: it could not be run.
        """
        global _place, _era
        from longshore.shared.starting import UP

        with _lock:
            # Whoever uses it here, or in a worker that is forked meanwhile, joins what is there then.
            place, _place = _place, None
            if place is not None:
                _era += 1
                place.close()
            if _broker is not None:
                _broker.begin()
            return UP

    def complete(self) -> None:
        """Take note that it is up.

        Raises:
            BrokerLost: it is not, and was killed.
        """
        with _lock:
            if _broker is not None:
                _broker.complete()


def _started(lost: bool) -> Broker:
    """A broker of this process's own; another one, if the one before was `lost`."""
    global _broker
    from longshore.shared.starting import UP, Broker

    if _broker is None:
        atexit.register(leave)
        _broker = Broker(user=_user)
    elif lost or _broker.has_ended:
        _broker.restart()
    else:
        _broker.complete(UP)
    return _broker


def _forked() -> None:
    """A child is joined, but the broker is its parent's."""
    global _broker, _lock
    _broker = None
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forked)
