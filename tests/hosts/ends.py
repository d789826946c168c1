"""A process with ends of connections, told on standard input what to do, and telling what happens: JSON, line by line.

Each end is a transport's server or client with a name, in a thread of its own. What it sends is numbered, so that the
other end can tell whether anything is missing.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections import deque
from time import monotonic
from typing import Any

from fiberq import registry
from fiberq.abc import ClientSocket, Credentials, Message, PeerLost, ServerSocket
from fiberq.errors import ConnectError, ConnectionLost

LOOK = 0.02
"""Seconds between looks at what there is to send."""
EVERY = 0.1
"""Seconds between the messages of a busy end."""

ATTEMPTS = 3
"""A handshake that loses packets can take longer than a server lets it; as fiberq does, an end then connects anew."""

_print = threading.Lock()


def tell(name: str, event: str, **more: Any) -> None:
    with _print:
        print(json.dumps({"name": name, "event": event, "at": monotonic(), **more}), flush=True)


class End(threading.Thread):
    """Sends what it is told to, and counts what comes."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.order = order
        self.to_send: deque[int] = deque()
        self.sent = self.received = 0
        self.lost = False

    def run(self) -> None:
        order, secret = self.order, self.order["secret"]
        target = registry.resolve(order["transport"])
        transport = registry.make(target, order["heartbeat"])
        credentials = Credentials(bytes.fromhex(secret)) if secret else None
        if "bind" in order:
            server = transport.server(credentials)
            tell(order["name"], "address", address=server.bind(order["bind"]))
            self.serve(server)
        else:
            for _ in range(ATTEMPTS):
                client = transport.client(credentials)
                try:
                    client.connect(order["connect"], 10)
                except ConnectError as error:
                    client.close()
                    tell(order["name"], "refused", why=str(error))
                    continue
                tell(order["name"], "connected")
                self.talk(client)
                return

    def serve(self, server: ServerSocket) -> None:
        peer = None
        while True:
            event = server.recv(LOOK)
            if isinstance(event, Message):
                peer = event.peer
                self.take(event.parts[0])
            elif isinstance(event, PeerLost):
                self.lose(event.peer == peer)
                peer = None if event.peer == peer else peer
            for message in self.due() if peer is not None else ():
                server.send(peer, [message])

    def talk(self, client: ClientSocket) -> None:
        client.send([self.message(8)])  # a server knows only whom it has heard
        try:
            while True:
                parts = client.recv(LOOK)
                if parts is not None:
                    self.take(parts[0])
                for message in self.due():
                    client.send([message])
        except ConnectionLost:
            self.lose(True)

    def due(self) -> list[bytes]:
        if self.order["busy"] and monotonic() >= self.order.setdefault("next", 0.0):
            self.order["next"] = monotonic() + EVERY
            self.to_send.append(100)
        return [self.message(self.to_send.popleft()) for _ in range(len(self.to_send))]

    def message(self, size: int) -> bytes:
        self.sent += 1
        return self.sent.to_bytes(8, "big") + bytes(max(size - 8, 0))

    def take(self, part: Any) -> None:
        number = int.from_bytes(bytes(part[:8]), "big")
        if number == 1:
            self.received = 0
        if number != self.received + 1:
            tell(self.order["name"], "gap", expected=self.received + 1, number=number)
        self.received = number
        if number == 1:
            tell(self.order["name"], "met")

    def lose(self, known: bool) -> None:
        if known:
            self.lost = True
            tell(self.order["name"], "lost")


def main() -> None:
    ends: dict[str, End] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "open":
            ends[order["name"]] = End(order)
            ends[order["name"]].start()
        elif order["do"] == "send":
            for end in ends.values():
                end.to_send.extend([order["size"]] * order["count"])
        elif order["do"] == "hold":
            tell("", "holding")
            ctypes.PyDLL(None).usleep(int(order["seconds"] * 1e6))  # with the GIL
            tell("", "held")
        elif order["do"] == "report":
            for name, end in ends.items():
                tell(name, "report", sent=end.sent, received=end.received, lost=end.lost)


if __name__ == "__main__":
    main()
