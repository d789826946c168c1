"""``fiberq bench``: how fast queues are, beside those of `multiprocessing` in the same run, and beside others."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fiberq.bench import plot
from fiberq.bench.contenders import CLASSES, ours
from fiberq.bench.crew import BenchError
from fiberq.bench.peers import PEERS, installed
from fiberq.bench.runs import Case, Result, measure, plan, results
from fiberq.bench.table import markdown, tables
from fiberq.bench.values import Figures, Size
from fiberq.bench.work import WORK, missing
from fiberq.registry import available, load, name_of
from fiberq.settings import config
from fiberq.tree import at

__all__ = ["add_arguments", "run"]

QUICK = 50
"""By how much less is done with --quick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--transports", nargs="+", metavar="NAME", help="default: all that can be used")
    parser.add_argument(
        "--classes", nargs="+", choices=CLASSES, default=list(CLASSES[:2]), help="default: the first two"
    )
    parser.add_argument("--work", nargs="+", choices=WORK, help="default: all")
    parser.add_argument("--producers", nargs="+", type=_positive, default=[1], metavar="N", help="default: 1")
    parser.add_argument("--consumers", nargs="+", type=_positive, default=[1], metavar="N", help="default: 1")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="others, too: all that are installed, or these")
    parser.add_argument("--repetitions", type=_positive, metavar="N", help="default: 5")
    parser.add_argument("--scale", type=_factor, default=1.0, metavar="X", help="multiply the numbers of items")
    parser.add_argument("--depth", type=_positive, metavar="N", help="items of the work depth (10,000,000)")
    parser.add_argument("--queues", type=_positive, metavar="N", help="queues of the work queues (10,000)")
    parser.add_argument("--quick", action="store_true", help="one repetition of little: to see that all works")
    parser.add_argument("--node", metavar="URL", help="measure fiberq's queues on this node; compare them to nothing")
    parser.add_argument(
        "--timeout", type=_factor, default=300.0, metavar="S", help="seconds for each measurement (300)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them instead of tables")
    parser.add_argument("--plot", metavar="DIR", help="write the pictures there (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return 0, or 130 after Ctrl-C. Raises `BenchError` where something cannot be measured, when it
    has printed the tables that are whole."""
    if arguments.plot:
        plot.check()
    arguments.node = arguments.node or config.node
    transports = _transports(arguments)
    contenders = ours(transports, arguments.classes)
    if arguments.peers is not None:
        if arguments.node:
            raise BenchError("--peers cannot be measured on a node of fiberq's: leave --node or --peers out")
        peers, lacking = installed(arguments.peers)
        contenders += peers
        for line in lacking:
            print(f"left out: {line}", file=sys.stderr)
    repetitions = arguments.repetitions or (1 if arguments.quick else 5)
    todo = list(plan(_cases(arguments), contenders, repetitions, compared=not arguments.node))
    found: dict[tuple[Case, str], list[Figures]] = {}
    # What is killed leaves semaphores; multiprocessing's tracker removes them, and need not complain.
    own = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (own, "ignore:resource_tracker")))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=len(todo))
            for case, contender in todo:
                progress.update(bar, description=f"{case}: {contender.name}")
                found.setdefault((case, contender.name), []).append(measure(case, contender, arguments.timeout))
                progress.advance(bar)
    except BenchError:
        whole = {key: figures for key, figures in found.items() if key[0] != case}
        if whole:
            _tell(arguments, results(whole))
        raise
    except KeyboardInterrupt:
        print("fiberq: interrupted", file=sys.stderr)
        return 130
    _tell(arguments, results(found))
    return 0


def _transports(arguments: argparse.Namespace) -> list[str]:
    """Those that were asked for, each of which can be loaded."""
    if arguments.node:
        config.node = arguments.node
        if arguments.transports:
            raise BenchError("the node has a transport: leave --node or --transports out")
        return [name_of(at(arguments.node).target)]
    if arguments.transports is None:
        return [plugin.name for plugin in available() if plugin.error is None]
    for name in arguments.transports:
        load(name)
    return list(arguments.transports)


def _cases(arguments: argparse.Namespace) -> list[Case]:
    cases = []
    for name in arguments.work or WORK:
        lacking = missing(name)
        if lacking and arguments.work:
            raise BenchError(f"the work {name} needs {lacking}, which is not installed")
        if lacking:
            print(f"left out: the work {name}: {lacking} not found", file=sys.stderr)
            continue
        count = WORK[name].items * arguments.scale / (QUICK if arguments.quick else 1)
        count = {"depth": arguments.depth, "queues": arguments.queues}.get(name) or max(10, int(count))
        spreads = WORK[name].spreads
        for producers in arguments.producers if spreads else [1]:
            for consumers in arguments.consumers if spreads else [1]:
                cases.append(Case(name, Size(count, producers, consumers)))
    return cases


def _tell(arguments: argparse.Namespace, found: list[Result]) -> None:
    if arguments.json:
        text = json.dumps({**_machine(), "results": [result.plain() for result in found]}, indent=1)
        if arguments.json == "-":
            print(text)
        else:
            with open(arguments.json, "w") as file:
                file.write(text + "\n")
    if arguments.json != "-":
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        machine = _machine()
        console.print(f"Python {machine['python']}, {machine['system']}, {machine['cores']} cores")
        if arguments.markdown:
            print("", *markdown(found), sep="\n")
        else:
            console.print(*tables(found), sep="\n")
    if arguments.plot:
        for path in plot.plot(found, arguments.plot):
            print(path, file=sys.stderr)


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _factor(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number
