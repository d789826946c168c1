"""How the core finds the transport, and what finding it must not do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from fiberq import registry

from .processes import environment
from .rules import rule

LOOK = """
import json, os, sys, threading

def state():
    tasks = "/proc/self/task"  # on Linux; it has the threads that are not Python's, too
    threads = len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count()
    return [len(os.listdir("/dev/fd")), threads, sys.getswitchinterval()]

def handlers():
    import signal
    return [repr(signal.getsignal(each)) for each in sorted(signal.valid_signals())]

from fiberq import registry
before, signals = state(), handlers()
found = registry.load_target(sys.argv[1])
print(json.dumps({"class": found.__qualname__, "same": before == state(), "signals": signals == handlers()}))
"""


def look(target: str) -> tuple[dict[str, Any], str]:
    """What a process sees that does nothing but load the transport, and all that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, target], env=environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return json.loads(last), "\n".join([*printed, done.stderr])


@pytest.fixture
def name(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("--transport"))


@rule("REG-1")
def test_the_entry_point_leads_to_the_class_in_a_process_that_did_nothing_before(name: str) -> None:
    seen, _ = look(registry.resolve(name))
    assert seen["class"] == registry.load(name).__qualname__


@rule("REG-1")
def test_the_transport_is_listed_once_and_without_a_defect(name: str) -> None:
    found = [each for each in registry.available() if each.name == name]
    assert [each.error for each in found] == [None]


@rule("REG-2")
def test_importing_the_transport_does_nothing_else(name: str) -> None:
    seen, printed = look(registry.resolve(name))
    assert printed.strip() == "", "importing the transport prints something"
    assert seen["same"], "importing the transport opens a descriptor, starts a thread, or changes the switch interval"
    assert seen["signals"], "importing the transport changes a signal's handler"
