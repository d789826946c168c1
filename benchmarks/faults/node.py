"""The node of a run, in a process of its own, which listens on a path and on TCP at once.

It ends when its standard input does, and then says how much memory it had at most. The mutant takes an item for
finished as soon as it is delivered.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from typing import Any

from fiberq.node import serve
from fiberq.protocol.broker import Broker
from fiberq.protocol.device import Device
from fiberq.registry import make, make_server


def mutate() -> None:
    """Acknowledge before delivery: what the node has sent, it forgets."""
    deliver = Device._deliver

    def deliver_and_forget(self: Device, reader: Any, runs: Any, now: float) -> None:
        deliver(self, reader, runs, now)
        self._finish(reader, reader.next, ())

    Device._deliver = deliver_and_forget  # type: ignore[method-assign]


def _peak() -> int:
    """The most memory that this process had, in KB."""
    try:
        with open("/proc/self/status") as status:  # Linux's `ru_maxrss` begins with that of the parent
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _end_with_input() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    print(_peak(), flush=True)
    os._exit(0)


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(int(settings["limit"]))
    if settings["mutant"]:
        mutate()
    transport = make(settings["target"])
    server = make_server(settings["target"], transport)
    print(json.dumps([server.bind(address) for address in transport.bind_any(settings["directory"])]), flush=True)
    threading.Thread(target=_end_with_input, daemon=True).start()
    serve(server, Broker(os.urandom(8).hex(), **settings["broker"]), 1e-4)


if __name__ == "__main__":
    main()
