"""Whole schedules of the protocol in virtual time, each made from a seed.

`plans` says what one is to be, `stories` what its processes do, `acts`, `processes`, `network` and `node` how, and
`promises` what has to hold.

    python -m benchmarks.simulation --seeds 7

runs schedule 7 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from sim.ledger import Ledger
from sim.network import Message
from sim.plans import Plan, Traffic
from sim.promises import LONGEST_WAIT
from sim.watched import WatchedBroker
from sim.world import CHANNEL, World

__all__ = [
    "CHANNEL",
    "LONGEST_WAIT",
    "Broken",
    "Ledger",
    "Message",
    "Plan",
    "Traffic",
    "WatchedBroker",
    "World",
    "play",
]


class Broken(AssertionError):
    """A promise was broken in the schedule of one seed."""


def play(seed: int, certain: Sequence[str] = ()) -> World:
    """Run the schedule that `seed` makes, where the faults of `certain` happen in any case.

    Raises `Broken` with the way to run it again.
    """
    random = Random(seed)
    plan = Plan.random(random, certain)
    try:
        return World(plan, random).run()
    except Exception as error:
        text = f"{type(error).__name__}: {error}\nseed {seed}: {plan}"
        raise Broken(f"{text}\nrun it again with: python -m benchmarks.simulation --seeds {seed}") from error
