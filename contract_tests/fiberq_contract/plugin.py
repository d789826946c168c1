"""The pytest options of the suite, and nothing more: pytest loads this in every run of an environment that has it.

`conftest.py` alone cannot bring them: with ``--pyargs``, pytest reads the command line before it knows of it.
"""

from __future__ import annotations

import pytest

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fiberq", "the fiberq contract suite")
    group.addoption("--transport", metavar="NAME", help="the fiberq transport that the contract suite tests")
    group.addoption(
        "--fiberq-quick",
        action="store_true",
        help="test on one address scheme, and leave out slow tests",
    )
    group.addoption("--fiberq-rule", action="append", default=[], metavar="ID", help="only the tests of these rules")
    group.addoption("--fiberq-events", metavar="FILE", help="append what happens to FILE, as JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    """Find out at once, and say it once, that there is no such transport."""
    name = config.getoption("--transport")
    if name is not None:
        from fiberq.errors import FiberqError
        from fiberq.registry import load

        try:
            load(name)
        except FiberqError as error:
            raise pytest.UsageError(f"--transport {name}: {error}") from error
