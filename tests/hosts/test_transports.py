"""Each transport's TCP connections between hosts: what is noticed of a host that vanishes, and what is borne."""

from __future__ import annotations

import os
import signal
from time import monotonic

from pairs import HEARTBEAT, Pairs, Process, every_kind, wait

from benchmarks.hosts.network import Network

NOISE = 0.5
"""Seconds that a busy machine may add."""
BEYOND = 1.3 * 3 * HEARTBEAT
"""Seconds that are more than enough to be taken for vanished."""


def test_a_host_that_vanishes_is_reported_within_three_heartbeats_whether_anything_is_sent_or_not(
    network: Network,
) -> None:
    here, there = network.host("a"), network.host("b")
    pairs = Pairs(every_kind(), Process(here), here, Process(there))
    network.cut(there)
    cut = monotonic()
    late = {}
    for process in (pairs.serving, pairs.connecting):
        for name, event in pairs.expect("lost", process).items():
            side = "server" if process is pairs.serving else "client"
            late[side, name] = round(event["at"] - cut, 2)
    print(late)
    assert {end: after for end, after in late.items() if after > 3 * HEARTBEAT + NOISE} == {}


def test_a_process_that_is_stopped_or_holds_its_gil_is_not_reported_even_if_its_buffers_are_full(
    network: Network,
) -> None:
    here, there = network.host("a"), network.host("b")
    kinds = every_kind(busy=[True])
    active = Process(here)
    stopped, holding = Process(there), Process(there)
    all_pairs = [
        Pairs(kinds, active, here, stopped, "stopped client: "),
        Pairs(kinds, stopped, there, active, "stopped server: "),
        Pairs(kinds, active, here, holding, "holding client: "),
        Pairs(kinds, holding, there, active, "holding server: "),
    ]
    os.kill(stopped.process.pid, signal.SIGSTOP)
    holding.order("hold", seconds=BEYOND)
    holding.await_events("holding", [""])
    active.order("send", size=1_000_000, count=3)
    wait(BEYOND)
    os.kill(stopped.process.pid, signal.SIGCONT)
    holding.await_events("held", [""])
    for pairs in all_pairs:
        pairs.await_all_received()
        pairs.assert_sound()


def test_a_partition_that_heals_in_time_is_borne_and_nothing_is_lost(network: Network) -> None:
    here, there = network.host("a"), network.host("b")
    pairs = Pairs(every_kind(), Process(here), here, Process(there))
    network.cut(there)
    pairs.serving.order("send", size=10_000, count=10)
    pairs.connecting.order("send", size=10_000, count=10)
    wait(HEARTBEAT)
    network.heal(there)
    pairs.await_all_received()
    wait(2 * HEARTBEAT)
    pairs.assert_sound()


def test_after_a_partition_that_lasted_too_long_both_have_lost_and_can_connect_again(network: Network) -> None:
    here, there = network.host("a"), network.host("b")
    kinds = every_kind(busy=[True])
    pairs = Pairs(kinds, Process(here), here, Process(there))
    network.cut(there)
    pairs.expect("lost", pairs.serving)
    pairs.expect("lost", pairs.connecting)
    network.heal(there)
    again = Pairs(kinds, pairs.serving, here, pairs.connecting, "again: ")
    again.await_all_received()
    assert pairs.serving.seen("gap") == pairs.connecting.seen("gap") == []


def test_delay_and_loss_of_packets_are_borne(network: Network) -> None:
    here = network.host("a")
    all_pairs = []
    for name, loss in ("b", 0.01), ("c", 0.05):
        there = network.host(name, round_trip=0.1, loss=loss)
        all_pairs.append(Pairs(every_kind(), Process(here), here, Process(there), f"loss of {loss:.0%}: "))
    for pairs in all_pairs:
        for process in (pairs.serving, pairs.connecting):
            process.order("send", size=5_000, count=20)
    wait(4 * HEARTBEAT)
    for pairs in all_pairs:
        pairs.await_all_received()
        pairs.assert_sound()


def test_a_connection_survives_a_change_of_the_route(network: Network) -> None:
    here, there = network.host("a"), network.host("b")
    network.second_way(here, there)
    pairs = Pairs(every_kind(), Process(here), here, Process(there))
    network.cut(there)
    wait(HEARTBEAT)
    network.route(1, here, there)
    pairs.serving.order("send", size=10_000, count=10)
    pairs.await_all_received()
    wait(2 * HEARTBEAT)
    pairs.assert_sound()
