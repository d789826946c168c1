"""Timers ring once, in time, and not for those who have nothing to do any more."""

from __future__ import annotations

from fiberq.protocol.timers import Timers

NEVER = float("inf")


def test_the_earliest_comes_first_and_each_rings_once() -> None:
    due = {"a": 3.0, "b": 1.0, "c": 2.0}
    timers = Timers(due.__getitem__)
    for name, when in due.items():
        timers.set(name, when)
    assert timers.next() == 1.0
    assert list(timers.rung(2.5)) == ["b", "c"]
    assert timers.next() == 3.0
    assert list(timers.rung(2.5)) == []


def test_one_that_is_due_later_by_now_does_not_wake_anybody() -> None:
    due = {"a": 1.0, "b": 5.0}
    timers = Timers(due.__getitem__)
    timers.set("a", 1.0)
    timers.set("b", 5.0)
    due["a"] = 9.0
    assert timers.next() == 5.0
    due["b"] = NEVER
    assert timers.next() == 9.0


def test_an_earlier_time_counts_and_a_later_one_does_not() -> None:
    due = {"a": 5.0}
    timers = Timers(due.__getitem__)
    timers.set("a", 5.0)
    timers.set("a", 7.0)
    assert timers.next() == 5.0
    due["a"] = 2.0
    timers.set("a", 2.0)
    assert timers.next() == 2.0
    assert list(timers.rung(10.0)) == ["a"]
    assert timers.next() == NEVER


def test_who_is_forgotten_does_not_ring() -> None:
    timers = Timers({"a": 1.0}.__getitem__)
    timers.set("a", 1.0)
    timers.forget("a")
    assert timers.next() == NEVER
    assert list(timers.rung(10.0)) == []
