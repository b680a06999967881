"""The `longshore` command.

The only place that knows click, exit statuses and standard error.  An error is one line and a hint, never a
traceback unless `--debug` asks for it; 2 is a mistake on the command line, 1 a failure.  Everything that the
command does is done by the packages below; here it is only asked for.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("main",)

FAILURE, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    Args:
        argv: the arguments after the command's name; those of this process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if sys.stderr is None:
        # Whoever started this has closed it.  What is told goes nowhere then; print() would take standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = _run(arguments)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        status = _report(error, arguments)
    _give_up_on_stderr()
    raise SystemExit(status)


def _give_up_on_stderr() -> None:
    """Drop what cannot be written: on a full disk or a closed terminal Python would make the status 120."""
    try:
        sys.stderr.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["serve"]:
        from longshore.cli.options import read_plain

        plain = read_plain(arguments[1:])
        if plain is not None:
            # Imports make objects that stay, so collecting meanwhile finds nothing and costs a twentieth of the
            # start.  The printer of the first line switches it on again.
            gc.disable()
            from longshore.cli.serve import serve

            return serve(plain)
    from longshore.cli.commands import run

    return run(arguments)


def _report(error: Exception, arguments: list[str]) -> int:
    """Say in one line and a hint what happened; the exit status for it."""
    from longshore.errors import ConfigError, LongshoreError

    if isinstance(error, LongshoreError):
        usage = isinstance(error, ConfigError)
        otherwise = f"longshore {arguments[0]} --help shows every option, with examples." if usage and arguments else ""
        tell(f"longshore: {error}", error.hint or otherwise)
        return USAGE if usage else FAILURE
    if isinstance(error, OSError):
        # The system's own words: with the file's name, where there is one.
        tell(f"longshore: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    else:
        tell(f"longshore: {type(error).__name__}: {error}", "This should not happen; --debug shows the traceback.")
    return FAILURE


def tell(line: str, hint: str = "") -> None:
    """Print one line on standard error, and its hint on a second one."""
    one_line: Callable[[str], str] = lambda text: " ".join(text.split())  # noqa: E731
    print(one_line(line), file=sys.stderr)
    if hint:
        print(f"hint: {one_line(hint)}", file=sys.stderr)
