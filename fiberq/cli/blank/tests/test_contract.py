"""The transport keeps fiberq's contract. For one rule: ``fiberq contract blank --rule ID``."""

from __future__ import annotations

import subprocess
import sys


def test_blank_keeps_the_contract() -> None:
    command = [sys.executable, "-m", "fiberq_contract", "blank"]
    status = subprocess.run(command, check=False).returncode
    assert status == 0, "a rule is broken: see the output above"
