"""`longshore unit`: the files by which systemd runs what `longshore serve` would run here.

The only place that writes unit files (systemd.service(5), systemd.socket(5)).  They go to standard output, or into a
folder; nothing is installed, started or asked of systemd.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

from longshore.addresses import parse
from longshore.cli.directory import Directory
from longshore.errors import ConfigError
from longshore.settings import Config, options

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("UnitArguments", "unit", "unit_files")

#: Seconds that systemd waits beyond the drain before it kills.
BEYOND_DRAIN = 15
#: The first systemd that has Type=notify-reload; one that has not would take the service for Type=simple.
NOTIFY_RELOAD = 253
_NAME = re.compile(r"[A-Za-z0-9_.\-]+\Z")
#: What ListenStream= and its kind are called for each scheme.
_LISTEN = {
    "tcp": "ListenStream",
    "tls": "ListenStream",
    "udp": "ListenDatagram",
    "unix": "ListenStream",
    "unixgram": "ListenDatagram",
    "seqpacket": "ListenSequentialPacket",
}


class UnitArguments(NamedTuple):
    """What stands on a command line of `longshore unit`."""

    target: str
    values: dict[str, list[str]]
    """Options of `longshore serve`, by `Option.name`."""
    name: str | None = None
    socket: bool = False
    output: str | None = None
    config: str | None = None


def unit(arguments: UnitArguments) -> int:
    """Write the files, or print them one after the other; the exit status.

    Raises:
        ConfigError: these options cannot be served, or not by systemd.
        OSError: a file cannot be written.
    """
    files = unit_files(arguments, Directory().name, sys.executable, systemd_version())
    for name, text in files.items():
        if arguments.output is None:
            print(f"# /etc/systemd/system/{name}\n{text}")
            continue
        os.makedirs(arguments.output, exist_ok=True)
        path = os.path.join(arguments.output, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        print(f"wrote {path}")
    return 0


def systemd_version() -> int:
    """Of the systemd on this machine; 0 where there is none."""
    try:
        told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.match(r"systemd (\d+)", told)
    return int(found[1]) if found else 0


def unit_files(arguments: UnitArguments, directory: str, python: str, systemd: int) -> dict[str, str]:
    """The files by name.

    Args:
        arguments: of the command line.
        directory: where the service is to run: the target's own.
        python: the interpreter's path.
        systemd: its version, which decides how a reload is asked for; 0 if it is not known.

    Raises:
        ConfigError: these options cannot be served, or not by systemd.
    """
    # Whatever `serve` would refuse is refused now, and not by a service at night.
    config = Config.load(arguments.config, environ={}, arguments=arguments.values)
    if not config.bind:
        raise ConfigError("no address to serve on", hint="Say longshore unit TARGET --bind tcp://:5000")
    name = arguments.name or _name_of(arguments.target)
    if not _NAME.match(name):
        raise ConfigError(f"{name!r} is no name for a unit", hint="--name takes letters, digits, dots and dashes.")
    files = {}
    binds = list(config.bind)
    if arguments.socket:
        binds = [
            f"systemd://{name}-{number}{'?tls=1' if parse(url).is_tls else ''}"
            for number, url in enumerate(config.bind, start=1)
        ]
        for number, url in enumerate(config.bind, start=1):
            suffix = "" if len(binds) == 1 else f"-{number}"
            files[f"{name}{suffix}.socket"] = _socket(name, f"{name}-{number}", url)
    words = [python, "-m", "longshore", "serve", arguments.target]
    for option in options():
        if option.name in ("user", "group"):
            # The unit says it, and the service never is root.
            continue
        texts = binds if option.name == "bind" else arguments.values.get(option.name, [])
        for text in texts:
            words += [option.flag, text]
    if arguments.config:
        words += ["--config", os.path.join(directory, arguments.config)]
    if "control" not in arguments.values:
        words += ["--control", f"/run/{name}/control.sock"]
    files[f"{name}.service"] = _service(name, words, directory, config, list(files), systemd)
    return files


def _name_of(target: str) -> str:
    """`app/echo.py:Echo` is echo, `app.gateway:Meter` is gateway."""
    place = target.partition(":")[0].rstrip("/")
    stem = os.path.basename(place).removesuffix(".py")
    return re.sub(r"[^A-Za-z0-9_\-]", "-", stem.rpartition(".")[2]) or "longshore"


def _service(
    name: str, words: Sequence[str], directory: str, config: Config, sockets: Sequence[str], systemd: int
) -> str:
    drain = config.timeouts.drain
    stop = "infinity" if drain is None else f"{drain + BEYOND_DRAIN:g}"
    needs = " ".join(sockets)
    descriptors = config.limits.max_connections * 2 + 1024
    lines = [
        "[Unit]",
        f"Description={name}, served by Longshore",
        "After=network-online.target",
        "Wants=network-online.target",
        *([f"Requires={needs}", f"After={needs}"] if sockets else []),
        "",
        "[Service]",
        *_notified(systemd),
        f"ExecStart={' '.join(_quoted(word) for word in words)}",
        f"WorkingDirectory={directory}",
        "# By this name it is entered anew at a reload, wherever a link leads then.",
        f"Environment={_quoted(f'PWD={directory}')}",
        *_identity(config),
        "Restart=on-failure",
        "# A supervisor that stops answering is ended and started anew.",
        "WatchdogSec=30",
        "# SIGTERM goes to the supervisor, which drains; what outlives it is killed.",
        "KillMode=mixed",
        f"TimeoutStopSec={stop}",
        "# Listening sockets stay open over a restart: whoever connects meanwhile waits.",
        "FileDescriptorStoreMax=64",
        f"LimitNOFILE={descriptors}",
        f"RuntimeDirectory={name}",
        "RuntimeDirectoryMode=0700",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        *_logs(name, directory, config),
        *_capabilities(config),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines)


def _notified(systemd: int) -> list[str]:
    """How systemd hears of a start and of a reload."""
    if systemd >= NOTIFY_RELOAD:
        return [
            "# READY=1 comes once it accepts, and again at the end of a reload, for which systemctl reload waits.",
            "Type=notify-reload",
            "ReloadSignal=SIGHUP",
        ]
    return [
        "# READY=1 comes once it accepts; a reload is SIGHUP, whose end is in the log.",
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ]


def _identity(config: Config) -> list[str]:
    workers = config.prefork
    if workers.user is None and workers.group is None:
        return ["DynamicUser=yes"]
    return [f"{key}={value}" for key, value in (("User", workers.user), ("Group", workers.group)) if value]


def _logs(name: str, directory: str, config: Config) -> list[str]:
    """Where a log file may be written, though everything else is read-only."""
    if config.log_file is None:
        return []
    place = os.path.dirname(os.path.join(directory, config.log_file))
    return [f"LogsDirectory={name}"] if place == f"/var/log/{name}" else [f"ReadWritePaths={_quoted(place)}"]


def _capabilities(config: Config) -> list[str]:
    """What it takes to bind where only root may."""
    ports = [parse(url).port for url in config.bind if url.startswith(("tcp:", "tls:", "udp:"))]
    if any(0 < port < 1024 for port in ports if isinstance(port, int)):
        return ["AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    return []


def _quoted(word: str) -> str:
    """As systemd reads it: its own quotes, and no variable or specifier in it."""
    word = word.replace("%", "%%").replace("$", "$$")
    if word and not re.search(r"""[\s"'\\;]""", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _socket(name: str, label: str, url: str) -> str:
    address = parse(url)
    kind = _LISTEN.get(address.scheme)
    if kind is None:
        raise ConfigError(f"{url}: systemd binds no {address.scheme} sockets", hint="Leave --socket out.")
    if address.scheme in ("tcp", "tls", "udp"):
        host = f"[{address.host}]" if ":" in (address.host or "") else address.host
        where = f"{host}:{address.port}" if host else f"{address.port}"
    else:
        where = address.path or ""
    options = ["NoDelay=yes", "Backlog=4096"] if address.scheme in ("tcp", "tls") else []
    lines = [
        "[Unit]",
        f"Description=Where {name} is reached",
        "",
        "[Socket]",
        f"{kind}={where}",
        f"FileDescriptorName={label}",
        f"Service={name}.service",
        *options,
        "",
        "[Install]",
        "WantedBy=sockets.target",
        "",
    ]
    return "\n".join(lines)
