"""Waiting in asyncio: a coroutine waits for the bell of a reader or writer, and takes what is there when it runs again.

So nothing is on its way to a coroutine that is cancelled meanwhile, no thread waits for it, and nobody polls. A bell is
a descriptor of which the event loop tells while it is readable; all coroutines of a loop that wait for the same thing
share it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fiberq.protocol.reader import Reader
from fiberq.protocol.writer import Item, Writer

if TYPE_CHECKING:
    import asyncio

    from fiberq.codec import Flight
    from fiberq.link import Link

_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Reader | Writer, _Line]] = WeakKeyDictionary()
_holders: WeakKeyDictionary[asyncio.Task[Any], WeakKeyDictionary[Reader, Link]] = WeakKeyDictionary()
"""From which readers tasks took something that they hold until they end."""


class _Line:
    """The coroutines of one event loop that wait for one reader or writer, the first of them first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link, target: Reader | Writer) -> None:
        self._loop = loop
        self._link = link
        self._target = target
        self._futures: deque[asyncio.Future[None]] = deque()
        self._bell = -1
        self._asks = False  # the node is about to be told how many wait
        self._woken = 0  # coroutines that are to run, and have not yet

    async def wait(self, again: bool) -> None:
        """Wait until there may be something for the one that calls; if it found nothing and waits `again`, it keeps
        its place."""
        bell = self._link.begin_wait(self._target)
        if self._bell < 0:
            self._bell = bell
            self._loop.add_reader(bell, self._wake)
        if not self._asks:
            self._asks = True
            self._loop.call_soon(self._ask)
        future: asyncio.Future[None] = self._loop.create_future()
        if again:
            self._futures.appendleft(future)
        else:
            self._futures.append(future)
        try:
            await future
        finally:
            if future in self._futures:
                self._futures.remove(future)
            else:
                self._woken -= 1
            try:
                self._listen_no_more()  # raises where the loop was closed while this waited
            finally:
                if not (self._futures or self._woken):
                    _lines[self._loop].pop(self._target, None)
                self._link.end_wait(self._target)

    def _ask(self) -> None:
        """Tell the node once of all that began to wait in this turn of the loop."""
        self._asks = False
        if self._futures:
            self._link.ask_for(self._target)

    def _wake(self) -> None:
        """The bell rings: wake as many as there is something for, or, where there is an error, all."""
        some = self._link.hear(self._target)
        while self._futures and self._woken < some:
            future = self._futures.popleft()
            self._woken += 1
            if not future.done():
                future.set_result(None)
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._bell >= 0 and not self._futures:
            self._loop.remove_reader(self._bell)
            self._bell = -1


def _has_line(target: Reader | Writer) -> bool:
    import asyncio

    return target in _lines.get(asyncio.get_running_loop(), ())


def _line(link: Link, target: Reader | Writer) -> _Line:
    import asyncio

    loop = asyncio.get_running_loop()
    lines = _lines.setdefault(loop, {})
    if target not in lines:
        lines[target] = _Line(loop, link, target)
    return lines[target]


async def take(link: Link, reader: Reader, caller: Hashable) -> Any:
    """Return the next item of `reader`, which `caller` holds from then on."""
    waited = False
    # Who comes later does not go first.
    while (not waited and _has_line(reader)) or (item := link.take_now(reader, caller, waited)) is None:
        await _line(link, reader).wait(waited)
        waited = True
    return item


async def get(link: Link, reader: Reader) -> Any:
    """As `take`; the current task holds it, until that takes another or ends."""
    task = current_task()
    assert task is not None
    item = await take(link, reader, task)
    if reader.kind.keeps:
        if task not in _holders:
            _holders[task] = WeakKeyDictionary()
            task.add_done_callback(_finish)
        _holders[task][reader] = link
    return item


def _finish(task: asyncio.Task[Any]) -> None:
    for reader, link in list(_holders.pop(task).items()):
        link.finish(reader, task)


async def put(link: Link, writer: Writer, item: Item, flights: Sequence[Flight]) -> None:
    """Put `item`, with the handles in it, as soon as there is room."""
    waited = False
    while (not waited and _has_line(writer)) or not link.put_now(writer, item, flights, waited):
        await _line(link, writer).wait(waited)
        waited = True


def current_task() -> asyncio.Task[Any] | None:
    """The asyncio task that runs in this thread, if one does."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    return asyncio.current_task()  # type: ignore[no-any-return]
