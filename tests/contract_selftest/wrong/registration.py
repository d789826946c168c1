"""Wrong about registration (REG)."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from .right import Right


class LeadsElsewhereInAFreshProcess(Right):
    """In a process that has not imported pytest the entry point leads to another class."""

    breaks = "REG-1"

    @classmethod
    def target(cls) -> str:
        return f"{__name__}:entry"


class Elsewhere(Right):
    """What the entry point of the one above leads to where it should not."""


Elsewhere.name = LeadsElsewhereInAFreshProcess.name
entry = LeadsElsewhereInAFreshProcess if "pytest" in sys.modules else Elsewhere


class LoadedWithCare(Right):
    """One whose import is what `load` does: the selftest imports this module, too."""

    @classmethod
    def target(cls) -> str:
        return f"{__name__}:import_{cls.__name__}"

    @classmethod
    def load(cls) -> None:
        """What a module would do at its import."""


class OpensADescriptorAtImport(LoadedWithCare):
    """Importing it opens a descriptor, which stays open."""

    breaks = "REG-2"

    @classmethod
    def load(cls) -> None:
        os.open(os.devnull, os.O_RDONLY)


class TakesASignalAtImport(LoadedWithCare):
    """Importing it sets a handler for SIGUSR2."""

    breaks = "REG-2"

    @classmethod
    def load(cls) -> None:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGUSR2, lambda *_: None)


def __getattr__(name: str) -> type[Right]:
    found = globals().get(name.removeprefix("import_"))
    if not name.startswith("import_") or not isinstance(found, type) or not issubclass(found, LoadedWithCare):
        raise AttributeError(name)
    found.load()
    return found
