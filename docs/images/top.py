"""Draw `top.svg`: `longshore top` on a server of three workers, with clients: python docs/images/top.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from longshore.cli.top import HISTORY, Top

GATEWAY = "def gateway(message, connection):\n    return message\n"
CLIENTS = 18


class Drawn(Top):
    """Tells when it has looked as often as its sparklines have points."""

    def __init__(self, path: str) -> None:
        super().__init__(path, interval=0.25)
        self.looks = 0
        self.enough = asyncio.Event()

    def _asked(self) -> None:
        super()._asked()
        self.looks += 1
        if self.looks > HISTORY + 2:
            self.enough.set()


async def client(port: int, chance: random.Random) -> None:
    """One that comes, asks for a while, and comes again."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in itertools.count():
            writer.write(b"meter %d reads %d\n" % (number, chance.randrange(10**6)))
            await reader.readline()
            await asyncio.sleep(chance.uniform(0.02, 0.4))
            if chance.random() < 0.01:
                break
        writer.close()


async def draw(port: int, path: str) -> str:
    """The screen, once its sparklines are full."""
    clients = [asyncio.create_task(client(port, random.Random(number))) for number in range(CLIENTS)]
    app = Drawn(path)
    async with app.run_test(size=(114, 31)) as pilot:
        await app.enough.wait()
        # By bytes received.
        await pilot.press("s")
        await pilot.pause()
        picture = app.export_screenshot()
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return picture


with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "app.py").write_text(GATEWAY)
    words = ["--bind", "tcp://127.0.0.1:0", "--framing", "lines", "--workers", "3", "--control", f"{folder}/app.sock"]
    server = subprocess.Popen(
        [sys.executable, "-m", "longshore", "serve", "app.py", *words], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    with server, contextlib.ExitStack() as stack:
        stack.callback(server.terminate)
        assert server.stderr is not None
        port = int(server.stderr.readline().partition("127.0.0.1:")[2].split()[0])
        picture = asyncio.run(draw(port, f"{folder}/app.sock"))
(Path(__file__).parent / "top.svg").write_text("".join(f"{line.rstrip()}\n" for line in picture.splitlines()))
