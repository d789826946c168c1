"""The whole protocol in virtual time, seed after seed: ``python -m benchmarks.simulation --minutes 20``.

Each seed makes one schedule: some queues and pipes, processes that use them, and what goes wrong meanwhile. After each,
all promises are checked (tests/simulation/sim). ``--seeds 7`` or ``--seeds 0:1000`` runs those again.

``--scale`` shows what 10 to 10,000 readers cost; ``--mutants`` how soon a wrong protocol is noticed.

Exit status: 1 if a promise was broken, or a mutant was not noticed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.simulation import mutants, scale
from benchmarks.simulation.tally import Tally, play_all

CHUNK = 20
"""Schedules that one process runs before it tells."""

COLUMNS = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())


def run(seeds: Iterator[range], total: float, by_time: bool, jobs: int, console: Console) -> tuple[Tally, float]:
    """Run schedules until there are none, or, `by_time`, for `total` seconds; return also the seconds that it took."""
    tally, began = Tally(), time.monotonic()
    with ProcessPoolExecutor(jobs) as pool, Progress(*COLUMNS, console=console, transient=True) as progress:
        bar = progress.add_task("schedules", total=total)
        running: set[Future[Tally]] = set()
        while True:
            for chunk in seeds:
                running.add(pool.submit(play_all, chunk))
                if len(running) > jobs:
                    break
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tally.merge(future.result())
            elapsed = time.monotonic() - began
            broken = f", {len(tally.failures)} broken" if tally.failures else ""
            progress.update(
                bar,
                completed=elapsed if by_time else tally.schedules,
                description=f"{tally.schedules:,} schedules{broken}",
            )
            if by_time and elapsed > total:
                seeds = iter(())
    return tally, time.monotonic() - began


def chunks(first: int, end: int | None) -> Iterator[range]:
    while end is None or first < end:
        last = first + CHUNK if end is None else min(first + CHUNK, end)
        yield range(first, last)
        first = last


def show(tally: Tally, seconds: float, console: Console) -> None:
    rate, core = (60 * tally.schedules / max(each, 1e-9) for each in (seconds, tally.seconds))
    console.print(
        f"{tally.schedules:,} schedules in {seconds:,.0f} s: {rate:,.0f} a minute, {core:,.0f} in a minute of one core"
    )
    table = Table("", "in all")
    table.columns[1].justify = "right"
    for name, number in sorted(tally.counts.items()):
        table.add_row(name, f"{number:,}")
    console.print(table)
    for seed, text in tally.failures:
        console.print(f"seed {seed}: {text}", markup=False, highlight=False)
    console.print(f"promises broken: {len(tally.failures)}")


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.simulation", description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--minutes", type=float, default=1.0, help="how long to run")
    what.add_argument("--seeds", help="which schedules: one, or A:B for A to B - 1")
    what.add_argument("--scale", action="store_true", help="what 10 to 10,000 readers cost")
    what.add_argument("--mutants", action="store_true", help="how soon a wrong protocol is noticed")
    parser.add_argument("--first", type=int, default=0, help="the first seed of those that fit in the time")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run schedules")
    parser.add_argument("--readers", type=int, nargs="+", default=scale.READERS, help="for --scale")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    if options.scale:
        scale.show(options.readers, console)
        return 0
    if options.mutants:
        return mutants.show(console)
    if options.seeds is None:
        total, by_time, seeds = 60 * options.minutes, True, chunks(options.first, None)
    else:
        first, _, end = options.seeds.partition(":")
        last = int(end) if end else int(first) + 1
        total, by_time, seeds = last - int(first), False, chunks(int(first), last)
    tally, seconds = run(seeds, total, by_time, options.jobs, console)
    show(tally, seconds, console)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
