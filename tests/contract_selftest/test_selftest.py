"""The contract suite notices what it is for: each rule has a transport that breaks it, and the suite says just that."""

from __future__ import annotations

import pytest
from fiberq_contract.report import Report
from fiberq_contract.rules import AREAS, RULES
from runs import Runs, broken, may_break
from wrong import everyone, usable
from wrong.right import Right

BY_NAME = {each.name: each for each in everyone()}
EACH_WRONG_ONE = pytest.mark.parametrize("name", [each.name for each in usable()])
FIRST = {each.breaks: each.name for each in reversed(usable())}
"""One that breaks the rule, for each rule."""
ONE_FOR_EACH_RULE = pytest.mark.parametrize(
    "name",
    [pytest.param(each.name, marks=() if FIRST[each.breaks] == each.name else pytest.mark.slow) for each in usable()],
)


def story(report: Report) -> str:
    return "\n".join(line for line, _ in report.summary())


def test_every_rule_that_can_be_tested_has_a_transport_that_breaks_it() -> None:
    assert {each for each, rule in RULES.items() if rule.testable} - {each.breaks for each in everyone()} == set()


@pytest.mark.parametrize("wrong", everyone(), ids=lambda wrong: wrong.name)
def test_a_wrong_transport_says_what_it_does_wrong_and_breaks_a_rule_that_there_is(wrong: type[Right]) -> None:
    assert RULES[wrong.breaks].testable
    assert wrong.also <= {*RULES, *AREAS} - {wrong.breaks}
    assert wrong.__doc__
    assert "\n" not in wrong.__doc__


def test_no_two_wrong_transports_have_the_same_name() -> None:
    assert len(BY_NAME) == len(everyone())


@pytest.mark.run(full=True)
@pytest.mark.parametrize("name", [Right.name])
def test_the_right_one_keeps_every_rule(name: str, runs: Runs) -> None:
    report = runs.report(name, full=True)
    assert report.right, story(report)


@pytest.mark.run(full=False)
@ONE_FOR_EACH_RULE
def test_the_suite_notices_it(name: str, runs: Runs) -> None:
    report = runs.report(name, full=False)
    assert broken(report) == {BY_NAME[name].breaks}, story(report)


@pytest.mark.slow
@pytest.mark.run(full=True)
@EACH_WRONG_ONE
def test_the_suite_blames_no_other_rule(name: str, runs: Runs) -> None:
    report = runs.report(name, full=True)
    wrong = BY_NAME[name]
    assert wrong.breaks in broken(report), story(report)
    assert broken(report) <= may_break(wrong), story(report)
