"""The numbered rules: read from RULES.md, tied to tests with `rule`. What a rule means, RULES.md says."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

import pytest

__all__ = ["RULES", "Rule", "rule"]

_ROW = re.compile(r"^\| (?P<id>[A-Z]+-\d+) \| (?P<level>[^|]+?) \| (?P<sentence>.+?) \|$", re.MULTILINE)


class Rule(NamedTuple):
    """One row of RULES.md."""

    id: str
    level: str
    sentence: str


def _load() -> dict[str, Rule]:
    rows = [
        Rule(**row.groupdict()) for row in _ROW.finditer(files(__package__).joinpath("RULES.md").read_text("utf-8"))
    ]
    rules = {row.id: row for row in rows}
    if len(rules) != len(rows):
        raise ValueError("RULES.md has an id twice")
    return rules


RULES = _load()
"""Every rule by its id, in the order of RULES.md."""


def rule(*ids: str) -> pytest.MarkDecorator:
    """Mark a test as the proof of these rules. Raises `KeyError` for an id that RULES.md does not list."""
    return pytest.mark.rule(*(RULES[each].id for each in ids))
