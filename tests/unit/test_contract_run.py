"""How a run of the contract suite is bounded, with events instead of a process of tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fiberq_contract import run as module
from fiberq_contract.recorder import HANG, HANG_AGAIN, Recorder
from fiberq_contract.report import Report, Result
from fiberq_contract.run import MAX_DEATHS, MAX_WASTE, run

Event = dict[str, Any]
TESTS = {"a": ["MSG-1"], "b": ["MSG-2"], "c": ["MSG-3"]}


class Processes:
    """Stands for the processes of pytest: each is a list of events."""

    processes: Iterator[list[Event]]

    def __init__(self, *_: object) -> None:
        pass

    def events(self) -> Iterator[Event]:
        yield from next(self.processes)

    def story(self) -> str:
        return "it was killed"

    def skip(self, result: Result) -> None:
        pass

    def close(self) -> None:
        pass


def told(monkeypatch: pytest.MonkeyPatch, *processes: list[Event]) -> Report:
    monkeypatch.setattr(module, "_Tests", Processes)
    monkeypatch.setattr(Processes, "processes", iter(processes), raising=False)
    return run("stream", rules=["MSG-1", "MSG-2", "MSG-3"])


def failed(test: str, seconds: float) -> Event:
    return {"result": Result(test, "failed", seconds, "it hangs")}


def test_tests_that_fail_take_no_more_than_a_few_minutes_and_the_rest_says_why_it_was_not_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[Event] = [{"end": True}]
    report = told(monkeypatch, [{"plan": TESTS}, failed("a", MAX_WASTE - 1), failed("b", 2), failed("c", 0), *ended])
    assert [report.status(each) for each in report.rules] == ["broken", "broken", "not tested"]
    assert f"tests that fail or hang took {MAX_WASTE + 1:.0f} s altogether" in report.why(report.rules[2])


def test_tests_that_pass_may_take_as_long_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [{"result": Result(test, "passed", MAX_WASTE, "")} for test in TESTS]
    assert told(monkeypatch, [{"plan": TESTS}, *passed, {"end": True}]).right


def test_many_deaths_stop_the_run_and_the_rest_says_why_it_was_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[list[Event]] = [[{"plan": TESTS}, {"start": "a"}]] * (MAX_DEATHS + 1)
    report = told(monkeypatch, *deaths)
    assert [report.status(each) for each in report.rules] == ["broken", "not tested", "not tested"]
    assert f"the process of the tests died {MAX_DEATHS + 1} times" in report.why(report.rules[1])


def test_after_a_hang_the_next_one_is_cut_shorter_also_in_the_next_process(tmp_path: Path) -> None:
    def limit() -> int:
        options = {"--fiberq-events": str(tmp_path / "events")}
        config: Any = SimpleNamespace(getoption=lambda name, default: options.get(name, default))
        return Recorder(config).limit

    assert limit() == HANG
    (tmp_path / "events").write_text(json.dumps(failed("a", HANG_AGAIN - 1)) + "\n")
    assert limit() == HANG
    (tmp_path / "events").write_text(json.dumps(failed("a", HANG_AGAIN)) + "\n")
    assert limit() == HANG_AGAIN
