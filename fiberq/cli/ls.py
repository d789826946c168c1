"""``fiberq ls``: the queues of a node, a line each."""

from __future__ import annotations

import argparse

from ..protocol.kinds import Kind
from .nodes import add_node_arguments, connect, queues

__all__ = ["COLUMNS", "add_arguments", "cells", "run"]

COLUMNS = {
    "qsize": "waiting",
    "in_flight": "in flight",
    "put": "put",
    "finished": "finished",
    "redelivered": "redelivered",
    "dead": "dead letters",
    "bytes": "bytes",
}
"""What a node tells of a queue, and the heading of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_node_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; return 0."""
    found = queues(connect(arguments))
    if arguments.json:
        import json

        print(json.dumps([{**queue, "kind": Kind.read(queue["kind"]).describe()} for queue in found], indent=2))
        return 0
    rows = [["queue", "kind", *COLUMNS.values()]]
    rows += [[queue["name"] or queue["number"], Kind.read(queue["kind"]).describe(), *cells(queue)] for queue in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(left + right))
    return 0


def cells(queue: dict[str, int]) -> list[str]:
    return [f"{queue[key]:,}" for key in COLUMNS]
