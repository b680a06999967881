"""How long a program takes from its start until it accepts a connection."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import Failed

if TYPE_CHECKING:
    from bench.processes import Cores

__all__ = ("PROGRAMS", "Program", "start_once")

_EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "shout.py")
_SOCKETSERVER = (
    "import socketserver; socketserver.ThreadingTCPServer(('127.0.0.1', {port}), socketserver.BaseRequestHandler)"
    ".serve_forever()"
)
_ASYNCIO = (
    "import asyncio\n"
    "async def main():\n"
    "    await (await asyncio.start_server(print, '127.0.0.1', {port})).serve_forever()\n"
    "asyncio.run(main())"
)
_UVLOOP = _ASYNCIO.replace("asyncio.run", "__import__('uvloop').run")
_GEVENT = "from gevent.server import StreamServer; StreamServer(('127.0.0.1', {port}), print).serve_forever()"
_TWISTED = (
    "from twisted.internet import protocol, reactor\n"
    "reactor.listenTCP({port}, protocol.Factory.forProtocol(protocol.Protocol), interface='127.0.0.1')\n"
    "reactor.run()"
)
_LONGSHORE = (
    "from longshore import serve, Lines\n"
    "serve(lambda message, connection: message, 'tcp://127.0.0.1:{port}', framing=Lines())"
)

_PYTHON = "import socket; socket.create_server(('127.0.0.1', {port})).accept()"


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is started; `{port}` in its arguments stands for the port."""

    name: str
    arguments: tuple[str, ...]
    family: str = "peer"
    needs: str = ""
    """The Python package without which it is left out."""

    def missing(self) -> str:
        """Why it cannot be started here, or nothing."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"the package {self.needs} is not installed"
        return ""

    def command(self, port: int) -> list[str]:
        """What starts it on this port."""
        return [sys.executable, *(word.replace("{port}", str(port)) for word in self.arguments)]


PROGRAMS = (
    Program("Python alone", ("-c", _PYTHON), family="limit"),
    Program(
        "longshore serve",
        ("-m", "longshore", "serve", f"{_EXAMPLE}:shout", "--framing", "lines", "--bind", "tcp://127.0.0.1:{port}"),
        family="longshore",
    ),
    Program("longshore program", ("-c", _LONGSHORE), family="longshore"),
    Program("socketserver", ("-c", _SOCKETSERVER)),
    Program("asyncio streams", ("-c", _ASYNCIO)),
    Program("uvloop streams", ("-c", _UVLOOP), needs="uvloop"),
    Program("gevent", ("-c", _GEVENT), needs="gevent"),
    Program("Twisted", ("-c", _TWISTED), needs="twisted"),
)


def start_once(program: Program, cores: Cores, patience: float = 20.0) -> dict[str, Any]:
    """One sample: seconds of the clock and of the processor until the first connection is accepted.

    Raises:
        Failed: it accepts none.
    """
    port = _free_port()
    began = time.monotonic()
    with cores.on(cores.server):
        process = subprocess.Popen(
            program.command(port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        while not _accepts(port):
            if time.monotonic() > began + patience or process.poll() is not None:
                raise Failed(f"{program.name} accepts no connection")
            time.sleep(0.0005)
        return {"seconds": time.monotonic() - began, "cpu_seconds": _cpu_seconds(process.pid)}
    finally:
        process.kill()
        process.wait()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _cpu_seconds(pid: int) -> float:
    """The kernel's clock of a process, to the nanosecond; its number is made of the PID (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)
