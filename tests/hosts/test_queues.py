"""Queues between hosts, over TCP with credentials: producers, consumers and the node each on their own."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import monotonic

import pytest
from pairs import HEARTBEAT, PATIENCE, TRANSPORTS, Event, Process, until, wait

from benchmarks.hosts.network import Host, Network

MEMBERS = Path(__file__).with_name("members.py")
GRACE, RECONNECT = 2.0, 2.0
"""Seconds: `config.session_grace`, by default; and how long a test lets the processes look for a node that went."""
NOISE = 0.7
"""Seconds that a busy machine may add."""


class Nodes:
    """A node for each transport, on one host."""

    def __init__(self, host: Host, state: Path) -> None:
        started = {}
        for name in TRANSPORTS:
            words = "-m", "fiberq", "serve", "--transport", name, "--bind", f"tcp://{host.address}:0", "--quiet"
            started[name] = host.start(
                sys.executable, *words, "--state", str(state / name), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        self.urls = {name: node.stdout.readline().decode().strip() for name, node in started.items() if node.stdout}

    def members(self, *hosts: Host, **environment: str) -> list[Process]:
        """A process on each host that uses the queue `jobs` of each of these nodes."""
        members = [Process(host, MEMBERS, **environment) for host in hosts]
        for member in members:
            member.order("join", nodes=self.urls)
        for member in members:
            expect("joined", member)
        return members


def expect(event: str, member: Process, timeout: float = PATIENCE) -> dict[str, Event]:
    found = member.await_events(event, TRANSPORTS, timeout)
    assert set(found) == set(TRANSPORTS), f"not {event}: {set(TRANSPORTS) - set(found)}, {member.seen('failed')}"
    return found


def got(name: str, *members: Process) -> Counter[int]:
    return Counter(event["item"] for member in members for event in member.seen("got") if event["name"] == name)


def await_all(count: int, *members: Process, timeout: float = PATIENCE) -> None:
    """Wait until these have got the items 0 to `count` - 1, on each transport."""

    def missing() -> dict[str, list[int]]:
        found = {name: sorted(set(range(count)) - set(got(name, *members))) for name in TRANSPORTS}
        return {name: items for name, items in found.items() if items}

    until(lambda: not missing(), lambda: f"missing: {missing()}, {[one.seen('failed') for one in members]}", timeout)


def assert_once(*members: Process) -> None:
    assert {name: item for name in TRANSPORTS for item, times in got(name, *members).items() if times > 1} == {}


def test_slow_lines_that_lose_packets_cost_nothing_but_time(network: Network, tmp_path: Path) -> None:
    nodes = Nodes(network.host("n"), tmp_path)
    producer, *consumers = nodes.members(
        network.host("p", round_trip=0.1, loss=0.01), network.host("c", round_trip=0.1, loss=0.03), network.host("d")
    )
    for consumer in consumers:
        consumer.order("get", keep=False, pause=0)
    producer.order("put", first=0, count=300, pause=0.005)
    expect("flushed", producer)
    await_all(300, *consumers)
    assert_once(*consumers)


def test_what_the_consumers_on_a_host_that_vanishes_had_goes_to_others(network: Network, tmp_path: Path) -> None:
    nodes = Nodes(network.host("n"), tmp_path)
    far = network.host("c")
    lost, producer, other = nodes.members(far, network.host("p"), network.host("d"))
    lost.order("get", keep=True, pause=0)
    producer.order("put", first=0, count=50, pause=0)
    expect("flushed", producer)
    until(lambda: all(got(name, lost) for name in TRANSPORTS), lambda: "nothing came")
    network.cut(far)
    cut = monotonic()
    other.order("get", keep=False, pause=0)
    await_all(50, other, timeout=3 * HEARTBEAT + GRACE + NOISE)
    had = {event["name"]: event["item"] for event in lost.seen("got")}
    after = {
        event["name"]: round(event["at"] - cut, 2) for event in other.seen("got") if event["item"] == had[event["name"]]
    }
    print(after)
    assert_once(other)
    network.heal(far)
    lost.order("go on")
    producer.order("put", first=50, count=10, pause=0)
    await_all(60, lost, other)


@pytest.mark.parametrize("seconds", [HEARTBEAT, 3.25 * HEARTBEAT], ids=["unnoticed", "noticed"])
def test_a_partition_that_heals_within_the_grace_costs_nothing_but_time(
    seconds: float, network: Network, tmp_path: Path
) -> None:
    nodes = Nodes(network.host("n"), tmp_path)
    away, far = network.host("p"), network.host("c")
    producer, consumer, other = nodes.members(away, far, network.host("d"))
    for each in (consumer, other):
        each.order("get", keep=False, pause=0.01)
    producer.order("put", first=0, count=300, pause=0.02)
    until(lambda: all(got(name, consumer) for name in TRANSPORTS), lambda: "nothing came")
    for host in (away, far):
        network.cut(host)
    wait(seconds)
    for host in (away, far):
        network.heal(host)
    expect("flushed", producer)
    await_all(300, consumer, other)
    assert_once(consumer, other)


def test_when_the_nodes_host_vanishes_all_are_told(network: Network, tmp_path: Path) -> None:
    middle = network.host("n")
    nodes = Nodes(middle, tmp_path)
    producer, consumer = nodes.members(network.host("p"), network.host("c"), FIBERQ_RECONNECT_TIMEOUT=str(RECONNECT))
    network.cut(middle)
    cut = monotonic()
    producer.order("put", first=0, count=10, pause=0)
    consumer.order("get", keep=False, pause=0)
    for member in (producer, consumer):
        for event in expect("failed", member, 3 * HEARTBEAT + RECONNECT + NOISE).values():
            assert event["error"] == "NodeError"
            print(round(event["at"] - cut, 2), event["text"])
