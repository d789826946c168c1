"""A table for each kind of work and number of processes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich.table import Table

from fiberq.bench.runs import Case, Result
from fiberq.bench.work import WORK


def tables(results: list[Result]) -> Iterator[Table]:
    for title, headings, rows in _grids(results):
        table = Table(title=title, title_justify="left")
        for heading in headings:
            table.add_column(heading, justify="right" if heading else "left")
        for row in rows:
            table.add_row(*row)
        yield table


def markdown(results: list[Result]) -> Iterator[str]:
    for title, headings, rows in _grids(results):
        marks = ["---", *["---:"] * (len(headings) - 1)]
        yield "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in (headings, marks, *rows)), ""])


def _grids(results: list[Result]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    for case in dict.fromkeys(result.case for result in results):
        yield _grid(case, [result for result in results if result.case == case])


def _grid(case: Case, results: list[Result]) -> tuple[str, list[str], list[list[str]]]:
    """A table's title, headings and rows."""
    work, size = WORK[case.work], case.size
    title = f"{case.work}: {work.title}; {size.items:,}"
    if work.spreads:
        title += f", {size.producers} to {size.consumers} processes"
    compared = any(result.ratios for result in results)
    better = "less" if work.lower else "more"
    headings = ["", work.unit, "lowest", "highest"]
    if compared:
        headings += [f"ratio to {work.reference} ({better} is better)", "lowest", "highest"]
    extra = list(dict.fromkeys(heading for result in results for heading in result.figures[0].extra))
    rows = []
    for result in results:
        row = [result.contender, *(shown(each, work.unit) for each in _spread(result.values))]
        if compared:
            row += [f"{each:.2f}" for each in _spread(result.ratios)]
        rows.append([*row, *(_number(result.extra(heading)) for heading in extra)])
    return f"{title} (median of {len(results[0].figures)})", [*headings, *extra], rows


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def shown(value: float, unit: str) -> str:
    return _number(value / 1000 if unit.startswith("k ") else value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
