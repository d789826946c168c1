"""Tells the log of the clients that a transport turned away: who, why, and never more lines than a disk can bear.

They are strangers: there may be any number of them, and nothing that they say is told.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

__all__ = ["Refusals"]

log = logging.getLogger("fiberq.node")

PERIOD: Final = 10.0
"""Seconds."""

LINES: Final = 10
"""Lines in a period, and one more that says how many clients have none."""

LONGEST: Final = 200
"""Characters that are shown of what a transport says."""


class Refusals:
    """What a server socket's `refused` is. Never raises, and may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._room = 0
        self._more = 0

    def __call__(self, end: object, why: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                self._say_how_many()
                self._until, self._room = now + PERIOD, LINES
            if self._room:
                self._room -= 1
                log.warning("a client%s was refused: %s", _place(end), _shown(why))
                return
            self._more += 1
            if self._more == 1:
                self._say_later(self._until - now)

    def _say_how_many(self) -> None:
        if self._more:
            log.warning("%d more clients were refused in %g s", self._more, PERIOD)
            self._more = 0

    def _say_later(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._end_of_period)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            pass  # The process has too many threads: then the next period's first line comes with it.

    def _end_of_period(self) -> None:
        with self._lock:
            self._say_how_many()


def _place(end: object) -> str:
    """Where a connection comes from, if that is known."""
    if end is None:
        return ""
    if isinstance(end, tuple) and len(end) >= 2:
        host, port = end[:2]
        return f" at {_shown(f'[{host}]:{port}' if ':' in str(host) else f'{host}:{port}')}"
    return " on this machine"


def _shown(text: str) -> str:
    text = str(text)[:LONGEST]
    return text if text.isprintable() else ascii(text)
