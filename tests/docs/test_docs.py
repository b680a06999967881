"""The code in the documentation runs, from the first block of a page to its last, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import longshore
from longshore import config, errors, framing
from longshore.handlers import RUNS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.exists() and "_build" not in path.parts and "```python" in path.read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path=str(ROOT)).parse(page)
    for example in document.examples():
        example.evaluate()


def test_both_chapters_of_the_tutorial_are_run():
    assert {"01-sockets.md", "02-first-server.md"} <= {page.name for page in PAGES}


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
