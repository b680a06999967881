"""A connection that another process has: what the serving process can do to it.

The serving process knows who it is, sends to it, and ends it; reading and answering is its handler's, in a child.
What is written here goes to the child, which sends it without waiting, as a broadcast; how much of it is pending
stands in the child's slot, so nobody here has to wait to learn that a peer does not keep up.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from longshore.buffers import InputBuffer
from longshore.errors import ClosedError, LimitExceeded, LongshoreError, WriteTimeout
from longshore.limits import NEAR
from longshore.links import LATER
from longshore.strategies.wire import pack_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.framing import Framing
    from longshore.strategies.slots import Slot

__all__ = ("RemoteLink",)


class RemoteLink:
    """A link whose other half is in a child; `tell(verb, *args)` sends to it, from any thread."""

    #: The `strategies.Session` whose connection it is.
    session: Any = None

    def __init__(
        self,
        tell: Callable[..., None],
        slot: Slot,
        peer: str,
        framing: Framing | None,
        *,
        max_pending: int,
        may_wait: Callable[[], bool],
    ) -> None:
        self._tell = tell
        self._slot = slot
        self._peer = peer
        self._max_pending = max_pending
        self._may_wait = may_wait
        self.input = InputBuffer(peer, framing)
        self.output = LATER
        #: Every message goes through the child's own connection.
        self.handled = 0
        #: Bytes that were given to the child.
        self._given = 0
        self._closed: BaseException | None = None
        self._sleepers: list[threading.Event] = []
        #: Whether the child has a framing that only it knows: then nobody else can encode for this peer.
        self._unknown = False

    # -- what the child says -----------------------------------------------------------------------------

    def progressed(self) -> None:
        """The child has sent something, as its slot says."""
        self._wake()

    def reframed(self, framing: Framing | None, known: bool) -> None:
        """The handler has set a framing; `known` is whether it could be sent here."""
        self.input.framing = framing
        self._unknown = not known

    def gone(self) -> None:
        """The child is gone, or about to be."""
        if self._closed is None:
            self._closed = ClosedError(f"the connection to {self._peer} is closed")
        self._wake()

    def _wake(self) -> None:
        for sleeper in tuple(self._sleepers):
            sleeper.set()

    # -- output ----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes written here that the peer's kernel has not taken, as far as is known."""
        # From the slot, not from messages: a peer is not slow because a message of its child waits to be read here.
        return 0 if self._closed is not None else self._given - self._slot.done

    @property
    def ended(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closed is not None or self._unknown

    def _check(self) -> None:
        if self._closed is not None:
            raise self._closed

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Give `data` to the child; above `max_pending_bytes` wait for room before, where the caller may wait."""
        self._check()
        if self.pending > self._max_pending:
            if not self._may_wait():
                raise LimitExceeded(
                    f"{self._peer} has left {self.pending} bytes untaken (Limits.max_pending_bytes={self._max_pending})"
                )
            self._wait(lambda: self.pending <= self._max_pending, timeout)
            self._check()
        self._give(data)

    def _give(self, data: bytes) -> None:
        self._given += len(data)
        self._tell("write", data)
        if self.session is not None and self.pending >= NEAR * self._max_pending:
            self.session.host.near_pending(self.pending)

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        sleeper = threading.Event()
        self._sleepers.append(sleeper)
        try:
            while self._closed is None and not done():
                if not sleeper.wait(timeout):
                    raise WriteTimeout(f"{self._peer} took nothing in {timeout:g} s")
                sleeper.clear()
        finally:
            self._sleepers.remove(sleeper)

    def try_write(self, data: bytes) -> bool:
        """Give `data` to the child unless the peer does not keep up."""
        if self.ended or self.pending > self._max_pending:
            return False
        self._give(data)
        return True

    def flush(self, timeout: float | None = None) -> None:
        """Return once the peer's kernel has everything that was written here, where the caller may wait."""
        if self._may_wait():
            self._wait(lambda: not self.pending, timeout)

    # -- the end ---------------------------------------------------------------------------------------

    def close(self, cause: str = "finished", error: BaseException | None = None) -> None:
        """Have the child end it in order."""
        self._end("close", cause, error)

    def abort(self, cause: str = "aborted", error: BaseException | None = None) -> None:
        """Have the child reset it."""
        self._end("abort", cause, error)

    def _end(self, verb: str, cause: str, error: BaseException | None) -> None:
        if self._closed is None:
            self._closed = error or ClosedError(f"the connection to {self._peer} is closed")
            self._tell(verb, cause, pack_error(error))
            self._wake()

    def end_output(self) -> None:
        """Have the child send the end of our side."""
        self._check()
        self._tell("shutdown", socket.SHUT_WR)

    def end_input(self) -> None:
        """Have the child take no more."""
        self._check()
        self._tell("shutdown", socket.SHUT_RD)

    # -- what only the child can do ----------------------------------------------------------------------

    def wait_input(self, timeout: float | None) -> None:
        """Nothing comes here."""
        self._elsewhere()

    @property
    def socket(self) -> Any:
        """The child has it."""
        self._elsewhere()

    @property
    def tls_object(self) -> Any:
        """The child has it."""
        return None

    def detach(self) -> Any:
        """The child has it."""
        self._elsewhere()

    def start_tls(self, context: Any, *, server_side: bool, hostname: str | None, timeout: float | None) -> None:
        """The child has to do that."""
        self._elsewhere()

    def _elsewhere(self) -> NoReturn:
        raise LongshoreError(
            f"the connection to {self._peer} is with its handler, in a process of its own",
            hint="Here it can be sent to and closed; read it, and ask its socket, in the handler.",
        )
