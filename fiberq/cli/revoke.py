"""``fiberq revoke``: takes back the right that the URL of a restricted handle carries, from all who have it."""

from __future__ import annotations

import argparse
import sys

from ..access import number_of, read_url
from ..errors import AddressError
from .nodes import add_node_arguments, connect

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help='the URL, or "-" to read it from standard input, where no other user sees it')
    add_node_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Revoke; return 0."""
    key = read_url(sys.stdin.readline().strip() if arguments.url == "-" else arguments.url).key
    if key is None:
        raise AddressError("that URL carries no right")
    cut_off = connect(arguments).question(op="revoke", number=number_of(key))["cut off"]
    print(f"revoked; {cut_off} processes were cut off")
    return 0
