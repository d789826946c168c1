"""``fiberq serve``: a node that stands alone, for processes on any number of machines. Stops cleanly on SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from ..access import Url, kept_authority, state_directory, write_private
from ..address import parse
from ..listening import Listening, advertised, listen
from ..node import serve
from ..private import private_directory, sweep
from ..protocol.broker import Broker
from ..registry import make, resolve
from ..settings import config

__all__ = ["add_arguments", "run"]

log = logging.getLogger("fiberq.node")

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks the node to end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="where to listen, such as tcp://0.0.0.0:7100; default: an ipc address, for this user on this machine",
    )
    parser.add_argument("--transport", metavar="NAME", help="default: config.transport")
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="where its keys are kept; default: $XDG_STATE_HOME/fiberq, or ~/.local/state/fiberq",
    )
    parser.add_argument(
        "--advertise", metavar="HOST[:PORT]", help="how others reach it; default: this machine's address"
    )
    parser.add_argument(
        "--grace", type=_seconds, default=10.0, metavar="S", help="seconds for what is left, at the end (10)"
    )
    parser.add_argument("--quiet", action="store_true", help="do not log who comes and goes")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("it must be a number of seconds, 0 or more")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, and then until all is finished, or for the grace; return 0."""
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING if arguments.quiet else logging.INFO
    )
    target = resolve(arguments.transport or config.transport)
    transport = make(target)
    directory = private_directory() if arguments.bind is None else None
    sweep()
    try:
        address = arguments.bind or f"ipc://{directory}/node"
        state = arguments.state or os.path.join(_state_home(), "fiberq")
        limits = config.max_connections, config.max_bytes
        with ExitStack() as stack:
            if parse(address).scheme == "ipc":
                found = listen(target, transport, [address], None, None, True, *limits)
                key = None
            else:
                stack.enter_context(state_directory(state))
                keys, authority = kept_authority(state)
                found = listen(target, transport, [address], keys, authority, config.allow_insecure, *limits)
                key = None if found.authority is None else found.authority.owner_key
            where = parse(advertised(found.addresses[0], arguments.advertise))
            url = Url(arguments.transport or config.transport, where, key)
            return _serve(found, arguments.grace, partial(_tell, url, state if key else None))
    finally:
        transport.close()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _state_home() -> str:
    return os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")


def _tell(url: Url, state: str | None) -> None:
    """Say what workers need: on standard output, and in a file that only this user can read."""
    how = "FIBERQ_NODE='...the line above...'"
    if state is not None:
        path = os.path.join(state, "url")
        write_private(path, f"{url}\n")
        how += f", or with a copy of the file {path}: FIBERQ_NODE=/path/of/the/copy"
        print("This URL is a secret: whoever has it may do everything at this node.", file=sys.stderr)
    print(f"Workers reach the node with {how}", file=sys.stderr, flush=True)
    try:
        print(url, flush=True)
    except OSError as error:  # the file has it, too
        log.warning("the URL could not be written to standard output: %s", error.strerror)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's exit tries once more


def _serve(found: Listening, grace: float, tell: Callable[[], None]) -> int:
    broker = Broker(
        os.urandom(8).hex(),
        session_grace=config.session_grace,
        session_timeout=config.session_timeout,
        max_bytes=config.max_bytes,
        max_deliveries=config.max_deliveries,
        authority=found.authority,
        vault=found.vault(config.shared_memory),
    )
    end = _End(broker, grace)
    before = {number: signal.signal(number, end.ask) for number in STOP if signal.getsignal(number) != signal.SIG_IGN}
    try:
        tell()
        serve(found.server, broker, config.spin_us / 1e6, end.reached)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    left = broker.left()
    for name, (items, waiting) in left.items():
        log.warning(
            "%d items of %s were not finished, %d of which no reader had got: they are gone", items, name, waiting
        )
    for name, letters in broker.dead_letters().items():
        log.warning("%d dead letters of %s are gone", letters, name)
    log.info("ended%s", "" if left else "; nothing was left")
    return 0


class _End:
    """The node ends when it was asked to and all is finished, or `grace` seconds later, or when it is asked again."""

    def __init__(self, broker: Broker, grace: float) -> None:
        self._broker = broker
        self._grace = grace
        self._asked = 0
        self._until = float("inf")

    def ask(self, *_: Any) -> None:
        self._asked += 1

    def reached(self, now: float) -> bool:
        if self._asked and not self._broker.draining:
            self._until = now + self._grace
            self._broker.drain(now)
            log.info("takes nothing more, and ends when all is finished, or in %g s", self._grace)
        return self._asked > 1 or now >= self._until or (self._broker.draining and not self._broker.left())
