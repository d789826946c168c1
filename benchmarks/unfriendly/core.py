"""Mutated frames through the protocol's core, without a socket: the node's side, and a client's.

The attacker has the right to one queue, as reader, writer, or both. It must never read, or write, an item of another
one, and whatever it sends must end in an answer or a refusal.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.unfriendly.mutations import Source
from fiberq.access import Authority, Keys, Right
from fiberq.errors import FiberqError
from fiberq.protocol import frames
from fiberq.protocol.broker import Broker
from fiberq.protocol.client import Client
from fiberq.protocol.frames import Frame, encode, pack_items
from fiberq.protocol.kinds import Kind
from fiberq.protocol.reader import Reader
from fiberq.protocol.session import drain
from fiberq.protocol.writer import Writer

SECRET = b"an item that is none of its business"
OTHERS, MINE, BOUNDED = 16, 17, 18
NAMES = {OTHERS: "others", MINE: "mine", BOUNDED: "bounded"}
RIGHTS = ("rw", "rw", "rw", "r", "w", "")
LIFE = 200
"""Mutated frames of one session, if it is not cut off before."""


class Fuzzed(NamedTuple):
    frames: int
    """Those that were damaged."""
    sessions: int
    refused: int
    """Messages that the other end did not understand, or that were a breach."""


class Breach(AssertionError):
    """The attacker got somewhere; the message says how to see it again."""


def fuzz_node(count: int, seed: int, advance: Callable[[int], object] = int) -> Fuzzed:
    """Let attackers send `count` mutated frames to a broker. Raises `Breach`, or whatever the broker raised."""
    rng = random.Random(seed)
    keys = Keys(b"s" * 32, b"t" * 32)
    authority = Authority(keys)
    now = 0.0
    broker = Broker("node", authority=authority, max_bytes=1 << 20)
    owner = Client("owner", grace=True, token=authority.sign(Right()))
    owner.hello()
    _exchange(broker, owner, now)
    for number, name in NAMES.items():
        kind = Kind("pull", 3 if number == BOUNDED else 0)
        owner.request(now, op="create", channel=number, kind=kind, name=name)
    owner.session.send(Frame(frames.PUT, OTHERS, pack_items(len(SECRET).to_bytes(4, "little"), (SECRET,))), now)
    _exchange(broker, owner, now)
    others = broker._channels.known[OTHERS].device
    logging.getLogger("fiberq.node").setLevel(logging.ERROR)
    sent = sessions = 0
    while sent < count:
        sessions += 1
        peer = f"attacker {sessions}"
        right = Right((("mine", rng.choice(RIGHTS)), ("bounded", rng.choice(RIGHTS))), 0, 7)
        source = Source((*[MINE] * 12, *NAMES, frames.DEFAULT_CHANNEL, 99), [*NAMES.values(), "new"], rng)
        beginning = source.beginning(authority.sign(right))
        for message in beginning:
            broker.message(peer, message, now)
        for seq in range(len(beginning), len(beginning) + LIFE):
            broker.message(peer, source.mutated(seq, 0), now)
            refused = False
            if rng.random() < 0.3:
                now += rng.choice((0.0, 0.001, 0.01, 0.3))
                for to, parts in broker.output(now):
                    if to == peer:
                        refused |= frames.decode(parts).kind == frames.REFUSED
                        if any(SECRET in bytes(part) for part in parts):
                            raise Breach(f"seed {seed}, frame {sent}: an attacker was sent another queue's item")
                    elif to == "owner":
                        owner.message(parts, now)
                broker.drops()
                if not broker.due() >= 0:  # or it is no number
                    raise Breach(f"seed {seed}, frame {sent}: the node does not know when to wake")
            if refused:
                break
        broker.lost(peer, now)
        sent += source.damaged
        if (others.accepted, others.finished, others.qsize(), len(others.readers)) != (1, 0, 1, 0):
            raise Breach(f"seed {seed}, frame {sent}: another queue is not what it was")
        if set(broker._channels.known) != {*NAMES, frames.DEFAULT_CHANNEL}:
            raise Breach(f"seed {seed}, frame {sent}: there are other queues than before")
        asked = owner.request(now, op="stat", channel=OTHERS)
        _exchange(broker, owner, now)
        if asked.answer is None or asked.answer["qsize"] != 1:
            raise Breach(f"seed {seed}, frame {sent}: the node does not answer its owner")
        if sessions % 20 == 0:
            owner.tell(now, op="purge", channel=MINE)
            owner.tell(now, op="purge", channel=BOUNDED)
            advance(sent)
    kept = len(broker._members), len(broker._by_peer), len(broker._strangers.known), len(broker._strangers.greetings)
    if kept != (1, 1, 0, 1):
        raise Breach(f"seed {seed}: the node keeps something of those who went: {kept}")
    return Fuzzed(sent, sessions, broker.garbage)


def fuzz_client(count: int, seed: int) -> Fuzzed:
    """Let a node that is none send `count` mutated frames to clients: each takes it, or raises a `FiberqError`."""
    rng = random.Random(seed)
    sent = sessions = refused = 0
    while sent < count:
        sessions += 1
        client = Client("client", grace=True)
        client.hello()
        welcome = {"node": "n", "received": 0, "max_bytes": 1000}
        client.message(encode(Frame(frames.WELCOME, 0, frames.pack_json(welcome)), 0, 0, 0), 0.0)
        for number in NAMES:
            kind = client.kinds[number] = Kind("pull", 3 if number == BOUNDED else 0)
            client.readers[number], client.writers[number] = Reader(number, kind), Writer(number, kind)
        client.request(0.0, op="stat", channel=MINE)
        source = Source(list(NAMES), ["mine"], rng)
        now = 0.0
        for seq in range(1, LIFE):
            try:
                client.message(source.mutated(seq, rng.choice((0, 1))), now)
            except FiberqError:
                refused += 1
                break
            now += 0.001
            client.session.tick(now)
            drain(client.session)
        sent += source.damaged
    return Fuzzed(sent, sessions, refused)


def _exchange(broker: Broker, client: Client, now: float) -> None:
    """Pass messages between the two until there are none."""
    while client.session.out:
        for message in drain(client.session):
            broker.message("owner", message, now)
        for peer, parts in broker.output(now):
            if peer == "owner":
                client.message(parts, now)
        client.session.tick(now)
