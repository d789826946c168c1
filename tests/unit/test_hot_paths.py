"""What an item costs in the protocol, in function calls: a number that is the same on each run, unlike a time.

The limits are a quarter above what was counted on Python 3.10 and 3.11, which count most. Who makes a path cheaper
lowers its limit; who must go beyond one says why in the commit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks are not installed

from benchmarks.hotpath import calls

COUNTED = {("pull", "lone"): 532, ("pull", "stream"): 0.612, ("push", "lone"): 414, ("push", "stream"): 0.537}


@pytest.mark.parametrize(("kind", "path"), COUNTED)
def test_an_item_costs_no_more_calls_than_it_did(kind: str, path: str) -> None:
    assert calls(path, kind) < 1.25 * COUNTED[kind, path]


def test_the_count_is_the_same_each_time() -> None:
    assert calls("stream", "pull") == calls("stream", "pull")


def test_a_path_that_takes_more_calls_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from fiberq.protocol.session import Session

    due, count = Session.due, calls("lone", "push")
    monkeypatch.setattr(Session, "due", lambda self: min(due(self) for _ in range(20)))
    assert calls("lone", "push") > count
