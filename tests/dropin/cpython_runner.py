"""Run one of CPython's own test modules, perhaps with another module in place of `socketserver`.

A program, started by `test_cpython_suites.py` under each Python that it finds:

    python cpython_runner.py '{"module": "test.test_wsgiref", "replacement": "longshore.socketserver", ...}'

One line of JSON per outcome goes to the report, as soon as it is known, so that a test that hangs or ends the process
is seen as begun and not finished.  Needs nothing but the standard library and what `paths` leads to.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import unittest
from collections.abc import Iterator
from typing import Any, TextIO

#: What takes names from `socketserver` at import, so that none of them may be there before it is replaced.
CUSTOMERS = ("http.server", "xmlrpc.server", "wsgiref.simple_server", "logging.config")


class Reported(unittest.TestResult):
    """Writes down every outcome under the test's id."""

    def __init__(self, report: TextIO) -> None:
        super().__init__()
        self._report = report

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        # Overwritten by what follows, unless the process ends before.
        self._tell(test, "unfinished")

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._tell(test, "passed")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed", self._exc_info_to_string(err, test))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed", self._exc_info_to_string(err, test))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._tell(test, "failed", self._exc_info_to_string(err, test))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._tell(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed as expected")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._tell(test, "passed unexpectedly")

    def _tell(self, test: unittest.TestCase, outcome: str, detail: str = "") -> None:
        print(json.dumps({"test": test.id(), "outcome": outcome, "detail": detail}), file=self._report, flush=True)


def cases(suite: Any) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


def main() -> None:
    task = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(task["seconds"], exit=True)
    # Behind the standard library, so that nothing there is hidden.
    sys.path += task["paths"]
    if task["replacement"] is not None:
        replacement = importlib.import_module(task["replacement"])
        early = [name for name in CUSTOMERS if name in sys.modules]
        if early:
            sys.exit(f"{task['replacement']} imports {', '.join(early)}, which then runs on the standard module")
        sys.modules["socketserver"] = replacement
    loader = unittest.TestLoader()
    loader.testNamePatterns = task["only"] or None
    with open(task["report"], "w", encoding="utf-8") as report:
        result = Reported(report)
        try:
            found = loader.loadTestsFromName(task["module"])
        except unittest.SkipTest as reason:
            print(json.dumps({"test": task["module"], "outcome": "skipped", "detail": str(reason)}), file=report)
            return
        wanted = (case for case in cases(found) if case.id() not in task["without"])
        # A suite of the module's own, as it is what calls setUpModule and setUpClass.
        unittest.TestSuite(wanted).run(result)


if __name__ == "__main__":
    main()
