"""`get_context`: a `multiprocessing` context whose queues and pipes are fiberq's; all else is as it was."""

from __future__ import annotations

import multiprocessing
from multiprocessing import context
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from fiberq.connection import ZConnection
    from fiberq.queues import SimpleQueue

    Base: TypeAlias = context.BaseContext
else:
    Base = object

__all__ = ["get_context"]


class _Context(Base):
    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802 - multiprocessing's name, as all below
        """Return a `fiberq.Queue`."""
        from fiberq import queues

        return queues.Queue(maxsize)

    def JoinableQueue(self, maxsize: int = 0) -> Any:  # noqa: N802
        """Return a `fiberq.JoinableQueue`."""
        from fiberq import queues

        return queues.JoinableQueue(maxsize)

    def SimpleQueue(self) -> SimpleQueue[Any]:  # type: ignore[override]  # noqa: N802
        """Return a `fiberq.SimpleQueue`, of the kind that `fiberq.config.use_push_queue` chooses."""
        from fiberq.queues import SimpleQueue

        return SimpleQueue()

    def Pipe(self, duplex: bool = True) -> tuple[ZConnection, ZConnection]:  # type: ignore[override]  # noqa: N802
        """Return the two ends of a `fiberq.Pipe`."""
        from fiberq.connection import Pipe

        return Pipe(duplex)

    def get_context(self, method: str | None = None) -> Any:
        """Return this context, or fiberq's for `method`."""
        return self if method is None else get_context(method)


class ForkContext(_Context, context.ForkContext):
    """Starts processes by `fork`."""


class SpawnContext(_Context, context.SpawnContext):
    """Starts processes by `spawn`."""


class ForkServerContext(_Context, context.ForkServerContext):
    """Starts processes by `forkserver`."""


_contexts: dict[str, Any] = {each._name: each() for each in (ForkContext, SpawnContext, ForkServerContext)}


def get_context(method: str | None = None) -> Any:
    """Return `multiprocessing.get_context(method)` with fiberq's `Queue`, `JoinableQueue`, `SimpleQueue` and `Pipe`.

    Without a method it is the one that `multiprocessing` uses by default. Pools can be built on it. Raises `ValueError`
    for a method that there is not.

        ProcessPoolExecutor(mp_context=fiberq.get_context("spawn"))
    """
    return _contexts[multiprocessing.get_context(method).get_start_method()]
