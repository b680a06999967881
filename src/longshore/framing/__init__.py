"""How a stream of bytes is cut into messages, and messages are made into bytes.

The only place that knows where a message ends.  Server, client, tests and command line share these framings;
each is a frozen value that is checked when it is made, and its `decoder()` holds what one connection needs.
Nothing here knows a socket, a thread or a clock: bytes go in, messages come out.
"""

from __future__ import annotations

from longshore.framing.contract import NEED_MORE, Decoder, Framing
from longshore.framing.delimiters import Delimited, Lines
from longshore.framing.lengths import FixedSize, LengthPrefixed, Netstring
from longshore.framing.raw import Raw
from longshore.framing.spelling import parse_framing
from longshore.framing.values import Json, MsgPack

__all__ = (
    "NEED_MORE",
    "Decoder",
    "Delimited",
    "FixedSize",
    "Framing",
    "Json",
    "LengthPrefixed",
    "Lines",
    "MsgPack",
    "Netstring",
    "Raw",
    "parse_framing",
)
