"""Shows outcomes: as tables, as Markdown for docs/reliability.md, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.faults.driver import Outcome
from benchmarks.faults.plan import Fault

COUNTS = (
    "",
    "attempted",
    "acknowledged",
    "ok",
    "lost",
    "unexpected",
    "wedged",
    "duplicated",
    "recovered",
    "inversions",
    "handed on",
    "drained",
    "loss < (95 %)",
)
DEATHS = (
    "",
    "faults",
    "amid traffic",
    "told",
    "errors",
    "in flight p50/max",
    "redelivery p50/p99/max (ms)",
    "the same over TCP",
    "redone slow max",
    "redone fast p50/max",
    "node (MB)",
    "s",
    "items/s",
)


def counts(outcome: Outcome) -> list[str]:
    figures = outcome.figures
    bound = "" if math.isnan(figures.bound) else f"{figures.bound:.1e}"
    numbers = [
        figures.attempted,
        figures.acknowledged,
        figures.ok,
        figures.lost,
        figures.unexpected,
        len(outcome.wedged),
        figures.duplicated,
        figures.recovered,
        figures.inversions,
        figures.handed_on,
    ]
    return [outcome.name, *(f"{each:,}" for each in numbers), "yes" if outcome.drained else "NO", bound]


def deaths(outcome: Outcome) -> list[str]:
    figures = outcome.figures
    latencies, over_tcp = ([1000 * each for each in some] for some in (figures.latencies, figures.tcp_latencies))
    return [
        outcome.name,
        str(sum(outcome.faults.values())),
        str(figures.amid),
        str(outcome.told),
        str(len(outcome.errors)),
        _quantiles(figures.in_flight, (0.5, 1.0)),
        _quantiles(latencies, (0.5, 0.99, 1.0)),
        _quantiles(over_tcp, (0.5, 0.99, 1.0)),
        _quantiles(figures.redone_slow, (1.0,)),
        _quantiles(figures.redone_fast, (0.5, 1.0)),
        f"{outcome.node_kb / 1024:.0f}",
        f"{outcome.seconds:.0f}",
        f"{figures.ok / outcome.seconds if outcome.seconds else 0:,.0f}",
    ]


def kinds(outcome: Outcome) -> list[str]:
    return [outcome.name, *(str(outcome.faults.get(each.value, 0)) for each in Fault)]


KINDS = ("", *(each.value for each in Fault))
TABLES = ((COUNTS, counts), (DEATHS, deaths), (KINDS, kinds))


def _quantiles(values: Sequence[float], at: Sequence[float]) -> str:
    if not values:
        return "-"
    ranked = sorted(values)
    return " / ".join(f"{ranked[min(len(ranked) - 1, int(each * len(ranked)))]:,.0f}" for each in at)


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    made = []
    for headings, row in TABLES:
        table = Table()
        for heading in headings:
            table.add_column(heading, justify="right" if heading else "left")
        for outcome in outcomes:
            table.add_row(*row(outcome))
        made.append(table)
    return made


def markdown(outcomes: Sequence[Outcome]) -> str:
    blocks = []
    for headings, row in TABLES:
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *map(row, outcomes)]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks)


def as_json(outcome: Outcome) -> dict[str, Any]:
    figures = dict(vars(outcome.figures))
    figures["bound"] = None if math.isnan(outcome.figures.bound) else outcome.figures.bound
    return {**vars(outcome), "figures": figures, "failed": outcome.failed}
