"""The lifespan of a server: what a user's context manager sets up before the first accept.

The only place that enters and leaves it; sync ones anywhere, async ones under the `async` strategy.
"""

from __future__ import annotations

import inspect
from typing import Any

from longshore.errors import ConfigError

__all__ = ("Lifespan",)


class Lifespan:
    """A context manager, or a function that returns one; None is one that does nothing."""

    def __init__(self, given: Any, strategy: str) -> None:
        self._given = given
        self._strategy = strategy
        self._manager: Any = None
        self._entered = False
        self._value: Any = None

    def prepare(self, server: Any) -> None:
        """Make the context manager, unless it was made.

        Raises:
            ConfigError: it is none, or an async one where nothing can await it.
        """
        given = self._given
        if given is None or self._manager is not None:
            return
        if not hasattr(given, "__enter__") and not hasattr(given, "__aenter__") and callable(given):
            given = given(server) if inspect.signature(given).parameters else given()
        self._manager = given
        if self.is_async and self._strategy != "async":
            raise ConfigError(f"lifespan={given!r} is an async context manager", hint='It needs strategy="async".')
        if not self.is_async and not hasattr(given, "__enter__"):
            raise ConfigError(f"lifespan={given!r} is no context manager")

    @property
    def is_async(self) -> bool:
        """Whether it has to be awaited."""
        return self._manager is not None and hasattr(self._manager, "__aenter__")

    def enter(self) -> Any:
        """Enter a sync one, unless it was; returns its value."""
        if self._manager is not None and not self._entered:
            self._value = self._manager.__enter__()
            self._entered = True
        return self._value

    def exit(self) -> None:
        """Leave a sync one, if it was entered."""
        if self._entered:
            self._entered = False
            self._manager.__exit__(None, None, None)

    async def aenter(self) -> Any:
        """Enter an async one; returns its value."""
        value = await self._manager.__aenter__()
        self._entered = True
        return value

    async def aexit(self) -> None:
        """Leave an async one, if it was entered."""
        if self._entered:
            self._entered = False
            await self._manager.__aexit__(None, None, None)
