"""A descriptor that one thread makes readable to get another out of `poll`."""

from __future__ import annotations

import os
import sys


class Wakeup:
    """Any thread may `set` it; it stays readable until it is cleared. Neither blocks."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        try:
            os.write(self._write, b"\1\0\0\0\0\0\0\0")
        except BlockingIOError:
            pass  # it is readable already

    def clear(self) -> None:
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            if self._write != self._read:
                os.close(self._write)
            self._read = self._write = -1

    def __del__(self) -> None:
        self.close()
