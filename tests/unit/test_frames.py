"""Frames: what is packed is read back, and what cannot be read raises `ProtocolError` and nothing else."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberq.access import Authority, Right, make_keys
from fiberq.errors import NodeError, ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.broker import Broker
from fiberq.protocol.client import Client
from fiberq.protocol.frames import Frame, Ready, Want, decode, encode
from fiberq.protocol.session import drain

settings.register_profile("steady", deadline=None)  # a loaded machine is no failure
settings.load_profile("steady")

U64 = st.integers(0, 2**64 - 1)
BYTES = st.binary(max_size=40)
READERS: list[Callable[[memoryview], Any]] = [
    frames.read_json,
    frames.read_ready,
    frames.read_ranges,
    frames.read_want,
    frames.read_grant,
    frames.read_survey,
    lambda body: frames.read_items(body, ()),
    lambda body: frames.read_items(body, (b"part",)),
    lambda body: frames.read_deliver(body, ()),
]


def _body(pieces: Any) -> memoryview:
    return memoryview(b"".join(pieces))


@given(st.sampled_from([*range(1, 11), *range(16, 26)]), st.integers(0, 255), U64, U64, U64, BYTES)
def test_a_header_is_read_back(kind: int, flags: int, seq: int, ack: int, channel: int, body: bytes) -> None:
    received = decode(encode(Frame(kind, channel, (body, body), (b"a", b"b")), flags, seq, ack))
    assert received[:5] == (kind, flags, seq, ack, channel)
    assert bytes(received.body) == body * 2
    assert list(received.parts) == [b"a", b"b"]


@given(st.lists(BYTES, min_size=1, max_size=10), U64, st.integers(0, 255), st.booleans())
def test_items_are_read_back(items: list[bytes], first: int, deliveries: int, others: bool) -> None:
    packed = frames.pack_items(array("I", map(len, items)).tobytes(), items)
    assert frames.split(frames.read_items(_body(packed), ())) == items
    *told, read = frames.read_deliver(_body(frames.pack_deliver(first, deliveries, others, packed)), ())
    assert (told, frames.split(read)) == ([first, deliveries, others], items)


@given(st.lists(BYTES, min_size=1, max_size=3))
def test_a_large_item_is_read_back(parts: list[bytes]) -> None:
    assert frames.read_items(_body(frames.pack_items(b"", ())), parts).parts == parts


@given(U64, U64, st.integers(0, 70_000), st.sets(U64, max_size=9).map(sorted))
def test_a_readers_report_is_read_back(limit: int, started: int, waiting: int, ends: list[int]) -> None:
    held = list(zip(ends[::2], ends[1::2], strict=False))
    read = frames.read_ready(_body(frames.pack_ready(Ready(limit, started, waiting, held))))
    assert (*read[:3], list(read.held)) == (limit, started, min(waiting, 0xFFFF), held)


@given(st.lists(st.tuples(U64, U64), max_size=9))
def test_ranges_are_read_back(ranges: list[tuple[int, int]]) -> None:
    assert frames.read_ranges(_body(frames.pack_ranges(ranges))) == ranges


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=50)
@given(body=st.binary(max_size=60))
def test_a_body_that_cannot_be_read_raises_protocol_error_alone(read: Callable[[Any], Any], body: bytes) -> None:
    try:
        read(memoryview(body))
    except ProtocolError:
        pass


@pytest.mark.parametrize("count", [1, 2, 1000, 2**32 - 1])
def test_a_count_that_exceeds_the_body_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError):
        frames.read_items(memoryview(count.to_bytes(4, "little") + b"\1\0\0"), ())


def test_a_report_that_names_an_item_twice_is_refused() -> None:
    with pytest.raises(ProtocolError):
        frames.read_ready(_body(frames.pack_ready(Ready(9, 5, 0, ((2, 4), (3, 5))))))


# -- the node, whatever it is sent --

_REQUEST = st.fixed_dictionaries(
    {
        "op": st.sampled_from(
            ["create", "open", "flight", "inherit", "stat", "join", "shutdown", "surveyed", "forget", "nothing"]
        )
    },
    optional={
        "id": st.one_of(st.integers(), st.text(max_size=3)),
        "channel": st.one_of(st.integers(-1, 4), st.just(2**64), st.just(float("inf")), st.text(max_size=2)),
        "kind": st.sampled_from(
            [["pull"], ["pull", 2], ["push", 0], ["pipe"], ["pipe", 3], ["joinable", 1], ["other"], 7]
        ),
        "name": st.sampled_from([None, "a", 3]),
        "for": st.sampled_from([None, "item", "slot"]),
        "drop": st.booleans(),
        "survey": st.integers(0, 3),
        "request": st.integers(0, 3),
        "token": st.one_of(st.none(), st.sampled_from(["a", "b"])),
        "holds": st.one_of(st.integers(), st.lists(st.tuples(st.integers(-1, 4), st.sampled_from(["r", "w", "x"])))),
        "fork": st.booleans(),
    },
)
_BODIES = st.one_of(
    st.binary(max_size=30),
    _REQUEST.map(lambda request: json.dumps(request).encode()),
    st.lists(BYTES, min_size=1, max_size=5).map(
        lambda items: b"".join(frames.pack_items(array("I", map(len, items)).tobytes(), items))
    ),
    st.builds(
        lambda limit, started, waiting: b"".join(frames.pack_ready(Ready(limit, started, waiting))),
        st.one_of(st.integers(0, 20), U64),
        st.one_of(st.integers(0, 20), U64),
        st.integers(0, 3),
    ),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))).map(lambda ranges: b"".join(frames.pack_ranges(ranges))),
    st.sampled_from([b"r", b"w", b"rw", b"\xff"]),
    st.builds(
        lambda seen, returned, ahead, waiting: frames.pack_want(Want(seen, returned, ahead, waiting))[0],
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
)
_FRAMES = st.tuples(
    st.sampled_from([*range(1, 11), *range(16, 26)]), st.integers(0, 4), _BODIES, st.lists(BYTES, max_size=2)
)


def _exchange(broker: Broker, client: Client, now: float) -> None:
    """Carry messages between the node and `client`; what it sends to others is lost."""
    while client.session.out:
        for message in drain(client.session):
            broker.message(client.name, message, now)
        for peer, message in broker.output(now):
            if peer == client.name:
                client.message(message, now)


def _greeted(broker: Broker, name: str) -> Client:
    client = Client(name, grace=True)
    client.hello()
    _exchange(broker, client, 0.0)
    assert client.welcomed
    return client


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(["known", "stranger"]), _FRAMES, st.integers(0, 3), st.integers(0, 60)), max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_no_message_upsets_the_node(sent: list[Any], random: Any) -> None:
    broker = Broker("node")
    witness = _greeted(broker, "witness")
    _greeted(broker, "known")
    made = witness.request(0.0, op="create", channel=3, kind=["pull"])
    _exchange(broker, witness, 0.0)
    assert made.answer == {"id": 1, "channel": 3, "shut": False}
    for number, (peer, (kind, channel, body, parts), damage, place) in enumerate(sent):
        frame = Frame(kind, channel, (body,), parts)
        message = [*encode(frame, random.randint(0, 3), random.choice((0, number + 1)), 0)]
        if damage == 1:
            head = bytearray(message[0])
            head[place % len(head)] ^= 1 << random.randint(0, 7)
            message[0] = bytes(head)
        elif damage == 2:
            message[0] = message[0][:place]
        broker.message(peer, message, 0.001 * number)
        broker.output(0.001 * number)
    broker.lost("known", 1.0)
    broker.lost("stranger", 1.0)
    broker.output(5.0)
    stat = witness.request(5.0, op="stat", channel=3)
    _exchange(broker, witness, 5.0)
    assert stat.answer is not None
    assert "qsize" in stat.answer


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"op": "nothing"},
        {"op": []},
        {"op": "create", "channel": float("inf"), "kind": "pull"},
        {"op": "create", "channel": 2**64, "kind": "pull"},
        {"op": "create", "channel": 0, "kind": "pull"},
        {"op": "create", "channel": 9, "kind": "other"},
        {"op": "open", "holds": 5},
        {"op": "open", "holds": [[1]]},
        {"op": "flight", "holds": []},
        {"op": "stat", "channel": None},
    ],
)
def test_a_request_that_cannot_be_read_ends_the_process_that_sent_it_alone(question: dict[str, Any]) -> None:
    broker = Broker("node")
    witness, client = _greeted(broker, "witness"), _greeted(broker, "client")
    client.request(0.0, **question)
    with pytest.raises(NodeError, match="refused"):
        _exchange(broker, client, 0.0)
    made = witness.request(0.0, op="create", channel=3, kind=["pull"])
    _exchange(broker, witness, 0.0)
    assert made.answer == {"id": 1, "channel": 3, "shut": False}


def test_a_connection_cannot_change_its_session() -> None:
    broker = Broker("node")
    witness, client = _greeted(broker, "witness"), _greeted(broker, "client")
    other = Client("other", grace=True)
    other.hello()
    broker.message("client", drain(other.session)[0], 0.0)
    (answer,) = broker.output(0.0)
    assert decode(answer[1]).kind == frames.REFUSED
    assert answer[0] == client.name
    made = witness.request(0.0, op="create", channel=3, kind=["pull"])
    _exchange(broker, witness, 0.0)
    assert made.answer == {"id": 1, "channel": 3, "shut": False}


def test_a_client_writes_no_lines_of_its_own_into_logs_and_tables(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    broker = Broker("node", authority=Authority(make_keys()))
    for token in (b"", broker_token(broker)):  # who is refused, and who comes
        client = Client("one", grace=True, token=token)
        client.hello()
        hello = {**frames.read_json(decode(drain(client.session)[0]).body), "host": "h\nprocess 1 came\x1b[2J"}
        broker.message("peer", encode(Frame(frames.HELLO, 0, frames.pack_json(hello)), 0, 0, 0), 0.0)
    assert [record.getMessage().isprintable() for record in caplog.records] == [True, True]


def broker_token(broker: Broker) -> bytes:
    assert broker._authority is not None
    return broker._authority.sign(Right())


def test_the_node_takes_no_name_that_is_none() -> None:
    broker = Broker("node")
    client = _greeted(broker, "client")
    for name in ("", "a\nb", "00c0ffee00c0ffee"):
        made = client.request(0.0, op="create", channel=3, kind=["pull"], name=name)
        _exchange(broker, client, 0.0)
        assert made.answer is not None
        assert "name must" in made.answer["error"]


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["protocol", "byteorder", "session", "received", "hellos", "resume", "grace", "pid"]),
        st.one_of(st.none(), st.integers(-2, 2**70), st.text(max_size=3), st.just([])),
    )
)
def test_no_hello_upsets_the_node(changes: dict[str, Any]) -> None:
    broker = Broker("node")
    for name in ("one", "one", "two"):
        client = Client(name, grace=True)
        client.hello()
        hello = frames.read_json(decode(drain(client.session)[0]).body)
        body = frames.pack_json({**hello, **changes})
        broker.message(name, encode(Frame(frames.HELLO, 0, body), 0, 0, 0), 0.0)
        broker.output(0.0)
    broker.lost("one", 0.0)
    broker.lost("two", 0.0)
    broker.output(100.0)
