"""The rules and the tests of the contract suite belong together."""

from __future__ import annotations

import importlib
import pkgutil
import re

import fiberq_contract
import pytest
from fiberq_contract.rules import AREAS, RULES, proofs

from fiberq.abc import Capabilities


@pytest.mark.parametrize("each", RULES)
def test_a_rule_lists_its_tests_and_has_one_exactly_if_it_is_testable(each: str) -> None:
    found = proofs()[each]
    assert RULES[each].tests == found, "run `python -m fiberq_contract.rules`"
    assert bool(found) is RULES[each].testable


def test_every_test_proves_a_rule() -> None:
    proving = {test for tests in proofs().values() for test in tests}
    tests = {
        f"{module.name}.{name}"
        for module in pkgutil.iter_modules(fiberq_contract.__path__)
        if module.name.startswith("test_")
        for name in vars(importlib.import_module(f"fiberq_contract.{module.name}"))
        if name.startswith("test_")
    }
    assert tests - proving == set()


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
