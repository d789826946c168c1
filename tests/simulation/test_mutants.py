"""The simulation has teeth: each wrong protocol is noticed, and soon."""

from __future__ import annotations

import pytest
from sim.mutants import MUTANTS

SEEDS = range(500)


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_noticed_that(name: str) -> None:
    assert MUTANTS[name].notice(SEEDS), f"{len(SEEDS)} schedules went well although {name}"
