"""Closing from any thread: it wakes who is blocked, and the last one who leaves lets go of the descriptors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fiberq.errors import ClosedError
from fiberq.wakeup import Wakeup

LONGEST = 3600.0
"""Seconds of one wait at most: `poll` cannot count very long ones."""


def remaining(deadline: float | None) -> float | None:
    """Return for how many seconds to wait now, 0 when the deadline has passed; `None` when there is none."""
    return None if deadline is None else min(max(deadline - time.monotonic(), 0.0), LONGEST)


class Gate:
    """Everybody who uses a socket's descriptors is inside, by `with gate:`, which raises `ClosedError` after `close`.

    A descriptor that is closed while a thread waits for it may be somebody else's a moment later. So `close` only sets
    the bell, for which all who wait inside wait, too; the descriptors are let go of when nobody is inside any more. (Or
    they are garbage collected, if ever a signal handler raises just when a thread enters or leaves.)
    """

    def __init__(self, withdraw: Callable[[], None], let_go: Callable[[], None]) -> None:
        """`withdraw` tells the world of the end, `let_go` closes this process's descriptors."""
        self.lock = threading.RLock()  # A signal handler may close a socket that this very thread has locked.
        self.bell = Wakeup()
        self.closed = False
        self._withdraw, self._let_go = withdraw, let_go
        self._inside = 0

    def check(self) -> None:
        if self.closed:
            raise ClosedError("stream: the socket is closed")

    def __enter__(self) -> None:
        with self.lock:
            if self.closed:
                self.check()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self._inside -= 1
            if self.closed:
                self._end()

    def close(self) -> None:
        with self.lock:
            if not self.closed:
                self.closed = True
                self._withdraw()
                self.bell.set()
                self._end()

    def _end(self) -> None:
        if self.closed and not self._inside:
            self._let_go()
