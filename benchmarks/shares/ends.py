"""One end of a profile. A program of its own: `ends.py URL CLASS WORK COUNT producer|consumer PROFILE`.

It puts or gets `COUNT` items after a tenth as many to warm up, and prints what processor time each took, in seconds: of
the user's and the system's, and for pickling alone, measured by itself afterwards. With a `PROFILE` that is no `-`, it
writes what cProfile saw there.
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import fiberq
from fiberq import codec
from fiberq.bench.work import PAYLOADS

ITEMS: dict[str, Any] = {
    "small ints": 7,
    "dicts": PAYLOADS["dict"](),
    "64 KB bytes": bytes(65_536),
    "1 MB bytes": bytes(1_000_000),
    "lone ints": 7,
}


def seconds_each(call: Callable[[], Any], count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        call()
    return (perf_counter() - start) / count


def main(url: str, kind: str, work: str, count: int, role: str, profile: str) -> None:
    fiberq.config.node = url
    there, back = (getattr(fiberq, kind)(name) for name in ("there", "back"))
    item, lone, puts = ITEMS[work], work == "lone ints", role == "producer"

    def turn() -> None:
        if puts:
            there.put(item)
        if lone and puts:
            back.get()
        if not puts:
            there.get()
        if lone and not puts:
            back.put(item)

    print("ready", flush=True)
    for _ in range(count // 10):
        turn()
    profiler = cProfile.Profile() if profile != "-" else None
    before, began = os.times(), perf_counter()
    with profiler or nullcontext():
        for _ in range(count):
            turn()
    after, seconds = os.times(), perf_counter() - began
    if profiler is not None:
        profiler.dump_stats(profile)
    data = codec.encode(item)
    pickling = (seconds_each(lambda: codec.encode(item), 20_000) if puts or lone else 0.0) + (
        seconds_each(lambda: codec.decode(data), 20_000) if not puts or lone else 0.0
    )
    told = {"user": (after.user - before.user) / count, "system": (after.system - before.system) / count}
    print(json.dumps({**told, "pickling": pickling, "wall": seconds / count}), flush=True)
    there.flush()
    back.flush()
    sys.stdin.readline()  # the other end may still need what this one holds


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
