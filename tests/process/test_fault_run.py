"""The fault run runs, loses nothing, and catches a control that does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SEED = 1


def fault_run(directory: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run it; return its exit status, and the outcomes by name."""
    file = directory / "outcomes.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--short", "--seed", str(SEED), "--json", str(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIBERQ_")}
    ended = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, timeout=50, stdout=subprocess.DEVNULL)
    return ended.returncode, {each["name"]: each for each in json.loads(file.read_text())["outcomes"]}


def test_nothing_is_lost_amid_faults_and_a_control_loses_something(tmp_path: Path) -> None:
    classes = ["SimpleQueuePull", "SimpleQueuePush", "JoinableQueue"]
    status, outcomes = fault_run(tmp_path, "--transports", "stream", "--classes", *classes, "--controls", "mutant")
    assert status == 0
    for kind in classes:
        outcome = outcomes[f"stream {kind}"]
        figures = outcome["figures"]
        assert outcome["drained"]
        assert (figures["lost"], figures["unexpected"], outcome["wedged"], outcome["errors"]) == (0, 0, [], [])
        assert sum(outcome["faults"].values()) >= 8
        assert figures["ok"] == figures["acknowledged"] > 1000
    assert outcomes["mutant"]["figures"]["lost"] > 0
