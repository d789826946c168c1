"""What somebody who wrote a name that nobody knows probably meant, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the one of the `known` names that is most like `name`, in upper or lower case; "" if none is like it."""
    by_folded = {each.casefold(): each for each in known}
    found = get_close_matches(name.casefold(), by_folded, 1)
    return by_folded[found[0]] if found else ""
