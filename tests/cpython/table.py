"""Prints how many of CPython's own cases hold, by implementation and start method, as a table in Markdown."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import cases
from cpython_runs import METHODS, TRANSPORTS, Run


def main() -> int:
    """Return 1 if a case fails."""
    ours, others = cases.names(cases.CLASSES), cases.names(cases.OTHERS)
    print(f"| | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
    failed: list[str] = []
    for what in ["multiprocessing", *TRANSPORTS]:
        cells = []
        for method in METHODS:
            names = ours + (others if what in ("multiprocessing", TRANSPORTS[0]) else [])
            with tempfile.TemporaryDirectory() as directory:
                run = Run(what, method, names, Path(directory))
                results = {name: run.result(name) for name in names}
                run.end()
            counts = Counter(outcome for outcome, _ in results.values())
            cells.append(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
            failed += [f"{what}, {method}: {each}: {why}" for each, (how, why) in results.items() if how == "failed"]
        print(f"| {what} | {' | '.join(cells)} |", flush=True)
    print(*failed, sep="\n", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
