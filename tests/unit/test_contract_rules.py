"""The rules and the tests of the contract suite belong together."""

from __future__ import annotations

import re

import pytest
from fiberq_contract.rules import AREAS, RULES, proofs

from fiberq.abc import Capabilities


@pytest.mark.parametrize("each", RULES)
def test_a_rule_lists_its_tests_and_has_one_exactly_if_it_is_testable(each: str) -> None:
    found = tuple(test for test, rules in proofs().items() if each in rules)
    assert RULES[each].tests == found, "run `python -m fiberq_contract.rules`"
    assert bool(found) is RULES[each].testable


def test_every_test_proves_rules_that_there_are() -> None:
    for test, rules in proofs().items():
        assert rules, test
        assert set(rules) <= set(RULES), test


def test_levels_are_known_and_few_rules_are_untestable() -> None:
    for each in RULES.values():
        assert re.fullmatch(r"required|if (not )?[a-z_]+|untestable, because .+", each.level), each
    assert sum(each.testable for each in RULES.values()) >= 60
    assert sum(not each.testable for each in RULES.values()) <= 5


def test_each_capability_switches_rules_both_ways() -> None:
    for name in Capabilities._fields[1:]:
        assert {f"if {name}", f"if not {name}"} <= {each.level for each in RULES.values()}


def test_every_rule_is_in_an_area() -> None:
    assert {each.partition("-")[0] for each in RULES} == set(AREAS)
