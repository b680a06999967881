"""A command line of `longshore serve`, read without the command line library.

Importing click takes longer than everything else that a server does before it accepts, and all it would do for
a command line without a mistake is to pair flags with values.  So that is done here, from the same table of
options that click's flags are made of; whatever is not plain (help, a mistake, an abbreviation) is None here
and goes to click, which explains it.

Values stay texts: `settings.py` understands them, whichever way they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from longshore.settings import options

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("ServeArguments", "read_plain")


class ServeArguments(NamedTuple):
    """What stands on a command line of `longshore serve`."""

    target: str
    values: dict[str, list[str]]
    """By `Option.name`, each with all that was given, in its order."""
    config: str | None = None
    debug: bool = False


def read_plain(arguments: Sequence[str]) -> ServeArguments | None:
    """The arguments after `serve`, or None if they need click."""
    names = {option.flag: option.name for option in options()}
    targets: list[str] = []
    values: dict[str, list[str]] = {}
    config: str | None = None
    debug = False
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            targets.append(argument)
            continue
        if argument == "--debug":
            debug = True
            continue
        flag, equals, value = argument.partition("=")
        if not equals:
            value = next(rest, "-")
            if value.startswith("-"):
                # A missing value, most likely; a value that really begins with a dash is as safe with click.
                return None
        if flag == "--config":
            config = value
        elif flag in names:
            values.setdefault(names[flag], []).append(value)
        else:
            return None
    return ServeArguments(targets[0], values, config, debug) if len(targets) == 1 else None
