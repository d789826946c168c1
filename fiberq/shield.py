"""A lock whose holder is not interrupted by a signal's handler.

A handler that raises, as the one for Ctrl-C does, may do so between any two instructions of the main thread; in the
middle of the protocol's bookkeeping that would leave it half done. So the main thread blocks the signals that commonly
have such handlers while it holds the lock; they arrive when it lets go. Where the program has threads of its own, the
system may deliver a signal through one of those, and the protection is not complete.
"""

from __future__ import annotations

import signal
import threading
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
"""Few, because each costs time at each use of the lock."""


class ShieldedLock:
    """A context manager; not reentrant. Waiting for it is not interrupted either, so hold it for moments only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._main = threading.main_thread().ident
        self._mask: set[int] = set()

    def __enter__(self) -> None:
        if threading.get_ident() != self._main:
            self._lock.acquire()
            return
        try:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            self._lock.acquire()
        except BaseException:  # the handler of a signal that came just before
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            raise
        self._mask = mask

    def __exit__(self, *_: object) -> None:
        try:
            self._lock.release()
        finally:  # also when a handler raises here, of a signal that came by another thread
            if threading.get_ident() == self._main:
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def block_signals() -> None:
    """Leave this process's signals to its other threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
