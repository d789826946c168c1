"""Who may do what at a node: its keys, the rights that it signs, and the URLs that carry what a client needs.

A node that listens on a network has two secrets. Whoever has the first can connect: the transport derives its keys from
it. With the second, which never leaves the node, it signs tokens, each of which is a right. A handle carries the first
secret and a token; so holding a handle, or its URL, is the permission. No `repr` and no error shows either.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from fiberq.address import Address, format, parse  # noqa: A004
from fiberq.errors import AccessError, AddressError, ConfigError

__all__ = ["Authority", "Keys", "Right", "Url", "kept_keys", "make_keys", "read_url"]

SECRET: Final = 32
"""Bytes of each of a node's secrets."""

_TAG: Final = 16
"""Bytes of a token's HMAC-SHA-256 that are kept: RFC 2104 allows half."""

_URL: Final = re.compile(
    r"(?P<transport>[A-Za-z0-9_.-]+)\+(?P<scheme>[a-z][a-z0-9.-]*)://(?:(?P<key>[A-Za-z0-9_-]+)@)?"
)

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""What has the first of a node's secrets in it, as a URL shows it."""


class Keys(NamedTuple):
    """A node's secrets: what clients need to connect, and what it signs their rights with."""

    secret: bytes
    signing: bytes

    def __repr__(self) -> str:
        return "Keys(...)"


def make_keys() -> Keys:
    return Keys(os.urandom(SECRET), os.urandom(SECRET))


def kept_keys(directory: str) -> Keys:
    """Return the keys in `directory`, which is there; make both, for this user alone, if they are not there.

    Raises `ConfigError` if others may read them, or they are damaged.
    """
    path = os.path.join(directory, "keys")
    if not os.path.lexists(path):
        made = make_keys()
        write_private(path, json.dumps({name: value.hex() for name, value in made._asdict().items()}))
        return made
    check_private(path)
    try:
        with open(path, errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise _unusable(directory, error) from None
    try:
        keys = Keys(**{name: bytes.fromhex(value) for name, value in json.loads(text).items()})
    except (ValueError, TypeError, AttributeError):
        keys = Keys(b"", b"")
    if {len(key) for key in keys} != {SECRET}:
        raise ConfigError(
            f"{path} is damaged: remove it, and the node makes new keys, with which old URLs are worthless"
        )
    return keys


@contextmanager
def state_directory(directory: str) -> Iterator[None]:
    """Have a node's directory for oneself, and make it if it is not there: two nodes in it would not know of what the
    other revokes. Raises `ConfigError` if another node has it, others could change it, or it cannot be used."""
    import fcntl

    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        found = os.stat(directory)
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(directory, error) from None
    try:
        if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o022:
            raise ConfigError(f"others could change what is in {directory}: chmod go-w it, or choose another --state")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"another node has the state directory {directory}: each needs its own --state") from None
    finally:
        os.close(descriptor)


def write_private(path: str, text: str) -> None:
    """Put `text` into the file at `path`, whole or not at all, for this user alone. Raises `ConfigError` if that cannot
    be."""
    new = f"{path}.{os.urandom(4).hex()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(new)
        raise _unusable(os.path.dirname(path), error) from None


def check_private(path: str) -> None:
    """Raise `ConfigError` if anybody but this user, and the superuser, may read or change the file at `path`."""
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{path} holds a secret, and others may read it, or it is another user's: chmod 600 {path}")


def _unusable(directory: str, error: OSError) -> ConfigError:
    return ConfigError(f"the state directory {directory} cannot be used: {error.strerror}")


class Right(NamedTuple):
    """What a token allows: to put into ("w") and get from ("r") the named queues and pipes, or all of them if `holds`
    is `None`; `until` so many seconds after 1970, or for ever if that is 0. `number` is what it is revoked by."""

    holds: tuple[tuple[str, str], ...] | None = None
    until: float = 0
    number: int = 0

    def allows(self, names: Iterable[str], sides: str) -> bool:
        """Whether one may use `sides` of the queue that goes by these names."""
        if self.holds is None:
            return True
        found = {side for name, allowed in self.holds if name in names for side in allowed}
        return bool(found) and found >= set(sides)


class Authority:
    """Signs rights and checks them. `clock` tells the seconds since 1970; `keep` stores the number of what is
    revoked."""

    def __init__(
        self,
        keys: Keys,
        revoked: Iterable[int] = (),
        keep: Callable[[int], None] = lambda number: None,  # noqa: ARG005
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._revoked = set(revoked)
        self._kept = set(self._revoked)
        self._keep = keep
        self._clock = clock

    @property
    def owner_key(self) -> str:
        """What is in the URL of someone who may do everything."""
        return self.key(Right())

    def key(self, right: Right) -> str:
        """What is in the URL of someone who has this right."""
        return _text(self._keys.secret + self.sign(right))

    def narrow(self, right: Right, holds: tuple[tuple[str, str], ...], seconds: float | None) -> Right:
        """A right to no more than `right` and `holds`, for no longer than `seconds`. What is made from a right that can
        be revoked is revoked with it."""
        until = 0 if seconds is None else max(0.001, round(self._clock() + seconds, 3))
        earliest = min(filter(None, (until, right.until)), default=0)
        return Right(holds, earliest, right.number or int.from_bytes(os.urandom(7), "big") + 1)

    def sign(self, right: Right) -> bytes:
        body = json.dumps([right.holds, right.until, right.number], separators=(",", ":")).encode()
        return self._tag(body) + body

    def check(self, token: bytes) -> Right:
        """Return what `token` allows now. Raises `AccessError` if that is nothing."""
        import hmac

        tag, body = token[:_TAG], token[_TAG:]
        if not hmac.compare_digest(tag, self._tag(body)):
            raise AccessError("this node did not give that right: its URL is another node's, or older than its keys")
        holds, until, number = json.loads(body)
        right = Right(None if holds is None else tuple((name, sides) for name, sides in holds), until, number)
        if right.number in self._revoked:
            raise AccessError("the right was revoked")
        if self.seconds_left(right) <= 0:
            raise AccessError("the right has expired")
        return right

    def seconds_left(self, right: Right) -> float:
        return right.until - self._clock() if right.until else float("inf")

    def revoke(self, number: int) -> None:
        """Raises `OSError` if that cannot be kept; the right is over now even so, and the next call tries again."""
        self._revoked.add(number)
        if number not in self._kept:
            self._keep(number)
            self._kept.add(number)

    def _tag(self, body: bytes) -> bytes:
        import hmac

        return hmac.digest(self._keys.signing, body, "sha256")[:_TAG]


def kept_authority(directory: str) -> tuple[Keys, Authority]:
    """The keys and the authority of a node that keeps them in `directory`."""
    keys = kept_keys(directory)
    path = os.path.join(directory, "revoked")

    def keep(number: int) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            file.write(f"{number:x}\n")
            file.flush()
            os.fsync(file.fileno())

    try:
        with open(path) as file:
            revoked = [int(line, 16) for line in file.read().split()]
    except FileNotFoundError:
        revoked = []
    except OSError as error:
        raise _unusable(directory, error) from None
    except ValueError:
        raise ConfigError(f"{path} is damaged: it must have a hexadecimal number on each line") from None
    return keys, Authority(keys, revoked, keep)


def split_key(key: str) -> tuple[bytes, bytes]:
    """A key's two parts: the secret that a transport needs, and the token that the node wants to see."""
    try:
        data = base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
    except ValueError:
        data = b""
    if len(data) <= SECRET + _TAG:
        raise AddressError("the key in the URL of a node is damaged: copy the whole URL")
    return data[:SECRET], data[SECRET:]


def number_of(key: str) -> int:
    """What the right in a key is revoked by."""
    try:
        return int(json.loads(split_key(key)[1][_TAG:])[2])
    except (ValueError, TypeError, LookupError):
        raise AddressError("the key in the URL of a node is damaged: copy the whole URL") from None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Url(NamedTuple):
    """What ``zmq+tcp://KEY@host:7100/DEVICE/END`` says. `transport` and `key` are `None` in a bare address."""

    transport: str | None
    address: Address
    key: str | None

    def __str__(self) -> str:
        """The URL, with its secret."""
        text = format(self.address)
        scheme, _, rest = text.partition("://")
        return f"{self.transport}+{scheme}://{f'{self.key}@' if self.key else ''}{rest}" if self.transport else text

    def __repr__(self) -> str:
        return f"Url({self.transport}+{format(self.address)})"


def read_url(text: str) -> Url:
    """Return the parts of a URL, or of a bare address. Raises `AddressError`, which does not show a key."""
    found = _URL.match(text) if isinstance(text, str) else None
    if found is None:
        return Url(None, parse(text), None)
    key = found["key"]
    if key is not None:
        split_key(key)
    address = parse(f"{found['scheme']}://{text[found.end() :]}")
    if key is None and address.scheme == "tcp" and _SECRET.search(address.location):
        raise AddressError("the URL of a node has a key, and no @ behind it: copy the whole URL")
    return Url(found["transport"], address, key)
