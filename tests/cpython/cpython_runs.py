"""Runs of CPython's cases, each in a process of its own, on one implementation and by one start method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["METHODS", "TRANSPORTS", "Run"]

HERE = Path(__file__).parent
TRANSPORTS = os.environ.get("FIBERQ__TEST_TRANSPORTS", "zmq,nng,stream").split(",")
METHODS = ["spawn", "forkserver", "fork"]


class Run:
    """A process that runs some cases on one implementation, by one start method."""

    def __init__(self, what: str, method: str, names: list[str], directory: Path) -> None:
        implementation = {"FIBERQ__TEST_IMPLEMENTATION": "fiberq", "FIBERQ_TRANSPORT": what}
        if what == "multiprocessing":
            implementation = {"FIBERQ__TEST_IMPLEMENTATION": what}
        self._errors = directory / "stderr"
        self._results: dict[str, tuple[str, str]] = {}
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import cases; cases.main()", *names],
                cwd=directory,
                env={**os.environ, **implementation, "FIBERQ__TEST_METHOD": method, "PYTHONPATH": str(HERE)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def result(self, name: str) -> tuple[str, str]:
        """How the case ended, and why; blocks until it has."""
        assert self.process.stdout is not None
        while name not in self._results:
            line = self.process.stdout.readline()
            if not line:
                return "failed", f"the run ended without a word about it:\n{self._errors.read_text()}"
            case, outcome, why, _ = json.loads(line)
            self._results[case] = outcome, why
        return self._results[name]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
