"""Follows a run of pytest: which tests prove which rules, how each ended, and what was seen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from fiberq import registry
from fiberq.nearest import nearest

from .report import Report, Result
from .rules import AREAS, RULES

__all__ = ["Recorder", "chosen_rules"]

MAX_LINE = 240
"""Characters of a line of what was seen: more is the print of some large message."""

HANG = 60
"""Seconds that a test may take before it is taken for hanging."""

HANG_AGAIN = 20
"""The same where another test of the transport has hung."""

_ENDS = {"passed": 0, "skipped": 1, "failed": 2}


def chosen_rules(words: Iterable[str]) -> list[str]:
    """The ids that are meant by ids, by the letters of an area, or by nothing: all. Raises `ValueError`."""
    wanted = [word.upper() for each in words for word in each.split(",") if word]
    known = {*RULES, *AREAS}
    if unknown := [each for each in wanted if each not in known]:
        near = nearest(unknown[0], sorted(known))
        meant = f"the nearest is {near}" if near else f"the areas are {', '.join(AREAS)}"
        raise ValueError(f"there is no rule {unknown[0]!r}; {meant}; RULES.md lists all")
    return [each for each in RULES if not wanted or each in wanted or each.partition("-")[0] in wanted]


class Recorder:
    """One run's. Events go to the file of ``--fiberq-events``, too, for a process that follows the run."""

    def __init__(self, config: pytest.Config) -> None:
        self._path: str | None = config.getoption("--fiberq-events", None)
        self._quick: bool = config.getoption("--fiberq-quick", False)
        try:
            self._rules = set(chosen_rules(config.getoption("--fiberq-rule", [])))
        except ValueError as error:
            raise pytest.UsageError(f"--fiberq-rule: {error}") from error
        before = list(_results(self._path))
        self._done = {each.test for each in before}
        self._hung = any(map(_hung, before))
        self._phases: dict[str, Result] = {}
        self.report: Report | None = None
        name = config.getoption("--transport", None)
        if name is not None:
            capabilities = registry.load(name).capabilities
            chosen = [each for each in RULES if each in self._rules]
            self.report = Report(name, registry.resolve(name), capabilities, chosen, self._quick)
        self._started = time.monotonic()

    def wants(self, item: pytest.Item) -> bool:
        """Whether the test belongs to the chosen rules, and was not run by a process that died since."""
        if _name(item) in self._done or (self._quick and item.get_closest_marker("slow")):
            return False
        rules = _rules(item)
        return bool(self._rules & rules) if rules else len(self._rules) == len(RULES)

    def plan(self, items: Iterable[pytest.Item]) -> None:
        tests = {_name(item): sorted(_rules(item)) for item in items if _rules(item)}
        if self.report is not None:
            self.report.plan(tests)
        self._tell(plan=tests)

    @property
    def limit(self) -> int:
        """Seconds that the next test may take."""
        return HANG_AGAIN if self._hung else HANG

    def start(self, item: pytest.Item) -> None:
        self._tell(start=_name(item))

    def phase(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Take in the end of a test's setup, call or teardown: the worst counts."""
        name = _name(item)
        before = self._phases.setdefault(name, Result(name, "passed", 0.0, ""))
        seconds = before.seconds + report.duration
        if _ENDS[report.outcome] > _ENDS[before.outcome]:
            broken = getattr(call.excinfo and call.excinfo.value, "rules", ())
            before = Result(name, report.outcome, 0.0, _seen(call, report), broken)
        self._phases[name] = before._replace(seconds=round(seconds, 3))
        if report.when == "teardown" and self.report is not None and _rules(item):
            self.report.add(self._phases[name])
            self.report.seconds = time.monotonic() - self._started
            self._hung = self._hung or _hung(self._phases[name])
            self._tell(result=self._phases[name])

    def end(self) -> None:
        self._tell(end=True)

    def _tell(self, **event: Any) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def _results(path: str | None) -> Iterator[Result]:
    """What the processes before this one have found out."""
    if path is not None and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            yield from (Result(*event["result"]) for event in map(json.loads, file) if "result" in event)


def _hung(result: Result) -> bool:
    return result.outcome == "failed" and result.seconds >= HANG_AGAIN


def _name(item: pytest.Item) -> str:
    return f"{item.path.stem}.{item.name}"


def _rules(item: pytest.Item) -> set[str]:
    return {each for marker in item.iter_markers("rule") for each in marker.args}


def _seen(call: pytest.CallInfo[None], report: pytest.TestReport) -> str:
    """The error, the notes that Hypothesis adds to it (the smallest example), and where it was raised."""
    if call.excinfo is None:
        return report.longreprtext
    if report.outcome == "skipped":
        return str(call.excinfo.value)
    lines = call.excinfo.exconly().splitlines()
    lines += [line for note in getattr(call.excinfo.value, "__notes__", ()) for line in note.splitlines()]
    places = [each for each in call.excinfo.traceback if "fiberq" in str(each.path)] or list(call.excinfo.traceback)
    lines += [f"at {os.path.basename(each.path)}:{each.lineno + 1} in {each.name}" for each in places[-4:]]
    return "\n".join(each if len(each) <= MAX_LINE else f"{each[:MAX_LINE]} ..." for each in lines)
