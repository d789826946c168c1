"""What the worker processes of the tests of queues and pipes do. Nothing here imports pytest.

A worker runs one function after another, as the test orders; each gets the worker's handles as its first arguments.
The orders go through multiprocessing's own pipe, not through what is tested.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from queue import Empty
from typing import Any

PATIENCE = float(os.environ.get("FIBERQ__CONTRACT_PATIENCE", "10"))
"""Seconds after which an item that must come is taken for lost."""


def serve(orders: Connection, *handles: Any) -> None:
    """Run what is ordered, until the order `None`."""
    while (order := orders.recv()) is not None:
        function, args = order
        try:
            answer = True, function(*handles, *args)
        except Exception:
            answer = False, traceback.format_exc()
        orders.send(answer)


def blob(number: int, size: int) -> bytes:
    """Bytes that nobody mistakes for another number's: its `number_of` is `number`."""
    return number.to_bytes(4, "big") + random.Random(number).randbytes(size - 4)


def number_of(item: bytes) -> int:
    return int.from_bytes(item[:4], "big")


def digest(item: bytes) -> tuple[int, str]:
    """What stands for a large item."""
    return len(item), hashlib.sha256(item).hexdigest()


# -- queues --


def attach(q: Any, *_: Any) -> None:
    """Become a reader of `q`, which must be empty."""
    if found := get_at_most_one(q, 0):
        raise AssertionError(f"got {found[0]!r} from an empty queue")


def get_at_most_one(q: Any, timeout: float) -> list[Any]:
    try:
        return [q.get(timeout=timeout)]
    except Empty:
        return []


def get_some(q: Any, count: int) -> list[Any]:
    return [q.get(timeout=PATIENCE) for _ in range(count)]


def get_numbers(q: Any, count: int) -> list[int]:
    """Get blobs; their numbers."""
    return [number_of(item) for item in get_some(q, count)]


def get_until_none(q: Any) -> list[Any]:
    return list(iter(lambda: q.get(timeout=PATIENCE), None))


def put_all(q: Any, items: Iterable[Any]) -> None:
    for item in items:
        q.put(item)


def put_all_and_flush(q: Any, items: Iterable[Any]) -> None:
    put_all(q, items)
    assert q.flush(PATIENCE)


def put_with_sync(q: Any, items: Iterable[Any]) -> None:
    """Put all; only the last one with `sync`, which waits for those before it, too."""
    *first, last = items
    put_all(q, first)
    q.put(last, sync=True)


def put_blobs(q: Any, numbers: Iterable[int], size: int) -> None:
    put_all(q, (blob(number, size) for number in numbers))


def put_sizes(q: Any, writer: int, sizes: Iterable[int]) -> None:
    """Put (writer, number, blob) for each size."""
    put_all(q, ((writer, number, blob(number, size)) for number, size in enumerate(sizes)))


def put_at_odd_times(q: Any, count: int) -> None:
    for number in range(count):
        q.put(number)
        time.sleep(number * 7919 % 97 / 97 * 0.002)


def qsize(q: Any) -> int:
    return int(q.qsize())


def close(q: Any) -> None:
    q.close()


def log_items(q: Any, path: str) -> None:
    """Get numbers until None, and write each to the file as 4 bytes; a killed process has written what it got."""
    with open(path, "ab", buffering=0) as file:
        while (item := q.get(timeout=PATIENCE)) is not None:
            file.write(item.to_bytes(4, "big"))


def pass_through(inbox: Any, outbox: Any) -> None:
    """Put what comes into the other queue, until None."""
    while (item := inbox.get(timeout=PATIENCE)) is not None:
        outbox.put(item)


def answer_items(inbox: Any, outbox: Any, count: int) -> None:
    """Answer each item with what stands for it, and with itself."""
    for item in get_some(inbox, count):
        outbox.put(digest(item))
        outbox.put(item)


def pass_through_in_turn(*args: Any) -> None:
    """Take one item from each inbox in turn, `count` times, and put it into the outbox that belongs to it."""
    *queues, count = args
    pairs = list(zip(queues[::2], queues[1::2], strict=True))
    for _ in range(count):
        for inbox, outbox in pairs:
            outbox.put(inbox.get(timeout=PATIENCE))


def put_from_grandchild(q: Any, methods: list[str], item: object) -> None:
    """Let a child put the item, or a child of it, and so on: each is started by the next method."""
    if not methods:
        q.put(item)
        return
    process: Any = multiprocessing.get_context(methods[0]).Process  # type: ignore[attr-defined]
    child = process(target=put_from_grandchild, args=(q, methods[1:], item))
    child.start()
    try:
        child.join(PATIENCE)
        assert child.exitcode == 0, f"the child by {methods[0]} ended with {child.exitcode}"
    finally:
        child.kill()


def put_into(queues: Any, number: int, items: Iterable[Any]) -> None:
    put_all_and_flush(queues[number], items)


def get_until_shut(queues: Any, number: int) -> list[Any]:
    return list(queues[number])


def error_of_put(queues: Any, number: int) -> str:
    return name_of_error(queues[number], "put", 1)


def do_tasks(tasks: Any, count: int) -> None:
    for _ in range(count):
        tasks.task_done()
    tasks.qsize()  # the node knows


def join(tasks: Any) -> None:
    assert tasks.join(2 * PATIENCE)


# -- pipes --


def send_all(connection: Any, messages: Iterable[Any]) -> None:
    for message in messages:
        connection.send(message)


def send_all_and_flush(connection: Any, messages: Iterable[Any]) -> None:
    send_all(connection, messages)
    assert connection.flush(PATIENCE)


def receive_some(connection: Any, count: int) -> list[Any]:
    got: list[Any] = []
    for _ in range(count):
        if not connection.poll(PATIENCE):
            raise AssertionError(f"nothing more came than {got!r:.200}")
        got.append(connection.recv())
    return got


def receive_blocking(connection: Any, count: int) -> list[Any]:
    """Receive without `poll`, which may fetch a message before `recv` takes it."""
    return [connection.recv() for _ in range(count)]


def receive_polled(connection: Any, count: int) -> list[Any]:
    """Receive what `poll` has fetched."""
    return [connection.recv() for _ in range(count) if connection.poll(PATIENCE)]


def receive_until_end(connection: Any) -> list[Any]:
    """Receive until EOFError."""
    got: list[Any] = []
    try:
        while True:
            got += receive_some(connection, 1)
    except EOFError:
        return got


def receive_until_none(connection: Any) -> list[Any]:
    return list(iter(lambda: receive_some(connection, 1)[0], None))


def poll(connection: Any, timeout: float) -> bool:
    return bool(connection.poll(timeout))


def answer_messages(connection: Any, count: int) -> None:
    """Answer each message with what stands for it, and with itself."""
    for _ in range(count):
        (message,) = receive_some(connection, 1)
        connection.send(digest(message))
        connection.send(message)


def name_of_error(connection: Any, method: str, *args: Any) -> str:
    """The name of the error that calling a method of the connection raises."""
    try:
        getattr(connection, method)(*args)
    except Exception as error:
        return type(error).__name__
    return "none"


def send_then_receive(connection: Any, messages: list[Any], count: int) -> list[Any]:
    """Send all first, whatever the other end does; then receive."""
    send_all(connection, messages)
    return receive_some(connection, count)
