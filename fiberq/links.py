"""The links of this process: one to each node that it uses, from the first use to the process's end, or to a fork."""

from __future__ import annotations

import atexit
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from fiberq import registry, tree
from fiberq.abc import Transport
from fiberq.address import parse
from fiberq.errors import AccessError, ClosedError, ConnectError, NodeError, TransportError
from fiberq.lifeline import ForkLifeline
from fiberq.link import Link
from fiberq.settings import config
from fiberq.tree import Endpoint

T = TypeVar("T")

FORK_PATIENCE: Final = 0.2
"""Seconds that a fork waits for another thread that connects: a node answers in a hundredth of that."""

_links: dict[Endpoint, Link] = {}
_transports: dict[str, Transport] = {}
_making = threading.RLock()  # a signal's handler may fork amid `connect`
_connecting: Endpoint | None = None  # to which a link is being made
_inherited: dict[Endpoint, tuple[Link, str]] = {}  # the parent's links, and tokens for what they held at the fork


def connect(endpoint: Endpoint) -> Link:
    """Return this process's link to the node at `endpoint`; connect if there is none.

    Blocks for at most twice `config.connect_timeout` seconds. Raises `ConnectError` when nobody listens there, and
    `NodeError` when what does refuses this process.
    """
    global _connecting
    link = _links.get(endpoint)
    if link is not None:
        return link
    with _making:
        link = _links.get(endpoint)
        if link is None:
            _connecting = endpoint
            try:
                link = Link(endpoint, _transport(endpoint.target), _forget)
                if endpoint in _inherited:
                    link.take_over(*_inherited[endpoint])
                    del _inherited[endpoint]
                _links[endpoint] = link
            except ConnectError as error:
                raise ConnectError(f"{error}{endpoint.why_not()}") from error
            finally:
                _connecting = None
            _register_exit()
    return link


def known(endpoint: Endpoint) -> Link | None:
    """This process's link to the node at `endpoint`, if there is one."""
    return _links.get(endpoint)


def connect_tree() -> Link:
    """Return the link to the node of this process tree; start the node if there is none, or if it is gone."""
    endpoint = tree.endpoint()
    try:
        return connect(endpoint)
    except ConnectError:
        if config.node is not None:
            raise
        tree.forget(endpoint)
        return connect(tree.endpoint())


def ask_anew(connect: Callable[[], Link], ask: Callable[[Link], T]) -> T:
    """`ask` a node about what this process does not use yet. A link that breaks meanwhile was of a node that ended, as
    its older handles tell themselves: then another link is asked, once, if there is a node."""
    link = connect()
    try:
        return ask(link)
    except NodeError as error:
        if link.error is None or isinstance(link.error, AccessError):
            raise
        link.untold()
        _forget(link)
        try:
            link = connect()
        except ConnectError:
            raise error from None
    return ask(link)


def settle(deadline: float) -> None:
    """Block until each node for whose bells somebody listens has answered: what it had for them has come by then. At
    `deadline` the others are left alone."""
    for link in list(_links.values()):
        link.settle_bells(deadline)


def _forget(link: Link) -> None:
    if _links.get(link.endpoint) is link:
        del _links[link.endpoint]
    if link.error is not None:
        tree.forget(link.endpoint)


def _transport(target: str) -> Transport:
    transport = _transports.get(target)
    if transport is None:
        transport = _transports[target] = registry.make(target)
    return transport


_exit_registered = False
_hooked = False  # forked children have the hook, too
_hook = threading.Event()  # multiprocessing wants an object that a hook belongs to


def _register_exit() -> None:
    """Flush at this process's exit. A child of multiprocessing ends without running `atexit`'s functions."""
    global _exit_registered, _hooked
    if _exit_registered:
        return
    _exit_registered = True
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        _finalize(_hook)
        # A child begins by forgetting its finalizers, even those of what its main module made while it was imported.
        if not _hooked:
            _hooked = True
            util.register_after_fork(_hook, _finalize)
    atexit.register(_at_exit)


def _finalize(_: object) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, close_all, exitpriority=-5)  # after it has waited for children


def _at_exit() -> None:
    """Close the links before the transports' libraries close down, but after multiprocessing has waited for children.

    Functions of `atexit` run from the last to the first that was registered, and ours comes after the libraries'; so
    multiprocessing's, which may have come before them, is called here.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    close_all()


def close_all() -> None:
    """Close all links of this process; what was put is flushed first, for at most `config.linger` seconds in all."""
    deadline = time.monotonic() + config.linger
    for link in list(_links.values()):
        link.close(max(0.0, deadline - time.monotonic()))


# -- fork --

_fork_tokens: dict[Endpoint, str] = {}
_fork_lifeline: ForkLifeline | None = None
_made_sure = False  # that no other thread connects during the fork


def _claim_inherited() -> None:
    """Hold what this process inherited before it forks itself: what it lets go of then is still its child's."""
    for endpoint in list(_inherited):
        try:
            connect(endpoint)
        except (NodeError, TransportError):
            pass  # there is nothing left to hold


def _before_fork() -> None:
    global _fork_lifeline, _made_sure
    _claim_inherited()
    _made_sure = _making.acquire(timeout=FORK_PATIENCE)
    _fork_tokens.clear()
    _fork_lifeline = None
    for endpoint, link in list(_links.items()):
        holds = link.holds()
        if not holds:
            continue
        _fork_lifeline = _fork_lifeline or ForkLifeline()
        token = os.urandom(8).hex()
        try:
            # Now, and not after the fork: another thread may close a handle as soon as that is done.
            link.fly(token, holds, _fork_lifeline)
        except (NodeError, ClosedError):
            continue
        _fork_tokens[endpoint] = token


def _after_fork_in_parent() -> None:
    global _fork_lifeline
    lifeline, _fork_lifeline = _fork_lifeline, None
    if _made_sure:
        _making.release()
    if lifeline is not None:
        lifeline.in_parent()


def _after_fork_in_child() -> None:
    global _making, _exit_registered, _fork_lifeline
    _making = threading.RLock()
    if _fork_lifeline is not None:
        _fork_lifeline.in_child()
        _fork_lifeline = None
    _exit_registered = False
    locations = [link.address.location for link in _links.values()]
    if _connecting is not None:
        locations.append(parse(_connecting.address).location)
    _close_inherited(locations)
    for link in _links.values():
        link.abandon()
    _inherited.clear()
    _inherited.update({endpoint: (_links[endpoint], token) for endpoint, token in _fork_tokens.items()})
    _links.clear()
    _transports.clear()


def _close_inherited(locations: list[str]) -> None:
    """Close the sockets that connect the parent to a node: else its death goes unseen while this process lives."""
    if not locations:
        return
    import socket

    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)  # else a socket that is only looked at becomes non-blocking, the parent's, too
    for name in os.listdir("/dev/fd"):
        if _peer(int(name)) in locations:
            os.close(int(name))
    socket.setdefaulttimeout(usual)


def _peer(descriptor: int) -> str | None:
    """Where the other end of a socket is, in the form of an address's location; `None` for anything else."""
    import socket

    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        probe = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        peer = probe.getpeername()
    except OSError:
        return None
    finally:
        probe.detach()
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
