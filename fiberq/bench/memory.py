"""How much memory a process has, and which one is the node. Linux only: elsewhere nothing is known."""

from __future__ import annotations

import os
from pathlib import Path


def resident(pid: int | None) -> int | None:
    """Bytes of memory that a process has; `None` where that is not known."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def own_node() -> int | None:
    """The process of the node that this process started last, if it did."""
    nodes = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"fiberq.node" in (entry / "cmdline").read_bytes():
                nodes.append(int(entry.name))
        except (OSError, ValueError):
            pass
    return max(nodes, default=None)
