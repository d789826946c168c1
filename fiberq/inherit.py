"""Small values that a process hands to all its descendants, however those are started.

Two carriers: an environment variable, which every new program gets, and the record that `multiprocessing` copies from a
process to each child it starts, which also reaches the children of a fork server that was running before.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["VARIABLE", "drop", "get", "put"]

VARIABLE = "FIBERQ__INHERIT"
_KEY = "fiberq"

_lock = RLock()
_values: dict[str, Any] | None = None  # None until the first use, so that an import costs nothing
_own: set[str] = set()  # the names that this process, or the one it was forked from, put


def put(name: str, value: Any) -> None:
    """Set `name` to `value` (anything that JSON can hold) here and in all processes that descend from this one.

    Children that run already do not see it. The value must not be changed afterwards. Raises `TypeError` or
    `ValueError` for what JSON cannot hold. Never blocks.
    """
    import json

    json.dumps(value)
    with _lock:
        _current()[name] = value
        _own.add(name)
        _export()


def get(name: str, default: Any = None) -> Any:
    """Return what this process or its nearest ancestor put under `name`, or `default`. Never blocks."""
    return _current().get(name, default)


def drop(name: str) -> None:
    """Forget `name` here and in later descendants, whoever put it; nothing happens if nobody did. Never blocks."""
    with _lock:
        if _current().pop(name, _values) is not _values:
            _own.discard(name)
            _export()


def _current() -> dict[str, Any]:
    """Return the values of this process, kept in the object that `multiprocessing` passes on, once it is imported.

    A `Process` copies its maker's record when it is made and pickles it when it starts. The record holds our one dict,
    not a copy, so a child gets the values of the moment in which it starts.
    """
    global _values
    multiprocessing = sys.modules.get("multiprocessing.process")
    process = getattr(multiprocessing, "_current_process", None)  # absent while another thread imports it
    held: dict[str, Any] | None = process._config.get(_KEY) if process is not None else None
    if _values is not None and held is _values:
        return _values
    with _lock:
        if _values is None:
            _values = _read()
        if held is None and process is not None:
            _attach(process, multiprocessing, _values)
        elif held is not None and held is not _values:
            # This process has just been set up by its parent, whose word is newer than the environment and memory of
            # a fork server. What was put during that set-up, as a rule the main module's lines being run once more,
            # only fills gaps; so all start methods give the child the same values.
            for name in _own:
                held.setdefault(name, _values[name])
            _values = held
            _export()
        return _values


def _attach(process: Any, multiprocessing: Any, values: dict[str, Any]) -> None:
    process._config[_KEY] = values
    try:
        for unstarted in multiprocessing._dangling:  # made before, and perhaps started later
            unstarted._config.setdefault(_KEY, values)
    except RuntimeError:
        pass  # another thread is making a process at this moment


def _read() -> dict[str, Any]:
    text = os.environ.get(VARIABLE)
    if text is None:
        return {}
    import json

    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"the environment variable {VARIABLE} is for fiberq's own use and is damaged: unset it")
    return values


def _export() -> None:
    import json

    if _values:
        os.environ[VARIABLE] = json.dumps(_values, separators=(",", ":"))
    else:
        os.environ.pop(VARIABLE, None)


# A fork in one thread must not copy the lock while another thread holds it.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
