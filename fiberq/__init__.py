"""Queues and pipes like multiprocessing's, shared by processes on any number of machines."""

from __future__ import annotations

from fiberq.settings import config

TYPE_CHECKING = False  # importing it would take longer than all the rest
if TYPE_CHECKING:
    from typing import Any

    from fiberq.connection import Pipe, ZConnection
    from fiberq.context import get_context
    from fiberq.errors import ShutDown
    from fiberq.opening import open as open  # noqa: A004
    from fiberq.queues import JoinableQueue, Queue, SimpleQueue, SimpleQueuePull, SimpleQueuePush
    from fiberq.waiting import wait

__all__ = [
    "JoinableQueue",
    "Pipe",
    "Queue",
    "ShutDown",
    "SimpleQueue",
    "SimpleQueuePull",
    "SimpleQueuePush",
    "ZConnection",
    "config",
    "get_context",
    "wait",
]
"""`fiberq.open` is not among them: ``from fiberq import *`` is not to hide the built-in."""

_HOMES = {
    "JoinableQueue": "fiberq.queues",
    "Pipe": "fiberq.connection",
    "Queue": "fiberq.queues",
    "ShutDown": "fiberq.errors",
    "ZConnection": "fiberq.connection",
    "SimpleQueue": "fiberq.queues",
    "SimpleQueuePull": "fiberq.queues",
    "SimpleQueuePush": "fiberq.queues",
    "get_context": "fiberq.context",
    "open": "fiberq.opening",
    "wait": "fiberq.waiting",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for; `import fiberq` alone costs a few milliseconds (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fiberq' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
