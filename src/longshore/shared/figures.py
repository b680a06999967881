"""What the broker of this process's place tells of itself: to be watched, not to be used.

The only place that asks for it.  Whoever asks needs the key of the broker, and is no client of it: nothing waits for
its end, and it has no connection before or after.
"""

from __future__ import annotations

import os
from pathlib import Path

from longshore.client import connect
from longshore.shared.joining import VARIABLE
from longshore.shared.wire import FRAMING, TELL, encode_request, read_reply

__all__ = ("FIGURES", "broker_figures")

#: What is told, in this order: requests that came in, and clients, names and waiting requests that there are.
FIGURES = ("requests_total", "clients", "names", "waiting")


def broker_figures(timeout: float) -> dict[str, int]:
    """The figures of the broker that this process and its workers use, by `FIGURES`; nothing where there is none.

    Args:
        timeout: seconds, for connecting, and again for the answer.

    Raises:
        LongshoreError: it does not answer.
        OSError: its key cannot be read.
    """
    scheme, _, path = os.environ.get(VARIABLE, "").partition("://")
    if scheme != "local":
        return {}
    secret = (Path(path).parent / "key").read_bytes()
    with connect(f"unix://{path}", framing=FRAMING, timeout=timeout) as client:
        client.sendall(encode_request(TELL, 1, secret, 0, 0, timeout, ()))
        _, reply = read_reply(client.receive())
    return dict(zip(FIGURES, map(int, reply.fields), strict=True))
