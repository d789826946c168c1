"""The numbered rules: read from RULES.md, tied to tests with `rule`. What a rule means, RULES.md says.

``python -m fiberq_contract.rules`` writes the tests of each rule into RULES.md.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

import pytest

from fiberq.abc import Capabilities

__all__ = ["AREAS", "RULES", "BrokenRule", "Rule", "proofs", "proving", "rule"]

_AREA = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
_RULE = re.compile(
    r"^### (?P<id>[A-Z]+-\d+), (?P<level>.+)\n\n(?P<sentence>.+)\n\nHint: (?P<hint>.+)\n\nTests:(?P<tests>.*)$",
    re.MULTILINE,
)


class Rule(NamedTuple):
    """One rule of RULES.md."""

    id: str
    level: str
    """``required``; ``if NAME`` or ``if not NAME``, a capability or an address scheme; ``untestable, because ...``"""
    sentence: str
    hint: str
    tests: tuple[str, ...]

    @property
    def area(self) -> str:
        """The letters of its id."""
        return self.id.partition("-")[0]

    @property
    def testable(self) -> bool:
        return not self.level.startswith("untestable")

    def applies(self, capabilities: Capabilities) -> bool:
        """Whether a transport with these capabilities has to keep the rule."""
        if not self.level.startswith("if "):
            return True
        return self._has(capabilities) is not self.level.startswith("if not ")

    def because(self, capabilities: Capabilities) -> str:
        """What the transport declares that decides whether the rule applies; empty for a rule that always does."""
        if not self.level.startswith("if "):
            return ""
        name = self.level.split()[-1]
        if name in Capabilities._fields:
            return f"{name}={self._has(capabilities)}"
        return f"schemes {'have' if self._has(capabilities) else 'do not have'} {name}"

    def _has(self, capabilities: Capabilities) -> bool:
        name = self.level.split()[-1]
        return getattr(capabilities, name) is True if name in Capabilities._fields else name in capabilities.schemes


def _load() -> tuple[dict[str, Rule], dict[str, str]]:
    text = files(__package__).joinpath("RULES.md").read_text("utf-8")
    rules: dict[str, Rule] = {}
    areas: dict[str, str] = {}
    for title, body in zip(*[iter(_AREA.split(text)[1:])] * 2, strict=True):
        for match in _RULE.finditer(body):
            tests = tuple(re.findall("`(.+?)`", match["tests"]))
            rules[match["id"]] = Rule(match["id"], match["level"], match["sentence"], match["hint"], tests)
            areas[match["id"].partition("-")[0]] = title
    if len(rules) != text.count("\n### "):
        raise ValueError("RULES.md has an id twice, or a rule that cannot be read")
    return rules, areas


RULES, AREAS = _load()
"""Every rule by its id, in the order of RULES.md; and the title of each area by the letters that its ids begin with."""


class BrokenRule(AssertionError):
    """What a test that proves several rules raises to say which of them, the arguments but the last, is broken."""

    def __init__(self, *rules_and_text: str) -> None:
        *rules, text = rules_and_text
        super().__init__(text)
        self.rules = tuple(RULES[each].id for each in rules)


@contextlib.contextmanager
def proving(*rules: str) -> Iterator[None]:
    """What fails in this part of a test that proves several rules breaks these, and not the others."""
    try:
        yield
    except BrokenRule:
        raise
    except (Exception, pytest.fail.Exception) as error:
        raise BrokenRule(*rules, str(error) or type(error).__name__) from error


def rule(*ids: str) -> pytest.MarkDecorator:
    """Mark a test as the proof of these rules. Raises `KeyError` for an id that RULES.md does not list."""
    return pytest.mark.rule(*(RULES[each].id for each in ids))


def proofs() -> dict[str, tuple[str, ...]]:
    """The rules that each test of the suite is marked with, by the test's name, ``module.function``."""
    found: dict[str, tuple[str, ...]] = {}
    for module in sorted(each.name for each in files(__package__).iterdir() if each.name.startswith("test_")):
        for node in ast.parse(files(__package__).joinpath(module).read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
                marks = [each.args for each in calls if isinstance(each.func, ast.Name) and each.func.id == "rule"]
                ids = tuple(ast.literal_eval(argument) for arguments in marks for argument in arguments)
                found[f"{module.removesuffix('.py')}.{node.name}"] = ids
    return found


def _write_tests() -> None:
    tests = {each: [test for test, ids in proofs().items() if each in ids] for each in RULES}
    path = files(__package__).joinpath("RULES.md")
    text = _RULE.sub(
        lambda match: (
            match[0][: match.start("tests") - match.start()]
            + "".join(f"{',' * bool(index)} `{each}`" for index, each in enumerate(tests[match["id"]]))
        ),
        path.read_text("utf-8"),
    )
    with open(str(path), "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    _write_tests()
