"""Whole schedules, made from seeds: nothing is lost, invented or repeated, whatever the network and processes do.

`FIBERQ_SIM_SEEDS` says how many are run; `python -m benchmarks.simulation` runs as many as fit in a given time.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from sim import LONGEST_WAIT, Plan, World, play

CHUNK = 25


def _seeds() -> list[range]:
    number = int(os.environ.get("FIBERQ_SIM_SEEDS", "200"))
    return [range(start, min(start + CHUNK, number)) for start in range(0, number, CHUNK)]


@pytest.mark.parametrize("seeds", _seeds(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_every_schedule_keeps_the_promises(seeds: range) -> None:
    for seed in seeds:
        play(seed)


def _run(plan: Plan, seed: int) -> World:
    return World(plan, Random(seed)).run()


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("burst", [1, 7, 30])
def test_push_gives_each_reader_exactly_its_share(readers: int, burst: int) -> None:
    work = (0.0, 0.0, 0.005)
    plan = Plan.of("push", writers=2, readers=readers, items=30, burst=burst, work=work, wait_for_readers=True)
    _run(plan, readers)


def test_nobody_waits_long_while_another_holds_items_that_it_has_not_started() -> None:
    work = (0.00001,) * 20 + (0.5,)
    plan = Plan.of("pull", writers=1, readers=4, items=200, burst=200, work=work)
    waits = [wait for seed in range(10) for wait in _run(plan, seed).channels[0].waits]
    assert waits, "nobody ever waited: this shows nothing"
    assert max(waits) <= LONGEST_WAIT + 8 * plan.latency


@pytest.mark.parametrize("kind", ["pull", "push", "pipe"])
def test_one_reader_gets_each_writers_items_in_order(kind: str) -> None:
    plan = Plan.of(kind, writers=3, readers=1, items=200, burst=20, padding=500, large=0.05, repeat=0.2)
    assert len(_run(plan, 1).ledger.got) == 600


@pytest.mark.parametrize("kind", ["pull", "push", "pipe"])
@pytest.mark.parametrize("seed", range(5))
def test_a_reader_that_stops_now_and_then_still_gets_items_in_order(kind: str, seed: int) -> None:
    work = (0.0,) * 20 + (0.009, 0.012, 0.02)
    plan = Plan.of(
        kind, writers=2, readers=1, items=200, burst=50, pace=(0.0, 0.02), work=work, large=0.5, latency=0.01
    )
    assert len(_run(plan, seed).ledger.got) == 400


@pytest.mark.parametrize("kind", ["pull", "pipe"])
@pytest.mark.parametrize("seed", range(5))
def test_a_get_that_times_out_loses_and_repeats_nothing(kind: str, seed: int) -> None:
    plan = Plan.of(kind, threads=2, items=100, burst=1, pace=(0.0005, 0.001), timeouts=(0.0003, 0.001, 0.002))
    got = [got.item for got in _run(plan, seed).ledger.got]
    assert len(got) == len(set(got)) == 200


@pytest.mark.parametrize("kind", ["pull", "push", "pipe"])
@pytest.mark.parametrize("seed", range(5))
def test_broken_connections_lose_and_repeat_nothing(kind: str, seed: int) -> None:
    plan = Plan.of(kind, items=200, burst=5, pace=(0.001,), work=(0.0, 0.001), cuts=30, repeat=0.1)
    got = [got.item for got in _run(plan, seed).ledger.got]
    assert len(got) == len(set(got)) == 400


@pytest.mark.parametrize("kind", ["pull", "push"])
@pytest.mark.parametrize("seed", range(5))
def test_items_of_a_killed_reader_come_out_elsewhere(kind: str, seed: int) -> None:
    plan = Plan.of(kind, readers=4, items=200, burst=5, pace=(0.001,), work=(0.0, 0.01), kills=3, grace=False)
    world = _run(plan, seed)
    assert set(world.ledger.receivers) >= set(world.ledger.accepted)
