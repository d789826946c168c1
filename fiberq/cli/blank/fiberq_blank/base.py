"""What the server and the client have in common: errors, and being closed."""

from __future__ import annotations

from fiberq.errors import ClosedError, TransportError

__all__ = ["NAME", "Base", "not_written"]

NAME = "blank"
"""Each error begins with it, and names the address where there is one (ERR-2)."""


def not_written(method: str, rules: str) -> TransportError:
    """Return the error of a method that is still to be written."""
    return TransportError(f"{NAME}: {method} is not written yet; its rules: {rules}")


class Base:
    """A socket that can be closed."""

    def __init__(self) -> None:
        self._closed = False

    def close(self) -> None:
        """Close at once, without waiting for what is unsent; idempotent (CLOSE).

        It may come from another thread, and must wake a `recv` that is blocked: CLOSE-3.
        """
        self._closed = True
        # TODO: wake `recv`, then close what this socket has opened.

    def _check_open(self) -> None:
        """Each method begins with this (CLOSE-2)."""
        if self._closed:
            raise ClosedError(f"{NAME}: this socket is closed")
