"""The runs of the contract suite against the wrong transports: asked for all at once, made a few at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from fiberq_contract.report import Report
from fiberq_contract.rules import RULES
from fiberq_contract.run import run

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)

from install import install  # noqa: E402
from wrong import everyone  # noqa: E402

JOBS = int(os.environ.get("FIBERQ__SELFTEST_JOBS", "2"))
"""Runs at the same time; they wait more than they work."""

PATIENCE = "3"
"""Seconds after which these runs take something for never happening; most of them wait for just that."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="test the wrong transports against all rules: a quarter hour")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: a whole run of the suite for each wrong transport; with --full only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full", False):
        unwanted = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


class Runs:
    """What the suite says of each wrong transport that a chosen test asks about."""

    def __init__(self, items: list[pytest.Item]) -> None:
        self._pool = ThreadPoolExecutor(JOBS)
        self._runs: dict[tuple[str, bool], Future[Report]] = {}
        by_name = {each.name: each.breaks for each in everyone()}
        for item in items:
            name = getattr(item, "callspec", None) and item.callspec.params.get("name")
            if name is not None and HERE in str(item.path):
                full = item.get_closest_marker("full") is not None
                rules = [by_name[name]] if name in by_name and not full else list(RULES)
                self._runs[name, full] = self._pool.submit(run, name, rules=rules, quick=True)

    def report(self, name: str, *, full: bool = False) -> Report:
        return self._runs[name, full].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The reports; the runs begin when the first is asked for."""
    install(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIBERQ__CONTRACT_PATIENCE", PATIENCE)
        runs = Runs(request.session.items)
        yield runs
        runs.close()
