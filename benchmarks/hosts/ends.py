"""One end of a measurement between hosts. A program of its own.

`ends.py WHERE WORK SECONDS near|far`: `near` puts, without end, or times round trips; `far` gets, and counts for
`SECONDS`, or sends back. `WHERE` is the URL of a node, or an IP address, at which `near` listens for plain TCP.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

WARM_UP = 1.5
"""Seconds that are not counted: connections begin slowly."""
SIZE = 65_536
PORT = 7000
Calls = tuple[Callable[[Any], Any], Callable[[], Any]]


def by_queues(url: str, near: bool) -> Calls:
    """How to send to the other end, and to get from it."""
    from fiberq import SimpleQueue, config

    config.node = url
    queues: list[SimpleQueue[Any]] = [SimpleQueue("there"), SimpleQueue("back")]
    there, back = queues if near else reversed(queues)
    if near:
        print("ready", flush=True)
    return there.put, back.get


def by_tcp(host: str, near: bool) -> Calls:
    if near:
        with socket.create_server((host, PORT)) as listener:
            print("ready", flush=True)
            sock, _ = listener.accept()
    else:
        sock = socket.create_connection((host, PORT))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return lambda item: sock.sendall(item if isinstance(item, bytes) else b"12345678"), lambda: sock.recv(SIZE)


def rate(get: Callable[[], Any], seconds: float) -> float:
    """What comes in a second, of bytes, or of items that are none; plain TCP has only bytes."""
    start = monotonic() + WARM_UP
    while monotonic() < start:
        get()
    count, began = 0, monotonic()
    while (now := monotonic()) < began + seconds:
        item = get()
        count += len(item) if isinstance(item, bytes) else 1
    return count / (now - began)


def round_trips(put: Callable[[Any], Any], get: Callable[[], Any], seconds: float) -> float:
    """Milliseconds of the median."""
    put(0)
    get()
    times: list[float] = []
    end = monotonic() + seconds
    while monotonic() < end:
        start = perf_counter()
        put(0)
        get()
        times.append(perf_counter() - start)
    return 1000 * statistics.median(times)


def main(where: str, work: str, seconds: float, near: bool) -> None:
    put, get = by_queues(where, near) if "://" in where else by_tcp(where, near)
    if work == "ping-pong" and near:
        print(json.dumps(round_trips(put, get, seconds)), flush=True)
    elif work == "ping-pong":
        while True:
            get()
            put(0)
    elif near:
        item = 7 if work == "small ints" else bytes(SIZE)
        while True:
            put(item)
    elif work == "small ints" and "://" not in where:
        print(json.dumps(rate(get, seconds) / 8 / 1000), flush=True)
    else:
        print(json.dumps(rate(get, seconds) / (1000 if work == "small ints" else 1e6)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "near")
