"""Random interleavings of many clients on real sockets, against the model of what each side must see next."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, reject, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import run_state_machine_as_test

from .lab import Lab
from .model import Failure, Machine, shrink
from .rules import BrokenRule, rule


@rule("MSG-1", "MSG-2", "MSG-5", "ROUTE-1", "ROUTE-3", "ROUTE-4", "ROUTE-5", "LOSS-2", "LOSS-3", "LOSS-4", "LOSS-5")
@rule("LOSS-8", "LOSS-9", "CLOSE-2", "READY-2", "TIME-1", "TIME-2")
def test_whatever_clients_do_at_once_each_side_sees_what_it_must(lab: Lab, pytestconfig: pytest.Config) -> None:
    examples = 10 if pytestconfig.getoption("--fiberq-quick") else 40
    found: Failure | None = None

    class Watched(Machine):
        def __init__(self) -> None:
            if found is not None:
                reject()  # it need not be run again
            super().__init__(lab)

        def teardown(self) -> None:
            nonlocal found
            failure = sys.exc_info()[1]  # what ended the steps; Hypothesis calls this on the way out
            try:
                if failure is None:
                    self.settle()
            except Exception as error:
                failure = error
                raise
            finally:
                super().teardown()
                if isinstance(failure, Exception) and not isinstance(failure, HypothesisException):
                    found = found or Failure(failure, self.steps)

    chosen: Any = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        print_blob=False,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Watched, settings=chosen)
    except Exception as error:
        if found is None:
            raise
        first, steps = shrink(lab, found)
        story = "\n".join([str(first), "after these steps:", *(f"  {each.told}" for each in steps)])
        broken = first.rules if isinstance(first, BrokenRule) else ()
        raise BrokenRule(*broken, story) from error
