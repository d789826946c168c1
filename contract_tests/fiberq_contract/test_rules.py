"""The rules and the tests of the suite belong together. These tests need no transport."""

from __future__ import annotations

import re

import pytest

from .rules import RULES, tests_by_rule


@pytest.mark.parametrize("each", RULES)
def test_a_rule_lists_its_tests_and_has_one_exactly_if_it_is_testable(each: str) -> None:
    rule, found = RULES[each], tests_by_rule()[each]
    assert rule.tests == found, "run `python -m fiberq_contract.rules`"
    assert bool(found) is rule.testable


def test_every_test_proves_a_rule(request: pytest.FixtureRequest) -> None:
    here = request.path.parent
    stray = [
        item.nodeid
        for item in request.session.items
        if item.path.parent == here and item.path != request.path and not list(item.iter_markers("rule"))
    ]
    assert stray == []


def test_levels_are_known_and_few_rules_are_untestable() -> None:
    for each in RULES.values():
        assert re.fullmatch(r"required|if (not )?[a-z_]+|untestable, because .+", each.level), each
    assert sum(each.level == "required" for each in RULES.values()) >= 60
    assert sum(not each.testable for each in RULES.values()) <= 5
