"""The node without its socket: sessions, channels and their holders, and which frame goes to which device.

A channel is one device with a reading and a writing side. A process holds a side while it has an open handle on it. A
queue lives while somebody holds it. Of a pipe's channel each side ends by itself: when nobody is left to write and all
was read, readers are told so; when nobody is left to read, writers are.

A handle that is on its way to a process which is starting is in flight: it holds what it stands for, under a token,
until that process claims it, or either of the two ends.

Some questions have an exact answer only after other processes have said how far they are, and given back what they do
not use. For these the node makes a survey: it asks each of them, and answers when all have, or are silent for too long.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from fiberq.abc import Buffer
from fiberq.access import Authority, Right
from fiberq.address import check_name
from fiberq.errors import AccessError, AddressError, ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.device import Device, Memory
from fiberq.protocol.frames import DEFAULT_CHANNEL, ENDED, Frame, Received, decode, pack_json, read_json
from fiberq.protocol.kinds import Kind
from fiberq.protocol.pull import PullDevice
from fiberq.protocol.push import PushDevice
from fiberq.protocol.session import Session, drain
from fiberq.protocol.timers import Timers

log = logging.getLogger("fiberq.node")

MAX_EARLY: Final = 1000
"""Claims that are remembered although no flight was announced for them."""

ROOM: Final = 0.9
"""How full the memory may be for writers to go on that were paused."""

MAX_SURVEYS: Final = 64
"""Surveys that run at the same time for one process; what it asks beyond is answered by what is known."""

MAX_JOINS: Final = 1000
"""Threads of one process that wait for the same tasks."""

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

MAX_WAITING: Final = 50_000
"""Frames that wait for a process to acknowledge those before."""

MAX_UNREAD: Final = 4096
MAX_UNREAD_BYTES: Final = 4 << 20
FEW_UNREAD: Final = 64
"""Answers that a process has not acknowledged, and their bytes, when it may ask no more; so few may be of any size."""

UNDER_WAY: Final = 4
OVERDRAFT: Final = 64 << 20
"""What a paused writer may put all the same: so many of the largest items were under way, so many bytes gathered."""

MAX_FLIGHTS: Final = 1000
"""Handles in flight of a process that may not do everything."""

MAX_NAME: Final = 255
"""Characters of the name of a queue, a session, or a token."""

LOOK_AT_LIMITS: Final = 1.0
"""Seconds between two looks whether rights have expired."""

LONGEST: Final = 1e9
"""Seconds that anything may last."""

MAX_REASON: Final = 1000
"""Characters that are kept of why an item failed."""

MAX_HOST: Final = 255
"""Characters that are kept of a host's name."""

MAX_LISTED: Final = 1000
"""Dead letters that one answer tells of."""

SURVEY_PATIENCE: Final = 0.5
"""Seconds that a survey waits for a process: as long as a recall does."""


class Member:
    """One client process, over all its connections. `peer` is the present one."""

    def __init__(self, name: str, hello: dict[str, Any], right: Right) -> None:
        self.name = name
        self.right = right
        self.pid = hello.get("pid")
        self.host = _host(hello)
        self.grace = bool(hello.get("grace"))
        self.session = Session()
        self.peer: Hashable | None = None
        self.hellos = 0  # the number of the newest hello
        self.expires: float | None = None  # when it is given up, while it has no connection
        self.heard = 0.0
        self.unread: deque[tuple[int, int]] = deque()  # answers that it has not acknowledged: number, bytes
        self.unread_bytes = 0
        self.holds: dict[int, str] = {}  # channel -> "r", "w" or "rw"
        self.flights: dict[str, dict[int, str]] = {}  # token -> what the handle in flight holds

    def due(self) -> float:
        """When to look at it next, if nothing else happens; infinity when never."""
        return self.session.due() if self.expires is None else self.expires

    def answer(self, frame: Frame, now: float) -> None:
        """Send what it asked for. An item in it is there anyway."""
        size = sum(map(len, frame.body))
        self.unread.append((self.session.send(frame, now), size))
        self.unread_bytes += size

    @property
    def reads(self) -> bool:
        """Whether it acknowledges the answers that it gets."""
        while self.unread and self.unread[0][0] <= self.session.acknowledged:
            self.unread_bytes -= self.unread.popleft()[1]
        return len(self.unread) < FEW_UNREAD or (len(self.unread) < MAX_UNREAD and self.unread_bytes < MAX_UNREAD_BYTES)


class Stranger:
    """A peer that has said no hello, or was refused. `until`: when the node hangs up."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.answered: dict[int, float] = {}  # when it was last asked for its hello, and told why it was refused
        self.refused = False  # it is not listened to any more


class Channel:
    def __init__(self, number: int, device: Device, name: str | None = None, permanent: bool = False) -> None:
        self.names = (f"{number:016x}",) if name is None else (name, f"{number:016x}")
        self.device = device
        self.kind = device.kind
        self.is_pipe = self.kind.name == "pipe"
        self.permanent = permanent
        self.holders: dict[object, str] = {}  # members and tokens
        self.told: set[tuple[Member, str]] = set()  # who knows that this side of it ended
        self.joins: list[tuple[Member, Any]] = []  # who waits until all items are finished, and the request's id
        self.cargo: dict[str, None] = {}  # tokens of the handles in flight that are in its items
        self.shut = ""  # why nothing more is to be put: "shut", or "dropped" with what was there
        self.sealed = False  # and all who put know that

    def held(self, side: str) -> bool:
        return self.permanent or any(side in sides for sides in self.holders.values())


class Survey:
    """What a member asked about a channel, and those of whom there is no word yet."""

    def __init__(self, asker: Member, members: Iterable[Member], until: float, finish: Callable[[], None]) -> None:
        self.asker = asker
        self.missing = dict.fromkeys(members)  # in the order of asking: a simulation must come out the same again
        self.until = until
        self.finish = finish


class Broker:
    """Events come in as method calls; `output` gives the messages that they caused."""

    def __init__(
        self,
        node: str,
        *,
        session_grace: float = 2.0,
        session_timeout: float = 30.0,
        max_bytes: int = 1 << 30,
        max_deliveries: int = 5,
        authority: Authority | None = None,
    ) -> None:
        self.node = node
        self._authority = authority  # without one, everybody may do everything
        self.draining = False  # nothing more is taken
        self.garbage = 0  # messages that were no frames
        self.memory = Memory()
        self._session_grace = session_grace
        self._session_timeout = session_timeout
        self._max_bytes = max_bytes
        self._max_deliveries = max_deliveries
        self._now = 0.0
        self._by_peer: dict[Hashable, Member] = {}
        self._members: dict[str, Member] = {}
        self._channels: dict[int, Channel] = {}
        self._touched: dict[Member, None] = {}  # may have something to send
        self._timers = Timers(Member.due)
        self._alarms: dict[int, Device] = {}
        self._paused: dict[tuple[Member, int], int] = {}  # writers, by process and channel, and what they put since
        self._early: dict[str, None] = {}  # tokens that were claimed before their flight was announced
        self._cargo: dict[str, Channel] = {}  # what the items are in that hold handles in flight, by token
        self._unloading: list[Channel] = []  # their items are gone
        self._strangers: dict[Hashable, Stranger] = {}  # the oldest first
        self._greetings: dict[Hashable, int] = {}  # hellos, by connection
        self._hang_up_at = float("inf")
        self._drops: list[Hashable] = []  # peers to hang up on
        self._drowned: dict[Member, None] = {}  # for whom too much waits
        self._out: list[tuple[Hashable, tuple[Buffer, ...]]] = []
        self._surveys: dict[int, Survey] = {}
        self._survey_count = 0
        self._names: dict[str, int] = {}  # channels that have a name
        self._limited: dict[Member, None] = {}  # processes whose rights expire
        self._limits_at = float("inf")  # when to look at these
        default = self._device(DEFAULT_CHANNEL, Kind("pipe"))
        self._channels[DEFAULT_CHANNEL] = Channel(DEFAULT_CHANNEL, default, permanent=True)

    # -- events --

    def message(self, peer: Hashable, parts: Any, now: float) -> None:
        """A message came from `peer`. What is no frame is counted and ignored."""
        self._now = now
        try:
            received = decode(parts)
            member = self._by_peer.get(peer)
            if peer in self._strangers and self._strangers[peer].refused:
                return
            if received.kind == frames.HELLO:
                self._hello(peer, read_json(received.body, frames.MAX_JSON))
            elif member is None:
                self._ask_hello(peer)
            else:
                self._received(member, received)
        except Exception as error:  # whatever a client sends, it harms nobody but itself
            self.garbage += 1
            if self.garbage == 1:
                log.warning("ignored a message that is not of this protocol: %s (further ones are only counted)", error)
            if peer in self._by_peer:
                known = isinstance(error, ProtocolError)
                self._refuse(
                    self._by_peer[peer], str(error) if known else f"a frame cannot be read ({type(error).__name__})"
                )
            else:
                self._stranger(peer)

    def _ask_hello(self, peer: Hashable) -> None:
        self._answer_stranger(peer, Frame(frames.HELLO_FIRST))

    def _answer_stranger(self, peer: Hashable, frame: Frame) -> bool:
        """Answer, but not each message: who does not read would make the transport keep the answers. Return whether
        this one was."""
        stranger = self._stranger(peer)
        if self._now - stranger.answered.get(frame.kind, float("-inf")) < ASK_AGAIN:
            return False
        stranger.answered[frame.kind] = self._now
        self._aside(peer, frame)
        return True

    def _stranger(self, peer: Hashable) -> Stranger:
        stranger = self._strangers.get(peer)
        if stranger is None:
            stranger = self._strangers[peer] = Stranger(self._now + HELLO_WITHIN)
            self._hang_up_at = min(self._hang_up_at, stranger.until)
            if len(self._strangers) > MAX_STRANGERS:
                self._drop(next(iter(self._strangers)))
        return stranger

    def _turn_away(self, peer: Hashable) -> None:
        """Listen to a peer no more, and hang up when it has had the time to read why."""
        stranger = self._stranger(peer)
        stranger.refused = True
        stranger.until = self._now + FAREWELL
        self._hang_up_at = min(self._hang_up_at, stranger.until)

    def _drop(self, peer: Hashable) -> None:
        del self._strangers[peer]
        self._drops.append(peer)

    def _look_at_strangers(self) -> None:
        for peer, stranger in list(self._strangers.items()):
            if stranger.until <= self._now:
                self._drop(peer)
        self._hang_up_at = min((stranger.until for stranger in self._strangers.values()), default=float("inf"))

    def drops(self) -> list[Hashable]:
        """Take the peers to hang up on, once what `output` gave was sent."""
        drops, self._drops = self._drops, []
        return drops

    def lost(self, peer: Hashable, now: float) -> None:
        """The connection `peer` is gone."""
        self._now = now
        self._strangers.pop(peer, None)
        self._greetings.pop(peer, None)
        member = self._by_peer.pop(peer, None)
        if member is None:
            return
        member.peer = None
        member.session.disconnect()
        if member.grace:
            member.expires = now + self._session_grace
            self._timers.set(member, member.expires)
            for number, channel in self._used_by(member):
                channel.device.away(member, now)
                self._check(number, channel)
        else:
            self._end(member)

    def output(self, now: float) -> list[tuple[Hashable, tuple[Buffer, ...]]]:
        """Run the timers that are due, and take the messages to be sent: deliveries first, then acknowledgements."""
        self._now = now
        for channel, device in list(self._alarms.items()):
            if device.alarm is None or channel not in self._channels:
                del self._alarms[channel]
            elif device.alarm <= now:
                device.tick(now)
        for member in self._timers.rung(now):
            self._time(member)
        for number, survey in list(self._surveys.items()):
            if survey.until <= now:
                self._finish_survey(number)
        if self._limits_at <= now:
            self._look_at_limits()
        if self._drowned:
            drowned, self._drowned = self._drowned, {}
            for member in drowned:
                if self._members.get(member.name) is member:
                    self._refuse(member, "too much waits for a process that does not read")
        if self._hang_up_at <= now:
            self._look_at_strangers()
        self._unload()
        for member in self._touched:
            self._out += [(member.peer, message) for message in drain(member.session)]
        for member in self._touched:
            member.session.tick(now)
            self._out += [(member.peer, message) for message in drain(member.session)]
            self._timers.set(member, member.session.due())
        self._touched.clear()
        out, self._out = self._out, []
        return out

    def due(self) -> float:
        """When `output` is to be called next, if nothing else happens; infinity when never."""
        times = [device.alarm for device in self._alarms.values() if device.alarm is not None]
        times += [survey.until for survey in self._surveys.values()]
        times.append(self._limits_at)
        return min([*times, self._hang_up_at, self._timers.next()])

    def drain(self, now: float) -> None:
        """Take nothing more, but for what is on its way: the node is about to end."""
        self._now = now
        self.draining = True
        for number, channel in self._channels.items():
            for member, sides in channel.holders.items():
                if isinstance(member, Member) and "w" in sides:
                    self._pause(member, number)

    def left(self) -> dict[str, tuple[int, int]]:
        """The items that are not finished, by the name of their queue or pipe: all, and those that nobody has got."""
        devices = {channel.names[0]: channel.device for channel in self._channels.values() if channel.device.unfinished}
        return {name: (device.unfinished, device.qsize()) for name, device in devices.items()}

    def dead_letters(self) -> dict[str, int]:
        """How many there are, by the name of their queue."""
        devices = {channel.names[0]: channel.device for channel in self._channels.values()}
        return {name: len(device.dead_letters) for name, device in devices.items() if device.dead_letters}

    # -- sessions --

    def _hello(self, peer: Hashable, hello: dict[str, Any]) -> None:
        ours = {"protocol": frames.VERSION, "byteorder": sys.byteorder}
        for key, value in ours.items():
            if hello.get(key) != value:
                text = f"this node speaks {key} {value}, the client {hello.get(key)}: install the same fiberq on both"
                self._answer_stranger(peer, Frame(frames.REFUSED, 0, pack_json({"error": text, "code": "version"})))
                return
        name, received, hellos = hello.get("session"), hello.get("received"), hello.get("hellos")
        if type(hello.get("pid", 0)) is not int:
            raise ProtocolError("a hello's pid is not a number")
        if not isinstance(name, str) or not isinstance(received, int) or not isinstance(hellos, int):
            raise ProtocolError("a hello names no session")
        if not 0 < len(name) <= MAX_NAME:
            raise ProtocolError("a hello names no session")
        try:
            right = Right() if self._authority is None else self._authority.check(bytes.fromhex(hello.get("token", "")))
        except AccessError as error:
            if self._answer_stranger(
                peer, Frame(frames.REFUSED, 0, pack_json({"error": str(error), "code": "denied"}))
            ):
                log.warning("process %s on %s was refused: %s", hello.get("pid"), _host(hello), error)
            return
        member = self._members.get(name)
        if member is not None and member.right != right:
            raise ProtocolError("a session changes its rights")
        if self._by_peer.get(peer, member) is not member:
            raise ProtocolError("a connection changes its session")
        if member is not None and hellos <= member.hellos:
            return  # repeated, or overtaken by that of a newer connection
        if member is None and hello.get("resume"):
            text = "the session ended while this process was away; what it had not finished was given to others"
            if hello.get("node") != self.node:
                text = "the node was started anew: the queues of the one before it are gone, with the items in them"
            self._answer_stranger(peer, Frame(frames.REFUSED, 0, pack_json({"error": text, "code": "expired"})))
            return
        if member is None:
            member = self._members[name] = Member(name, hello, right)
            log.info("process %s on %s came", member.pid, member.host)
            if self._authority is not None and right.until:
                self._limited[member] = None
                self._look_at_limits()
        elif member.peer is not None:
            self._by_peer.pop(member.peer, None)
            member.session.disconnect()
        self._greetings[peer] = self._greetings.get(peer, 0) + 1
        member.peer = peer
        member.hellos = hellos
        member.expires = None
        member.heard = self._now
        self._by_peer[peer] = member
        self._strangers.pop(peer, None)
        if self._greetings[peer] > MAX_HELLOS:
            raise ProtocolError("a connection says hello again and again")
        welcome = {"node": self.node, "received": member.session.received, "max_bytes": self._max_bytes}
        member.session.send_aside(Frame(frames.WELCOME, 0, pack_json(welcome)))
        member.session.connect(received, self._now)
        self._touched[member] = None
        for number, channel in self._used_by(member):
            channel.device.back(member, self._now)
            self._check(number, channel)

    def _received(self, member: Member, received: Received) -> None:
        self._touched[member] = None
        member.heard = self._now
        frame = member.session.accept(received, self._now)
        if frame is None:
            return
        body = frame.body[0]
        assert isinstance(body, memoryview)
        if frame.kind == frames.REQUEST:
            self._request(member, read_json(body, frames.MAX_JSON))
        elif frame.kind == frames.GOODBYE:
            self._goodbye(member)
        else:
            self._channel_frame(member, frame, body)

    def _channel_frame(self, member: Member, frame: Frame, body: memoryview) -> None:
        channel = self._channels.get(frame.channel)
        if channel is None:
            if frame.kind in (frames.PUT, frames.READY, frames.RECALL):
                self._answer_ended(member, frame.channel, "gone")
            return
        device = channel.device
        reads, writes = (side in member.holds.get(frame.channel, "") for side in "rw")
        if frame.kind == frames.PUT:
            if channel.is_pipe and not channel.held("r"):
                self._answer_ended(member, frame.channel, "unread")
            elif channel.shut == "dropped":
                self._answer_ended(member, frame.channel, "dropped")
            elif not writes:
                raise ProtocolError("a process put into what it does not hold")
            else:
                before = device.bytes
                device.put(member, frames.read_items(body, frame.parts), self._now)
                self._restrain(member, frame.channel, device, device.bytes - before)
        elif frame.kind == frames.RELEASE:
            self._release(member, frame.channel, bytes(body).decode("ascii", "replace"))
        elif frame.kind == frames.WANT:
            if writes:  # else a thread gave up after another one had let go
                device.want(member, frames.read_want(body))
        elif frame.kind in (frames.READY, frames.RECALL, frames.RETURN) and not reads:
            pass  # a report that was late: this reader has let go
        elif frame.kind == frames.READY:
            channel.told.discard((member, "r"))  # what it was told before it had a reader, it did not keep
            device.ready(member, frames.read_ready(body), self._now)
        elif frame.kind == frames.RECALL:
            device.recall(member, self._now)
        elif frame.kind == frames.RETURN:
            device.returned(member, frames.read_ranges(body), self._now)
        else:
            raise ProtocolError(f"a client sent a frame of kind {frame.kind}")
        self._check(frame.channel, channel)
        self._regulate()

    def _time(self, member: Member) -> None:
        """Look at a member whose timer rang."""
        if member.due() > self._now:
            self._timers.set(member, member.due())
        elif member.expires is not None:
            self._end(member)
        else:
            self._touched[member] = None
            if member.session.unacknowledged and self._silent(member) >= self._session_timeout:
                log.warning("process %s was silent for %g s: taken for dead", member.pid, self._session_timeout)
                self._end(member)

    def _silent(self, member: Member) -> float:
        """Seconds since this process last said something, or was last asked for an acknowledgement after that."""
        return self._now - max(member.heard, member.session.asked_at)

    def _refuse(self, member: Member, text: str) -> None:
        log.warning("process %s broke the protocol and was cut off: %s", member.pid, text)
        self._cut_off(member, text, "protocol")

    def _deny(self, member: Member, text: str) -> None:
        log.warning("process %s was cut off: %s", member.pid, text)
        self._cut_off(member, text, "denied")

    def _cut_off(self, member: Member, text: str, code: str) -> None:
        if member.peer is not None:
            self._aside(member.peer, Frame(frames.REFUSED, 0, pack_json({"error": text, "code": code})))
            self._turn_away(member.peer)
        self._end(member)

    def _goodbye(self, member: Member) -> None:
        """A clean end: the client has settled its readers; its last acknowledgement still leaves."""
        peer = member.peer
        for _, channel in self._used_by(member):
            channel.device.left(member, self._now)
        member.session.tick(self._now)
        self._out += [(peer, message) for message in drain(member.session)]
        self._end(member)

    def _end(self, member: Member) -> None:
        log.info("process %s on %s went", member.pid, member.host)
        self._members.pop(member.name, None)
        self._limited.pop(member, None)
        if member.peer is not None:
            self._by_peer.pop(member.peer, None)
        self._timers.forget(member)
        member.session.disconnect()
        self._paused = {paused: size for paused, size in self._paused.items() if paused[0] is not member}
        for number in list(member.holds):
            self._leave(member, number)
        for token in member.flights:
            self._land(member.flights[token], token)
        self._touched.pop(member, None)
        for number, survey in list(self._surveys.items()):
            self._heard(number, survey, member)
        self._regulate()

    def _aside(self, peer: Hashable, frame: Frame) -> None:
        self._out.append((peer, frames.encode(frame, 0, 0, 0)))

    def _send(self, key: object, frame: Frame) -> None:
        assert isinstance(key, Member)
        key.session.send(frame, self._now)
        self._touched[key] = None
        if len(key.session.waiting) > MAX_WAITING:
            self._drowned[key] = None

    # -- requests --

    def _request(self, member: Member, request: dict[str, Any]) -> None:
        if type(request.get("id", 0)) is not int:
            raise ProtocolError("a request's id is not a number")
        self._check_reads(member)
        try:
            operation = _OPERATIONS[request["op"]]
            allowed = member.right.holds is None or self._allowed(member, request)
            answer = operation(self, member, request) if allowed else _DENIED
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, ProtocolError):
                raise
            raise ProtocolError(f"a request cannot be read: {error!r}") from error
        if answer is not None:
            self._reply(member, request.get("id"), answer)

    def _allowed(self, member: Member, request: dict[str, Any]) -> bool:
        """Whether a process that may not do everything may do this."""
        operation = request["op"]
        if operation in _UNTOLD:
            return True
        if operation in _HOLDING:  # by what is asked, not by what the request has in it: a client wrote that
            within = int(request.get("within") or 0)
            return all(self._may(member, int(number), str(sides)) for number, sides in request["holds"]) and (
                not within or self._may(member, within, "w")
            )
        sides = _SIDES.get(operation)
        return sides is not None and self._may(member, int(request["channel"]), sides)

    def _may(self, member: Member, number: int, sides: str) -> bool:
        """Whether a process may use these sides of a channel; of one that is not there, it learns no more than that."""
        channel = self._channels.get(number)
        return channel is None or member.right.allows(channel.names, sides)

    def _reply(self, member: Member, request: Any, answer: dict[str, Any], parts: Sequence[Buffer] = ()) -> None:
        if request is not None and self._members.get(member.name) is member:
            member.answer(Frame(frames.REPLY, 0, pack_json({**answer, "id": request}), parts), self._now)
            self._touched[member] = None

    def _check_reads(self, member: Member) -> None:
        if not member.reads:
            raise ProtocolError("a process asks on, and does not read the answers")

    def _answer_ended(self, member: Member, number: int, code: str) -> None:
        """To a frame for what is there no more."""
        self._check_reads(member)
        member.answer(Frame(ENDED, number, pack_json({"code": code})), self._now)

    def _create(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Make a channel and hold both its sides; one with a name that there is already is only held."""
        number, kind, name = int(request["channel"]), Kind.read(request["kind"]), request.get("name")
        max_deliveries = request.get("max_deliveries")
        if not isinstance(name, str | None):
            raise ProtocolError("a queue's name is not a string")
        if name is not None:
            try:
                check_name(name)
            except AddressError as error:
                return {"error": str(error)}
        if max_deliveries is not None and (type(max_deliveries) is not int or max_deliveries < 1):
            raise ProtocolError("max_deliveries is not a number of deliveries")
        if not 0 < number < 1 << 64:
            raise ProtocolError("a channel's number is out of range")
        if name is not None and name in self._names:
            number = self._names[name]
            there, failures = self._channels[number].kind, self._channels[number].device.max_deliveries
            if there != kind:
                return {"error": f"the queue {name!r} exists, as {there.describe()}, not as {kind.describe()}"}
            if max_deliveries not in (None, failures):
                return {"error": f"the queue {name!r} exists, with max_deliveries {failures}, not {max_deliveries}"}
        elif number in self._channels:
            return {"error": f"channel {number:016x} exists already"}
        else:
            device = self._device(number, kind)
            device.max_deliveries = max_deliveries or device.max_deliveries
            self._channels[number] = Channel(number, device, name, permanent=name is not None)
            if name is not None:
                self._names[name] = number
        self._hold(member, number, "rw")
        return {"channel": number, "shut": bool(self._channels[number].shut)}

    def _open(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Hold sides of channels that exist."""
        wanted = {int(number): str(sides) for number, sides in request["holds"]}
        for number in wanted:
            if number not in self._channels:
                return _GONE
        kinds = {}
        for number, sides in wanted.items():
            self._hold(member, number, sides)
            kinds[f"{number:x}"] = self._channels[number].kind
        if request.get("token") is not None:
            self._claim(_token(request))
        return {"kinds": kinds, "shut": [number for number in wanted if self._channels[number].shut]}

    def _flight(self, member: Member, request: dict[str, Any]) -> None:
        """Announce a handle in flight."""
        token = _token(request)
        if member.right.holds is not None and len(member.flights) >= MAX_FLIGHTS:
            raise ProtocolError("too many handles of a process are in flight")
        holds: dict[int, str] = {}
        for number, sides in request["holds"]:  # a process can have a handle on each side
            if int(number) in self._channels:
                holds[int(number)] = "".join(sorted({*holds.get(int(number), ""), *str(sides)} & {"r", "w"}))
        if self._early.pop(token, self) is None:
            return  # who it was for holds it already, or has let go of it since
        member.flights[token] = holds
        within = self._channels.get(int(request.get("within") or 0))
        if within is not None:
            self._cargo[token] = within
            within.cargo[token] = None
        for number, sides in holds.items():
            if number in self._channels:
                self._channels[number].holders[token] = sides

    def _landed(self, member: Member, request: dict[str, Any]) -> None:
        """A handle in flight came to nothing: the process that it was for has ended."""
        token = _token(request)
        holds = member.flights.pop(token, None)
        if holds is not None:
            self._land(holds, token)

    def _arrived(self, member: Member, request: dict[str, Any]) -> None:
        """A handle in flight has come to a process that has not used it yet. A pipe's message is never redelivered: so
        what it held ends with this process."""
        token = _token(request)
        carrier = self._cargo.get(token)
        self._take_out(token)
        owner = self._owner(token)
        if carrier is not None and carrier.is_pipe and owner is not None:
            member.flights[token] = owner.flights.pop(token)

    def _unused(self, _: Member, request: dict[str, Any]) -> None:
        """A handle in flight has come to a process that dropped it without having used it."""
        self._claim(_token(request))

    def _inherit(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """A forked child takes over what its parent held when it forked. The parent's announcement may come later."""
        for number, sides in request["holds"]:
            if int(number) in self._channels:
                self._hold(member, int(number), str(sides))
        self._claim(_token(request))
        return {"shut": [number for number in member.holds if self._channels[number].shut]}

    def _claim(self, token: str) -> None:
        """A handle in flight has come to a holder of its own."""
        owner = self._owner(token)
        if owner is not None:
            self._land(owner.flights.pop(token), token)
            return
        self._early[token] = None
        if len(self._early) > MAX_EARLY:
            del self._early[next(iter(self._early))]

    def _owner(self, token: str) -> Member | None:
        """Who answers for a handle in flight."""
        return next((each for each in self._members.values() if token in each.flights), None)

    def _take_out(self, token: str) -> None:
        """A handle in flight is in no item any more."""
        carrier = self._cargo.pop(token, None)
        if carrier is not None:
            del carrier.cargo[token]

    def _unload(self) -> None:
        """End the handles in items that are gone; what they were on may end, and have had items with handles, too."""
        while self._unloading:
            for token in list(self._unloading.pop().cargo):
                owner = self._owner(token)
                if owner is not None:
                    self._land(owner.flights.pop(token), token)

    def _stat(self, member: Member, request: dict[str, Any]) -> dict[str, Any] | None:
        """Answer how many items there are. `for` an "item" or a "slot" that the member has asked for: see to it first
        that it gets one if there is one, wherever it is."""
        channel = self._channels.get(int(request["channel"]))
        if channel is None:
            return _GONE
        device, wants = channel.device, request.get("for")
        recall = wants == "item" and device.kind.name != "push"
        if wants is None or (recall and device.starved(member)) or (wants == "slot" and device.blocked(member)):
            asked = [each for each in device.behind() if each is not member]
        else:
            asked = []
        if recall:
            for each in asked:
                device.recall(each, self._now)
        answer = partial(self._answer_stat, member, request.get("id"), device)
        self._survey(int(request["channel"]), member, asked, answer)
        return None

    def _answer_stat(self, member: Member, request: Any, device: Device) -> None:
        answer = {"qsize": device.qsize(), "unfinished": device.unfinished, "readers": len(device.readers)}
        self._reply(member, request, answer)

    def _join(self, member: Member, request: dict[str, Any]) -> dict[str, Any] | None:
        """Answer when all items are finished; whether they are, if it wants to know that `at_once`."""
        channel = self._channels.get(int(request["channel"]))
        if channel is None:
            return _GONE
        device = channel.device
        if not device.unfinished:
            return {"finished": True}
        if request.get("at_once"):  # what others have done they may not have told yet
            asked = [each for each in device.behind() if each is not member]
            answer = partial(self._answer_join, member, request.get("id"), device)
            self._survey(int(request["channel"]), member, asked, answer)
            return None
        if sum(each is member for each, _ in channel.joins) >= MAX_JOINS:
            raise ProtocolError("too many wait for the same tasks")
        channel.joins.append((member, request.get("id")))
        return None

    def _answer_join(self, member: Member, request: Any, device: Device) -> None:
        self._reply(member, request, {"finished": not device.unfinished})

    def _forget(self, member: Member, request: dict[str, Any]) -> None:
        """A member does not wait any more for the end of all items."""
        for channel in self._channels.values():
            channel.joins = [each for each in channel.joins if each != (member, request["request"])]

    def _shutdown(self, member: Member, request: dict[str, Any]) -> dict[str, Any] | None:
        """Nothing more is to be put; answer when all who put know it. `drop`: and what is there is dropped."""
        number = int(request["channel"])
        channel = self._channels.get(number)
        if channel is None:
            return _GONE
        if request.get("drop"):
            channel.device.drop_queued()
            self._unloading.append(channel)
            self._regulate()
            channel.told.clear()
            self._tell_all(number, channel, "r", "dropped")
        channel.shut = "dropped" if request.get("drop") else channel.shut or "shut"
        self._tell_all(number, channel, "w", channel.shut)

        def finish() -> None:
            channel.sealed = True
            self._reply(member, request.get("id"), {})
            self._check(number, channel)

        putters = [each for each, sides in channel.holders.items() if isinstance(each, Member) and "w" in sides]
        self._survey(number, member, [each for each in putters if each is not member], finish)
        return None

    # -- leases by name, and dead letters --

    def _lease(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """A reader deals with one item that it has: it is finished, goes back, or may be kept for so many `seconds`."""
        number, item, what = int(request["channel"]), int(request["item"]), request["what"]
        channel = self._channels.get(number)
        if channel is None:
            return _GONE
        device = channel.device
        if channel.is_pipe:
            raise ProtocolError("a pipe's messages are not held")
        if what == "finish":
            held = device.finish(member, item, self._now)
        elif what == "give back":
            why = request.get("why")
            held = device.give_back(member, item, None if why is None else str(why)[:MAX_REASON], self._now)
        elif what == "keep":
            held = device.lease_until(member, item, self._now + _seconds(request["seconds"]))
        else:
            raise ProtocolError("nothing that can be done with a lease")
        self._check(number, channel)
        self._regulate()
        return {"held": held}

    def _dead_letters(self, _: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Tell of dead letters from number `first` on: not of all at once, if they are many."""
        channel = self._channels.get(int(request["channel"]))
        if channel is None:
            return _GONE
        first = int(request.get("first", 0))
        letters = sorted(item for item in channel.device.dead_letters.items() if item[0] >= first)
        told = [
            {"place": place, "reason": letter.reason, "deliveries": letter.run.deliveries, "size": letter.run.size}
            for place, letter in letters[:MAX_LISTED]
        ]
        return {"letters": told, "more": len(letters) > MAX_LISTED}

    def _dead_letter(self, member: Member, request: dict[str, Any]) -> dict[str, Any] | None:
        """Show a dead letter, put it back, or drop it."""
        number, place, what = int(request["channel"]), int(request["place"]), request["what"]
        channel = self._channels.get(number)
        if channel is None:
            return _GONE
        letter = channel.device.dead_letters.get(place)
        if letter is None:
            return {"error": "the dead letter is gone: it was put back or dropped meanwhile", "code": "gone"}
        if what == "show":
            large = letter.run.batch.parts
            parts = large or (letter.run.payload(),)
            self._reply(member, request.get("id"), {"large": bool(large)}, parts)
            return None
        if what == "put back":
            if channel.shut == "dropped":
                return {"error": "the queue was shut down, and all that was in it dropped", "code": "shut"}
            channel.device.revive(place, self._now)
        elif what == "drop":
            channel.device.bury(place)
        else:
            raise ProtocolError("nothing that can be done with a dead letter")
        self._check(number, channel)
        self._regulate()
        return {}

    # -- rights --

    def _restrict(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Sign a right to less than the member itself has."""
        if self._authority is None:
            return {
                "error": "this node listens on no network, so whoever reaches it may do everything",
                "code": "denied",
            }
        holds = []
        for number, sides in request["holds"]:
            channel = self._channels.get(int(number))
            if channel is None:
                return _GONE
            holds.append((channel.names[0], str(sides)))
        seconds = request.get("seconds")
        right = self._authority.narrow(member.right, tuple(holds), None if seconds is None else _seconds(seconds))
        return {"key": self._authority.key(right)}

    def _revoke(self, _: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Take a right back, from all who have it now, too."""
        number = int(request["number"])
        if self._authority is None or number == 0:
            return {"error": "that right cannot be revoked: it is the owner's", "code": "denied"}
        error = ""
        try:
            self._authority.revoke(number)
        except OSError as reason:
            error = f"the right is over until this node ends, but cannot be kept on its disk: {reason.strerror}"
            log.error("%s", error)
        those = [each for each in self._members.values() if each.right.number == number]
        for each in those:
            self._deny(each, "the right was revoked")
        return {"error": error} if error else {"cut off": len(those)}

    # -- looking after it --

    def _find(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Which queue or pipe goes by a name, or a number in hexadecimal digits; `sides`: that one may use of it."""
        wanted = str(request["name"])
        for number, channel in self._channels.items():
            if wanted in channel.names and self._may(member, number, ""):
                sides = "".join(side for side in "rw" if self._may(member, number, side))
                return {"channel": number, "kind": channel.kind, "name": self._name(channel), "sides": sides}
        return {"error": f"the node has no queue or pipe {wanted!r} that this process may use", "code": "gone"}

    def _queues(self, _: Member, __: dict[str, Any]) -> dict[str, Any]:
        """Tell of all queues: those with a name first."""
        queues = [(number, channel) for number, channel in self._channels.items() if not channel.is_pipe]
        queues.sort(key=lambda each: (self._name(each[1]) is None, self._name(each[1]) or "", each[0]))
        return {"queues": [self._describe(number, channel) for number, channel in queues]}

    def _stats(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Tell of one queue, and who uses it; one who may not do everything, only how many."""
        number = int(request["channel"])
        channel = self._channels.get(number)
        if channel is None:
            return _GONE
        members = [each for each in channel.holders.items() if isinstance(each[0], Member)]
        known = member.right.holds is None
        return self._describe(number, channel) | {
            "readers": [self._who(each, known) for each in channel.device.readers],
            "writers": [self._who(each, known) for each, sides in members if "w" in sides],
        }

    def _look_at_limits(self) -> None:
        """End the rights that have expired, by the calendar: this node's own clock stands still while it is stopped."""
        assert self._authority is not None
        left = {member: self._authority.seconds_left(member.right) for member in self._limited}
        for member in [member for member, seconds in left.items() if seconds <= 0]:
            self._deny(member, "the right has expired")
            del left[member]
        self._limits_at = self._now + min(LOOK_AT_LIMITS, *left.values()) if left else float("inf")

    def _describe(self, number: int, channel: Channel) -> dict[str, Any]:
        device = channel.device
        qsize = device.qsize()
        return {
            "channel": number,
            "name": self._name(channel),
            "kind": channel.kind,
            "qsize": qsize,
            "in_flight": max(0, device.unfinished - qsize),
            "bytes": device.bytes,
            "put": device.accepted,
            "finished": device.finished,
            "redelivered": device.redelivered,
            "dead": len(device.dead_letters),
        }

    def _name(self, channel: Channel) -> str | None:
        return channel.names[0] if len(channel.names) > 1 else None

    def _who(self, member: Any, known: bool) -> dict[str, Any]:
        if not known:
            return {"host": None, "pid": None, "away": member.peer is None}
        return {"host": member.host, "pid": member.pid, "away": member.peer is None}

    def _purge(self, _: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Drop what no reader has."""
        number = int(request["channel"])
        channel = self._channels.get(number)
        if channel is None:
            return _GONE
        dropped = channel.device.purge()
        self._check(number, channel)
        self._regulate()
        return {"dropped": dropped}

    def _delete(self, _: Member, request: dict[str, Any]) -> dict[str, Any]:
        """End a queue, with what is in it, for all who use it."""
        number = int(request["channel"])
        channel = self._channels.pop(number, None)
        if channel is None or number == DEFAULT_CHANNEL:
            return _GONE
        self._names.pop(channel.names[0], None)
        for each in list(channel.holders):
            if isinstance(each, Member):
                each.holds.pop(number, None)
                self._tell_ended(each, number, "gone")
        for each, asked in channel.joins:
            self._reply(each, asked, _GONE)
        channel.device.close()
        self._unloading.append(channel)
        self._regulate()
        return {}

    # -- surveys --

    def _survey(self, number: int, asker: Member, members: Iterable[Any], finish: Callable[[], None]) -> None:
        """Let `asker` know how far these members are with channel `number`: call `finish` when all have answered."""
        if sum(survey.asker is asker for survey in self._surveys.values()) >= MAX_SURVEYS:
            members = ()
        members = [member for member in members if len(member.session.waiting) < MAX_JOINS]  # the others do not read
        self._survey_count += 1
        survey = self._surveys[self._survey_count] = Survey(asker, members, self._now + SURVEY_PATIENCE, finish)
        for member in survey.missing:
            self._send(member, Frame(frames.SURVEY, number, frames.pack_survey(self._survey_count)))
        if not survey.missing:
            self._finish_survey(self._survey_count)

    def _surveyed(self, member: Member, request: dict[str, Any]) -> None:
        """A member has said all that it had to say."""
        number = int(request["survey"])
        if number in self._surveys:
            self._heard(number, self._surveys[number], member)

    def _heard(self, number: int, survey: Survey, member: Member) -> None:
        if member in survey.missing:
            del survey.missing[member]
            if not survey.missing:
                self._finish_survey(number)

    def _finish_survey(self, number: int) -> None:
        self._surveys.pop(number).finish()

    # -- channels and their holders --

    def _device(self, number: int, kind: Kind) -> Device:
        make = PushDevice if kind.pushed else PullDevice
        return make(number, kind, self._send, self.memory, self._max_deliveries)

    def _hold(self, member: Member, number: int, sides: str) -> None:
        both = "".join(sorted({*member.holds.get(number, ""), *sides} & {"r", "w"}))
        member.holds[number] = self._channels[number].holders[member] = both
        if self.draining and "w" in sides:
            self._pause(member, number)

    def _used_by(self, member: Member) -> list[tuple[int, Channel]]:
        return [(number, self._channels[number]) for number in member.holds if number in self._channels]

    def _release(self, member: Member, number: int, sides: str) -> None:
        left = "".join(side for side in member.holds.get(number, "") if side not in sides)
        if "r" in sides:
            self._channels[number].device.left(member, self._now)
            self._channels[number].told.discard((member, "r"))
        if "w" in sides:
            self._paused.pop((member, number), None)
            self._channels[number].device.left_putting(member)
        if left:
            member.holds[number] = self._channels[number].holders[member] = left
        else:
            self._leave(member, number)

    def _leave(self, member: Member, number: int) -> None:
        member.holds.pop(number, None)
        channel = self._channels.get(number)
        if channel is not None:
            channel.holders.pop(member, None)
            channel.told -= {(member, "r"), (member, "w")}
            joins, channel.joins = channel.joins, []
            for waiter, request in joins:
                if waiter is member:
                    self._reply(member, request, {"error": "this handle was closed meanwhile", "code": "closed"})
                else:
                    channel.joins.append((waiter, request))
            channel.device.left_putting(member)
            channel.device.lost(member, self._now)
            self._check(number, channel)

    def _land(self, holds: dict[int, str], token: str) -> None:
        self._take_out(token)
        for number in holds:
            channel = self._channels.get(number)
            if channel is not None:
                channel.holders.pop(token, None)
                self._check(number, channel)

    def _check(self, number: int, channel: Channel) -> None:
        """After an event: is the channel, or one of its sides, at its end? Does its device want to be woken?"""
        if channel.device.alarm is not None:
            self._alarms[number] = channel.device
        channel.device.grant()
        if channel.joins and not channel.device.unfinished:
            joins, channel.joins = channel.joins, []
            for member, request in joins:
                self._reply(member, request, {"finished": True})
        if channel.sealed and channel.device.empty:
            busy = channel.device.busy() if channel.kind.joins else []  # what they have may have to go to others
            self._tell_all(number, channel, "r", "drained", lambda member: not any(each is not member for each in busy))
        if channel.permanent:
            return
        if not channel.holders:
            channel.device.close()
            self._channels.pop(number, None)
            self._unloading.append(channel)
            self._regulate()
        elif channel.is_pipe:
            if not channel.held("r"):
                self._tell_all(number, channel, "w", "unread")
            elif not channel.held("w") and channel.device.drained:
                self._tell_all(number, channel, "r", "eof")

    def _tell_all(
        self, number: int, channel: Channel, side: str, code: str, whom: Callable[[Member], bool] = lambda _: True
    ) -> None:
        for member, sides in channel.holders.items():
            if isinstance(member, Member) and side in sides and (member, side) not in channel.told and whom(member):
                channel.told.add((member, side))
                self._tell_ended(member, number, code)

    def _tell_ended(self, member: Member, number: int, code: str) -> None:
        self._send(member, Frame(ENDED, number, pack_json({"code": code})))

    # -- memory --

    def _restrain(self, writer: Member, number: int, device: Device, size: int) -> None:
        """Pause a writer while the node holds too much, and the writer's queue more than its share: a queue that nobody
        empties does not stop the others. So the node holds at most twice the limit. Raises `ProtocolError` when the
        writer goes on regardless."""
        if (writer, number) in self._paused:
            self._paused[writer, number] += max(0, size)
            if self._paused[writer, number] > self._max_bytes * UNDER_WAY + OVERDRAFT:
                raise ProtocolError("a process puts on although it was asked to pause")
        if self.memory.bytes > self._max_bytes and self._share(device) > 1:
            self._pause(writer, number)

    def _pause(self, writer: Member, number: int) -> None:
        if (writer, number) not in self._paused:
            self._paused[writer, number] = 0
            self._send(writer, Frame(frames.PAUSE, number))

    def _regulate(self) -> None:
        """Let writers go on when there is room again."""
        if self.draining:
            return
        room = self.memory.bytes <= self._max_bytes * ROOM
        for member, number in list(self._paused):
            channel = self._channels.get(number)
            if room or channel is None or self._share(channel.device) <= ROOM:
                del self._paused[member, number]
                self._send(member, Frame(frames.RESUME, number))

    def _share(self, device: Device) -> float:
        """What a queue takes of the memory, as a multiple of what each may have if all had the same."""
        return device.bytes * len(self._channels) / self._max_bytes


def _token(request: dict[str, Any]) -> str:
    token = str(request["token"])
    if len(token) > MAX_NAME:
        raise ProtocolError("a token is too long")
    return token


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds <= LONGEST:  # nor what is no number
        raise ProtocolError("a time is out of range")
    return seconds


def _host(hello: dict[str, Any]) -> str:
    """The name of a client's host, as it says, which is to write no lines of its own into logs and tables."""
    name = str(hello.get("host", ""))[:MAX_HOST]
    return name if name.isprintable() else ascii(name)


_DENIED: Final = {"error": "this process has no right to do that", "code": "denied"}
_GONE: Final = {
    "error": "the queue or pipe is gone: its last holder closed it or died, or it was deleted",
    "code": "gone",
}

_UNTOLD: Final = ("landed", "arrived", "unused", "surveyed", "forget", "find")
"""What a process says of what it has itself, or which sees to it what it may do."""

_HOLDING: Final = ("open", "flight", "inherit", "restrict")
"""Requests for channels with the sides of each, in `holds`: a process must have a right to all of them."""

_SIDES: Final = {
    "stat": "",
    "stats": "",
    "join": "",
    "lease": "r",
    "shutdown": "rw",
    "dead letters": "rw",
    "dead letter": "rw",
}
"""The sides of a channel to which a process must have a right that asks for this; nobody else may ask for more."""

_OPERATIONS: Final[dict[str, Any]] = {
    "create": Broker._create,
    "open": Broker._open,
    "flight": Broker._flight,
    "landed": Broker._landed,
    "arrived": Broker._arrived,
    "unused": Broker._unused,
    "inherit": Broker._inherit,
    "stat": Broker._stat,
    "surveyed": Broker._surveyed,
    "join": Broker._join,
    "forget": Broker._forget,
    "shutdown": Broker._shutdown,
    "lease": Broker._lease,
    "dead letters": Broker._dead_letters,
    "dead letter": Broker._dead_letter,
    "restrict": Broker._restrict,
    "revoke": Broker._revoke,
    "find": Broker._find,
    "queues": Broker._queues,
    "stats": Broker._stats,
    "purge": Broker._purge,
    "delete": Broker._delete,
}
