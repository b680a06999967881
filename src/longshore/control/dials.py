"""Limits and timeouts by name: read, and turned while the server runs.

The names are those of the flags of `longshore serve` (`max_connections`, `idle_timeout`), and values are the texts
that stand behind the flags.  So what can be set is declared once, in `longshore.config`.

It changes nothing by itself: it says what the new values are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.settings import Option, near_match, options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from longshore.config import Limits, Timeouts

__all__ = ("read", "turned")


def _dials() -> dict[str, Option]:
    return {option.name: option for option in options() if option.section in ("limits", "timeouts")}


def read(limits: Limits, timeouts: Timeouts) -> dict[str, Any]:
    """All limits and timeouts as JSON values, by name; seconds, bytes, None where there is no limit."""
    owners = {"limits": limits, "timeouts": timeouts}
    return {name: _plain(getattr(owners[option.section], option.key)) for name, option in _dials().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return list(value) if isinstance(value, tuple) else value


def turned(limits: Limits, timeouts: Timeouts, values: Mapping[str, str]) -> tuple[Limits, Timeouts]:
    """The limits and timeouts with `values` (texts, by name) in them; a list is separated by spaces.

    Raises:
        ConfigError: a name that does not exist, or a value that cannot be used; nothing is changed then.
    """
    dials = _dials()
    found: dict[str, dict[str, Any]] = {"limits": {}, "timeouts": {}}
    for name, text in values.items():
        option = dials.get(name.replace("-", "_"))
        if option is None:
            raise ConfigError(f"there is no limit {name!r}", hint=near_match(name, tuple(dials), "See limits get."))
        texts = text.split() if option.kind == "tuple" else [text]
        found[option.section][option.key] = option.parse(texts, f"{name}={text}")
    return replace(limits, **found["limits"]), replace(timeouts, **found["timeouts"])
