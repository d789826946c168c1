"""The two helpers of a run: the node and the relay, each a program of its own, which end with their standard input."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, Final

from benchmarks.faults.plan import Size

PATIENCE: Final = 10.0


class ServiceFailed(Exception):
    """A helper does not answer, or has ended."""


class Service:
    """A program that says things on standard output, a JSON line each."""

    def __init__(self, module: str, settings: dict[str, Any]) -> None:
        self.name = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.faults.{module}", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._said = b""

    def hear(self, timeout: float = PATIENCE) -> Any:
        """What it says next."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._said:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            some = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not some:
                raise ServiceFailed(f"the {self.name} has ended, or says nothing")
            self._said += some
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    def tell(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    def end(self) -> Any:
        """End it; return its last word, if it has one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            last = self.hear(2.0)
        except (ServiceFailed, ValueError):
            last = None
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        return last


class Node(Service):
    def __init__(self, target: str, directory: str, size: Size, mutant: bool) -> None:
        broker = {
            "session_grace": size.session_grace,
            "session_timeout": size.session_timeout,
            "max_deliveries": 1000,  # a dead letter would count as lost
        }
        limit = size.limit + 20
        super().__init__(
            "node", {"target": target, "directory": directory, "broker": broker, "mutant": mutant, "limit": limit}
        )
        self.path, self.tcp = self.hear()
        self.stopped_until: float | None = None

    def stop(self, seconds: float) -> bool:
        self.process.send_signal(signal.SIGSTOP)
        self.stopped_until = time.monotonic() + seconds
        return True

    def resume(self, at_once: bool = False) -> None:
        if self.stopped_until is not None and (at_once or self.stopped_until <= time.monotonic()):
            self.stopped_until = None
            self.process.send_signal(signal.SIGCONT)


class Relay(Service):
    def __init__(self, tcp: str, seed: int, limit: float) -> None:
        super().__init__("relay", {"port": int(tcp.rpartition(":")[2]), "seed": seed, "limit": limit + 20})
        self.address = f"tcp://127.0.0.1:{self.hear()}"

    def hit(self, command: dict[str, Any]) -> bool:
        self.tell(command)
        return bool(self.hear())
