"""The subcommand ``fiberq bench``, in real processes, with so few items that no figure means anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pytest

from fiberq.bench import contenders, peers, plot, skew
from fiberq.bench.runs import Case, Result, plan, results
from fiberq.bench.values import Figures, Size
from fiberq.bench.work import WORK, missing
from fiberq.cli import main

TINY = ["--repetitions", "1", "--scale", "0.0001", "--depth", "200", "--queues", "20", "--timeout", "40"]
ONE = ["--transports", "stream", "--classes", "SimpleQueuePull"]
LONG = [*ONE, "--work", "ints", "--scale", "1000"]


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FIBERQ_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "fiberq", *arguments],
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def bench(*arguments: str) -> tuple[int, str, str]:
    with start("bench", *arguments) as process:
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
    return process.returncode, out, err


def children(pid: int) -> list[int]:
    """The processes that it started and that still run, the oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(entry.name))
    return sorted(found)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def spawned(pid: int) -> list[int]:
    def command(child: int) -> bytes:
        try:
            return Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            return b""

    return [child for child in children(pid) if b"--multiprocessing-fork" in command(child)]


def test_what_is_compared_is_measured_in_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "figures"
    status, out, err = bench(*TINY, *ONE, "--work", "ints", "ping-pong", "depth", "queues", "--json", str(file))
    assert (status, err) == (0, ""), err
    read = json.loads(file.read_text())
    assert read["python"] in out
    rows = {(row["work"], row["contender"]): row for row in read["results"]}
    mine = "SimpleQueuePull stream"
    assert list(rows) == [
        ("ints", "multiprocessing.SimpleQueue"),
        ("ints", mine),
        ("ping-pong", "multiprocessing.Queue"),
        ("ping-pong", mine),
        ("depth", mine),
        ("queues", mine),
    ]
    for (work, contender), row in rows.items():
        assert row["median"] == median(row["values"]) > 0
        if row["reference"]:
            other = rows[work, row["reference"]]
            assert row["ratio"] == row["median"] / other["median"]
        assert contender in out
    assert rows["ping-pong", mine]["extra"]["p99, us"] >= rows["ping-pong", mine]["median"]
    if sys.platform == "linux":
        assert "node's bytes an item, over the payload" in rows["depth", mine]["extra"]
        assert "node's bytes a queue" in rows["queues", mine]["extra"]


def test_each_work_can_be_measured_on_a_node_elsewhere() -> None:
    works = [name for name in WORK if missing(name) is None and name not in ("ints", "ping-pong", "depth", "queues")]
    assert len(works) >= 5
    with start("serve", "--transport", "stream", "--quiet") as node:
        try:
            assert node.stdout is not None
            url = node.stdout.readline().strip()
            chosen = ["--classes", "SimpleQueuePush", "--consumers", "2", "--work", *works]
            status, out, err = bench(*TINY, "--node", url, *chosen, "--json", "-")
        finally:
            node.terminate()
    assert (status, err) == (0, ""), err
    rows = json.loads(out)["results"]
    assert [row["work"] for row in rows] == works
    assert {(row["contender"], row["reference"]) for row in rows} == {("SimpleQueuePush stream", None)}
    assert all(row["median"] > 0 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("consumers", [1, 2])
def test_a_consumer_that_is_killed_ends_the_run_and_nothing_is_left(consumers: int, tmp_path: Path) -> None:
    with start("bench", *LONG, "--consumers", str(consumers), TMPDIR=str(tmp_path)) as process:
        (stage,) = until(lambda: spawned(process.pid))
        everyone = until(lambda: len(found := spawned(stage)) == 1 + consumers and found)
        everyone += children(stage) + children(process.pid)
        os.kill(everyone[0], signal.SIGKILL)
        out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"fiberq: ints, 1 to {consumers}, multiprocessing.SimpleQueue: consumer 0 ended with")
    until(lambda: not any(map(runs, everyone)))
    assert list(tmp_path.glob("*bench*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_however_the_run_ends_nothing_is_left(number: int, status: int, tmp_path: Path) -> None:
    with start("bench", *LONG, TMPDIR=str(tmp_path)) as process:
        (stage,) = until(lambda: spawned(process.pid))
        everyone = until(lambda: len(found := spawned(stage)) == 2 and found)
        everyone += children(stage) + children(process.pid)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=50)
    assert process.returncode == status
    assert err == ("fiberq: interrupted\n" if status == 130 else "")
    until(lambda: not any(map(runs, everyone)))
    assert list(tmp_path.glob("*bench*")) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--work", "play"], "argument --work: invalid choice: 'play'"),
        (["--classes", "Pipe"], "argument --classes: invalid choice: 'Pipe'"),
        (["--peers", "carrier-pigeon"], "argument --peers: invalid choice: 'carrier-pigeon'"),
        (["--producers", "0"], "argument --producers: must be a whole number, 1 or more"),
        (["--scale", "-1"], "argument --scale: must be a number above 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["bench", *arguments])
    assert raised.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_unknown_transport_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--transports", "carrier-pigeon"]) == 2
    assert capsys.readouterr().err.startswith("fiberq: no transport is named 'carrier-pigeon'; installed: ")


def test_pictures_without_matplotlib_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    assert main(["bench", "--plot", "pictures"]) == 2
    assert capsys.readouterr().err == (
        "fiberq: --plot needs matplotlib, which is not installed: pip install matplotlib\n"
    )


def test_pictures_are_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    case = Case("depth", Size(1000))
    grown = [Figures(1.0, {}, [10.0 * number for number in range(10)])]
    assert plot.plot([Result(case, "mine", grown, [])], str(tmp_path)) == [str(tmp_path / "memory.png")]
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_goes_from_the_smallest_payload_to_the_largest_whatever_came_first() -> None:
    class Axes:
        lines: ClassVar[list[Any]] = []

        def plot(self, *line: Any, **_: Any) -> None:
            self.lines.append(line)

        def set(self, **_: Any) -> None:
            pass

    found = [Result(Case(work, Size(10)), "mine", [Figures(1.0)], []) for work in ("1MB", "ints", "dict")]
    assert plot.payloads(Axes(), found)
    assert Axes.lines == [((0, 1, 2), (1.0, 1.0, 1.0))]


def test_a_ratio_is_to_the_reference_in_the_same_repetition() -> None:
    case = Case("ints", Size(10))
    found = {
        (case, "multiprocessing.SimpleQueue"): [Figures(10.0), Figures(100.0)],
        (case, "mine"): [Figures(20.0), Figures(50.0)],
    }
    assert [result.ratios for result in results(found)] == [[1.0, 1.0], [2.0, 0.5]]


def test_contenders_take_turns_after_what_they_are_compared_to() -> None:
    case, two = Case("ints", Size(10)), contenders.ours(["zmq", "nng"], ["Queue"])
    names = [contender.name for _, contender in plan([case], two, 2, compared=True)]
    assert names == ["multiprocessing.SimpleQueue", "Queue zmq", "Queue nng"] * 2


def test_a_peer_that_lacks_something_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "pyzmq", peers.Peer(peers.PEERS["pyzmq"].make, ("zmq", "no_such_module"), ("sh",)))
    found, lacking = peers.installed(["pyzmq", "multiprocessing.Queue"])
    assert [each.name for each in found] == ["multiprocessing.Queue"]
    assert lacking == ["pyzmq: no_such_module not found"]


def test_tables_for_a_document() -> None:
    status, out, err = bench(*TINY, *ONE, "--work", "ints", "queues", "--markdown")
    assert (status, err) == (0, ""), err
    tables = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert [[line.count("|") for line in table] for table in tables] == [[8] * 4, [8] * 3]
    assert [line.split("|")[1].strip() for line in tables[0]] == [
        "",
        "---",
        "multiprocessing.SimpleQueue",
        "SimpleQueuePull stream",
    ]
    assert "**ints: small ints" in out


def test_one_who_has_no_batches_puts_and_gets_one_by_one() -> None:
    status, out, err = bench(*TINY, *ONE, "--work", "batches", "--json", "-")
    assert (status, err) == (0, ""), err
    assert all(row["median"] > 0 and row["ratio"] > 0 for row in json.loads(out)["results"])


def test_raw_sockets_are_measured_through_a_process_that_forwards() -> None:
    found, lacking = peers.installed(["pyzmq", "pynng"])
    assert lacking == []
    status, out, err = bench(*TINY, *ONE, "--work", "ints", "--peers", "pyzmq", "pynng", "--json", "-")
    assert (status, err) == (0, ""), err
    assert [row["contender"] for row in json.loads(out)["results"]][2:] == [each.name for each in found]


def test_list_scheduling_gives_each_task_to_the_worker_that_is_free_first() -> None:
    assert skew.list_schedule([4.0, 1.0, 1.0, 1.0, 5.0], 2) == 8.0
