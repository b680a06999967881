"""Pools for the tests of this folder, each of which must leave nothing behind."""

from __future__ import annotations

import contextlib

import pytest

from longshore.shared import Pool
from longshore.testing import _settle_event_loops, no_leaks


@pytest.fixture
def make_pool():
    """Make pools; when the test is over they are shut down and have left nothing."""
    _settle_event_loops()
    with no_leaks(), contextlib.ExitStack() as stack:

        def make(place=2, *args, **options):
            pool = Pool(place, *args, **options)
            stack.callback(pool.shutdown)
            stack.callback(pool.terminate)
            return pool

        yield make
