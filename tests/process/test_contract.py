"""The contract's runner, as a user sees it: on transports that crash, hang, or lie about what they can do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SICK = """
import os
from fiberq_zmq import ZmqTransport

class Exits(ZmqTransport):
    def client(self, credentials=None):
        os._exit(0)

class CannotFork(ZmqTransport):
    capabilities = ZmqTransport.capabilities._replace(forks=False)

class Open(ZmqTransport):
    capabilities = ZmqTransport.capabilities._replace(authenticates=False)
"""


@pytest.fixture
def contract(tmp_path: Path) -> Any:
    """Runs ``python -m fiberq_contract`` in another folder, with some sick transports installed."""
    site = tmp_path / "site"
    metadata = site / "sick-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sick\nVersion: 1\n")
    names = {"exits": "Exits", "cannot-fork": "CannotFork", "open": "Open"}
    entries = "".join(f"{name} = sick:{target}\n" for name, target in names.items())
    (metadata / "entry_points.txt").write_text(f"[fiberq.transports]\n{entries}")
    (site / "sick.py").write_text(SICK)
    path = os.pathsep.join([str(site), *(each for each in sys.path if each)])

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "fiberq_contract", "--report", "json", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        return done.returncode, {each["id"]: each for each in report["rules"]}

    return run


@pytest.mark.parametrize("name", ["zmq", "nng"])
def test_a_right_transport_gets_status_0(contract: Any, name: str) -> None:
    status, rules = contract(name, "--quick", "--rule", "ADDR-1", "--rule", "CAP")
    assert status == 0
    assert {each["status"] for each in rules.values()} == {"holds"}
    assert sorted(rules) == ["ADDR-1", "CAP-1", "CAP-2", "CAP-3"]


def test_a_transport_that_ends_the_process_breaks_a_rule_and_the_rest_is_tested(contract: Any) -> None:
    status, rules = contract("exits", "--quick", "--rule", "ADDR-2", "--rule", "ADDR-3", "--rule", "CAP")
    assert status == 1
    assert rules["ADDR-2"]["status"] == rules["CAP-1"]["status"] == "holds"
    assert rules["ADDR-3"]["status"] == "broken"
    assert "the process of the tests ended with status 0" in rules["ADDR-3"]["tests"][0]["seen"]


def test_without_a_transport_pytest_says_once_to_name_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "fiberq_contract"]
    path = os.pathsep.join(each for each in sys.path if each)
    ran = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=50
    )
    assert (ran.stdout + ran.stderr).count("--transport NAME") == 1
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR


def test_what_is_declared_false_must_not_work(contract: Any) -> None:
    status, rules = contract("cannot-fork", "--quick", "--rule", "PROC-1,PROC-3")
    assert status == 1
    assert rules["PROC-1"]["status"] == "does not apply"
    assert rules["PROC-1"]["because"] == "forks=False"
    assert rules["PROC-3"]["status"] == "broken"
    status, rules = contract("open", "--quick", "--rule", "AUTH-1,AUTH-3")
    assert status == 1
    assert rules["AUTH-1"]["status"] == "broken"
    assert rules["AUTH-3"]["status"] == "does not apply"
