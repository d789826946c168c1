"""How long a call blocks, and what ends it early."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType

import pytest

from fiberq.abc import ClientSocket, ServerSocket
from fiberq.errors import ConnectError

from .lab import PATIENCE, Call, Hub, Lab, assert_within
from .rules import rule
from .strangers import mute_listener

SIDES = pytest.mark.parametrize("side", ["server", "client"])
LATE = 0.25
"""Seconds by which a busy machine may delay a call's return."""
WAIT = 0.3
IDLE = 0.1
"""Processor seconds that waiting for `WAIT` seconds may take: what a slow machine needs to begin and to end it."""


def quiet(lab: Lab, side: str) -> tuple[Hub, ClientSocket | ServerSocket, Callable[[], None]]:
    """A connected pair; the socket of the side to test; and what makes it receive one message."""
    hub = lab.hub()
    link = lab.join(hub)
    hub.drain()
    if side == "server":
        return hub, hub.socket, lambda: link.client.send([b"now"])
    return hub, link.client, lambda: hub.socket.send(link.peer, [b"now"])


def timed(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


@rule("TIME-1")
@SIDES
def test_a_timeout_of_0_never_blocks(lab: Lab, side: str) -> None:
    _, tested, _ = quiet(lab, side)
    for _ in range(20):
        assert tested.recv(0) is None
    assert_within(0.05, lambda: timed(lambda: tested.recv(0)))


@rule("TIME-2")
@SIDES
@pytest.mark.parametrize("timeout", [0.001, 0.2])
def test_a_finite_timeout_is_kept(lab: Lab, side: str, timeout: float) -> None:
    _, tested, _ = quiet(lab, side)
    took = []
    for _ in range(2):
        took.append(timed(lambda: tested.recv(timeout)))
        assert took[-1] > timeout * 0.95 - 0.002, "returned too early"
    assert min(took) < timeout + LATE


@rule("TIME-2")
def test_a_servers_timeout_is_kept_while_clients_come_and_go(lab: Lab) -> None:
    hub = lab.hub()
    transport = lab.new_transport()

    def visit(stop: threading.Event) -> None:
        last = time.monotonic() + 1.5
        while not stop.is_set() and time.monotonic() < last:
            visitor = transport.client(lab.wire.credentials)
            visitor.connect(hub.address, PATIENCE)
            visitor.close()

    def measure() -> float:
        stop = threading.Event()
        visits = Call(visit, stop)
        # A loss ends the call early, and rightly; so wait on with what is left, as the core does.
        started = time.monotonic()
        try:
            while (left := started + 0.3 - time.monotonic()) > 0:
                if hub.socket.recv(left) is None:
                    assert time.monotonic() - started > 0.28, "returned too early"
                    break
            return time.monotonic() - started
        finally:
            stop.set()
            hub.until(visits.done, "the visitor ends")
            visits.result()

    assert_within(0.3 + LATE, measure)


@rule("TIME-3")
@SIDES
def test_without_a_timeout_recv_blocks_until_a_message_comes(lab: Lab, side: str) -> None:
    _, tested, deliver = quiet(lab, side)
    call = Call(tested.recv, None)
    assert not call.done(0.3), "recv(None) returned without a message"
    # The tested socket is in use by the thread; the message comes from the other side's.
    deliver()
    assert call.result() is not None


@rule("TIME-4")
@SIDES
def test_a_message_ends_a_wait_at_once(lab: Lab, side: str) -> None:
    _, tested, deliver = quiet(lab, side)

    def measure() -> float:
        call = Call(tested.recv, PATIENCE)
        assert not call.done(0.05)
        started = time.monotonic()
        deliver()
        assert call.result() is not None
        return call.ended_at - started

    assert_within(0.05, measure)


class InterruptedByTestError(Exception):
    """What the tests' signal handler raises."""


@pytest.fixture
def interrupts() -> Iterator[Callable[[float, bool], list[float]]]:
    """Return a function that sends this process a signal after a while; its list then holds the time of that."""
    timers: list[threading.Timer] = []
    raises = False

    def handler(_number: int, _frame: FrameType | None) -> None:
        if raises:
            raise InterruptedByTestError

    def interrupt_after(delay: float, handler_raises: bool) -> list[float]:
        nonlocal raises
        raises = handler_raises
        sent: list[float] = []

        def send() -> None:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGUSR1)

        timers.append(threading.Timer(delay, send))
        timers[-1].start()
        return sent

    before = signal.signal(signal.SIGUSR1, handler)
    yield interrupt_after
    raises = False
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR1, before)


Interrupt = Callable[[float, bool], list[float]]


@rule("TIME-5")
@SIDES
@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_signal_handler_that_raises_interrupts_recv(
    lab: Lab, side: str, timeout: float | None, interrupts: Interrupt
) -> None:
    _, tested, deliver = quiet(lab, side)

    def measure() -> float:
        sent = interrupts(0.1, True)
        with pytest.raises(InterruptedByTestError):
            tested.recv(timeout)
        return time.monotonic() - sent[0]

    assert_within(0.1, measure)
    deliver()
    got = tested.recv(PATIENCE)
    assert got is not None, "the message after the interruption is lost"


@rule("TIME-6")
@SIDES
def test_a_signal_handler_that_returns_does_not_end_the_wait(lab: Lab, side: str, interrupts: Interrupt) -> None:
    _, tested, _ = quiet(lab, side)

    def measure() -> float:
        sent = interrupts(0.1, False)
        started = time.monotonic()
        assert tested.recv(0.4) is None
        took = time.monotonic() - started
        assert sent
        assert took > 0.38, "the signal ended the wait"
        return took

    assert_within(0.4 + LATE, measure)


@rule("TIME-7")
def test_a_signal_handler_that_raises_interrupts_connect(lab: Lab, interrupts: Interrupt) -> None:
    with mute_listener(lab) as address:

        def measure() -> float:
            client = lab.client()
            sent = interrupts(0.1, True)
            with pytest.raises(InterruptedByTestError):
                client.connect(address, 5.0)
            took = time.monotonic() - sent[0]
            client.close()
            return took

        assert_within(0.1 + LATE, measure)


def processor_time(wait: Callable[[], object]) -> float:
    """Of all threads of this process."""
    before = time.process_time()
    wait()
    return time.process_time() - before


@rule("TIME-8")
@SIDES
def test_waiting_costs_no_processor_time(lab: Lab, side: str) -> None:
    _, tested, _ = quiet(lab, side)
    assert_within(IDLE, lambda: processor_time(lambda: tested.recv(WAIT)))


@rule("TIME-8")
def test_waiting_for_a_connection_costs_no_processor_time(lab: Lab) -> None:
    with mute_listener(lab) as address:

        def connect() -> None:
            client = lab.client()
            with suppress(ConnectError):
                client.connect(address, WAIT)
            client.close()

        assert_within(IDLE, lambda: processor_time(connect))
