"""Finds the transport plug-ins that are installed, and loads them by name.

Three ways in, from cheap to thorough: `load_target` imports what a handle names, without discovery; `load` finds one
name among the entry points; `available` looks at all of them (with stevedore, imported only there).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from .abc import API_VERSION, Capabilities, ClientSocket, Credentials, ServerSocket, Transport
from .address import hidden
from .errors import TransportLoadError, UnknownTransport

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "GROUP",
    "Plugin",
    "available",
    "load",
    "load_target",
    "make",
    "make_client",
    "make_server",
    "name_of",
    "resolve",
]

T = TypeVar("T")

GROUP = "fiberq.transports"

_EXTRAS = {"pynng": 'pip install "fiberq[nng]"'}
"""What installs the module that a first-party transport may miss."""

_ABSTRACT = r"Can't instantiate abstract class (?P<owner>\S+) with.* abstract methods? (?P<missing>.+)"
"""What Python says of a class that lacks methods; the words differ from version to version."""


class Plugin(NamedTuple):
    """One installed plug-in, as `available` found it: either `capabilities` or `error` is set."""

    name: str
    target: str
    distribution: str
    version: str
    location: str
    """The file that the transport was imported from; if it could not be, the directory of the distribution."""
    capabilities: Capabilities | None
    error: str | None


def load(name: str) -> type[Transport]:
    """Return the transport class of the plug-in `name`; imported and checked the first time, remembered afterwards.

    Raises `UnknownTransport` if no plug-in has this name, `TransportLoadError` if it can't be used. No other plug-in
    is imported.
    """
    return load_target(resolve(name))


@cache
def resolve(name: str) -> str:
    """Return the target, such as ``"fiberq_zmq:ZmqTransport"``, of the plug-in `name`, without importing it.

    Raises `UnknownTransport` if there is none and `TransportLoadError` if several distributions have one.
    """
    from importlib.metadata import entry_points

    candidates = tuple(entry_points(group=GROUP, name=name))
    if not candidates:
        raise UnknownTransport(_unknown(name, sorted({entry.name for entry in entry_points(group=GROUP)})))
    if len(candidates) > 1:
        raise TransportLoadError(_duplicate(candidates))
    return candidates[0].value


@cache
def name_of(target: str) -> str:
    """Return the name under which the transport `target` is registered. Raises `UnknownTransport` if it is not."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        if entry.value == target:
            return entry.name
    raise UnknownTransport(f"no installed plug-in registers the transport {target}")


@cache
def load_target(target: str) -> type[Transport]:
    """Import `target`, ``"module:Class"``, and return it if it is a usable transport.

    The import runs the module's code: pass only what `resolve` returned or what came in a trusted pickle. Raises
    `TransportLoadError`, which names the plug-in, its distribution and what to change.
    """
    try:
        module, _, path = target.partition(":")
        found: Any = import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: nothing that a plug-in does at import may break its user
        raise TransportLoadError(f"{_describe(target)} cannot be imported: {_cause(error, target)}") from error
    defects = _defects(found)
    if defects:
        raise TransportLoadError(f"{_describe(target)} is not usable: {'; '.join(defects)}")
    return found  # type: ignore[no-any-return]


def make(target: str, heartbeat: float | None = None) -> Transport:
    """Return an instance of the transport `target`. Raises `TransportLoadError` when it cannot be loaded or made.

    `heartbeat`, in seconds, is `Transport.heartbeat`; `None` means `config.heartbeat`.
    """
    transport_class = load_target(target)
    if heartbeat is None:
        from .settings import config

        heartbeat = config.heartbeat
    try:
        transport = transport_class()
        transport.heartbeat = heartbeat
        return transport
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise TransportLoadError(
            f"{_describe(target)} cannot be made: {type(error).__name__}: {error}; "
            f"its constructor takes no arguments, and must work in every process"
        ) from error


def make_server(target: str, transport: Transport, credentials: Credentials | None = None) -> ServerSocket:
    """Return a server socket of `transport`, an instance of `target`. Raises `TransportLoadError` if its class lacks
    methods."""
    return _socket(target, transport.server, credentials, ServerSocket.__abstractmethods__)


def make_client(target: str, transport: Transport, credentials: Credentials | None = None) -> ClientSocket:
    """Return a client socket of `transport`, an instance of `target`. Raises `TransportLoadError` if its class lacks
    methods."""
    return _socket(target, transport.client, credentials, ClientSocket.__abstractmethods__)


def _socket(target: str, make: Callable[..., T], credentials: Credentials | None, methods: frozenset[str]) -> T:
    try:
        socket = make() if credentials is None else make(credentials)
    except TypeError as error:
        found = re.match(_ABSTRACT, str(error))
        if found is None:
            raise
        raise _unfinished(target, found["missing"].replace("'", ""), found["owner"]) from error
    if missing := sorted(each for each in methods if not hasattr(socket, each)):
        raise _unfinished(target, ", ".join(missing), type(socket).__qualname__)
    return socket


def _unfinished(target: str, missing: str, owner: str) -> TransportLoadError:
    return TransportLoadError(f"{_describe(target)} is not usable: define {missing} in {owner}")


def available() -> list[Plugin]:
    """Return all installed plug-ins, sorted by name, whether they load or not. Imports each, makes one and closes it.

    Never raises for a broken one: its `Plugin.error` says what is wrong.
    """
    from importlib.metadata import entry_points

    from stevedore import ExtensionManager

    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        by_name.setdefault(entry.name, []).append(entry)
    errors = {name: _duplicate(entries) for name, entries in by_name.items() if len(entries) > 1}

    class Manager(ExtensionManager):  # type: ignore[type-arg]
        """Bypasses stevedore's cache, which can be stale after a reinstall and drops the distributions."""

        def list_entry_points(self) -> list[EntryPoint]:
            candidates = [_Candidate(name, entries[0]) for name, entries in by_name.items() if name not in errors]
            return cast("list[EntryPoint]", candidates)

    def note(_manager: object, entry: EntryPoint, error: BaseException) -> None:
        errors[entry.name] = str(error)

    manager = Manager(GROUP, invoke_on_load=False, on_load_failure_callback=note)
    loaded = {extension.name: extension.plugin for extension in manager.extensions}
    return [
        _plugin(entry, loaded.get(name), errors.get(name))
        for name in sorted(by_name)
        for entry in sorted(by_name[name], key=_owner)
    ]


class _Candidate:
    """An entry point as stevedore sees it: loading it also tries it, and raises nothing but `TransportLoadError`."""

    def __init__(self, name: str, entry: EntryPoint) -> None:
        self.name, self.entry = name, entry

    def load(self) -> type[Transport]:
        target = self.entry.value
        transport = make(target, Transport.heartbeat)  # A wrong setting is no fault of the plug-in's.
        try:
            transport.close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise TransportLoadError(f"{_describe(target)} cannot be closed: {_cause(error, target)}") from error
        return load_target(target)


def _plugin(entry: EntryPoint, found: type[Transport] | None, error: str | None) -> Plugin:
    location = getattr(sys.modules.get(found.__module__), "__file__", None) if found is not None else None
    if location is None and entry.dist is not None:
        location = str(entry.dist.locate_file(""))
    distribution, version = _distribution(entry)
    capabilities = None if found is None else found.capabilities
    return Plugin(entry.name, entry.value, distribution, version, location or "", capabilities, error)


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution that `entry` belongs to, empty where its metadata lack them."""
    metadata: Any = entry.dist.metadata if entry.dist is not None else {}
    name, version = (str(metadata[key]) if key in metadata else "" for key in ("Name", "Version"))
    return name, version


def _owner(entry: EntryPoint) -> str:
    return " ".join(part for part in _distribution(entry) if part) or "an unnamed distribution"


def _describe(target: str) -> str:
    """Return how an error names the plug-in with this target."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        if entry.value == target:
            return f"the transport {entry.name!r} ({target}, from {_owner(entry)})"
    return f"the transport {target}"


def _unknown(name: str, installed: list[str]) -> str:
    from .nearest import nearest

    name = hidden(name)
    if not installed:
        return f"no transport is named {name!r}: none is installed; reinstall fiberq, or install a plug-in"
    near = nearest(name, installed)
    meant = f"; the nearest is {near}" if near else ""
    return f"no transport is named {name!r}; installed: {', '.join(installed)}{meant}"


def _duplicate(entries: Iterable[EntryPoint]) -> str:
    name, owners = "", []
    for entry in entries:
        name = entry.name
        owners.append(f"{_owner(entry)} ({entry.value})")
    return f"the transport {name!r} is installed more than once: by {' and by '.join(owners)}; uninstall all but one"


def _cause(error: BaseException, target: str) -> str:
    missing = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in _EXTRAS and target.startswith("fiberq_"):
        return f"the module {missing} is missing: {_EXTRAS[missing]}"
    if isinstance(error, TypeError) and "Capabilities" in str(error):
        return f"{type(error).__name__}: {error}; the capabilities are {', '.join(Capabilities._fields)}"
    return f"{type(error).__name__}: {error}"


def _defects(found: Any) -> list[str]:
    """Return what the author of the plug-in has to change in the class `found`."""
    if not (isinstance(found, type) and issubclass(found, Transport)):
        return [f"{found!r} is no subclass of fiberq.abc.Transport: point the entry point to one"]
    if found.api_version != API_VERSION:
        return [
            f"its api_version is {found.api_version!r}, and this fiberq has {API_VERSION}: "
            f"install a release of the plug-in, or of fiberq, that fits the other"
        ]
    defects = []
    if missing := sorted(found.__abstractmethods__):
        defects.append(f"define {', '.join(missing)}")
    capabilities = getattr(found, "capabilities", None)
    if not isinstance(capabilities, Capabilities):
        defects.append("set the class attribute capabilities to a fiberq.abc.Capabilities")
    else:
        defects += _capability_defects(capabilities)
    return defects


def _capability_defects(capabilities: Capabilities) -> list[str]:
    schemes: Any = capabilities.schemes
    defects = []
    if not (
        isinstance(schemes, tuple)
        and schemes
        and all(isinstance(scheme, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) for scheme in schemes)
    ):
        defects.append(f'capabilities.schemes must be a tuple such as ("ipc", "tcp"), not {schemes!r}')
    for key, value in capabilities._asdict().items():
        if key != "schemes" and not isinstance(value, bool):
            defects.append(f"capabilities.{key} must be True or False, not {value!r}")
    return defects
