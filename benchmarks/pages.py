"""What the first use of memory costs, which is why `fiberq/memory.py` uses it again: ``python -m benchmarks.pages``.

A memfd of 16 MiB, in places of 1 MiB. Each is written by a system call, as a slot's first item is; then a megabyte is
copied into it by a mapping, twice, and out of it by another process's mapping (here, a second one of this process).
"""

from __future__ import annotations

import mmap
import os
import platform
import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

SHEET, PLACE = 16 << 20, 1 << 20
REPETITIONS = 10
POPULATE_READ = 22  # madvise(2), since Linux 5.14


def took(action: Callable[[], object]) -> float:
    """Microseconds."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e6


def measure(populate: bool) -> dict[str, float]:
    """Medians, in microseconds, of each step for one place."""
    data = os.urandom(1_000_000)
    found: dict[str, list[float]] = {}

    def note(step: str, action: Callable[[], object]) -> None:
        found.setdefault(step, []).append(took(action))

    for _ in range(REPETITIONS):
        file = os.memfd_create("pages")
        os.ftruncate(file, SHEET)
        with mmap.mmap(file, SHEET) as ours, mmap.mmap(file, SHEET, prot=mmap.PROT_READ) as theirs:

            def copy_in(place: int, ours: mmap.mmap = ours) -> None:
                ours[place : place + len(data)] = data

            for place in range(0, SHEET, PLACE):
                note("written by a call, first", lambda file=file, place=place: os.pwrite(file, data, place))
                if populate:
                    note("mapped ahead", lambda ours=ours, place=place: ours.madvise(POPULATE_READ, place, PLACE))
                note("copied in, first", lambda copy_in=copy_in, place=place: copy_in(place))
                note("copied in, again", lambda copy_in=copy_in, place=place: copy_in(place))
                for step in ("copied out, first", "copied out, again"):
                    note(step, lambda theirs=theirs, place=place: theirs[place : place + len(data)])
        os.close(file)
    return {step: statistics.median(values) for step, values in found.items()}


def main() -> None:
    table = Table("us for 1 MB, medians", "as it is", "MADV_POPULATE_READ", title=f"Linux {platform.release()}")
    plain, populated = measure(False), measure(True)
    for step, value in populated.items():
        table.add_row(step, f"{plain[step]:.0f}" if step in plain else "", f"{value:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
