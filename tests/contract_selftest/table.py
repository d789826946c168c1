"""Runs the whole suite against each wrong transport, and writes docs/contract-selftest.md: who breaks what.

``table.py NAME ...`` runs only these anew, and takes what is known of the others from results.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fiberq_contract.rules import AREAS, RULES
from runs import Runs, broken, install, may_break
from wrong import usable
from wrong.right import Right

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "contract-selftest.md"

INTRODUCTION = """\
# Is the contract suite any good?

A test that cannot fail proves nothing. So the suite that `fiberq contract NAME` runs is tested, too: by transports that
are wrong on purpose. Each one passes everything on to a right transport, but for one small defect of the kind that
happens: it loses every 300th message, cuts a part of one certain size, forgets one loss in a crowd. The suite has to
notice, and to blame the rule that is broken and no other.

The {count} wrong transports below break each of the {rules} rules that can be tested. The last column lists all that
the suite found broken in a quick run of all rules: sometimes more than one rule forbids the same thing. The transport
that passes everything on as it is keeps every rule. `pytest tests/contract_selftest` sees in three minutes, for one
wrong transport for each rule, that it is noticed; with `--full`, in more than half an hour, that all are, and that the
suite blames nothing else. This page is made by
`python tests/contract_selftest/table.py`; the wrong transports are in `tests/contract_selftest/wrong`.
"""


def page(fails: Mapping[str, set[str]]) -> str:
    """The text, given the rules that were found broken in each wrong transport, by its name."""
    wrong = [each for each in usable() if each.name in fails]
    testable = [each for each, rule in RULES.items() if rule.testable]
    lines = [INTRODUCTION.format(count=len(wrong), rules=len(testable))]
    for area, title in AREAS.items():
        lines += [
            f"## {title}\n",
            "| rule | what the wrong transport does | broken in a run of all rules |",
            "|---|---|---|",
        ]
        for rule in [each for each in testable if each.partition("-")[0] == area]:
            for each in [each for each in wrong if each.breaks == rule]:
                found = [rule, *(other for other in RULES if other in fails[each.name] and other != rule)]
                lines.append(f"| {rule} | {each.__doc__} | {', '.join(found)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Return 1 if the suite blames a rule that it should not, or does not notice."""
    names = [each.name for each in (Right, *usable()) if each.name in sys.argv[1:] or not sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="fiberq-") as directory:
        install(Path(directory))
        runs = Runs([(name, True) for name in names])
        found = {name: sorted(broken(runs.report(name, full=True))) for name in names}
        runs.close()
    results = {**json.loads(RESULTS.read_text()), **found} if sys.argv[1:] else found
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    fails = {each.name: set(results.get(each.name, ())) for each in (Right, *usable())}
    astray = [each for each in usable() if not {each.breaks} <= fails[each.name] <= may_break(each)]
    astray += [Right] * bool(fails[Right.name])
    for each in astray:
        print(f"{each.name} breaks {', '.join(sorted(fails[each.name])) or 'nothing'}")
    if not astray:
        PAGE.write_text(page(fails), encoding="utf-8")
    return int(bool(astray))


if __name__ == "__main__":
    sys.exit(main())
