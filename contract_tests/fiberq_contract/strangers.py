"""Plain sockets that do not speak the transport's language: a mute listener, a raw connection, a relay."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from .lab import Lab

__all__ = ["Relay", "dial", "mute_listener", "nobody"]


def _family(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    return socket.AF_INET, (host, int(port))


def dial(address: str) -> socket.socket:
    """A raw connection to a transport's address."""
    family, where = _family(address)
    sock = socket.socket(family)
    try:
        sock.settimeout(10)
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(lab: Lab, name: str) -> tuple[socket.socket, str]:
    family, where = _family(f"ipc://{lab.path(name)}" if lab.wire.scheme == "ipc" else "tcp://127.0.0.1:0")
    listener = socket.socket(family)
    listener.bind(where)
    listener.listen()
    rest = lab.path(name) if family == socket.AF_UNIX else "{}:{}".format(*listener.getsockname())
    return listener, f"{lab.wire.scheme}://{rest}"


@contextlib.contextmanager
def mute_listener(lab: Lab) -> Iterator[str]:
    """The address of a listener that lets clients connect, and never says anything."""
    listener, address = _listen(lab, "mute")
    with listener:
        yield address


def nobody(lab: Lab) -> str:
    """An address at which nobody listens."""
    listener, address = _listen(lab, "nobody")
    listener.close()
    return address


class Relay:
    """Passes the bytes of one connection on, both ways, and keeps a copy."""

    def __init__(self, lab: Lab, target: str) -> None:
        self._listener, self.address = _listen(lab, "relay")
        self._target = target
        self._sockets = [self._listener]
        self.heard = bytearray()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            near, _ = self._listener.accept()
            far = dial(self._target)
            far.settimeout(None)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
