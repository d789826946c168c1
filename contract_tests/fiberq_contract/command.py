"""The command ``fiberq contract NAME``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiberq import registry
from fiberq.errors import FiberqError

from .recorder import chosen_rules
from .report import STYLES, Report, compare, dump_json, dump_junit, dump_markdown, side_by_side
from .rules import Rule
from .run import run as run_suite

__all__ = ["add_arguments", "main", "run"]

DUMPS = {"json": dump_json, "junit": dump_junit, "markdown": dump_markdown}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("transport", nargs="*", metavar="NAME", help="the installed transport to test")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="NAME", help="test these, and put them side by side"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="half a minute: one address scheme, no slow tests",
    )
    parser.add_argument(
        "--rule", action="append", default=[], metavar="ID", help="only this rule, or area: MSG-1, or MSG (repeatable)"
    )
    parser.add_argument("--report", choices=sorted(DUMPS), help="print such a report; progress goes to stderr")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write that report to FILE instead")


def run(arguments: argparse.Namespace) -> int:
    """Test; return 0 if each transport keeps every rule that it must keep, 1 if not, 2 for a wrong argument, such as
    rules of which none can be tested."""
    names = list(dict.fromkeys([*arguments.transport, *arguments.compare]))
    if not names:
        installed = ", ".join(each.name for each in registry.available())
        return _refuse(f"name a transport; installed: {installed}")
    if arguments.output and not arguments.report:
        return _refuse("--output needs --report")
    if arguments.output and (arguments.output.is_dir() or not arguments.output.parent.is_dir()):
        return _refuse(f"--output {arguments.output}: there is no such directory, or it is one")
    try:
        rules = chosen_rules(arguments.rule)
    except ValueError as error:
        return _refuse(str(error))
    for name in names:
        registry.load(name)
    console = Console(highlight=False, soft_wrap=True, stderr=bool(arguments.report) and not arguments.output)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is to be ended
    try:
        reports = [_test(console, name, rules, arguments.quick) for name in names]
    except KeyboardInterrupt:
        print("fiberq contract: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if len(reports) > 1:
        _print_comparison(console, reports)
    if arguments.report:
        text = DUMPS[arguments.report](reports)
        if arguments.output:
            arguments.output.write_text(text + "\n", encoding="utf-8")
        else:
            print(text)
    if not all(each.right for each in reports):
        return 1
    return 0 if any(each.tested for each in reports) else 2


def _refuse(text: str) -> int:
    print(f"fiberq contract: {text}", file=sys.stderr)
    return 2


def _test(console: Console, name: str, rules: Sequence[str], quick: bool) -> Report:
    number = 0

    def head(report: Report) -> None:
        if not number:
            console.print(Text(report.heading(), style="bold"))

    def decided(report: Report, rule: Rule) -> None:
        nonlocal number
        head(report)
        number += 1
        line = Text(report.line(rule, number), style=STYLES[report.status(rule)])
        if console.is_terminal:
            line.truncate(console.width, overflow="ellipsis")
        console.print(line)

    with console.status(f"{name}: starting") as status:
        report = run_suite(
            name, rules=rules, quick=quick, on_start=lambda test: status.update(Text(test)), on_decided=decided
        )
    head(report)
    for line, style in report.summary():
        console.print(Text(line, style=style))
    return report


def _print_comparison(console: Console, reports: Sequence[Report]) -> None:
    if not console.is_terminal:
        console.print()
        for line in side_by_side(reports):
            console.print(Text(line))
        return
    table = Table("rule", *(each.transport for each in reports), "sentence", title="side by side", title_justify="left")
    for rule, statuses in compare(reports):
        table.add_row(rule.id, *(Text(each, style=STYLES.get(each, "dim")) for each in statuses), rule.sentence)
    console.print(table, soft_wrap=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv`, by default the process's arguments, and return the exit status."""
    parser = argparse.ArgumentParser(prog="fiberq_contract", description="Test a transport against fiberq's contract.")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except FiberqError as error:
        return _refuse(str(error))
