"""The command ``fiberq``: finds the subcommand's module, which alone is imported, and turns errors into exit statuses.

To add a subcommand: a line in `COMMANDS`, and a module with ``add_arguments(parser)`` and ``run(arguments) -> int``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ..address import hidden
from ..errors import FiberqError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "bench": ("fiberq.cli.bench", "measure queues beside those of multiprocessing, and others"),
    "contract": ("fiberq.cli.contract", "test a transport against the contract, rule by rule"),
    "dead-letters": ("fiberq.cli.dead_letters", "list the items that failed too often; put them back, or drop them"),
    "delete": ("fiberq.cli.delete", "end a queue of a node for all who use it"),
    "demo": ("fiberq.cli.demo", "run a real job on worker processes, and check its result"),
    "ls": ("fiberq.cli.ls", "list the queues of a node"),
    "new-transport": ("fiberq.cli.new_transport", "start a transport of your own, as a project to fill in"),
    "purge": ("fiberq.cli.purge", "drop what waits in a queue of a node"),
    "revoke": ("fiberq.cli.revoke", "take back the right that a URL carries"),
    "serve": ("fiberq.cli.serve", "run a node that stands alone, for processes on any number of machines"),
    "stats": ("fiberq.cli.stats", "tell of one queue, who reads and writes it, and how fast items go through"),
    "transports": ("fiberq.cli.transports", "list the installed transports, and why one can't be used"),
}
"""The name of each subcommand, its module, and its line in ``fiberq --help``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fiberq`` with `argv` (by default the process's arguments) and return its exit status.

    2 stands for a `FiberqError`, which goes to stderr; wrong arguments and ``--help`` raise `SystemExit`.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(prog="fiberq", description="Queues and pipes over a transport of your choice.")
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, (module, help_line) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_line, description=help_line)
        if name == chosen:
            command = import_module(module)
            command.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        return int(command.run(arguments))
    except FiberqError as error:
        print(f"fiberq: {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Its errors show no URL whole, since that of a node is a secret."""

    def error(self, message: str) -> NoReturn:
        super().error(hidden(message))


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print fiberq's version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("fiberq")
        except PackageNotFoundError:
            found = "(not installed)"
        print(f"fiberq {found}")
        parser.exit()
