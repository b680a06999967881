"""What CONTRIBUTING.md asks of every file, as far as a machine can see it."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
#: What a machine without Rust cannot import.
NATIVE = pytest.mark.skipif(find_spec("longshore._native") is None, reason="the native reactor was not built")
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if path.name != "__main__.py"
)
IMPORTABLE = [pytest.param(name, marks=NATIVE) if name == "longshore.reactor.native" else name for name in MODULES]
OWN_FILES = sorted(
    path for folder in ("src", "tests", "examples", "docs") for path in (ROOT / folder).rglob("*.py") if path.is_file()
)


def names_defined_in(tree: ast.Module) -> set[str]:
    """The public classes and functions that a module's own statements define, also under an `if` or a `try`."""
    found: set[str] = set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        statement = pending.pop()
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(statement.name)
        elif isinstance(statement, (ast.If, ast.Try)):
            pending += statement.body + statement.orelse
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("name", IMPORTABLE)
def test_a_module_lists_its_public_names_in_a_tuple(name):
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    assert isinstance(listed, tuple), f"{name}.__all__ must be a tuple, is {listed!r}"
    assert len(listed) == len(set(listed)), f"{name}.__all__ lists a name twice"
    assert [item for item in listed if not hasattr(module, item)] == [], f"{name}.__all__ lists what is not there"


@pytest.mark.parametrize("name", IMPORTABLE)
def test_a_module_tells_what_it_is(name):
    assert (importlib.import_module(name).__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", IMPORTABLE)
def test_a_module_lists_what_other_modules_import_from_it(name):
    """A package hands on what its modules define; any other module lists what it defines and others use."""
    module = importlib.import_module(name)
    path = Path(module.__file__)
    if path.name == "__init__.py":
        return
    tree = ast.parse(path.read_text())
    unlisted = names_defined_in(tree) - set(module.__all__)
    used = unlisted & names_imported_from(name)
    assert used == set(), f"{name}: other modules import {sorted(used)}, which __all__ leaves out"


def names_imported_from(name: str) -> set[str]:
    """What the other modules of the package import from this one by name."""
    return imports_by_module().get(name, set())


@functools.cache
def imports_by_module() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return found


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=15, env=environment, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_importing_longshore_imports_nothing_heavy():
    heavy = ("asyncio", "ssl", "multiprocessing", "click", "rich")
    loaded = run_python(f"import sys, longshore; print([name for name in {heavy!r} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_the_version_has_its_entry_in_the_changelog():
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_first_what_it_teaches(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    assert text.startswith('"""')
    assert len(ast.get_docstring(ast.parse(text)).splitlines()[0]) > 20


def test_no_source_file_is_over_600_lines():
    sources = (ROOT / "src").rglob("*.py")
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: lines for name, lines in long.items() if lines > 600} == {}


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "helper", "helpers", "common", "base", "impl", "manager", "misc"}
    assert [name for name in MODULES if set(name.split(".")) & empty] == []


def test_the_lock_file_names_no_place_to_download_from():
    lock = (ROOT / "requirements-dev.lock").read_text()
    assert [line for line in lock.splitlines() if "://" in line or line.startswith(("-", "/", "./"))] == []


def test_every_package_in_the_lock_file_has_a_hash():
    entries = (ROOT / "requirements-dev.lock").read_text().replace("\\\n", " ").splitlines()
    pinned = [line for line in entries if line[:1].isalnum()]
    assert len(pinned) > 20
    assert [line.split()[0] for line in pinned if "--hash=sha256:" not in line] == []
