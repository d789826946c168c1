"""The lock that signals' handlers do not interrupt, however they come and whatever they do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from fiberq.shield import SIGNALS, ShieldedLock


class Interrupted(Exception):
    pass


def raising(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.signal(number, raising)) for number in SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def current() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_handler_runs_when_the_lock_is_let_go(number: int) -> None:
    lock = ShieldedLock()
    seen = []

    def body() -> None:
        with lock:
            signal.raise_signal(number)
            seen.append("undisturbed")

    with pytest.raises(Interrupted):
        body()
    assert seen == ["undisturbed"]
    assert current() == [raising] * len(SIGNALS)
    with lock:
        pass


def test_all_handlers_run_though_the_first_one_raises() -> None:
    seen = []

    def handler(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        raise Interrupted

    for number in SIGNALS:
        signal.signal(number, handler)

    def body() -> None:
        with ShieldedLock():
            for number in SIGNALS:
                signal.raise_signal(number)

    with pytest.raises(Interrupted):
        body()
    assert sorted(seen) == sorted(SIGNALS)


def test_what_is_not_handled_by_python_is_left_alone() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    lock = ShieldedLock()
    for _ in range(2):
        with lock:
            assert current()[1:3] == [signal.SIG_IGN, signal.SIG_DFL]
            signal.raise_signal(signal.SIGTERM)
    assert current()[:3] == [raising, signal.SIG_IGN, signal.SIG_DFL]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with lock:
        pass
    assert current()[:3] == [signal.SIG_IGN, signal.SIG_IGN, signal.SIG_DFL]


def test_two_locks_can_be_held() -> None:
    seen = []

    def body() -> None:
        with ShieldedLock():
            with ShieldedLock():
                signal.raise_signal(signal.SIGINT)
            seen.append("undisturbed")

    with pytest.raises(Interrupted):
        body()
    assert seen == ["undisturbed"]
    assert current() == [raising] * len(SIGNALS)


def test_other_threads_hold_it_without_a_shield() -> None:
    lock = ShieldedLock()
    seen: list[Any] = []

    def hold() -> None:
        with lock:
            seen.extend(current())

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [raising] * len(SIGNALS)


def test_a_child_that_another_thread_forks_meanwhile_has_its_handlers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    lock = ShieldedLock()
    status = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGINT)
            except Interrupted:
                os._exit(7 if signal.getsignal(signal.SIGINT) is raising else 1)
            os._exit(0)
        status.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=fork)
    with lock:
        thread.start()
        thread.join()
    assert status == [7]


def test_signals_from_another_thread_at_any_moment_leave_nothing_half_done() -> None:
    lock = ShieldedLock()
    first = second = rounds = 0
    pressed, taken = 0, threading.Event()

    def press() -> None:
        nonlocal pressed
        for _ in range(300):
            taken.wait(10)
            taken.clear()
            pressed += 1
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    interrupted = 0
    while interrupted < 300:
        try:
            taken.set()
            for rounds in range(10_000_000):
                with lock:
                    first += 1
                    [None] * (rounds % 7)
                    second += 1
        except Interrupted:
            interrupted += 1
            assert first == second
            assert not lock._lock._is_owned()
            assert current() == [raising] * len(SIGNALS)
    thread.join(10)
    assert pressed == 300


def test_whoever_comes_back_while_holding_it_is_told_and_does_not_wait_for_himself() -> None:
    lock = ShieldedLock()
    with lock, pytest.raises(RuntimeError), lock:
        pass
    assert not lock._lock._is_owned()
    with lock:
        pass
