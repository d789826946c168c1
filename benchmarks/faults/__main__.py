"""Faults amid traffic, and what came of the items: ``python -m benchmarks.faults``.

For each transport and class, some writer and reader processes pass items while readers and writers are killed
(SIGKILL), stopped (SIGSTOP, for longer than a recall's patience, or than the node bears), the node is stopped for a
moment and sent garbage, and connections over TCP are cut, cut amid a frame, and held up. A fault counts if it hit a
live process amid traffic. Then all is drained, and judged as Jepsen's total-queue checker does: see `checker`.

Controls, which are judged in the same way, have to fail: raw ZeroMQ and `multiprocessing.Queue` under the same kills,
and a fiberq whose node takes an item for finished when it is delivered. Exit status: 1 if something was lost,
unexpected or wedged, or a control showed nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from benchmarks.faults import report
from benchmarks.faults.cases import CONTROLS, Advance, run_control, run_fiberq
from benchmarks.faults.driver import Outcome
from benchmarks.faults.plan import CONTROL, SHORT, SHORT_CONTROL, Fault, Size
from benchmarks.faults.systems import KINDS

Case = tuple[str, Callable[[Advance], Outcome]]


def cases(options: argparse.Namespace, size: Size, control: Size) -> list[Case]:
    """What is to be run, by name."""
    found: list[Case] = []
    for transport in options.transports:
        for kind in options.classes:
            found.append((f"{transport} {kind}", _fiberq(transport, kind, size, options.seed, options.only)))
    for name in options.controls:
        found.append((name, _control(name, control, options.seed)))
    return found


def _fiberq(transport: str, kind: str, size: Size, seed: int, only: Sequence[str]) -> Callable[[Advance], Outcome]:
    return lambda advance: run_fiberq(transport, kind, size, seed, advance, only=only)


def _control(name: str, size: Size, seed: int) -> Callable[[Advance], Outcome]:
    return lambda advance: run_control(name, size, seed, advance)


def run_all(todo: Sequence[Case], console: Console) -> list[Outcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    outcomes = []
    # No thread of its own: processes are forked from this one.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(todo))
        for number, (name, run) in enumerate(todo):

            def advance(part: float, done: int = number) -> None:
                progress.update(bar, completed=done + part, refresh=True)

            progress.update(bar, description=name, completed=number, refresh=True)
            try:
                outcomes.append(run(advance))
            except Exception:  # the others are still worth a look
                outcomes.append(Outcome(name, errors=[traceback.format_exc()]))
    return outcomes


def verdict(outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, in words."""
    if outcome.name in CONTROLS:
        shows = outcome.figures.lost or outcome.wedged or not outcome.drained
        return [] if shows else [f"{outcome.name}: the control has to lose something or to wedge, and did not"]
    redone = [f"{each} finished items were redelivered" for each in outcome.figures.redone_slow if each > 1]
    if not outcome.failed:
        return [f"{outcome.name}: {each}" for each in redone]
    details = [*redone, *outcome.figures.examples[:5], *outcome.wedged[:3], *outcome.errors[:3]]
    return [f"{outcome.name}:", *details, *([] if outcome.drained else ["it was not drained"])]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--classes", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS))
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=[each.value for each in Fault], default=[])
    parser.add_argument("--short", action="store_true", help="about a minute in all, for CI")
    parser.add_argument("--items", type=int, help="items for each transport and class")
    parser.add_argument("--faults", type=int, help="faults for each transport and class")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    given = {key: value for key in ("items", "faults") if (value := getattr(options, key)) is not None}
    size = dataclasses.replace(SHORT if options.short else Size(), **given)
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    multiprocessing.set_forkserver_preload(["benchmarks.faults.workers"])
    console = Console(stderr=True)
    where = f"seed {options.seed}, Python {platform.python_version()}, {multiprocessing.cpu_count()} cores"
    console.print(where)
    outcomes = run_all(cases(options, size, SHORT_CONTROL if options.short else CONTROL), console)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"seed": options.seed, "outcomes": [report.as_json(each) for each in outcomes]}, file, indent=1)
    if options.markdown:
        print(f"`python -m benchmarks.faults`, {where}\n\n{report.markdown(outcomes)}")
    else:
        for table in report.tables(outcomes):
            Console(width=200).print(table)
    wrong = [line for outcome in outcomes for line in verdict(outcome)]
    for line in wrong:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"to see this again: --seed {options.seed}"
        if wrong
        else f"nothing lost{', and all controls failed' if options.controls else ''}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
