"""The pictures: throughput by payload, and by writers and readers; the latencies; the node's memory by depth."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from fiberq.bench.crew import BenchError
from fiberq.bench.runs import Result

Axes = Any
PAYLOADS = ("ints", "dict", "1KB", "4KB", "20KB", "64KB", "1MB", "array")


def check() -> None:
    """Raise `BenchError` if no picture can be made."""
    if find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib, which is not installed: pip install matplotlib")


def plot(results: list[Result], directory: str) -> list[str]:
    """Write those pictures for which something was measured; return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=matplotlib.colormaps["tab20"].colors)
    from matplotlib import pyplot

    os.makedirs(directory, exist_ok=True)
    paths = []
    for name, draw in PICTURES.items():
        figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
        if draw(axes, results):
            axes.legend(fontsize="small")
            axes.grid(alpha=0.3)
            paths.append(os.path.join(directory, f"{name}.png"))
            figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)
    return paths


def payloads(axes: Axes, results: list[Result]) -> bool:
    kinds = [result for result in results if result.case.work in PAYLOADS and result.case.size[1:] == _fewest(results)]
    names = [name for name in PAYLOADS if any(result.case.work == name for result in kinds)]
    for contender, own in _by_contender(kinds).items():
        rates = sorted((names.index(result.case.work), statistics.median(result.values)) for result in own)
        axes.plot(*zip(*rates, strict=True), marker="o", label=contender)
    axes.set(xticks=range(len(names)), xticklabels=names, yscale="log", ylabel="items/s", title="throughput by payload")
    return bool(kinds)


def processes(axes: Axes, results: list[Result]) -> bool:
    own = [result for result in results if result.case.work == "ints"]
    numbers = list(dict.fromkeys(result.case.size[1:] for result in own))
    for contender, its in _by_contender(own).items():
        rates = {result.case.size[1:]: statistics.median(result.values) for result in its}
        axes.plot([numbers.index(each) for each in rates], list(rates.values()), marker="o", label=contender)
    labels = [f"{producers} to {consumers}" for producers, consumers in numbers]
    axes.set(xticks=range(len(numbers)), xticklabels=labels, ylabel="items/s", title="small ints, writers to readers")
    axes.set_ylim(bottom=0)
    return len(numbers) > 1


def latencies(axes: Axes, results: list[Result]) -> bool:
    own = [result for result in results if result.case.work == "ping-pong"]
    for result in own:
        percentiles = list(zip(*(each.series for each in result.figures), strict=True))
        axes.plot([statistics.median(each) for each in percentiles], range(101), label=result.contender)
    axes.set(xscale="log", xlabel="us", ylabel="percent of round trips", title="a lone item's round trip")
    return bool(own)


def memory(axes: Axes, results: list[Result]) -> bool:
    own = [result for result in results if result.case.work == "depth" and result.figures[0].series]
    for result in own:
        steps = list(zip(*(each.series for each in result.figures), strict=True))
        items = [result.case.size.items * (number + 1) / len(steps) / 1e6 for number in range(len(steps))]
        axes.plot(items, [statistics.median(each) / 1e6 for each in steps], marker="o", label=result.contender)
    axes.set(xlabel="million items in the queue", ylabel="MB", title="what the node has grown by")
    return bool(own)


PICTURES: dict[str, Callable[[Axes, list[Result]], bool]] = {
    "payloads": payloads,
    "processes": processes,
    "latencies": latencies,
    "memory": memory,
}


def _by_contender(results: list[Result]) -> dict[str, list[Result]]:
    return {
        name: [result for result in results if result.contender == name]
        for name in dict.fromkeys(result.contender for result in results)
    }


def _fewest(results: list[Result]) -> tuple[Any, ...]:
    return min((result.case.size[1:] for result in results if result.case.work in PAYLOADS), default=())
