"""What goes into a measurement, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

Make: TypeAlias = Callable[[], Any]
"""Makes a queue."""


class Size(NamedTuple):
    items: int
    producers: int = 1
    consumers: int = 1


class Figures(NamedTuple):
    """One repetition: the figure that is compared, in items a second, microseconds or seconds; others, by their
    headings; and what a picture needs."""

    value: float
    extra: dict[str, float] = {}  # noqa: RUF012 - nobody changes it
    series: list[float] = []  # noqa: RUF012


def percentile(values: list[float], percent: int) -> float:
    """The value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
