"""CPython's own tests of its queues, pipes and pools hold for fiberq's, and, as a control, for its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

if importlib.util.find_spec("test") is None or importlib.util.find_spec("test._test_multiprocessing") is None:
    pytest.skip("this interpreter has no `test` package", allow_module_level=True)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402
from cpython_runs import METHODS, TRANSPORTS, Run  # noqa: E402

Runs: TypeAlias = dict[tuple[str, str], Run]


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Run]]:
    """A run for each implementation and start method, of all cases that pytest wants to know about; all at once."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for item in request.session.items:
        if "runs" in item.fixturenames:
            given = item.callspec.params
            wanted.setdefault((given["what"], given["method"]), []).append(given["name"])
    started = {key: Run(*key, names, tmp_path_factory.mktemp("run")) for key, names in wanted.items()}
    yield started
    for run in started.values():
        run.end()


def held(runs: Runs, what: str, method: str, name: str) -> None:
    """Fail or skip unless the case has held."""
    outcome, why = runs[what, method].result(name)
    if outcome == "skipped":
        pytest.skip(why)
    assert outcome == "passed", why


@pytest.mark.parametrize("name", cases.names(cases.CLASSES))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["multiprocessing", *TRANSPORTS])
def test_a_case_of_cpython_for_queues_and_connections_holds(runs: Runs, what: str, method: str, name: str) -> None:
    held(runs, what, method, name)


@pytest.mark.parametrize("name", cases.names(cases.OTHERS))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["multiprocessing", TRANSPORTS[0]])
def test_a_case_of_cpython_that_uses_them_holds(runs: Runs, what: str, method: str, name: str) -> None:
    held(runs, what, method, name)


def test_what_is_left_out_exists() -> None:
    for name in cases.LEFT_OUT:
        owner, _, case = name.partition(".")
        assert hasattr(getattr(cases, owner), case)
