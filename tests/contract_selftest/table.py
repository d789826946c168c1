"""Runs the whole suite against each wrong transport, and writes docs/contract-selftest.md: who breaks what."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fiberq_contract.rules import AREAS, RULES
from runs import Runs, broken, install
from wrong import usable
from wrong.right import Right

PAGE = Path(__file__).parents[2] / "docs" / "contract-selftest.md"

INTRODUCTION = """\
# Is the contract suite any good?

A test that cannot fail proves nothing. So the suite that `fiberq contract NAME` runs is tested, too: by transports that
are wrong on purpose. Each one passes everything on to a right transport, but for one small defect of the kind that
happens: it loses every 300th message, cuts a part of one certain size, forgets one loss in a crowd. The suite has to
notice, and to blame the rule that is broken and no other.

The {count} wrong transports below break each of the {rules} rules that can be tested. The last column lists all that
the suite found broken in a quick run of all rules: sometimes more than one rule forbids the same thing. The transport
that passes everything on as it is keeps every rule. `pytest tests/contract_selftest` sees in two or three minutes that
each wrong one is noticed, and with `--full`, in a quarter of an hour, that the suite blames nothing else. This page is
made by `python tests/contract_selftest/table.py`; the wrong transports are in `tests/contract_selftest/wrong`.
"""


def main() -> int:
    """Return 1 if the suite blames a rule that it should not, or does not notice."""
    astray = 0
    with tempfile.TemporaryDirectory(prefix="fiberq-") as directory:
        install(Path(directory))
        wrong = {each.name: each for each in usable()}
        runs = Runs([(name, True) for name in (Right.name, *wrong)])
        if not runs.report(Right.name, full=True).right:
            astray += 1
            print(f"{Right.name}: breaks {', '.join(sorted(broken(runs.report(Right.name, full=True))))}")
        found: dict[str, list[str]] = {}
        for name, each in wrong.items():
            fails = broken(runs.report(name, full=True))
            if each.breaks not in fails or not fails <= {each.breaks} | each.also:
                astray += 1
                print(f"{name}: breaks {', '.join(sorted(fails))}")
            others = ", ".join([each.breaks, *(rule for rule in RULES if rule in fails - {each.breaks})])
            found.setdefault(each.breaks, []).append(f"| {each.breaks} | {each.__doc__} | {others} |")
        runs.close()
    testable = [each for each, rule in RULES.items() if rule.testable]
    lines = [INTRODUCTION.format(count=len(wrong), rules=len(testable))]
    for area, title in AREAS.items():
        lines += [
            f"## {title}\n",
            "| rule | what the wrong transport does | broken in a run of all rules |",
            "|---|---|---|",
        ]
        lines += [line for each in testable if each.partition("-")[0] == area for line in found.get(each, ())]
        lines.append("")
    PAGE.write_text("\n".join(lines), encoding="utf-8")
    return int(astray > 0)


if __name__ == "__main__":
    sys.exit(main())
