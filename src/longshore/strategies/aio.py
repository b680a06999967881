"""Async handlers on asyncio: one task per connection, on the reactor's own thread.

The loop turns the reactor (see `links.tasks.embed`), so async handlers get the reactor's reads, framing,
deadlines and TLS, and the loop is theirs for everything else: tasks, timers, other libraries.  uvloop is
taken where it is installed.  Only this strategy knows tasks; it decides on no limit and accepts nothing.

A connection's task reports nothing itself.  Its end is judged in one place, `_task_ended`, because a task that is
cancelled before its first step never runs a line of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.connection import AsyncConnection
from longshore.errors import ClosedError, FramingError, LongshoreError, PeerClosed
from longshore.events import HandlerFailed
from longshore.framing import NEED_MORE
from longshore.handlers import settled
from longshore.links.tasks import AsyncLink, Embedding, embed
from longshore.strategies.streams import StreamSession, tls_version

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine

    from longshore.config import Limits
    from longshore.handlers import MessageHandler
    from longshore.strategies import Host, Session

__all__ = ("AsyncStrategy",)

#: Messages that a handler which takes batches gets at once.
BATCH = 256
#: Seconds that tasks and threads get to end once the loop is over.
GRACE = 1.0


class _ServedLink(AsyncLink):
    """A link that ends a wait for input where the server drains and nothing is owed."""

    session: _AsyncSession

    def input_came(self, timeout: float | None) -> Awaitable[None]:  # type: ignore[override]  # it is only awaited
        if self.session.connection.draining:
            self._hungry += 1
            try:
                self.session.finish_if_quiet()
            finally:
                self._hungry -= 1
            if self.stream.input.ended and not self.stream.sated():
                return self.done
        return super().input_came(timeout)


class _AsyncSession(StreamSession):
    """One connection and its task."""

    link: _ServedLink
    connection: AsyncConnection
    connection_class = AsyncConnection

    def __init__(self, strategy: AsyncStrategy, sock: socket.socket, peer: str, local: str, tls: Any) -> None:
        host = strategy.host
        link = _ServedLink()
        if host.handler.takes_batches:
            link.share = BATCH
        super().__init__(host, sock, peer, local, tls, link)
        self._strategy = strategy
        self._task: asyncio.Task[None] | None = None
        self._handler: MessageHandler | None = None
        self._hooks = 0
        self._cut = False

    # -- told by the stream ----------------------------------------------------------------------------

    def opened(self) -> None:
        """Start the handler; a later handshake of its own (`start_tls`) starts nothing."""
        super().opened()
        if self._task is not None:
            return
        self.begun(tls_version(self.link))
        self.handler_running = True
        name = f"{self.host.handler.name} {self.connection.id} with {self.peer}"
        self._task = self._strategy.spawn(self._serve(), name)
        self._task.add_done_callback(self._task_ended)

    def drained(self) -> None:
        """There is room again."""
        super().drained()
        self.finish_if_quiet()

    def idled(self) -> None:
        """Call the hook; what it sends keeps the connection."""
        if self._handler is not None:
            self._call_hook(self._handler.idle)

    # -- the handler -----------------------------------------------------------------------------------

    async def _serve(self) -> None:
        handler = self.host.handler
        if not handler.takes_messages:
            await settled(handler.target(self.connection))
            return
        session = self._handler = handler.session_for(self.connection, self.host.facade, self.client_address)
        error: BaseException | None = None
        try:
            error = await self._converse(session)
            self.stream.close("drained" if self.connection.draining else "peer closed")
            await self._delivered()
        except BaseException as failure:
            error = failure
            if isinstance(failure, Exception) and self.stream.state not in ("closing", "closed"):
                self.failed(failure)
                self.stream.close(self._cause(), failure)
                await self._delivered()
            raise
        finally:
            self._handler = None
            if isinstance(error, asyncio.CancelledError):
                error = self.stream.error or self.stopping()
            await settled(session.disconnected(error or self.stream.error))

    async def _converse(self, session: MessageHandler) -> BaseException | None:
        """Handle messages in order until the connection ends; returns why, None if it ended in order."""
        connection = self.connection
        batches = self.host.handler.takes_batches
        await settled(session.connected())
        while self.stream.state not in ("closing", "closed"):
            if runs.touched:
                runs.over()
            try:
                message = await connection.receive()
            except PeerClosed:
                return None
            except FramingError:
                raise
            except (LongshoreError, OSError) as error:
                if self.stream.state in ("closing", "closed"):
                    return self.stream.error
                raise error
            if batches:
                await self._handle_batch(session, message)
            else:
                reply = await settled(session.message(message))
                if reply is not None:
                    await connection.send(reply)
        # If it was closed while a message was handled, nothing is delivered any more.
        return self.stream.error

    async def _handle_batch(self, session: MessageHandler, first: Any) -> None:
        batch = [first]
        fault: LongshoreError | None = None
        while len(batch) < BATCH:
            try:
                message = self.link.input.take_message()
            except PeerClosed:
                break
            except LongshoreError as error:
                fault = error
                break
            if message is NEED_MORE:
                break
            batch.append(message)
            self.connection.messages += 1
        for reply in await settled(session.messages(batch)) or ():
            await self.connection.send(reply)
        if fault is not None:
            raise fault

    async def _delivered(self) -> None:
        """Wait until what was written has left or is lost, so that `disconnected` can be told."""
        try:
            await self.link.flushed(None)
        except (LongshoreError, OSError):
            # It is in `stream.error`, and goes to the hook and to the closing event.
            pass

    def _cause(self) -> str:
        return "finished" if self._failure is None else self._failure[0]

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """The only place that judges how a handler ended."""
        error = None if task.cancelled() else task.exception()
        stream = self.stream
        ended = stream.state in ("closing", "closed")
        if isinstance(error, Exception):
            reported = self._failure is not None and self._failure[1] is error
            # What ended the connection itself is in its closing event already.
            known = ended and (error is stream.error or isinstance(error, ClosedError))
            if not (reported or known):
                self.failed(error)
        if task.cancelled() and self._cut:
            stream.close("cut", self.stopping())
        elif error is not None and not isinstance(error, Exception):
            stream.close("cut", error)
        else:
            drained = self._cause() == "finished" and self.connection.draining and stream.input.ended
            stream.close("drained" if drained else self._cause(), error)
        self.handler_returned()

    # -- hooks besides the task --------------------------------------------------------------------------

    def _call_hook(self, hook: Callable[..., Any], *args: Any) -> None:
        """Call a hook now; what it awaits goes on in a task of its own."""
        try:
            result = hook(*args)
        except Exception as error:
            self._hook_failed(error)
            return
        if inspect.isawaitable(result):
            self._hooks += 1
            name = f"{self.host.handler.name}.{getattr(hook, '__name__', 'hook')} with {self.peer}"
            self._strategy.spawn(self._finish_hook(result), name)

    async def _finish_hook(self, result: Any) -> None:
        try:
            await result
        except Exception as error:
            self._hook_failed(error)
        finally:
            self._hooks -= 1
        self.finish_if_quiet()

    def _hook_failed(self, error: Exception) -> None:
        if self.stream.state in ("closing", "closed") and isinstance(error, (LongshoreError, OSError)):
            return
        self.failed(error)
        self.stream.close(self._cause(), error)
        self.link.arrived()

    # -- the server's side ---------------------------------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """Call the hook, then end as soon as nothing is owed."""
        self.stream.take_arrived()
        self.stream.telling = True
        self.connection.draining = True
        if self.stream.state == "opening":
            self.stream.close("drained")
            return
        if self._handler is not None:
            self._call_hook(self._handler.draining, deadline)
        self.finish_if_quiet()

    def finish_if_quiet(self) -> None:
        """While the server drains: end a connection whose handler waits and owes nothing."""
        stream = self.stream
        if not self.connection.draining or not self.link.waiting or self._hooks or stream.state != "open":
            return
        if self.host.handler.takes_messages:
            if not stream.input.unread and not stream.pending and not stream.input.ended:
                stream.close("drained", linger=False)
        elif not stream.owing and not stream.input.unread:
            stream.end_input()
            self.link.arrived()

    def cut(self) -> None:
        """Cancel the task, flush what goes, and end."""
        self._cut = True
        self.stream.close("cut", self.stopping(), linger=self.is_owed)
        if self._task is not None:
            self._task.cancel()

    def idle_since(self) -> float | None:
        """When the last byte moved, if nothing is owed to this peer now."""
        return self.stream.watch.last_byte if self.link.waiting and not self.is_owed else None


class AsyncStrategy:
    """Runs async handlers in an asyncio loop: one of its own, or one that runs already."""

    name = "async"
    on_streams = True

    def __init__(self, host: Host) -> None:
        self.host = host
        self._loop: asyncio.AbstractEventLoop | None = None
        self._embedding: Embedding | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._datagrams = 0
        self._abandoned: tuple[str, ...] = ()

    def capacity(self, limits: Limits) -> int | None:
        """No bound but `max_connections`."""
        return None

    # -- the loop --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn the reactor in a loop of our own until it is stopped.

        What leaves the loop (KeyboardInterrupt, SystemExit) leaves this, and the loop can be run on.
        """
        if self._loop is None:
            self._loop = _new_loop()
            # One of our own, as the loop's default one is joined without a deadline when the loop ends.
            self._executor = ThreadPoolExecutor(thread_name_prefix="longshore-async")
            self._loop.set_default_executor(self._executor)
            self._embedding = embed(self.host.reactor, self._loop, self._loop.stop)
        # Loops hear signals by themselves only if they were told to handle them.
        with self.host.reactor.hearing_signals():
            while not self.host.reactor.stopped:
                # A handler that calls loop.stop() does not stop the server.
                self._loop.run_forever()
        self._end_loop()

    def attach(self, loop: asyncio.AbstractEventLoop) -> Embedding:
        """Let a loop that runs already turn the reactor; the loop stays its owner's."""
        self._loop = loop
        self._embedding = embed(self.host.reactor, loop)
        return self._embedding

    def _end_loop(self) -> None:
        loop, executor = self._loop, self._executor
        if loop is None or executor is None:
            return
        self._loop = self._executor = None
        if self._embedding is not None:
            self._embedding.close()
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                _, tasks = loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE))
            loop.run_until_complete(loop.shutdown_asyncgens())
            for task in tasks:
                # It is named in the report; asyncio need not complain about it once more.
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._abandoned = tuple(sorted(task.get_name() for task in tasks)) + _end_threads(executor)
        finally:
            loop.close()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task in a copy of the server's context."""
        assert self._loop is not None
        task = self._loop.create_task(work, name=name, context=self.host.context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the contract ------------------------------------------------------------------------------------

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session on a stream."""
        return _AsyncSession(self, sock, peer, local, tls)

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Handle a datagram in a task of its own."""
        if self._datagrams >= self.host.limits.max_connections:
            return False
        self._datagrams += 1
        task = self.spawn(self._handle(data, reply, address), f"{self.host.handler.name} for {peer}")
        task.add_done_callback(lambda _task: self._datagram_done(reply))
        return True

    async def _handle(self, data: bytes, reply: Any, address: Any) -> None:
        try:
            await self.host.handler.call_datagram_async(data, reply, address, self.host.facade)
        except Exception as error:
            reply.failed(error, len(data))

    def _datagram_done(self, reply: Any) -> None:
        self._datagrams -= 1
        reply.handled()

    def call(self, function: Callable[[], Any]) -> None:
        """Call it in a task."""
        self.spawn(self._call(function), getattr(function, "__qualname__", repr(function)))

    async def _call(self, function: Callable[[], Any]) -> None:
        try:
            await settled(function())
        except Exception as error:
            name = getattr(function, "__qualname__", repr(function))
            self.host.emit(HandlerFailed(handler=name, peer=None, error=error))

    def close(self) -> tuple[str, ...]:
        """End the loop if it is ours; the names of tasks and threads that ignored it."""
        self._end_loop()
        if self._embedding is not None:
            self._embedding.close()
            self._embedding = None
        if self._loop is not None:
            # The loop is somebody else's: it goes on, and what ignores its cancellation goes on in it.
            self._abandoned = tuple(sorted(task.get_name() for task in self._tasks if not task.done()))
            self._loop = None
        return self._abandoned


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _end_threads(executor: ThreadPoolExecutor) -> tuple[str, ...]:
    """End the threads of `asyncio.to_thread`, for as long as it is polite to wait."""
    waiter = threading.Thread(
        target=executor.shutdown, kwargs={"cancel_futures": True}, name="longshore-async-end", daemon=True
    )
    waiter.start()
    waiter.join(GRACE)
    return ("a thread of asyncio.to_thread()",) if waiter.is_alive() else ()
