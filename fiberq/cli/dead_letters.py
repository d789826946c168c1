"""``fiberq dead-letters``: the items of a node's queues that failed too often, and why; puts them back, drops them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..channel import Channel
from ..errors import ConfigError
from ..leases import DeadLetter
from ..link import Link
from ..protocol.kinds import Kind
from .nodes import add_node_arguments, connect, queues

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", nargs="?", help="the queue's name or number; without it, all queues")
    add_node_arguments(parser)
    parser.add_argument("--item", type=int, metavar="N", help="only the letter with this number")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--put-back", action="store_true", help="deliver them again, as if they had never failed")
    what.add_argument("--drop", action="store_true", help="forget them; needs a queue")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Print the dead letters, after doing with them what was asked for; return 0."""
    if arguments.drop and arguments.queue is None:
        raise ConfigError("--drop needs a queue")
    link = connect(arguments)
    letters = [
        (queue, letter)
        for queue in queues(link, arguments.queue)
        for letter in (_letters(link, queue) if queue["dead"] else ())
        if arguments.item in (None, letter.place)
    ]
    for _, letter in letters:
        if arguments.put_back:
            letter.put_back()
        elif arguments.drop:
            letter.drop()
    _print(letters, arguments.json)
    return 0


def _letters(link: Link, queue: dict[str, Any]) -> list[DeadLetter]:
    kind = Kind.read(queue["kind"])
    channel = Channel(link.endpoint, queue["channel"], "r", label=kind.name)
    return [DeadLetter(channel, **letter) for letter in channel.dead_letters()]


def _print(letters: list[tuple[dict[str, Any], DeadLetter]], as_json: bool) -> None:
    told = [
        {
            "queue": queue["name"] or queue["number"],
            **{key: value for key, value in letter._asdict().items() if key != "channel"},
        }
        for queue, letter in letters
    ]
    if as_json:
        import json

        print(json.dumps(told, indent=2))
        return
    for each in told:
        reason = " ".join(each["reason"].split())
        print(f"{each['queue']}  item {each['place']}  {each['size']} bytes  {reason}")
    if not told:
        print("there are no dead letters", file=sys.stderr)
