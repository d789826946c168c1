"""Where a lone item's time goes, from `put` until `get` returns elsewhere: ``python -m benchmarks.trip``.

Two processes play ping-pong through a node; all three note when (by the one clock of the system) they send, are woken
and return. Noting takes a microsecond or two of each phase.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

import fiberq
from fiberq.settings import config

WARM_UP = 300
PATIENCE = 60.0
PHASES = {
    "put": "the writer's `put` began",
    "sends": "until it sends",
    "comes": "until the node has it",
    "passes on": "until the node sends it on",
    "wakes": "until the reader runs",
    "got": "until its `get` returns",
}

notes: list[tuple[float, str]] = []


def note(what: str) -> None:
    notes.append((time.monotonic(), what))


def before(owner: type, method: str, name: Callable[..., str | None]) -> None:
    """Let `owner`'s method note what `name` says of its arguments, and when, before it does anything."""
    original = getattr(owner, method)

    def noting(*arguments: Any) -> Any:
        if found := name(*arguments):
            note(found)
        return original(*arguments)

    setattr(owner, method, noting)


def serve(transport: str, path: str, directory: str) -> None:
    from fiberq.cli import main
    from fiberq.protocol.broker import Broker
    from fiberq.protocol.frames import DELIVER, PUT
    from fiberq.registry import load

    server = load(transport)().server()
    before(Broker, "message", lambda _self, _peer, parts, _now: "comes" if parts[0][1] == PUT else None)
    before(type(server), "send", lambda _self, _peer, parts: "passes on" if parts[0][1] == DELIVER else None)
    server.close()
    arguments = [
        "serve",
        "--quiet",
        "--transport",
        transport,
        "--bind",
        f"ipc://{directory}/node",
        "--state",
        directory,
    ]
    with contextlib.suppress(SystemExit):
        main(arguments)
    write(path)


def play(url: str, kind: str, begins: bool, count: int, path: str) -> None:
    from fiberq.driven import Driven
    from fiberq.protocol.frames import PUT

    config.node = url
    there, back = (getattr(fiberq, kind)(name=name) for name in ("there", "back"))
    link = there._channel.attach()
    before(type(link._socket), "send", lambda _self, parts: "sends" if parts[0][1] == PUT else None)
    poll = Driven._poll

    def noting(self: Driven, left: float) -> None:
        poll(self, left)
        note("wakes")

    Driven._poll = noting  # type: ignore[method-assign]
    for _ in range(count + WARM_UP):
        if begins:
            note("put")
            there.put(0)
            back.get()
        else:
            there.get()
            note("got")
            back.put(0)
    write(path)


def write(path: str) -> None:
    with open(path, "w") as file:
        json.dump(notes, file)


def measure(transport: str, kind: str, count: int) -> list[float]:
    """The medians of when each phase ends, in us after `put` began."""
    started: list[subprocess.Popen[str]] = []
    with TemporaryDirectory() as directory:
        paths = [f"{directory}/{name}" for name in ("notes of node", "notes of there", "notes of back")]

        def start(*words: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "benchmarks.trip", "--role", *words]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            return started[-1]

        try:
            node = start("node", transport, paths[0], directory)
            assert node.stdout is not None
            url = node.stdout.readline().strip()
            for each in [start(role, url, kind, str(count), path) for role, path in zip("ab", paths[1:], strict=True)]:
                if each.wait(PATIENCE):
                    raise RuntimeError("a player failed")
            node.terminate()
            node.wait(PATIENCE)
            found = []
            for path in paths:
                with open(path) as file:
                    found += [(moment, what) for moment, what in json.load(file)]
        finally:
            for each in started:
                each.kill()
                each.communicate()
    return phases(sorted(found), count)


def phases(found: list[tuple[float, str]], count: int) -> list[float]:
    trips: list[dict[str, float]] = []
    for moment, what in found:
        if what == "put":
            trips.append({})
        if trips and "got" not in trips[-1]:
            if what == "wakes":  # the last time before it gets: it may be woken for something else before
                trips[-1][what] = moment
            else:
                trips[-1].setdefault(what, moment)
    whole = [trip for trip in trips[-count:] if len(trip) == len(PHASES)]
    if len(whole) < count / 2:
        raise RuntimeError(f"of {count} trips only {len(whole)} can be told in phases")
    return [1e6 * statistics.median(trip[phase] - trip["put"] for trip in whole) for phase in PHASES]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--classes", nargs="+", default=["SimpleQueuePull", "SimpleQueuePush"])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, *words = options.role
        if role == "node":
            serve(*words)
        else:
            play(words[0], words[1], role == "a", int(words[2]), words[3])
        return 0
    table = Table("us, medians", *list(PHASES.values())[1:], "all", title=f"Python {platform.python_version()}")
    for transport in options.transports:
        for kind in options.classes:
            ends = measure(transport, kind, options.count)
            spans = [end - start for start, end in pairwise(ends)]
            table.add_row(f"{kind} {transport}", *(f"{span:.0f}" for span in [*spans, ends[-1]]))
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
