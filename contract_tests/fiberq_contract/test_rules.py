"""The rules and the tests of the suite belong together. These tests need no transport."""

from __future__ import annotations

import importlib
import pkgutil

from . import __path__ as package_path
from .rules import RULES


def test_every_rule_has_a_test() -> None:
    proved: set[str] = set()
    for module in pkgutil.iter_modules(package_path):
        if module.name.startswith("test_"):
            for each in vars(importlib.import_module(f"{__package__}.{module.name}")).values():
                for mark in getattr(each, "pytestmark", ()):
                    if mark.name == "rule":
                        proved.update(mark.args)
    assert sorted(set(RULES) - proved) == []


def test_every_level_is_must_or_should() -> None:
    assert {each.level for each in RULES.values()} <= {"MUST", "SHOULD"}
