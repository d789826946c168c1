"""What the tests of queues and pipes work with: a `Crew` makes queues and pipes on the transport under test, starts
worker processes that the test orders about, and ends and closes all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

import fiberq
from fiberq import Pipe, SimpleQueuePull, SimpleQueuePush, ZConnection, config, registry, tree

from . import workers
from .lab import PATIENCE, Call

__all__ = ["SOON", "Crew", "Queue", "Worker", "crew", "every_method", "kind", "method"]

Queue = SimpleQueuePull[Any] | SimpleQueuePush[Any]

every_method = pytest.mark.usefixtures("method")
"""The test's workers are started by each method."""

SOON = 1.0
"""Seconds within which what follows a death happens, on a machine that may be busy."""

_HANG = 30
"""Seconds that such a test may take before it is taken for hanging."""


class Worker:
    """A process that runs functions of workers.py with its handles, one after another."""

    def __init__(self, method: str, handles: tuple[Any, ...]) -> None:
        context: Any = multiprocessing.get_context(method)
        theirs: Connection
        self._orders, theirs = context.Pipe()
        self._doing = "starting"
        self._process = context.Process(target=workers.serve, args=(theirs, *handles))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking a process that has threads is the point
            self._process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run the function in the worker; what it returns."""
        self.begin(function, *args)
        return self.result()

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """Let the worker run the function, and do not wait."""
        self._doing = function.__name__
        self._orders.send((function, args))

    def done(self, timeout: float = 0.0) -> bool:
        """Whether the function has ended, after at most `timeout` seconds."""
        return bool(self._orders.poll(timeout))

    def result(self, timeout: float = 2 * PATIENCE) -> Any:
        """What the function returns; an `AssertionError` with the worker's traceback if it raised."""
        if not wait([self._orders, self._process.sentinel], timeout):
            raise AssertionError(f"a worker was still in {self._doing} after {timeout:g} s")
        try:
            good, value = self._orders.recv()
        except (EOFError, OSError):
            self._process.join(PATIENCE)
            raise AssertionError(f"a worker died in {self._doing}, with {self._process.exitcode}") from None
        if not good:
            raise AssertionError(f"a worker failed in {self._doing}:\n{value}")
        return value

    def stop(self) -> None:
        """Stop the process (SIGSTOP), and return when it stands."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, and return when it is gone; idempotent."""
        self._process.kill()
        self._process.join()

    def finish(self) -> None:
        """Let the process end by itself, which it must do well."""
        self._orders.send(None)
        self._process.join(PATIENCE)
        if self._process.exitcode != 0:
            raise AssertionError(f"a worker that was to end has the status {self._process.exitcode}")

    def end(self) -> None:
        self.kill()
        self._process.close()
        self._orders.close()


class Crew:
    """The workers, queues and pipes of one test."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._workers: list[Worker] = []
        self._handles: list[Queue | fiberq.Queue[Any] | ZConnection] = []

    def worker(self, *handles: Any) -> Worker:
        """Start a process that has these handles."""
        worker = Worker(self._method, handles)
        self._workers.append(worker)
        return worker

    def workers(self, count: int, *handles: Any) -> list[Worker]:
        return [self.worker(*handles) for _ in range(count)]

    def push(self) -> SimpleQueuePush[Any]:
        q = SimpleQueuePush[Any]()
        self._handles.append(q)
        return q

    def pull(self) -> SimpleQueuePull[Any]:
        q = SimpleQueuePull[Any]()
        self._handles.append(q)
        return q

    def queue(self, kind: str) -> Queue:
        return self.push() if kind == "push" else self.pull()

    def bounded(self, maxsize: int) -> fiberq.Queue[Any]:
        q = fiberq.Queue[Any](maxsize)
        self._handles.append(q)
        return q

    def joinable(self) -> fiberq.JoinableQueue[Any]:
        q = fiberq.JoinableQueue[Any]()
        self._handles.append(q)
        return q

    def pipe(self, duplex: bool = True) -> tuple[ZConnection, ZConnection]:
        ends = Pipe(duplex)
        self._handles += ends
        return ends

    def end(self) -> None:
        """Kill all workers, close all handles. Where that fails, the next test has a new node."""
        for worker in self._workers:
            worker.end()
        closing = Call(self._close)
        try:
            closing.result()
        except BaseException:
            tree.forget(tree.endpoint())
            raise

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:
            for handle in self._handles:
                stack.callback(handle.close)


def methods(config: pytest.Config) -> list[str]:
    """How workers are started where a test wants each method: forking is quicker, and only for transports that can."""
    forks = registry.load(config.getoption("--transport")).capabilities.forks
    return (["fork"] if config.getoption("--fiberq-quick") else ["spawn", "fork"]) if forks else ["spawn"]


def kinds(config: pytest.Config) -> list[str]:
    """The kinds of queues where a test wants each."""
    return ["pull"] if config.getoption("--fiberq-quick") else ["pull", "push"]


@pytest.fixture
def method(request: pytest.FixtureRequest) -> str:
    """How the test's workers are started."""
    return str(request.param)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the test's queue."""
    return str(request.param)


@pytest.fixture
def crew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """Queues and pipes on the transport under test; workers, started by the first of `methods` if the test has none."""
    name = request.config.getoption("--transport")
    if "ipc" not in registry.load(name).capabilities.schemes:
        pytest.skip("has no ipc:// addresses, at which a program's own node listens")
    main: Any = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)  # workers need not import pytest
    monkeypatch.delattr(main, "__file__", raising=False)
    signal.alarm(min(_HANG, signal.alarm(0)))  # the watchdog's handler is there, and takes it off
    config.update(transport=name, node=None)
    method = "method" in request.fixturenames and request.getfixturevalue("method")
    crew = Crew(method or methods(request.config)[0])
    try:
        yield crew
    finally:
        try:
            crew.end()
        finally:
            del config.transport, config.node
