"""The commands as click knows them: flags, help, and mistakes explained.

With `commanding.py` and `completion.py` the only files that import click.  The flags of `serve` are made from the
table in `settings.py`; what a command does stands in the file of its name, which gets the same arguments whether click
read them or not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from longshore.cli import USAGE, tell
from longshore.cli.commanding import COMMANDS
from longshore.cli.completion import SHELLS, directories, files, one_of, script, urls
from longshore.errors import ConfigError
from longshore.settings import Option, options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshore.cli.completion import Completer

__all__ = ("run",)

_SERVE_EPILOG = """\b
Examples:
  longshore serve echo.py --bind tcp://127.0.0.1:5000
  longshore serve app.py:Echo --bind tcp://:5000 --bind unix:///run/echo.sock
  longshore serve app.gateway:Meter --bind tcp://:9000 --framing length-prefixed:2
  longshore serve app.py:Echo --bind tls://:5001 --certfile cert.pem --keyfile key.pem
  longshore serve app.py:Echo --bind tcp://127.0.0.1:5000 --reload
  LONGSHORE_LOG_FORMAT=json longshore serve app.py:Echo --strategy green

\b
Each option is also a variable (--idle-timeout is LONGSHORE_IDLE_TIMEOUT) and a key
in longshore.toml ([timeouts] idle).  The command line is above the environment, the
environment above the file.

SIGTERM or Ctrl-C drains and stops, a second one stops at once.  SIGHUP reloads: with
workers everything, in one process limits, timeouts, certificate and logging.  SIGUSR1
opens log files anew.  Exit status: 0 after that, 1 if it fails, 2 for a mistake in the
options."""

_CONNECT_EPILOG = """\b
Examples:
  longshore connect tcp://127.0.0.1:5000
  echo hello | longshore connect tcp://127.0.0.1:5000
  longshore connect unix:///run/app.sock --framing json
  longshore connect tls://example.org:443 --cafile authorities.pem
  echo reading=7 | longshore connect udp://127.0.0.1:5000 --timeout 2

On a stream without a framing, bytes go both ways as they are.  With one, and on
addresses of messages, each line is a message and each reply a line."""

_DOCTOR_EPILOG = """\b
Examples:
  longshore doctor                     what this machine grants a server
  longshore doctor server.py           what that program will suffer from, with the fix
  longshore doctor server.py --json    the same, for machines

The program is read, never run.  Exit status with FILE: 0 if there is nothing to mend,
1 if there is, 2 if it cannot be read.  Without FILE it is a report, and 0."""

_COMPLETION_EPILOG = """\b
To have it in every shell, put one of these where the shell begins:
  eval "$(longshore completion bash)"        in ~/.bashrc (bash 4.4 or newer)
  eval "$(longshore completion zsh)"         in ~/.zshrc, after compinit
  longshore completion fish | source         in ~/.config/fish/config.fish"""

_UNIT_EPILOG = """\b
Examples:
  longshore unit app.py:Echo --bind tcp://:5000 --workers 4
  longshore unit app.py:Echo --bind tcp://:5000 --socket --output /etc/systemd/system

\b
The service runs in the current directory, with this Python.  Nothing is installed or
started."""

_EPILOG = """\b
Examples:
  longshore serve echo.py --bind tcp://127.0.0.1:5000     serve the handler in echo.py
  longshore connect tcp://127.0.0.1:5000                  talk to it
  longshore doctor server.py                              what a socketserver program will suffer from
  longshore serve --help                                  all options, with examples

\b
echo.py may be as short as this:
  def echo(connection):
      while data := connection.recv(65536):
          connection.sendall(data)"""

#: Options that name a file.
_FILES = ("certfile", "keyfile", "client_ca", "control", "pid_file", "log_file")

_TITLES = {
    "serve": "Serving",
    "prefork": "Workers",
    "limits": "Limits",
    "timeouts": "Timeouts, in seconds",
    "tls": "TLS",
    "proxy": "PROXY protocol",
}


def run(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` spell; the exit status.

    Raises:
        LongshoreError: the command failed.
    """
    try:
        status = _longshore.main(list(arguments), prog_name="longshore", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "longshore"
        # click puts its guess behind the sentence; here it is the hint.
        message, _, guess = error.format_message().partition(" Did you mean ")
        tell(
            f"longshore: {message}",
            f"Did you mean {guess}" if guess else f"{command} --help lists what there is, with examples.",
        )
        return USAGE
    except click.Abort:
        return 130
    return status if isinstance(status, int) else 0


class _Serve(click.Command):
    """`serve`, whose help has its many options under the tables of `longshore.toml`."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {option.name: option.section for option in options()}
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in (*_TITLES.values(), "Other")}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups[_TITLES.get(sections.get(parameter.name or "", ""), "Other")].append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _flag(option: Option) -> click.Option:
    metavar = {"int": "N", "float": "N", "tuple": "TEXT", "bytes": "TEXT"}.get(option.kind, "TEXT")
    if option.word:
        metavar = f"{metavar}|{option.word}"
    if option.choices:
        metavar = "|".join(option.choices)
    elif option.section == "timeouts" and option.name != "min_rate":
        metavar = "SECONDS"
    metavar = {"bind": "URL", "framing": "FRAMING", **dict.fromkeys(_FILES, "FILE")}.get(option.name, metavar)
    default = "none" if option.default is None else option.default
    note = "" if option.default in ((), b"") or (option.default is None and option.kind == "str") else f"  [{default}]"
    return click.Option(
        [option.flag, option.name],
        multiple=True,
        metavar=metavar,
        help=f"{option.help}{note}",
        type=click.STRING,
        shell_complete=_completer(option.name, option.choices),
    )


def _completer(name: str, choices: Sequence[str]) -> Completer | None:
    if choices:
        return one_of(choices)
    if name == "framing":
        from longshore.framing.spelling import SPELLINGS

        return one_of(SPELLINGS)
    return {"bind": urls, **dict.fromkeys(_FILES, files)}.get(name)


def _serve(
    target: str,
    config: str | None,
    debug: bool,
    reload: bool,
    reload_dir: tuple[str, ...],
    **values: tuple[str, ...],
) -> int:
    from longshore.cli.options import ServeArguments
    from longshore.cli.serve import serve

    given = {name: list(texts) for name, texts in values.items() if texts}
    arguments = ServeArguments(target, given, config, debug)
    if reload:
        from longshore.cli.reload import serve_reloading

        return serve_reloading(arguments, reload_dir)
    if reload_dir:
        raise ConfigError("--reload-dir says what --reload watches", hint="Add --reload, or leave it out.")
    return serve(arguments)


def _connect(**arguments: Any) -> int:
    from longshore.cli.connect import ConnectArguments, connect

    arguments.pop("debug")
    return connect(ConnectArguments(**arguments))


def _doctor(file: str | None, as_json: bool, debug: bool) -> int:
    from longshore.cli.doctor import DoctorArguments, doctor

    return doctor(DoctorArguments(file, as_json))


def _completion(shell: str) -> None:
    click.echo(script(shell, _longshore), nl=False)


def _unit(
    target: str,
    config: str | None,
    name: str | None,
    socket: bool,
    output: str | None,
    debug: bool,
    **values: tuple[str, ...],
) -> int:
    from longshore.cli.unit import UnitArguments, unit

    given = {option: list(texts) for option, texts in values.items() if texts}
    return unit(UnitArguments(target, given, name, socket, output, config))


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    from longshore import __version__

    click.echo(f"longshore {__version__} (Python {sys.version.split()[0]})")
    context.exit()


def _debug() -> click.Option:
    return click.Option(["--debug"], is_flag=True, help="show tracebacks instead of one line and a hint")


_longshore = click.Group(
    "longshore",
    help="Write a handler, serve it over any socket, with any kind of concurrency.",
    epilog=_EPILOG,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="print the version and exit",
        )
    ],
)
_longshore.add_command(
    _Serve(
        "serve",
        callback=_serve,
        help="Serve the handler TARGET: file.py:Name, package.module:Name, or a file with one handler in it.",
        short_help="Serve a handler.",
        epilog=_SERVE_EPILOG,
        params=[
            click.Argument(["target"], shell_complete=files),
            *(_flag(option) for option in options()),
            click.Option(
                ["--config"],
                metavar="FILE",
                help="the file to read  [longshore.toml, if there is one]",
                shell_complete=files,
            ),
            click.Option(["--reload"], is_flag=True, help="start anew when a Python file changes; for development"),
            click.Option(
                ["--reload-dir"],
                multiple=True,
                metavar="DIR",
                help="also watch DIR; may be given several times",
                shell_complete=directories,
            ),
            _debug(),
        ],
    )
)
_longshore.add_command(
    click.Command(
        "connect",
        callback=_connect,
        help="Connect to URL: standard input goes to the peer, what the peer sends goes to standard output.",
        short_help="Talk to a server.",
        epilog=_CONNECT_EPILOG,
        params=[
            click.Argument(["url"], shell_complete=urls),
            click.Option(
                ["--framing"],
                metavar="FRAMING",
                help="lines, length-prefixed:4, json, ... or module:NAME",
                shell_complete=_completer("framing", ()),
            ),
            click.Option(
                ["--timeout"],
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                help="give up connecting [10], and waiting for an answer after the end of input [never]",
            ),
            click.Option(
                ["--cafile"],
                metavar="FILE",
                shell_complete=files,
                help="authorities (PEM) to trust instead of the system's",
            ),
            click.Option(["--certfile"], metavar="FILE", shell_complete=files, help="our own certificate chain (PEM)"),
            click.Option(["--keyfile"], metavar="FILE", shell_complete=files, help="our private key (PEM)"),
            click.Option(["--insecure"], is_flag=True, help="do not verify the server's certificate"),
            click.Option(
                ["--proxy-header", "proxy"],
                type=click.IntRange(1, 2),
                metavar="VERSION",
                help="send a PROXY header first, of version 1 or 2, as a proxy would",
            ),
            _debug(),
        ],
    )
)
_longshore.add_command(
    click.Command(
        "doctor",
        callback=_doctor,
        help="Report what this machine grants a server; or read FILE, a socketserver program, and say what to mend.",
        short_help="Examine this machine or a program.",
        epilog=_DOCTOR_EPILOG,
        params=[
            click.Argument(["file"], required=False, shell_complete=files),
            click.Option(["--json", "as_json"], is_flag=True, help="print JSON"),
            _debug(),
        ],
    )
)
_longshore.add_command(
    click.Command(
        "completion",
        callback=_completion,
        help="Print the script by which SHELL (bash, zsh or fish) completes longshore's commands, flags and values.",
        short_help="Teach your shell to complete commands.",
        epilog=_COMPLETION_EPILOG,
        params=[click.Argument(["shell"], type=click.Choice(SHELLS))],
    )
)
_longshore.add_command(
    _Serve(
        "unit",
        callback=_unit,
        help="Print the unit files by which systemd runs what `longshore serve` would, with the same options.",
        short_help="Print unit files for systemd.",
        epilog=_UNIT_EPILOG,
        params=[
            click.Argument(["target"], shell_complete=files),
            *(_flag(option) for option in options()),
            click.Option(["--config"], metavar="FILE", help="the file that the service reads", shell_complete=files),
            click.Option(["--name"], metavar="NAME", help="what the service is called  [by the target]"),
            click.Option(["--socket"], is_flag=True, help="let systemd bind: a socket unit beside the service"),
            click.Option(["--output"], metavar="DIR", help="write the files there", shell_complete=directories),
            _debug(),
        ],
    )
)
for _each in COMMANDS:
    _longshore.add_command(_each)
