"""How processes come, leave, and find out that something ended: a node and its clients, one message at a time."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from sim import CHANNEL, Ledger, Message, WatchedBroker

from fiberq.errors import NodeError
from fiberq.memory import Opened, Pool, fetch, make_vault, prove
from fiberq.protocol.client import Client
from fiberq.protocol.frames import DELIVER, HEADER, MAGIC, PUT, READY, REQUEST, Frame, decode, pack_items
from fiberq.protocol.kinds import Kind
from fiberq.protocol.pull import RECALL_AFTER, RECALL_LATER, RECALL_PATIENCE, UNSEEN
from fiberq.protocol.push import FAR_UNDER_WAY, SMALL
from fiberq.protocol.push import UNDER_WAY as NEAR_UNDER_WAY
from fiberq.protocol.reader import IDLE, LATE_LOOKS, Holder, Reader
from fiberq.protocol.session import LONGEST_LAG, WINDOW, drain
from fiberq.protocol.strangers import ASK_AGAIN
from fiberq.protocol.writer import MAX_BULK, MAX_UNDER_WAY, UNDER_WAY, Writer


class Node:
    def __init__(self, kind: str, **settings: Any) -> None:
        self.kind = kind
        self.broker = WatchedBroker(Ledger(), **settings)
        self.now = 0.0
        self.clients: dict[object, Client] = {}
        self.creator = self.client("creator", "rw", create=True)

    def client(self, name: str, sides: str, create: bool = False, grace: bool = True) -> Client:
        client = self.clients[name] = Client(name, grace)
        client.hello()
        self.settle()
        if create:
            client.request(self.now, op="create", channel=CHANNEL, kind=Kind(self.kind))
        else:
            client.request(self.now, op="open", holds=[[CHANNEL, sides]])
        self.settle()
        client.readers[CHANNEL] = Reader(CHANNEL, Kind(self.kind))
        client.writers[CHANNEL] = Writer(CHANNEL, Kind(self.kind))
        return client

    def settle(self) -> None:
        while self.step():
            pass

    def step(self) -> bool:
        """Exchange what is to be sent now; return whether there was something."""
        busy = False
        for peer, client in list(self.clients.items()):
            if client.session.due() <= self.now:
                client.session.tick(self.now)
            for message in drain(client.session):
                busy = True
                self.broker.message(peer, message, self.now)
        for peer, message in self.broker.output(self.now):
            busy = True
            if peer in self.clients:
                self.clients[peer].message(message, self.now)
        return busy

    def put(self, client: Client, *items: bytes) -> None:
        client.writers[CHANNEL].items.extend(items)
        client.pump(client.writers[CHANNEL], self.now)
        self.settle()

    def put_on_its_way(self, item: bytes) -> None:
        """The node takes an item; what it sends to others is in `flying`."""
        self.let_in(item)
        assert self.flying

    def let_in(self, item: bytes) -> None:
        """As `put_on_its_way`, but there may be nothing that the node sends."""
        self.creator.writers[CHANNEL].items.append(item)
        self.creator.pump(self.creator.writers[CHANNEL], self.now)
        for message in drain(self.creator.session):
            self.broker.message("creator", message, self.now)
        self.flying = []
        for peer, message in self.broker.output(self.now):
            if peer == "creator":
                self.creator.message(message, self.now)
            else:
                self.flying.append(message)

    def ask(self, client: Client) -> None:
        reader = client.readers[CHANNEL]
        reader.waiting = 1
        reader.ask(client.session, self.now)

    def get(self, client: Client) -> Any:
        reader = client.readers[CHANNEL]
        got = reader.take(1)
        if got is None:
            self.ask(client)
            self.settle()
            reader.waiting = 0
            got = reader.take(1)
        return got and got[1]

    def kill(self, name: str) -> None:
        del self.clients[name]
        self.broker.lost(name, self.now)
        self.broker.expire(name)
        self.settle()

    def qsize(self) -> int:
        """As the creator is answered."""
        request = self.creator.request(self.now, op="stat", channel=CHANNEL)
        self.settle()
        assert request.answer is not None
        return int(request.answer["qsize"])


@pytest.mark.parametrize("told", [Reader.cancel, Reader.progress])
@pytest.mark.parametrize("taken", [True, False])
def test_a_pipes_message_that_poll_found_is_finished_when_it_is_taken(told: Any, taken: bool) -> None:
    """The node is told that what `poll` found is not started; so it must be told at once when `recv` takes it."""
    node = Node("pipe")
    client, other = node.client("polls", "r"), node.client("other", "r")
    node.ask(client)
    node.settle()
    node.put(node.creator, b"message")
    reader = client.readers[CHANNEL]
    reader.waiting = 0
    told(reader, client.session, node.now)
    node.settle()
    if taken:
        assert reader.take(1) == (0, b"message")
        if len(reader.ready) < reader.low:  # as every caller does
            reader.ask_ahead(client.session, node.now)
        node.settle()
    node.kill("polls")
    assert node.get(other) == (None if taken else b"message")


def test_the_end_of_a_slow_item_is_told_at_once_to_whom_else_was_told_just_before() -> None:
    """Of a push reader that is killed amid slow items, one that was finished may come again, and not two."""
    node = Node("push")
    client = node.client("slow", "r")
    reader = client.readers[CHANNEL]
    for number in range(6):
        assert reader.take(1) is None
        node.ask(client)
        node.settle()
        if number > 2:
            assert node.broker.memory.bytes == 0, "what it did before is finished"
        node.put(node.creator, b"%d" % number)
        reader.waiting = 0
        assert reader.take(1) == (number, b"%d" % number)
        node.now += 0.0149
        reader.progress(client.session, node.now)  # at a lull: that it still has the item
        node.settle()
        node.now += 0.0002


@pytest.fixture(params=["release", "goodbye"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _leave(node: Node, client: Client, way: str) -> None:
    if way == "release":
        client.release(CHANNEL, "rw", node.now)
    else:
        client.goodbye(node.now)


@pytest.mark.parametrize("kind", ["pull", "push"])
def test_leaving_while_a_suspect_is_on_its_way_condemns_it_not(kind: str, way: str) -> None:
    node = Node(kind, max_deliveries=2)
    node.client("killed", "r")
    node.put(node.creator, b"item")
    assert node.get(node.clients["killed"]) == b"item"
    node.kill("killed")
    client = node.client("leaves", "r")
    node.ask(client)
    for message in drain(client.session):
        node.broker.message("leaves", message, node.now)
    assert node.broker.output(node.now), "the item is on its way, and never read"
    _leave(node, client, way)
    node.settle()
    assert node.qsize() == 1
    assert node.get(node.client("next", "r")) == b"item"


def test_a_pipes_message_that_crossed_a_clean_end_goes_to_another(way: str) -> None:
    node = Node("pipe")
    client = node.client("leaves", "r")
    node.ask(client)
    node.settle()
    node.put_on_its_way(b"message")
    _leave(node, client, way)
    node.settle()
    assert node.get(node.client("next", "r")) == b"message"


def test_what_a_caller_got_is_finished_at_a_clean_end(way: str) -> None:
    node = Node("pull")
    client = node.client("leaves", "r")
    node.put(node.creator, b"a", b"b")
    assert node.get(client) == b"a"
    _leave(node, client, way)
    node.settle()
    assert node.get(node.client("next", "r")) == b"b"
    assert node.qsize() == 0
    assert node.broker.memory.bytes == 1, "only what the last one holds"


def test_a_hello_that_was_overtaken_changes_nothing() -> None:
    node = Node("pull")
    client = node.client("first", "r")
    client.hello()
    (late,) = drain(client.session)
    node.broker.lost("first", node.now)
    node.clients["second"] = node.clients.pop("first")
    client.hello()
    node.settle()
    assert client.welcomed
    node.broker.message("old", late, node.now)
    node.broker.lost("old", node.now)
    node.now += 3.0
    node.settle()
    node.put(node.creator, b"item")
    assert node.get(client) == b"item"


def test_a_second_hello_on_the_same_connection_changes_nothing() -> None:
    node = Node("pull")
    client = node.client("reader", "r")
    node.ask(client)
    client.hello()
    messages: list[Message] = [*drain(client.session)]
    for message in messages * 2:
        node.broker.message("reader", message, node.now)
    node.settle()
    node.put(node.creator, b"item")
    taken = client.readers[CHANNEL].take(1)
    assert taken is not None
    assert taken[1] == b"item"


def test_a_process_that_was_given_up_is_told_so() -> None:
    node = Node("pull", session_grace=2.0)
    client = node.client("away", "r")
    node.broker.lost("away", node.now)
    del node.clients["away"]
    node.now += 2.5
    node.settle()
    node.clients["back"] = client
    client.hello()
    with pytest.raises(NodeError, match="session ended"):
        node.settle()


def test_the_end_of_a_pipe_is_told_once_all_was_read() -> None:
    node = Node("pipe")
    reader = node.client("reader", "r")
    node.put(node.creator, b"a", b"b")
    node.creator.release(CHANNEL, "rw", node.now)
    node.settle()
    assert [node.get(reader), node.get(reader)] == [b"a", b"b"]
    assert reader.readers[CHANNEL].ended is None
    assert node.get(reader) is None
    assert reader.readers[CHANNEL].ended == "eof"


def test_writers_are_told_when_nobody_is_left_to_read() -> None:
    node = Node("pipe")
    writer = node.client("writer", "w")
    node.creator.release(CHANNEL, "rw", node.now)
    node.settle()
    assert writer.writers[CHANNEL].ended == "unread"


def test_a_full_node_pauses_writers_and_lets_them_go_on() -> None:
    node = Node("pull", max_bytes=10)
    writer, reader = node.client("writer", "w"), node.client("reader", "r")
    for number in range(5):
        node.put(writer, b"%d" % number * 6)
    assert writer.writers[CHANNEL].paused
    assert writer.writers[CHANNEL].items, "it went on although it was told not to"
    got = []
    for _ in range(5):
        got.append(node.get(reader)[:1])
        node.settle()
    assert got == [b"0", b"1", b"2", b"3", b"4"]
    assert node.get(reader) is None
    assert not writer.writers[CHANNEL].paused


def test_who_puts_looks_closer_at_once_when_reports_have_sent_too_much() -> None:
    """And not only when the next look is due, or at each sixteenth item: reports follow each other faster."""
    node = Node("pull")
    worker = node.client("worker", "rw")
    writer = worker.writers[CHANNEL]
    for number in range(MAX_UNDER_WAY + 1):
        assert writer.has_room
        writer.add(b"%d" % number)
        worker.about_lease(node.now, channel=CHANNEL, item=0, what="finish")  # what was put by then leaves before
        assert writer.full == (UNDER_WAY <= len(writer.under_way) <= MAX_UNDER_WAY)
    assert not writer.has_room
    node.settle()
    assert writer.has_room


def test_who_puts_large_items_waits_until_the_node_has_accepted_them() -> None:
    """However few frames they take."""
    node = Node("pull")
    writer = node.client("writer", "w").writers[CHANNEL]
    client, item = node.clients["writer"], (bytes(MAX_BULK // 8),)
    for _ in range(9):
        assert writer.has_room
        writer.add(item)
        client.pump(writer, node.now)
    assert len(writer.items) < 9, "some are under way"
    assert not writer.has_room
    node.settle()
    client.pump(writer, node.now)
    assert writer.settled(client.session)
    assert writer.has_room
    assert writer.bulk == 0


def lease(node: Node, client: Client) -> int:
    """Get an item, and keep it; return its number."""
    node.ask(client)
    node.settle()
    reader = client.readers[CHANNEL]
    reader.waiting = 0
    number, _ = reader.take(Holder()) or (-1, None)
    reader.progress(client.session, node.now)
    node.settle()
    return number


@pytest.mark.parametrize("kind", ["pull", "push", "joinable"])
def test_what_readers_hold_pauses_no_writer_whose_queue_is_empty(kind: str) -> None:
    """Who holds an item while he waits for the next would wait for ever."""
    node = Node(kind, max_bytes=10)
    writer, reader = node.client("writer", "w"), node.client("reader", "r")
    for number in range(5):
        node.put(writer, b"%d" % number * 6)
    assert writer.writers[CHANNEL].paused
    assert [lease(node, reader) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert node.broker.memory.bytes == 30
    assert not writer.writers[CHANNEL].paused


def test_dead_letters_pause_a_writer_only_when_they_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    node = Node("pull", max_bytes=10, max_deliveries=1)
    writer, reader = node.client("writer", "w"), node.client("reader", "r")

    def try_out(item: bytes, **what: str) -> None:
        node.put(writer, item)
        reader.about_lease(node.now, channel=CHANNEL, item=lease(node, reader), **what)
        node.settle()

    for _ in range(2):
        try_out(b"wrong", what="give back", why="it is wrong")
    try_out(b"1", what="finish")
    assert node.broker.memory.dead == node.broker.memory.bytes == 10
    assert not writer.writers[CHANNEL].paused
    assert "nothing more can be put" not in caplog.text
    try_out(b"2", what="give back", why="it is wrong")
    try_out(b"3", what="finish")
    assert writer.writers[CHANNEL].paused
    assert "dead letters have 11 bytes" in caplog.text
    reader.request(node.now, op="dead letter", channel=CHANNEL, place=0, what="drop")
    node.settle()
    assert not writer.writers[CHANNEL].paused
    assert node.broker.memory.dead == 6


def test_a_lease_that_ran_out_for_the_last_time_ends_the_joins() -> None:
    node = Node("joinable", max_deliveries=1)
    client = node.client("hangs", "r")
    node.put(node.creator, b"item")
    client.about_lease(node.now, channel=CHANNEL, item=lease(node, client), what="keep", seconds=1.0)
    join = node.creator.request(node.now, op="join", channel=CHANNEL)
    node.settle()
    assert join.answer is None
    node.now += 1.0
    del node.clients["hangs"]  # it does not say a word
    node.settle()
    assert join.answer is not None
    assert join.answer["finished"]


def test_a_recall_that_finds_a_caller_waiting_leaves_it_its_credit() -> None:
    node = Node("pull")
    client = node.client("reader", "r")
    node.ask(client)
    node.settle()
    client.readers[CHANNEL].recalled(client.session, node.now)
    node.settle()
    node.put(node.creator, b"item")
    assert [item for _, item in client.readers[CHANNEL].ready] == [b"item"]


def test_an_item_for_a_caller_that_gave_up_is_not_kept_from_others() -> None:
    """Two callers wait, one gives up, and two items come: the second may be recalled."""
    node = Node("pull")
    client, other = node.client("two", "r"), node.client("other", "r")
    reader = client.readers[CHANNEL]
    reader.waiting = 2
    reader.ask(client.session, node.now)
    node.settle()
    reader.waiting = 1
    node.put(node.creator, b"a", b"b")
    assert reader.take(1) is not None
    reader.waiting = 0
    node.ask(other)
    node.settle()
    node.now += 0.02
    node.settle()
    assert [item for _, item in other.readers[CHANNEL].ready] == [b"b"]


def _cross_a_cancel(node: Node, client: Client) -> None:
    node.ask(client)
    node.settle()
    node.put_on_its_way(b"item")
    client.readers[CHANNEL].waiting = 0
    client.readers[CHANNEL].cancel(client.session, node.now)
    for message in node.flying:
        client.message(message, node.now)
    node.settle()


def test_an_item_that_crossed_a_cancel_is_for_the_next_caller() -> None:
    node = Node("pull")
    client = node.client("late", "r")
    _cross_a_cancel(node, client)
    assert client.readers[CHANNEL].take(1) == (0, b"item")


def test_an_item_that_crossed_a_cancel_goes_back_if_nobody_comes_for_it() -> None:
    node = Node("pull")
    client, other = node.client("late", "r"), node.client("other", "r")
    _cross_a_cancel(node, client)
    assert node.get(other) is None
    node.now += IDLE
    assert client.idle(node.now)
    node.now += IDLE
    assert not client.idle(node.now)
    node.settle()
    assert node.get(other) == b"item"


def _behind(items: list[bytes], near: bool = False) -> tuple[Node, Client, list[Message]]:
    """A node, a push reader for which items were put one by one, and what is on its way to it."""
    node = Node("push")
    client = node.client("behind", "r")
    node.ask(client)
    node.settle()
    for reader in node.broker._channels.known[CHANNEL].device.readers.values():
        reader.near = near
    flying: list[Message] = []
    for item in items:
        node.let_in(item)
        flying += node.flying
    return node, client, flying


@pytest.mark.parametrize(("count", "more"), [(2, 0), (16, 0), (32, 1)])
@pytest.mark.parametrize("length", [1, SMALL])
@pytest.mark.parametrize(("near", "most"), [(True, NEAR_UNDER_WAY), (False, FAR_UNDER_WAY)])
def test_small_items_gather_for_a_push_reader_that_is_behind(
    count: int, more: int, length: int, near: bool, most: int
) -> None:
    items = [b"%d" % number + bytes(length) for number in range(count)]
    node, client, flying = _behind(items, near)
    assert len(flying) == (count if length == SMALL else min(count, most) + more)
    for message in flying:
        client.message(message, node.now)
    node.settle()
    assert [item for _, item in client.readers[CHANNEL].ready] == items


def _send_without_acknowledgement(node: Node, client: Client) -> None:
    (message,) = drain(client.session)
    kind, flags, seq, _, channel = HEADER.unpack_from(message[0])[1:]
    bare = HEADER.pack(MAGIC, kind, flags, seq, 0, channel) + bytes(message[0][HEADER.size :])
    node.broker.message(client.name, (bare,), node.now)


def test_who_waits_for_a_push_queue_waits_for_nothing_else_that_is_under_way() -> None:
    node, client, flying = _behind([b"item"] * (FAR_UNDER_WAY + 2))
    assert len(flying) == FAR_UNDER_WAY
    for message in flying:
        client.message(message, node.now)
    reader = client.readers[CHANNEL]
    for _ in flying:
        assert reader.take(1)
    client.session.out.clear()  # no acknowledgement has come
    client.session.ack_at = None
    reader.waiting = 1
    reader.progress(client.session, node.now)
    _send_without_acknowledgement(node, client)
    assert [decode(sent).kind for _, sent in node.broker.output(node.now)].count(DELIVER) == 1


def test_what_gathered_and_cannot_be_read_was_the_last_of_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    node, client, flying = _behind([b"item"] * (FAR_UNDER_WAY + 1))
    node.creator.request(node.now, op="shutdown", channel=CHANNEL, drop=False)
    for message in drain(node.creator.session):
        node.broker.message("creator", message, node.now)
    flying += [message for peer, message in node.broker.output(node.now) if peer == "behind"]

    def fail(*_: object) -> Any:
        raise OSError("spoiled")

    monkeypatch.setattr("fiberq.protocol.device.body", fail)
    for message in flying:
        client.message(message, node.now)
    reader = client.readers[CHANNEL]
    reader.waiting = 0
    while reader.take(1):
        pass
    client.session.out.clear()
    reader.progress(client.session, node.now)
    _send_without_acknowledgement(node, client)
    client.session.ack_at = node.now
    node.settle()
    assert reader.ended == "drained"


def test_a_process_that_was_kept_from_running_gives_nothing_back_at_once() -> None:
    """Its thread that looks may run before the one that is about to get."""
    node = Node("pull")
    client = node.client("late", "r")
    _cross_a_cancel(node, client)
    reader = client.readers[CHANNEL]
    for _ in range(LATE_LOOKS):
        node.now += 1.0
        assert client.idle(node.now)
        assert not reader.giving
    node.now += 1.0
    assert not client.idle(node.now)
    assert reader.giving


@pytest.mark.parametrize(("trip", "patience"), [(0.001, IDLE), (0.1, 0.1), (9.0, LONGEST_LAG)])
def test_items_go_back_unread_when_a_caller_would_have_come_by_now(trip: float, patience: float) -> None:
    node = Node("pull")
    client = node.client("late", "r")
    _cross_a_cancel(node, client)
    client.session._newest_trip = trip
    reader, start = client.readers[CHANNEL], node.now
    while not reader.giving:
        assert node.now < start + patience + 2 * IDLE
        node.now += IDLE / 2
        client.idle(node.now)
    assert node.now >= start + patience


def test_an_item_that_crossed_a_cancel_is_recalled_if_another_waits() -> None:
    node = Node("pull")
    client, other = node.client("late", "r"), node.client("other", "r")
    _cross_a_cancel(node, client)
    node.ask(other)
    node.settle()
    for _ in range(20):
        node.now += RECALL_AFTER / 10
        node.settle()
    assert other.readers[CHANNEL].take(1) == (0, b"item")


def test_the_time_to_a_recall_begins_when_the_items_are_acknowledged() -> None:
    node = Node("pull")
    crowded, other = node.client("crowded", "r"), node.client("other", "r")
    crowded.readers[CHANNEL]._ahead = 8
    node.put(node.creator, b"1", b"2", b"3")
    node.ask(crowded)
    node.settle()
    del node.clients["crowded"]  # it gets no processor
    node.ask(other)
    node.settle()
    device = node.broker._channels.known[CHANNEL].device
    assert device.alarm == pytest.approx(node.now + UNSEEN + RECALL_AFTER)
    node.now += 2 * RECALL_AFTER
    node.clients["crowded"] = crowded  # now it does
    node.settle()
    lag = node.broker._members["crowded"].lag
    assert lag > 0
    assert device.alarm == pytest.approx(node.now + RECALL_AFTER + (RECALL_LATER - 1) * lag)


def test_items_of_a_reader_that_is_away_are_its_own_until_its_grace_ends() -> None:
    node = Node("pull", session_grace=2.0)
    client, other = node.client("away", "r"), node.client("other", "r")
    client.readers[CHANNEL].waiting = 3
    client.readers[CHANNEL].ask(client.session, node.now)
    node.settle()
    node.put(node.creator, b"a", b"b")
    client.readers[CHANNEL].waiting = 0
    client.readers[CHANNEL].cancel(client.session, node.now)
    node.settle()
    node.broker.lost("away", node.now)
    del node.clients["away"]
    node.ask(other)
    for _ in range(15):
        node.now += 0.1
        node.settle()
    assert not other.readers[CHANNEL].ready
    node.now += 1.0
    node.settle()
    assert [item for _, item in other.readers[CHANNEL].ready] == [b"a"]


def test_a_second_thread_that_comes_while_the_first_waits_upsets_nothing() -> None:
    node = Node("pull")
    client = node.client("reader", "r")
    node.put(node.creator, b"a")
    assert node.get(client) == b"a"
    reader = client.readers[CHANNEL]
    assert reader.take(1) is None
    assert reader.take(2) is None
    reader.waiting = 2
    reader.ask(client.session, node.now)
    node.settle()
    assert node.qsize() == node.broker.memory.bytes == 0


def test_a_process_that_breaks_the_protocol_is_cut_off_alone() -> None:
    node = Node("pull")
    bad = node.client("bad", "r")
    bad.session.send(Frame(REQUEST, 0, (b"not JSON",)), node.now)
    with pytest.raises(NodeError, match="refused"):
        node.settle()
    del node.clients["bad"]
    node.put(node.creator, b"item")
    assert node.get(node.creator) == b"item"


def test_what_was_put_leaves_before_the_news_that_its_cause_is_finished() -> None:
    node = Node("pull")
    worker, other = node.client("worker", "rw", grace=False), node.client("other", "r")
    node.put(node.creator, b"task")
    assert node.get(worker) == b"task"
    for _ in range(10):  # more than may be under way: the last of them gather
        worker.writers[CHANNEL].items.append(b"result")
        worker.pump(worker.writers[CHANNEL], node.now)
    assert worker.writers[CHANNEL].items
    worker.readers[CHANNEL].finish(1)
    node.ask(worker)
    for message in drain(worker.session):
        node.broker.message("worker", message, node.now)
    del node.clients["worker"]
    node.broker.lost("worker", node.now)
    node.settle()
    assert [node.get(other) for _ in range(11)].count(b"result") == 10


def test_a_result_leaves_before_the_news_that_its_cause_is_finished_where_older_news_still_waits() -> None:
    node = Node("pull")
    worker = node.client("worker", "rw")
    node.put(node.creator, b"task")
    assert node.get(worker) == b"task"
    while worker.session.busy < WINDOW:  # the node is slow: nothing leaves any more
        worker.tell(node.now, op="landed", token="any")
    reader, writer = worker.readers[CHANNEL], worker.writers[CHANNEL]
    reader.progress(worker.session, node.now)
    writer.items.append(b"result")
    worker.pump(writer, node.now)
    reader.finish(1)
    node.ask(worker)
    kinds = [frame.kind for frame in worker.session.waiting]
    assert kinds[-1] == READY
    assert kinds.index(PUT) < len(kinds) - 1
    assert worker.session.waiting[kinds.index(READY)].body != worker.session.waiting[-1].body


def test_a_process_that_was_quiet_is_not_dead_because_it_does_not_answer_at_once() -> None:
    node = Node("pull", session_timeout=30.0)
    client = node.client("quiet", "r")
    node.ask(client)
    node.settle()
    node.now += 100.0
    node.put_on_its_way(b"item")
    node.now += 29.0
    node.broker.output(node.now)
    for message in node.flying:
        client.message(message, node.now)
    node.settle()
    assert node.get(client) == b"item"
    node.ask(client)
    node.settle()
    node.put_on_its_way(b"another")
    node.now += 31.0
    node.broker.output(node.now)
    device = node.broker.device(CHANNEL)
    assert device is not None
    assert not device.readers


def test_a_forked_child_can_let_go_before_its_parent_has_announced_it() -> None:
    node = Node("pipe")
    child = node.client("child", "")
    child.request(node.now, op="inherit", token="token", holds=[[CHANNEL, "r"], [CHANNEL, "w"]])
    child.release(CHANNEL, "w", node.now)
    node.settle()
    node.creator.tell(node.now, op="flight", token="token", holds=[[CHANNEL, "r"], [CHANNEL, "w"]])
    node.creator.release(CHANNEL, "rw", node.now)
    child.readers[CHANNEL] = Reader(CHANNEL, Kind("pipe"))
    node.ask(child)
    node.settle()
    assert child.readers[CHANNEL].ended == "eof"


def test_a_caller_waits_no_longer_because_another_was_woken_slowly() -> None:
    node = Node("pull")
    client = node.client("two threads", "r")
    reader, session = client.readers[CHANNEL], client.session
    reader._ahead = 8  # its callers were quick so far
    reader.waiting = 2
    reader.ask(session, node.now)
    node.settle()
    node.put(node.creator, b"a", b"b")
    assert reader.take(1)
    reader.waiting = 1  # the other caller was woken, too, but has not run yet
    reader.progress(session, node.now)
    node.settle()
    assert reader.take(2)
    reader.waiting = 0
    assert not reader.take(1)
    reader.waiting = 1
    reader.ask(session, node.now)
    node.settle()
    node.put(node.creator, b"late")
    assert reader.take(1)


def test_a_reader_that_gives_back_to_a_queue_that_is_gone_is_told_so() -> None:
    node = Node("pull")
    client = node.client("reader", "r")
    node.put(node.creator, b"a", b"b")
    assert node.get(client) == b"a"
    del node.broker._channels.known[CHANNEL]
    client.give_back(CHANNEL, node.now)
    assert client.giving
    node.settle()
    assert not client.giving
    assert client.readers[CHANNEL].ended == "gone"


def _send_up(node: Node, client: Client) -> list[tuple[object, Message]]:
    """Let what this client sends arrive; return what the node sends then, which is on its way."""
    peer = next(peer for peer, each in node.clients.items() if each is client)
    for message in drain(client.session):
        node.broker.message(peer, message, node.now)
    return node.broker.output(node.now)


def test_what_comes_back_after_an_immediate_shutdown_is_finished() -> None:
    node = Node("joinable")
    client = node.client("reader", "rw")
    reader = client.readers[CHANNEL]
    reader._ahead = 8
    node.put(node.creator, b"1", b"2", b"3", b"4")
    node.ask(client)
    node.settle()
    assert len(reader.ready) == 4
    reader.waiting = 0
    reader.take("a thread")
    reader.progress(client.session, node.now)
    node.settle()
    reader.give_back(client.session, node.now)
    for peer, message in _send_up(node, client):
        node.clients[peer].message(message, node.now)  # the recall; what goes back is on its way
    node.creator.request(node.now, op="shutdown", channel=CHANNEL, drop=True)
    _send_up(node, node.creator)
    node.settle()
    reader.done("a thread")
    reader.progress(client.session, node.now)
    node.settle()
    device = node.broker.device(CHANNEL)
    assert device is not None
    assert device.unfinished == 0


def test_a_task_that_nobody_does_after_an_immediate_shutdown_is_finished() -> None:
    node = Node("joinable")
    client = node.client("reader", "rw")
    node.put(node.creator, b"1")
    assert node.get(client) == b"1"
    client.readers[CHANNEL].progress(client.session, node.now)
    node.settle()
    node.creator.request(node.now, op="shutdown", channel=CHANNEL, drop=True)
    node.settle()
    client.goodbye(node.now)
    node.settle()
    device = node.broker.device(CHANNEL)
    assert device is not None
    assert device.unfinished == 0


def test_a_reader_that_is_recalled_for_one_that_does_not_want_to_wait_gets_items_in_order() -> None:
    node = Node("pull")
    client, other = node.client("reader", "rw"), node.client("other", "rw")
    reader = client.readers[CHANNEL]
    reader._ahead = 8
    node.put(node.creator, *(b"%d" % number for number in range(1, 9)))
    node.ask(client)
    node.settle()
    got = []

    def take() -> None:
        reader.waiting = 0
        item = reader.take("a thread")
        assert item is not None
        got.append(int(bytes(item[1])))  # type: ignore[arg-type]

    for _ in range(5):
        take()
    reader._ahead = 8
    node.ask(other)
    other.request(node.now, op="stat", channel=CHANNEL, **{"for": "item"})
    to_reader = [message for peer, message in _send_up(node, other) if node.clients[peer] is client]
    reader.ask_ahead(client.session, node.now)  # before the recall is there
    node.creator.writers[CHANNEL].items.extend(b"%d" % number for number in range(9, 15))
    node.creator.pump(node.creator.writers[CHANNEL], node.now)
    _send_up(node, node.creator)
    to_reader += [message for peer, message in _send_up(node, client) if node.clients[peer] is client]
    for message in to_reader:
        client.message(message, node.now)
    node.settle()
    while reader.ready:
        take()
    for _ in range(5):
        node.ask(client)
        node.settle()
        while reader.ready:
            take()
    assert got == sorted(got)


def test_a_late_report_of_a_reader_that_has_let_go_attaches_nobody() -> None:
    node = Node("push")
    client = node.client("reader", "rw")
    reader = client.readers[CHANNEL]
    node.ask(client)
    node.settle()
    client.release(CHANNEL, "r", node.now)
    reader._left = False
    reader.progress(client.session, node.now)
    node.settle()
    device = node.broker.device(CHANNEL)
    assert device is not None
    assert not device.readers


def test_who_puts_without_a_slot_leaves_no_trace() -> None:
    node = Node("pull")
    node.creator.request(node.now, op="create", channel=100, kind=Kind("pull", 5))
    node.settle()
    stranger = node.client("stranger", "rw")
    stranger.request(node.now, op="open", holds=[[100, "rw"]])
    node.settle()
    stranger.session.send(Frame(PUT, 100, pack_items(b"\1\0\0\0", (b"x",))), node.now)
    with pytest.raises(NodeError, match="without a slot"):
        node.settle()
    slots = node.broker._channels.known[100].device.slots
    assert slots is not None
    assert not slots.putters


def test_what_a_process_asks_again_and_again_does_not_grow_the_node() -> None:
    node = Node("pull")
    asker, silent = node.client("asker", "rw"), node.client("silent", "rw")
    silent.readers[CHANNEL]._ahead = 8
    node.put(node.creator, *[b"x"] * 10)
    node.ask(silent)
    node.settle()
    del node.clients["silent"]
    for _ in range(1000):
        asker.request(node.now, op="stat", channel=CHANNEL)
        node.settle()
    assert len(node.broker._surveys.running) <= 64


def test_a_task_that_was_given_to_another_meanwhile_is_known_when_it_is_reported_done() -> None:
    node = Node("joinable")
    client, other = node.client("stopped", "rw"), node.client("other", "r")
    reader = client.readers[CHANNEL]
    reader._ahead = 8
    node.put(node.creator, b"1", b"2", b"3")
    node.ask(client)
    node.settle()
    reader.waiting = 0
    assert [reader.take("a thread"), reader.take("a thread")] == [(0, b"1"), (1, b"2")]
    del node.clients["stopped"]  # it is stopped before it can tell that it has started the second
    node.ask(other)
    node.settle()
    for seconds in (UNSEEN + RECALL_AFTER, RECALL_PATIENCE):
        node.now += seconds
        node.settle()
    assert other.readers[CHANNEL].take(1) == (0, b"2")
    node.clients["stopped"] = client
    for _ in range(2):  # what was not acknowledged is sent again: the first, and then the others
        node.now += 2.0
        node.settle()
    assert [reader.done("a thread"), reader.done("a thread")] == [0, 1]
    assert reader.lost == {1}
    assert not reader.ready


def test_what_was_put_while_a_lease_was_held_leaves_before_its_end_is_told() -> None:
    node = Node("pull")
    client = node.client("reader", "rw")
    for name in ("one", "two", "three"):  # more are under way than a lone item may overtake
        node.put(node.creator, name.encode())
    holder = Holder()
    reader, writer = client.readers[CHANNEL], client.writers[CHANNEL]
    node.ask(client)
    node.settle()
    number, _ = reader.take(holder) or (None, None)
    writer.items.append(b"a result")
    request = client.about_lease(node.now, channel=CHANNEL, item=number, what="finish")
    kinds = [decode(message).kind for message in drain(client.session)]
    assert kinds.index(PUT) < kinds.index(REQUEST)
    node.now += 2.0
    node.settle()
    assert request.answer is not None
    assert request.answer["held"] is True
    again = client.about_lease(node.now, channel=CHANNEL, item=number, what="give back", why="too late")
    node.settle()
    assert again.answer is not None
    assert again.answer["held"] is False


@pytest.mark.parametrize("way", ["release", "goodbye"])
def test_a_lease_that_is_not_ended_goes_back_with_its_process(way: str) -> None:
    node = Node("pull")
    client = node.client("leaves", "r")
    node.put(node.creator, b"item")
    node.ask(client)
    node.settle()
    assert client.readers[CHANNEL].take(Holder()) == (0, b"item")
    client.readers[CHANNEL].waiting = 0
    _leave(node, client, way)
    node.settle()
    other = node.client("next", "r")
    assert node.get(other) == b"item"
    assert other.readers[CHANNEL].earlier == {0: 1}
    other.readers[CHANNEL]._prune_at = 1
    other.readers[CHANNEL].finish(1)
    other.readers[CHANNEL].progress(other.session, node.now)
    assert not other.readers[CHANNEL].earlier


def test_a_stranger_is_asked_for_its_hello_once_in_a_while() -> None:
    node = Node("pull")
    stranger = Client("stranger", False)
    stranger.session.send_aside(Frame(READY))
    (message,) = drain(stranger.session)
    answers = []
    for number in range(2000):
        node.now += ASK_AGAIN if number == 1000 else 0.0
        node.broker.message("stranger", message, node.now)
        answers += [number for peer, _ in node.broker.output(node.now) if peer == "stranger"]
    assert answers == [0, 1000]
    node.broker.lost("stranger", node.now)
    assert not node.broker._strangers.known


def test_what_was_in_flight_in_the_items_of_a_dead_process_ends_with_it() -> None:
    """At once: a node to which nothing happens any more does not look again."""
    node = Node("pull")
    outer, inner = CHANNEL + 1, CHANNEL + 2
    dies, sends = node.client("dies", "r"), node.client("sends", "r")
    dies.request(node.now, op="create", channel=outer, kind=Kind("pull"))
    sends.request(node.now, op="create", channel=inner, kind=Kind("pull"))
    node.settle()
    sends.tell(node.now, op="flight", token="in an item", holds=[[inner, "rw"]], within=outer)
    sends.release(inner, "rw", node.now)
    node.settle()
    assert inner in node.broker._channels.known
    del node.clients["dies"]
    node.broker.lost("dies", node.now)
    node.now += 2.5  # session_grace is over
    node.broker.output(node.now)
    assert not {outer, inner} & set(node.broker._channels.known)


def test_what_is_finished_by_a_get_that_finds_the_end_is_told() -> None:
    node = Node("pull")
    client = node.client("reader", "r")
    reader = client.readers[CHANNEL]
    node.put(node.creator, b"item")
    assert node.get(client) == b"item"

    def look() -> None:
        node.now += 2 * IDLE
        client.idle(node.now)
        node.settle()

    look()
    node.creator.request(node.now, op="shutdown", channel=CHANNEL, drop=False)
    node.settle()
    device = node.broker.device(CHANNEL)
    assert device is not None
    assert device.unfinished, "it is held"
    assert reader.ended == "drained"
    assert reader.take(1) is None
    look()
    assert not device.unfinished


def test_what_comes_with_the_item_that_a_caller_waited_for_is_not_given_back() -> None:
    """Over a slow line a caller waits for longer than `IDLE`; then it is there."""
    node = Node("pull")
    client = node.client("far", "r")
    reader = client.readers[CHANNEL]
    node.put(node.creator, b"0")
    assert node.get(client) == b"0"
    node.put(node.creator, *(b"%d" % number for number in range(1, 40)))
    for number in range(1, 30):
        got = reader.take(1)
        if got is None:
            node.ask(client)
            node.now += 10 * IDLE
            node.settle()
            reader.waiting = 0
            got = reader.take(1)
            reader.arrived(node.now)
        elif len(reader.ready) < reader.low:
            reader.ask_ahead(client.session, node.now)
        assert got == (number, b"%d" % number)
        client.idle(node.now)
        assert not reader.giving


@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
@pytest.mark.parametrize("way", ["goodbye", "killed", "stays"])
def test_whose_memory_was_shared_is_not_remembered_when_he_is_gone(way: str) -> None:
    vault, pool = make_vault(10), Pool()
    assert vault is not None
    node = Node("pull", vault=vault)
    lender, reader = node.client("lender", "w"), node.client("reader", "r")
    used: list[int] = []
    lender.used = used.append
    for client in (lender, reader):
        proof = prove(*client.memory, client.name)
        client.request(node.now, op="near", pid=os.getpid(), descriptor=proof.descriptor)
        node.settle()
    reader.readers[CHANNEL].borrow = lambda each, _: fetch(os.getpid(), each, Opened(), lambda: ())
    shared = [pool.share((b"%d" % number,), 0.0) for number in range(3)]
    assert all(shared)
    node.put(lender, *filter(None, shared))
    if way == "killed":
        node.kill("lender")
    elif way == "goodbye":
        lender.goodbye(node.now)
        node.settle()
        del node.clients["lender"]
        node.broker.lost("lender", node.now)
    for number in range(3):
        assert node.get(reader) == [b"%d" % number]
    reader.goodbye(node.now)
    node.settle()
    assert vault.held == 0
    node.now += 1.0
    node.settle()
    assert not vault.ended
    assert used == ([1, 2, 3] if way == "stays" else [])


def test_who_takes_nothing_from_a_bounded_queue_reports_no_more_and_gives_back() -> None:
    kind = Kind("pull", maxsize=10)
    node = Node("pull")
    node.creator.request(node.now, op="create", channel=CHANNEL + 1, kind=kind)
    node.settle()
    reader = Reader(CHANNEL + 1, kind)
    client = node.client("reader", "r")
    client.request(node.now, op="open", holds=[[CHANNEL + 1, "r"]])
    client.readers[CHANNEL + 1] = reader
    writer = Writer(CHANNEL + 1, kind)
    node.creator.writers[CHANNEL + 1] = writer
    assert writer.permits is not None
    writer.permits.waiting = 5
    writer.permits.ask(node.creator.session, node.now, 5)
    node.settle()
    for number in range(3):
        assert writer.permits.take()
        writer.items.append(b"%d" % number)
    writer.permits.waiting = 0
    node.creator.pump(writer, node.now)
    reader.waiting = 3
    reader.ask(client.session, node.now)
    node.settle()
    reader.waiting = 0
    assert reader.take(1) == (0, b"0")
    reader.progress_later(client.session, node.now)  # as every caller does
    told = []
    for _ in range(200):
        node.now += 0.005
        client.session.tick(node.now)
        told += drain(client.session)
        client.idle(node.now)
    kinds = [decode(message).kind for message in told]
    assert kinds.count(READY) <= 3
    assert reader.giving
