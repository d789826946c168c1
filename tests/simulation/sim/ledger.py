"""What happened to the items: written down by those who put and get them, and read by `promises`.

An item's bytes begin with its channel, its writer's process and a number: so each is there once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from fiberq.abc import Buffer
from fiberq.protocol.batch import Run
from fiberq.protocol.frames import Items, split


class Got(NamedTuple):
    """One `get` that returned an item."""

    item: bytes
    process: str
    at: float


class Ledger:
    """`now` is set by whoever has a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.deliveries = 0  # frames with items that the node sent
        self.put: dict[bytes, str] = {}  # item -> its writer
        self.accepted: Counter[bytes] = Counter()
        self.log: dict[int, list[bytes]] = defaultdict(list)  # the accepted items of each channel, in order
        self.got: list[Got] = []
        self.receivers: dict[bytes, list[Got]] = defaultdict(list)
        self.finished: dict[tuple[bytes, str], float] = {}  # when the program was done with it
        self.ending: set[tuple[bytes, str]] = set()  # the program has asked that its lease be finished
        self.settled: dict[bytes, float] = {}  # when a program knew that its lease was finished, and for good
        self.taken: dict[tuple[bytes, str], float] = {}  # was taken from a process that did not answer
        self.returned: dict[tuple[bytes, str], float] = {}  # the program gave it back, or left it undone, first
        self.kept: Counter[tuple[bytes, str]] = Counter()  # how often it was got, and not given back
        self.leased: dict[tuple[bytes, str], float] = {}  # when the lease runs out at the earliest
        self.moved: set[bytes] = set()  # was with a reader who gave it back, or lost it: others may overtake it
        self.perished: set[bytes] = set()  # pipe messages that a process had when it died
        self.buried: set[bytes] = set()  # dead letters, dropped as such
        self.dropped: set[int] = set()  # channels whose items were dropped
        self.inside: dict[int, dict[bytes, str]] = defaultdict(dict)  # put, by whom, and never got; of each channel

    def puts(self, channel: int, item: bytes, process: str) -> None:
        self.put[item] = self.inside[channel][item] = process

    def gets(self, channel: int, item: bytes, process: str) -> None:
        got = Got(item, process, self.now)
        self.got.append(got)
        self.receivers[item].append(got)
        self.kept[item, process] += 1
        self.inside[channel].pop(item, None)

    def finishes(self, item: bytes, process: str) -> None:
        self.finished.setdefault((item, process), self.now)

    def gives_back(self, item: bytes, process: str) -> None:
        self.returned.setdefault((item, process), self.now)
        self.kept[item, process] -= 1


FIRST_RESULT: Final = 10**6
"""The number of the first item that is a result; those of what is put by itself are smaller."""


def source(item: bytes) -> tuple[tuple[bytes, bytes], int]:
    """Whose item it is, the channel of what it is the result of, if it is one, and its number."""
    _, writer, number, rest = item.split(b":", 3)
    return (writer, rest[: rest.index(b":")] if int(number) > FIRST_RESULT else b""), int(number)


def contents(run: Run) -> list[bytes]:
    """The items of a run."""
    if run.batch.parts:
        return [b"".join(run.batch.parts)]
    return [bytes(item) for item in split(Items(run.lengths(), run.payload(), ()))]


def whole(item: Buffer | Sequence[Buffer]) -> bytes:
    """An item as a reader gets it, in one piece."""
    return b"".join(item) if isinstance(item, (list, tuple)) else bytes(item)  # type: ignore[arg-type]
