"""`longshore connect`: a peer on one side, standard input and output on the other.

The only place that reads standard input.  One thread prints what the peer sends, as it comes, while the main
thread reads input; whichever side ends first, the other hears of it.  The wire is `longshore.client`'s affair;
what a typed line and a printed one are stands in `conversation.py`.

Prompt, line editing and notices are for a terminal; a pipe gets the peer's bytes and nothing else.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from longshore.cli import FAILURE, INTERRUPTED, tell
from longshore.cli.conversation import conversation
from longshore.errors import ConfigError, LongshoreError, PeerClosed, ReadTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshore.cli.conversation import Conversation
    from longshore.config import TLS
    from longshore.connection import Connection

__all__ = ("ConnectArguments", "connect")

PROMPT = ">>: "

#: Seconds to connect, where the command line says nothing.
CONNECT_TIMEOUT = 10.0
#: Seconds without a reply, after the end of input, that end the command on addresses of messages: nothing
#: there says that no more will come.
QUIET = 1.0
#: The same once there were as many replies as messages, where most likely nothing more is to come.
ANSWERED = 0.1


class ConnectArguments(NamedTuple):
    """What stands on a command line of `longshore connect`."""

    url: str
    framing: str | None = None
    timeout: float | None = None
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    insecure: bool = False
    proxy: int | None = None


def connect(arguments: ConnectArguments) -> int:
    """Connect, and converse until either side ends; the exit status.

    Raises:
        LongshoreError: no connection could be made.
    """
    from longshore.addresses import parse
    from longshore.cli.targets import load_framing
    from longshore.client import connect as dial

    framing = load_framing(arguments.framing)
    address = parse(arguments.url)
    connection = dial(
        arguments.url,
        framing=framing,
        timeout=CONNECT_TIMEOUT if arguments.timeout is None else arguments.timeout,
        tls=_tls(arguments, address.is_tls),
        proxy=arguments.proxy,
    )
    with connection:
        # The deadline was for connecting; a conversation may be silent for as long as it likes.
        connection.settimeout(None)
        session = _Session(connection, conversation(connection, framing, address.is_datagram), arguments)
        return session.run()


def _tls(arguments: ConnectArguments, wanted: bool) -> TLS | None:
    given = {"cafile": arguments.cafile, "certfile": arguments.certfile, "keyfile": arguments.keyfile}
    flags = [f"--{name}" for name, value in given.items() if value] + ["--insecure"] * arguments.insecure
    if not wanted:
        if flags:
            raise ConfigError(
                f"{flags[0]} is for addresses with TLS, and {arguments.url} is none",
                hint="Leave it out, or connect to tls://, or put ?tls=1 behind the address.",
            )
        return None
    from longshore.config import TLS

    if not arguments.insecure:
        return TLS(certfile=arguments.certfile, keyfile=arguments.keyfile, client_ca=arguments.cafile)
    if arguments.cafile:
        raise ConfigError("--insecure and --cafile contradict each other", hint="Leave one of them out.")
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if arguments.certfile:
        try:
            context.load_cert_chain(arguments.certfile, arguments.keyfile)
        except OSError as error:
            raise ConfigError(
                f"TLS cannot use {arguments.certfile!r}: {error}", hint="It must be a readable PEM file, with its key."
            ) from error
    return TLS(context=context)


class _Session:
    """One conversation: an input side on the main thread, an output side on a thread of its own."""

    def __init__(self, connection: Connection, conversation: Conversation, arguments: ConnectArguments) -> None:
        self._connection = connection
        self._conversation = conversation
        self._url = arguments.url
        self._timeout = arguments.timeout
        self._terminal = sys.stdin is not None and sys.stdin.isatty()
        # With the prompt on one and the replies in another place nobody could edit a line.
        self._editing = self._terminal and sys.stdout.isatty()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._sent = 0
        self._received = 0
        self._last = time.monotonic()
        self._wake_read, self._wake_write = os.pipe()
        self._prompting = threading.Lock()
        self._at_prompt = False

    def run(self) -> int:
        """Converse until the peer or the input ends it; the exit status."""
        if self._terminal:
            tls = self._connection.tls
            tell(f"connected to {self._url}{f' ({tls.version()})' if tls else ''}; Ctrl-D ends the input")
        reader = threading.Thread(target=self._receive, name="longshore-connect-output", daemon=True)
        try:
            try:
                reader.start()
                self._send()
                self._wait_end()
            except KeyboardInterrupt:
                if not self._ended.is_set():
                    if self._editing:
                        self._write(b"\n")
                    return INTERRUPTED
            return self._conclude()
        finally:
            if not self._ended.is_set():
                # What is still being received is not wanted any more, and its thread must be over before its
                # connection is.
                self._connection.abort()
            reader.join(1)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _conclude(self) -> int:
        if self._error is None:
            if self._terminal and self._ended.is_set():
                tell(f"longshore: {self._url} ended the connection")
            return 0
        error = self._error
        text = str(error) if isinstance(error, LongshoreError) else getattr(error, "strerror", None) or str(error)
        text = text or type(error).__name__
        hint = getattr(error, "hint", "")
        if isinstance(error, ConnectionRefusedError):
            # On datagram addresses nobody is missed before something was sent.
            hint = hint or "Is the server running, and is this its address?"
        tell(f"longshore: {text if self._url in text else f'{self._url}: {text}'}", hint)
        return FAILURE

    # -- from the peer to standard output --------------------------------------------------------------

    def _receive(self) -> None:
        try:
            for data in self._conversation.replies():
                self._received += 1
                self._last = time.monotonic()
                if not self._show(data):
                    break
        except PeerClosed:
            # The end of the stream, where a message might have begun.
            pass
        except Exception as error:
            self._error = error
        self._ended.set()
        os.write(self._wake_write, b"!")
        with self._prompting:
            if self._at_prompt:
                # Only a signal ends a read of the terminal; the main thread sees that it is not a real Ctrl-C.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _show(self, data: bytes) -> bool:
        with self._prompting:
            if not self._at_prompt:
                return self._write(data)
            import readline

            # The reply goes where the prompt stood, and the prompt, with what was typed so far, below it.
            typed = readline.get_line_buffer().encode(errors="surrogateescape")
            end = b"" if data.endswith(b"\n") else b"\n"
            return self._write(b"\r\x1b[K" + data.replace(b"\n", b"\r\n") + end + PROMPT.encode() + typed)

    def _write(self, data: bytes) -> bool:
        """Write to standard output, past Python's buffer; False once nobody reads it."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(1, view) :]
        except BrokenPipeError:
            # As with any filter in a pipe: who read us has enough.
            return False
        return True

    # -- from standard input to the peer ---------------------------------------------------------------

    def _send(self) -> None:
        for data in self._typed() if self._editing else self._piped():
            if self._ended.is_set():
                return
            try:
                self._sent += self._conversation.say(data)
            except ValueError as error:
                # The line is no message of this framing.  A typing human tries again, a script is wrong.
                if not self._terminal:
                    raise ConfigError(str(error), hint=getattr(error, "hint", "")) from error
                tell(f"longshore: {error}")
            except (OSError, LongshoreError) as error:
                self._sending_failed(error)
                return
        self._last = time.monotonic()
        if not self._ended.is_set():
            try:
                self._conversation.end()
            except (OSError, LongshoreError) as error:
                self._sending_failed(error)

    def _sending_failed(self, error: Exception) -> None:
        # The receiving side knows best: it may have an answer to print, and it sees how the stream ended.
        if not self._ended.wait(QUIET):
            self._error = error
            self._ended.set()

    def _typed(self) -> Iterator[bytes]:
        """What is typed at the prompt, line by line."""
        import readline  # noqa: F401  (input() has editing and history once it is there)

        while not self._ended.is_set():
            with self._prompting:
                self._at_prompt = True
            try:
                line = input(PROMPT)
            except EOFError:
                self._write(b"\n")
                return
            finally:
                # With the lock: once it is released, no signal of the other thread is still on its way.
                with self._prompting:
                    self._at_prompt = False
            yield line.encode(errors="surrogateescape") + b"\n"

    def _piped(self) -> Iterator[bytes]:
        """What comes on standard input, in pieces as the conversation wants them."""
        rest = b""
        while True:
            # The peer's end must be heard while input is silent, so both are waited for.
            ready, _, _ = select.select([0, self._wake_read], [], [])
            if self._wake_read in ready:
                return
            data = os.read(0, 65_536)
            if not self._conversation.by_line:
                if not data:
                    return
                yield data
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line + b"\n"
            if not data:
                if rest:
                    yield rest
                return

    # -- after the end of input ------------------------------------------------------------------------

    def _wait_end(self) -> None:
        while not self._ended.is_set():
            patience = self._timeout
            if self._conversation.ends_when_quiet:
                patience = ANSWERED if self._received >= self._sent else QUIET if patience is None else patience
            if patience is None:
                self._ended.wait()
                return
            left = self._last + patience - time.monotonic()
            if left > 0:
                self._ended.wait(min(left, ANSWERED) if self._conversation.ends_when_quiet else left)
                continue
            if not self._conversation.ends_when_quiet:
                self._error = ReadTimeout(
                    f"{self._url} sent nothing for {patience:g} s after the end of input",
                    hint="Give it longer with --timeout, or leave --timeout out to wait for ever.",
                )
            return
