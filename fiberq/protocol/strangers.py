"""Peers that have said no hello, or were refused: what they may cost the node, and when it hangs up on them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from fiberq.errors import ProtocolError

ASK_AGAIN: Final = 1.0
"""Seconds after which a peer that has said no hello is asked for it again."""

HELLO_WITHIN: Final = 10.0
"""Seconds from a peer's first message to its hello, after which the node hangs up."""

FAREWELL: Final = 1.0
"""Seconds that a peer which was refused has to read why, before the node hangs up."""

MAX_STRANGERS: Final = 1024
"""Peers that have said no hello, or were refused. One more, and the node hangs up on the oldest."""

MAX_HELLOS: Final = 16
"""Hellos over one connection. To each the node answers, also to a peer that does not read."""


class Stranger:
    """`until`: when the node hangs up."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.answered: dict[int, float] = {}  # when it was last asked for its hello, and told why it was refused
        self.refused = False  # it is not listened to any more


class Strangers:
    def __init__(self) -> None:
        self.known: dict[Hashable, Stranger] = {}  # the oldest first
        self.greetings: dict[Hashable, int] = {}  # hellos, by connection
        self.due = float("inf")  # when to `look`
        self.drops: list[Hashable] = []  # peers to hang up on

    def meet(self, peer: Hashable, now: float) -> Stranger:
        stranger = self.known.get(peer)
        if stranger is None:
            stranger = self.known[peer] = Stranger(now + HELLO_WITHIN)
            self.due = min(self.due, stranger.until)
            if len(self.known) > MAX_STRANGERS:
                self._drop(next(iter(self.known)))
        return stranger

    def may_answer(self, peer: Hashable, kind: int, now: float) -> bool:
        """Whether to send this one a frame of this kind, which counts as done: not after each message, because who
        does not read would make the transport keep the answers."""
        stranger = self.meet(peer, now)
        if now - stranger.answered.get(kind, float("-inf")) < ASK_AGAIN:
            return False
        stranger.answered[kind] = now
        return True

    def turn_away(self, peer: Hashable, now: float) -> None:
        """Listen to a peer no more, and hang up when it has had the time to read why."""
        stranger = self.meet(peer, now)
        stranger.refused = True
        stranger.until = now + FAREWELL
        self.due = min(self.due, stranger.until)

    def greeted(self, peer: Hashable) -> None:
        """It has said hello, and is none any more. Raises `ProtocolError` if it does so again and again."""
        self.known.pop(peer, None)
        self.greetings[peer] = self.greetings.get(peer, 0) + 1
        if self.greetings[peer] > MAX_HELLOS:
            raise ProtocolError("a connection says hello again and again")

    def gone(self, peer: Hashable) -> None:
        self.known.pop(peer, None)
        self.greetings.pop(peer, None)

    def look(self, now: float) -> None:
        """Hang up on those whose time is over."""
        for peer, stranger in list(self.known.items()):
            if stranger.until <= now:
                self._drop(peer)
        self.due = min((stranger.until for stranger in self.known.values()), default=float("inf"))

    def _drop(self, peer: Hashable) -> None:
        del self.known[peer]
        self.drops.append(peer)
