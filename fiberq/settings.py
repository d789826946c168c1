"""`config`, the one object that holds fiberq's settings, and the rules by which a setting gets its value.

In order: what code assigned (here or in an ancestor process), the environment variable ``FIBERQ_<KEY>``, a file, the
default. The file is ``fiberq.toml`` (top-level table) or ``[tool.fiberq]`` in ``pyproject.toml``, in the current
directory or the nearest parent that has one; it is looked up once in a process, when a setting first needs it.
"""

from __future__ import annotations

import os
import sys

from . import inherit
from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Config", "UnknownSettingError", "config"]

Seconds = float
Natural = int
Positive = int

_EXPECTED = {
    "bool": "true or false",
    "str": "a non-empty string",
    "str | None": "a string",
    "Seconds": "a number of seconds from 0 to 1e9",
    "Natural": "a whole number, 0 or more",
    "Positive": "a whole number, 1 or more",
}
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_MISSING = object()


class UnknownSettingError(ConfigError, AttributeError):
    """Code named a setting that does not exist; the message names the nearest that does."""


class Config:
    """fiberq's settings: read and assign them as attributes; ``del config.key`` undoes an assignment.

    Assignments are inherited by child processes, whatever starts them. Reading never blocks. It raises `ConfigError`
    for a wrong value in the environment or the file, and for a key there that does not exist (in the environment:
    checked at the first read, and by `validate`). For an attribute that does not exist it raises `UnknownSettingError`,
    which is an `AttributeError` too. Assigning checks the type at once.

        config.transport = "nng"
        config.update(spin_us=0, linger=2)
    """

    transport: str = "zmq"
    """The name of the transport plug-in that new queues and pipes use."""
    use_push_queue: bool = False
    """`SimpleQueue()` makes a `SimpleQueuePush` instead of a `SimpleQueuePull`."""
    node: str | None = None
    """The URL or address of the node to use, instead of starting one, or the path of a file that has it in it; an empty
    environment variable means none."""
    listen: str | None = None
    """Where a program's own node listens for other machines, too, such as ``tcp://0.0.0.0:0``; by default nowhere."""
    advertise: str | None = None
    """The host, or ``host:port``, at which other machines reach what `listen` binds; by default it is found out."""
    allow_insecure: bool = False
    """Listen on a network over a transport that cannot authenticate: whoever reaches the port may do everything."""
    connect_timeout: Seconds = 5.0
    """How long connecting to a node may take, in seconds."""
    reconnect_timeout: Seconds = 10.0
    """How long a client bears a silent node before it raises, in seconds."""
    heartbeat: Seconds = 1.0
    """A TCP connection whose other host has vanished is found within three of these, in seconds; 0: never."""
    session_grace: Seconds = 2.0
    """How long a node keeps what a lost TCP peer holds, so that it can come back, in seconds."""
    session_timeout: Seconds = 30.0
    """How long a connected process may be silent before the node takes it for dead, in seconds."""
    linger: Seconds = 10.0
    """How long the interpreter's exit waits at most for the node to accept what was put, in seconds."""
    spin_us: Natural = 100
    """How long a busy node polls before it blocks, in microseconds; 0: never. More makes lone items faster, and takes
    processor time from others."""
    max_bytes: Positive = 1 << 30
    """How many bytes of items a node holds before puts wait; a larger item raises in `put`."""
    shared_memory: bool = True
    """Large items travel in shared memory where processes and node can look into each other's (Linux, one host)."""
    max_connections: Positive = 4096
    """How many connections a node has at a time, as far as its descriptors go; more are refused."""
    max_deliveries: Positive = 5
    """How many failures make an item a dead letter: deaths of its readers, and leases that raised or ran out."""

    if not TYPE_CHECKING:  # a type checker is to refuse unknown attributes by itself

        def __getattr__(self, name: str) -> Any:
            raise _unknown_setting(name)

        def __setattr__(self, name: str, value: object) -> None:
            _setting(name).assign(value)

        def __delattr__(self, name: str) -> None:
            inherit.drop(_setting(name).inherited)

    def update(self, **values: object) -> None:
        """Assign several settings: all of them, or none if one is wrong (`ConfigError`)."""
        checked = [(_setting(key), _setting(key).check(value, "assigned in code")) for key, value in values.items()]
        for setting, value in checked:
            inherit.put(setting.inherited, value)

    def source(self, key: str) -> str:
        """Return where the value of `key` comes from: code, a named environment variable or file, or the default."""
        return _setting(key).find()[1]

    def validate(self) -> None:
        """Raise `ConfigError` for the first wrong thing in the environment and the file, even if code overrides it."""
        _check_environment_names()
        for setting in _SETTINGS.values():
            setting.from_environment()
        _file()

    def __repr__(self) -> str:
        return "\n".join(setting.describe() for setting in _SETTINGS.values())

    def __reduce__(self) -> str:
        return "config"  # copies and pickles are the one object


class _Setting:
    """One key of `Config`: finds and checks its value."""

    def __init__(self, key: str, kind: str, default: Any) -> None:
        self.key, self.kind, self.default = key, kind, default
        self.variable = f"FIBERQ_{key.upper()}"
        self.inherited = f"config.{key}"

    def __get__(self, instance: Config | None, owner: type[Config]) -> Any:
        return self if instance is None else self.find()[0]

    def __set__(self, instance: Config, value: object) -> None:
        self.assign(value)

    def assign(self, value: object) -> None:
        inherit.put(self.inherited, self.check(value, "assigned in code"))

    def find(self) -> tuple[Any, str]:
        """Return the value and its source."""
        if not _environment_names_checked:
            _check_environment_names()
        value = inherit.get(self.inherited, _MISSING)
        if value is not _MISSING:
            return value, "assigned in code"
        value = self.from_environment()
        if value is not _MISSING:
            return value, f"environment variable {self.variable}"
        values, path = _file()
        return (values[self.key], path) if self.key in values else (self.default, "default")

    def from_environment(self) -> Any:
        text = os.environ.get(self.variable)
        if text is None:
            return _MISSING
        return self.check(_parse(self.kind, text.strip()), f"environment variable {self.variable}")

    def check(self, value: Any, source: str) -> Any:
        """Return `value` as this setting's type, or raise `ConfigError`."""
        if not _fits(self.kind, value):
            shown = type(value).__name__ if self.key == "node" else _shown(value)  # a node's URL is a secret
            raise ConfigError(f"{self.key} must be {_EXPECTED[self.kind]}, not {shown} ({source})")
        return float(value) if self.kind == "Seconds" else value

    def describe(self) -> str:
        try:
            value, source = self.find()
        except ConfigError as error:
            return f"{self.key}: {error}"
        if self.key == "node" and value is not None:
            value = "..."
        return f"{self.key} = {_shown(value)} ({source})"


def _shown(value: object) -> str:
    from .address import hidden  # which imports more than most programs need

    return hidden(repr(value))


def _fits(kind: str, value: Any) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str | None" and value is None:
        return True
    if kind.startswith("str"):
        return isinstance(value, str) and value != ""
    if isinstance(value, bool):
        return False
    if kind == "Seconds":
        return isinstance(value, (int, float)) and 0 <= value <= 1e9
    return isinstance(value, int) and value >= (1 if kind == "Positive" else 0)


def _parse(kind: str, text: str) -> Any:
    """Return what `text`, from the environment, means; `text` itself if it can't mean this kind."""
    if kind == "bool":
        return _WORDS.get(text.lower(), text)
    if kind.startswith("str"):
        return text or (None if kind == "str | None" else text)
    try:
        return float(text) if kind == "Seconds" else int(text)
    except ValueError:
        return text


def _meant(key: str, *, variable: bool = False) -> str:
    """What to write instead of the unknown `key`, as a key or as an environment variable."""
    from .nearest import nearest

    names = {key: setting.variable if variable else key for key, setting in _SETTINGS.items()}
    near = nearest(key, names)
    return f"the nearest is {names[near]}" if near else f"the settings are {', '.join(names.values())}"


def _unknown_setting(name: str) -> UnknownSettingError:
    return UnknownSettingError(f"fiberq.config has no setting {_shown(name)}; {_meant(name)}")


def _setting(name: str) -> _Setting:
    try:
        return _SETTINGS[name]
    except KeyError:
        raise _unknown_setting(name) from None


_environment_names_checked = False


def _check_environment_names() -> None:
    global _environment_names_checked
    known = [setting.variable for setting in _SETTINGS.values()]
    for name in list(os.environ):
        if name.startswith("FIBERQ_") and not name.startswith("FIBERQ__") and name not in known:
            meant = _meant(name.removeprefix("FIBERQ_"), variable=True)
            raise ConfigError(f"the environment variable {name} names no setting of fiberq; {meant}")
    _environment_names_checked = True


_found: tuple[dict[str, Any], str] | None = None


def _file() -> tuple[dict[str, Any], str]:
    """Return the settings in the configuration file and its path; nothing and "" if there is no file."""
    global _found
    if _found is None:
        _found = _find_file()
    return _found


def _find_file() -> tuple[dict[str, Any], str]:
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        return {}, ""
    while True:
        for name in ("fiberq.toml", "pyproject.toml"):
            path = os.path.join(directory, name)
            table = _read_table(path) if os.path.isfile(path) else None
            if table is not None:
                return {key: _check_entry(key, value, path) for key, value in table.items()}, path
        parent = os.path.dirname(directory)
        if parent == directory:
            return {}, ""
        directory = parent


def _read_table(path: str) -> dict[str, Any] | None:
    """Return the table of settings in the file at `path`; `None` for a ``pyproject.toml`` that has none."""
    try:
        with open(path, "rb") as file:
            content, owner = file.read(), os.fstat(file.fileno()).st_uid
        shared = os.stat(os.path.dirname(path)).st_mode & 0o002
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    is_project = os.path.basename(path) == "pyproject.toml"
    if is_project and b"fiberq" not in content:
        return None
    if shared and owner not in (0, os.geteuid()):
        # Whoever could plant a file in /tmp could send the items of everyone who works below it to a node of his own.
        raise ConfigError(f"{path} is not trusted: anyone can write to its directory, and it belongs to another user")
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: Any = tomllib.loads(content.decode())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for key in ("tool", "fiberq") if is_project else ():
        table = table.get(key)
        if table is None:
            return None
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {key} must be a table")
    return dict(table)


def _check_entry(key: str, value: object, path: str) -> Any:
    if key not in _SETTINGS:
        raise ConfigError(f"{path} has the key {key!r}, which is no setting of fiberq; {_meant(key)}")
    return _SETTINGS[key].check(value, path)


_SETTINGS = {key: _Setting(key, kind, getattr(Config, key)) for key, kind in Config.__annotations__.items()}
for _key, _declared in _SETTINGS.items():
    setattr(Config, _key, _declared)

config = Config()
