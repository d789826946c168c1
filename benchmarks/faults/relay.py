"""A process between clients and the node on TCP, which cuts connections and holds them up when it is told to.

It reads commands from standard input, a JSON line each, and answers each with a line: whether it hit a connection that
had just carried something. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import socket
import struct
import sys
import time
from typing import Any, Final

CHUNK: Final = 1 << 16
MAX_BUFFERED: Final = 1 << 20

BUSY: Final = 0.1
"""Seconds since a connection carried something for which it counts as busy."""

AMID_PATIENCE: Final = 0.15
"""Seconds that a cut amid a frame waits for bytes."""


class Side:
    """One of a connection's two sockets: what came from the other one waits here to be sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.ended = False  # it sends nothing more
        self.open = True

    def close(self, reset: bool) -> None:
        if self.open:
            self.open = False
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()


class Connection:
    def __init__(self, client: socket.socket, node: socket.socket) -> None:
        self.sides = (Side(client), Side(node))
        self.carried_at = 0.0
        self.held_until = 0.0  # nothing passes until then
        self.then_reset = False  # and nothing any more
        self.amid: int | None = None  # cut when bytes come from this side


class Relay:
    def __init__(self, node: tuple[str, int], seed: int) -> None:
        self._node = node
        self._rng = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._armed_until = 0.0
        self._cut_next = False  # cut the next connection when the node first says something
        self._commands = b""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            for key, events in self._selector.select(0.02 if self._held() else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == 0:
                    self._read_commands()
                else:
                    connection, number = key.data
                    self._move(connection, number, events)
            self._release(time.monotonic())

    # -- bytes --

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            node = socket.create_connection(self._node, 1.0)
        except OSError:
            client.close()
            return
        connection = Connection(client, node)
        if self._cut_next:
            self._cut_next = False
            connection.amid = 1
        for number, side in enumerate(connection.sides):
            side.sock.setblocking(False)
            side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(side.sock, selectors.EVENT_READ, (connection, number))
        self._connections.append(connection)

    def _move(self, connection: Connection, number: int, events: int) -> None:
        """A socket can be read, or written to."""
        here, there = connection.sides[number], connection.sides[1 - number]
        if not here.open or connection.held_until:
            return
        try:
            if events & selectors.EVENT_READ:
                some = here.sock.recv(CHUNK)
                if not some:
                    here.ended = True
                elif connection.amid == number:
                    self._cut_amid(connection, there, some)
                    return
                else:
                    there.buffer += some
                    connection.carried_at = time.monotonic()
                    self._flush(there)
            if events & selectors.EVENT_WRITE:
                self._flush(here)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection, reset=True)
            return
        if here.ended and not there.buffer:
            self._drop(connection, reset=False)
            return
        self._watch(connection)

    def _flush(self, side: Side) -> None:
        if side.buffer and side.open:
            try:
                del side.buffer[: side.sock.send(side.buffer)]
            except BlockingIOError:
                pass

    def _watch(self, connection: Connection) -> None:
        """Ask for what each socket is to be watched for."""
        for number, side in enumerate(connection.sides):
            other = connection.sides[1 - number]
            wanted = selectors.EVENT_WRITE if side.buffer else 0
            if not side.ended and len(other.buffer) < MAX_BUFFERED:
                wanted |= selectors.EVENT_READ
            if connection.held_until or not side.open:
                wanted = 0
            known = self._selector.get_map().get(side.sock) if side.open else None
            if known is None and wanted:
                self._selector.register(side.sock, wanted, (connection, number))
            elif known is not None and not wanted:
                self._selector.unregister(side.sock)
            elif known is not None and known.events != wanted:
                self._selector.modify(side.sock, wanted, (connection, number))

    def _drop(self, connection: Connection, reset: bool, only: int | None = None) -> None:
        """Close a connection, or only one side of it."""
        for number, side in enumerate(connection.sides):
            if side.open and only in (None, number):
                try:
                    self._selector.unregister(side.sock)
                except KeyError:
                    pass
                side.close(reset)
        if not any(side.open for side in connection.sides):
            self._connections.remove(connection)

    # -- faults --

    def _read_commands(self) -> None:
        some = os.read(0, 4096)
        if not some:
            os._exit(0)
        *lines, self._commands = (self._commands + some).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: dict[str, Any]) -> None:
        if command["do"] == "cut next":
            self._cut_next = True
            self._answer(True)
            return
        now = time.monotonic()
        busy = [each for each in self._connections if now - each.carried_at < BUSY and not each.held_until]
        if not busy:
            self._answer(False)
            return
        connection = self._rng.choice(busy)
        if command["do"] == "cut":
            self._drop(connection, reset=self._rng.random() < 0.7)
            self._answer(True)
        elif command["do"] == "amid":
            connection.amid = self._rng.randrange(2)
            self._armed_until = now + AMID_PATIENCE
        else:
            connection.held_until = now + command["seconds"]
            how = self._rng.choice(("pass", "reset", "client", "node"))
            connection.then_reset = how != "pass"
            if how in ("client", "node"):  # one end is told at once, the other when the time is over
                self._drop(connection, reset=True, only=0 if how == "client" else 1)
            self._watch(connection)
            self._answer(True)

    def _cut_amid(self, connection: Connection, there: Side, some: bytes) -> None:
        """Pass on a part of what came, and cut the connection."""
        there.buffer += some[: self._rng.randrange(len(some))]
        try:
            self._flush(there)
        except OSError:
            pass
        # A reset would throw away what the other end has not read yet; then nothing of the frame would arrive.
        for number, side in enumerate(connection.sides):
            self._drop(connection, reset=side is not there, only=number)
        if self._armed_until:
            self._armed_until = 0.0
            self._answer(True)

    def _held(self) -> bool:
        return bool(self._armed_until) or any(each.held_until for each in self._connections)

    def _release(self, now: float) -> None:
        """Let go on what was held up long enough."""
        if self._armed_until and self._armed_until <= now:
            self._armed_until = 0.0
            for each in self._connections:
                each.amid = None
            self._answer(False)
        for connection in list(self._connections):
            if connection.held_until and connection.held_until <= now:
                connection.held_until = 0.0
                if connection.then_reset:
                    self._drop(connection, reset=True)
                else:
                    self._watch(connection)

    def _answer(self, hit: bool) -> None:
        print(json.dumps(hit), flush=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(int(settings["limit"]))
    relay = Relay(("127.0.0.1", settings["port"]), settings["seed"])
    print(relay.port, flush=True)
    relay.run()


if __name__ == "__main__":
    main()
