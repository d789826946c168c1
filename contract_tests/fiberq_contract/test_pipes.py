"""What pipes promise, on the transport."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fiberq.errors import DirectionError

from . import workers
from .lab import PATIENCE, assert_within, eventually, readable
from .queues_lab import SOON, Crew, every_method
from .rules import rule

SIZES = [0, 1, 100, 65_535, 65_536, 65_537, 1_000_000, 8_000_000]


@rule("PIPE-1")
def test_a_one_way_pipe_goes_one_way_only(crew: Crew) -> None:
    r, w = crew.pipe(duplex=False)
    worker = crew.worker(w)
    worker(workers.send_all_and_flush, ["this way"])
    assert workers.receive_some(r, 1) == ["this way"]
    assert worker(workers.name_of_error, "recv") == "DirectionError"
    assert worker(workers.name_of_error, "poll") == "DirectionError"
    with pytest.raises(DirectionError):
        r.send("that way")
    with pytest.raises(OSError, match="read-only"):  # as multiprocessing raises
        r.send("that way")
    worker(workers.send_all_and_flush, ["still this way"])
    assert workers.receive_some(r, 1) == ["still this way"]


@rule("PIPE-2")
def test_messages_of_any_size_arrive_intact_one_by_one(crew: Crew) -> None:
    a, b = crew.pipe()
    worker = crew.worker(b)
    messages = [b"" if size == 0 else b"x" if size == 1 else workers.blob(size, size) for size in SIZES]
    worker.begin(workers.answer_messages, len(messages))
    workers.send_all(a, messages)
    expected = [each for message in messages for each in (workers.digest(message), message)]
    assert workers.receive_some(a, len(expected)) == expected
    worker.result()
    assert not a.poll(0.01)


@rule("PIPE-2")
@every_method
def test_many_messages_arrive_in_order_one_by_one(crew: Crew) -> None:
    a, b = crew.pipe()
    worker = crew.worker(b)
    messages = [b"." * (number % 50) for number in range(5000)]
    worker.begin(workers.send_all, messages)
    assert workers.receive_some(a, len(messages)) == messages
    worker.result()
    assert not a.poll(0.01)


@rule("PIPE-3")
@pytest.mark.parametrize("how", ["closes", "ends", "is killed"])
def test_the_end_comes_after_all_that_was_sent(crew: Crew, how: str) -> None:
    r, w = crew.pipe(duplex=False)
    worker = crew.worker(w)
    w.close()
    messages = [*range(2000), b"large" * 100_000, "last words"]
    worker(workers.send_all_and_flush if how == "is killed" else workers.send_all, messages)
    if how == "closes":
        worker(workers.close)
    elif how == "ends":
        worker.finish()
    else:
        worker.kill()
    assert workers.receive_until_end(r) == messages
    with pytest.raises(EOFError):
        r.recv()


@rule("PIPE-3")
def test_the_end_comes_when_the_last_holder_has_gone_and_not_before(crew: Crew) -> None:
    r, w = crew.pipe(duplex=False)
    victim, closer = crew.workers(2, w)
    for worker in (victim, closer):
        worker(workers.send_all_and_flush, ["here"])
        assert workers.receive_some(r, 1) == ["here"]
    w.close()
    assert not r.poll(0.05)
    closer(workers.close)
    assert not r.poll(0.05)
    victim(workers.send_all_and_flush, ["last words"])
    assert workers.receive_some(r, 1) == ["last words"]
    assert not r.poll(0.05)
    victim.kill()
    assert r.poll(PATIENCE)
    with pytest.raises(EOFError):
        r.recv()


@rule("PIPE-3")
@every_method
def test_the_end_comes_at_once_when_the_last_holder_is_killed(crew: Crew) -> None:
    def measure() -> float:
        a, b = crew.pipe()
        worker = crew.worker(b)
        b.close()
        worker(workers.send_all_and_flush, ["here"])
        assert workers.receive_some(a, 1) == ["here"]
        started = time.monotonic()
        worker.kill()
        assert a.poll(PATIENCE)
        with pytest.raises(EOFError):
            a.recv()
        return time.monotonic() - started

    assert_within(SOON, measure)


@rule("PIPE-4")
@pytest.mark.parametrize("how", ["closes", "is killed"])
def test_sending_to_nobody_raises(crew: Crew, how: str) -> None:
    r, w = crew.pipe(duplex=False)
    reader, other = crew.workers(2, r)
    r.close()
    other(workers.poll, 0.0)
    reader(workers.poll, 0.0)
    other.kill()
    # One of them lives: whoever sends is not told that nobody is left.
    workers.send_all_and_flush(w, range(100))
    assert reader(workers.receive_some, 100) == list(range(100))
    if how == "closes":
        reader(workers.close)
    else:
        reader.kill()

    def broken() -> bool:
        try:
            workers.send_all_and_flush(w, ["is anybody there?"])
        except BrokenPipeError:
            return True
        return False

    eventually(broken, "sending to nobody raises")
    with pytest.raises(BrokenPipeError):
        w.send("nobody is there")


@rule("PIPE-5")
@every_method
def test_each_message_goes_to_one_of_several_receivers(crew: Crew) -> None:
    a, b = crew.pipe()
    receivers = crew.workers(3, b)
    for receiver in receivers:
        receiver.begin(workers.receive_until_none)
    workers.send_all(a, [*range(900), None, None, None])
    got = [number for receiver in receivers for number in receiver.result()]
    assert Counter(got) == Counter(range(900))
    for receiver in receivers:
        receiver.begin(workers.send_all_and_flush, range(300))
    assert Counter(workers.receive_some(a, 900)) == Counter([*range(300)] * 3)
    for receiver in receivers:
        receiver.result()
    assert not a.poll(0.01)


@rule("PIPE-5")
@pytest.mark.parametrize("receive", [workers.receive_blocking, workers.receive_polled], ids=lambda each: each.__name__)
def test_a_message_that_a_killed_process_received_is_not_given_to_another(
    crew: Crew, receive: Callable[[Any, int], list[Any]]
) -> None:
    a, b = crew.pipe()
    victim, other = crew.workers(2, b)
    for worker in (victim, other):
        assert not worker(workers.poll, 0.0)
    for number in range(10):
        a.send(number)
        assert (victim, other)[number % 2](receive, 1) == [number]
    workers.send_all_and_flush(a, range(10, 20))
    assert victim(receive, 5) == list(range(10, 15))
    victim.kill()
    assert other(receive, 5) == list(range(15, 20))
    assert not other(workers.poll, 0.1)


@rule("PIPE-6")
def test_one_direction_does_not_wait_for_the_other(crew: Crew) -> None:
    a, b = crew.pipe()
    worker = crew.worker(b)
    size, count = 50_000, 100
    # Neither receives before it has sent everything, which is more than the system's buffers hold.
    theirs = [workers.blob(number, size) for number in range(count)]
    worker.begin(workers.send_then_receive, theirs, count)
    ours = [workers.blob(number, size) for number in range(count, 2 * count)]
    workers.send_all(a, ours)
    assert workers.receive_some(a, count) == theirs
    assert worker.result() == ours


@rule("PIPE-6")
def test_messages_of_one_direction_never_come_back(crew: Crew) -> None:
    a, b = crew.pipe()
    worker = crew.worker(b)
    workers.send_all_and_flush(a, range(500))
    assert not a.poll(0.01)
    worker(workers.send_all_and_flush, range(500, 1000))
    assert workers.receive_some(a, 500) == list(range(500, 1000))
    assert not a.poll(0.01)
    assert worker(workers.receive_some, 500) == list(range(500))
    assert not worker(workers.poll, 0.01)


@rule("PIPE-7")
def test_poll_tells_whether_recv_would_return(crew: Crew) -> None:
    a, b = crew.pipe()
    worker = crew.worker(b)
    b.close()
    worker(workers.poll, 0.0)  # from now on it holds the end
    descriptor = a.fileno()
    for number in range(50):
        assert not a.poll()
        assert not readable(descriptor)
        worker(workers.send_all_and_flush, [number])
        for _ in range(2):
            assert a.poll(PATIENCE)
            assert readable(descriptor, PATIENCE)
        assert a.recv() == number
    started = time.monotonic()
    assert not a.poll(0.05)
    assert time.monotonic() - started >= 0.05
    worker.kill()
    assert a.poll(PATIENCE)
    assert readable(descriptor, PATIENCE)
    with pytest.raises(EOFError):
        a.recv()


@rule("PIPE-7")
def test_poll_ends_when_a_message_comes(crew: Crew) -> None:
    a, b = crew.pipe()
    worker = crew.worker(b)
    assert not worker(workers.poll, 0.0)  # from now on it polls as soon as it is told to

    def measure() -> float:
        worker.begin(workers.poll, PATIENCE)
        assert not worker.done(0.1)
        started = time.monotonic()
        a.send("wake up")
        assert worker.result() is True
        took = time.monotonic() - started
        assert worker(workers.receive_some, 1) == ["wake up"]
        return took

    assert_within(0.5, measure)
