"""How the driver learns whether a system is drained, and how it tells the readers to end."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Protocol

from fiberq.errors import NodeError


class Probe(Protocol):
    def drained(self, timeout: float) -> bool:
        """Whether nothing waits, and nobody holds what is to be reported done."""

    def finish(self) -> bool:
        """Let the readers end, which will find nothing more; return whether they do so by themselves."""


class QueueProbe:
    """Asks the node. The driver is one of its processes: if it was itself given up, it comes again."""

    def __init__(self, make: Callable[[], Any], joins: bool) -> None:
        self._make = make
        self._queue = make()
        self._joins = joins

    def drained(self, timeout: float) -> bool:
        try:
            return self._queue.qsize() == 0 and (not self._joins or bool(self._queue.join(timeout)))
        except NodeError as error:
            if "session ended" not in str(error):
                raise
            self._queue = self._make()
            return False

    def finish(self) -> bool:
        self._queue.shutdown()
        return True


class PipeProbe:
    """A pipe tells its readers when all was read and nobody writes any more."""

    def __init__(self, left: Any, right: Any) -> None:
        self._ends = left, right

    def drained(self, timeout: float) -> bool:  # noqa: ARG002 - the readers find out
        return True

    def finish(self) -> bool:
        for end in self._ends:
            end.close()
        return True


class NoProbe:
    """What is quiet is all that it will ever be; readers do not end."""

    def __init__(self, handle: Any = None) -> None:
        self._queue = handle

    def drained(self, timeout: float) -> bool:  # noqa: ARG002
        try:
            return self._queue is None or self._queue.qsize() <= 0
        except (NotImplementedError, queue.Empty):
            return True

    def finish(self) -> bool:
        return False
