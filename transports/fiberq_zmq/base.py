"""What the server's and the client's socket share: addresses, the wake descriptor, the monitor, waiting and closing."""

from __future__ import annotations

import itertools
import os
import select
import selectors
import struct
import threading
from time import monotonic

import zmq
import zmq.backend

from fiberq.address import hidden
from fiberq.errors import AddressError, ClosedError
from fiberq.wakeup import Wakeup

__all__ = ["DONTWAIT", "EVENTS", "POLLIN", "RCVMORE", "SNDMORE", "Base", "parse"]

# Plain integers: an enum member costs more than the call that it is passed to.
DONTWAIT = int(zmq.DONTWAIT)
SNDMORE = int(zmq.SNDMORE | zmq.DONTWAIT)
EVENTS = int(zmq.EVENTS)
POLLIN = int(zmq.POLLIN)
RCVMORE = int(zmq.RCVMORE)

LONGEST_WAIT = 86_400.0
"""Seconds: a longer timeout is waited for piecemeal, because `poll` counts milliseconds in 32 bits."""

_monitor_names = itertools.count()


def parse(address: str) -> tuple[str, str]:
    """Return the scheme and the rest of ``ipc://path`` or ``tcp://host:port``; raise `AddressError`."""
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in ("ipc", "tcp") or not rest or "\0" in rest:
        raise AddressError(f"zmq: not an address: {hidden(address)!r}; write ipc:///path or tcp://host:port")
    if scheme == "ipc":
        if len(os.fsencode(rest)) > zmq.IPC_PATH_MAX_LEN:
            limit = f"the path may have at most {zmq.IPC_PATH_MAX_LEN} bytes on this system"
            raise AddressError(f"zmq: the path is too long: {hidden(address)!r}; {limit}")
    else:
        host, _, port = rest.rpartition(":")
        valid = port.isascii() and port.isdigit() and int(port) <= 65535
        if not valid or not host or any(c in host for c in ";/@ ") or (":" in host and host[0] + host[-1] != "[]"):
            raise AddressError(f"zmq: not a TCP address: {hidden(address)!r}; write tcp://host:port")
    return scheme, rest


class Base:
    """A ZeroMQ socket, its monitor, and a flag, watched together by one descriptor.

    Every public method of a subclass holds `_lock`, so that `close` never pulls a socket from under a running call:
    it sets the flag, which ends any wait, and then takes the lock itself.
    """

    def __init__(self, context: zmq.backend.Context, kind: int, events: int) -> None:
        # The backend's classes: the ones above them add a Python call to each send, and close sockets when collected.
        self._socket = zmq.backend.Socket(context, kind)
        self._monitor = zmq.backend.Socket(context, zmq.PAIR)
        for socket in (self._socket, self._monitor):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SNDHWM, 0)
            socket.set(zmq.RCVHWM, 0)  # on the monitor, too: a full one stalls the whole socket
        name = f"inproc://fiberq-monitor-{next(_monitor_names)}"
        self._socket.monitor(name, events)
        self._monitor.connect(name)
        self._flag = Wakeup()
        self._selector = selectors.DefaultSelector()
        for watched in (self._socket.get(zmq.FD), self._monitor.get(zmq.FD), self._flag):
            self._selector.register(watched, selectors.EVENT_READ)  # type: ignore[arg-type]
        self._poll = select.poll()
        self._poll.register(self._selector.fileno(), select.POLLIN)
        self._lock = threading.RLock()
        self._closed = False
        self._closing = threading.Lock()

    def close(self) -> None:
        if not self._closing.acquire(blocking=False):
            return
        self._closed = True
        self._flag.set()
        with self._lock:
            self._socket.monitor(None, 0)  # first: reporting to a monitor that nobody reads blocks libzmq's I/O thread
            self._socket.close()
            self._monitor.close()
            self._selector.close()
            self._flag.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("zmq: this socket is closed")

    def _wait(self, deadline: float | None) -> bool:
        """Wait until something may have happened; false once `deadline` has passed.

        Right only when nothing was left unread: libzmq's descriptors are edge-triggered.
        """
        left = LONGEST_WAIT if deadline is None else min(deadline - monotonic(), LONGEST_WAIT)
        if left <= 0:
            return False
        self._poll.poll(left * 1000)
        self._check_open()
        return True

    def _monitored(self) -> tuple[int, int] | None:
        """The monitor's next event and its value; `None` when there is none."""
        if not self._monitor.get(EVENTS) & POLLIN:  # type: ignore[operator]
            return None
        event, value = struct.unpack("=HI", self._monitor.recv(DONTWAIT))
        self._monitor.recv(DONTWAIT)  # the endpoint
        return event, value
