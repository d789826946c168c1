"""Transports that each break one rule of the contract, on purpose: the suite has to notice, and to name the rule.

Each module here holds those of some areas of RULES.md; `right` is what they all derive from.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .right import Right

__all__ = ["everyone", "usable"]


def everyone() -> list[type[Right]]:
    """All wrong transports, in the order of their modules."""
    modules = [import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    found = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return list(dict.fromkeys(each for each in found if issubclass(each, Right) and each.breaks))


def usable() -> list[type[Right]]:
    """Those that can be made of the transport that is wrapped, which may lack what they need."""
    return [each for each in everyone() if each.fits()]
