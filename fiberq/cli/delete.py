"""``fiberq delete``: ends a queue for all who use it, with what is in it."""

from __future__ import annotations

import argparse

from .nodes import add_node_arguments, connect, queues

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", help="the queue's name or number")
    add_node_arguments(parser)
    parser.add_argument("--force", action="store_true", help="also if there are items that are not finished")


def run(arguments: argparse.Namespace) -> int:
    """Delete; return 0, or 1 if there are items and that is not forced."""
    link = connect(arguments)
    (queue,) = queues(link, arguments.queue)
    items = queue["qsize"] + queue["in_flight"] + queue["dead"]
    if items and not arguments.force:
        print(f"{arguments.queue} has {items:,} items that are not finished: --force deletes it all the same")
        return 1
    link.question(op="delete", channel=queue["channel"])
    return 0
