"""How the parts of a fiberq message lie in the one body of an NNG message.

One byte with the number of parts, the lengths of all parts but the last as unsigned 64-bit big-endian integers, and
the parts. A message of no parts is one zero byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

from fiberq.abc import MAX_PARTS, Buffer

from .native import Native

__all__ = ["COPY_BELOW", "Wire", "is_small", "pack"]

COPY_BELOW = 32 * 1024
"""Bodies below this many bytes are copied, which costs less than keeping NNG's message alive; larger ones are not."""

_LENGTHS = [Struct(f">{max(count - 1, 0)}Q") for count in range(MAX_PARTS + 1)]


def prefix(parts: Sequence[Buffer]) -> bytes:
    """Return what precedes the parts in the body. Raises `ValueError` for more than `MAX_PARTS` parts."""
    count = len(parts)
    if count > MAX_PARTS:
        raise ValueError(f"a message has at most {MAX_PARTS} parts, not {count}")
    return bytes((count,)) + _LENGTHS[count].pack(*map(size, parts[:-1]))


def size(part: Buffer) -> int:
    """Return a part's length in bytes; `len` of a memoryview counts items."""
    return part.nbytes if isinstance(part, memoryview) else len(part)


def is_small(parts: Sequence[Buffer]) -> bool:
    """Return whether joining the parts costs less than appending them one by one."""
    return sum(map(size, parts)) < COPY_BELOW


def pack(header: bytes, parts: Sequence[Buffer]) -> bytes:
    """Return `header` and the body of a small message as one object."""
    if len(parts) == 1:
        return b"".join((header, b"\1", parts[0]))
    return b"".join((header, prefix(parts), *parts))


def split(body: bytes | memoryview) -> Sequence[Buffer] | None:
    """Return the parts in `body`, as slices of it; `None` if it is garbage."""
    if not body or body[0] > MAX_PARTS:
        return None
    count = body[0]
    lengths = _LENGTHS[count]
    start = 1 + lengths.size
    if start > len(body):
        return None
    parts: list[Buffer] = []
    for length in lengths.unpack_from(body, 1):
        parts.append(body[start : start + length])
        start += length
    if start > len(body) or (count == 0 and start != len(body)):
        return None
    if count:
        parts.append(body[start:])
    return parts


class Wire:
    """Makes NNG messages of parts, and parts of NNG messages."""

    def __init__(self, native: Native) -> None:
        ffi, lib = native.ffi, native.lib
        self._check = native.check
        self._alloc, self._reserve, self._append = lib.nng_msg_alloc, lib.nng_msg_reserve, lib.nng_msg_append
        self._body, self._len, self._free = lib.nng_msg_body, lib.nng_msg_len, lib.nng_msg_free
        self._buffer, self._from_buffer, self._gc = ffi.buffer, ffi.from_buffer, ffi.gc
        self._cell = ffi.new("nng_msg **")

    def message(self, header: bytes, parts: Sequence[Buffer]) -> Any:
        """Return a new NNG message whose body is `header` and `parts`. The caller sends or frees it."""
        cell, append = self._cell, self._append
        self._check(self._alloc(cell, 0))
        msg = cell[0]
        try:
            if is_small(parts):
                data = pack(header, parts)
                self._check(append(msg, data, len(data)))
            else:
                # Room first, so that each part is copied exactly once.
                head = header + prefix(parts)
                self._check(self._reserve(msg, len(head) + sum(map(size, parts))))
                self._check(append(msg, head, len(head)))
                for part in parts:
                    self._check(append(msg, self._from_buffer(part), size(part)))
        except BaseException:
            self._free(msg)
            raise
        return msg

    def parts(self, msg: Any) -> Sequence[Buffer] | None:
        """Return the parts of a received NNG message, which this call takes over; `None` if it is garbage.

        The parts of a large message are writable views of it: NNG has no other use for it, and its memory is
        given back with the last view.
        """
        length = self._len(msg)
        body = self._body(msg)
        if length < COPY_BELOW:
            data = self._buffer(body, length)
            if length and data[0] == b"\1":
                single = data[1:]
                self._free(msg)
                return (single,)
            copy: bytes = data[:]
            self._free(msg)
            return split(copy)
        free = self._free
        owned = self._gc(body, lambda _: free(msg), length)
        return split(memoryview(self._buffer(owned, length)))
