"""A node's directory: only its user can enter it, and one that a dead node left is removed by the next.

A node keeps a lock on a file in its directory for as long as it lives, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from typing import Final

__all__ = ["private_directory", "sweep"]

PREFIX: Final = "fiberq-"

ALIVE: Final = "alive"
"""The file that a living node has locked."""

LONGEST_PATH: Final = 80
"""Characters of the directory's path; of the socket's, systems allow 104 to 108."""


def private_directory() -> str:
    """Make a directory that only this user can enter, with a path short enough for a socket in it."""
    directory = os.path.join(_base(), PREFIX + os.urandom(8).hex())
    os.mkdir(directory, 0o700)
    descriptor = os.open(os.path.join(directory, "new"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # which the system lets go of when this process ends
    os.rename(os.path.join(directory, "new"), os.path.join(directory, ALIVE))
    return directory


def sweep() -> None:
    """Remove what nodes of this user left that were killed, with the programs that started them."""
    base = _base()
    for name in os.listdir(base):
        if name.startswith(PREFIX):
            directory = os.path.join(base, name)
            try:
                if _is_ours(directory) and _is_dead(os.path.join(directory, ALIVE)):
                    shutil.rmtree(directory)
            except OSError:
                pass  # it ends by itself, or another sweeps


def _base() -> str:
    for base in (os.environ.get("TMPDIR"), "/tmp"):
        if base and len(base) + len(PREFIX) + 17 <= LONGEST_PATH:
            return base
    raise AssertionError("unreachable: a path in /tmp is short")


def _is_ours(directory: str) -> bool:
    found = os.lstat(directory)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


def _is_dead(path: str) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
