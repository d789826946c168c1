"""``fiberq dead-letters``: the items of a node's queues that failed too often, and why; puts them back, drops them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..channel import Channel
from ..errors import ConfigError, HandleError
from ..leases import DeadLetter
from ..links import connect_tree
from ..protocol.kinds import Kind
from ..settings import config

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", nargs="?", help="the queue's name or number; without it, all queues")
    parser.add_argument("--node", metavar="ADDRESS", help="the node's address; default: config.node (FIBERQ_NODE)")
    parser.add_argument("--transport", metavar="NAME", help="the node's transport; default: config.transport")
    parser.add_argument("--item", type=int, metavar="N", help="only the letter with this number")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--put-back", action="store_true", help="deliver them again, as if they had never failed")
    what.add_argument("--drop", action="store_true", help="forget them; needs a queue")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Print the dead letters, after doing with them what was asked for; return 0."""
    chosen = {"node": arguments.node, "transport": arguments.transport}
    config.update(**{key: value for key, value in chosen.items() if value is not None})
    if config.node is None:
        raise ConfigError("which node? Give its address with --node or FIBERQ_NODE: a queue's repr() shows it")
    if arguments.drop and arguments.queue is None:
        raise ConfigError("--drop needs a queue")
    letters = [
        (queue, letter)
        for queue in _queues(arguments.queue)
        for letter in _letters(queue)
        if arguments.item in (None, letter.place)
    ]
    for _, letter in letters:
        if arguments.put_back:
            letter.put_back()
        elif arguments.drop:
            letter.drop()
    _print(letters, arguments.json)
    return 0


def _queues(wanted: str | None) -> list[dict[str, Any]]:
    queues: list[dict[str, Any]] = connect_tree().question(op="queues")["queues"]
    for queue in queues:
        queue["number"] = f"{queue['channel']:016x}"
    found = [queue for queue in queues if wanted in (None, queue["name"], queue["number"])]
    if wanted is not None and not found:
        raise HandleError(f"the node has no queue {wanted!r}")
    return [queue for queue in found if queue["dead"]]


def _letters(queue: dict[str, Any]) -> list[DeadLetter]:
    kind = Kind.read(queue["kind"])
    channel = Channel(connect_tree().endpoint, queue["channel"], "r", label=kind.name)
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
