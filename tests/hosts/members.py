"""A process that uses queues of several nodes, told on standard input what to do, and telling what happens: JSON, line
by line. `ends.py` is the same below the queues."""

from __future__ import annotations

import json
import sys
import threading
import time
from time import monotonic
from typing import Any

from fiberq import Queue, config
from fiberq.errors import FiberqError

_print = threading.Lock()
_go_on = threading.Event()


def tell(name: str, event: str, **more: Any) -> None:
    with _print:
        print(json.dumps({"name": name, "event": event, "at": monotonic(), **more}), flush=True)


def put(name: str, queue: Queue[int], items: range, pause: float) -> None:
    for item in items:
        queue.put(item)
        time.sleep(pause)
    queue.flush()
    tell(name, "flushed")


def get(name: str, queue: Queue[int], keep: bool, pause: float) -> None:
    """Get for ever. With `keep`, the first item is this thread's until it is told to go on."""
    while True:
        tell(name, "got", item=queue.get())
        if keep:
            _go_on.wait()
        time.sleep(pause)


def guarded(do: Any, name: str, *arguments: Any) -> None:
    try:
        do(name, *arguments)
    except FiberqError as error:
        tell(name, "failed", error=type(error).__name__, text=str(error))


def start(do: Any, *arguments: Any) -> None:
    threading.Thread(target=guarded, args=(do, *arguments), daemon=True).start()


def main() -> None:
    queues: dict[str, Queue[int]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "join":
            for name, url in order["nodes"].items():
                config.node = url
                queues[name] = Queue("jobs")
                tell(name, "joined")
        elif order["do"] == "put":
            for name, queue in queues.items():
                start(put, name, queue, range(order["first"], order["first"] + order["count"]), order["pause"])
        elif order["do"] == "get":
            for name, queue in queues.items():
                start(get, name, queue, order["keep"], order["pause"])
        elif order["do"] == "go on":
            _go_on.set()


if __name__ == "__main__":
    main()
