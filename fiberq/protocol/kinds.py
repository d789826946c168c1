"""What kinds of channels there are, and what each one promises: the node and its clients have to agree on it."""

from __future__ import annotations

from typing import Any, NamedTuple

from fiberq.errors import ProtocolError

MAX_BOUND = (1 << 53) - 1
"""The largest bound: the largest number that each JSON reader takes for a whole one."""

NAMES = ("pull", "push", "joinable", "pipe")


class Kind(NamedTuple):
    """`maxsize`: how many items may be in it that no `get` has returned; 0: any number."""

    name: str
    maxsize: int = 0

    @classmethod
    def read(cls, value: Any) -> Kind:
        """Take it from what JSON made of one. Raises `ProtocolError`."""
        try:
            kind = cls(*value)
        except TypeError:
            kind = cls("")
        if kind.name not in NAMES or type(kind.maxsize) is not int or not 0 <= kind.maxsize <= MAX_BOUND:
            raise ProtocolError("no such kind of channel")
        if kind.maxsize and kind.name == "pipe":
            raise ProtocolError("a pipe has no bound")
        return kind

    def describe(self) -> str:
        return f"{self.name}, {f'at most {self.maxsize} items' if self.maxsize else 'without a bound'}"

    @property
    def pushed(self) -> bool:
        """Items are dealt out as they arrive."""
        return self.name == "push"

    @property
    def keeps(self) -> bool:
        """An item is held after it was started; a pipe's message ends there."""
        return self.name != "pipe"

    @property
    def joins(self) -> bool:
        """An item is held until `task_done`, not until the thread gets the next one."""
        return self.name == "joinable"
