"""The node without its socket: its clients' sessions, and which frame goes to which device."""

from __future__ import annotations

import logging
import sys
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fiberq.abc import Buffer
from fiberq.access import Authority, Right
from fiberq.errors import AccessError, ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.channels import Channels
from fiberq.protocol.device import Device, Memory
from fiberq.protocol.frames import DEFAULT_CHANNEL, ENDED, Frame, Items, Received, decode, pack_json, read_json
from fiberq.protocol.kinds import Kind
from fiberq.protocol.lent import pack_generations
from fiberq.protocol.members import Member, Outbox, host_of
from fiberq.protocol.pull import PullDevice
from fiberq.protocol.push import PushDevice
from fiberq.protocol.requests import MAX_NAME, Requests
from fiberq.protocol.session import drain
from fiberq.protocol.strangers import Strangers
from fiberq.protocol.surveys import Surveys
from fiberq.protocol.timers import Timers

if TYPE_CHECKING:
    from fiberq.memory import Vault

log = logging.getLogger("fiberq.node")

USED_LATER: Final = 0.05
MANY_USED: Final = 8
"""Seconds, and items in shared memory that have ended, after which their process is told, though nothing else is."""

AROUND: Final = 1 << 20
"""Bytes of an item in shared memory that are not its own."""

LOOK_AT_LIMITS: Final = 1.0
"""Seconds between two looks whether rights have expired."""


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
        vault: Vault | None = None,
    ) -> None:
        self.node = node
        self.garbage = 0  # messages that were no frames
        self.memory = Memory()
        self._authority = authority  # without one, everybody may do everything
        self._vault = vault  # without one, no memory is shared
        self._session_grace = session_grace
        self._session_timeout = session_timeout
        self._max_bytes = max_bytes
        self._max_deliveries = max_deliveries
        self._by_peer: dict[Hashable, Member] = {}
        self._members: dict[str, Member] = {}
        self._timers = Timers(Member.due)
        self._limited: dict[Member, None] = {}  # processes whose rights expire
        self._limits_at = float("inf")  # when to look at these
        self._outbox = Outbox()
        self._strangers = Strangers()
        self._surveys = Surveys(self._outbox)
        self._channels = Channels(self._device, self._members, self._outbox, self.memory, max_bytes)
        self._channels.add(DEFAULT_CHANNEL, Kind("pipe"), permanent=True)
        self._requests = Requests(self._channels, self._surveys, authority, vault, self._deny)

    def _device(self, number: int, kind: Kind) -> Device:
        make = PushDevice if kind.pushed else PullDevice
        return make(number, kind, self._outbox.send, self.memory, self._max_deliveries)

    # -- events --

    def message(self, peer: Hashable, parts: Any, now: float) -> None:
        """A message came from `peer`. What is no frame is counted and ignored."""
        self._outbox.now = now
        try:
            received = decode(parts)
            member = self._by_peer.get(peer)
            if peer in self._strangers.known and self._strangers.known[peer].refused:
                return
            if received.kind == frames.HELLO:
                self._hello(peer, read_json(received.body, frames.MAX_JSON))
            elif member is None:
                self._answer_stranger(peer, Frame(frames.HELLO_FIRST))
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
                self._strangers.meet(peer, now)

    def lost(self, peer: Hashable, now: float) -> None:
        """The connection `peer` is gone."""
        self._outbox.now = now
        self._strangers.gone(peer)
        member = self._by_peer.pop(peer, None)
        if member is None:
            return
        member.peer = None
        member.session.disconnect()
        if member.grace:
            member.expires = now + self._session_grace
            self._timers.set(member, member.expires)
            for channel in self._channels.held_by(member):
                channel.device.away(member, now)
                self._channels.check(channel)
        else:
            self._give_up(member)

    def output(self, now: float) -> list[tuple[Hashable, tuple[Buffer, ...]]]:
        """Run the timers that are due, and take the messages to be sent: deliveries first, then acknowledgements."""
        outbox, channels = self._outbox, self._channels
        outbox.now = now
        for number, device in list(channels.alarms.items()):
            if device.alarm is None or number not in channels.known:
                del channels.alarms[number]
            elif device.alarm <= now:
                device.tick(now)
                channels.check(channels.known[number])
                channels.regulate()
        for member in self._timers.rung(now):
            self._time(member)
        if self._surveys.running:
            self._surveys.look(now)
        if self._limits_at <= now:
            self._look_at_limits()
        if outbox.drowned:
            drowned, outbox.drowned = outbox.drowned, {}
            for member in drowned:
                if not member.ended:
                    self._refuse(member, "too much waits for a process that does not read")
        if self._strangers.due <= now:
            self._strangers.look(now)
        if channels.unloading:
            channels.unload()
        if self._vault is not None:
            if self._vault.ended:
                self._tell_used(self._vault)
            if self._vault.due <= now:
                self._vault.tidy(now)
        for member in outbox.touched:
            if member.session.out:
                outbox.messages += [(member.peer, message) for message in drain(member.session)]
        for member in outbox.touched:
            member.session.tick(now)
            if member.session.out:
                outbox.messages += [(member.peer, message) for message in drain(member.session)]
            self._timers.set(member, member.session.due())
        outbox.touched.clear()
        messages, outbox.messages = outbox.messages, []
        return messages

    def drops(self) -> list[Hashable]:
        """Take the peers to hang up on, once what `output` gave was sent."""
        drops, self._strangers.drops = self._strangers.drops, []
        return drops

    def due(self) -> float:
        """When `output` is to be called next, if nothing else happens; infinity when never."""
        due = min(self._limits_at, self._strangers.due, self._timers.next())
        if self._vault is not None:
            due = min(due, self._vault.due)
        for device in self._channels.alarms.values():
            if device.alarm is not None and device.alarm < due:
                due = device.alarm
        for survey in self._surveys.running.values():
            due = min(due, survey.until)
        return due

    # -- for who runs the node --

    def drain(self, now: float) -> None:
        """Take nothing more, but for what is on its way: the node is about to end."""
        self._outbox.now = now
        self._channels.drain()

    @property
    def draining(self) -> bool:
        return self._channels.draining

    def left(self) -> dict[str, tuple[int, int]]:
        """The items that are not finished, by the name of their queue or pipe: all, and those that nobody has got."""
        devices = {each.names[0]: each.device for each in self._channels.known.values() if each.device.unfinished}
        return {name: (device.unfinished, device.qsize()) for name, device in devices.items()}

    def dead_letters(self) -> dict[str, int]:
        """How many there are, by the name of their queue."""
        devices = {channel.names[0]: channel.device for channel in self._channels.known.values()}
        return {name: len(device.dead_letters) for name, device in devices.items() if device.dead_letters}

    # -- frames --

    def _received(self, member: Member, received: Received) -> None:
        self._outbox.touched[member] = None
        member.heard = self._outbox.now
        acknowledged = member.session.acknowledged
        frame = member.session.accept(received, member.heard)
        if member.behind and member.session.acknowledged != acknowledged:
            self._catch_up(member)
        if frame is None:
            return
        body = frame.body[0]
        assert isinstance(body, memoryview)
        if frame.kind == frames.REQUEST:
            self._requests.take(member, read_json(body, frames.MAX_JSON))
        elif frame.kind == frames.GOODBYE:
            self._goodbye(member)
        else:
            self._channel_frame(member, frame, body)

    def _catch_up(self, member: Member) -> None:
        """A process has acknowledged more: what has gathered for it can leave, and it has seen what it got."""
        behind, member.behind = member.behind, {}
        for channel in filter(None, map(self._channels.known.get, behind)):
            channel.device.serve(member, self._outbox.now)
            self._channels.check(channel)
        self._channels.regulate()

    def _channel_frame(self, member: Member, frame: Frame, body: memoryview) -> None:
        channel = self._channels.known.get(frame.channel)
        if channel is None:
            if frame.kind == frames.PUT:
                self._refuse_put(member, frame, body, "gone")
            elif frame.kind in (frames.READY, frames.RECALL):
                self._answer_ended(member, frame.channel, "gone")
            return
        device, now = channel.device, self._outbox.now
        holds = member.holds.get(frame.channel, "")
        reads, writes = "r" in holds, "w" in holds
        if frame.kind == frames.PUT:
            if channel.is_pipe and not channel.held("r"):
                self._refuse_put(member, frame, body, "unread")
            elif channel.shut == "dropped":
                self._refuse_put(member, frame, body, "dropped")
            elif not writes:
                raise ProtocolError("a process put into what it does not hold")
            else:
                before = device.bytes
                self._put(member, device, frames.read_items(body, frame.parts))
                self._channels.restrain(member, channel, device.bytes - before)
        elif frame.kind == frames.RELEASE:
            self._channels.release(member, channel, bytes(body).decode("ascii", "replace"))
        elif frame.kind == frames.WANT:
            if writes:  # else a thread gave up after another one had let go
                device.want(member, frames.read_want(body))
        elif frame.kind in (frames.READY, frames.RECALL, frames.RETURN) and not reads:
            pass  # a report that was late: this reader has let go
        elif frame.kind == frames.READY:
            channel.told.discard((member, "r"))  # what it was told before it had a reader, it did not keep
            device.ready(member, frames.read_ready(body), now)
        elif frame.kind == frames.RECALL:
            device.recall(member, now)
        elif frame.kind == frames.RETURN:
            device.returned(member, frames.read_ranges(body), now)
        else:
            raise ProtocolError(f"a client sent a frame of kind {frame.kind}")
        self._channels.check(channel)
        self._channels.regulate()

    def _put(self, member: Member, device: Device, items: Items) -> None:
        if not items.elsewhere:
            device.put(member, items, self._outbox.now)
            return
        if self._vault is None or member.lender is None:
            raise ProtocolError("a process shares memory, and has not shown that it can")
        if max(reference.size for reference in items.elsewhere) > self._max_bytes + AROUND:
            raise ProtocolError("a process shares more than the node takes")
        now = self._outbox.now
        found = [self._vault.adopt(member, member.lender, reference, now) for reference in items.elsewhere]
        device.put_large(member, found, now)

    def _refuse_put(self, member: Member, frame: Frame, body: memoryview, code: str) -> None:
        """To items for what is there no more."""
        self._answer_ended(member, frame.channel, code)
        if self._vault is not None and member.near:
            for reference in frames.read_items(body, frame.parts).elsewhere:
                self._vault.give_back(member, reference.generation)

    def _tell_used(self, vault: Vault) -> None:
        """Tell processes which of their memory they can use again: with what else there is for them, or soon."""
        now = self._outbox.now
        for lender in list(vault.ended):
            assert isinstance(lender, Member)
            if lender.ended or lender.peer is None:  # gone, or away: then its memory is not used again
                del vault.ended[lender]
            elif lender in self._outbox.touched or len(vault.ended[lender]) >= MANY_USED:
                self._send_used(vault, lender, now)
            elif lender.session.later(vault, now + USED_LATER, partial(self._send_used, vault, lender)):
                self._outbox.touched[lender] = None

    def _send_used(self, vault: Vault, lender: Member, now: float) -> None:  # noqa: ARG002
        lender.session.forget(vault)
        generations = vault.ended.pop(lender, ())
        if generations and lender.peer is not None:
            self._outbox.aside(lender.peer, Frame(frames.USED, 0, pack_generations(generations)))

    def _answer_ended(self, member: Member, number: int, code: str) -> None:
        """To a frame for what is there no more."""
        member.check_reads()
        member.answer(Frame(ENDED, number, pack_json({"code": code})), self._outbox.now)

    # -- sessions --

    def _hello(self, peer: Hashable, hello: dict[str, Any]) -> None:
        ours = {"protocol": frames.VERSION, "byteorder": sys.byteorder}
        for key, value in ours.items():
            if hello.get(key) != value:
                text = f"this node speaks {key} {value}, the client {hello.get(key)}: install the same fiberq on both"
                if self._answer_stranger(peer, _refused(text, "version")):
                    log.warning("a process on %s was refused: it speaks another %s", host_of(hello), key)
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
            if self._answer_stranger(peer, _refused(str(error), "denied")):
                log.warning("process %s on %s was refused: %s", hello.get("pid"), host_of(hello), error)
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
            self._answer_stranger(peer, _refused(text, "expired"))
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
        member.peer = peer
        member.hellos = hellos
        member.expires = None
        member.heard = now = self._outbox.now
        self._by_peer[peer] = member
        self._strangers.greeted(peer)
        welcome = {"node": self.node, "received": member.session.received, "max_bytes": self._max_bytes}
        if self._vault is not None:
            welcome["memory"] = self._vault.place
        member.session.send_aside(Frame(frames.WELCOME, 0, pack_json(welcome)))
        member.session.connect(received, now)
        self._outbox.touched[member] = None
        for channel in self._channels.held_by(member):
            channel.device.back(member, now)
            self._channels.check(channel)

    def _answer_stranger(self, peer: Hashable, frame: Frame) -> bool:
        """Return whether this message was answered: not each one is."""
        answered = self._strangers.may_answer(peer, frame.kind, self._outbox.now)
        if answered:
            self._outbox.aside(peer, frame)
        return answered

    def _time(self, member: Member) -> None:
        """Look at a member whose timer rang."""
        now = self._outbox.now
        if member.due() > now:
            self._timers.set(member, member.due())
        elif member.expires is not None:
            self._give_up(member)
        else:
            self._outbox.touched[member] = None
            silent = now - max(member.heard, member.session.asked_at)  # it was not asked for a word before
            if member.session.unacknowledged and silent >= self._session_timeout:
                log.warning("process %s was silent for %g s: taken for dead", member.pid, self._session_timeout)
                self._give_up(member)

    def _look_at_limits(self) -> None:
        """End the rights that have expired, by the calendar: this node's own clock stands still while it is stopped."""
        assert self._authority is not None
        left = {member: self._authority.seconds_left(member.right) for member in self._limited}
        for member in [member for member, seconds in left.items() if seconds <= 0]:
            self._deny(member, "the right has expired")
            del left[member]
        self._limits_at = self._outbox.now + min(LOOK_AT_LIMITS, *left.values()) if left else float("inf")

    def _refuse(self, member: Member, text: str) -> None:
        log.warning("process %s broke the protocol and was cut off: %s", member.pid, text)
        self._cut_off(member, text, "protocol")

    def _deny(self, member: Member, text: str) -> None:
        log.warning("process %s was cut off: %s", member.pid, text)
        self._cut_off(member, text, "denied")

    def _cut_off(self, member: Member, text: str, code: str) -> None:
        if member.peer is not None:
            self._outbox.aside(member.peer, _refused(text, code))
            self._strangers.turn_away(member.peer, self._outbox.now)
        self._end(member)

    def _goodbye(self, member: Member) -> None:
        """A clean end: the client has settled its readers; its last acknowledgement still leaves."""
        for channel in self._channels.held_by(member):
            channel.device.left(member, self._outbox.now)
        member.session.tick(self._outbox.now)
        self._outbox.messages += [(member.peer, message) for message in drain(member.session)]
        log.info("process %s on %s went", member.pid, member.host)
        self._end(member)

    def _give_up(self, member: Member) -> None:
        """A process went without a goodbye: it died, or cannot be reached."""
        had = sum(channel.device.leased(member) for channel in self._channels.held_by(member))
        log.info("process %s on %s is gone, without a goodbye; it had %d items", member.pid, member.host, had)
        self._end(member)

    def _end(self, member: Member) -> None:
        member.ended = True
        self._members.pop(member.name, None)
        self._limited.pop(member, None)
        if member.peer is not None:
            self._by_peer.pop(member.peer, None)
        self._timers.forget(member)
        member.session.disconnect()
        self._channels.lost(member)
        self._outbox.touched.pop(member, None)
        if self._vault is not None and member.lender is not None:
            self._vault.gone(member.lender)
        for number in list(self._surveys.running):
            self._surveys.heard(number, member)
        self._channels.regulate()


def _refused(text: str, code: str) -> Frame:
    return Frame(frames.REFUSED, 0, pack_json({"error": text, "code": code}))
