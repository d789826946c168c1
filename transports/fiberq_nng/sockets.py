"""The server and the client: non-blocking calls into NNG, and one descriptor to wait at.

NNG's raw REP and REQ are asynchronous in both directions. The first four bytes of the header of a message that a REP
socket received are its connection's number, and route whatever is sent back with them. What REQ wants is a request
number, which fiberq has no use for: it is the same in each message.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import sys
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from time import monotonic, sleep
from typing import Any

from fiberq.abc import MIN_QUEUED, Buffer, ClientSocket, Credentials, Message, PeerLost, ServerSocket
from fiberq.address import hidden
from fiberq.errors import ClosedError, ConnectError, ConnectionLost, TransportError

from . import tls
from .address import Endpoint, parse
from .descriptors import KEPT
from .native import load
from .strangers import Strangers
from .wire import COPY_BELOW, Wire

__all__ = ["NngClient", "NngServer"]

_REQUEST = b"\x80\x00\x00\x01"  # the high bit ends the list of hops
_ONE_PART = _REQUEST + b"\1"
_SERVER_QUEUE = 1024  # messages of all peers; what exceeds it waits at the peers
_CLIENT_QUEUE = 4 * MIN_QUEUED
_SEND_QUEUE_MAX = 8192  # NNG's limit; it drains into one queue of 64 for each peer
_STALLED = 5.0  # seconds
_LONGEST_WAIT = 86_400.0  # seconds: `poll` counts milliseconds in 32 bits
_NEVER = 0x7FFFFFFF  # milliseconds
_MOST = 0xFFFFFFFF  # bytes: NNG takes no higher limit for a message
_UNLIMITED = 0
_NOWHERE: Endpoint = ("", 0)
_IN, _IN6 = 3, 4  # NNG_AF_INET, NNG_AF_INET6
_NONBLOCK, _AGAIN, _CLOSED = 2, 8, 7  # NNG_FLAG_NONBLOCK, NNG_EAGAIN, NNG_ECLOSED: part of NNG's ABI


class Waiter:
    """One descriptor that is readable while a socket's own one is, or since `wake`.

    NNG may close the socket's descriptor at any time; this one lives until nobody waits at it any more.
    """

    def __init__(self, source: int) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._both = _watch(source, self._reader)
        self._poll = select.poll()
        self._poll.register(self._both.fileno(), select.POLLIN)
        # Reentrant: a signal handler may close the socket in the middle of its own wait.
        self._lock = threading.RLock()
        self._waiting = 0
        self._closed = False

    def fileno(self) -> int:
        return self._both.fileno()

    def wake(self) -> None:
        """Make the descriptor readable until `rest`."""
        with self._lock:
            if not self._both.closed:
                with contextlib.suppress(BlockingIOError):  # it has been readable for long
                    os.write(self._writer, b"\0")

    def rest(self) -> None:
        """Undo all calls of `wake` so far."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    while len(os.read(self._reader, 4096)) == 4096:
                        pass

    def wait(self, deadline: float | None) -> bool:
        """Wait until the descriptor is readable, and return whether it may be; `False` at the deadline."""
        left = None if deadline is None else deadline - monotonic()
        if left is not None and left <= 0:
            return False
        with self._lock:
            if self._closed:
                return True
            self._waiting += 1
        try:
            if left is None or left <= _LONGEST_WAIT:
                return bool(self._poll.poll(None if left is None else left * 1000))
            self._poll.poll(_LONGEST_WAIT * 1000)
            return True
        finally:
            with self._lock:
                self._waiting -= 1
                self._release()

    def close(self) -> None:
        """End all waits; the last of them gives the descriptors back."""
        with self._lock:
            self._closed = True
            self.wake()
            self._release()

    def abandon(self) -> None:
        """Let go of the descriptors in a forked child, where the threads that waited or held the lock are not. The
        pipe is the parent's: what is written to it wakes the parent."""
        self._lock = threading.RLock()
        self._waiting = 0
        self._closed = True
        self._release()

    def _release(self) -> None:
        if self._closed and not self._waiting and not self._both.closed:
            self._both.close()
            os.close(self._reader)
            os.close(self._writer)


if sys.platform == "linux":

    def _watch(*fds: int) -> select.epoll:
        both = select.epoll()
        for fd in fds:
            both.register(fd, select.EPOLLIN)
        return both

else:

    def _watch(*fds: int) -> select.kqueue:
        both = select.kqueue()
        both.control([select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD) for fd in fds], 0)
        return both


class _Socket:
    """What a server and a client have in common: NNG's socket, its descriptor, and its end."""

    def __init__(
        self, credentials: Credentials | None, heartbeat: float, raw_open: str, send_queue: int, recv_queue: int
    ) -> None:
        native = load()
        self._native, self._lib, self._ffi = native, native.lib, native.ffi
        self._credentials = credentials
        self.heartbeat = heartbeat
        self.encrypted = credentials is not None
        self._endpoints: set[Endpoint] = set()
        self._closed = False
        self._sock = native.open(getattr(native.lib, raw_open))
        self._recvmsg, self._sendmsg, self._send_copy = (
            native.lib.nng_recvmsg,
            native.lib.nng_sendmsg,
            native.lib.nng_send,
        )
        self._cell = native.ffi.new("nng_msg **")
        self._wire = Wire(native)
        self._set("send-buffer", send_queue)
        self._set("recv-buffer", recv_queue)
        cell = native.ffi.new("int *")
        native.check(native.lib.nng_socket_get_int(self._sock, b"recv-fd", cell))
        self._waiter = Waiter(cell[0])
        native.adopt(self._sock, self)

    def _set(self, option: str, value: int) -> None:
        self._native.check(self._lib.nng_socket_set_int(self._sock, option.encode(), value))

    def _refuse(self, *_: object) -> int:
        return _CLOSED

    def admits(self, pipe: int) -> bool:  # noqa: ARG002
        return True

    def pipe_removed(self, pipe: int) -> None:
        raise NotImplementedError

    def endpoints(self) -> set[Endpoint]:
        return self._endpoints

    def abandon(self) -> None:
        self._closed = True
        self._recvmsg = self._sendmsg = self._send_copy = self._refuse
        self._waiter.abandon()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._waiter.close()
            self._native.close(self._sock)
            self._endpoints = set()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this nng socket is closed")

    def _credentials_for(self, address: str, scheme: str) -> Credentials | None:
        """The credentials that protect `address`. NNG has no TLS on UNIX sockets: rather refuse than be open."""
        if self._credentials is not None and scheme != "tcp":
            raise TransportError(f"nng: {hidden(address)} cannot be protected by credentials: only tcp can")
        return self._credentials


class NngServer(_Socket, ServerSocket):
    """A raw REP socket. A peer is the number of its connection, which NNG gives to no other one.

    `PeerLost` is reported also for a connection over which no message came.
    """

    def __init__(self, credentials: Credentials | None, heartbeat: float) -> None:
        super().__init__(credentials, heartbeat, "nng_rep0_open_raw", _SEND_QUEUE_MAX, _SERVER_QUEUE)
        self._ready: deque[Message | PeerLost] = deque()
        self._removed: deque[int] = deque()
        self._pipes: dict[int, Endpoint] = {}
        """Where they come from, or `_NOWHERE`."""
        self._gone: deque[tuple[float, Endpoint]] = deque()
        self._too_many: deque[Endpoint] = deque()
        self._strangers: list[Strangers] = []
        self._pipe = self._ffi.new("uint32_t *")
        self._pipe_of, self._route = self._lib.nng_msg_header_trim_u32, self._lib.nng_msg_header_append_u32
        self.garbage = 0

    def bind(self, address: str) -> str:
        self._check_open()
        target = parse(address)
        if target.scheme == "ipc" and _is_no_socket(target.path):
            # NNG would take it for a socket that a dead server left, and delete it.
            raise TransportError(f"nng: cannot bind to {hidden(address)}: there is a file that is not a socket")
        credentials = self._credentials_for(address, target.scheme)
        if target.scheme == "tcp":
            self._native.watch(self._sock)
        most = self.max_message if self.max_message <= _MOST else _UNLIMITED
        self._native.check(self._lib.nng_socket_set_size(self._sock, b"recv-size-max", most))
        cell = self._ffi.new("nng_listener *")
        code = self._lib.nng_listener_create(cell, self._sock, target.url(encrypted=credentials is not None))
        if code == 0 and credentials is not None:
            tls.protect_listener(self._native, cell[0], credentials)
        code = code or self._lib.nng_listener_start(cell[0], 0)
        if code:
            self._check_open()
            self._lib.nng_listener_close(cell[0])
            raise TransportError(f"nng: cannot bind to {hidden(address)}: {self._native.reason(code)}")
        if target.scheme == "tcp":
            port = self._ffi.new("int *")
            self._native.check(self._lib.nng_listener_get_int(cell[0], b"tcp-bound-port", port))
            target = target._replace(port=port[0])
            if credentials is not None:
                listener = cell[0]
                self._strangers.append(Strangers(port[0], self, lambda: self._failed(listener)))
        self._endpoints.add(target.endpoint())
        return str(target)

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        deadline = None
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._removed:
                self._settle()
                continue
            message = self._take()
            if message is not None:
                return message
            if self._removed:
                continue
            if timeout == 0:
                return None
            if timeout is not None and deadline is None:
                deadline = monotonic() + timeout
            if self._waiter.wait(deadline):
                self._waiter.rest()
            else:
                timeout = 0

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        msg = self._wire.message(_REQUEST, parts)
        self._route(msg, peer)
        code = self._sendmsg(self._sock, msg, _NONBLOCK)
        if code:
            self._send_again(msg, code)

    def drop(self, peer: Hashable) -> None:
        if not self._closed:
            self._lib.nng_pipe_close(self._ffi.new("nng_pipe *", (peer,))[0])

    def close(self) -> None:
        for each in self._strangers:
            each.stop()
        super().close()

    def abandon(self) -> None:
        self._strangers = []  # their threads are the parent's
        super().abandon()

    def admits(self, pipe: int) -> bool:
        end = self._pipes[pipe] = self._other_end(pipe)
        welcome = len(self._pipes) <= self.max_connections
        if not welcome:
            self._too_many.append(end)
        return welcome

    def pipe_removed(self, pipe: int) -> None:
        self._gone.append((monotonic(), self._pipes.pop(pipe, _NOWHERE)))
        self._removed.append(pipe)
        self._waiter.wake()

    def other_ends(self) -> set[Endpoint]:
        return set(self._pipes.copy().values())

    def ends_gone(self) -> set[Endpoint]:
        return {end for _, end in self._gone.copy()}

    def _other_end(self, pipe: int) -> Endpoint:
        address = self._ffi.new("nng_sockaddr *")
        if self._lib.nng_pipe_get_addr(self._ffi.new("nng_pipe *", (pipe,))[0], b"remote-address", address):
            return _NOWHERE
        return _host_and_port(self._ffi, address)

    def _failed(self, listener: Any) -> int:
        """How many handshakes have failed, in NNG's own count. Those that the other end broke off are not in it."""
        if self._closed:
            return 0
        cell = self._ffi.new("nng_stat **")
        if self._lib.nng_stats_get(cell):
            return 0
        try:
            scope = self._lib.nng_stat_find_listener(cell[0], listener)
            return 0 if not scope else int(self._lib.nng_stat_value(self._lib.nng_stat_find(scope, b"auth")))
        finally:
            self._lib.nng_stats_free(cell[0])

    def _take(self) -> Message | None:
        """Return the next message of NNG's queue, if there is one, and skip garbage."""
        while True:
            code = self._recvmsg(self._sock, self._cell, _NONBLOCK)
            if code:
                if code != _AGAIN or self._closed:
                    self._check_open()
                    self._native.check(code)
                return None
            msg = self._cell[0]
            self._pipe_of(msg, self._pipe)
            peer = self._pipe[0]
            parts = self._wire.parts(msg)
            if parts is not None:
                return Message(peer, parts)
            # What this peer sends next would be garbage, too: hang up, lest it keep us busy.
            self.garbage += 1
            self._lib.nng_pipe_close(self._ffi.new("nng_pipe *", (peer,))[0])

    def _settle(self) -> None:
        """Move the removed connections' losses behind the last messages that came over them.

        NNG reports a removal while messages of that connection are in its queue, but puts no more there afterwards:
        once as many messages as the queue holds were taken, or it was empty, all of them are here.
        """
        removed = len(self._removed)
        for _ in range(_SERVER_QUEUE + 1):
            message = self._take()
            if message is None:
                break
            self._ready.append(message)
        for _ in range(removed):
            self._ready.append(PeerLost(self._removed.popleft()))
        self._tell_of_removed()

    def _tell_of_removed(self) -> None:
        while self._too_many:
            end = self._too_many.popleft()
            self.refused(None if end == _NOWHERE else end, f"there are {self.max_connections} connections already")
        earliest = monotonic() - KEPT
        while self._gone and self._gone[0][0] < earliest:
            self._gone.popleft()

    def _send_again(self, msg: Any, code: int) -> None:
        # This queue is emptied by NNG, into those of the peers, whatever the peers do. It is full only for a moment.
        deadline = monotonic() + _STALLED
        while code == _AGAIN and monotonic() < deadline:
            sleep(0.0002)
            code = self._sendmsg(self._sock, msg, _NONBLOCK)
        if code:
            self._lib.nng_msg_free(msg)
            self._check_open()
            self._native.check(code)


class NngClient(_Socket, ClientSocket):
    """A raw REQ socket with one dialer, which never dials again."""

    def __init__(self, credentials: Credentials | None, heartbeat: float) -> None:
        super().__init__(credentials, heartbeat, "nng_req0_open_raw", _CLIENT_QUEUE, _CLIENT_QUEUE)
        self._lost = False
        self._address = ""

    def connect(self, address: str, timeout: float | None) -> None:
        target = parse(address)
        self._check_open()
        self._address = address
        credentials = self._credentials_for(address, target.scheme)
        self._native.check(self._lib.nng_socket_set_ms(self._sock, b"reconnect-time-min", _NEVER))
        if target.scheme == "tcp":
            self._native.watch(self._sock)
        cell = self._ffi.new("nng_dialer *")
        code = self._lib.nng_dialer_create(cell, self._sock, target.url(encrypted=credentials is not None))
        if code == 0 and credentials is not None:
            tls.protect_dialer(self._native, cell[0], credentials)
        self._endpoints.add(target.endpoint())
        try:
            code = code or self._dial(cell[0], timeout)
        except BaseException:
            self.close()
            raise
        if code:
            self._check_open()
            self.close()
            raise ConnectError(f"nng: cannot connect to {hidden(address)}: {self._native.reason(code)}")

    def _dial(self, dialer: Any, timeout: float | None) -> int:
        """Return NNG's code for one attempt to connect. Only a blocking call tells why it failed: give it a thread."""
        codes: list[int] = []
        done = threading.Event()

        def dial() -> None:
            codes.append(self._lib.nng_dialer_start(dialer, 0))
            done.set()

        threading.Thread(target=dial, name="fiberq-nng-connect", daemon=True).start()
        return codes[0] if done.wait(timeout) else int(self._lib.NNG_ETIMEDOUT)

    def send(self, parts: Sequence[Buffer]) -> None:
        if self._lost:
            raise self._gone()
        if len(parts) == 1 and type(parts[0]) is bytes and len(parts[0]) < COPY_BELOW:
            body = _ONE_PART + parts[0]
            code = self._send_copy(self._sock, body, len(body), _NONBLOCK)
        else:
            msg = self._wire.message(_REQUEST, parts)
            code = self._sendmsg(self._sock, msg, _NONBLOCK)
            if code:
                self._lib.nng_msg_free(msg)
        if code == _AGAIN:
            raise TransportError(f"nng: more than {_CLIENT_QUEUE} messages to {hidden(self._address)} are under way")
        if code:
            raise self._gone()

    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        deadline = None
        while True:
            lost = self._lost  # read first: what had arrived by then is in the queue
            code = self._recvmsg(self._sock, self._cell, _NONBLOCK)
            if code == 0:
                parts = self._wire.parts(self._cell[0])
                if parts is not None:
                    return parts
                self._lost = True
                self._native.close(self._sock)
            elif code != _AGAIN or lost or self._closed:
                self._native.close(self._sock)  # its dialer, too
                raise self._gone()
            elif timeout == 0:
                return None
            else:
                if timeout is not None and deadline is None:
                    deadline = monotonic() + timeout
                if not self._waiter.wait(deadline):
                    timeout = 0

    def fileno(self) -> int:
        self._check_open()
        return self._waiter.fileno()

    def pipe_removed(self, pipe: int) -> None:  # noqa: ARG002 - there is only one
        self._lost = True
        self._waiter.wake()

    def _gone(self) -> Exception:
        if self._closed:
            return ClosedError("this nng socket is closed")
        return ConnectionLost(f"nng: the connection to {hidden(self._address)} is gone")


def _host_and_port(ffi: Any, address: Any) -> tuple[str, int]:
    """What `getpeername` says of an address of NNG's, whose numbers are in network order; `_NOWHERE` for a path."""
    if address.s_family not in (_IN, _IN6):
        return _NOWHERE
    if address.s_family == _IN6:
        host = socket.inet_ntop(socket.AF_INET6, bytes(ffi.buffer(address.s_in6.sa_addr)))
        return host, socket.ntohs(address.s_in6.sa_port)
    return socket.inet_ntoa(bytes(ffi.buffer(ffi.addressof(address.s_in, "sa_addr")))), socket.ntohs(
        address.s_in.sa_port
    )


def _is_no_socket(path: str) -> bool:
    try:
        return not stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
