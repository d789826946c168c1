"""What the subcommands have in common that look after a node: which node that is, and which of its queues."""

from __future__ import annotations

import argparse
from typing import Any

from ..address import hidden
from ..errors import ConfigError, HandleError
from ..link import Link
from ..links import connect_tree
from ..settings import config

__all__ = ["add_node_arguments", "connect", "queues"]


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--node", metavar="URL", help="the node's URL or address, or a file with it; default: config.node (FIBERQ_NODE)"
    )
    parser.add_argument("--transport", metavar="NAME", help="where that is an address; default: config.transport")


def connect(arguments: argparse.Namespace) -> Link:
    """Return a link to the node that was asked for. Raises `ConfigError` if none was."""
    chosen = {"node": arguments.node, "transport": arguments.transport}
    config.update(**{key: value for key, value in chosen.items() if value is not None})
    if config.node is None:
        raise ConfigError(
            "which node? FIBERQ_NODE or --node takes its URL, the `url` of a queue on it, or a file with one"
        )
    return connect_tree()


def queues(link: Link, wanted: str | None = None) -> list[dict[str, Any]]:
    """What the node tells of its queues, or of the one with this name or number. Raises `HandleError` if there is none
    such."""
    found: list[dict[str, Any]] = link.question(op="queues")["queues"]
    for queue in found:
        queue["number"] = f"{queue['channel']:016x}"
    found = [queue for queue in found if wanted in (None, queue["name"], queue["number"])]
    if wanted is not None and not found:
        raise HandleError(f"the node has no queue {hidden(wanted)!r}")
    return found
