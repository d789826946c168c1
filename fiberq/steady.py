"""The node's clock. It stands still while its process is stopped, or gets no processor: what others said meanwhile the
node has yet to hear, so nobody's time is up because of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

HICCUP: Final = 0.1
"""Seconds that a process may be late without having been stopped."""


class Steady:
    """`now` is the time of the last `advance`, in seconds."""

    __slots__ = ("_monotonic", "missed", "now")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.missed = 0.0  # seconds that it stood still, in all
        self.now = monotonic()

    def advance(self, due: float) -> float:
        """Go on, and return the time; unless it is so much later than `due`, when this was to be called at the latest,
        that the process must have been stopped."""
        now = self._monotonic() - self.missed
        if now > due + HICCUP:
            self.missed += now - self.now
        else:
            self.now = now
        return self.now
