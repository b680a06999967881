"""Every error Longshore raises, divided by whose fault it is.

The strategy:

* **You** misused something: `ConfigError`, `ClosedError`, `WouldBlock`, `NotHeld`, `NotSerialisable`.  Fix the
  program.
* **The system** refused an address: `AddressError` and its kinds.  Fix the deployment.
* **The peer** did something: `PeerError` and its kinds.  The connection ends, nothing else.
* **A limit or a deadline** was reached: `LimitExceeded`, `Timeout`.  The message names the setting.
* **Longshore** is wrong: `InternalError`.  Report it.

What handlers of the standard library catch keeps working, because each error is also the built-in one
that they expect (`ConnectionError`, `TimeoutError`, `ValueError`, `OSError`).

This file imports nothing of Longshore, so every layer may raise these.
"""

from __future__ import annotations

__all__ = (
    "AddressError",
    "AddressInUse",
    "AddressUnavailable",
    "BrokerLost",
    "ClosedError",
    "ConfigError",
    "ConnectTimeout",
    "DrainTimeout",
    "FramingError",
    "HandshakeTimeout",
    "IncompleteMessage",
    "InternalError",
    "LimitExceeded",
    "LongshoreError",
    "MessageTooLarge",
    "NotHeld",
    "NotSerialisable",
    "PeerClosed",
    "PeerError",
    "PermissionNeeded",
    "ReadTimeout",
    "Timeout",
    "WorkerDied",
    "WouldBlock",
    "WriteTimeout",
)


class LongshoreError(Exception):
    """The root of all errors of Longshore's own.

    `hint` is one sentence that says what to do about it; the command line, and a traceback, print it below the message.
    """

    hint: str = ""

    def __init__(self, *args: object, hint: str = "") -> None:
        super().__init__(*args)
        if hint:
            self.hint = hint
            self.add_note(f"hint: {hint}")


class ConfigError(LongshoreError, ValueError):
    """An option, a handler or a combination of them that cannot work; nothing was started."""


class NotHeld(LongshoreError, RuntimeError, ValueError):
    """What is released, acknowledged or waited on is not held by this handler run, thread or task."""


class NotSerialisable(LongshoreError, TypeError):
    """An object cannot be made into bytes by the serialiser that was asked for; the message names it."""


class AddressError(LongshoreError, OSError):
    """An address cannot be understood, resolved, bound or reached."""

    def __init__(self, *args: object, hint: str = "", errno: int | None = None) -> None:
        super().__init__(*args, hint=hint)
        self.errno = errno


class AddressInUse(AddressError):
    """Somebody else listens there already; the message names the process where the system tells."""


class AddressUnavailable(AddressError):
    """The name does not resolve, the interface does not exist, or nobody answers there."""


class PermissionNeeded(AddressError, PermissionError):
    """The system refuses this address to this user."""


class ClosedError(LongshoreError, OSError):
    """You, or the server that is stopping, closed it before."""


class PeerError(LongshoreError):
    """The other end did something that ends the connection."""


class PeerClosed(PeerError, ConnectionError):
    """The stream ended where another message was asked for."""


class FramingError(PeerError):
    """Bytes that are no message of the connection's framing."""


class MessageTooLarge(FramingError):
    """A message over the framing's `max_size` (bytes), or a line over the reader's limit."""


class IncompleteMessage(FramingError):
    """The stream ended in the middle of a message."""


class LimitExceeded(LongshoreError):
    """A limit of `Limits` was reached; the message names the limit."""


class WouldBlock(LongshoreError):
    """The call would have to wait where nothing may wait; the message names the cure."""


class Timeout(LongshoreError, TimeoutError):
    """A deadline of `Timeouts`, or of the call itself, has passed."""


class ReadTimeout(Timeout):
    """Nothing came in time."""


class WriteTimeout(Timeout):
    """The peer took nothing in time."""


class HandshakeTimeout(Timeout):
    """The TLS handshake was not finished in time."""


class ConnectTimeout(Timeout):
    """No connection was made in time."""


class DrainTimeout(Timeout):
    """The drain's deadline passed while the handler was still at work."""


class BrokerLost(LongshoreError, ConnectionError):
    """The broker of the shared primitives is gone."""


class WorkerDied(LongshoreError):
    """The process that ran the task or the handler has died."""


class InternalError(LongshoreError):
    """Longshore broke a promise of its own; please report it with the traceback."""
