"""The seconds each notebook took, printed at the end of the run."""

from __future__ import annotations

import pytest

SECONDS: dict[str, float] = {}


@pytest.fixture(scope="session")
def seconds() -> dict[str, float]:
    """Where a test notes how long a notebook took."""
    return SECONDS


def pytest_terminal_summary(terminalreporter):
    if SECONDS:
        terminalreporter.section("seconds a notebook took, kernel included")
        for name, took in SECONDS.items():
            terminalreporter.write_line(f"{took:6.1f}  {name}")
