"""Valid frames, and what damage makes of them: so that they get past the first check, and then mean something else."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

from fiberq.abc import MAX_PARTS
from fiberq.protocol import frames
from fiberq.protocol.frames import HEADER, Frame, Ready, Want, pack_items, pack_json, pack_ranges, pack_ready, pack_want

KINDS = (*range(frames.HELLO, frames.RESUME + 1), *range(frames.PUT, frames.TAKEN + 1))
NUMBERS = (0, 1, 2, 7, 255, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
ODD: tuple[Any, ...] = (
    *(*NUMBERS, -1, 2**200, 0.5, 1e300, float("inf"), float("nan"), None, True, False),
    *("", "r", "w", "rw", "x" * 300, "\0", "\ud800", [], [[]], {}, {"a": {}}, [[1, "rw"]], [[1]], "drop", "item"),
)
OPERATIONS = (
    *("create", "open", "flight", "landed", "arrived", "unused", "inherit", "stat", "surveyed", "join", "forget"),
    *("shutdown", "lease", "dead letters", "dead letter", "restrict", "revoke", "find", "queues", "stats", "purge"),
    "delete",
)


def hello(session: str, token: bytes, number: int = 1) -> Frame:
    """Say who one is. What the node had sent to this session before is not asked for."""
    told = {"protocol": frames.VERSION, "byteorder": sys.byteorder, "session": session, "hellos": number}
    return Frame(frames.HELLO, 0, pack_json(told | {"received": 0, "pid": 1, "host": "nowhere", "token": token.hex()}))


class Source:
    """Frames about these `channels`, from a seed."""

    def __init__(self, channels: Sequence[int], names: Sequence[str], rng: random.Random) -> None:
        self._channels = channels
        self._names = names
        self._rng = rng
        self.damaged = 0
        """Frames so far that were not as valid as they began."""

    def frame(self) -> Frame:
        """A valid one; most often one that moves items."""
        rng = self._rng
        channel = rng.choice(self._channels)
        choice = rng.randrange(11) if rng.random() < 0.97 else 11
        if choice < 3:
            return Frame(frames.REQUEST, 0, pack_json(self.question()))
        if choice < 6:
            items = [rng.randbytes(rng.choice((0, 1, 30))) for _ in range(rng.randint(1, 4))]
            lengths = b"".join(len(each).to_bytes(4, sys.byteorder) for each in items)
            return Frame(frames.PUT, channel, pack_items(lengths, items))
        if choice == 6:
            return Frame(
                frames.PUT, channel, pack_items(b"", ()), [rng.randbytes(100) for _ in range(rng.randint(1, 3))]
            )
        if choice < 9:
            limit, started = rng.randrange(20), rng.randrange(20)
            held = [(2 * each, 2 * each + 1) for each in range(rng.randrange(3))]
            return Frame(frames.READY, channel, pack_ready(Ready(limit, started, rng.randrange(3), held)))
        if choice == 9:
            return Frame(frames.RETURN, channel, pack_ranges([(rng.randrange(9), rng.randrange(20))]))
        if choice == 10:
            return Frame(frames.WANT, channel, pack_want(Want(*(rng.randrange(5) for _ in range(4)))))
        return Frame(rng.choice(KINDS), channel, (rng.choice((b"", b"r", b"w", b"rw", rng.randbytes(20))),))

    def question(self) -> dict[str, Any]:
        rng = self._rng
        channel = rng.choice(self._channels)
        asked: dict[str, Any] = {"id": rng.randrange(100), "op": rng.choice(OPERATIONS), "channel": channel}
        more: dict[str, Any] = {
            "holds": [[rng.choice(self._channels), rng.choice(("r", "w", "rw", ""))] for _ in range(rng.randrange(3))],
            "kind": [rng.choice(("pull", "push", "joinable", "pipe")), rng.randrange(3)],
            "name": rng.choice((*self._names, None)),
            "token": str(rng.randrange(5)),
            "what": rng.choice(("finish", "give back", "keep", "show", "put back", "drop")),
            "within": rng.choice(self._channels),
            "for": rng.choice(("item", "slot", "answer")),
        }
        numbers = {
            name: rng.choice((0, 1, 3)) for name in ("item", "seconds", "first", "place", "survey", "request", "number")
        }
        return asked | {key: value for key, value in (more | numbers).items() if rng.random() < 0.6}

    def mutated(self, seq: int, ack: int) -> list[bytes]:
        """The message of a frame, damaged more often than not: valid ones between keep the session interesting."""
        rng = self._rng
        odd = rng.random() < 0.05
        frame = Frame(frames.REQUEST, 0, pack_json(self._odd(self.question()))) if odd else self.frame()
        if misplaced := rng.random() < 0.03:
            seq, ack = rng.choice((seq, rng.choice(NUMBERS))), rng.choice((ack, rng.choice(NUMBERS)))
        flags = rng.choice((0, frames.ACK_NOW, frames.RESEND, rng.randrange(256)))
        head = HEADER.pack(frames.MAGIC, frame.kind, flags, seq, ack, frame.channel)
        parts = [b"".join((head, *map(bytes, frame.body))), *map(bytes, frame.parts)]
        damages = rng.choice((0, 1, 1, 2))
        for _ in range(damages):
            parts = self._damaged(parts)
        self.damaged += bool(odd or misplaced or damages)
        return parts

    def _odd(self, question: dict[str, Any]) -> dict[str, Any]:
        rng = self._rng
        key = rng.choice(list(question))
        if isinstance(question[key], list) and question[key] and rng.random() < 0.5:
            question[key][rng.randrange(len(question[key]))] = rng.choice(ODD)
        else:
            question[key] = rng.choice(ODD)
        return question

    def _damaged(self, parts: list[bytes]) -> list[bytes]:
        rng = self._rng
        head = bytearray(parts[0])
        choice = rng.randrange(7)
        if choice < 2 and len(head) > HEADER.size:  # in the body
            for _ in range(rng.randint(1, 4)):
                head[rng.randrange(HEADER.size, len(head))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        elif choice == 2 and head:
            del head[rng.randrange(len(head)) :]
        elif choice == 3:
            head += rng.randbytes(rng.choice((1, 16, 100)))
        elif choice == 4 and len(head) >= HEADER.size + 8:
            place = rng.randrange(HEADER.size, len(head) - 7)
            head[place : place + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
        elif choice == 5 and head:
            head[rng.randrange(min(len(head), HEADER.size))] ^= 1 << rng.randrange(8)
        else:
            more = [rng.randbytes(rng.choice((0, 1, 50))) for _ in range(rng.choice((1, 2, MAX_PARTS - 1)))]
            return [bytes(head), *(more if rng.random() < 0.7 else ())][:MAX_PARTS]
        return [bytes(head), *parts[1:]]

    def beginning(self, token: bytes) -> list[list[bytes]]:
        """Valid messages with which a session begins: it asks for all that there is."""
        openings = [
            Frame(frames.REQUEST, 0, pack_json({"op": "open", "holds": [[channel, side]]}))
            for channel in dict.fromkeys(self._channels)
            for side in "rw"
        ]
        everything = [hello(self._rng.randbytes(8).hex(), token), *openings]
        return [list(map(bytes, frames.encode(frame, 0, seq, 0))) for seq, frame in enumerate(everything)]
