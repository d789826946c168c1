"""``fiberq stats``: one queue, who reads and writes it, and how fast items go through."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from ..protocol.kinds import Kind
from .ls import COLUMNS
from .nodes import add_node_arguments, connect, queues

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", help="the queue's name or number")
    add_node_arguments(parser)
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds over which the rates are measured (1)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Print what the node tells of the queue; return 0."""
    link = connect(arguments)
    (queue,) = queues(link, arguments.queue)

    def look() -> tuple[float, dict[str, Any]]:
        return time.monotonic(), link.question(op="stats", channel=queue["channel"])

    before, first = look()
    time.sleep(max(0.0, arguments.interval))
    after, last = look()
    rates = {
        f"{key}_rate": round((last[key] - first[key]) / (after - before), 1)
        for key in ("put", "finished", "redelivered")
    }
    told = {"name": last["name"], "number": queue["number"], "kind": Kind.read(last["kind"]).describe()}
    told |= {key: last[key] for key in COLUMNS} | rates | {key: last[key] for key in ("readers", "writers")}
    if arguments.json:
        print(json.dumps(told, indent=2))
        return 0
    for key, value in told.items():
        heading = COLUMNS.get(key, key)
        if key.endswith("_rate"):
            print(f"{key.removesuffix('_rate')} in a second: {value:,}")
        elif not isinstance(value, list):
            print(f"{heading}: {f'{value:,}' if isinstance(value, int) else value}")
        else:
            for each in value:
                print(f"{heading[:-1]}: process {each['pid']} on {each['host']}{', away' if each['away'] else ''}")
    return 0
