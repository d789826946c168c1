"""Every error that fiberq raises: one tree, rooted at `FiberqError`.

Each class also derives from the built-in that a `multiprocessing` user would catch, so existing `except` clauses go on
working. Outside the tree are only `queue.Empty`, `multiprocessing.BufferTooShort`, and the `ValueError` and `TypeError`
for an argument that no call could take.
"""

from __future__ import annotations

import queue

__all__ = [
    "AccessError",
    "AddressError",
    "ClosedError",
    "ConfigError",
    "ConnectError",
    "ConnectionEnded",
    "ConnectionLost",
    "DirectionError",
    "FiberqError",
    "HandleError",
    "ItemError",
    "LeaseLost",
    "MessageTooLong",
    "NodeError",
    "PlatformError",
    "ProtocolError",
    "ReadEnded",
    "ShutDown",
    "TransportError",
    "TransportLoadError",
    "UnknownTransport",
    "WriteEnded",
]


class FiberqError(Exception):
    """The root of all errors that fiberq raises."""


class ConfigError(FiberqError, ValueError):
    """A setting is unknown or has the wrong type; the message names the key, where it was set and the nearest key."""


class AddressError(FiberqError, ValueError):
    """An address or a handle tuple that cannot be parsed."""


class PlatformError(FiberqError, OSError):
    """This operating system, or this state of the process, cannot do what was asked."""


class ItemError(FiberqError, ValueError):
    """An object that cannot travel: it cannot be pickled, or is larger than the node accepts."""


class LeaseLost(FiberqError, ValueError):
    """An item that this process had was given to another meanwhile: its lease had run out, or the process did not
    answer for so long that the node took the item back."""


class HandleError(FiberqError, EOFError):
    """The queue or pipe behind a handle is gone: its last holder closed it or died, or somebody deleted it."""


class ClosedError(FiberqError, ValueError, OSError):
    """This process closed the handle or socket before it used it again."""


class DirectionError(FiberqError, OSError):
    """A write on a read-only connection, or a read on a write-only one."""


class ConnectionEnded(FiberqError):
    """The other end of a pipe has no holder left: the root of two errors, one for each direction."""


class ReadEnded(ConnectionEnded, EOFError):
    """Everything that the other end sent was read, and nobody is left to send more."""


class WriteEnded(ConnectionEnded, BrokenPipeError):
    """Nobody is left to receive. `errno` is EPIPE."""


class ShutDown(FiberqError, getattr(queue, "ShutDown", Exception)):  # type: ignore[misc]
    """The queue was shut down: nothing more can be put, or all that there was is got. A `queue.ShutDown`, which Python
    has from 3.13 on."""


class MessageTooLong(FiberqError, OSError):
    """A message is longer than `recv_bytes` was to take; nothing more is received on that connection."""


class NodeError(FiberqError, OSError):
    """The node that holds the queue cannot be reached, is gone, or refused this process."""


class AccessError(NodeError, PermissionError):
    """The node does not let this process do that: it has no right to it, or one that expired or was revoked."""


class ProtocolError(FiberqError, OSError):
    """The peer speaks another version of the protocol, or sent a frame that breaks it."""


class TransportError(FiberqError, OSError):
    """The root of the errors that a transport raises."""


class ConnectError(TransportError, ConnectionRefusedError):
    """Nobody listens at the address, or nobody answered within the timeout."""


class ConnectionLost(TransportError, ConnectionResetError):
    """A client socket's one connection is gone; every message that had arrived was received before this was raised."""


class UnknownTransport(FiberqError, ValueError):
    """No installed plug-in has this name; the message lists the installed ones and the nearest."""


class TransportLoadError(FiberqError, ImportError):
    """A plug-in is installed but cannot be used; the message names it and says what to change."""
