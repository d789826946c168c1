"""A short run of `python -m benchmarks.unfriendly`: some attacks on each transport; and one that must be noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATTACKS = {
    "zmq": ["300 MiB before a key", "right to another queue"],
    "nng": ["connections", "mutated frames"],
    "stream": ["pickle bomb", "replayed frames"],
}


def attacked(transport: str, *attacks: str) -> tuple[int, str]:
    """The run's exit status, and what it printed."""
    command = [sys.executable, "-m", "benchmarks.unfriendly", "--quick", "--markdown", "--seconds", "0.3"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIBERQ_")}
    done = subprocess.run(
        [*command, "--transports", transport, "--attacks", *attacks],
        cwd=ROOT,
        env=environment,
        timeout=50,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("transport", ATTACKS)
def test_unfriendly_clients_get_nowhere(transport: str) -> None:
    status, printed = attacked(transport, *ATTACKS[transport])
    assert status == 0, printed
    assert printed.count(f"| {transport} |") == len(ATTACKS[transport])


def test_who_has_the_owners_right_is_noticed() -> None:
    status, printed = attacked("stream", "control: an owner's right")
    assert status == 1
    assert "the queue that nobody was to touch" in printed
