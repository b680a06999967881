"""Run one scenario of this folder with one module, alone in a process: `python complaints FILE.FUNCTION MODULE`.

Exits with 0 if the scenario passes and with 1 if it fails, its message last on stderr.  A process of its own, because
a scenario that fails leaves threads that hang for ever.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback


def main() -> None:
    scenario, module = sys.argv[1:]
    file, _, function = scenario.partition(".")
    stderr = sys.stderr
    try:
        getattr(importlib.import_module(file), function)(importlib.import_module(module))
    except BaseException as error:
        traceback.print_exc(file=stderr)
        stderr.flush()
        # Nothing that the scenario has left behind is waited for.
        os._exit(1 if isinstance(error, AssertionError) else 2)


if __name__ == "__main__":
    main()
