"""The code in the documentation runs, from the first block of a page to its last, as a reader would type it.

A Python block that begins with a comment such as `# shout.py` is that file, for commands that come later.  What an
`output` block shows is what the block above it prints.  A `console` block that shows what its commands print is run
too, as in one window, where what a command in the background prints comes in between.  In both, `...` stands for
anything.  A `diff` block whose first line is `--- shout.py` is a change to that file.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser, SkipParser

import longshore
from longshore import config, errors, framing, shared
from longshore.handlers import RUNS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.exists() and "_build" not in path.parts and "```python" in path.read_text()
]
SECONDS = 10


class Reader:
    """Somebody who types a page's code, in order and in one folder, and compares what it prints with what is shown."""

    def __init__(self, folder: Path, *, shows_all: bool = True) -> None:
        self._folder = folder
        self._shows_all = shows_all
        self._printed: str | None = None
        #: What the shell and all that it runs write to, as in one window.
        self._terminal = folder / "terminal.txt"
        self._terminal.touch()
        self._background: subprocess.Popen | None = None
        # The port that pages name may be somebody else's on this machine.
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])
        self.parsers = [
            CodeBlockParser("python", self.python),
            CodeBlockParser("output", self.output),
            CodeBlockParser("console", self.console),
            CodeBlockParser("diff", self.diff),
            SkipParser(),
        ]

    def python(self, example) -> None:
        self.leave_nothing_unshown()
        name = re.match(r"# (\w+\.py)\n", example.parsed)
        if name:
            (self._folder / name[1]).write_text(self._with_own_port(example.parsed))
            return
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            PythonEvaluator()(example)
        self._printed = printed.getvalue() or None

    def output(self, example) -> None:
        assert self._printed is not None, f"line {example.line} shows output where nothing was printed"
        printed, self._printed = self._printed, None
        compare(example.parsed, printed, f"the block above line {example.line}")

    def diff(self, example) -> None:
        """Change a file that was typed before; what each hunk replaces must stand there once."""
        name, *lines = self._with_own_port(example.parsed).splitlines()
        path = self._folder / name.removeprefix("--- ")
        text = path.read_text()
        while lines:
            end = lines.index("@@") if "@@" in lines else len(lines)
            hunk, lines = lines[:end], lines[end + 1 :]
            old, new = ("".join(f"{line[1:]}\n" for line in hunk if line[:1] in kept) for kept in (" -", " +"))
            assert text.count(old) == 1, f"line {example.line} changes what {path.name} does not have:\n{old}"
            text = text.replace(old, new)
        path.write_text(text)

    def leave_nothing_unshown(self) -> None:
        assert self._printed is None or not self._shows_all, f"this is printed, and not shown:\n{self._printed}"

    def console(self, example) -> None:
        steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", example.parsed, re.MULTILINE)
        if not any(shown for _, shown in steps):
            return
        for command, shown in steps:
            before = self._terminal.stat().st_size
            self._type(self._with_own_port(command))
            # What is in the background prints when it likes.
            deadline = time.monotonic() + SECONDS
            while not agree(shown, self._printed_since(before)) and time.monotonic() < deadline:
                time.sleep(0.01)
            compare(shown, self._printed_since(before), command)

    def _printed_since(self, before: int) -> str:
        return self._terminal.read_bytes()[before:].decode().replace(self._port, "5000")

    def _with_own_port(self, text: str) -> str:
        return re.sub(r"\b5000\b", self._port, text)

    def _type(self, command: str) -> None:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(longshore.__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
        }
        end = re.fullmatch(r"kill %1(; wait %1; echo .*)?", command)
        background = command.endswith(" &")
        if end:
            self._background.terminate()
            command = f"(exit {self._background.wait(SECONDS)}){(end[1] or '').replace('; wait %1', '')}"
        with self._terminal.open("ab") as terminal:
            process = subprocess.Popen(
                f"exec {command.removesuffix('&')}" if background else command,
                shell=True,
                executable="/bin/bash",
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                env=environment,
            )
        if background:
            self._background = process
        else:
            process.wait(SECONDS)

    def close(self) -> None:
        if self._background is not None and self._background.poll() is None:
            self._background.kill()
            self._background.wait()
        # What the blocks of one page have joined, the programs of the next would find in their environment.
        shared.leave()


def agree(shown: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)


def compare(shown: str, printed: str, what: str) -> None:
    assert agree(shown, printed), f"{what}: shown is\n{shown}\nbut printed was\n{printed}"


@pytest.mark.slow
@pytest.mark.timeout(60)  # a page is a session of many programs
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, shows_all=page.name != "README.md")
    with contextlib.closing(reader):
        for example in Sybil(parsers=reader.parsers, path=str(ROOT)).parse(page).examples():
            example.evaluate()
        reader.leave_nothing_unshown()


def test_every_chapter_of_the_tutorial_is_run_and_listed():
    chapters = set((ROOT / "docs/tutorial").glob("*.md"))
    assert chapters <= set(PAGES)
    assert len(chapters) == 10
    listed = (ROOT / "docs/index.md").read_text()
    assert [path.name for path in chapters if f"tutorial/{path.stem}\n" not in listed] == []


def test_the_table_of_strategies_says_what_the_program_does():
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", (ROOT / "docs/reference/strategies.md").read_text(), re.MULTILINE)
    header = next(cells.split(" | ") for first, cells in rows if first == "shape")
    shapes = {"class": "class", "function": "stream", "async function": "async stream", "message": "message"}
    shapes["async message"] = "async message"
    for shape, key in shapes.items():
        cells = next(cells.split(" | ") for first, cells in rows if first.startswith(f"**{shape}**"))
        runs = {name.strip("`") for name, cell in zip(header, cells, strict=True) if cell.strip() not in ("", "–")}
        default = [name.strip("`") for name, cell in zip(header, cells, strict=True) if cell.strip() == "default"]
        assert runs == set(RUNS[key]), shape
        assert default == [RUNS[key][0]], shape


def test_every_public_name_is_in_the_reference():
    whole_pages = {*config.__all__, *errors.__all__, *framing.__all__}
    pages = "".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    named = set(re.findall(r"^\.\. auto(?:class|function):: longshore\.(\w+)$", pages, re.MULTILINE))
    assert set(longshore.__all__) - whole_pages - named == set()
