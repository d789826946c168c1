"""The lock that signals' handlers do not interrupt: whatever happens, signals are not blocked afterwards."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from fiberq.shield import SIGNALS, ShieldedLock


class Interrupted(Exception):
    pass


class Lock:
    """A lock; in letting go of it, a handler raises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()
        raise Interrupted


def blocked() -> set[Any]:
    return set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_signals_are_blocked_while_the_lock_is_held() -> None:
    with ShieldedLock():
        assert blocked() == set(SIGNALS)
    assert not blocked()


def test_signals_are_not_left_blocked_by_a_handler_that_raises_at_the_end() -> None:
    lock: Any = ShieldedLock()
    lock._lock = Lock()
    with pytest.raises(Interrupted), lock:
        pass
    try:
        assert not blocked()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
