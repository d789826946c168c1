"""Unfriendly clients, each tried on each transport while honest traffic flows: ``python -m benchmarks.unfriendly``.

For each transport, ``fiberq serve`` runs on loopback TCP, and a producer and a consumer pass items. Each attacker then
does his worst for some seconds; the honest clients' rate is measured before, during and after, and the node's memory.
The attacker shares the machine's processors with all of them, which alone makes the rate fall while he is at it.

Exit status 1 if the node ended or was wedged, its memory rose by more than 64 MiB above its level before, an item was
read, written, lost or changed that was not the attacker's, a pickle was loaded, or honest traffic did not recover. (The
control has to end so.) With
``--frames N`` as many mutated frames go through the protocol's core before that, without a socket.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.unfriendly.attacks import ATTACKS, CONTROL, run
from benchmarks.unfriendly.core import fuzz_client, fuzz_node
from benchmarks.unfriendly.party import CONTEXT, Party, party

MOST = 64 << 20
"""Bytes by which an attack may raise the node's memory."""

RECOVERED = 0.3
"""Of the rate before, what there has to be after; a shared machine's speed drifts."""

TRIES = 6
"""Times that the rate is measured after an attack, until it is that."""

PATIENCE = 30.0
"""Seconds for an attacker to come to his end, beyond his time."""


class Seen(NamedTuple):
    """What came of one attack."""

    transport: str
    attack: str
    attempts: int
    rates: tuple[float, float, float]
    """The honest clients' items a second: before, during, after."""
    grown: int
    """Bytes by which the node's memory rose at the most."""
    wrong: list[str]


def attack(at: Party, name: str, seconds: float, frames: int) -> Seen:
    """Attack, and look at what happens to the others."""
    target = at.target(frames)
    calm = max(0.5, seconds / 2)
    before = at.rate(calm)
    level = at.peak = at.memory()
    ours, theirs = CONTEXT.Pipe(False)
    attacker = CONTEXT.Process(target=run, args=(name, target, seconds, theirs))
    count, start = at.count(), time.monotonic()
    attacker.start()
    theirs.close()
    limit = seconds + PATIENCE + frames / 200
    try:
        attempts = ours.recv() if ours.poll(limit) else "the attacker did not come to an end"
    except EOFError:
        attempts = "the attacker died"
    during = (at.count() - count) / (time.monotonic() - start)
    attacker.join(5)
    if attacker.is_alive():
        attacker.kill()
        attacker.join()
    wrong = at.faults()
    after = 0.0
    for _ in range(0 if wrong else TRIES):
        after = at.rate(calm)
        if after >= RECOVERED * before:
            break
    if isinstance(attempts, str):
        wrong.append(attempts)
        attempts = 0
    grown = at.peak - level
    if grown > MOST:
        wrong.append(f"the node's memory rose by {grown >> 20} MiB")
    if not wrong and (not during or after < RECOVERED * before):
        wrong.append("honest traffic stopped, or did not recover")
    if not attempts:
        wrong.append("nothing was tried")
    return Seen(at.transport, name, attempts, (before, during, after), grown, wrong)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--attacks", nargs="+", choices=[*ATTACKS, CONTROL, NONE], default=list(ATTACKS))
    parser.add_argument("--seconds", type=float, help="of each attack (6; with --quick 1)")
    parser.add_argument("--frames", type=int, help="mutated frames through the core (1,000,000; with --quick 0)")
    parser.add_argument("--through-sockets", type=int, help="and through each transport (100,000; with --quick 0)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    options.attacks = [name for name in options.attacks if name != NONE]
    for name, much, little in (("seconds", 6.0, 1.0), ("frames", 1_000_000, 0), ("through_sockets", 100_000, 0)):
        if getattr(options, name) is None:
            setattr(options, name, little if options.quick else much)
    return options


def row(seen: Seen) -> list[str]:
    rates = [f"{rate:,.0f}" for rate in seen.rates]
    return [
        seen.transport,
        seen.attack,
        f"{seen.attempts:,}",
        *rates,
        f"{seen.grown / 2**20:.1f}",
        "; ".join(seen.wrong) or "-",
    ]


NONE = "none"
"""Only mutated frames through the core."""

HEADINGS = ("", "attack", "attempts", "items/s before", "during", "after", "memory (MiB)", "wrong")


def shown(results: Sequence[Seen], markdown: bool, console: Console) -> None:
    if markdown:
        lines = [list(HEADINGS), ["---", "---", *["---:"] * 5, "---"], *map(row, results)]
        console.print(
            "\n".join(f"| {' | '.join(line)} |" for line in lines), markup=False, highlight=False, soft_wrap=True
        )
        return
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("", "attack", "wrong") else "right")
    for seen in results:
        table.add_row(*row(seen))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    console = Console(width=None if options.markdown else 150)
    status = Console(stderr=True)
    console.print(f"Python {platform.python_version()}, {multiprocessing.cpu_count()} cores, seed {options.seed}")
    results: list[Seen] = []
    wrong: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=status, transient=True) as progress:
        if options.frames:
            bar = progress.add_task("mutated frames through the core", total=options.frames)
            node = fuzz_node(options.frames, options.seed, lambda done: progress.update(bar, completed=done))
            client = fuzz_client(options.frames // 10, options.seed)
            console.print(
                f"{node.frames:,} mutated frames to the node's core in {node.sessions:,} sessions, {node.refused:,} "
                f"of them refused; {client.frames:,} to clients in {client.sessions:,} sessions"
            )
        bar = progress.add_task("", total=len(options.transports) * len(options.attacks))
        for transport in options.transports if options.attacks else ():
            with party(transport) as at:
                if not at.flows():
                    wrong.append(f"{transport}: no traffic")
                    continue
                for name in options.attacks:
                    progress.update(bar, description=f"{transport}: {name}")
                    frames = options.through_sockets if name == "mutated frames" else 0
                    results.append(attack(at, name, options.seconds, frames))
                    progress.advance(bar)
                    if results[-1].wrong:  # what comes after it would tell nothing
                        break
                else:
                    wrong += [f"{transport}: {each}" for each in at.finish()]
    shown(results, options.markdown, console)
    wrong += [f"{seen.transport}, {seen.attack}: {each}" for seen in results for each in seen.wrong]
    for each in wrong:
        console.print(each, markup=False, highlight=False, soft_wrap=True)
    if not wrong:
        console.print("nothing was read, written, lost or loaded by an attacker, and the node served all the while")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
