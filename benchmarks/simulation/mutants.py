"""How soon the simulation notices a wrong protocol."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from sim.mutants import MUTANTS

SEEDS = range(1000)
WIDTH = 70


def show(console: Console) -> int:
    """Print what notices each mutant; return 1 if something does not."""
    logging.disable()
    table = Table("mutant", "schedules until it is noticed", "by what")
    table.columns[1].justify = "right"
    unnoticed = 0
    for name in track(MUTANTS, "mutants", console=console, transient=True):
        found = MUTANTS[name].notice(SEEDS)
        unnoticed += found is None
        number, why = found or ("never", "")
        table.add_row(name, str(number), escape(why[:WIDTH]))
    console.print(table)
    return 1 if unnoticed else 0
