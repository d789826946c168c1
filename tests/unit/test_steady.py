"""The node's clock goes on with the machine's, but for the time in which its process did not run."""

from __future__ import annotations

from fiberq.steady import HICCUP, Steady


class Machine:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_goes_on_while_the_process_waits_for_its_timer_and_a_little_longer() -> None:
    machine = Machine()
    clock = Steady(machine)
    machine.now += 30.0 + HICCUP / 2
    assert clock.advance(due=130.0) == machine.now
    assert clock.missed == 0.0


def test_it_stands_still_while_the_process_is_stopped() -> None:
    machine = Machine()
    clock = Steady(machine)
    machine.now += 5.0
    assert clock.advance(due=100.5) == 100.0
    machine.now += 0.25
    assert clock.advance(due=100.5) == 100.25
    assert clock.missed == 5.0


def test_it_waits_forever_without_having_been_stopped_where_nothing_is_due() -> None:
    machine = Machine()
    clock = Steady(machine)
    machine.now += 1e6
    assert clock.advance(due=float("inf")) == machine.now
