"""What all tests share: the fixtures of `longshore.testing`, also where Longshore is not installed."""

from __future__ import annotations

import pytest

from longshore import testing


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.is_registered(testing):
        config.pluginmanager.register(testing, "longshore")
