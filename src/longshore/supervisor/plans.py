"""What a supervisor is to serve, as of one reading of the configuration.

Frozen values, and what can be refused before anything is forked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError, LongshoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from longshore.config import Workers
    from longshore.listeners import Listener
    from longshore.supervisor.anchorage import Target
    from longshore.supervisor.privileges import Identity

__all__ = ("Before", "Plan", "refuse_processes", "words")


@dataclass(frozen=True, slots=True)
class Plan:
    """One reading of the configuration."""

    targets: tuple[Target, ...]
    workers: Workers
    drain: float | None
    """`Timeouts.drain`."""
    build: Callable[[Sequence[Listener], int, int], AbstractContextManager[Any]]
    """Makes the server for these sockets, and what it needs; called once in a worker's life, in the worker, with its
    place (from 0 on) and how many there are."""
    settle: Callable[[bool], object] = bool
    """Told once, in the supervisor, whether this is what is served from now on, or never will be."""


@dataclass(frozen=True, slots=True)
class Before:
    """What was before a reload, for the case that it fails."""

    plan: Plan
    wanted: int
    listeners: list[Listener]
    identity: Identity | None
    since: float
    """When the reload began, on the clock of `time.monotonic`."""


def refuse_processes(strategy: str | None) -> None:
    """Raise ConfigError for the strategy that has processes of its own."""
    if strategy == "processes":
        raise ConfigError(
            'strategy="processes" with workers: it has a process for each connection already',
            hint="Leave workers out, or use another strategy in each of them.",
        )


def words(error: BaseException) -> str:
    """An error and its hint in one line."""
    text = str(error) if isinstance(error, LongshoreError) else f"{type(error).__name__}: {error}"
    hint = getattr(error, "hint", "")
    return f"{text} ({hint})" if hint else text
