"""CPython's own tests of `socketserver` and of what stands on it pass with `longshore.socketserver` in its place.

Every Python of this machine that brings its tests along (the `test` package) runs each suite twice, with the
standard module and with ours, in processes of their own; what passes with the one must pass with the other.
"""

from __future__ import annotations

import concurrent.futures
import faulthandler
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("cpython_runner.py")
#: What other Pythons than the one that runs the tests need; ignored by git, removed by `make clean`.
CACHE = ROOT / ".dropin_cache"
#: Seconds that one run of one suite may take; the longest needs about 30, nearly all of it waiting.
PATIENCE = 150
#: Runs at once: they wait much more than they compute.
AT_ONCE = 8
OURS = "longshore.socketserver"


@dataclass(frozen=True)
class Suite:
    """One of CPython's test modules, or the part of it that has to do with `socketserver`."""

    name: str
    #: How many tests of it pass at the least on any Python, so that an empty run is no success.
    at_least: int
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return f"test.{self.name}"


SUITES = (
    # The one that takes longest begins first.
    Suite("test_xmlrpc", 80),
    Suite(
        "test_logging",
        12,
        only=("*SocketHandlerTest.*", "*DatagramHandlerTest.*", "*SysLog*", "*HTTPHandlerTest.*", "*.test_listen_*"),
    ),
    # test_all compares each name's __module__ with "socketserver".
    Suite("test_socketserver", 20, without=("test.test_socketserver.MiscTestCase.test_all",)),
    Suite("test_httpservers", 60),
    Suite("test_wsgiref", 30),
    # Not asked of a drop-in, but more programs that stand on it.
    Suite("test_docxmlrpc", 9),
    Suite("test_urllib2_localnet", 20),
)


@dataclass(frozen=True)
class Interpreter:
    """A Python of this machine."""

    executable: str
    version: str
    has_tests: bool

    def __str__(self) -> str:
        return self.version

    @property
    def runs_this_test(self) -> bool:
        return self.executable == sys.executable


PROBE = """
import importlib.util, json, sys, sysconfig
version = ".".join(map(str, sys.version_info[:3])) + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")
usable = sys.implementation.name == "cpython" and sys.version_info >= (3, 11)
find = importlib.util.find_spec
has_tests = find("test") is not None and find("test.test_socketserver") is not None
print(json.dumps([version, usable, has_tests]))
"""


def interpreters() -> list[Interpreter]:
    """The CPythons from 3.11 on that are found, each version once, first the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [Path(sys.executable), *sorted((pyenv / "versions").glob("*/bin/python3"))]
    for folder in map(Path, os.get_exec_path()):
        # What is in there only chooses among the versions above.
        if folder != pyenv / "shims":
            candidates += sorted(
                path for path in folder.glob("python3*") if re.fullmatch(r"python3(\.\d+t?)?", path.name)
            )
    found: dict[str, Interpreter] = {}
    for path in dict.fromkeys(candidates):
        probe = subprocess.run([path, "-I", "-c", PROBE], capture_output=True, text=True, check=False)
        if probe.returncode == 0:
            version, usable, has_tests = json.loads(probe.stdout)
            if usable and not (version in found and found[version].has_tests >= has_tests):
                found[version] = Interpreter(str(path), version, has_tests)
    return list(found.values())


INTERPRETERS = [python for python in interpreters() if python.has_tests]


def needed_packages() -> list[str]:
    """What Longshore needs besides Python, as the lock file pins it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        names = [re.split(r"[^\w-]", need)[0] for need in tomllib.load(file)["project"]["dependencies"]]
    entries = (ROOT / "requirements-dev.lock").read_text().replace("\\\n", " ").splitlines()
    return [entry.split("#")[0] for entry in entries if entry.split("==")[0] in names]


@functools.cache
def paths_for(python: Interpreter) -> tuple[list[str], str]:
    """What `python` needs on its path to import Longshore, and why it cannot have it ("" if it can)."""
    source = str(ROOT / "src")
    if python.runs_this_test:
        return [source], ""
    packages = needed_packages()
    mark = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    folder = CACHE / f"{python.version}-{mark}"
    if not folder.exists():
        # Made beside its place and moved, so that what is there is whole.
        making = CACHE / f"{folder.name}.{os.getpid()}"
        making.mkdir(parents=True)
        try:
            (making / "requirements.txt").write_text("\n".join(packages))
            command = [sys.executable, "-m", "pip", "--python", python.executable, "install", "--quiet", "--no-deps"]
            command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--require-hashes"]
            command += ["--target", str(making), "-r", str(making / "requirements.txt")]
            pip = subprocess.run(command, capture_output=True, text=True, check=False)
            if pip.returncode != 0:
                return [], pip.stderr.strip() or f"pip exits with {pip.returncode}"
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return [str(folder), source], ""


@dataclass
class Run:
    """How one suite went."""

    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    #: What the process itself has to say, if it did not end well.
    trouble: str = ""

    @property
    def passed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}


def run(python: Interpreter, suite: Suite, replacement: str | None, folder: Path) -> Run:
    """Run `suite` under `python`, in the empty `folder`."""
    report = folder / "report"
    work = folder / "work"
    work.mkdir(parents=True)
    task = {
        "module": suite.module,
        "only": suite.only,
        "without": suite.without,
        "replacement": replacement,
        "paths": paths_for(python)[0] if replacement else [],
        "report": str(report),
        # The process tells where it hangs before it is ended.
        "seconds": PATIENCE - 5,
    }
    with (folder / "output").open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [python.executable, str(RUNNER), json.dumps(task)],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A group of its own: it is ended with whatever its tests may have started.
            start_new_session=True,
        )
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        output.seek(0)
        said = output.read()[-8000:]
    found = Run(trouble=f"its process ends with {code} and says:\n{said}" if code else "")
    for line in report.read_text().splitlines() if report.exists() else ():
        entry = json.loads(line)
        found.outcomes[entry["test"]] = entry["outcome"]
        found.details[entry["test"]] = entry["detail"]
    return found


Runs = Callable[[Interpreter, Suite], tuple[Run, Run]]


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Both runs of a suite under a Python; all that are selected begin together, at the first question."""
    selected = [item.callspec.params for item in request.session.items if "runs" in getattr(item, "fixturenames", ())]
    pairs = [(params["python"], params["suite"]) for params in selected]
    pairs.sort(key=lambda pair: SUITES.index(pair[1]))
    folder = tmp_path_factory.mktemp("suites")
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        begun = {
            (python, suite, replacement): pool.submit(
                run, python, suite, replacement, folder / f"{python}-{suite.name}-{replacement}"
            )
            for python, suite in pairs
            if not paths_for(python)[1]
            for replacement in (OURS, None)
        }

        def both(python: Interpreter, suite: Suite) -> tuple[Run, Run]:
            # What hangs hangs in a child, which says where; a dump of this process, which waits, would say nothing.
            faulthandler.cancel_dump_traceback_later()
            return begun[python, suite, None].result(), begun[python, suite, OURS].result()

        yield both
        pool.shutdown(cancel_futures=True)


def pythons() -> list[object]:
    if INTERPRETERS:
        return [pytest.param(python, id=str(python)) for python in INTERPRETERS]
    reason = "no Python here brings the package `test` with CPython's own tests along"
    return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]


@pytest.mark.slow
# The first one waits for its runs, and all the others run meanwhile.
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
@pytest.mark.parametrize("python", pythons())
def test_the_same_of_cpythons_own_tests_pass_as_with_the_standard_module(
    python: Interpreter, suite: Suite, runs: Runs
) -> None:
    problem = paths_for(python)[1]
    if problem:
        pytest.skip(f"Python {python} lacks what Longshore needs, and pip cannot install it: {problem}")
    standard, ours = runs(python, suite)
    assert len(standard.passed) >= suite.at_least, f"the standard module passes too few to compare\n{standard.trouble}"
    lost = {test: ours.outcomes.get(test, "not run") for test in sorted(standard.passed - ours.passed)}
    difference = "\n".join(
        f"{test}: passes with the standard module, {outcome} with ours\n{ours.details.get(test, '')}"
        for test, outcome in lost.items()
    )
    assert not lost, f"{len(lost)} of {len(standard.passed)} tests differ\n{difference}\n{ours.trouble}"
    assert not ours.trouble or standard.trouble, f"all tests pass, but {ours.trouble}"
