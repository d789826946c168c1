"""Sets a run up: the node, the relay, the system, and what watches them; and takes all of it down."""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence

import fiberq
from benchmarks.faults.crew import Crew
from benchmarks.faults.driver import Outcome, Run
from benchmarks.faults.garbage import Strangers
from benchmarks.faults.plan import HARMLESS_TO_PIPES, KILLS, WEIGHTS, Fault, Size
from benchmarks.faults.probes import NoProbe, PipeProbe, Probe, QueueProbe
from benchmarks.faults.services import Node, Relay
from benchmarks.faults.systems import Fiberq, Multiprocessing, RawZmq, System
from fiberq.registry import resolve

Advance = Callable[[float], None]

METHODS = ("forkserver",) * 6 + ("fork",) * 3 + ("spawn",)
"""How processes are started, by lot."""

CONTROLS = ("raw pyzmq PUSH/PULL", "multiprocessing.Queue", "mutant")


def run_fiberq(
    transport: str,
    kind: str,
    size: Size,
    seed: int,
    advance: Advance,
    name: str | None = None,
    mutant: bool = False,
    only: Sequence[str] = (),
) -> Outcome:
    """One run of one of fiberq's classes on one transport."""
    name = name or f"{transport} {kind}"
    rng = random.Random(f"{seed} {name}")
    directory = tempfile.mkdtemp(prefix="fq-")
    node = Node(resolve(transport), directory, size, mutant)
    relay = Relay(node.tcp, rng.getrandbits(32), size.limit)
    strangers = Strangers(node.path, node.tcp, transport, rng)
    try:
        fiberq.config.update(transport=transport, node=node.path)
        system = Fiberq(name, kind, transport, node.path, relay.address, size.bound)
        system.queue = system.make()
        joins = kind == "JoinableQueue"
        probe: Probe = PipeProbe(*system.queue) if kind == "Pipe" else QueueProbe(system.make, joins)
        weights = KILLS if mutant else HARMLESS_TO_PIPES if kind == "Pipe" else WEIGHTS
        weights = {fault: weight for fault, weight in weights.items() if fault.value in only} or weights
        if Fault.KILL_READER not in weights:
            size = dataclasses.replace(size, slow_kills=0)
        if kind == "Pipe":
            size = dataclasses.replace(size, readers=1)  # to several, nothing is sent ahead
        crew = Crew(system, size, rng, directory, METHODS)
        outcome = Run(system, size, weights, crew, probe, rng, advance, node, relay, strangers).go()
    finally:
        strangers.leave()
        relay.end()
        node_kb = node.end()
        del fiberq.config.node, fiberq.config.transport
        shutil.rmtree(directory, ignore_errors=True)
    outcome.node_kb = node_kb or 0
    return outcome


def run_control(name: str, size: Size, seed: int, advance: Advance) -> Outcome:
    """One run of what has to fail."""
    if name == "mutant":
        return run_fiberq("zmq", "SimpleQueuePull", size, seed, advance, "mutant", mutant=True)
    rng = random.Random(f"{seed} {name}")
    directory = tempfile.mkdtemp(prefix="fq-")
    handle = multiprocessing.get_context("forkserver").Queue() if name == "multiprocessing.Queue" else None
    system: System = RawZmq(directory, size.readers) if handle is None else Multiprocessing(handle)
    try:
        crew = Crew(system, size, rng, directory, ("forkserver",), bearable=1)
        return Run(system, size, KILLS, crew, NoProbe(handle), rng, advance).go()
    finally:
        if handle is not None:
            handle.close()
            handle.cancel_join_thread()
        shutil.rmtree(directory, ignore_errors=True)
