"""The node's process: the broker, the transport's server socket, and nothing else. It is exec'd, never forked.

It ends with the process that started it, however that ends, and leaves no file behind.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from fiberq.abc import Message, ServerSocket, Transport
from fiberq.access import Authority, make_keys
from fiberq.address import parse
from fiberq.errors import FiberqError, TransportError
from fiberq.listening import Listening, advertised, listen, near
from fiberq.private import private_directory, sweep
from fiberq.protocol.broker import Broker
from fiberq.registry import make
from fiberq.steady import Steady

BURST: Final = 64
TURN: Final = 0.002
"""Messages that are taken in, and seconds for which that goes on, before what they caused is sent."""

COLLECT: Final = (10_000, 50, 50)
"""When Python is to look for cyclic garbage, of which a node makes none in its usual work: with Python's own thresholds
that took two fifths of the processor time of a node that deals out much among 64 push readers."""

SocketFiles: TypeAlias = "list[tuple[str, os.stat_result]]"
"""The files at which a node listens, and by what it knows that they are still its own."""

LOOK: Final = 0.25
"""Seconds between two looks of a node that stands alone whether it is to end."""


def serve(server: ServerSocket, broker: Broker, spin: float, over: Callable[[float], bool] | None = None) -> None:
    """Run the node until the socket is closed, or `over`, which is asked every `LOOK` seconds, says so. A busy node
    polls for `spin` seconds before it blocks, or less where that was in vain, as KVM polls for a halted guest."""
    gc.set_threshold(*COLLECT)
    monotonic = time.monotonic
    recv, send = server.recv, server.send
    message, output = broker.message, broker.output
    clock = Steady(monotonic)
    now = clock.now
    window = spin
    longest = float("inf") if over is None else LOOK
    while over is None or not over(now):
        for peer, parts in output(now):
            send(peer, parts)
        for peer in broker.drops():
            server.drop(peer)
        latest = now
        room = BURST
        event = recv(0)
        if event is None:
            room = 1  # who speaks now waits for an answer, as a rule, and nobody else did speak
            due = min(broker.due(), now + longest)
            began = monotonic()
            until = min(began + window, due + clock.missed)
            while event is None and monotonic() < until:
                event = recv(0)
            if event is None:
                latest = max(now, due)
                event = recv(None if due == float("inf") else max(0.0, due + clock.missed - monotonic()))
            window = spin if monotonic() < began + spin else window / 2
        now = clock.advance(latest)
        end = monotonic() + TURN
        while event is not None:
            if type(event) is Message:
                message(event.peer, event.parts, now)
            else:
                broker.lost(event.peer, now)
            room -= 1
            event = recv(0) if room and monotonic() < end else None


def main(settings: dict[str, Any]) -> None:
    """Run a node for the process that started this one; say on standard output where it listens."""
    parent = settings["parent"]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # whoever ends all processes ends the first one, too
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="fiberq node: %(message)s")
    answers = os.dup(1)
    os.dup2(_error_output(), 1)  # a transport that prints something is no answer
    directory = private_directory()
    files: SocketFiles = []
    try:
        threading.Thread(target=_watch, args=(parent, directory, files), daemon=True).start()
        try:
            transport = make(settings["target"], settings["heartbeat"])
            found = _listen(settings, transport, directory)
            files += _socket_files(found.addresses)
            far = found.addresses[-1] if settings["listen"] else None
            answer = {
                "address": near(found.addresses[0]),
                "directory": directory,
                "key": found.authority and found.authority.owner_key,
                "far": far and advertised(far, settings["advertise"]),
            }
        except Exception as error:
            known = isinstance(error, FiberqError)
            answer = {"error": str(error) if known else "".join(traceback.format_exception(error))}
        try:
            with os.fdopen(answers, "w") as ready:
                ready.write(json.dumps(answer) + "\n")
        except BrokenPipeError:
            return  # nobody is left to read it
        if "error" in answer:
            return
        broker = Broker(
            os.urandom(8).hex(),
            authority=found.authority,
            vault=found.vault(settings["shared_memory"]),
            **settings["broker"],
        )
        serve(found.server, broker, settings["spin_us"] / 1e6)
    finally:
        _remove(directory, files)


def _error_output() -> int:
    try:
        return os.dup(2)
    except OSError:  # it was closed
        return os.open(os.devnull, os.O_WRONLY)


def _listen(settings: dict[str, Any], transport: Transport, directory: str) -> Listening:
    """Listen for this program, and, if that is set, on a network: there for all, if the transport cannot authenticate
    over ipc."""
    target, others, insecure = settings["target"], settings["listen"], settings["allow_insecure"]
    limits = settings["max_connections"], settings["broker"]["max_bytes"]
    own = _own_address(transport, directory)
    if others is None:
        return listen(target, transport, [own], None, None, insecure, *limits)
    keys = make_keys()
    try:
        return listen(target, transport, [own, others], keys, Authority(keys), insecure, *limits)
    except TransportError:
        return listen(target, transport, [others], keys, Authority(keys), insecure, *limits)


def _own_address(transport: Transport, directory: str) -> str:
    for address in transport.bind_any(directory):
        if address.startswith("ipc:"):
            return address
    raise TransportError(
        f"{type(transport).__qualname__} has no ipc:// addresses, at which a program's own node listens"
    )


def _socket_files(addresses: Iterable[str]) -> SocketFiles:
    paths = [parsed.location for parsed in map(parse, addresses) if parsed.scheme == "ipc"]
    return [(path, os.stat(path)) for path in paths]


def _remove(directory: str, files: SocketFiles) -> None:
    for path, status in files:
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), status):  # else another node listens there by now
                os.unlink(path)
    shutil.rmtree(directory, ignore_errors=True)


def _watch(parent: int, directory: str, files: SocketFiles) -> None:
    """End this process when `parent` ends, whatever state the rest is in."""
    sweep()
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
    _remove(directory, files)
    os._exit(0)
