"""Installs the wrong transports as plug-ins, and runs the contract suite against them, a few at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from fiberq_contract.report import Report
from fiberq_contract.rules import RULES
from fiberq_contract.run import run

sys.path.insert(0, str(Path(__file__).parent))

from wrong import everyone, usable
from wrong.right import Right

__all__ = ["Runs", "broken", "install", "may_break"]

JOBS = int(os.environ.get("FIBERQ__SELFTEST_JOBS", "3"))
"""Runs at the same time; they wait more than they work."""

PATIENCE = "3"
"""Seconds after which these runs take something for never happening; most of them wait for just that."""


def install(directory: Path) -> None:
    """Let this process, and all that get its `sys.path` by PYTHONPATH, find the wrong transports, and the right one."""
    metadata = directory / "wrong_transports-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-transports\nVersion: 1.0\n")
    lines = [f"{each.name} = {each.target()}" for each in (Right, *usable())]
    (metadata / "entry_points.txt").write_text("\n".join(["[fiberq.transports]", *lines, ""]))
    sys.path.insert(0, str(directory))
    os.environ["FIBERQ__CONTRACT_PATIENCE"] = PATIENCE


class Runs:
    """What the suite says of transports: quickly, of the rule that one breaks or, if `full`, of all rules."""

    def __init__(self, wanted: Iterable[tuple[str, bool]]) -> None:
        self._pool = ThreadPoolExecutor(JOBS)
        breaks = {each.name: [each.breaks] for each in everyone()}
        self._runs: dict[tuple[str, bool], Future[Report]] = {
            (name, full): self._pool.submit(run, name, rules=RULES if full else breaks[name], quick=True)
            for name, full in wanted
        }

    def report(self, name: str, *, full: bool) -> Report:
        """Blocks until it is there."""
        return self._runs[name, full].result()

    def close(self) -> None:
        """Forget what has not begun, and wait for what has."""
        self._pool.shutdown(cancel_futures=True)


def broken(report: Report) -> set[str]:
    """The rules that the suite found broken."""
    return {each.id for each in report.having("broken")}


def may_break(wrong: type[Right]) -> set[str]:
    """The rule that a wrong transport breaks, and those that may be broken with it."""
    return {each for each in RULES if each == wrong.breaks or {each, each.partition("-")[0]} & wrong.also}
