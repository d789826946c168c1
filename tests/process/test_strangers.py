"""Who sends garbage to a node, or puts it into a queue, disturbs nobody."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from support import PATIENCE, Crew
from workers import put_all

from fiberq import SimpleQueue, config


@pytest.mark.usefixtures("transport")
def test_garbage_on_the_nodes_socket_disturbs_nobody(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    path = q.reader.handle[1].partition("?")[0].removeprefix("ipc://")
    crew.start(put_all, q, range(3000))
    strangers = []
    try:
        for number in range(60):
            stranger = socket.socket(socket.AF_UNIX)
            strangers.append(stranger)
            stranger.connect(path)
            stranger.settimeout(0.2)
            try:
                stranger.sendall(os.urandom((1, 10, 64, 1000, 100_000)[number % 5]))
            except OSError:
                pass  # it was cut off, or is not read from
            if number % 2:
                stranger.close()
        assert [q.get(timeout=PATIENCE) for _ in range(3000)] == list(range(3000))
        q.put("still here")
        assert q.get(timeout=PATIENCE) == "still here"
    finally:
        for stranger in strangers:
            stranger.close()
    crew.finish()


def test_frames_that_are_no_frames_disturb_nobody(crew: Crew) -> None:
    zmq = pytest.importorskip("zmq")
    config.transport = "zmq"
    try:
        q: SimpleQueue[Any] = SimpleQueue()
        crew.start(put_all, q, range(3000))
        _send_garbage(zmq, q.reader.handle[1].partition("?")[0])
        assert [q.get(timeout=PATIENCE) for _ in range(3000)] == list(range(3000))
        crew.finish()
    finally:
        del config.transport


def _send_garbage(zmq: Any, address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 1000
        dealer.connect(address)
        for number in range(300):
            size = (0, 1, 8, 24, 100, 5000)[number % 6]
            dealer.send_multipart([os.urandom(size) for _ in range(number % 9 + 1)])
        # well-formed beginnings of frames with nonsense behind them
        for kind in range(40):
            dealer.send(bytes([kind, *range(23)]))
            dealer.send(bytes([1, kind]) + os.urandom(30))


@pytest.mark.usefixtures("transport")
def test_a_garbage_pickle_is_the_receivers_error_only() -> None:
    class Sour:
        def __reduce__(self) -> Any:
            return _raise, ()

    q: SimpleQueue[Any] = SimpleQueue()
    q.put(Sour())
    q.put("sweet")
    with pytest.raises(ZeroDivisionError):
        q.get(timeout=PATIENCE)
    assert q.get(timeout=PATIENCE) == "sweet"


def _raise() -> None:
    raise ZeroDivisionError
