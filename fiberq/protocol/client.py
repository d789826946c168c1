"""A process's connection to a node, without its socket: the session, and all writers and readers that share it.

Messages go in, messages come out in `session.out`, and `changed` collects what a waiting caller may be waiting for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any

from fiberq.abc import Buffer
from fiberq.errors import AccessError, NodeError, ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.frames import Frame, decode, pack_json, read_json
from fiberq.protocol.kinds import Kind
from fiberq.protocol.lent import read_generations
from fiberq.protocol.reader import Reader
from fiberq.protocol.session import Session
from fiberq.protocol.writer import Writer


class Request:
    """A question to the node, and its answer when it has come."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.parts: Sequence[Buffer] = ()  # an item in the answer


def _no_matter(_: int) -> None:
    pass


class Client:
    """`grace`: whether the node is to wait for this process when its connection breaks, as one over a network may.
    `token`: the right that it has there, where one is asked for."""

    def __init__(self, name: str, grace: bool, token: bytes = b"") -> None:
        self.name = name
        self._token = token
        self.session = Session()
        self.writers: dict[int, Writer] = {}
        self.readers: dict[int, Reader] = {}
        self.changed: list[object] = []  # writers, readers and requests about which there is news
        self.welcomed = False
        self.node: str | None = None
        self.max_bytes = 1 << 62  # bytes that an item may have
        self.kinds: dict[int, Kind] = {}  # of the channels that are held
        self.opening = 0  # questions under way whose answers make it more
        self.over: dict[int, str] = {}  # why nothing can be put into these channels any more
        self._paused: set[int] = set()  # channels into which nothing is to be put now, used or not yet
        self._grace = grace
        self.session.before_report = self._pump_everything
        self.memory: Any = None  # the process and the descriptor of what a node shows that shares memory
        self.used: Callable[[int], None] = _no_matter  # an item in shared memory has ended, of this generation
        self._requests: dict[int, Request] = {}
        self._next_request = 0
        self._hellos = 0

    # -- the session --

    def hello(self) -> None:
        """A connection stands, new or again: say who this is. Until the welcome comes, frames wait."""
        self.welcomed = False
        self.session.disconnect()
        self._hellos += 1
        hello = {
            "protocol": frames.VERSION,
            "byteorder": sys.byteorder,
            "session": self.name,
            "hellos": self._hellos,
            "received": self.session.received,
            "resume": self.node is not None,
            "node": self.node,
            "grace": self._grace,
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "token": self._token.hex(),
        }
        self.session.send_aside(Frame(frames.HELLO, 0, pack_json(hello)))

    def message(self, parts: Sequence[Buffer], now: float) -> None:
        """A message came. Raises `NodeError` when it says that the session cannot go on."""
        received = decode(parts)
        if received.kind == frames.WELCOME:
            self._welcome(read_json(received.body), now)
        elif received.kind == frames.REFUSED:
            answer = read_json(received.body)
            refusal = AccessError if answer.get("code") == "denied" else NodeError
            raise refusal(f"the node refused this process: {answer.get('error')}")
        elif received.kind == frames.HELLO_FIRST:
            if self.welcomed:
                self.hello()
        elif received.kind == frames.USED:
            for generation in read_generations(received.body):
                self.used(generation)
            self.changed.append(self.used)
        elif self.welcomed:
            acknowledged = self.session.acknowledged
            frame = self.session.accept(received, now)
            if self.session.acknowledged != acknowledged:
                self._acknowledged(now)
            if frame is not None:
                self._frame(frame, now)
            self.changed.append(self.session)

    def goodbye(self, now: float) -> int:
        """Leave for good: items that no caller got go back, those that callers got are finished."""
        for reader in self.readers.values():
            reader.leave(self.session, now)
        return self.session.send(Frame(frames.GOODBYE), now, urgent=True)

    def _welcome(self, welcome: dict[str, Any], now: float) -> None:
        node, received = welcome.get("node"), welcome.get("received")
        if not isinstance(node, str) or not isinstance(received, int):
            raise ProtocolError("a welcome cannot be read")
        if self.node is not None and node != self.node:
            raise NodeError("another node has taken the address; the queues of the one before it are gone")
        self.node = node
        self.max_bytes = int(welcome.get("max_bytes", self.max_bytes))
        self.memory = welcome.get("memory")
        self.welcomed = True
        self.session.connect(received, now)
        self._acknowledged(now)

    # -- frames --

    def request(self, now: float, **question: Any) -> Request:
        """Ask the node; the request is in `changed` when its answer has come."""
        self._next_request += 1
        request = self._requests[self._next_request] = Request()
        body = pack_json({"id": self._next_request, **question})
        self.session.send(Frame(frames.REQUEST, 0, body), now, urgent=True)
        return request

    def about_lease(self, now: float, **question: Any) -> Request:
        """Ask something that may end a lease: what was put by then leaves before."""
        self._pump_everything(now)
        return self.request(now, op="lease", **question)

    def writer(self, channel: int, kind: Kind) -> Writer:
        """This process's writer of a channel, which is made if there is none."""
        writer = self.writers.get(channel)
        if writer is None:
            writer = self.writers[channel] = Writer(channel, kind, not self._grace, self.max_bytes)
            writer.ended = self.over.get(channel)
            writer.paused = channel in self._paused
        return writer

    def shut_down(self, channel: int, now: float) -> None:
        """Nothing more is put into a queue; what was put before is on its way."""
        self.over[channel] = "shut"
        writer = self.writers.get(channel)
        if writer is not None and writer.ended is None:
            writer.shut_down(self.session, now)
            self.changed.append(writer)

    def forget(self, request: Request, now: float) -> None:
        """Nobody waits for the answer any more."""
        for number, asked in list(self._requests.items()):
            if asked is request:
                del self._requests[number]
                self.tell(now, op="forget", request=number)

    def tell(self, now: float, **order: Any) -> int:
        """Send an order that has no answer; return its frame's number."""
        return self.session.send(Frame(frames.REQUEST, 0, pack_json(order)), now, urgent=True)

    def release(self, channel: int, sides: str, now: float) -> None:
        """This process holds these sides of the channel no more."""
        if "r" in sides:
            reader = self.readers.pop(channel, None)
            if reader is not None:
                reader.leave(self.session, now)
                reader.ended = "closed"
                self.changed.append(reader)
        self.session.send(Frame(frames.RELEASE, channel, (sides.encode(),)), now)

    def pump(self, writer: Writer, now: float, urgent: bool = False) -> None:
        if not writer.paused:
            writer.pump(self.session, now, urgent)

    def idle(self, now: float) -> bool:
        """Let readers that nobody reads from give back their items and tell how far they are, and writers into which
        nobody puts their slots; return whether to ask again soon."""
        left = False
        for reader in self.readers.values():
            left |= reader.idle(self.session, now)
        for writer in self.writers.values():
            if writer.permits is not None:
                left |= writer.permits.idle(self.session, now)
        return left

    def give_back(self, channel: int, now: float) -> None:
        """Give back what a reader was sent ahead, if nobody waits for it."""
        reader = self.readers.get(channel)
        if reader is not None:
            reader.give_back(self.session, now)

    @property
    def giving(self) -> bool:
        """Whether something is still on its way back."""
        return any(reader.giving for reader in self.readers.values())

    def outlived(self, threads: Container[int], now: float) -> None:
        """What threads had got that are not among `threads` any more is finished."""
        for reader in self.readers.values():
            if reader.held or reader.owner is not None:
                reader.outlived(threads, self.session, now)

    def _pump_everything(self, now: float) -> None:
        for writer in self.writers.values():
            if writer.items:
                writer.overdrawn = writer.paused
                writer.pump(self.session, now, everything=True)

    def _acknowledged(self, now: float) -> None:
        for writer in self.writers.values():
            if writer.under_way:
                self.pump(writer, now)
                self.changed.append(writer)

    def _frame(self, frame: Frame, now: float) -> None:
        if frame.kind == frames.DELIVER:
            reader = self.readers.get(frame.channel)
            if reader is not None:
                reader.deliver(frame, self.session, now)
                self.changed.append(reader)
        elif frame.kind == frames.RECALL:
            reader = self.readers.get(frame.channel)
            if reader is not None:
                reader.recalled(self.session, now)
                self.changed.append(reader)
        elif frame.kind == frames.TAKEN:
            reader = self.readers.get(frame.channel)
            if reader is not None:
                reader.taken(frames.read_ranges(frame.body[0]))  # type: ignore[arg-type]
                self.changed.append(reader)
        elif frame.kind == frames.ENDED:
            self._ended(frame, now)
        elif frame.kind == frames.REPLY:
            answer = read_json(frame.body[0])  # type: ignore[arg-type]
            request = self._requests.pop(answer.get("id", 0), None)
            if request is not None:
                request.answer, request.parts = answer, frame.parts
                self.changed.append(request)
        elif frame.kind == frames.GRANT:
            writer = self.writers.get(frame.channel)
            if writer is not None and writer.permits is not None:
                writer.permits.granted(frames.read_grant(frame.body[0]))  # type: ignore[arg-type]
                self.changed.append(writer)
        elif frame.kind == frames.SURVEY:
            self._survey(frame.channel, frames.read_survey(frame.body[0]), now)  # type: ignore[arg-type]
        elif frame.kind in (frames.PAUSE, frames.RESUME):
            pauses = frame.kind == frames.PAUSE
            (self._paused.add if pauses else self._paused.discard)(frame.channel)
            writer = self.writers.get(frame.channel)
            if writer is not None:
                writer.paused = pauses
                writer.overdrawn = False
                self.pump(writer, now)
                self.changed.append(writer)

    def forget_others(self) -> None:
        """Of what is not held it does not matter why nothing can be put there."""
        self.over = {channel: code for channel, code in self.over.items() if channel in self.kinds}

    def _survey(self, channel: int, number: int, now: float) -> None:
        """The node wants to know how far this process is, and to have back the slots that it does not use."""
        reader, writer = self.readers.get(channel), self.writers.get(channel)
        if reader is not None and reader.attached:
            reader.progress(self.session, now)
        if writer is not None and writer.permits is not None:
            writer.permits.give_back(self.session, now)
        self.tell(now, op="surveyed", survey=number)

    def _ended(self, frame: Frame, now: float) -> None:
        code = str(read_json(frame.body[0]).get("code"))  # type: ignore[arg-type]
        reader, writer = self.readers.get(frame.channel), self.writers.get(frame.channel)
        if not (self.opening or frame.channel in self.kinds or reader or writer):
            return  # it was let go of meanwhile
        if code in ("shut", "dropped"):
            self.shut_down(frame.channel, now)
        if reader is not None and code in ("eof", "gone", "drained", "dropped"):
            if code == "dropped":
                reader.clear(self.session, now)
            reader.ended = code
            reader.giving = False
            self.changed.append(reader)
        if code in ("unread", "gone"):
            self.over[frame.channel] = code
        if writer is not None and code in ("unread", "gone"):
            writer.end(code)
            self.changed.append(writer)
