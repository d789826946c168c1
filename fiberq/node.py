"""The node's process: the broker, the transport's server socket, and nothing else. It is exec'd, never forked.

It ends with the process that started it, however that ends, and leaves no file behind.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import sys
import threading
import time
from typing import Any, Final

from fiberq.abc import Message, ServerSocket
from fiberq.protocol.broker import Broker
from fiberq.registry import load_target

BURST: Final = 64
"""Messages that are taken in before what they caused is sent."""

LONGEST_PATH: Final = 80
"""Characters of the directory's path; of the socket's, systems allow 104 to 108."""


def serve(server: ServerSocket, broker: Broker, spin: float) -> None:
    """Run the node until the socket is closed. A busy node polls for `spin` seconds before it blocks."""
    monotonic = time.monotonic
    recv, send = server.recv, server.send
    message, output = broker.message, broker.output
    now = monotonic()
    while True:
        for peer, parts in output(now):
            send(peer, parts)
        event = recv(0)
        if event is None:
            until = min(now + spin, broker.due())
            while event is None and monotonic() < until:
                event = recv(0)
            if event is None:
                due = broker.due()
                event = recv(None if due == float("inf") else max(0.0, due - monotonic()))
        now = monotonic()
        room = BURST
        while event is not None:
            if type(event) is Message:
                message(event.peer, event.parts, now)
            else:
                broker.lost(event.peer, now)
            room -= 1
            event = recv(0) if room else None


def main(settings: dict[str, Any]) -> None:
    """Run a node for the process that started this one; say on standard output where it listens."""
    parent = settings["parent"]
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="fiberq node: %(message)s")
    directory = private_directory()
    try:
        signal.signal(signal.SIGTERM, lambda *_: _end(directory))
        threading.Thread(target=_watch, args=(parent, directory), daemon=True).start()
        transport = load_target(settings["target"])()
        server = transport.server()
        address = next(one for one in transport.bind_any(directory) if one.startswith("ipc:"))
        address = server.bind(address)
        broker = Broker(os.urandom(8).hex(), **settings["broker"])
        try:
            with os.fdopen(1, "w") as ready:
                ready.write(json.dumps({"address": address, "directory": directory}) + "\n")
        except BrokenPipeError:
            return  # nobody is left to read it
        os.open(os.devnull, os.O_WRONLY)  # standard output again, and not somebody's pipe
        serve(server, broker, settings["spin_us"] / 1e6)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def private_directory() -> str:
    """Make a directory that only this user can enter, with a path short enough for a socket in it."""
    for base in (os.environ.get("TMPDIR"), "/tmp"):
        directory = os.path.join(base or "/tmp", f"fiberq-{os.urandom(8).hex()}")
        if len(directory) <= LONGEST_PATH:
            os.mkdir(directory, 0o700)
            return directory
    raise AssertionError("unreachable: a path in /tmp is short")


def _watch(parent: int, directory: str) -> None:
    """End this process when `parent` ends, whatever state the rest is in."""
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(parent)
        except OSError:
            descriptor = -1
        if descriptor >= 0 and os.getppid() == parent:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            while not poller.poll():
                pass
    while os.getppid() == parent:
        time.sleep(0.2)
    _end(directory)


def _end(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)
