"""A lock whose holder is not interrupted by a signal's handler.

A handler that raises, as the one for Ctrl-C does, may do so between any two instructions of the main thread; in the
middle of the protocol's bookkeeping that would leave it half done. So while the main thread holds the lock, the signals
that commonly have such handlers are handled by one that only takes note; theirs run when the lock is let go. To block
the signals instead would not do: the system then delivers them through any other thread that takes them (numpy's, say),
and Python still runs the handler in the main thread, at once.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` itself spends most of its time on making enums
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_NAMES = "SIGINT SIGTERM SIGALRM SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGCHLD SIGPROF SIGVTALRM"
SIGNALS: Final = tuple(int(getattr(signal, name)) for name in _NAMES.split())
"""Not all that there are, because each costs time at each use of the lock."""

Handler = Callable[[int, FrameType | None], Any]

_get_handler: Final[Callable[[int], Any]] = _signal.getsignal
_set_handler: Final[Callable[[int, Handler], Any]] = _signal.signal


class ShieldedLock:
    """A context manager; not reentrant: the handler of another signal that comes back here, or a destructor, gets a
    `RuntimeError` instead of waiting for itself. Waiting for it is not interrupted either, so hold it for moments only.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()  # which knows its owner
        self._main = threading.main_thread().ident
        self._pid = os.getpid()
        self._shielded = False
        self._handlers: dict[int, Handler] = {}  # that are replaced, by signal
        self._plan: tuple[list[Any], list[int]] = [], []
        """The handlers found last, and the signals that have one in Python; one object: such a handler may raise."""
        self._late: list[tuple[int, FrameType | None]] = []  # signals that came meanwhile
        self._note: Handler = self._take_note  # one object, to be known again

    def __enter__(self) -> None:
        if self._lock._is_owned():
            raise RuntimeError("a queue or pipe was used while this thread was in the middle of using one")
        if threading.get_ident() != self._main:
            self._lock.acquire()
            return
        try:
            found = list(map(_get_handler, SIGNALS))
            if found != self._plan[0]:
                self._plan = found, [number for number, each in zip(SIGNALS, found, strict=True) if callable(each)]
            for number in self._plan[1]:
                handler = _get_handler(number)
                if callable(handler) and handler is not self._note:
                    self._handlers[number] = handler
                    _set_handler(number, self._note)
            self._shielded = True
            self._lock.acquire()
        except BaseException:  # of a handler that was not replaced yet, or is not one of these signals'
            if self._lock._is_owned():
                self._lock.release()
            self._restore()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.get_ident() == self._main:
            self._restore()

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if self._shielded and os.getpid() == self._pid:
            self._late.append((number, frame))
        else:  # another handler raised before this one was put back, or another thread forked meanwhile
            _set_handler(number, self._handlers[number])
            self._handlers[number](number, frame)

    def _restore(self) -> None:
        """Put the handlers back, and run those whose signal came."""
        try:
            self._put_back()
        except BaseException:  # of one that is back already; a second one would leave `_take_note` to put itself back
            self._put_back()
            raise
        finally:
            if self._late:
                self._run_late()

    def _put_back(self) -> None:
        self._shielded = False
        for number in [*self._handlers]:  # few of those that were ever replaced; a handler may add one meanwhile
            if _get_handler(number) is self._note:
                _set_handler(number, self._handlers[number])

    def _run_late(self) -> None:
        if self._late:
            number, frame = self._late.pop(0)
            try:
                self._handlers[number](number, frame)
            finally:
                self._run_late()


def block_signals() -> None:
    """Leave this process's signals to its other threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
