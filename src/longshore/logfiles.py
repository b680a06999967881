"""Log files opened anew: what rotates logs moves a file away, and says so with SIGUSR1.

The only place that does it, for every `logging.FileHandler` of this process, whoever has made it.  It writes nothing.
"""

from __future__ import annotations

import contextlib

__all__ = ("reopen_logs",)


def reopen_logs() -> None:
    """Have every `logging.FileHandler` write to the file that has its name now; if there can be none, to the old one.

    Not to be called in a signal handler, which may have interrupted one of them in the middle of a line.
    """
    import logging

    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.FileHandler):
            handler.acquire()
            try:
                # As logging.handlers.WatchedFileHandler does it, but the old file is kept until there is another one.
                before = handler.stream
                # One that has no file opens it for its next line.
                if before is not None:
                    with contextlib.suppress(OSError):
                        handler.stream = handler._open()
                        # What a full disk has left in its buffer is lost now, and it is closed nevertheless.
                        before.close()
            finally:
                handler.release()
