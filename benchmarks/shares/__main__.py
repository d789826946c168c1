"""Where the time goes: ``python -m benchmarks.shares``, on Linux.

A producer, a node and a consumer. Processor time is what the system counts for each process and item, its threads
included; "system" is what the kernel took of it. Pickling is measured by itself. What is left of the user's time is
divided as cProfile divides it in a second run, which makes what is called often look larger than it is: the protocol
(`fiberq.protocol`), the rest of fiberq, and the transport with the libraries under it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pstats
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.shares.ends import ITEMS
from fiberq.registry import available

ENDS = Path(__file__).with_name("ends.py")
COUNTS = {"small ints": 300_000, "dicts": 300_000, "64 KB bytes": 10_000, "1 MB bytes": 5_000, "lone ints": 5_000}
"""Items of each work."""
PARTS = ("protocol", "rest of fiberq", "transport")
WAITS = ("'poll'", "'acquire'", "'select'", "sleep")
"""Functions that spend no processor time."""


def part_of(file: str) -> str | None:
    """To which part a source file belongs; `None` for a function of C."""
    if "fiberq_" in file or "/zmq/" in file or "/pynng/" in file or file.endswith("selectors.py"):
        return "transport"
    if "/fiberq/protocol/" in file:
        return "protocol"
    return "rest of fiberq" if "/fiberq/" in file else None


def shares(path: str) -> dict[str, float]:
    """What part of the time that cProfile counted each of `PARTS` took; a C function belongs to its caller."""
    found: Counter[str] = Counter()
    for (file, _, name), (_, _, seconds, _, callers) in pstats.Stats(path).stats.items():  # type: ignore[attr-defined]
        if (part := part_of(file)) is not None:
            found[part] += seconds
        elif file == "~" and not any(wait in name for wait in WAITS) and "pickle" not in name and "marshal" not in name:
            for (caller, _, _), (_, _, own, _) in callers.items():
                if (part := part_of(caller)) is not None:
                    found[part] += own
    return {part: found[part] / (sum(found.values()) or 1.0) for part in PARTS}


def processor_time(pid: int) -> tuple[float, float]:
    """Of a process, the user's and the system's, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def run(transport: str, kind: str, work: str, count: int, directory: str | None) -> dict[str, Any]:
    """What each process says of itself; with a `directory`, profiles are written there."""

    def profile(name: str) -> str:
        return os.path.join(directory, name) if directory else "-"

    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, *(("-m", "cProfile", "-o", profile("node")) if directory else ()), "-m"]
        words = ("fiberq", "serve", "--transport", transport, "--bind", f"ipc://{state}/node", "--state", state)
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started: list[subprocess.Popen[str]] = []
        try:
            node = subprocess.Popen([*command, *words, "--quiet"], **quiet)  # type: ignore[call-overload]
            started.append(node)
            url = node.stdout.readline().strip()
            for role in ("consumer", "producer"):
                end = [sys.executable, str(ENDS), url, kind, work, str(count), role, profile(role)]
                process = subprocess.Popen(end, stdin=subprocess.PIPE, **quiet)  # type: ignore[call-overload]
                started.append(process)
                process.stdout.readline()
            before = processor_time(node.pid)
            consumer, producer = (json.loads(each.stdout.readline()) for each in started[1:])  # type: ignore[union-attr]
            after = processor_time(node.pid)
            user, system = ((now - then) / (1.1 * count) for now, then in zip(after, before, strict=True))
            for process in started[1:]:
                process.communicate("\n", timeout=30)
            node.send_signal(signal.SIGTERM)
            node.wait(30)
            return {
                "producer": producer,
                "node": {"user": user, "system": system, "pickling": 0.0},
                "consumer": consumer,
            }
        finally:
            for process in started:
                process.kill()
                process.wait()


def row(title: str, told: dict[str, float], share: dict[str, float]) -> list[str]:
    left = max(0.0, told["user"] - told["pickling"])
    total = told["user"] + told["system"]
    parts = [told["pickling"], *(left * share[part] for part in PARTS), told["system"]]
    return [title, f"{1e6 * total:.2f}", *(f"{1e6 * each:.2f} ({each / (total or 1):.0%})" for each in parts)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=[each.name for each in available() if not each.error])
    parser.add_argument("--class", dest="kind", default="SimpleQueuePull")
    parser.add_argument("--work", nargs="+", choices=ITEMS, default=list(ITEMS))
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the numbers of items")
    options = parser.parse_args()
    console = Console(width=120)
    console.print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; us an item")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=2 * len(options.work) * len(options.transports))
        for work in options.work:
            table = Table(title=work, title_justify="left")
            for heading in ("", "in all", "pickling", *PARTS, "kernel"):
                table.add_column(heading, justify="right" if heading else "left")
            for transport in options.transports:
                progress.update(bar, description=f"{work}, {transport}")
                count = max(100, int(COUNTS[work] * options.scale))
                told = run(transport, options.kind, work, count, None)
                progress.advance(bar)
                with tempfile.TemporaryDirectory() as directory:
                    run(transport, options.kind, work, max(100, count // 5), directory)
                    for name in ("producer", "node", "consumer"):
                        table.add_row(*row(f"{transport}, {name}", told[name], shares(os.path.join(directory, name))))
                progress.advance(bar)
            console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
