"""What the transports alone take for a lone message's round trip: ``python -m benchmarks.bare``.

As a queue's ping-pong, through fiberq's own sockets and a third process, which forwards each message and does nothing
else: the least that a queue on that transport can take. The forwarder polls for as long as a node does.
"""

from __future__ import annotations

import argparse
import platform
import select
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from fiberq.abc import ClientSocket, Message
from fiberq.registry import load
from fiberq.settings import config

MESSAGE = bytes(40)
WARM_UP = 500


def forward(transport: str, address: str) -> None:
    """Pass what comes from one of two peers on to the other."""
    server = load(transport)().server()
    print(server.bind(address), flush=True)
    peers: list[object] = []
    while True:
        event = server.recv(0)
        until = time.monotonic() + config.spin_us / 1e6
        while event is None and time.monotonic() < until:
            event = server.recv(0)
        event = event or server.recv(None)
        if not isinstance(event, Message):
            return
        if event.peer not in peers:
            peers.append(event.peer)
        if len(peers) == 2:
            server.send(peers[1 - peers.index(event.peer)], event.parts)


def receive(client: ClientSocket, poll: select.poll) -> object:
    message = client.recv(0)
    while message is None:
        poll.poll()
        message = client.recv(0)
    return message


def play(transport: str, address: str, role: str, count: int) -> None:
    client = load(transport)().client()
    client.connect(address, 5.0)
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    client.send((MESSAGE,))  # so that the forwarder knows it
    print("ready", flush=True)
    if role == "back":
        while True:
            receive(client, poll)
            client.send((MESSAGE,))
    receive(client, poll)
    took = []
    for _ in range(count + WARM_UP):
        start = time.perf_counter()
        client.send((MESSAGE,))
        receive(client, poll)
        took.append(time.perf_counter() - start)
    print(1e6 * statistics.median(took[WARM_UP:]), flush=True)


def measure(transport: str, count: int) -> float:
    """The median in us."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> str:
        command = [sys.executable, "-m", "benchmarks.bare", "--transports", transport, "--role", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return said(started[-1])

    def said(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    with TemporaryDirectory() as directory:
        try:
            address = start("forward", "--address", f"ipc://{directory}/bare")
            start("back", "--address", address)
            start("forth", "--address", address, "--count", str(count))
            return float(said(started[-1]))
        finally:
            for process in reversed(started):
                process.kill()
                process.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--role", choices=["forward", "back", "forth"], help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "forward":
        forward(options.transports[0], options.address)
    elif options.role:
        play(options.transports[0], options.address, options.role, options.count)
    else:
        table = Table("", "us, median", "lowest", "highest", title=f"Python {platform.python_version()}")
        for transport in options.transports:
            found = [measure(transport, options.count) for _ in range(options.repetitions)]
            table.add_row(transport, *(f"{each:.0f}" for each in (statistics.median(found), min(found), max(found))))
        Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
