"""Where the service runs: a directory whose name may be a link, which leads to another release at the next reload.

The only place that changes the current directory.  The kernel knows directories, not their names: whoever has entered
one through a link stays where it led.  So the name is kept, as the shell has it (PWD, which POSIX gives to every
program that a shell starts), and entered anew.
"""

from __future__ import annotations

import contextlib
import os
import sys

from longshore.supervisor import upgrade

__all__ = ("Directory",)


class Directory:
    """The current directory, by the name with which it was entered."""

    def __init__(self) -> None:
        self.path = os.getcwd()
        #: The absolute path, links in it and all.
        self.name = self.path
        name = os.environ.get("PWD", "")
        with contextlib.suppress(OSError):
            # An upgrade starts where the program before it is; the name may lead to a new release already.
            if os.path.isabs(name) and (upgrade.VARIABLE in os.environ or os.path.samefile(name, self.path)):
                self.name = name
        # Whoever has started this program may have changed the directory only; the next one believes what stands there.
        os.environ["PWD"] = self.name

    def enter(self) -> None:
        """Go where the name leads now; what is imported from then on is what lies there.

        Raises:
            OSError: there is no such directory any more.
        """
        os.chdir(self.name)
        before, self.path = self.path, os.getcwd()
        sys.path[:] = [self.path if each == before else each for each in sys.path]
