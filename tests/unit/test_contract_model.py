"""How an example of the contract's model becomes small, on a transport that is wrong about parts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fiberq_contract.lab import Lab, Wire
from fiberq_contract.model import Failure, Part, Step, fewest, replay, shrink
from fiberq_contract.rules import BrokenRule
from fiberq_stream import StreamTransport

from fiberq.abc import Buffer, Credentials

SHAPE = [Part(size, bytes, 0) for size in (5, 4000, 0, 17)]


class KeepsTwoParts(StreamTransport):
    """What the server sends arrives without the third part and those behind it."""

    def server(self, credentials: Credentials | None = None) -> Any:
        server: Any = super().server(credentials)
        send = server.send

        class Server(type(server)):  # type: ignore[misc]
            def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
                send(peer, parts[:2])

        server.__class__ = Server
        return server


@pytest.fixture
def lab() -> Iterator[Lab]:
    with TemporaryDirectory(prefix="fq") as directory:
        lab = Lab("stream", KeepsTwoParts, Wire("ipc"), directory)
        yield lab
        lab.close()


def example() -> list[Step]:
    steps = [Step("connect", number, {}, "connects") for number in range(1, 7)]
    for number in (3, 5, 1, 6):
        steps.append(Step("send", number, {"shape": SHAPE}, "sends"))
        steps.append(Step("hear", number, {"timeout": 0.001}, "receives"))
        steps.append(Step("receive", None, {"timeout": 0}, "the server receives"))
    steps += [Step("close", 3, {}, "closes"), Step("send_to_the_lost", 3, {"shape": SHAPE}, "sends")]
    steps += [Step("reply", 4, {"shape": SHAPE}, f"sends {SHAPE}"), Step("close", 1, {}, "closes")]
    return [*steps, Step("settle", None, {}, "everything arrives")]


def test_only_what_is_needed_is_left() -> None:
    assert fewest(list(range(22)), lambda some: {3, 17} <= {*some}) == [3, 17]
    assert fewest([1, 2, 3], lambda _: True) == []
    assert fewest([1, 2, 3], lambda some: len(some) == 3) == [1, 2, 3]


def test_steps_whose_client_is_left_out_are_left_out_too_and_the_others_stay_whose_they_were(lab: Lab) -> None:
    failure = replay(lab, [each for each in example() if (each.name, each.client) != ("connect", 3)])
    assert failure is not None
    assert {each.client for each in failure.steps} == {1, 2, 4, 5, 6, None}


def test_an_example_of_many_steps_becomes_one_of_the_three_that_matter(lab: Lab) -> None:
    found = replay(lab, example())
    assert found is not None
    assert len(found.steps) == len(example())
    small = shrink(lab, found)
    assert isinstance(small.error, BrokenRule)
    assert small.error.rules == ("MSG-1",)
    assert [(each.name, each.client) for each in small.steps] == [("connect", 4), ("reply", 4), ("settle", None)]
    assert len(small.steps[1].arguments["shape"]) == 3
    assert small.like(Failure(BrokenRule("MSG-1", "x"), []))
