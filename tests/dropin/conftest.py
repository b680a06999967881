"""Every manner in which a server of `longshore.socketserver` treats its requests, served and checked for leaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dropin.servers import MANNERS, make, served
from longshore.testing import no_leaks


@pytest.fixture(params=MANNERS)
def manner(request: pytest.FixtureRequest) -> str:
    """Each way to treat requests."""
    return str(request.param)


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Make and serve; ended, and checked, when the test is over."""
    with no_leaks(), contextlib.ExitStack() as stack:

        def start(manner: str, *over: type, **attributes: Any) -> Any:
            return stack.enter_context(served(make(manner, *over, **attributes)))

        yield start
