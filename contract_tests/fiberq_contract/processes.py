"""A child process as the tests see it: started, spoken to in lines of text, stopped, killed. Its side is child.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time

__all__ = ["Child", "environment"]

_START = 30.0


def environment() -> dict[str, str]:
    """This process's environment, such that a child imports from where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}


class Child:
    """A Python process of its own session that plays one role."""

    def __init__(self, role: str, **args: object) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (`end` closes it)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fiberq_contract.child", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            start_new_session=True,
        )
        self._role = role
        self._heard = b""
        self.say(json.dumps(args))

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, line: str) -> None:
        """Give the child a line, for its `Stage.hear`."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def expect(self, word: str, timeout: float = _START) -> str:
        """Return the rest of the child's next line, which must begin with `word`."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise AssertionError(self._story(f"did not say {word!r}"))
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        first, _, rest = line.decode().partition(" ")
        if first != word:
            raise AssertionError(self._story(f"said {line.decode()!r} instead of {word!r}"))
        return rest

    def expect_exit(self, timeout: float) -> None:
        """Wait until the child has ended by itself, successfully."""
        deadline = time.monotonic() + timeout
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                raise AssertionError(self._story(f"is still there after {timeout} s"))
            time.sleep(0.005)
        self._reap()
        if self._process.returncode != 0:
            raise AssertionError(self._story("failed"))

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the child and all that it started, and return when it is gone; idempotent."""
        self._reap()

    def end(self) -> None:
        """Kill the child and close what belongs to it; idempotent."""
        self._reap()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._errors.close()

    def _reap(self) -> None:
        # Only before it is waited for are its number and its group surely its own. A dead child's group holds what it
        # forked; a group of nothing but dead processes raises.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _story(self, what: str) -> str:
        code = self._process.poll()
        self._errors.seek(0)
        state = "runs" if code is None else f"exited with {code}"
        return f"the child {self._role!r} {what}; it {state}; its stderr:\n{self._errors.read()[-4000:]}"
