"""Connections between processes on different hosts, many at once: what takes seconds is waited for once for all."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from benchmarks.hosts.network import Host

ENDS = Path(__file__).with_name("ends.py")
HEARTBEAT = 1.0
TRANSPORTS = ["zmq", "nng", "stream"]
PATIENCE = 30.0
"""Seconds for what happens at once on a machine that is not busy."""

Event = dict[str, Any]


class Process:
    """A process on a host, which does what the program `script` can do."""

    def __init__(self, host: Host, script: Path = ENDS, **environment: str) -> None:
        self.process = host.start(
            *(sys.executable, str(script)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **environment},
        )
        self._events: queue.Queue[Event] = queue.Queue()
        self.history: list[Event] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))

    def order(self, do: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()

    def await_events(self, event: str, names: Iterable[str], timeout: float = PATIENCE) -> dict[str, Event]:
        """Return the next such event of each of these ends, those that came before included; of as many as come."""
        missing, found = set(names), {}
        deadline = monotonic() + timeout
        at = 0
        while missing:
            if at == len(self.history):
                try:
                    self.history.append(self._events.get(timeout=max(0.0, deadline - monotonic())))
                except queue.Empty:
                    break
            one = self.history[at]
            at += 1
            if one["event"] == event and one["name"] in missing:
                found[one["name"]] = one
                missing.discard(one["name"])
                self.history.remove(one)
                at -= 1
        return found

    def seen(self, event: str) -> list[Event]:
        """Return the events of this kind that have come."""
        while True:
            try:
                self.history.append(self._events.get_nowait())
            except queue.Empty:
                return [one for one in self.history if one["event"] == event]


class Kind(NamedTuple):
    transport: str
    secret: str | None
    busy: bool

    @property
    def name(self) -> str:
        return f"{self.transport}, {'credentials' if self.secret else 'open'}, {'busy' if self.busy else 'quiet'}"


def every_kind(*, busy: Iterable[bool] = (False, True), secret: Iterable[bool] = (False, True)) -> list[Kind]:
    token = secrets.token_hex(32)
    return [Kind(name, token if one else None, other) for name in TRANSPORTS for one in secret for other in busy]


class Pairs:
    """A connection of each kind, from a process on one host to a process on another."""

    def __init__(self, kinds: list[Kind], serving: Process, host: Host, connecting: Process, prefix: str = "") -> None:
        self.names = [prefix + kind.name for kind in kinds]
        self.serving, self.connecting = serving, connecting
        for name, kind in zip(self.names, kinds, strict=True):
            serving.order("open", name=name, bind=f"tcp://{host.address}:0", **_options(kind))
        found = serving.await_events("address", self.names)
        for name, kind in zip(self.names, kinds, strict=True):
            connecting.order("open", name=name, connect=found[name]["address"], **_options(kind))
        self.expect("connected", connecting)
        self.expect("met", serving)
        # Whom the server has answered is past what a handshake may do for itself.
        serving.order("send", size=8, count=1)
        self.expect("met", connecting)

    def expect(self, event: str, process: Process, timeout: float = PATIENCE) -> dict[str, Event]:
        """Return this event of each end at `process`; fail if one is missing."""
        found = process.await_events(event, self.names, timeout)
        assert set(found) == set(self.names), (
            f"not {event}: {sorted(set(self.names) - set(found))}, {process.seen('refused')}"
        )
        return found

    def reports(self) -> Iterator[tuple[str, Event, Event]]:
        """Each connection's name, and how both its ends fare."""
        self.serving.order("report")
        self.connecting.order("report")
        served, connected = self.expect("report", self.serving), self.expect("report", self.connecting)
        for name in self.names:
            yield name, served[name], connected[name]

    def await_all_received(self, timeout: float = PATIENCE) -> None:
        """Wait until each end has what the other has sent, so far or since."""
        behind: list[str] = []

        def all_received() -> bool:
            behind[:] = [
                f"{name}: {one['received']} of {other['sent']}"
                for name, served, connected in self.reports()
                for one, other in ((served, connected), (connected, served))
                if one["received"] < goal.setdefault((name, one is served), other["sent"])
            ]
            return not behind

        goal: dict[tuple[str, bool], int] = {}
        until(all_received, lambda: f"not all has arrived: {behind}; lost: {self.lost()}", timeout)

    def lost(self) -> list[Event]:
        return self.serving.seen("lost") + self.connecting.seen("lost")

    def assert_sound(self) -> None:
        """Nothing was lost: no connection, no message."""
        assert not self.lost(), f"lost: {self.lost()}"
        for process in (self.serving, self.connecting):
            assert not process.seen("gap"), f"missing: {process.seen('gap')}"
            assert process.process.poll() is None, "a process has ended"


def _options(kind: Kind) -> dict[str, Any]:
    return {"transport": kind.transport, "secret": kind.secret, "busy": kind.busy, "heartbeat": HEARTBEAT}


def wait(seconds: float) -> None:
    """Let time pass: what is tested is that nothing happens meanwhile, or that something takes long."""
    end = monotonic() + seconds
    until(lambda: monotonic() >= end, lambda: "", seconds + PATIENCE)


def until(condition: Callable[[], bool], complaint: Callable[[], str], timeout: float = PATIENCE) -> None:
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, complaint()
        threading.Event().wait(0.02)
