"""What a run of the suite found out, rule by rule, and how that is told: as text, JSON, JUnit's XML, Markdown."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from xml.etree import ElementTree

from fiberq.abc import Capabilities

from .rules import AREAS, RULES, Rule

__all__ = ["Report", "Result", "compare", "dump_json", "dump_junit", "dump_markdown", "side_by_side"]

Status: TypeAlias = Literal["holds", "broken", "not tested", "does not apply", "untestable"]

STATUSES: Final[Sequence[Status]] = ("holds", "broken", "not tested", "does not apply", "untestable")

GOOD: Final = ("holds", "does not apply", "untestable")
"""What a transport may be, and still be right."""

MANY: Final = 4
"""Where more rules than that are broken by the same error, or not tested for one reason, it is told once."""

LISTED: Final = 8
"""So many of those are told with their sentences."""

NODE_AREAS: Final = ("PUSH", "PULL", "PIPE", "QUEUE", "BOUND")
"""What is tested on a node."""

WARNING: Final = "bold yellow"

STYLES: Final = {"holds": "green", "broken": "bold red", "not tested": "yellow"}


class Result(NamedTuple):
    """How one test ended."""

    test: str
    """Such as ``test_routing.test_a_peer_keeps_its_name[ipc]``."""
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    seen: str
    """What went wrong, or why the test was skipped; the first line says most."""
    broken: Sequence[str] = ()
    """The rules that a failure breaks; all that the test proves, if it does not say."""


class Report:
    """Collects the results of one transport's run."""

    def __init__(self, transport: str, target: str, capabilities: Capabilities, chosen: Iterable[str], quick: bool):
        self.transport = transport
        self.target = target
        self.capabilities = capabilities
        self.rules = [RULES[each] for each in chosen]
        self.quick = quick
        self.seconds = 0.0
        self._results: dict[str, Result] = {}
        self._tests: dict[str, list[str]] = {}
        self.stopped = ""
        """Why the tests did not go on to the end."""

    def plan(self, tests: Mapping[str, Sequence[str]]) -> None:
        """Take note of the tests that will run, and of the rules that each one proves; what is known stays."""
        for test, rules in tests.items():
            for each in rules:
                known = self._tests.setdefault(each, [])
                known += [test] * (test not in known)

    def add(self, result: Result) -> list[Rule]:
        """Take in how a test ended, and return the rules that are decided by that."""
        self._results[result.test] = result
        proved = [each for each in self.rules if result.test in self._tests.get(each.id, ()) and self._runs(each)]
        return [each for each in proved if all(test in self._results for test in self._tests[each.id])]

    def _runs(self, rule: Rule) -> bool:
        return rule.testable and rule.applies(self.capabilities)

    def results(self, rule: Rule) -> list[Result]:
        """What the tests of the rule gave so far."""
        return [self._results[each] for each in self._tests.get(rule.id, ()) if each in self._results]

    def status(self, rule: Rule) -> Status:
        if not rule.testable:
            return "untestable"
        if not rule.applies(self.capabilities):
            return "does not apply"
        if self._failures(rule):
            return "broken"
        if self._left_out(rule):
            return "not tested"
        return "holds" if any(each.outcome != "skipped" for each in self.results(rule)) else "not tested"

    def _left_out(self, rule: Rule) -> bool:
        """Whether the run was stopped before all tests of the rule were done."""
        return bool(self.stopped) and any(each not in self._results for each in self._tests.get(rule.id, ()))

    def why(self, rule: Rule) -> str:
        """Why a rule does not apply, or was not tested; empty for another one."""
        status = self.status(rule)
        if status == "does not apply":
            return rule.because(self.capabilities)
        if status == "untestable":
            return rule.level.partition(", ")[2]
        if status != "not tested":
            return ""
        skipped = {each.seen for each in self.results(rule) if each.outcome == "skipped"}
        return self.stopped if self._left_out(rule) else "; ".join(sorted(skipped)) or "no test of it ran"

    def _failures(self, rule: Rule) -> list[Result]:
        failed = [each for each in self.results(rule) if each.outcome == "failed"]
        return [each for each in failed if not each.broken or rule.id in each.broken]

    @property
    def right(self) -> bool:
        """Whether every rule that the transport must keep holds."""
        return all(self.status(each) in GOOD for each in self.rules)

    @property
    def tested(self) -> bool:
        """Whether any of the rules applies, so that something was there to be tested."""
        return any(map(self._runs, self.rules))

    def having(self, status: Status) -> list[Rule]:
        return [each for each in self.rules if self.status(each) == status]

    # -- text --

    def heading(self) -> str:
        kind = "the contract, quickly" if self.quick else "the contract"
        return f"{kind}: {self.transport} ({self.target}): {_declared(self.capabilities)}"

    def line(self, rule: Rule, number: int) -> str:
        """One line for a rule that is decided, as the `number`-th."""
        results = self.results(rule)
        count = f"{len(results)} test{'s' * (len(results) != 1)}"
        seconds = sum(each.seconds for each in results)
        total = sum(map(self._runs, self.rules))
        progress = f"[{number:{len(str(total))}}/{total}]"
        return f"{progress} {rule.id:9} {self.status(rule):10} {count:>9} {seconds:5.1f} s  {rule.sentence}"

    def summary(self) -> list[tuple[str, str]]:
        """The lines that a person can act on, each with a style of rich's."""
        lines: list[tuple[str, str]] = []
        for error, rules in self._causes():
            lines.append(("", ""))
            if len(rules) > MANY:
                lines += self._account_for_many(error, rules)
            else:
                lines += [line for each in rules for line in self._account(each)]
        for reason, rules in self._reasons():
            ids = ", ".join(each.id for each in rules)
            told = f"NOT TESTED {ids}: {reason}" if len(rules) <= MANY else f"NOT TESTED: {reason}\n  {ids}"
            lines += [("", "")] * (len(rules) > MANY)
            lines += [(line, STYLES["not tested"]) for line in told.splitlines()]
        lines += [("", ""), *((line, "") for line in self._switched())]
        lines += [(f"WARNING: {each}", WARNING) for each in self.warnings()]
        return [*lines, (self._verdict(), "bold")]

    def _reasons(self) -> list[tuple[str, list[Rule]]]:
        """The rules that were not tested, by the reason."""
        reasons: dict[str, list[Rule]] = {}
        for each in self.having("not tested"):
            reasons.setdefault(self.why(each), []).append(each)
        return list(reasons.items())

    def _causes(self) -> list[tuple[str, list[Rule]]]:
        """The broken rules, by the first error of each."""
        causes: dict[str, list[Rule]] = {}
        for each in self.having("broken"):
            causes.setdefault(self._failures(each)[0].seen.partition("\n")[0], []).append(each)
        return list(causes.items())

    def _account(self, rule: Rule) -> list[tuple[str, str]]:
        lines = [(f"BROKEN {rule.id}: {rule.sentence}", STYLES["broken"])]
        failed = self._failures(rule)
        for number, result in enumerate(failed[:3]):
            first, *more = result.seen.splitlines() or [""]
            lines += [(f"  {result.test}", ""), (f"    {first}", "")]
            lines += [(f"    {line}", "dim") for line in more[:30] if not number]
        if len(failed) > 3:
            lines.append((f"  and {len(failed) - 3} more of its tests", ""))
        lines.append((f"  Hint: {rule.hint}", "cyan"))
        lines.append((f"  Again: fiberq contract {self.transport} --rule {rule.id}", "dim"))
        return lines

    def _account_for_many(self, error: str, rules: Sequence[Rule]) -> list[tuple[str, str]]:
        """One error in many tests: as a rule something that all of them need."""
        first = rules[0]
        result = self._failures(first)[0]
        lines = [(f"BROKEN, {len(rules)} rules by one error: {error}", STYLES["broken"])]
        lines += [(f"  {each.id}: {each.sentence}", "") for each in rules[:LISTED]]
        if len(rules) > LISTED:
            lines.append((f"  and {', '.join(each.id for each in rules[LISTED:])}", ""))
        lines.append((f"  First seen in {result.test}", ""))
        lines += [(f"    {line}", "dim") for line in result.seen.splitlines()[1:30]]
        lines.append((f"  Hint: all of these need what failed first. To {first.id}: {first.hint}", "cyan"))
        lines.append((f"  Again: fiberq contract {self.transport} --rule {first.id}", "dim"))
        return lines

    def warnings(self) -> list[str]:
        """What its author must know, although no rule is broken."""
        without = [each for each in self.rules if each.area in NODE_AREAS and not each.applies(self.capabilities)]
        if not without:
            return []
        return [
            f"{self.transport} declares no ipc:// addresses, at which a program's own node listens: queues and pipes "
            f"cannot run on it there, and none was tested ({len(without)} rules)"
        ]

    def _switched(self) -> list[str]:
        """Which capability switched what."""
        switched: dict[str, dict[bool, list[str]]] = {}
        for each in self.rules:
            if because := each.because(self.capabilities):
                switched.setdefault(because, {}).setdefault(each.applies(self.capabilities), []).append(each.id)
        lines = []
        for because, by_applies in switched.items():
            parts = [f"{', '.join(by_applies[True])} tested"] if True in by_applies else []
            parts += [f"{', '.join(by_applies[False])} not"] if False in by_applies else []
            lines.append(f"{because}: {'; '.join(parts)}")
        return lines

    def _verdict(self) -> str:
        if not self.tested:
            told = "; ".join(f"{each.id}: {self.status(each)} ({self.why(each)})" for each in self.rules[:MANY])
            return f"NOTHING WAS TESTED of {self.transport}: no chosen rule can be: {told}"
        found = [(len(self.having(status)), status) for status in STATUSES]
        words = [f"{count} {status}" for count, status in found if count]
        verdict = "keeps" if self.right else "breaks"
        scope = "the contract" if len(self.rules) == len(RULES) else "the chosen rules"
        if self.right and self.warnings():
            scope += " for sockets, and runs no queues and pipes"
        if self.right and self.quick:
            scope += ", as far as a quick run can tell"
        return f"{self.transport} {verdict} {scope}: {', '.join(words)} ({self.seconds:.0f} s)"

    # -- data --

    def data(self) -> dict[str, Any]:
        return {
            "transport": self.transport,
            "target": self.target,
            "capabilities": self.capabilities._asdict(),
            "fiberq": version("fiberq"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "quick": self.quick,
            "seconds": round(self.seconds, 3),
            "right": self.right,
            "tested": self.tested,
            "stopped": self.stopped,
            "warnings": self.warnings(),
            "rules": [
                {
                    "id": each.id,
                    "level": each.level,
                    "sentence": each.sentence,
                    "hint": each.hint,
                    "status": self.status(each),
                    "because": each.because(self.capabilities),
                    "why": self.why(each),
                    "tests": [result._asdict() for result in self.results(each)],
                }
                for each in self.rules
            ],
        }


def dump_json(reports: Sequence[Report]) -> str:
    """One object, or a list of them when there are several transports."""
    data = [each.data() for each in reports]
    return json.dumps(data[0] if len(data) == 1 else data, indent=2)


def dump_junit(reports: Sequence[Report]) -> str:
    """A test suite for each transport, a test case for each rule."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        bad = {"failures": report.having("broken"), "errors": report.having("not tested")}
        skipped = [each for each in report.rules if report.status(each) in ("does not apply", "untestable")]
        counts = {"tests": report.rules, "skipped": skipped, **bad}
        suite = ElementTree.SubElement(root, "testsuite", name=f"fiberq contract {report.transport}")
        suite.attrib |= {name: str(len(rules)) for name, rules in counts.items()}
        suite.set("time", f"{report.seconds:.3f}")
        for each in report.rules:
            results, status = report.results(each), report.status(each)
            seconds = sum(result.seconds for result in results)
            case = ElementTree.SubElement(
                suite, "testcase", classname=report.transport, name=each.id, time=f"{seconds:.3f}"
            )
            if status in ("does not apply", "untestable"):
                ElementTree.SubElement(case, "skipped", message=f"{status}: {report.why(each)}")
            elif status != "holds":
                kind = "failure" if status == "broken" else "error"
                problem = ElementTree.SubElement(case, kind, message=f"{status}: {each.sentence}")
                told = [f"{result.test}: {result.seen}" for result in results if result.outcome != "passed"]
                problem.text = _printable("\n\n".join(filter(None, [report.why(each), *told, f"Hint: {each.hint}"])))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in text)


def dump_markdown(reports: Sequence[Report]) -> str:
    """A table of the rules, with a column for each transport."""
    names = [each.transport for each in reports]
    quick = " --quick" * reports[0].quick
    lines = [
        "# The contract, rule by rule",
        "",
        f"    fiberq contract --compare {' '.join(names)}{quick} --report markdown",
        "",
        f"fiberq {version('fiberq')}, Python {platform.python_version()}, {platform.system()} on {platform.machine()}. "
        "A rule that does not apply is switched off by what the transport declares; `RULES.md` says more of each rule.",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        f"| declares | {' | '.join(_declared(each.capabilities) for each in reports)} |",
        *(f"| {status} | {' | '.join(str(len(each.having(status))) for each in reports)} |" for status in STATUSES),
        f"| seconds | {' | '.join(f'{each.seconds:.0f}' for each in reports)} |",
    ]
    area = ""
    for rule, statuses in compare(reports):
        if area != (area := AREAS[rule.area]):
            lines += [
                "",
                f"## {area}",
                "",
                f"| rule | | tests | {' | '.join(names)} |",
                f"|---|---|---|{'---|' * len(names)}",
            ]
        lines.append(f"| {rule.id} | {rule.sentence} | {len(rule.tests)} | {' | '.join(statuses)} |")
    return "\n".join(lines)


def _declared(capabilities: Capabilities) -> str:
    named = [f"{name}={value}" for name, value in capabilities._asdict().items() if name != "schemes"]
    return ", ".join([*capabilities.schemes, *named])


def side_by_side(reports: Sequence[Report]) -> list[str]:
    """The same as lines of plain text, of any length: for a file or a pipe."""
    names = [each.transport for each in reports]
    widths = [max(map(len, (name, *STATUSES))) for name in names]
    compared = compare(reports)
    differ = [rule.id for rule, statuses in compared if len({*statuses}) > 1]

    def row(first: str, cells: Sequence[str], last: str) -> str:
        padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([f"{first:9}", *padded, last])

    return [
        row("rule", names, "sentence"),
        *(row(rule.id, statuses, rule.sentence) for rule, statuses in compared),
        f"They differ in {len(differ)} of {len(compared)} rules{': ' * bool(differ)}{', '.join(differ)}",
    ]


def compare(reports: Sequence[Report]) -> list[tuple[Rule, list[Status]]]:
    """Each rule, with what it is on each transport."""
    return [(each, [report.status(each) for report in reports]) for each in reports[0].rules]
