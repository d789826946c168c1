"""The runs of the contract suite that the chosen tests ask about: asked for all at once, made a few at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from runs import Runs, install  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="test all wrong transports, and against all rules: half an hour"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: with --full only")
    config.addinivalue_line("markers", "run(full): asks for a run of the suite against the transport `name`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full", False):
        unwanted = [item for item in items if "slow" in item.keywords and HERE in item.path.parents]
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The runs begin when the first report is asked for."""
    before, path = dict(os.environ), list(sys.path)
    install(tmp_path_factory.mktemp("site"))
    marked = [(item, item.get_closest_marker("run")) for item in request.session.items]
    runs = Runs([(item.callspec.params["name"], mark.kwargs["full"]) for item, mark in marked if mark])
    yield runs
    runs.close()
    os.environ.clear()
    os.environ.update(before)
    sys.path[:] = path
