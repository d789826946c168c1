"""What the node answers when a process asks for something, and what a process must have a right to for that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fiberq.access import Authority
from fiberq.address import check_name
from fiberq.errors import AddressError, ProtocolError
from fiberq.protocol.batch import Run, large_parts
from fiberq.protocol.channels import GONE, Channel, Channels
from fiberq.protocol.frames import DEFAULT_CHANNEL
from fiberq.protocol.kinds import Kind
from fiberq.protocol.members import Member
from fiberq.protocol.surveys import Surveys

if TYPE_CHECKING:
    from fiberq.memory import Vault

log = logging.getLogger("fiberq.node")

MAX_JOINS: Final = 1000
"""Threads of one process that wait for the same tasks."""

MAX_NAME: Final = 255
"""Characters of the name of a queue, a session, or a token."""

LONGEST: Final = 1e9
"""Seconds that anything may last."""

MAX_REASON: Final = 1000
"""Characters that are kept of why an item failed."""

MAX_LISTED: Final = 1000
"""Dead letters that one answer tells of."""

DENIED: Final = {"error": "this process has no right to do that", "code": "denied"}
DENIED_NAMES: Final = {
    "error": "this process may neither make a queue nor take one by its name: fiberq.open takes the URL of the one to "
    "which it has a right",
    "code": "denied",
}


class Requests:
    """`deny` cuts off a process whose right is over, and says why."""

    def __init__(
        self,
        channels: Channels,
        surveys: Surveys,
        authority: Authority | None,
        vault: Vault | None,
        deny: Callable[[Member, str], None],
    ) -> None:
        self._channels = channels
        self._surveys = surveys
        self._outbox = channels.outbox
        self._authority = authority
        self._vault = vault
        self._deny = deny

    def take(self, member: Member, request: dict[str, Any]) -> None:
        """Do what a process asks for, and answer. Raises `ProtocolError` when it cannot be read."""
        if type(request.get("id", 0)) is not int:
            raise ProtocolError("a request's id is not a number")
        member.check_reads()
        try:
            answer = self._answer(member, request)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, ProtocolError):
                raise
            raise ProtocolError(f"a request cannot be read: {error!r}") from error
        if answer is not None:
            self._reply(member, request, answer)

    def _answer(self, member: Member, request: dict[str, Any]) -> Any:
        operation = request["op"]
        on_channel = _ON_CHANNEL.get(operation)
        right, do = on_channel or _OTHERS[operation]
        if not self._allowed(member, right, request):
            return DENIED_NAMES if operation == "create" else DENIED
        if on_channel is None:
            return do(self, member, request)
        channel = self._channels.known.get(int(request["channel"]))
        return GONE if channel is None else do(self, member, request, channel)

    def _reply(self, member: Member, request: dict[str, Any], answer: dict[str, Any]) -> None:
        self._outbox.reply(member, request.get("id"), answer)

    # -- rights --

    def _allowed(self, member: Member, right: str, request: dict[str, Any]) -> bool:
        """Whether a process may do what this is a right to."""
        if member.right.holds is None or right == ANYBODY:
            return True
        if right == OWNER:
            return False
        if right == HOLDS:  # by what is asked, not by what the request has in it: a client wrote that
            within = int(request.get("within") or 0)
            return all(self._may(member, int(number), str(sides)) for number, sides in request["holds"]) and (
                not within or self._may(member, within, "w")
            )
        return self._may(member, int(request["channel"]), right)

    def _may(self, member: Member, number: int, sides: str) -> bool:
        """Whether a process may use these sides of a channel; of one that is not there, it learns no more than that."""
        channel = self._channels.known.get(number)
        return channel is None or member.right.allows(channel.names, sides)

    def _restrict(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Sign a right to less than the member itself has."""
        if self._authority is None:
            error = "this node listens on no network, so whoever reaches it may do everything"
            return {"error": error, "code": "denied"}
        holds = []
        for number, sides in request["holds"]:
            channel = self._channels.known.get(int(number))
            if channel is None:
                return GONE
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
        those = [each for each in self._channels.members.values() if each.right.number == number]
        for each in those:
            self._deny(each, "the right was revoked")
        return {"error": error} if error else {"cut off": len(those)}

    # -- handles --

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
        channel = None if name is None else self._channels.named.get(name)
        if channel is not None:
            there, failures = channel.kind, channel.device.max_deliveries
            if there != kind:
                return {"error": f"the queue {name!r} exists, as {there.describe()}, not as {kind.describe()}"}
            if max_deliveries not in (None, failures):
                return {"error": f"the queue {name!r} exists, with max_deliveries {failures}, not {max_deliveries}"}
        elif number in self._channels.known:
            return {"error": f"channel {number:016x} exists already"}
        else:
            channel = self._channels.add(number, kind, name)
            channel.device.max_deliveries = max_deliveries or channel.device.max_deliveries
        self._channels.hold(member, channel, "rw")
        return {"channel": channel.number, "shut": bool(channel.shut)}

    def _open(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Hold sides of channels that exist."""
        wanted = {int(number): str(sides) for number, sides in request["holds"]}
        if not all(number in self._channels.known for number in wanted):
            return GONE
        opened = [self._channels.known[number] for number in wanted]
        for channel in opened:
            self._channels.hold(member, channel, wanted[channel.number])
        if request.get("token") is not None:
            self._channels.claim(_token(request))
        kinds = {f"{channel.number:x}": channel.kind for channel in opened}
        return {"kinds": kinds, "shut": [channel.number for channel in opened if channel.shut]}

    def _inherit(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """A forked child takes over what its parent held when it forked. The parent's announcement may come later."""
        for number, sides in request["holds"]:
            if int(number) in self._channels.known:
                self._channels.hold(member, self._channels.known[int(number)], str(sides))
        self._channels.claim(_token(request))
        return {"shut": [channel.number for channel in self._channels.held_by(member) if channel.shut]}

    def _flight(self, member: Member, request: dict[str, Any]) -> None:
        holds = [(int(number), str(sides)) for number, sides in request["holds"]]
        self._channels.announce(member, _token(request), holds, int(request.get("within") or 0))

    def _landed(self, member: Member, request: dict[str, Any]) -> None:
        self._channels.landed(member, _token(request))

    def _arrived(self, member: Member, request: dict[str, Any]) -> None:
        self._channels.arrived(member, _token(request))

    def _unused(self, _: Member, request: dict[str, Any]) -> None:
        self._channels.claim(_token(request))

    # -- how far a queue is --

    def _stat(self, member: Member, request: dict[str, Any], channel: Channel) -> None:
        """Answer how many items there are. `for` an "item" or a "slot" that the member has asked for: see to it first
        that it gets one if there is one, wherever it is."""
        device, wants = channel.device, request.get("for")
        recall = wants == "item" and device.kind.name != "push"
        if wants is None or (recall and device.starved(member)) or (wants == "slot" and device.blocked(member)):
            asked = [each for each in device.behind() if each is not member]
        else:
            asked = []
        if recall:
            for each in asked:
                device.recall(each, self._outbox.now)

        def finish() -> None:
            counts = {"qsize": device.qsize(), "unfinished": device.unfinished, "readers": len(device.readers)}
            self._reply(member, request, counts)

        self._surveys.start(channel, member, asked, finish)

    def _surveyed(self, member: Member, request: dict[str, Any]) -> None:
        self._surveys.heard(int(request["survey"]), member)

    def _join(self, member: Member, request: dict[str, Any], channel: Channel) -> dict[str, Any] | None:
        """Answer when all items are finished; whether they are, if it wants to know that `at_once`."""
        device = channel.device
        if not device.unfinished:
            return {"finished": True}
        if request.get("at_once"):  # what others have done they may not have told yet

            def finish() -> None:
                self._reply(member, request, {"finished": not device.unfinished})

            self._surveys.start(channel, member, device.behind(), finish)
            return None
        if sum(each is member for each, _ in channel.joins) >= MAX_JOINS:
            raise ProtocolError("too many wait for the same tasks")
        channel.joins.append((member, request.get("id")))
        return None

    def _forget(self, member: Member, request: dict[str, Any]) -> None:
        """A member does not wait any more for the end of all items."""
        for channel in self._channels.known.values():
            channel.joins = [each for each in channel.joins if each != (member, request["request"])]

    def _shutdown(self, member: Member, request: dict[str, Any], channel: Channel) -> None:
        """Nothing more is to be put; answer when all who put know it. `drop`: and what is there is dropped."""
        if request.get("drop"):
            channel.device.drop_queued()
            self._channels.unloading.append(channel)
            self._channels.regulate()
            channel.told.clear()
            self._channels.tell_all(channel, "r", "dropped")
        channel.shut = "dropped" if request.get("drop") else channel.shut or "shut"
        self._channels.tell_all(channel, "w", channel.shut)

        def finish() -> None:
            channel.sealed = True
            self._reply(member, request, {})
            self._channels.check(channel)

        self._surveys.start(channel, member, channel.members("w"), finish)

    # -- single items --

    def _lease(self, member: Member, request: dict[str, Any], channel: Channel) -> dict[str, Any]:
        """A reader deals with one item that it has: it is finished, goes back, or may be kept for so many `seconds`."""
        device, item, what, now = channel.device, int(request["item"]), request["what"], self._outbox.now
        if channel.is_pipe:
            raise ProtocolError("a pipe's messages are not held")
        if what == "finish":
            held = device.finish(member, item, now)
        elif what == "give back":
            why = request.get("why")
            held = device.give_back(member, item, None if why is None else str(why)[:MAX_REASON], now)
        elif what == "keep":
            held = device.lease_until(member, item, now + _seconds(request["seconds"]))
        else:
            raise ProtocolError("nothing that can be done with a lease")
        self._settle(channel)
        return {"held": held}

    def _dead_letters(self, _: Member, request: dict[str, Any], channel: Channel) -> dict[str, Any]:
        """Tell of dead letters from number `first` on: not of all at once, if they are many."""
        first = int(request.get("first", 0))
        letters = sorted(item for item in channel.device.dead_letters.items() if item[0] >= first)
        told = [
            {"place": place, "reason": letter.reason, "deliveries": letter.run.deliveries, "size": letter.run.size}
            for place, letter in letters[:MAX_LISTED]
        ]
        return {"letters": told, "more": len(letters) > MAX_LISTED}

    def _dead_letter(self, member: Member, request: dict[str, Any], channel: Channel) -> dict[str, Any] | None:
        """Show a dead letter, put it back, or drop it."""
        place, what = int(request["place"]), request["what"]
        letter = channel.device.dead_letters.get(place)
        if letter is None:
            return {"error": "the dead letter is gone: it was put back or dropped meanwhile", "code": "gone"}
        if what == "show":
            return self._show(member, request, letter.run)
        if what == "put back":
            if channel.shut == "dropped":
                return {"error": "the queue was shut down, and all that was in it dropped", "code": "shut"}
            channel.device.revive(place, self._outbox.now)
        elif what == "drop":
            channel.device.bury(place)
        else:
            raise ProtocolError("nothing that can be done with a dead letter")
        self._settle(channel)
        return {}

    def _settle(self, channel: Channel) -> None:
        self._channels.check(channel)
        self._channels.regulate()

    def _near(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """A process offers to share memory, and shows that it can."""
        pid = int(request["pid"])
        if self._vault is not None and member.lender not in (None, pid):
            self._vault.gone(member.lender)
        if self._vault is not None and self._vault.admits(member.name, pid, int(request["descriptor"])):
            member.lender = pid
        return {"near": member.near}

    def _leased(self, member: Member, request: dict[str, Any], channel: Channel) -> dict[str, Any] | None:
        """The bytes of a large item that a reader has, and cannot read itself."""
        run = channel.device.leased_item(member, int(request["item"]))
        if run is None or not run.batch.large:
            return {"error": "the item was given to another process meanwhile, or dropped", "code": "gone"}
        return self._show(member, request, run)

    def _show(self, member: Member, request: dict[str, Any], run: Run) -> dict[str, Any] | None:
        large = run.batch.large
        try:
            parts = large_parts(run.batch) if large else (run.payload(),)
        except (OSError, MemoryError) as error:
            return {"error": f"the item cannot be read: {error}", "code": "gone"}
        self._outbox.reply(member, request.get("id"), {"large": large}, parts)
        return None

    # -- looking after a node --

    def _find(self, member: Member, request: dict[str, Any]) -> dict[str, Any]:
        """Which queue or pipe goes by a name, or a number in hexadecimal digits; `sides`: that one may use of it."""
        wanted = str(request["name"])
        for number, channel in self._channels.known.items():
            if wanted in channel.names and self._may(member, number, ""):
                sides = "".join(side for side in "rw" if self._may(member, number, side))
                return {"channel": number, "kind": channel.kind, "name": channel.name, "sides": sides}
        return {"error": f"the node has no queue or pipe {wanted!r} that this process may use", "code": "gone"}

    def _queues(self, _: Member, __: dict[str, Any]) -> dict[str, Any]:
        """Tell of all queues, those with a name first, and of both directions of all pipes."""
        queues = [each for each in self._channels.known.values() if not each.is_pipe or each.holders]
        queues.sort(key=lambda each: (each.name is None, each.name or "", each.number))
        return {"queues": [_describe(channel) for channel in queues]}

    def _stats(self, member: Member, _: dict[str, Any], channel: Channel) -> dict[str, Any]:
        """Tell of one queue, and who uses it; one who may not do everything, only how many."""
        known = member.right.holds is None
        return _describe(channel) | {
            "readers": [_who(each, known) for each in channel.device.readers],
            "writers": [_who(each, known) for each in channel.members("w")],
        }

    def _purge(self, _: Member, __: dict[str, Any], channel: Channel) -> dict[str, Any]:
        """Drop what no reader has."""
        dropped = channel.device.purge()
        self._settle(channel)
        return {"dropped": dropped}

    def _delete(self, _: Member, __: dict[str, Any], channel: Channel) -> dict[str, Any]:
        if channel.number == DEFAULT_CHANNEL:
            return GONE
        self._channels.delete(channel)
        return {}


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


def _describe(channel: Channel) -> dict[str, Any]:
    device = channel.device
    qsize = device.qsize()
    return {
        "channel": channel.number,
        "name": channel.name,
        "kind": channel.kind,
        "qsize": qsize,
        "in_flight": max(0, device.unfinished - qsize),
        "bytes": device.bytes,
        "put": device.accepted,
        "finished": device.finished,
        "redelivered": device.redelivered,
        "dead": len(device.dead_letters),
    }


def _who(member: Any, known: bool) -> dict[str, Any]:
    return {"host": member.host if known else None, "pid": member.pid if known else None, "away": member.peer is None}


OWNER: Final = "owner"
HOLDS: Final = "holds"
ANYBODY: Final = "anybody"
"""What one must have a right to: everything; all channels in the request's `holds`, with the sides of each; nothing,
because a process says what it has itself, or is told only of what it may use. Else it is sides of a channel."""

_ON_CHANNEL: Final[dict[str, tuple[str, Any]]] = {
    "stat": ("", Requests._stat),
    "stats": ("", Requests._stats),
    "join": ("", Requests._join),
    "lease": ("r", Requests._lease),
    "leased": ("r", Requests._leased),
    "shutdown": ("rw", Requests._shutdown),
    "dead letters": ("rw", Requests._dead_letters),
    "dead letter": ("rw", Requests._dead_letter),
    "purge": (OWNER, Requests._purge),
    "delete": (OWNER, Requests._delete),
}
"""Requests about a channel that is there."""

_OTHERS: Final[dict[str, tuple[str, Any]]] = {
    "create": (OWNER, Requests._create),
    "open": (HOLDS, Requests._open),
    "inherit": (HOLDS, Requests._inherit),
    "flight": (HOLDS, Requests._flight),
    "landed": (ANYBODY, Requests._landed),
    "arrived": (ANYBODY, Requests._arrived),
    "unused": (ANYBODY, Requests._unused),
    "surveyed": (ANYBODY, Requests._surveyed),
    "forget": (ANYBODY, Requests._forget),
    "near": (ANYBODY, Requests._near),
    "restrict": (HOLDS, Requests._restrict),
    "revoke": (OWNER, Requests._revoke),
    "find": (ANYBODY, Requests._find),
    "queues": (OWNER, Requests._queues),
}
