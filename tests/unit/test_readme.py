"""README.md: every block of code in it runs, and its two commands are what CI and this repository use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
TOML = [code for language, code in BLOCKS if language == "toml"]
EXPECTED = {
    0: "998001\n",
    1: "SimpleQueuePush\n",
    2: "",
    3: "2 deliveries failed, the last one because ValueError: a job cannot be done\n",
    4: "an item\n",
    5: "{'any': 'object'}\n",
    6: "1\nb'2'\n",
    8: "an item\n",
    9: "",
}
"""What the Python blocks print."""
ELSEWHERE = 7
"""The block that uses a node which stands alone."""


def run(folder: Path, *command: str, **variables: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FIBERQ_")}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_python_blocks_are_known() -> None:
    assert set(range(len(PYTHON))) == {*EXPECTED, ELSEWHERE}


@pytest.mark.parametrize("number", EXPECTED)
def test_a_python_block_runs_and_prints_what_it_should(number: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PYTHON[number])
    assert run(tmp_path, sys.executable, "-W", "error", str(program)) == EXPECTED[number]


def test_the_file_sets_what_it_says(tmp_path: Path) -> None:
    (code,) = TOML
    (tmp_path / "fiberq.toml").write_text(code)
    shown = run(tmp_path, sys.executable, "-c", "from fiberq import config; config.validate(); print(config)")
    for line in code.splitlines():
        key, _, value = line.partition(" = ")
        value = {"true": "True"}.get(value, value.replace('"', "'"))
        assert f"{key} = {value} ({tmp_path.resolve() / 'fiberq.toml'})" in shown


def test_the_commands_of_fiberq_run(tmp_path: Path) -> None:
    commands = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    ours = [line.partition("#")[0] for line in commands if ".venv" not in line and "pip" not in line]
    ours = [line for line in ours if "FIBERQ_NODE" not in line and "serve" not in line]
    assert len(ours) == 5
    (tmp_path / "small").mkdir()
    for line in ours:
        before, _, after = line.partition("fiberq ")
        command, *arguments = after.split()
        if command == "contract":  # nobody has written the transport mine
            arguments = [each.replace("mine", "zmq") for each in arguments] + ["--rule", "CAP"]
        if command == "demo":
            arguments += ["--directory", "small", "--workers", "1"]
        variables = dict(word.split("=") for word in before.split())
        run(tmp_path, sys.executable, "-m", "fiberq", command, *arguments, **variables)


def test_a_worker_elsewhere_finds_the_node(tmp_path: Path) -> None:
    commands = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    (serve,) = [line.split()[1:] for line in commands if "serve" in line]
    (worker,) = [line for line in commands if "worker.py" in line]
    (tmp_path / "worker.py").write_text(PYTHON[ELSEWHERE])
    arguments = [each.replace("0.0.0.0:7100", "127.0.0.1:0") for each in serve]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FIBERQ_")}
    environment = {**kept, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "fiberq", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            url = node.stdout.readline()
            copy = tmp_path / "fiberq" / "url"
            assert copy.read_text() == url
            assert worker == "FIBERQ_NODE=/path/of/the/copy python worker.py"
            run(tmp_path, sys.executable, "worker.py", FIBERQ_NODE=str(copy))
        finally:
            node.terminate()


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_each_of_the_two_commands_is_one_line_in_a_block_of_its_own(heading: str) -> None:
    section = re.search(rf"^## {heading}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert section is not None
    ((language, code),) = re.findall(r"^```(\w*)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert language == "sh"
    assert code.count("\n") == 1
    assert code.startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_links_lead_to_files() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
