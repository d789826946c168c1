"""Tells whether a child that handles were given to is gone, although it never used them.

A forked child inherits the writing end of a pipe and never closes it, so when the other end is at its end, the child
is, too. For a child that multiprocessing starts, multiprocessing's record of the child knows.
"""

from __future__ import annotations

import os
import select
import weakref
from typing import Any, Protocol

_kept: list[int] = []
"""The writing ends that this process inherited, which stay open as long as it lives."""


class Lifeline(Protocol):
    def broken(self) -> bool:
        """Whether the child is gone. Never blocks."""


class ForkLifeline:
    """Made just before a fork; afterwards each side says which it is."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def in_parent(self) -> None:
        os.close(self._write)
        self._write = -1

    def in_child(self) -> None:
        self.close()
        _kept.append(self._write)

    def broken(self) -> bool:
        return _readable(self._read)

    def close(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def __del__(self) -> None:
        self.close()


class SpawnLifeline:
    """`popen` is multiprocessing's record of a child that is being started."""

    def __init__(self, popen: Any) -> None:
        self._popen = weakref.ref(popen)

    def broken(self) -> bool:
        popen = self._popen()
        if popen is None or getattr(popen, "returncode", None) is not None:
            return True
        if getattr(popen, "pid", None) is None:
            return False  # a fork server sends the pid through the sentinel first
        sentinel = getattr(popen, "sentinel", None)
        return sentinel is not None and _readable(sentinel)


def _readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
