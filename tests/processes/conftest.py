"""A server whose connections have a process each."""

from __future__ import annotations

import pytest

from longshore import Lines
from processes.questions import answering, descriptors, pid_of


@pytest.fixture
def serve(longshore_server):
    def start(handler=None, *addresses, **options):
        options = {"strategy": "processes", "framing": Lines()} | options
        return longshore_server(handler or answering(pid=pid_of, fds=descriptors), *addresses, **options)

    return start
