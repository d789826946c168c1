"""What the tests share: waiting with a deadline, starting processes, running scripts. Children import `workers`."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

every_method = pytest.mark.usefixtures("method")
"""The test's `crew` starts its processes by each method."""

PATIENCE = 10.0
"""Seconds for what happens at once on a machine that is not busy."""

NOISE = 0.5
"""Seconds that a busy machine may add to what a test measures."""

_TRACES = "import faulthandler; faulthandler.enable()\n"
"""For SIGABRT. `dump_traceback_later` would make forked children hang at their end."""


def until(condition: Callable[[], T], timeout: float = PATIENCE, pause: float = 0.01) -> T:
    """Return what `condition` returns as soon as that is true; fail when it is not in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{condition} was not true within {timeout} s"
        time.sleep(pause)


class Crew:
    """The processes of a test."""

    def __init__(self, method: str) -> None:
        self.context: Any = multiprocessing.get_context(method)
        self._all: list[BaseProcess] = []

    def start(self, target: Callable[..., object], *args: object) -> BaseProcess:
        process: BaseProcess = self.context.Process(target=target, args=args)
        process.start()
        self._all.append(process)
        return process

    def finish(self, *processes: BaseProcess) -> None:
        """Wait for these, or for all; each must end by itself and well."""
        deadline = time.monotonic() + PATIENCE
        for process in processes or list(self._all):
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode == 0, f"{process} has not ended well"
            self._all.remove(process)
            process.close()

    def kill(self, process: BaseProcess) -> None:
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
        self._all.remove(process)
        process.close()

    def end(self) -> None:
        for process in self._all:
            if process.is_alive():
                process.kill()
            process.join(PATIENCE)
            process.close()


def interrupted(wait: Callable[[], object]) -> None:
    """Call `wait`; a little later press Ctrl-C, which must end it soon."""
    pressed = 0.0

    def press() -> None:
        nonlocal pressed
        pressed = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.2, press)
    timer.start()
    try:
        wait()
    finally:
        assert 0 <= time.monotonic() - pressed < 0.1 + NOISE, "Ctrl-C was late"
        timer.join()


def fork(child: Callable[[], object]) -> int:
    """Run `child` in a process made by `os.fork`; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        child()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def reap(pid: int) -> None:
    """Wait for a process made by `fork`, which must end well."""

    def ended() -> bool:
        nonlocal status
        done, status = os.waitpid(pid, os.WNOHANG)
        return bool(done)

    status = 0
    try:
        until(ended)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert os.waitstatus_to_exitcode(status) == 0


def processes() -> dict[int, tuple[int, str]]:
    """All live processes: id -> parent's id, command line."""
    lines = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    )
    table = {}
    for line in lines.stdout.splitlines():
        pid, parent, state, *command = line.split(None, 3)
        if not state.startswith("Z"):
            table[int(pid)] = int(parent), " ".join(command)
    return table


def nodes_of(pid: int) -> list[int]:
    """The nodes that the process `pid` started and that still live."""
    return [node for node, (parent, command) in processes().items() if parent == pid and "fiberq.node" in command]


def node_of(pid: int) -> int:
    (node,) = nodes_of(pid)
    return node


class Program:
    """A script in a process group of its own, which says things on standard output, a line each."""

    def __init__(self, directory: Path, text: str, **environment: str) -> None:
        script = directory / f"program{len(list(directory.glob('program*.py')))}.py"
        script.write_text(_TRACES + text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FIBERQ_")}
        inherited = {"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script)],
            cwd=directory,
            env={**kept, **inherited, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._said = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self, timeout: float = PATIENCE) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left))
            if not ready:
                os.killpg(self.pid, signal.SIGABRT)
                raise AssertionError(f"the program said nothing within {timeout} s; its traces are on standard error")
            some = os.read(self.process.stdout.fileno(), 65536)
            assert some, f"the program ended without a word; its status is {self.process.wait(PATIENCE)}"
            self._said += some
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, status: int = 0, timeout: float = PATIENCE) -> None:
        assert self.process.wait(timeout) == status

    def end(self) -> None:
        """Kill it with its children, and close the pipes."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
