"""The queues that are measured: fiberq's, on each transport, and the standard library's, to which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from queue import Empty
from typing import Any, Final, NamedTuple

import fiberq
from fiberq.bench.crew import Crew

SIMPLE_QUEUE: Final = "multiprocessing.SimpleQueue"
QUEUE: Final = "multiprocessing.Queue"
CLASSES: Final = ("SimpleQueuePull", "SimpleQueuePush", "Queue")


class Contender(NamedTuple):
    """`make` is called in the process that starts the others, with a directory that is removed afterwards."""

    name: str
    make: Callable[[Crew, str], Any]
    fiberq: bool = False


def standard(name: str) -> Contender:
    """One of the standard library's two."""
    return Contender(name, partial(_standard, name.rpartition(".")[2]))


def ours(transports: Iterable[str], classes: Sequence[str]) -> list[Contender]:
    return [
        Contender(f"{kind} {transport}", partial(_ours, kind, transport), True)
        for transport in transports
        for kind in classes
    ]


def attach(queue: Any) -> None:
    """Make this process one of the readers, where that matters before the first item comes."""
    if hasattr(queue, "attach"):
        queue.attach()
    elif isinstance(queue, (fiberq.SimpleQueue, fiberq.Queue)):
        try:
            queue.get(block=False)
        except Empty:
            pass


def connect(queue: Any) -> None:
    """Make this process one that can put at once, where it has to connect before."""
    if isinstance(queue, (fiberq.SimpleQueue, fiberq.Queue)):
        queue.qsize()


def _standard(kind: str, crew: Crew, directory: str) -> Any:  # noqa: ARG001
    return getattr(crew.context, kind)()


def _ours(kind: str, transport: str, crew: Crew, directory: str) -> Any:  # noqa: ARG001
    fiberq.config.update(transport=transport, connect_timeout=60.0)  # starting is not timed: a busy machine may be slow
    return getattr(fiberq, kind)()
