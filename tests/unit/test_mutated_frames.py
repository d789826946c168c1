"""Valid frames that were damaged: no queue but the attacker's own is touched, and nobody is upset.

`python -m benchmarks.unfriendly --frames N` does it with millions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from benchmarks.unfriendly.core import Breach, fuzz_client, fuzz_node
from fiberq.protocol.requests import Requests


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    yield
    logging.getLogger("fiberq.node").setLevel(logging.NOTSET)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_frames_reach_no_other_queue(seed: int) -> None:
    done = fuzz_node(3_000, seed)
    assert done.frames >= 3_000
    assert done.frames > 2 * done.sessions
    assert done.refused > 0


@pytest.mark.parametrize("seed", range(4))
def test_mutated_frames_do_not_upset_a_client(seed: int) -> None:
    done = fuzz_client(5_000, seed)
    assert done.refused > 0
    assert done.frames > 2 * done.sessions


def test_a_node_that_looks_at_no_rights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Requests, "_may", lambda *_: True)
    with pytest.raises(Breach):
        fuzz_node(20_000, 0)
