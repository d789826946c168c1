"""``fiberq purge``: drops what waits in a queue; what readers have they keep."""

from __future__ import annotations

import argparse

from .nodes import add_node_arguments, connect, queues

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", help="the queue's name or number")
    add_node_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Purge, and say how many items that were; return 0."""
    link = connect(arguments)
    (queue,) = queues(link, arguments.queue)
    dropped = link.question(op="purge", channel=queue["channel"])["dropped"]
    print(f"{dropped:,} items were dropped")
    return 0
