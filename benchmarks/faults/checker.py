"""Judges a run by what its processes noted, as Jepsen's total-queue checker does; pure, and the same for all.

lost: acknowledged, and never dequeued. unexpected: dequeued, and never attempted. duplicated: dequeued again.
recovered: attempted, not acknowledged, but dequeued. ok: acknowledged and dequeued. Beside these: inversions, where a
reader got an item of a writer after a later one of the same, and neither was marked as redelivered, nor given back by
another reader that had been sent it ahead; how many finished items of each killed reader were redelivered; and how long
it took until what a killed reader held came out elsewhere.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.faults.ledger import REDELIVERED, WRITER_SHIFT

MAX_EXAMPLES: Final = 20

_NUMBER = (1 << WRITER_SHIFT) - 1


@dataclass
class Written:
    """What the writer with this number put: items 0 to `attempted` - 1, of which `acknowledged` were taken over."""

    writer: int
    attempted: int
    acknowledged: int


@dataclass
class Got:
    """What one reader process got, in order. `finished` of them it had done with; the others it held at its end."""

    entries: Sequence[int]
    finished: int
    name: str = ""
    local: bool = True  # its death is known at once; over TCP it is first taken for a connection that was cut
    killed_at: float | None = None
    slow: bool = False  # it was killed while items took long
    stopped: bool = False  # it had been stopped, or cut off, before
    given_back: Sequence[int] = ()  # sent ahead to it, and returned unstarted
    stamps: Mapping[int, float] = field(default_factory=dict)  # when it got items that were marked as redelivered


@dataclass
class Snapshot:
    """How far everybody was at one moment: items attempted by each writer, entries of each reader."""

    attempted: Mapping[int, int]
    entries: Sequence[int]


@dataclass
class Figures:
    attempted: int = 0
    acknowledged: int = 0
    ok: int = 0
    lost: int = 0
    unexpected: int = 0
    duplicated: int = 0
    recovered: int = 0
    inversions: int = 0
    handed_on: int = 0  # inversions of items that another reader had been sent ahead, and gave back
    redone_slow: list[int] = field(default_factory=list)  # finished items redelivered, for each reader killed
    redone_fast: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    tcp_latencies: list[float] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)  # items that were put and not dequeued, at each snapshot
    inverted: list[str] = field(default_factory=list)  # examples of inversions
    examples: list[str] = field(default_factory=list)  # of what is wrong

    @property
    def amid(self) -> int:
        """At how many snapshots something was in flight."""
        return sum(each > 0 for each in self.in_flight)

    @property
    def bound(self) -> float:
        """The 95 % upper bound on the rate of loss, where nothing was lost: the rule of three."""
        return 3 / self.acknowledged if self.acknowledged and not self.lost else float("nan")


def check(written: Sequence[Written], got: Sequence[Got], snapshots: Sequence[Snapshot] = ()) -> Figures:
    """Count what became of each item. The snapshots are in the order of time."""
    figures = Figures()
    seen = {each.writer: bytearray(each.attempted) for each in written}
    handed_on = {item for reader in got for item in reader.given_back}
    for reader in got:
        _count(reader, seen, handed_on, figures)
    for each in written:
        _settle(each, seen[each.writer], figures)
    _judge_deaths(got, figures)
    figures.in_flight = list(_in_flight(seen, got, snapshots))
    return figures


def _count(reader: Got, seen: Mapping[int, bytearray], handed_on: Container[int], figures: Figures) -> None:
    """Tick off what this reader got, and look whether it came in order."""
    newest: dict[int, int] = {}
    for place, entry in enumerate(reader.entries):
        item = entry & ~REDELIVERED
        writer, number = item >> WRITER_SHIFT, item & _NUMBER
        mine = seen.get(writer)
        if mine is None or number >= len(mine):
            figures.unexpected += 1
            figures.examples.append(f"unexpected: item {number} of writer {writer}")
            continue
        if mine[number]:
            figures.duplicated += 1
        mine[number] = 1
        if entry == item:
            if number < newest.get(writer, -1) and item in handed_on:
                figures.handed_on += 1
            elif number < newest.get(writer, -1):
                figures.inversions += 1
                if len(figures.inverted) < MAX_EXAMPLES:
                    after = newest[writer]
                    figures.inverted.append(f"{reader.name}: its entry {place} is {number} of {writer}, after {after}")
            else:
                newest[writer] = number


def _settle(each: Written, seen: bytearray, figures: Figures) -> None:
    ok = seen.count(1, 0, each.acknowledged)
    figures.attempted += each.attempted
    figures.acknowledged += each.acknowledged
    figures.ok += ok
    figures.lost += each.acknowledged - ok
    figures.recovered += seen.count(1, each.acknowledged)
    if ok < each.acknowledged:
        missing = [number for number in range(each.acknowledged) if not seen[number]]
        figures.examples.append(f"lost: of writer {each.writer} {len(missing)} items, from {missing[0]}")


def _in_flight(seen: Mapping[int, bytearray], got: Sequence[Got], snapshots: Sequence[Snapshot]) -> Iterator[int]:
    """How many items had been attempted at each snapshot that came out later."""
    out: set[int] = set()
    places = [0] * len(got)
    for snapshot in snapshots:
        for number, end in enumerate(snapshot.entries):
            out.update(entry & ~REDELIVERED for entry in got[number].entries[places[number] : end])
            places[number] = end
        put = sum(seen[writer].count(1, 0, attempted) for writer, attempted in snapshot.attempted.items())
        yield max(0, put - len(out))


def _judge_deaths(got: Sequence[Got], figures: Figures) -> None:
    """Look for what killed readers had: where it came out again, and when."""
    again: dict[int, list[float]] = {}
    for reader in got:
        for item, time in reader.stamps.items():
            again.setdefault(item, []).append(time)
    for victim in got:
        if victim.killed_at is None:
            continue
        times = [_after(again.get(entry & ~REDELIVERED, ()), victim.killed_at) for entry in victim.entries]
        if not victim.stopped:
            redone = sum(time is not None for time in times[: victim.finished])
            (figures.redone_slow if victim.slow else figures.redone_fast).append(redone)
        found = [time for time in times if time is not None]
        if found:
            (figures.latencies if victim.local else figures.tcp_latencies).append(min(found) - victim.killed_at)


def _after(times: Sequence[float], death: float) -> float | None:
    """The first of the times that is not before the death."""
    return min((time for time in times if time >= death), default=None)
