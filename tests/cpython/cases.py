"""The standard library's own tests of multiprocessing, run on fiberq, or as a control on multiprocessing itself.

Run in a process of its own, whose children import this module, too: `FIBERQ__TEST_IMPLEMENTATION` says what is tested,
"fiberq" or "multiprocessing". Nothing of the tests is copied: they are imported from the installed `test` package.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import unittest
from typing import Any

from test import _test_multiprocessing as cpython

HANG = 60
"""Seconds that a case may take before its whole run is ended."""

CLASSES = [
    "_TestConnection",
    "_TestPicklingConnections",
    "_TestPoll",
    "_TestQueue",
    "TestSimpleQueue",
    "TestWait",
]
"""What it tests of queues, connections, polling and waiting."""

OTHERS = [
    "_TestPool",
    "_TestPoolWorkerErrors",
    "_TestPoolWorkerLifetime",
    "TestCloseFds",
    "TestForkAwareThreadLock",
    "TestStdinBadfiledescriptor",
    "TestTimeouts",
]
"""Its other tests that put something through a queue or a pipe. They take the longest, and one transport is enough."""

_DESCRIPTOR = "passes a descriptor as ancillary data of the connection's own descriptor"
_FEEDER = "tests the hooks of the feeder thread; fiberq has none, and `put` raises what it told to them"

LEFT_OUT = {
    "_TestConnection.test_fd_transfer": _DESCRIPTOR,
    "_TestConnection.test_large_fd_transfer": _DESCRIPTOR,
    "_TestConnection.test_missing_fd_transfer": _DESCRIPTOR,
    "_TestPoolWorkerErrors.test_unpickleable_result": "wants a lambda to be refused; fiberq pickles it",
    "_TestQueue.test_queue_feeder_donot_stop_onexc": _FEEDER,
    "_TestQueue.test_queue_feeder_on_queue_feeder_error": _FEEDER,
}


def _use_fiberq(method: str) -> None:
    """Let the tests find fiberq where they look for multiprocessing's queues, pipes, pools and `wait`."""
    from fiberq import get_context, wait

    context = get_context(method)
    for name in ("JoinableQueue", "Pipe", "Pool", "Queue", "SimpleQueue"):
        setattr(multiprocessing, name, getattr(context, name))
        setattr(cpython.ProcessesMixin, name, staticmethod(getattr(context, name)))
    multiprocessing.connection.wait = wait  # type: ignore[assignment]


def _concrete(name: str) -> type[unittest.TestCase]:
    """The class `name` as unittest can run it, and its children find it: in this module."""
    base = getattr(cpython, name)
    bases = (base,) if issubclass(base, unittest.TestCase) else (base, cpython.ProcessesMixin, unittest.TestCase)
    return type(name, bases, {"__module__": __name__})


if os.environ.get("FIBERQ__TEST_IMPLEMENTATION") == "fiberq":
    _use_fiberq(os.environ["FIBERQ__TEST_METHOD"])
for _name in CLASSES + OTHERS:
    globals()[_name] = _concrete(_name)


def names(classes: list[str]) -> list[str]:
    """All cases of these classes, without those that are left out."""
    cases = unittest.defaultTestLoader.getTestCaseNames
    found = [f"{name}.{case}" for name in classes for case in cases(globals()[name])]
    return [name for name in found if name not in LEFT_OUT]


class _Result(unittest.TestResult):
    """Says of each case, on the standard output it was started with, how it ended: a line of JSON."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self._say = say
        self._ended = ("passed", "")

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._ended = ("passed", "")
        self._began = time.monotonic()
        faulthandler.dump_traceback_later(HANG, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        name = f"{type(test).__name__}.{test._testMethodName}"
        print(json.dumps([name, *self._ended, time.monotonic() - self._began]), file=self._say, flush=True)

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self._ended = ("failed", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._ended = ("failed", self.failures[-1][1])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._ended = ("skipped", reason)


def main() -> None:
    """Run the cases that the arguments name."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the cases print is no result
    multiprocessing.set_start_method(os.environ["FIBERQ__TEST_METHOD"], force=True)
    multiprocessing.set_forkserver_preload([__name__])
    cases = [globals()[name.partition(".")[0]](name.partition(".")[2]) for name in sys.argv[1:]]
    unittest.TestSuite(cases).run(_Result(say))
