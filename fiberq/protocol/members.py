"""The processes that a node knows, and what it says to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, Final

from fiberq.abc import Buffer
from fiberq.access import Right
from fiberq.address import printable
from fiberq.errors import ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.frames import ENDED, Frame, pack_json
from fiberq.protocol.session import Session

MAX_WAITING: Final = 50_000
"""Frames that wait for a process to acknowledge those before."""

MAX_UNREAD: Final = 4096
MAX_UNREAD_BYTES: Final = 4 << 20
FEW_UNREAD: Final = 64
"""Answers that a process has not acknowledged, and their bytes, when it may ask no more; so few may be of any size."""

MAX_HOST: Final = 255
"""Characters that are kept of a host's name."""


class Member:
    """One client process, over all its connections. `peer` is the present one."""

    def __init__(self, name: str, hello: dict[str, Any], right: Right) -> None:
        self.name = name
        self.right = right
        self.pid = hello.get("pid")
        self.host = host_of(hello)
        self.grace = bool(hello.get("grace"))
        self.session = Session()
        self.peer: Hashable | None = None
        self.hellos = 0  # the number of the newest hello
        self.expires: float | None = None  # when it is given up, while it has no connection
        self.ended = False
        self.heard = 0.0
        self.lender: int | None = None  # its number, if it and the node share memory
        self.unread: deque[tuple[int, int]] = deque()  # answers that it has not acknowledged: number, bytes
        self.unread_bytes = 0
        self.behind: dict[int, None] = {}  # queues to look at when it has acknowledged more
        self.holds: dict[int, str] = {}  # channel -> "r", "w" or "rw"
        self.flights: dict[str, dict[int, str]] = {}  # token -> what the handle in flight holds

    @property
    def near(self) -> bool:
        """Whether it can read what the node has in shared memory."""
        return self.lender is not None

    @property
    def round_trip(self) -> float:
        """Seconds, smoothed; 0: none was measured yet."""
        return self.session.round_trip

    @property
    def lag(self) -> float:
        """Seconds that it may need to answer, if it has to wait for a processor."""
        return self.session.lag

    def due(self) -> float:
        """When to look at it next, if nothing else happens; infinity when never."""
        return self.session.due() if self.expires is None else self.expires

    def answer(self, frame: Frame, now: float) -> None:
        """Send what it asked for. An item in it is there anyway."""
        size = sum(map(len, frame.body))
        self.unread.append((self.session.send(frame, now), size))
        self.unread_bytes += size

    def check_reads(self) -> None:
        """Raises `ProtocolError` if it does not acknowledge the answers that it gets."""
        while self.unread and self.unread[0][0] <= self.session.acknowledged:
            self.unread_bytes -= self.unread.popleft()[1]
        count, size = len(self.unread), self.unread_bytes
        if count >= FEW_UNREAD and (count >= MAX_UNREAD or size >= MAX_UNREAD_BYTES):
            raise ProtocolError("a process asks on, and does not read the answers")


class Outbox:
    """What the event that the node deals with, which happened at `now`, makes it say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.messages: list[tuple[Hashable, tuple[Buffer, ...]]] = []
        self.touched: dict[Member, None] = {}  # may have something to send
        self.drowned: dict[Member, None] = {}  # for whom too much waits

    def send(self, key: object, frame: Frame) -> None:
        assert isinstance(key, Member)
        key.session.send(frame, self.now)
        self.touched[key] = None
        if len(key.session.waiting) > MAX_WAITING:
            self.drowned[key] = None

    def reply(self, member: Member, request: Any, answer: dict[str, Any], parts: Sequence[Buffer] = ()) -> None:
        """Answer the request with the number `request`, if it has one and its process is still there."""
        if request is not None and not member.ended:
            member.answer(Frame(frames.REPLY, 0, pack_json({**answer, "id": request}), parts), self.now)
            self.touched[member] = None

    def tell_ended(self, member: Member, number: int, code: str) -> None:
        self.send(member, Frame(ENDED, number, pack_json({"code": code})))

    def aside(self, peer: Hashable, frame: Frame) -> None:
        """Send a frame that belongs to no session: it may be lost."""
        self.messages.append((peer, frames.encode(frame, 0, 0, 0)))


def host_of(hello: dict[str, Any]) -> str:
    """The name of a client's host, as it says, which is to write no lines of its own into logs and tables."""
    return printable(str(hello.get("host", ""))[:MAX_HOST])
