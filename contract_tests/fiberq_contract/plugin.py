"""The pytest option of the suite, and nothing more: pytest loads this in every run of an environment that has it.

`conftest.py` alone cannot bring the option: with ``--pyargs``, pytest reads the command line before it knows of it.
"""

from __future__ import annotations

import pytest

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fiberq", "the fiberq contract suite")
    group.addoption("--transport", metavar="NAME", help="the fiberq transport that the contract suite tests")


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
