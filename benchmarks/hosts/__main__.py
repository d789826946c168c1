"""How fast queues are between two hosts, over TCP with credentials: ``python -m benchmarks.hosts``, as root on Linux.

The hosts are network namespaces. The node and the producer are on one, the consumer on the other. Each figure is taken
on a new network, with a new node. These hosts could share memory, which two real ones cannot; the node is told not to.
What plain TCP does between the same hosts stands beside: the line with a delay is a program, too, and has its limits.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .network import Host, Network, missing

ENDS = Path(__file__).with_name("ends.py")
TCP = "TCP itself"
WORK = {"small ints": "k items/s", "64 KB bytes": "MB/s", "ping-pong": "ms"}
DELAYS = (0.0, 0.01, 0.1)
"""Seconds for a round trip."""
MAX_BYTES = 256 << 20
"""What the node may hold: the producer is faster than a long line."""


def figure(work: str, transport: str, round_trip: float, seconds: float) -> float:
    """Items per second, MB per second, or milliseconds."""
    with closing(Network()) as network, tempfile.TemporaryDirectory() as state:
        here, there = network.host("a"), network.host("b", round_trip)
        where = here.address if transport == TCP else _node(here, transport, state)
        words = sys.executable, str(ENDS), where, work, str(seconds)
        near = here.start(*words, "near", stdout=subprocess.PIPE)
        assert near.stdout is not None
        near.stdout.readline()
        far = there.start(*words, "far", stdout=subprocess.PIPE)
        told = (near if work == "ping-pong" else far).stdout
        assert told is not None
        return float(json.loads(told.readline()))


def _node(host: Host, transport: str, state: str) -> str:
    words = "fiberq", "serve", "--transport", transport, "--bind", f"tcp://{host.address}:0", "--state", state
    command = [sys.executable, "-m", *words, "--quiet"]
    node = host.start(
        *("env", f"FIBERQ_MAX_BYTES={MAX_BYTES}", "FIBERQ_SHARED_MEMORY=no", *command),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert node.stdout is not None
    return str(node.stdout.readline().decode().strip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="that a figure is measured for, after 1.5 to warm up"
    )
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    contenders = [TCP, *options.transports]
    console = Console(width=110)
    console.print(f"Python {platform.python_version()}, {platform.machine()}, seconds per round trip: {DELAYS}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for work in options.work:
        table = Table(title=f"{work}, {WORK[work]}", title_justify="left")
        for heading in ("", *(f"{1000 * delay:.0f} ms" for delay in DELAYS)):
            table.add_column(heading, justify="right" if heading else "left")
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(work, total=len(contenders) * len(DELAYS))
            for contender in contenders:
                found = []
                for delay in DELAYS:
                    found.append(figure(work, contender, delay, options.seconds))
                    progress.advance(bar)
                table.add_row(contender, *(f"{one:,.2f}" for one in found))
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
