"""Finds the node of this process tree, and starts it with the tree's first queue.

Every process that descends from the one which started the node uses the same, whatever started it. A process whose
ancestors' node is gone begins a tree of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from fiberq import inherit
from fiberq.address import parse
from fiberq.errors import ConfigError, NodeError, PlatformError
from fiberq.settings import config

_BOOT = (
    "import sys, json; settings = json.loads(sys.stdin.readline() or sys.exit()); sys.path[:] = settings['path'];"
    "from fiberq.node import main; main(settings)"
)

WHAT_TO_SET = (
    "start `fiberq serve` there and set config.node, or set config.listen, such as tcp://0.0.0.0:0, before its first "
    "queue"
)

_lock = threading.RLock()  # which knows its owner
_started: dict[str, _Started] = {}
_told: set[str] = set()  # files that others can read


class Endpoint(NamedTuple):
    """Where a node is, the transport (``"module:Class"``) that reaches it, and what it asks for: see `access`."""

    target: str
    address: str
    key: str | None = None
    far: str | None = None
    """Where other machines reach it, if that is not `address`."""
    host: str | None = None
    """The name of the machine whose own addresses `address` is one of."""

    def __repr__(self) -> str:
        return f"Endpoint({self.target!r}, {self.address!r})"

    def from_here(self) -> str:
        """The address to connect to from this machine. Raises `NodeError` if the node cannot be reached from here."""
        where = parse(self.address)
        here = self.host in (None, os.uname().nodename)
        if os.path.exists(where.location) if where.scheme == "ipc" else here:
            return self.address
        if self.far is None and not here:
            raise NodeError(
                f"this handle is of a queue on {self.host}, whose node listens on no network: {WHAT_TO_SET}"
            )
        return self.far or self.address

    def why_not(self) -> str:
        """What else to say when nobody listens there: neither a URL nor a host's name tells which machine it is, and
        not each transport says when a name stands for no machine."""
        where = parse(self.address)
        if where.scheme == "tcp":
            return _unknown(where.location)
        if where.scheme != "ipc" or self.far is not None or os.path.exists(where.location):
            return ""
        return f"; its node is gone, or runs on another machine and listens on no network: {WHAT_TO_SET}"


def _unknown(location: str) -> str:
    import socket

    try:
        socket.getaddrinfo(location.rpartition(":")[0].strip("[]"), None)
    except OSError as error:
        return f"; the name of its host cannot be resolved: {error.strerror}"
    return ""


class _Started(NamedTuple):
    process: subprocess.Popen[bytes]
    directory: str


def endpoint() -> Endpoint:
    """Return the node that new queues of this process are made on; start one if there is none.

    Blocks until the node listens, at most `config.connect_timeout` seconds; raises `NodeError` if it does not, and
    `TransportLoadError` if the transport cannot be loaded.
    """
    from fiberq.registry import resolve

    if config.node is not None:
        return at(config.node)
    target = resolve(config.transport)
    if _lock._is_owned():  # type: ignore[attr-defined]
        raise RuntimeError("a signal's handler makes a queue while its thread is starting the node")
    with _lock:
        known = inherit.get("tree", {}).get(target)
        if not known:
            return _start(target)
        if config.listen is not None and known[2] is None:
            raise ConfigError("config.listen was set when the node ran already: set it before the first queue is made")
        return Endpoint(target, *known)


def at(node: str) -> Endpoint:
    """Return the node that a URL names, an address, or the first line of the file at a path.

    Raises `AddressError` and `ConfigError`, which do not show what they are about.
    """
    from fiberq.access import read_url
    from fiberq.registry import resolve

    if "://" not in node:
        path = os.path.expanduser(node.removeprefix("file:"))
        try:
            with open(path) as file:
                node = file.readline().strip()
                shared = os.fstat(file.fileno()).st_mode & 0o007
        except (OSError, UnicodeDecodeError) as error:
            why = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise ConfigError(f"config.node names no URL, and no file that can be read: {why}") from None
        if not node:
            raise ConfigError("config.node names a file whose first line is empty: a node's URL belongs there")
        if shared and "@" in node and path not in _told:
            _told.add(path)
            import logging

            logging.getLogger("fiberq").warning("every user can read the URL of a node in %s: chmod o= %s", path, path)
    url = read_url(node)
    host = os.uname().nodename if url.address.scheme == "ipc" else None
    return Endpoint(resolve(url.transport or config.transport), url.address.node, url.key, host=host)


def forget(gone: Endpoint) -> None:
    """The node of this tree is gone: the next queue starts another."""
    with _lock:
        tree = dict(inherit.get("tree", {}))
        if tree.get(gone.target, [None])[0] == gone.address:
            del tree[gone.target]
            inherit.put("tree", tree)
        if gone.address in _started:
            _sweep(gone.address)


def _start(target: str) -> Endpoint:
    if not hasattr(select, "poll") or sys.platform == "win32":
        raise PlatformError(f"fiberq runs on Linux and macOS, not on {sys.platform}")
    from fiberq.registry import load_target

    load_target(target)  # what is wrong with it is said here, and not by the node
    settings = {
        "target": target,
        "parent": os.getpid(),
        "path": [os.path.abspath(path) for path in sys.path],
        "spin_us": config.spin_us,
        "heartbeat": config.heartbeat,
        "listen": config.listen,
        "advertise": config.advertise,
        "allow_insecure": config.allow_insecure,
        "shared_memory": config.shared_memory,
        "max_connections": config.max_connections,
        "broker": {
            "session_grace": config.session_grace,
            "session_timeout": config.session_timeout,
            "max_bytes": config.max_bytes,
            "max_deliveries": config.max_deliveries,
        },
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in the terminal is for the user's program
    )
    try:
        line = _handshake(process, json.dumps(settings).encode() + b"\n", config.connect_timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if line is None:
        status = _exit_status(process)
        how = f"did not start within {config.connect_timeout:g} s" if status is None else f"ended with status {status}"
        raise NodeError(f"the node for the transport {target} {how}; what it said is on standard error")
    ready = json.loads(line)
    if "error" in ready:
        _exit_status(process)
        raise NodeError(f"the node for the transport {target} cannot start: {ready['error']}")
    address = str(ready["address"])
    _started[address] = _Started(process, ready["directory"])
    found = [address, ready["key"], ready["far"], os.uname().nodename]
    inherit.put("tree", {**inherit.get("tree", {}), target: found})
    return Endpoint(target, *found)


def _handshake(process: subprocess.Popen[bytes], settings: bytes, timeout: float) -> bytes | None:
    """Give the new process its settings, and return the line that it answers; `None` if none comes in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    with process.stdin, process.stdout:
        try:
            process.stdin.write(settings)
            process.stdin.close()
        except BrokenPipeError:
            return None
        poller = select.poll()
        poller.register(process.stdout, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if not poller.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                return None
            some = os.read(process.stdout.fileno(), 4096)
            if not some:
                return None
            line += some
        return line


def _exit_status(process: subprocess.Popen[bytes]) -> int | None:
    """End a node that did not answer; return with which status it had ended by itself."""
    try:
        return process.wait(0.5)  # it closes its side a moment before it ends
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _sweep(address: str) -> None:
    """Tidy up after a node of ours that was killed; one that still runs is left alone."""
    started = _started[address]
    if started.process.poll() is not None:
        shutil.rmtree(started.directory, ignore_errors=True)
        del _started[address]


@atexit.register
def _at_exit() -> None:
    for address, started in list(_started.items()):
        _sweep(address)
        started.process.returncode = started.process.returncode or 0  # it outlives us on purpose: no ResourceWarning


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for started in _started.values():
        started.process.returncode = 0  # the parent's to wait for
    _started.clear()


os.register_at_fork(after_in_child=_after_fork)
