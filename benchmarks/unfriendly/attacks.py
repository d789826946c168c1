"""The attacks: each goes on until its time is over, in a process of its own, and returns how often it tried.

An attacker who has the transport's key speaks through the transport's own client, and makes his frames by hand. One who
has none has a plain TCP socket, or a client with another key.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.unfriendly.mutations import Source, hello
from fiberq.abc import ClientSocket, Credentials
from fiberq.errors import ConnectionLost, FiberqError
from fiberq.protocol import frames
from fiberq.protocol.frames import Frame, Ready, decode, pack_items, pack_json, pack_ready
from fiberq.registry import make, make_client, resolve


class Target(NamedTuple):
    """A node, and what an attacker knows of it."""

    transport: str
    host: str
    port: int
    secret: bytes
    tokens: dict[str, bytes]
    """Rights: to "put" into, "get" from and "both" of `mine`; one that "expired", one that was "revoked",
    one that is "forged", and the "owner"'s, for the control."""
    honest: int
    secrets: int
    mine: int
    connections: int
    """What the node is set to take."""
    bomb: str
    """The file that appears when the bomb is unpickled."""
    frames: int

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.port}"


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


class Peer:
    """One connection with the transport's key."""

    def __init__(self, target: Target, token: str | None = None, secret: bytes | None = None) -> None:
        name = resolve(target.transport)
        self.transport = make(name)
        self.socket: ClientSocket = make_client(name, self.transport, Credentials(secret or target.secret))
        self.sent = self.received = 0
        self.refused = False
        try:
            self.socket.connect(target.address, 2.0)
            if token is not None:
                self.say(hello(os.urandom(8).hex(), target.tokens[token]), 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.socket.close()
        self.transport.close()

    def say(self, frame: Frame, seq: int | None = None, flags: int = 0) -> None:
        if seq is None:
            self.sent += 1
            seq = self.sent
        self.socket.send(frames.encode(frame, flags, seq, self.received))

    def ask(self, **question: Any) -> None:
        self.say(Frame(frames.REQUEST, 0, pack_json({"id": self.sent + 1, **question})))

    def open(self, channel: int, sides: str) -> None:
        self.ask(op="open", holds=[[channel, sides]])

    def listen(self, seconds: float = 0.0) -> list[frames.Received]:
        """What has come; read, so that the node has no reason to hang up. Raises `ConnectionLost`."""
        heard = []
        while (parts := self.socket.recv(seconds)) is not None:
            heard.append(decode(parts))
            self.received = max(self.received, heard[-1].seq)
            self.refused |= heard[-1].kind == frames.REFUSED
            seconds = 0.0
        return heard


@contextlib.contextmanager
def connected(target: Target, token: str | None = None, secret: bytes | None = None) -> Iterator[Peer]:
    """A peer; whatever ends its connection ends the block."""
    try:
        peer = Peer(target, token, secret)
    except FiberqError:
        raise Refused from None
    try:
        yield peer
    except ConnectionLost:
        raise Refused from None
    finally:
        peer.close()


class Refused(Exception):
    """The node does not let this connection be."""


def again_and_again(seconds: float, attempt: Callable[[], int]) -> int:
    """Attempt until the time is over; return the sum of what the attempts say that they were."""
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            done += attempt()
        except Refused:
            done += 1
    return done


def intrude(peer: Peer, target: Target) -> int:
    """Ask for, read, and write what is none of one's business."""
    bomb = pickle.dumps(Bomb(target.bomb))
    count = 0
    for channel in (target.honest, target.secrets):
        for sides in ("r", "w", "rw"):
            peer.open(channel, sides)
        for question in (
            {"op": "inherit", "token": "t", "holds": [[channel, "rw"]]},
            {"op": "purge", "channel": channel, "holds": []},
            {"op": "delete", "channel": channel, "holds": []},
            {"op": "shutdown", "channel": channel, "drop": True},
            {"op": "dead letters", "channel": channel},
            {"op": "restrict", "holds": [[channel, "rw"]]},
            {"op": "lease", "channel": channel, "item": 0, "what": "finish"},
        ):
            peer.ask(**question)
        peer.say(Frame(frames.READY, channel, pack_ready(Ready(1000, 0, 5))))
        count += 11
    with contextlib.suppress(ConnectionLost):
        peer.listen(0.2)
    for channel in (target.honest, target.secrets):
        peer.say(Frame(frames.PUT, channel, pack_items(len(bomb).to_bytes(4, sys.byteorder), (bomb,))))
    for heard in peer.listen(0.2):
        if heard.kind == frames.DELIVER and heard.channel in (target.honest, target.secrets):
            raise AssertionError("an item of another queue was delivered to the attacker")
    return count + 2


# -- without the transport's key --


def no_key(target: Target, seconds: float) -> int:
    """Clients of the transport that have no credentials."""

    def attempt() -> int:
        name = resolve(target.transport)
        transport = make(name)
        client = make_client(name, transport, None)
        try:
            client.connect(target.address, 0.3)
            client.send(frames.encode(hello("nobody", b""), 0, 0, 0))
            client.recv(0.3)
        except FiberqError:
            pass
        finally:
            client.close()
            transport.close()
        return 1

    return again_and_again(seconds, attempt)


def wrong_key(target: Target, seconds: float) -> int:
    """Clients with credentials of another node, which send a pickle bomb."""

    def attempt() -> int:
        with connected(target, "both", secret=os.urandom(32)) as peer:
            return intrude(peer, target)

    return again_and_again(seconds, attempt)


def raw(target: Target) -> socket.socket:
    return socket.create_connection((target.host, target.port), 5.0)


def mute(target: Target, seconds: float) -> int:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(raw(target))
        time.sleep(seconds)
    return 50


GREETINGS = {
    "zmq": b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(32),
    "nng": b"\x16\x03\x03\x01\x00\x01\x00\x00\xfc\x03\x03" + bytes(200),
    "stream": b"\x16\x03\x03\x01\x00\x01\x00\x00\xfc\x03\x03" + bytes(200),
}
"""How a client of each transport begins."""


def slow(target: Target, seconds: float) -> int:
    """Connections that begin well, one byte a second."""
    said, end = 0, time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(raw(target)) for _ in range(20)]
        for byte in GREETINGS[target.transport]:
            for sock in socks:
                with contextlib.suppress(OSError):
                    said += sock.send(bytes([byte]))
            if time.monotonic() >= end:
                break
            time.sleep(min(1.0, seconds / 3))
    return said


def flood(target: Target, seconds: float) -> int:
    """As many connections as the node takes, with its key, and as many again; and as many without a word."""
    with contextlib.ExitStack() as stack:
        name = resolve(target.transport)
        transport = stack.enter_context(contextlib.closing(make(name)))
        end, count, refused = time.monotonic() + seconds, 0, 0
        for _ in range(2 * target.connections):
            with contextlib.suppress(OSError):
                stack.enter_context(raw(target))
                count += 1
        while count < 4 * target.connections and time.monotonic() < end:
            client = make_client(name, transport, Credentials(target.secret))
            stack.callback(client.close)
            count += 1
            try:
                client.connect(target.address, 0.2)
            except FiberqError:
                refused += 1
                if refused > target.connections // 4:
                    break
        time.sleep(max(0.0, end - time.monotonic()))
    return count


def _send_all(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(0.2)
    with contextlib.suppress(OSError):
        sock.sendall(data)


def random_bytes(target: Target, seconds: float) -> int:
    """Bytes that mean nothing, alone, or behind a right beginning."""

    def attempt() -> int:
        with raw(target) as sock:
            beginning = GREETINGS[target.transport] if random.random() < 0.5 else b""
            _send_all(sock, beginning + os.urandom(random.choice((1, 64, 5000, 1_000_000))))
        return 1

    return again_and_again(seconds, attempt)


HUGE = (2**63).to_bytes(8, "big")
TOO_LONG = {
    "zmq": [GREETINGS["zmq"] + flags + HUGE + b"x" * 1000 for flags in (b"\x02", b"\x03", b"\x06", b"\x07")],
    "nng": [b"\0SP\0\0\x30\0\0" + HUGE + b"x" * 1000, b"\x17\x03\x03\xff\xff" + b"x" * 1000],
    "stream": [b"\x01" + HUGE + b"x" * 1000, b"\x17\x03\x03\xff\xff" + b"x" * 1000],
}
"""Messages with the length 2**63, and TLS records longer than there are."""


def huge_length(target: Target, seconds: float) -> int:
    """A length of 2**63: before the handshake, and within a frame behind it."""

    def attempt() -> int:
        count = 0
        for data in TOO_LONG[target.transport]:
            with raw(target) as sock:
                _send_all(sock, data)
                sock.settimeout(0.1)
                with contextlib.suppress(OSError):
                    sock.recv(1000)
            count += 1
        with connected(target, "put") as peer:
            peer.open(target.mine, "w")
            for count_of_items, length in ((2**32 - 1, b""), (1, (2**32 - 1).to_bytes(4, "little")), (2**31, b"x" * 8)):
                with contextlib.suppress(FiberqError):
                    peer.say(Frame(frames.PUT, target.mine, (count_of_items.to_bytes(4, "little"), length)))
                count += 1
            peer.listen(0.1)
        return count

    return again_and_again(seconds, attempt)


def fill(target: Target, seconds: float) -> int:
    """Much, in one long frame, from who has not shown a key; as one attacker for each of ten connections."""
    long = {"zmq": GREETINGS["zmq"] + b"\x06" + (1 << 29).to_bytes(8, "big")}

    def attempt() -> int:
        beginning = long.get(target.transport, GREETINGS[target.transport])
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(raw(target)) for _ in range(10)]
            for sock in socks:
                _send_all(sock, beginning)
            for _ in range(30):
                for sock in socks:
                    _send_all(sock, bytes(1 << 20))
        return 10

    return again_and_again(seconds, attempt)


def bomb(target: Target, seconds: float) -> int:
    """A pickle bomb from who has no key: as raw bytes, and as a frame of a client with another key."""
    data = pickle.dumps(Bomb(target.bomb))

    def attempt() -> int:
        with raw(target) as sock:
            _send_all(sock, data * 20)
        with raw(target) as sock:
            put = frames.encode(Frame(frames.PUT, target.honest, pack_items(b"\x30\0\0\0", (data,))), 0, 1, 0)
            _send_all(sock, GREETINGS[target.transport] + bytes(put[0]))
        with connected(target, "both", secret=b"another" + bytes(25)) as peer:
            return intrude(peer, target)
        return 2

    return again_and_again(seconds, attempt)


# -- with the transport's key --


def _right(token: str) -> Callable[[Target, float], int]:
    def attack(target: Target, seconds: float) -> int:
        def attempt() -> int:
            with connected(target, token) as peer:
                return intrude(peer, target)

        return again_and_again(seconds, attempt)

    return attack


def no_hello(target: Target, seconds: float) -> int:
    """Frames from who does not say who he is."""

    def attempt() -> int:
        with connected(target) as peer:
            return intrude(peer, target)

    return again_and_again(seconds, attempt)


def other_end(target: Target, seconds: float) -> int:
    """Who may put gets, and who may get puts."""

    def attempt() -> int:
        with connected(target, "put") as peer:
            peer.open(target.mine, "w")
            peer.open(target.mine, "r")
            peer.say(Frame(frames.READY, target.mine, pack_ready(Ready(1000, 0, 5))))
            for heard in peer.listen(0.1):
                assert heard.kind != frames.DELIVER, "who may only put was sent an item"
        with connected(target, "get") as peer:
            peer.open(target.mine, "w")
            peer.say(Frame(frames.PUT, target.mine, pack_items(b"\1\0\0\0", (b"x",))))
            peer.listen(0.1)
        return 4

    return again_and_again(seconds, attempt)


def mutated(target: Target, seconds: float) -> int:
    """Damaged frames, as many as were asked for: the seconds are the least."""
    rng = random.Random(1)
    source = Source([*[target.mine] * 12, target.honest, target.secrets, 2, 99], ["mine", "new"], rng)

    def attempt() -> int:
        before = source.damaged
        with connected(target) as peer:
            beginning = source.beginning(target.tokens[rng.choice(("put", "get", "both", "both", "both"))])
            for message in beginning:
                peer.socket.send(message)
            try:
                for seq in range(len(beginning), len(beginning) + 200):
                    peer.socket.send(source.mutated(seq, peer.received))
                    if seq % 8 == 0:
                        for heard in peer.listen(0.002):
                            wrong = heard.kind == frames.DELIVER and heard.channel not in (target.mine, 2)
                            assert not wrong, "an item of another queue was delivered to the attacker"
                        if peer.refused:
                            break
            except FiberqError:
                pass
        return source.damaged - before

    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or done < target.frames:
        with contextlib.suppress(Refused):
            done += attempt()
    return done


def replayed(target: Target, seconds: float) -> int:
    """The bytes of an honest connection once more, and numbered frames again and again."""
    recorded = _record(target)

    def attempt() -> int:
        count = 0
        for data in recorded:
            with raw(target) as sock:
                _send_all(sock, data)
                sock.settimeout(0.05)
                with contextlib.suppress(OSError):
                    sock.recv(10_000)
            count += 1
        with connected(target, "both") as peer:
            peer.open(target.mine, "r")
            report = Frame(frames.READY, target.mine, pack_ready(Ready(1, 0, 0)))
            peer.say(report)
            with contextlib.suppress(FiberqError):  # it is cut off
                for _ in range(20):
                    for _ in range(50):
                        peer.say(report, seq=2)
                        count += 1
                    peer.listen(0.005)
        return count

    return again_and_again(seconds, attempt)


def _record(target: Target) -> list[bytes]:
    """What a client sends that has a right, up to its first frames: all at once, and each piece by itself."""
    pieces: list[bytes] = []
    with socket.create_server((target.host, 0)) as listener:
        near = target._replace(port=listener.getsockname()[1])
        pid = os.fork()
        if pid == 0:
            try:
                with contextlib.suppress(Exception), connected(near, "both") as peer:
                    peer.open(target.mine, "w")
                    peer.listen(0.3)
            finally:
                os._exit(0)
        client, _ = listener.accept()
        with client, raw(target) as node:
            while True:
                ready, _, _ = select.select([client, node], [], [], 1.0)
                if not ready:
                    break
                if node in ready:
                    client.sendall(node.recv(65536))
                if client in ready:
                    data = client.recv(65536)
                    if not data:
                        break
                    pieces.append(data)
                    node.sendall(data)
        os.waitpid(pid, 0)
    assert pieces
    return [b"".join(pieces), *pieces]


def no_reading(target: Target, seconds: float) -> int:
    """Who has a right asks on and on, and for the same frames again, and reads nothing."""

    def attempt() -> int:
        count = 0
        with connected(target, "both") as peer:
            peer.open(target.mine, "rw")
            for _ in range(20):
                peer.ask(op="find", name="x" * 200)
            with contextlib.suppress(FiberqError):  # it is cut off
                for number in range(20_000):
                    if number % 2:
                        peer.say(Frame(frames.ACK), seq=0, flags=frames.RESEND)
                    else:
                        peer.ask(op="find", name="x" * 200)
                    count += 1
                    if number % 30 == 0:
                        time.sleep(0.0005)  # a transport bounds what is under way
        return count

    return again_and_again(seconds, attempt)


ATTACKS: dict[str, Callable[[Target, float], int]] = {
    "no key": no_key,
    "wrong key": wrong_key,
    "no hello": no_hello,
    "forged right": _right("forged"),
    "expired right": _right("expired"),
    "revoked right": _right("revoked"),
    "right to another queue": _right("both"),
    "right to the other end": other_end,
    "mute": mute,
    "one byte a second": slow,
    "connections": flood,
    "random bytes": random_bytes,
    "length 2**63": huge_length,
    "300 MiB before a key": fill,
    "pickle bomb": bomb,
    "mutated frames": mutated,
    "replayed frames": replayed,
    "no reading": no_reading,
}


CONTROL = "control: an owner's right"
"""An attack that must be noticed, because it gets through."""


def run(name: str, target: Target, seconds: float, answer: Any) -> None:
    """In a process of its own: attack, and answer with the number of attempts, or with what went wrong."""
    try:
        answer.send((ATTACKS | {CONTROL: _right("owner")})[name](target, seconds))
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")
