"""The protocol's work for an item, without sockets: ``python -m benchmarks.hotpath``.

A writer's process, the node and a reader's process, joined by function calls, in virtual time. Function calls within
fiberq are counted, those of C functions too: that gives the same number each time, so two versions can be compared.
What `Channel` and `Link` add, and pickling, is not in it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console
from rich.table import Table

import fiberq
from fiberq.protocol.broker import Broker
from fiberq.protocol.client import Client
from fiberq.protocol.kinds import Kind
from fiberq.protocol.reader import Reader
from fiberq.protocol.session import drain

CHANNEL: Final = 77
ITEM: Final = b"\x80\x05K\x07."
THREAD: Final = 1
HOP: Final = 20e-6
"""Seconds of virtual time that a message takes."""
QUICK: Final = 1e-6
"""Seconds between two items of a stream."""
PAUSE: Final = 0.002
"""Seconds between two lone items: acknowledgements leave in it."""
BATCH: Final = 1000
HERE: Final = str(Path(fiberq.__file__).parent)


class Line:
    """Two processes and a node."""

    def __init__(self, kind: str) -> None:
        self.now = 1000.0
        self.broker = Broker("node")
        self.puts, self.gets = Client("writer", False), Client("reader", False)
        self.clients = {"writer": self.puts, "reader": self.gets}
        for client in self.clients.values():
            client.hello()
        self.carry()
        self.puts.request(self.now, op="create", channel=CHANNEL, kind=Kind(kind))
        self.carry()
        self.gets.request(self.now, op="open", holds=[[CHANNEL, "r"]])
        self.writer = self.puts.writer(CHANNEL, Kind(kind))
        self.reader = self.gets.readers[CHANNEL] = Reader(CHANNEL, Kind(kind))
        self.carry()

    def carry(self) -> None:
        """Take messages from one to the other until all is said that is due."""
        while True:
            sent = [(name, message) for name, client in self.clients.items() for message in self._leaving(client)]
            self.now += HOP
            for name, message in sent:
                self.broker.message(name, message, self.now)
            answers = list(self.broker.output(self.now))
            self.now += HOP
            for name, message in answers:
                self.clients[str(name)].message(message, self.now)
            for client in self.clients.values():
                client.changed.clear()
            if not sent and not answers:
                return

    def _leaving(self, client: Client) -> list[tuple[object, ...]]:
        if client.session.due() <= self.now:
            client.session.tick(self.now)
        return list(drain(client.session))

    def put(self, count: int) -> None:
        self.writer.items.extend([ITEM] * count)
        self.puts.pump(self.writer, self.now)
        self.carry()

    def get(self) -> None:
        """As a `get` that finds nothing ready: it waits."""
        reader, session = self.reader, self.gets.session
        reader.waiting += 1
        reader.ask(session, self.now)
        self.carry()
        got = reader.take(THREAD)
        reader.waiting -= 1
        assert got is not None
        reader.arrived(self.now)
        reader.ask_ahead(session, self.now)

    def get_ready(self) -> int:
        """As those that find something; return how many did."""
        reader, count = self.reader, 0
        while reader.ready:
            reader.current = reader.ready.popleft()[0]
            count += 1
            self.now += QUICK
            if self.now > reader.fresh_until:
                reader.progress(self.gets.session, self.now)
                reader.fresh_until = self.now + 0.001
            if len(reader.ready) < reader.low:
                reader.ask_ahead(self.gets.session, self.now)
                self.carry()
        return count


def lone(line: Line, count: int) -> None:
    """Items each of which is waited for before it is put."""
    reader, session = line.reader, line.gets.session
    for _ in range(count):
        reader.waiting += 1
        reader.ask(session, line.now)
        line.carry()
        line.put(1)
        assert reader.take(THREAD) is not None
        reader.waiting -= 1
        reader.arrived(line.now)
        line.now += PAUSE
        line.carry()


def stream(line: Line, count: int) -> None:
    """Items that are put and got as fast as possible."""
    for _ in range(0, count, BATCH):
        line.put(BATCH)
        got = line.get_ready()
        while got < BATCH:
            line.get()
            got += 1 + line.get_ready()


PATHS: Final[dict[str, tuple[Callable[[Line, int], None], int]]] = {"lone": (lone, 200), "stream": (stream, 50 * BATCH)}


def calls(path: str, kind: str) -> float:
    """Function calls within fiberq for an item."""
    run, count = PATHS[path]
    line = Line(kind)
    run(line, count)  # readers learn how much to ask for
    seen = 0

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal seen
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(HERE):
            seen += 1

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run(line, count)
    finally:
        sys.setprofile(before)
    return seen / count


def seconds(path: str, kind: str) -> float:
    """The process's time for an item."""
    run, count = PATHS[path]
    line = Line(kind)
    run(line, count)
    start = time.process_time()
    run(line, count)
    return (time.process_time() - start) / count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="of which the fastest counts")
    options = parser.parse_args()
    table = Table("", "calls an item", "us an item")
    table.title, table.title_justify = f"Python {platform.python_version()}", "left"
    for kind in ("pull", "push"):
        for path in PATHS:
            best = min(seconds(path, kind) for _ in range(options.repetitions))
            table.add_row(f"{kind}, {path}", f"{calls(path, kind):.4g}", f"{best * 1e6:.3g}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
