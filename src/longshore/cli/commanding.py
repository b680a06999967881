"""The commands for running servers as click knows them: `ctl`, `top`, and `unit` for their service manager.

Beside `commands.py`, which adds them to the others.  What each does stands in the file of its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from longshore.cli.completion import files, one_of
from longshore.control.census import SORTS
from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("COMMANDS",)

_CTL_EPILOG = """\b
Examples:
  longshore serve app.py --bind tcp://:5000 --workers 4 --control /run/app.sock
  longshore ctl --control /run/app.sock status
  longshore ctl connections --sort pending --limit 20
  longshore ctl limits set max_connections=500 idle_timeout=60
  longshore ctl trace 192.0.2.7
  longshore ctl status --json

\b
Without --control the socket is looked for where LONGSHORE_CONTROL says, then in
XDG_RUNTIME_DIR, where --control default makes it.  Only the server's own user and
root may command.  Exit status: 0, 1 if the server refuses or cannot be reached, 2
for a mistake on the command line."""


_TOP_EPILOG = """\b
Keys: s sorts by the next column, r reverses, / filters peers, k ends the connection
under the cursor, p stands still, q quits.  The socket is found as longshore ctl
finds it."""


def _control() -> click.Option:
    return click.Option(
        ["--control"], metavar="PATH", help="the server's control socket  [LONGSHORE_CONTROL]", shell_complete=files
    )


def _json() -> click.Option:
    return click.Option(["--json", "as_json"], is_flag=True, help="print JSON")


def _debug() -> click.Option:
    return click.Option(["--debug"], is_flag=True, help="show tracebacks instead of one line and a hint")


def _command(
    name: str, verb: str, help: str, *params: click.Parameter, read: Callable[..., dict[str, Any]] | None = None
) -> click.Command:
    """A command that asks one thing; `read` makes the verb's arguments of click's."""

    def run(control: str | None, as_json: bool, debug: bool, **given: Any) -> int:
        from longshore.cli.ctl import CtlArguments, ctl

        context = click.get_current_context()
        above: dict[str, Any] = context.find_root().meta.get("longshore.ctl", {})
        count = given.pop("count", None)
        arguments = given if read is None else read(**given)
        return ctl(
            CtlArguments(verb, arguments, control or above.get("control"), as_json or bool(above.get("json")), count)
        )

    return click.Command(name, callback=run, help=help, params=[*params, _control(), _json(), _debug()])


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    values = {}
    for each in settings:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{each!r} is no NAME=VALUE, such as max_connections=500.")
        values[name.strip().replace("-", "_")] = value.strip()
    return {"values": values}


def _remember(control: str | None, as_json: bool) -> None:
    click.get_current_context().find_root().meta["longshore.ctl"] = {"control": control, "json": as_json}


def _show_top(control: str | None, interval: float, debug: bool) -> int:
    try:
        from longshore.cli.top import top
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("textual", "rich"):
            raise
        raise ConfigError(
            "longshore top needs the textual package, which is not installed", hint="pip install longshore[top]"
        ) from None
    return top(control, interval)


def _group(name: str, help: str, *commands: click.Command, **options: Any) -> click.Group:
    return click.Group(name, {each.name or "": each for each in commands}, help=help, **options)


_ctl = _group(
    "ctl",
    "Watch and command a running server, over its control socket.",
    _command("status", "status", "Show the server and its workers."),
    _command(
        "connections",
        "connections",
        "List open connections, the greatest first.",
        click.Option(["--peer"], default="", help="only peers whose address contains this"),
        click.Option(
            ["--sort"], type=click.Choice(SORTS), default="age", help="by what  [age]", shell_complete=one_of(SORTS)
        ),
        click.Option(["--limit"], type=click.IntRange(min=1), default=100, metavar="N", help="at most N  [100]"),
    ),
    _group(
        "limits",
        "Read or set limits and timeouts while the server runs.",
        _command("get", "limits", "Show all limits and timeouts."),
        _command(
            "set",
            "turn",
            "Set limits and timeouts in every worker, until the next reload.",
            click.Argument(["settings"], nargs=-1, required=True, metavar="NAME=VALUE..."),
            read=_settings,
        ),
    ),
    _command("pause", "pause", "Accept nothing until resume; what is open goes on."),
    _command("resume", "resume", "Accept again."),
    _command("drain", "drain", "Let everybody finish, and end the server."),
    _command("stop", "stop", "End the server now."),
    _command("reload", "reload", "Start new workers with what is on disk now, then let the old ones finish."),
    _group(
        "workers",
        "One worker more or less.",
        _command("add", "add", "Start one worker more."),
        _command("remove", "remove", "Let one worker finish, and do not replace it."),
        _command(
            "kill",
            "kill",
            "Kill worker N; another one takes its place.",
            click.Argument(["worker"], type=click.IntRange(min=1), metavar="N"),
        ),
    ),
    _group(
        "connection",
        "One connection.",
        _command(
            "kill",
            "cut",
            "End the connection ID, as `ctl connections` shows it.",
            click.Argument(["connection"], metavar="ID"),
        ),
    ),
    _command(
        "trace",
        "trace",
        "Show what happens to PEER (an address, or its host), as it happens.",
        click.Argument(["peer"]),
        click.Option(["--count"], type=click.IntRange(min=1), metavar="N", help="end after N events"),
    ),
    params=[_control(), _json()],
    callback=_remember,
    epilog=_CTL_EPILOG,
    short_help="Watch and command a running server.",
)

_top = click.Command(
    "top",
    callback=_show_top,
    help="Show a running server live in the terminal: workers, connections, rates.",
    short_help="Watch a running server live.",
    epilog=_TOP_EPILOG,
    params=[
        _control(),
        click.Option(
            ["--interval"],
            type=click.FloatRange(min=0.1),
            default=1.0,
            metavar="SECONDS",
            help="how often it looks  [1]",
        ),
        _debug(),
    ],
)

COMMANDS: tuple[click.Command, ...] = (_ctl, _top)
