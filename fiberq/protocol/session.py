"""Frames arrive once and in order between two ends, although messages may be lost, repeated or cut off.

Both ends are alike. Each numbers its frames, keeps them until the other has acknowledged them, and after a reconnect
sends again what was not. An acknowledgement means that the frame was taken over by the layer above.

This is go-back-N with cumulative acknowledgements; since a transport keeps messages in order, a gap means that one was
lost, and all that follows is asked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from fiberq.abc import Buffer
from fiberq.errors import ProtocolError
from fiberq.protocol.frames import ACK, ACK_NOW, PUT, READY, RESEND, Frame, Received, encode

WINDOW: Final = 32
"""The most unacknowledged frames that one end has under way; acknowledgements stay below half of `abc.MIN_QUEUED`."""

ACK_DELAY: Final = 0.001
"""Seconds that an acknowledgement waits for a frame to ride on."""

PATIENT: Final = 256 * WINDOW
"""Frames that are taken from an end which acknowledges nothing, or repeats itself, before it breaks the protocol. One
that keeps to its window soon learns what there is to acknowledge, unless messages are lost just then."""

LONGEST_LAG: Final = 0.2
"""Seconds that one round trip counts for at most where it is longer than the usual: see `Session.lag`."""

RETRANSMIT: Final = 1.0
"""Seconds without progress after which the oldest unacknowledged frame is sent again."""


class Session:
    """One end's view. What is to be sent gathers in `out`, as messages, in order; the shell empties it."""

    def __init__(self, window: int = WINDOW) -> None:
        self.out: list[tuple[Buffer, ...]] = []
        self.window = window
        self.connected = False
        self.sent = 0  # the number of the last frame given one
        self.acknowledged = 0  # the last of ours that the other end has
        self.received = 0  # the last of theirs, in order, that we have
        self.unacknowledged: deque[Frame] = deque()
        self.waiting: deque[Frame] = deque()  # for room in the window
        self.ack_at: float | None = None  # when an acknowledgement must leave, if one is owed
        self._unheard = 0  # frames received since an acknowledgement last left
        self._gap = False  # a resend was asked for, and has not come
        self.asked_at = 0.0  # when something was sent last while nothing else was unacknowledged
        self.round_trip = 0.0  # seconds that a frame and its acknowledgement take, smoothed; 0: none yet
        self._newest_trip = 0.0  # as long as it took
        self.answered_at = 0.0  # what was sent then, or later, has been acknowledged
        self._timed = 0  # a frame that is not acknowledged; 0: none
        self._timed_at = 0.0  # when it was sent
        self._retransmit_at = float("inf")
        self._patience = RETRANSMIT
        self.before_report: Callable[[float], None] | None = None  # sends what a report must not overtake
        self._later: dict[object, tuple[float, Callable[[float], None]]] = {}
        self._stalled = False  # frames were sent again for lack of an acknowledgement
        self._asked_again = (-1, 0.0)  # the last frame acknowledged when a resend was asked for, and when that was
        self._unread = 0  # frames that came while ours went unacknowledged
        self._repeated = 0  # frames that came again since a new one did

    @property
    def last(self) -> int:
        """The number that the newest frame has, or will have when it leaves."""
        return self.sent + len(self.waiting)

    @property
    def lag(self) -> float:
        """Seconds that the other end may need to answer. The usual round trip says little of a process that has begun
        to wait for a processor, as each does where there are many; so the newest counts, too."""
        return max(self.round_trip, min(self._newest_trip, LONGEST_LAG))

    @property
    def busy(self) -> int:
        """Frames that the other end has not acknowledged, sent or not."""
        return len(self.unacknowledged) + len(self.waiting)

    def carries(self, kind: int) -> bool:
        """Whether a frame of this kind is among those."""
        return any(frame.kind == kind for frames in (self.unacknowledged, self.waiting) for frame in frames)

    def send(self, frame: Frame, now: float, urgent: bool = False) -> int:
        """Send `frame`, now or when there is room; return its number. `urgent` asks for its acknowledgement at once."""
        if not self.connected or self.waiting or len(self.unacknowledged) >= self.window:
            self.waiting.append(frame)
        else:
            self._send(frame, now, urgent)
        return self.last

    def replace(self, number: int, frame: Frame) -> bool:
        """Put `frame` in the place of frame `number`; return whether it could be: not when that has left, nor when
        items were put since, which must not come later than it."""
        place = number - self.sent - 1
        if place < 0 or any(self.waiting[later].kind == PUT for later in range(place + 1, len(self.waiting))):
            return False
        self.waiting[place] = frame
        return True

    def later(self, key: object, at: float, action: Callable[[float], None]) -> bool:
        """Let `tick` call `action(now)` at `at`, once for a `key`; return whether nothing was to be done for it yet."""
        new = key not in self._later
        if new:
            self._later[key] = (at, action)
        return new

    def forget(self, key: object) -> None:
        """What was to be done later for `key` is done, or needless."""
        self._later.pop(key, None)

    def send_aside(self, frame: Frame) -> None:
        """Send a frame that has no number: it may be lost."""
        self._transmit(frame, 0, 0)

    def accept(self, message: Received, now: float) -> Frame | None:
        """Take a message of the other end; return its frame if it is the next one.

        Raises `ProtocolError` if it makes this end send, and does not read that.
        """
        if message.ack > self.acknowledged:
            self._acknowledge(message.ack, now)
        if message.flags & RESEND:
            self._resend_once(now)
        if not message.seq:
            return None
        if message.seq != self.received + 1:
            if message.seq <= self.received:
                self.ack_at = now
                self._repeated += 1
                if self._repeated > PATIENT:
                    raise ProtocolError("the peer sends the same frames again and again")
            elif not self._gap:
                self._gap = True
                self._transmit(Frame(ACK), RESEND, 0)
            return None
        self._gap = False
        self._repeated = 0
        self.received = message.seq
        self._unread = self._unread + 1 if self.unacknowledged else 0
        if self._unread > PATIENT:
            raise ProtocolError("the peer sends frames, and acknowledges none")
        self._unheard += 1
        if message.flags & ACK_NOW or self._unheard >= self.window // 4:
            self.ack_at = now
        elif self.ack_at is None:
            self.ack_at = now + ACK_DELAY
        return Frame(message.kind, message.channel, (message.body,), message.parts)

    def connect(self, received: int, now: float) -> None:
        """A connection stands, and the other end has our frames up to number `received`: send the rest."""
        self._gap = self._stalled = False
        self._patience = RETRANSMIT
        if received > self.acknowledged:
            self._acknowledge(received, now)
        self.connected = True
        self.resend(now)
        self._fill(now)

    def disconnect(self) -> None:
        """The connection is gone; frames wait for the next one."""
        self.connected = False
        self.out.clear()
        self.ack_at = None
        self._timed = 0  # how long it was away is no round trip
        self._retransmit_at = float("inf")

    def resend(self, now: float) -> None:
        """Send all that is unacknowledged once more."""
        first = self.acknowledged + 1
        for offset, frame in enumerate(self.unacknowledged):
            self._transmit(frame, ACK_NOW, first + offset)
        self._arm(now)

    def _resend_once(self, now: float) -> None:
        """Send again what the other end asks for, but not the same frames each time that it asks: it asks once, and
        what is lost then, the timer finds."""
        acknowledged, at = self._asked_again
        if acknowledged != self.acknowledged or now >= at + RETRANSMIT:
            self._asked_again = self.acknowledged, now
            self.resend(now)

    def tick(self, now: float) -> None:
        """Send what is due at `now`: an owed acknowledgement, or the oldest frame once more."""
        if not self.connected:
            return
        if self._later:
            for key, (at, action) in list(self._later.items()):
                if at <= now:
                    del self._later[key]
                    action(now)
        if self.ack_at is not None and self.ack_at <= now:
            self._transmit(Frame(ACK), 0, 0)
        if self._retransmit_at <= now:
            self._gap = False
            self._stalled = True
            self._patience = min(self._patience * 2, 30.0)
            self._transmit(self.unacknowledged[0], ACK_NOW, self.acknowledged + 1)
            self._retransmit_at = now + self._patience

    def due(self) -> float:
        """When `tick` is to be called next; infinity when never."""
        due = self._retransmit_at if self.ack_at is None else min(self.ack_at, self._retransmit_at)
        if self._later and self.connected:
            due = min(due, *(at for at, _ in self._later.values()))
        return due

    def _send(self, frame: Frame, now: float, urgent: bool) -> None:
        self.sent += 1
        # A frame with company is part of a stream: its sender waits for room, so it asks not to be kept waiting. But a
        # report that follows a lone item does not: the next item from there acknowledges both.
        flags = ACK_NOW if urgent or (self.unacknowledged and frame.kind != READY) else 0
        self.unacknowledged.append(frame)
        if len(self.unacknowledged) == 1:
            self.asked_at = now
            self._arm(now)
        if not self._timed:
            self._timed, self._timed_at = self.sent, now
        self._transmit(frame, flags, self.sent)

    def _transmit(self, frame: Frame, flags: int, seq: int) -> None:
        self.out.append(encode(frame, flags, seq, self.received))
        self.ack_at = None
        self._unheard = 0

    def _acknowledge(self, ack: int, now: float) -> None:
        if ack > self.sent:
            raise ProtocolError("the peer acknowledges a frame that was never sent")
        for _ in range(ack - self.acknowledged):
            self.unacknowledged.popleft()
        self.acknowledged = ack
        if 0 < self._timed <= ack:
            self._newest_trip = took = now - self._timed_at
            took = min(took, 2 * self.round_trip or took)  # one that was away for long says little
            self.round_trip += (took - self.round_trip) / 8 if self.round_trip else took  # as TCP does: RFC 6298
            self.answered_at = self._timed_at
            self._timed = 0
        self._unread = 0
        self._patience = RETRANSMIT
        if self._stalled:  # the one that was sent again has arrived, those after it have not
            self._stalled = False
            self.resend(now)
        self._arm(now)
        self._fill(now)

    def _fill(self, now: float) -> None:
        while self.waiting and self.connected and len(self.unacknowledged) < self.window:
            self._send(self.waiting.popleft(), now, urgent=not self.waiting)

    def _arm(self, now: float) -> None:
        self._retransmit_at = now + self._patience if self.unacknowledged and self.connected else float("inf")


def drain(session: Session) -> Sequence[tuple[Buffer, ...]]:
    """Take the messages that wait to be sent."""
    out, session.out = session.out, []
    return out
