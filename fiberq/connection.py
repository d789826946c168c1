"""`Pipe` and `ZConnection`: message channels with two ends, each of which several processes can share."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from fiberq.abc import Buffer
from fiberq.address import ENDS, Address, SockType, format, parse, parse_handle  # noqa: A004
from fiberq.channel import Channel, new_number
from fiberq.errors import AddressError, ClosedError, DirectionError, MessageTooLong
from fiberq.links import ask_anew, connect_tree
from fiberq.protocol.frames import DEFAULT_CHANNEL
from fiberq.protocol.kinds import Kind
from fiberq.settings import config
from fiberq.tree import Endpoint

if TYPE_CHECKING:
    from array import array

    from fiberq.link import Link

__all__ = ["Pipe", "ZConnection"]


def Pipe(duplex: bool = True) -> tuple[ZConnection, ZConnection]:  # noqa: N802 - multiprocessing's name
    """Return the two ends of a new pipe. With `duplex=False` the first can only receive and the second only send.

    Starts the node of this process tree if there is none, and blocks until the pipe exists.
    """
    return ask_anew(connect_tree, lambda link: _make_pipe(link, duplex))


def _make_pipe(link: Link, duplex: bool) -> tuple[ZConnection, ZConnection]:
    number = new_number()
    there_r, there_w = Channel.create(link, Kind("pipe"), "r", "w", number=number)
    if not duplex:
        return ZConnection._made(there_r, None), ZConnection._made(None, there_w)
    back_r, back_w = Channel.create(link, Kind("pipe"), "r", "w", number=number + 1)
    return ZConnection._made(back_r, there_w), ZConnection._made(there_r, back_w)


class ZConnection:
    """One end of a pipe, or one side of a queue.

    `handle` is ``(sock_type, dest_addr)``: "r", "w" or "rw", and an address such as ``tcp://127.0.0.1:9000``, which
    names the default pipe of the node that listens there, or ``tcp://127.0.0.1:9000/DEVICE/END``. Raises
    `fiberq.errors.AddressError` for anything else. Connects at its first use, for at most `config.connect_timeout`
    seconds, then raises `fiberq.errors.ConnectError`.

    Several processes can read from, and write to, the same end. A message ends when it is received: it is never
    delivered a second time.
    """

    def __init__(self, handle: tuple[str, str], readable: bool = True, writable: bool = True) -> None:
        sock_type, address = parse_handle(handle)
        from fiberq.registry import resolve

        endpoint = Endpoint(resolve(config.transport), address.node)
        number, end = _device(address, sock_type)
        reads = readable and "r" in sock_type
        writes = writable and "w" in sock_type
        if not (reads or writes):
            raise AddressError("a connection must be readable or writable")
        self._reads = Channel(endpoint, number ^ (end == "a"), "r") if reads else None
        self._writes = Channel(endpoint, number ^ (end == "b"), "w") if writes else None
        self._closed = False

    @classmethod
    def _made(cls, reads: Channel | None, writes: Channel | None) -> ZConnection:
        self = cls.__new__(cls)
        self._reads = reads
        self._writes = writes
        self._closed = False
        return self

    @property
    def readable(self) -> bool:
        return self._reads is not None

    @property
    def writable(self) -> bool:
        return self._writes is not None

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def handle(self) -> tuple[SockType, str]:
        """The tuple from which `ZConnection` makes a connection to the same end."""
        some = self._reads or self._writes
        assert some is not None
        end = "r" if self._writes is None else "w" if self._reads is None else "ab"[self._writes.number & 1]
        sock_type: SockType = "rw" if self._reads and self._writes else "r" if self._reads else "w"

        node = parse(some.endpoint.address)
        number = some.number if sock_type != "rw" else some.number & ~1
        return sock_type, format(Address(node.scheme, node.location, f"{number:016x}", end))

    @property
    def url(self) -> str:
        """What `fiberq.open` makes a connection to the same end of, on any machine that reaches the node: a secret, if
        that listens on a network, for it carries this handle's rights."""
        from fiberq.opening import url

        some = self._reads or self._writes
        assert some is not None
        return url(some.endpoint, some.name, parse(self.handle[1]).end)

    def restrict(self, right: str | None = None, *, expires: float | None = None) -> ZConnection:
        """Return a connection to the same end that can only "put" (send), or only "get" (receive), or as much as this
        one, for no longer than `expires` seconds.

        What the other one may do is signed, and checked, by the node: whoever gets only that, or its `url`, can do no
        more. `fiberq revoke` takes it back. Asks the node. Raises `AccessError` if that listens on no network,
        `ValueError` for what is no right and no time.
        """
        from fiberq.opening import check_expires, check_right

        check_expires(expires)
        sides = "rw" if right is None else check_right(right)
        reads = self._reads if "r" in sides else None
        writes = self._writes if "w" in sides else None
        both = [each for each in (reads, writes) if each is not None]
        if not both:
            raise DirectionError(f"this connection cannot {right}")
        key = both[0].restricted_key([(each.number, each.sides) for each in both], expires)
        return ZConnection._made(reads and reads.under(key), writes and writes.under(key))

    def send(self, obj: object) -> None:
        """Send an object that can be pickled; returns when it is buffered.

        Raises `fiberq.errors.ItemError` when it cannot be pickled, `DirectionError` on a read-only connection,
        `WriteEnded` (a `BrokenPipeError`) when nobody is left to receive it, `NodeError`, `ClosedError`.
        """
        self._writing().put(obj)

    def recv(self) -> Any:
        """Return the next message; blocks until there is one.

        Raises `ReadEnded` (an `EOFError`) when the other end is closed and all that it sent was read,
        `DirectionError` on a write-only connection, `NodeError`, `ClosedError`.
        """
        return self._reading().get()

    async def asend(self, obj: object) -> None:
        """Send an object; while there is no room, other coroutines run. Raises as `send` does."""
        await self._writing().aput(obj)

    async def arecv(self) -> Any:
        """Return the next message; while there is none, other coroutines run. Raises as `recv` does.

        To be cancelled, or timed out with `asyncio.wait_for`, loses nothing.
        """
        return await self._reading().aget()

    def send_bytes(self, buf: Buffer | array[Any], offset: int = 0, size: int | None = None) -> None:
        """Send the bytes of `buf` from `offset` on, `size` of them or all, as one message.

        Returns when it is buffered; a large message that the caller could change is first accepted by the node. Raises
        `ValueError` for a part that is not inside `buf`, and what `send` raises.
        """
        self._writing().put_bytes(_part(buf, offset, size))

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Return the next message as bytes; blocks until there is one. What `send` sent comes as a pickle.

        Raises `MessageTooLong` (an `OSError`) for a message of more than `maxlength` bytes: it is lost, and nothing
        can be received here any more. Raises `ValueError` for a negative `maxlength`, and what `recv` raises.
        """
        channel = self._reading()
        if maxlength is not None and maxlength < 0:
            raise ValueError("maxlength is negative")
        message = memoryview(channel.get_bytes())
        if maxlength is not None and message.nbytes > maxlength:
            self._stop_reading()
            raise MessageTooLong(f"bad message length: {message.nbytes} bytes, and at most {maxlength} were asked for")
        return bytes(message)

    def recv_bytes_into(self, buf: bytearray | memoryview | array[Any], offset: int = 0) -> int:
        """Write the next message into `buf`, from byte `offset` on, and return its length; blocks until there is one.

        Raises `multiprocessing.BufferTooShort`, whose only argument is the message, where that does not fit;
        `ValueError` for an offset that is not inside `buf`, `TypeError` for a `buf` that is read-only, and what `recv`
        raises.
        """
        channel = self._reading()
        with memoryview(buf) as view, view.cast("B") as room:
            if not 0 <= offset <= room.nbytes:
                raise ValueError("the offset is not inside the buffer")
            if room.readonly:
                raise TypeError("the buffer is read-only")
            message = memoryview(channel.get_bytes()).cast("B")
            end = offset + message.nbytes
            if end > room.nbytes:
                from multiprocessing import BufferTooShort

                raise BufferTooShort(bytes(message))
            room[offset:end] = message
            return message.nbytes

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Return whether `recv` would return or raise at once; waits `timeout` seconds for that, `None`: forever."""
        return self._reading().poll(timeout)

    def fileno(self) -> int:
        """Return the connection's fiberq socket: a descriptor that `select` and the like see as ready exactly while
        `recv` would not block. It stays the same until the connection is closed, or used in a forked child. Wait on it;
        there is nothing to read from it, and nothing can be written to it.

        Raises `DirectionError` on a write-only connection, `NodeError`, `ClosedError`.
        """
        return self._reading().fileno()

    def flush(self, timeout: float | None = None) -> bool:
        """Block until the node has accepted all that was sent; return whether it has within `timeout` seconds."""
        return self._writing().flush(timeout)

    def close(self) -> None:
        """Flush and close; idempotent."""
        self._closed = True
        wait = False  # nor for the other one, if the first is interrupted
        try:
            if self._writes is not None:
                self._writes.close()
            wait = True
        finally:
            if self._reads is not None:
                self._reads.close(wait)

    def _stop_reading(self) -> None:
        reads = self._reads
        assert reads is not None
        if self._writes is None:
            self.close()
        else:
            self._reads = None
            reads.close()

    def _reading(self) -> Channel:
        if self._closed:
            raise ClosedError("this connection is closed")
        if self._reads is None:
            raise DirectionError("this connection is write-only")
        return self._reads

    def _writing(self) -> Channel:
        if self._closed:
            raise ClosedError("this connection is closed")
        if self._writes is None:
            raise DirectionError("this connection is read-only")
        return self._writes

    def __enter__(self) -> ZConnection:  # noqa: PYI034 - Python 3.10 has no Self
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        sock_type, address = self.handle
        return f"<ZConnection {'closed ' if self._closed else ''}{sock_type} {address}>"


def _part(buf: Buffer | array[Any], offset: int, size: int | None) -> bytes | memoryview:
    """The bytes of `buf` from `offset` on, `size` of them or all, without a copy."""
    offset, size = operator.index(offset), None if size is None else operator.index(size)
    if type(buf) is bytes and not offset and size is None:
        return buf
    view = memoryview(buf).cast("B")
    end = view.nbytes if size is None else offset + size
    if offset < 0 or not offset <= end <= view.nbytes:
        raise ValueError(f"the buffer has {view.nbytes} bytes: there are not {size} from {offset} on")
    return view[offset:end]


def _device(address: Address, sock_type: SockType) -> tuple[int, str]:
    """The number of the channel that an address names, and the end of it."""
    if address.device is None:
        return DEFAULT_CHANNEL, sock_type
    if address.end is None:
        raise AddressError(f"the address of {address.device} names no end: one of {', '.join(ENDS)} must follow")
    if address.end in ("r", "w") and sock_type != address.end:
        raise AddressError(f'the end "{address.end}" of {address.device} cannot be opened as "{sock_type}"')
    try:
        number = int(address.device, 16)
    except ValueError:
        number = -1
    if len(address.device) != 16 or number < 0:
        raise AddressError(f"{address.device!r} is no device's id, which is 16 hexadecimal digits")
    return number, address.end
