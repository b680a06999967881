"""What a connection stands on: the part of it that can wait.

`Link` is the contract that `Connection` is written against.  `streams.py` fulfils it over a reactor's stream, and
strategies add how they wait (a greenlet parks, a thread sleeps); `tasks.py` is the same with waits that are awaited;
`sockets.py` fulfils it with blocking calls, for handlers that own a thread and for clients, and `packets.py` where
every read and write is one message.  No link knows framings, handlers or servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from socket import socket as Socket

    from longshore.buffers import InputBuffer

__all__ = ("LATER", "Link", "Output")


class Output(Protocol):
    """Who takes output at once, or not at all."""

    def offer(self, data: Any) -> bool:
        """Queue `data`, if that is bytes and takes no waiting; False, and nothing done, where it takes `write`."""


class _Later:
    """What takes nothing at once: every write goes to the link."""

    def offer(self, data: Any) -> bool:
        """Nothing is done."""
        return False


LATER = _Later()


class Link(Protocol):
    """What a blocking `Connection` needs."""

    input: InputBuffer

    @property
    def handled(self) -> int:
        """Messages that went to a handler without the connection's help."""

    @property
    def pending(self) -> int:
        """Bytes written that the kernel has not taken."""

    @property
    def socket(self) -> Socket:
        """The socket, for its options and names."""

    def wait_input(self, timeout: float | None) -> None:
        """Return once more input came or the stream ended."""

    output: Output

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send or queue `data`, waiting for room where the caller may wait."""

    @property
    def ended(self) -> bool:
        """Whether nothing can be written any more."""

    def try_write(self, data: bytes) -> bool:
        """Send or queue `data` without waiting; False if the peer does not keep up."""

    def flush(self, timeout: float | None = None) -> None:
        """Return once the kernel has everything."""

    def end_output(self) -> None:
        """Send the end of our side."""

    def end_input(self) -> None:
        """Take no more from the peer."""

    def close(self, cause: str = "finished", error: BaseException | None = None) -> None:
        """End in order."""

    def abort(self, cause: str = "aborted", error: BaseException | None = None) -> None:
        """End with a reset."""

    def detach(self) -> tuple[Socket, bytes]:
        """Give the socket away."""

    def start_tls(self, context: Any, *, server_side: bool, hostname: str | None, timeout: float | None) -> None:
        """Speak TLS from here on."""

    @property
    def tls_object(self) -> Any:
        """The `ssl` object, or None."""
