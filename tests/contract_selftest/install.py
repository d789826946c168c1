"""Installs the wrong transports, and the right one, into a directory: plug-ins like any other's."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)


def install(directory: Path) -> None:
    """Let this process, and all that get its `sys.path` by PYTHONPATH, find them."""
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    sys.path.insert(0, str(directory))

    from wrong import usable
    from wrong.right import Right

    metadata = directory / "wrong_transports-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-transports\nVersion: 1.0\n")
    lines = [f"{each.name} = {each.target()}" for each in (Right, *usable())]
    (metadata / "entry_points.txt").write_text("\n".join(["[fiberq.transports]", *lines, ""]))
