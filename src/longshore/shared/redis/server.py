"""The server of a Redis place: its URL, a connection to it, and what its refusals mean.

The only file that knows redis-py.  A connection is used by one thread, with commands and replies in pairs; nothing is
retried, as nobody could say whether a command was done.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from longshore.errors import AddressUnavailable, BrokerLost, ConfigError, PermissionNeeded
from longshore.shared.places import MAX_ITEM

__all__ = ("LEASE", "RedisServer")

#: Seconds for which a process that does not renew it keeps what it holds.
LEASE = 10.0
#: Seconds of silence after which a server that was asked something is taken for gone: more than the fork of a large one
#: takes, or a packet that is sent again, or a disk that is not too slow, as nothing is retried.
_SILENCE = 2.0
#: Seconds that connecting may take.
_CONNECTING = 5.0
#: The first version with BLMPOP, and with scripts that say what they need of memory.
_OLDEST = 7
_OPTIONS = ("lease", "max_item", "password_file")


class RedisServer:
    """Where the place is.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, or `rediss://` over TLS, with these options after a `?`:
            `lease` (seconds), `max_item` (bytes), `password_file` (a path), and redis-py's own.

    Raises:
        ConfigError: redis-py is missing, or the URL is none.
    """

    def __init__(self, url: str) -> None:
        try:
            self._module: Any = import_module("redis")
        except ImportError as error:
            raise ConfigError(
                f"{_without_secret(url)} needs redis-py, which is not installed",
                hint="pip install 'longshore[redis]'",
            ) from error
        self.url = _without_secret(url)
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self.lease = self._number(options, "lease", LEASE, 0.5)
        self.max_item = int(self._number(options, "max_item", MAX_ITEM, 1))
        file = options.get("password_file")
        rest = {name: value for name, value in options.items() if name not in _OPTIONS}
        try:
            settings = self._module.connection.parse_url(urlunsplit(parts._replace(query=urlencode(rest))))
            # Which redis-py would take for 0.
            int(parts.path.strip("/") or 0)
        except ValueError as error:
            raise ConfigError(f"{self.url}: {error}", hint="It reads redis://host:port/db.") from error
        if file is not None:
            try:
                settings["password"] = Path(file).read_text().strip()
            except OSError as error:
                raise ConfigError(f"{self.url}: the password cannot be read: {error}") from error
        self._make = settings.pop("connection_class", self._module.Connection)
        self._settings = {
            "socket_timeout": _SILENCE,
            "socket_connect_timeout": _CONNECTING,
            "socket_keepalive": True,
            **settings,
            "decode_responses": False,
            "health_check_interval": 0,
            "protocol": 2,
            "client_name": "longshore",
            "retry": self._module.retry.Retry(self._module.backoff.NoBackoff(), 0),
        }
        if self._make is self._module.UnixDomainSocketConnection:
            self._settings.pop("socket_keepalive")

    def connect(self) -> Any:
        """A connection, greeted, on the database of the URL.

        Raises:
            AddressUnavailable: nobody answers there.
            PermissionNeeded: the server wants another password, or none of this user's.
            ConfigError: it has no such database, or is no Redis.
        """
        errors = self._module.exceptions
        connection = self._make(**self._settings)
        try:
            connection.connect()
        except errors.AuthenticationError as error:
            raise PermissionNeeded(
                f"{self.url}: the server refuses the password: {error}",
                hint="redis://user:password@host/db, or ?password_file=/path, which children inherit.",
            ) from error
        except errors.ConnectionError as error:
            raise AddressUnavailable(
                f"{self.url}: nobody answers there: {error}", hint="Is the server running, and does it listen there?"
            ) from error
        except (errors.RedisError, OSError) as error:
            raise AddressUnavailable(f"{self.url}: {error}") from error
        return connection

    def check(self, connection: Any) -> None:
        """See that the server can keep a place.

        Raises:
            ConfigError: it is too old, or may throw away what it keeps.
            PermissionNeeded: it asks for a password, and there is none in the URL.
        """
        errors = self._module.exceptions
        connection.send_command("INFO")
        try:
            lines = connection.read_response().decode(errors="replace").split("\r\n")
        except errors.AuthenticationError as error:
            raise PermissionNeeded(
                f"{self.url}: the server asks for a password",
                hint="redis://user:password@host/db, or ?password_file=/path, which children inherit.",
            ) from error
        except errors.ResponseError as error:
            raise ConfigError(f"{self.url}: the server refuses: {error}") from error
        except (errors.RedisError, OSError) as error:
            raise BrokerLost(f"{self.url}: {error}") from error
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        version = info.get("redis_version", "0")
        if int(version.split(".")[0]) < _OLDEST:
            raise ConfigError(f"{self.url} is Redis {version}, and a place needs {_OLDEST}.0, or Valkey")
        policy = info.get("maxmemory_policy", "noeviction")
        if info.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
            raise ConfigError(
                f"{self.url} has maxmemory-policy {policy}: it would throw away locks and items when memory is short",
                hint="Set maxmemory-policy to noeviction, or to a volatile one.",
            )

    def _number(self, options: dict[str, str], name: str, default: float, least: float) -> float:
        text = options.get(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = -1
        if not value >= least:
            raise ConfigError(f"{self.url}: {name}={text} is no number from {least:g}")
        return value


def _without_secret(url: str) -> str:
    """The URL for messages and for others."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}@{host}" if name else host))
