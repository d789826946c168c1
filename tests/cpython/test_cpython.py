"""CPython's own tests of its queues, pipes and pools hold for fiberq's, and, as a control, for its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
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

from fiberq import queues  # noqa: E402

TRANSPORTS = os.environ.get("FIBERQ__TEST_TRANSPORTS", "zmq,nng,stream").split(",")
METHODS = ["spawn", "forkserver", "fork"]


class Run:
    """A process that runs some cases on one implementation, by one start method."""

    def __init__(self, what: str, method: str, names: list[str], directory: Path) -> None:
        implementation = {"FIBERQ__TEST_IMPLEMENTATION": "fiberq", "FIBERQ_TRANSPORT": what}
        if what == "multiprocessing":
            implementation = {"FIBERQ__TEST_IMPLEMENTATION": what}
        self._errors = directory / "stderr"
        self._results: dict[str, tuple[str, str]] = {}
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import cases; cases.main()", *names],
                cwd=directory,
                env={**os.environ, **implementation, "FIBERQ__TEST_METHOD": method, "PYTHONPATH": str(HERE)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def result(self, name: str) -> tuple[str, str]:
        """How the case ended, and why; blocks until it has."""
        assert self.process.stdout is not None
        while name not in self._results:
            line = self.process.stdout.readline()
            if not line:
                return "failed", f"the run ended without a word about it:\n{self._errors.read_text()}"
            case, outcome, why, _ = json.loads(line)
            self._results[case] = outcome, why
        return self._results[name]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


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
    if name.startswith("_TestQueue.") and what != "multiprocessing" and not hasattr(queues, "Queue"):
        pytest.skip("fiberq has no Queue yet")
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
