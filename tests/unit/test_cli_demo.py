"""The subcommand ``fiberq demo``, in real processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fiberq.cli import demo

SICK = """
import os, signal, sys
import fiberq.cli.demo as demo

measure = demo.measure

def sick(path):
    # A spawned worker runs this file, too, so it measures like this. The main process is not to fall ill.
    if __name__ == "__mp_main__" and {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(path)

def once(marker):
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

demo.measure = sick

if __name__ == "__main__":
    from fiberq.cli import main
    sys.exit(main(["demo", *sys.argv[1:]]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve files to measure, and some that are to be left out."""
    folder = tmp_path / "input"
    for number in range(12):
        file = folder / f"sub{number % 3}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a line\n" * number)
    for left_out in ("__pycache__", "site-packages", "dist-packages"):
        (folder / left_out).mkdir()
        (folder / left_out / "file").write_text("no\n")
    (folder / "link").symlink_to(folder / "sub1" / "1.txt")
    os.mkfifo(folder / "fifo")
    return folder


def start(*command: object) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FIBERQ_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The status, output and errors of a process that is to end by itself."""
    with process:
        try:
            out, err = process.communicate(timeout=50)
        finally:
            process.kill()
    return process.returncode, out, err


def run(*arguments: object) -> tuple[int, str, str]:
    return finish(start("-m", "fiberq", "demo", *arguments))


def is_alive(group: int) -> bool:
    """Whether a process of this group is left. (The node is in a group of its own.)"""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def row(out: str, name: str) -> str:
    """The value in the row of the closing table that has this name."""
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if "│" in line]
    (value,) = [cells[2] for cells in rows if cells[1] == name]
    return value


@pytest.mark.parametrize("transport", ["zmq", "nng"])
@pytest.mark.parametrize("kind", ["Push", "Pull"])
def test_a_run_counts_what_is_there_and_agrees_with_one_process(transport: str, kind: str, folder: Path) -> None:
    status, out, err = run("--transport", transport, f"--{kind.lower()}", "--workers", 3, "--directory", folder)
    assert (status, err) == (0, "")
    assert row(out, "transport") == transport
    assert row(out, "queue") == f"SimpleQueue{kind}"
    assert (row(out, "files"), row(out, "bytes"), row(out, "lines")) == ("12", "462", "66")
    assert row(out, "workers that died") == "0"
    assert row(out, "one process alone") == "finds the same"
    shares = [int(share) for share in row(out, "files per worker").split(",")]
    assert sum(shares) == 12
    assert kind == "Pull" or shares == [4, 4, 4]


def test_the_digest_covers_every_path_and_content_in_order(folder: Path) -> None:
    expected = hashlib.sha256()
    for path in sorted(folder.glob("sub*/*.txt"), key=str):
        expected.update(os.fsencode(path) + b"\0" + hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"\n")
    found = {path: demo.measure(path) for path in demo.list_files(str(folder))}
    assert demo.summary(found) == (462, 66, expected.hexdigest())
    path = str(folder / "sub1" / "1.txt")
    assert demo.summary({**found, path: found[path]._replace(digest="0" * 64)}) != demo.summary(found)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_other_start_methods_work(method: str, folder: Path) -> None:
    status, out, _ = run("--workers", 2, "--directory", folder, "--start-method", method)
    assert status == 0
    assert row(out, "one process alone") == "finds the same"


def test_an_empty_directory_is_a_job_that_is_soon_done(tmp_path: Path) -> None:
    status, out, err = run("--workers", 1, "--directory", tmp_path)
    assert (status, err) == (0, "")
    assert row(out, "files") == "0"


def test_a_wrong_result_of_a_worker_is_found_and_the_status_is_1(tmp_path: Path, folder: Path) -> None:
    program = tmp_path / "wrong.py"
    wrong = "measure(path)._replace(lines=7 if __name__ == '__mp_main__' else 8)"
    program.write_text(SICK.format(condition="False").replace("return measure(path)", f"return {wrong}"))
    status, out, _ = finish(start(program, "--workers", 1, "--directory", folder))
    assert status == 1
    assert row(out, "one process alone").startswith("finds something else")


@pytest.mark.parametrize("kind", ["--push", "--pull"])
def test_when_a_worker_is_killed_another_does_its_file_and_no_result_is_lost(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100, 500):
        (folder / f"{number}.txt").write_text("a line\n")
    program = tmp_path / "sick.py"
    program.write_text(SICK.format(condition=f"path.endswith('/300.txt') and once({str(tmp_path / 'marker')!r})"))
    status, out, err = finish(start(program, kind, "--workers", 2, "--directory", folder))
    assert (status, err) == (0, "")
    assert row(out, "workers that died") == "1"
    assert (row(out, "files"), row(out, "one process alone")) == ("400", "finds the same")


@pytest.mark.parametrize(("count", "deaths"), [(2, 2), (7, 5)])
def test_when_too_many_workers_are_killed_an_error_says_so(
    count: int, deaths: int, tmp_path: Path, folder: Path
) -> None:
    program = tmp_path / "sick.py"
    program.write_text(SICK.format(condition="path.endswith('/5.txt')"))
    status, out, err = finish(start(program, "--workers", count, "--directory", folder))
    assert (status, out) == (2, "")
    line = err.splitlines()[-1]  # the node may have told of a dead letter before
    assert line.startswith("fiberq: ")
    assert f" of {count} workers died (exit status -9" in line
    assert int(line.split()[1]) >= deaths


def test_ctrl_c_stops_the_workers_and_leaves_one_line(tmp_path: Path, folder: Path) -> None:
    program, marker = tmp_path / "slow.py", tmp_path / "marker"
    slow = f"once({str(marker)!r}) and __import__('time').sleep(60)"
    program.write_text(SICK.format(condition=slow))
    process = start(program, "--workers", 2, "--directory", folder)
    deadline = time.monotonic() + 30
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    status, out, err = finish(process)
    assert (status, out, err) == (130, "", "fiberq: interrupted\n")
    while is_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_unknown_transport_is_one_line_and_status_2() -> None:
    status, out, err = run("--transport", "carrier-pigeon")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("fiberq: no transport is named 'carrier-pigeon'; installed: ")


def test_a_transport_whose_module_is_missing_is_one_line_and_status_2() -> None:
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *more: None if name == 'pynng' else find(name, *more)\n"
        "from fiberq.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    status, out, err = finish(start("-c", code, "demo", "--transport", "nng"))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("fiberq: the transport 'nng'")
    assert 'pip install "fiberq[nng]"' in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "0"], "argument --workers: must be a whole number, 1 or more"),
        (["--workers", "many"], "argument --workers: must be a whole number, 1 or more"),
        (["--directory", "/nowhere/at/all"], "argument --directory: /nowhere/at/all is no directory"),
        (["--push", "--pull"], "not allowed with argument --push"),
        (["--start-method", "magic"], "invalid choice: 'magic'"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_arguments_are_named_and_the_status_is_2(arguments: list[str], complaint: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert "Traceback" not in err
