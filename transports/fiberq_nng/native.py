"""NNG's C functions, loaded once a process, and safe in a forked child. No sockets, no messages.

Only pynng's extension module is loaded, never the package around it: the package takes 20 times as long to import,
registers an exit hook that a forked child must not run, and finalises sockets where NNG would abort.

NNG aborts any process that forked after it was used. So a forked child loads a private copy of the extension, with
state of its own: the inherited one is never called again there.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from importlib.util import module_from_spec
from socket import getdefaulttimeout, setdefaulttimeout
from typing import Any, Protocol

from fiberq.errors import TransportError

from .address import Endpoint
from .descriptors import descriptors_at
from .watch import Watch

__all__ = ["Native", "Owner", "load"]

_NAME = "fiberq_nng._nng"  # the last part is in the name of the extension's init function

# NNG starts 12 threads by default; these are its minima, and leave 6.
_THREADS = {
    "NNG_INIT_NUM_TASK_THREADS": 2,
    "NNG_INIT_NUM_EXPIRE_THREADS": 1,
    "NNG_INIT_NUM_RESOLVER_THREADS": 1,
}


class Owner(Protocol):
    """A socket, as NNG's callback and the hooks at exit and at fork see it."""

    heartbeat: float
    encrypted: bool

    def admits(self, pipe: int) -> bool:
        """Whether the new connection `pipe` may stay. Runs on a thread of NNG's: it must only take a note."""

    def pipe_removed(self, pipe: int) -> None:
        """The connection `pipe` is gone. Runs on a thread of NNG's: it must only take a note."""

    def close(self) -> None: ...

    def abandon(self) -> None:
        """This process is a forked child: refuse all further use, without calling NNG."""

    def endpoints(self) -> set[Endpoint]:
        """Where this socket listens, or is connected to."""


class Native:
    """One loaded copy of the extension: its `ffi` and `lib`, and the sockets that are open in it."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self.ffi = ffi
        self.lib = lib
        self.owners: dict[int, Owner] = {}
        self._watched: set[int] = set()
        self._watch = Watch(ffi, lib)
        self._pid = os.getpid()
        # Not the extension's own `extern "Python"` callback: that belongs to pynng, should someone import it.
        self._callback = ffi.callback("void(nng_pipe, nng_pipe_ev, void *)", self._pipe_event)
        for parameter, count in _THREADS.items():
            lib.nng_init_set_parameter(getattr(lib, parameter), count)

    def open(self, protocol: Callable[[Any], int]) -> Any:
        """Return a new `nng_socket`; `protocol` is one of the `nng_..._open_raw` functions."""
        cell = self.ffi.new("nng_socket *")
        self.check(protocol(cell))
        return cell[0]

    def adopt(self, sock: Any, owner: Owner) -> None:
        """Report the removals of `sock`'s pipes to `owner`, and close `owner` at exit."""
        key = self.lib.nng_socket_id(sock)
        self.owners[key] = owner
        arg = self.ffi.cast("void *", key)
        for event in (self.lib.NNG_PIPE_EV_ADD_PRE, self.lib.NNG_PIPE_EV_REM_POST):
            self.check(self.lib.nng_pipe_notify(sock, event, self._callback, arg))

    def watch(self, sock: Any) -> None:
        """Find out by other means than NNG's which of `sock`'s connections are gone."""
        self._watched.add(self.lib.nng_socket_id(sock))

    def close(self, sock: Any) -> None:
        """Close `sock`; may be called more than once, and in a forked child does nothing. Waits for no peer."""
        if os.getpid() != self._pid:
            return
        self.owners.pop(self.lib.nng_socket_id(sock), None)
        self._watched.discard(self.lib.nng_socket_id(sock))
        for event in (self.lib.NNG_PIPE_EV_ADD_PRE, self.lib.NNG_PIPE_EV_REM_POST):
            self.lib.nng_pipe_notify(sock, event, self.ffi.NULL, self.ffi.NULL)
        self.lib.nng_close(sock)

    def check(self, code: int) -> None:
        """Raise `TransportError` unless `code` is zero."""
        if code:
            raise TransportError(f"NNG: {self.reason(code)}")

    def reason(self, code: int) -> str:
        """Return NNG's words for an error code."""
        return str(self.ffi.string(self.lib.nng_strerror(code)).decode())

    def _pipe_event(self, pipe: Any, event: int, arg: Any) -> None:
        key = int(self.ffi.cast("uintptr_t", arg))
        owner = self.owners.get(key)
        if owner is None:
            return
        if event == self.lib.NNG_PIPE_EV_ADD_PRE:
            if not owner.admits(pipe.id):
                self.lib.nng_pipe_close(pipe)
            elif key in self._watched:
                self._watch.add(pipe.id, owner)
        else:
            owner.pipe_removed(pipe.id)


def _find_extension() -> ModuleSpec:
    """Return where pynng's extension is, without running pynng's ``__init__``."""
    package = PathFinder.find_spec("pynng")
    if package is not None and package.submodule_search_locations:
        spec = PathFinder.find_spec("pynng._nng", package.submodule_search_locations)
        if spec is not None and spec.origin:
            return spec
    raise ImportError('the nng transport needs the package pynng: pip install "fiberq[nng]"')


_extension = _find_extension()
_lock = threading.Lock()
_loaded: Native | None = None
_loaded_in = 0
_generation = 0


def load() -> Native:
    """Return NNG for this process. Raises `TransportError` where a forked child cannot have a copy of its own."""
    global _loaded, _loaded_in, _generation
    if _loaded is not None and _loaded_in == os.getpid():
        return _loaded
    with _lock:
        if _loaded is None or _loaded_in != os.getpid():
            # An imported pynng may have been used before a fork that we know nothing of, and ends NNG at exit.
            shared = _loaded is not None or "pynng" in sys.modules
            if shared:
                _generation += 1
            _loaded = _import_private_copy(_generation) if shared else _import(str(_extension.origin))
            _loaded_in = os.getpid()
    return _loaded


def _import(path: str) -> Native:
    # cffi registers the module under pynng's name as well, where a later `import pynng` would find it.
    names = ("pynng._nng", "pynng._nng.lib")
    before = {name: sys.modules.get(name) for name in names}
    try:
        spec = ModuleSpec(_NAME, ExtensionFileLoader(_NAME, path), origin=path)
        module = module_from_spec(spec)
    finally:
        for name, known in before.items():
            sys.modules.pop(name, None)
            if known is not None:
                sys.modules[name] = known
    return Native(module.ffi, module.lib)


def _import_private_copy(generation: int) -> Native:
    try:
        fd = os.memfd_create("fiberq_nng")
        try:
            with open(str(_extension.origin), "rb") as source, open(fd, "wb", closefd=False) as copy:
                copy.write(source.read())
            # The loader knows a library by its path: each generation of forks needs one of its own.
            return _import("/proc/self/fd/" + "/" * generation + str(fd))
        finally:
            os.close(fd)
    except (AttributeError, OSError, ImportError) as error:
        raise TransportError(
            "the nng transport cannot be used in a process that was forked after its parent used it, because "
            f"NNG's library cannot be loaded a second time here ({error}); start processes with the method 'spawn' or "
            "'forkserver', or choose another transport"
        ) from error


@atexit.register
def _close_all() -> None:
    """Close what is open, so that no thread of NNG's calls into an interpreter that is ending."""
    if _loaded is not None and _loaded_in == os.getpid():
        for owner in list(_loaded.owners.values()):
            owner.close()


def _abandon_all() -> None:
    """In a forked child: let go of the inherited connections, so that their peers see the death of the parent."""
    global _lock
    _lock = threading.Lock()
    if _loaded is None or not _loaded.owners:
        return
    inherited: set[Endpoint] = set()
    for owner in _loaded.owners.values():
        inherited |= owner.endpoints()
        owner.abandon()
    _loaded.owners.clear()
    timeout = getdefaulttimeout()
    setdefaulttimeout(None)  # else each socket looked at becomes non-blocking for a moment, for the parent, too
    for fd in descriptors_at(inherited):
        os.close(fd)
    setdefaulttimeout(timeout)


os.register_at_fork(after_in_child=_abandon_all)
