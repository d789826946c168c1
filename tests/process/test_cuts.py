"""Connections over TCP that are cut, by the relay of the fault run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks are not installed

from benchmarks.faults.plan import SHORT
from benchmarks.faults.services import Node, Relay
from fiberq import SimpleQueue, config
from fiberq.registry import resolve


@pytest.fixture
def relay(transport: str, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay to a node that listens on TCP, which new queues use."""
    monkeypatch.chdir(Path(__file__).parents[2])
    node = Node(resolve(transport), str(short_dir), SHORT, mutant=False)
    relay = Relay(node.tcp, seed=1, limit=SHORT.limit)
    config.node = relay.address
    yield relay
    del config.node
    relay.end()
    node.end()


def test_a_connection_that_breaks_amid_the_greeting_is_made_again(relay: Relay) -> None:
    assert relay.hit({"do": "cut next"})
    q: SimpleQueue[str] = SimpleQueue()
    q.put("item")
    assert q.get(timeout=5) == "item"
    q.close()
