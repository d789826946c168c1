"""The processes of one measurement: what they say is heard until a deadline, and none of them outlives it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple

from fiberq.errors import FiberqError

TICK: Final = 0.002
"""Seconds between two looks at a condition that nobody reports."""


class BenchError(FiberqError):
    """A measurement could not be finished."""


class Trouble(str):
    """What a process says that can't go on."""

    __slots__ = ()


class Member(NamedTuple):
    """A process, and the line to it."""

    name: str
    process: BaseProcess
    talk: Connection[Any, Any]

    def tell(self, word: object = None) -> None:
        try:
            self.talk.send(word)
        except OSError:
            raise self.lost() from None

    def lost(self) -> BenchError:
        """Why this process is gone."""
        self.process.join(1)
        try:
            while self.talk.poll():
                if isinstance(said := self.talk.recv(), Trouble):
                    return BenchError(f"{self.name}: {said}")
        except (EOFError, OSError):
            pass
        return BenchError(f"{self.name} ended with status {self.process.exitcode}")


class Crew:
    """`end` ends its processes; those that a member with a directory started end with it."""

    def __init__(self, seconds: float) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.members: list[Member] = []
        self._deadline = time.monotonic() + seconds

    def start(self, name: str, target: Callable[..., None], *arguments: object, directory: str | None = None) -> Member:
        """Start a process that calls ``target(talk, *arguments)`` and then waits to be ended. One with a `directory`
        leads a group of its own, and removes the directory if this process is gone."""
        here, there = self.context.Pipe()
        process = self.context.Process(target=_live, args=(target, there, directory, arguments))
        # A Ctrl-C reaches every process of the terminal; this one ends the others.
        main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        try:
            process.start()
        finally:
            if main:
                signal.signal(signal.SIGINT, handler)
            there.close()
        member = Member(name, process, here)
        self.members.append(member)
        return member

    def hear(self, member: Member) -> Any:
        """Return what a member says next. Raises `BenchError` if one is gone, or none says anything in time."""
        while not self._look(member.talk, self._deadline - time.monotonic()):
            if time.monotonic() > self._deadline:
                raise BenchError(f"nothing was heard of {member.name} in time (see --timeout)")
        try:
            said = member.talk.recv()
        except (EOFError, OSError):
            raise member.lost() from None
        if isinstance(said, Trouble):
            raise BenchError(f"{member.name}: {said}")
        return said

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what nobody reports. Raises as `hear` does."""
        while not condition():
            self._look(None, TICK)
            if time.monotonic() > self._deadline:
                raise BenchError("what it waited for did not happen in time (see --timeout)")

    def end(self) -> None:
        """Kill all processes, and wait for their ends."""
        for member in self.members:
            if member.process.pid is not None:
                try:
                    os.killpg(member.process.pid, signal.SIGKILL)
                except OSError:
                    pass  # it is no leader, or not yet one
                member.process.kill()
        for member in self.members:
            member.process.join()
            member.process.close()
            member.talk.close()
        self.members.clear()

    def _look(self, talk: Connection[Any, Any] | None, seconds: float) -> bool:
        """Whether there is something to hear; at most for `seconds`."""
        lines: list[Any] = [] if talk is None else [talk]
        ready = wait([*lines, *(member.process.sentinel for member in self.members)], max(0.0, seconds))
        if talk in ready:
            return True
        for member in self.members:
            if member.process.sentinel in ready:
                raise member.lost()
        return False


def _live(
    target: Callable[..., None], talk: Connection[Any, Any], directory: str | None, arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if directory:
        os.setsid()
    threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    status = 0
    try:
        target(talk, *arguments)
        talk.recv()
    except BaseException as error:
        status = 1
        said = str(error) if isinstance(error, FiberqError) else f"{type(error).__name__}: {error}"
        try:
            talk.send(Trouble(said))
        except OSError:
            pass  # nobody is left to hear it
    os._exit(status)  # to end in the usual way would wait for what is still on its way through queues


def _end_with_parent(directory: str | None) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
