"""Real processes on every first-party transport: the fixtures, and a watchdog, so that nothing hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from support import Crew, Program  # noqa: E402

from fiberq import config  # noqa: E402

TRANSPORTS = os.environ.get("FIBERQ__TEST_TRANSPORTS", "zmq,nng,stream").split(",")
METHODS = ["spawn", "forkserver", "fork"]
HANG = 60
"""Seconds that a test may take before it is taken for hanging."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(forks)


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that hangs: first with an exception, then, where that does not get through, with the whole run."""

    def bark(_number: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(all_threads=True)
        raise AssertionError(f"{request.node.name} hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(HANG)
    faulthandler.dump_traceback_later(HANG + 10, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a transport, which new queues use."""
    config.transport = request.param
    yield request.param
    del config.transport


@pytest.fixture(autouse=True)
def _bare_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children need not import pytest, which is what `__main__` is."""
    main: Any = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """How processes are started."""
    return str(request.param)


@pytest.fixture
def ctx(method: str) -> BaseContext:
    return multiprocessing.get_context(method)


@pytest.fixture
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    """Starts processes, by `method` where a test has that, else by forking; ends those that are left."""
    method = request.getfixturevalue("method") if "method" in request.fixturenames else "fork"
    crew = Crew(method)
    yield crew
    crew.end()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path that is short enough for sockets below it."""
    path = tempfile.mkdtemp(prefix="fq")
    yield Path(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def program(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[type[Program]]:
    """Starts scripts, each of them the first process of a tree of its own, with `short_dir` for TMPDIR."""
    with contextlib.ExitStack() as stack:

        class Bound(Program):
            def __init__(self, text: str, **environment: str) -> None:
                if "transport" in request.fixturenames:
                    environment.setdefault("FIBERQ_TRANSPORT", request.getfixturevalue("transport"))
                super().__init__(short_dir, text, **environment)
                stack.callback(self.end)

        yield Bound
