"""``fiberq transports``: what is installed, where it comes from, what it can do, and why one cannot be used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..abc import Capabilities
from ..registry import Plugin, available

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the installed transports; return 1 if one of them cannot be used, else 0."""
    plugins = available()
    if arguments.json:
        import json

        print(json.dumps([_plain(plugin) for plugin in plugins], indent=2))
    else:
        _print_table(plugins)
    return int(any(plugin.error is not None for plugin in plugins))


def _plain(plugin: Plugin) -> dict[str, object]:
    capabilities = plugin.capabilities and plugin.capabilities._asdict()
    return {**plugin._asdict(), "capabilities": capabilities}


def _print_table(plugins: Sequence[Plugin]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Whatever a plug-in says of itself is text: rich's markup would swallow "[nng]". Nothing is cut off in a pipe.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table("transport", "distribution", "module", "capabilities")
    for plugin in plugins:
        table.add_row(
            *(
                Text(cell, overflow="fold")
                for cell in (
                    plugin.name,
                    f"{plugin.distribution} {plugin.version}",
                    f"{plugin.target}\n{plugin.location}",
                    "cannot be used" if plugin.capabilities is None else _summary(plugin.capabilities),
                )
            )
        )
    console.print(table)
    for error in dict.fromkeys(plugin.error for plugin in plugins):  # duplicates share theirs
        if error is not None:
            console.print(Text(error, style="red"), soft_wrap=True)


def _summary(capabilities: Capabilities) -> str:
    able = [name for name, value in capabilities._asdict().items() if value is True]
    return ", ".join([*(f"{scheme}://" for scheme in capabilities.schemes), *able])
