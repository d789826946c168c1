"""Runs the suite against one transport, in a process of its own: a transport that crashes or hangs breaks a rule, and
the rest is tested all the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from fiberq import registry
from fiberq.errors import FiberqError

from .processes import environment
from .report import Report, Result
from .rules import Rule

__all__ = ["run"]

SILENCE: Final = 100.0
"""Seconds without any news after which the process of the tests is killed; its own watchdog comes first."""

GRACE: Final = 5.0
"""Seconds that the tests have to end themselves."""

LAST_WORDS: Final = 16
"""Lines of the output of a process that died."""

MAX_DEATHS: Final = 10
"""So many times the tests go on in a new process; then the rest stays untested."""

MAX_WASTE: Final = 180.0
"""Seconds that tests which fail may take altogether; then the rest stays untested. A right transport wastes none."""

NEXT: Final = ", so the run was stopped; mend what is broken first, or test the rest with --rule"


def run(
    name: str,
    *,
    rules: Iterable[str],
    quick: bool = False,
    on_start: Callable[[str], None] = lambda _: None,
    on_decided: Callable[[Report, Rule], None] = lambda _report, _rule: None,
) -> Report:
    """Test the installed transport `name`; blocks until all is done.

    `rules` are ids of RULES.md. `on_start` is called with the name of each test, `on_decided` with each rule whose
    tests are done. Raises `fiberq.errors.UnknownTransport` and `fiberq.errors.TransportLoadError`.
    """
    target, capabilities = registry.resolve(name), registry.load(name).capabilities
    report = Report(name, target, capabilities, rules, quick)
    run = _Run(report, on_start, on_decided)
    with tempfile.TemporaryDirectory(prefix="fq") as directory:
        for _ in range(MAX_DEATHS + 1):
            with contextlib.closing(_Tests(report, Path(directory))) as tests:
                ended = any(map(run.ends_with, tests.events()))
            if not ended:
                run.died(tests)
            if ended or report.stopped:
                return report
    report.stopped = f"the process of the tests died {MAX_DEATHS + 1} times{NEXT}"
    return report


class _Run:
    """Takes in what happens, whichever process of pytest tells it."""

    def __init__(
        self, report: Report, on_start: Callable[[str], None], on_decided: Callable[[Report, Rule], None]
    ) -> None:
        self._report, self._on_start, self._on_decided = report, on_start, on_decided
        self._began = self._test_began = time.monotonic()
        self._test = ""
        self._any_news = False
        self._wasted = 0.0

    def ends_with(self, event: dict[str, Any]) -> bool:
        """Take in an event; whether nothing comes after it."""
        if "plan" in event:
            self._report.plan(event["plan"])
        elif "start" in event:
            self._test, self._test_began = event["start"], time.monotonic()
            self._on_start(self._test)
        elif "result" in event:
            self._test = ""
            self._note(Result(*event["result"]))
        return "end" in event or bool(self._report.stopped)

    def died(self, tests: _Tests) -> None:
        """The process is gone before its end: a test killed it."""
        if self._test:
            dead = Result(self._test, "failed", time.monotonic() - self._test_began, tests.story())
            self._test = ""
            self._note(dead)
            tests.skip(dead)
        elif not self._any_news:
            raise FiberqError(f"the tests did not run: {tests.story()}")

    def _note(self, result: Result) -> None:
        self._any_news = True
        self._report.seconds = time.monotonic() - self._began
        for each in self._report.add(result):
            self._on_decided(self._report, each)
        self._wasted += result.seconds if result.outcome == "failed" else 0.0
        if self._wasted > MAX_WASTE:
            self._report.stopped = f"tests that fail or hang took {self._wasted:.0f} s altogether{NEXT}"


class _Tests:
    """A process of pytest, and the events that it writes to a file."""

    def __init__(self, report: Report, directory: Path) -> None:
        self._directory = directory
        self._events = directory / "events"
        self._events.touch()
        self._offset = self._events.stat().st_size
        self._output = open(directory / "output", "w+", errors="replace")  # noqa: SIM115  (`close` closes it)
        arguments = ["--pyargs", __package__ or "", "--transport", report.transport, "--fiberq-events", self._events]
        arguments += ["--fiberq-quick"] * report.quick
        arguments += [f"--fiberq-rule={each.id}" for each in report.rules]
        # Nothing of the folder in which this is run, and no other plug-in of pytest's, has a say.
        bare = ["-c", os.devnull, "--rootdir", directory, "-p", "no:cacheprovider", "-p", f"{__package__}.plugin"]
        variables = {**environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        variables["TMPDIR"] = str(directory)  # so that nothing stays when a test dies
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", *map(str, bare + arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=variables,
            start_new_session=True,
        )

    def close(self) -> None:
        """End the process if it is still there: as Ctrl-C does, so that it ends what it started, then by force."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """What happens, as it happens, until the process has ended or was silent for too long."""
        news = time.monotonic()
        with open(self._events, encoding="utf-8") as file:
            file.seek(self._offset)
            line = ""
            while True:
                ended = self._process.poll() is not None
                line += file.readline()
                if line.endswith("\n"):
                    news = time.monotonic()
                    yield json.loads(line)
                    line = ""
                elif ended or time.monotonic() - news > SILENCE:
                    return
                else:
                    time.sleep(0.01)

    def skip(self, result: Result) -> None:
        """Let the next process go on behind the test that ended this one."""
        with open(self._events, "a", encoding="utf-8") as file:
            file.write(json.dumps({"result": result}) + "\n")

    def story(self) -> str:
        """How the process ended, and what it said last."""
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        said = (self._directory / "output").read_text(errors="replace").splitlines()
        said = [line for line in said if not any(each in line for each in ("/_pytest/", "/pluggy/", "<frozen runpy>"))]
        fatal = [number for number, line in enumerate(said) if "Fatal Python error" in line or "Timeout (" in line]
        said = said[fatal[-1] :][:LAST_WORDS] if fatal else said[-LAST_WORDS:]
        return "\n".join([f"the process of the tests {how}; its last words:", *said])
