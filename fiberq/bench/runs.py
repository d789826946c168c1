"""All repetitions of all that was chosen, and what they amount to: medians, and ratios within a repetition."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from fiberq.bench.contenders import Contender, standard
from fiberq.bench.crew import BenchError, Crew
from fiberq.bench.values import Figures, Size
from fiberq.bench.work import WORK

GRACE: Final = 10.0
"""Seconds that a measurement has to say by itself what it waits for, when its time is over."""


class Case(NamedTuple):
    """One table: a kind of work, and its size."""

    work: str
    size: Size

    def __str__(self) -> str:
        size = self.size
        spread = f", {size.producers} to {size.consumers}" if WORK[self.work].spreads else ""
        return f"{self.work}{spread}"


class Result(NamedTuple):
    """The figures of one contender, one for each repetition; the ratios are to the reference's in the same one."""

    case: Case
    contender: str
    figures: list[Figures]
    ratios: list[float]

    @property
    def values(self) -> list[float]:
        return [each.value for each in self.figures]

    def extra(self, heading: str) -> float | None:
        """The median of another figure; `None` if it was not found."""
        values = [each.extra[heading] for each in self.figures if heading in each.extra]
        return statistics.median(values) if values else None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        work = WORK[self.case.work]
        headings = self.figures[0].extra
        return {
            "work": self.case.work,
            **self.case.size._asdict(),
            "contender": self.contender,
            "unit": work.unit.removeprefix("k "),
            "median": statistics.median(self.values),
            "values": self.values,
            "reference": work.reference if self.ratios else None,
            "ratio": statistics.median(self.ratios) if self.ratios else None,
            "ratios": self.ratios,
            "extra": {heading: self.extra(heading) for heading in headings},
            "series": [each.series for each in self.figures],
        }


def plan(
    cases: Sequence[Case], contenders: Sequence[Contender], repetitions: int, compared: bool
) -> Iterator[tuple[Case, Contender]]:
    """What is measured, in this order: all contenders, after what they are `compared` to, take turns in each
    repetition."""
    for case in cases:
        reference = WORK[case.work].reference
        taking = [each for each in contenders if each.fiberq or (reference and each.name != reference)]
        if compared and reference:
            taking.insert(0, standard(reference))
        for _ in range(repetitions):
            for contender in taking:
                yield case, contender


def measure(case: Case, contender: Contender, seconds: float) -> Figures:
    """One measurement, in processes of its own, which are gone afterwards. Blocks for at most `seconds`, and `GRACE`;
    raises `BenchError` if it fails, or takes longer."""
    with TemporaryDirectory(prefix="fiberq-bench-") as directory:
        crew = Crew(seconds + GRACE)
        try:
            figures: Figures = crew.hear(
                crew.start("it", stage, case, contender, directory, seconds, directory=directory),
            )
        except BenchError as error:
            raise BenchError(f"{case}, {contender.name}: {str(error).removeprefix('it: ')}") from None
        finally:
            crew.end()
    return figures


def stage(talk: Connection[Any, Any], case: Case, contender: Contender, directory: str, seconds: float) -> None:
    """Measure, and say the figures. What this process started ends with it."""
    crew = Crew(seconds)
    talk.send(WORK[case.work].measure(crew, partial(contender.make, crew, directory), case.size))


def results(found: dict[tuple[Case, str], list[Figures]]) -> list[Result]:
    """The figures of each case and contender, with their ratios."""
    made = []
    for (case, contender), figures in found.items():
        reference = found.get((case, WORK[case.work].reference or ""), [])
        pairs = zip(figures, reference, strict=True) if reference else ()
        made.append(Result(case, contender, figures, [mine.value / other.value for mine, other in pairs]))
    return made
