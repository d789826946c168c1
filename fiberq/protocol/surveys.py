"""Some questions have an exact answer only after other processes have said how far they are, and given back what they
do not use. For these the node makes a survey: it asks each of them, and answers when all have, or are silent for too
long."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from fiberq.protocol import frames
from fiberq.protocol.channels import Channel
from fiberq.protocol.frames import Frame
from fiberq.protocol.members import Member, Outbox

MAX_SURVEYS: Final = 64
"""Surveys that run at the same time for one process; what it asks beyond is answered by what is known."""

MAX_BEHIND: Final = 1000
"""Frames that wait for a process to read those before: it is not asked."""

PATIENCE: Final = 0.5
"""Seconds that a survey waits for a process: as long as a recall does."""


class Survey:
    """What a member asked about a channel, and those of whom there is no word yet."""

    def __init__(self, asker: Member, members: Iterable[Member], until: float, finish: Callable[[], None]) -> None:
        self.asker = asker
        self.missing = dict.fromkeys(members)  # in the order of asking: a simulation must come out the same again
        self.until = until
        self.finish = finish


class Surveys:
    def __init__(self, outbox: Outbox) -> None:
        self.running: dict[int, Survey] = {}
        self._outbox = outbox
        self._count = 0

    def start(self, channel: Channel, asker: Member, members: Iterable[Any], finish: Callable[[], None]) -> None:
        """Let `asker` know how far the others of these members are with a channel: call `finish` when all have
        answered."""
        if sum(survey.asker is asker for survey in self.running.values()) >= MAX_SURVEYS:
            members = ()
        asked = [each for each in members if each is not asker and len(each.session.waiting) < MAX_BEHIND]
        self._count += 1
        survey = self.running[self._count] = Survey(asker, asked, self._outbox.now + PATIENCE, finish)
        for member in survey.missing:
            self._outbox.send(member, Frame(frames.SURVEY, channel.number, frames.pack_survey(self._count)))
        if not survey.missing:
            self._finish(self._count)

    def heard(self, number: int, member: Member) -> None:
        """A member has said all that it had to say, or is gone."""
        survey = self.running.get(number)
        if survey is not None and member in survey.missing:
            del survey.missing[member]
            if not survey.missing:
                self._finish(number)

    def look(self, now: float) -> None:
        """Finish those that have waited for long enough."""
        for number, survey in list(self.running.items()):
            if survey.until <= now:
                self._finish(number)

    def _finish(self, number: int) -> None:
        self.running.pop(number).finish()
