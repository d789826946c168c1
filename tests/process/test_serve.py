"""A node that stands alone, over TCP on each transport: names, rights, restarts, the commands that look after it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from support import PATIENCE, Crew, Program, every_method, until
from workers import echo

import fiberq
from fiberq import JoinableQueue, Pipe, Queue, SimpleQueue, SimpleQueuePush, config
from fiberq.abc import Capabilities
from fiberq.access import Authority, make_keys, read_url, split_key
from fiberq.channel import Channel
from fiberq.errors import (
    AccessError,
    AddressError,
    ConfigError,
    ConnectError,
    DirectionError,
    HandleError,
    LeaseLost,
    NodeError,
    TransportError,
)
from fiberq.listening import advertised, listen
from fiberq.refused import LINES, PERIOD
from fiberq.registry import load, make, make_client, make_server, resolve

COMMAND = (sys.executable, "-m", "fiberq")


def heed_hangups() -> None:
    """A program that was started with `nohup` ignores them, and so do those that it starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Standing:
    """``fiberq serve``, which can be ended and started again at the same port."""

    def __init__(self, transport: str, state: Path) -> None:
        self._transport = transport
        self._state = state
        self.log = state / "log"
        self.url = ""
        self.start()

    def start(self, *arguments: str) -> None:
        self._state.mkdir(exist_ok=True)
        port = self.url.rpartition(":")[2] or "0"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(*COMMAND, "serve", "--transport", self._transport, "--bind", f"tcp://127.0.0.1:{port}"),
                    *("--state", str(self._state), "--grace", "5", *arguments),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=heed_hangups,
            )
        assert self.process.stdout is not None
        with self.process.stdout:
            self.url = self.process.stdout.readline().strip()
        assert self.url, self.log.read_text()

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal_number)
        self.process.wait(PATIENCE)

    def command(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "FIBERQ_NODE": str(self._state / "url")},
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def node(transport: str, tmp_path: Path) -> Iterator[Standing]:
    standing = Standing(transport, tmp_path / "state")
    config.node = standing.url
    try:
        yield standing
    finally:
        del config.node
        standing.stop(signal.SIGKILL)


def key_of(url: str) -> str:
    key = read_url(url).key
    assert key
    return key


# -- names --


@every_method
def test_a_name_is_the_same_queue_for_all_who_have_the_url(node: Standing, crew: Crew, short_dir: Path) -> None:
    with Queue[int]("jobs") as jobs, SimpleQueue[int]("answers") as answers:
        process = crew.start(echo, jobs, answers)
        other = Program(
            short_dir,
            "from fiberq import Queue, SimpleQueue\nQueue('jobs').put_many([1, 2, 3, 'stop'])\n",
            FIBERQ_NODE=str(node.log.parent / "url"),
        )
        try:
            other.wait()
            assert [answers.get(timeout=PATIENCE) for _ in range(3)] == [1, 2, 3]
        finally:
            other.end()
        crew.finish(process)


@pytest.mark.usefixtures("node")
def test_a_clash_of_kind_or_bound_is_an_error() -> None:
    with Queue[int]("jobs", name=None) as jobs:
        assert jobs.stats()["name"] == "jobs"
        for clash in (lambda: Queue(3, name="jobs"), lambda: JoinableQueue("jobs"), lambda: SimpleQueuePush("jobs")):
            with pytest.raises(HandleError, match="the queue 'jobs' exists, as pull"):
                clash()
    with pytest.raises(TypeError, match="one name"):
        Queue("jobs", name="jobs")


def test_handles_attach_again_after_the_node_was_started_anew(node: Standing) -> None:
    jobs, other = Queue[int]("jobs"), Queue[int](5, name="other")
    jobs.put(1, sync=True)
    url = node.url
    node.stop(signal.SIGKILL)
    with pytest.raises(NodeError, match="is gone, with its queues and the items in them"):
        until(lambda: jobs.put(2, sync=True))
    with pytest.raises(ConnectError):
        jobs.put(2)
    node.start()
    assert node.url == url
    jobs.put(3, sync=True)
    other.put(4, sync=True)
    assert (jobs.get(timeout=PATIENCE), other.get(timeout=PATIENCE), jobs.empty()) == (3, 4, True)
    assert other.full() is False
    jobs.close()
    other.close()


def test_who_meets_the_next_node_at_once_is_told_that_the_queues_are_gone(node: Standing) -> None:
    with Queue[str]("jobs") as jobs:
        jobs.put("lost", sync=True)
        node.stop(signal.SIGKILL)
        node.start()
        with pytest.raises(NodeError, match=r"are gone, with the items|is gone, with its queues and the items"):
            until(lambda: jobs.put("never", sync=True))
        jobs.put("new", sync=True)


def test_each_thread_is_told_once_that_the_node_is_gone(node: Standing) -> None:
    jobs, others = Queue[str]("jobs"), Queue[str]("others")
    for each in (jobs, others):
        each.put("lost", sync=True)
    node.stop(signal.SIGKILL)
    node.start()
    with pytest.raises(NodeError):
        until(lambda: jobs.put("never", sync=True))
    for each in (jobs, others):
        with pytest.raises(Empty):
            each.get(timeout=0.2)
        each.close()


@pytest.mark.parametrize("made", [lambda: Queue("jobs"), lambda: SimpleQueue(name="jobs")])
def test_who_was_told_that_the_node_is_gone_is_not_told_again_at_the_end_of_the_block(
    node: Standing, made: Callable[[], Any]
) -> None:
    with made() as jobs, made() as untold:
        for each in (jobs, untold):
            each.put("lost", sync=True)
        node.stop(signal.SIGKILL)
        node.start()
        with pytest.raises(NodeError):
            until(lambda: jobs.put("never", sync=True))
        assert jobs.flush()


@pytest.mark.parametrize("made", [lambda: Queue("jobs"), lambda: SimpleQueue(name="jobs")])
def test_who_was_not_told_that_the_node_is_gone_is_told_at_the_end_of_the_block(
    node: Standing, made: Callable[[], Any]
) -> None:
    jobs = made().__enter__()
    jobs.put("lost", sync=True)
    node.stop(signal.SIGKILL)
    node.start()
    until(lambda: jobs._channel._link.error)
    with pytest.raises(NodeError):
        jobs.__exit__(None, None, None)


def test_a_lease_of_a_node_that_is_gone_ends_nothing_at_the_next(node: Standing) -> None:
    """The items of both have the same numbers, and here even the same reader."""
    with Queue[str]("jobs") as jobs:
        jobs.put("old", sync=True)
        old = jobs.lease(timeout=PATIENCE).__enter__()
        node.stop(signal.SIGKILL)
        node.start()
        with pytest.raises(NodeError):
            until(lambda: jobs.put("never", sync=True))
        jobs.put("new", sync=True)
        with jobs.lease(timeout=PATIENCE) as new:
            assert new.value == "new"
            for end in (lambda: old.extend(60.0), old.acknowledge):
                with pytest.raises(LeaseLost):
                    end()
            new.extend(60.0)
            assert jobs.stats()["in_flight"] == 1


def test_a_forked_childs_handle_attaches_to_the_node_that_was_started_anew(node: Standing, crew: Crew) -> None:
    with Queue[str]("jobs") as jobs, Queue[str]("answers") as answers:
        jobs.put("lost", sync=True)
        told, tell = os.pipe()
        process = crew.start(put_when_told, told, answers)
        node.stop(signal.SIGKILL)
        node.start()
        os.write(tell, b"go on")
        with pytest.raises(NodeError):
            until(lambda: jobs.put("never", sync=True))
        assert answers.get(timeout=PATIENCE) == "from the child"
        jobs.put("new", sync=True)
        crew.finish(process)
        os.close(told)
        os.close(tell)


def put_when_told(told: int, answers: Queue[str]) -> None:
    os.read(told, 1)
    answers.put("from the child", sync=True)


def test_a_caller_that_waits_is_told_that_the_node_went(node: Standing) -> None:
    jobs = Queue[int]("jobs")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            jobs.get()
        except NodeError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: jobs.stats()["readers"])
    node.stop(signal.SIGKILL)
    thread.join(PATIENCE)
    assert len(raised) == 1


def test_who_only_gets_is_not_told_that_what_he_put_is_lost(node: Standing) -> None:
    jobs = Queue[int]("jobs")
    session = jobs._channel.attach()._client.session
    until(lambda: not session.busy)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            jobs.get()
        except NodeError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    node.process.send_signal(signal.SIGSTOP)
    thread.start()
    until(lambda: session.busy)
    node.stop(signal.SIGKILL)
    thread.join(PATIENCE)
    assert ["had been accepted" in str(error) for error in raised] == [False]


def test_the_node_takes_nothing_more_when_it_is_to_stop_and_ends_when_all_is_finished(
    node: Standing, short_dir: Path
) -> None:
    other = Program(
        short_dir,
        """
import sys
from fiberq import JoinableQueue
from fiberq.errors import NodeError
from support import until
jobs = JoinableQueue("jobs")
jobs.put(1, sync=True)
print("put", flush=True)
sys.stdin.readline()
until(lambda: jobs._channel._writer.paused)
jobs.put(2)  # it gathers
print(jobs.flush(0.2), flush=True)
try:
    jobs.flush()
except NodeError as error:
    print(error, flush=True)
""",
        FIBERQ_NODE=str(node.log.parent / "url"),
    )
    try:
        jobs = JoinableQueue[int]("jobs")
        assert other.read() == "put"
        assert jobs.get(timeout=PATIENCE) == 1
        node.process.send_signal(signal.SIGTERM)
        other.write("go on")
        assert other.read() == "False"
        assert node.process.poll() is None
        jobs.task_done()
        assert node.process.wait(PATIENCE) == 0
        assert "nothing was left" in node.log.read_text()
        assert "not all that this process put had been accepted" in other.read()
    finally:
        other.end()


def test_a_node_that_is_to_stop_takes_nothing_of_who_comes_then_or_has_put_nothing_yet(node: Standing) -> None:
    jobs, held = Queue[int]("jobs"), Queue[int]("held")
    held.qsize()
    jobs.put(1, sync=True)  # so the node does not stop at once
    node.process.send_signal(signal.SIGTERM)
    until(lambda: "takes nothing more" in node.log.read_text())
    held.qsize()  # what the node said before its answer has come
    queues = held, Queue[int]("new"), Queue[int]("jobs"), jobs
    for queue in queues:
        queue.put(2)
        assert queue.flush(0.2) is False
    node.stop(signal.SIGKILL)
    for queue in queues:
        with suppress(NodeError):
            queue.close()


def test_the_node_says_what_was_left(node: Standing) -> None:
    with Queue[int]("jobs") as jobs:
        jobs.put_many([1, 2, 3])
        jobs.flush()
        assert jobs.get(timeout=PATIENCE) == 1
        jobs.qsize()
        node.process.send_signal(signal.SIGTERM)
        until(lambda: "takes nothing more" in node.log.read_text())
        node.stop()  # a second time
        assert "3 items of jobs were not finished, 2 of which no reader had got" in node.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_node_that_is_to_stop_as_soon_as_it_has_its_address_ends_well(node: Standing, number: signal.Signals) -> None:
    node.stop(signal.SIGKILL)
    node.start()
    node.stop(number)
    assert node.process.returncode == 0
    assert node.log.read_text().endswith("ended; nothing was left\n")


def test_dead_letters_are_said_to_be_gone(node: Standing) -> None:
    with Queue[int]("jobs", max_deliveries=1) as jobs:
        jobs.put(1, sync=True)
        with suppress(ZeroDivisionError), jobs.lease(timeout=PATIENCE):
            raise ZeroDivisionError
        assert len(list(jobs.dead_letters())) == 1
        node.stop()
        assert "1 dead letters of jobs are gone" in node.log.read_text()


def test_a_node_whose_standard_output_is_closed_serves(node: Standing) -> None:
    node.stop()
    address = read_url(node.url).address
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ("--transport", node._transport, "--bind", address.node, "--state", str(node.log.parent))
    with node.log.open("a") as log:
        node.process = subprocess.Popen([*COMMAND, "serve", *arguments], stdout=writing, stderr=log)
    os.close(writing)
    until(lambda: "could not be written" in node.log.read_text())
    assert node.command("ls").startswith("queue")
    node.stop()
    assert node.process.returncode == 0


# -- rights --


def test_who_has_no_key_or_another_is_refused(node: Standing, transport: str) -> None:
    read = read_url(node.url)
    for key in (None, Authority(make_keys()).owner_key):
        config.node = str(read._replace(key=key))
        config.transport = transport
        with pytest.raises(ConnectError) as raised:
            Queue("jobs")
        assert key is None or key not in str(raised.value)


@pytest.mark.parametrize("key", [None, Authority(make_keys()).owner_key], ids=["none", "another"])
def test_who_has_no_key_or_another_leaves_a_line(node: Standing, transport: str, key: str | None) -> None:
    config.node = str(read_url(node.url)._replace(key=key))
    config.transport = transport
    with pytest.raises(ConnectError):
        Queue("jobs")
    line = re.compile(r" a client( at 127\.0\.0\.1:\d+)? was refused: it [a-z ,:]+$", re.MULTILINE)
    until(lambda: line.search(node.log.read_text()))
    assert key is None or key not in node.log.read_text()


def test_strangers_leave_few_lines_and_their_number(node: Standing) -> None:
    host, _, port = read_url(node.url).address.location.rpartition(":")
    for _ in range(50):
        with socket.create_connection((host, int(port)), PATIENCE) as stranger:
            stranger.sendall(b"GET /\nnode ended HTTP/1.0\r\n\r\n" * 5)
            with suppress(ConnectionError):
                while stranger.recv(1000):
                    pass
    until(lambda: "more clients were refused" in node.log.read_text(), 2 * PERIOD)
    log = node.log.read_text()
    assert log.count("was refused") == LINES
    assert "GET" not in log
    assert "node ended" not in log


def test_who_can_connect_but_has_no_right_is_refused(node: Standing) -> None:
    keys = Authority(make_keys()._replace(secret=read_secret(node.url)))
    config.node = str(read_url(node.url)._replace(key=keys.owner_key))
    with pytest.raises(AccessError, match="did not give that right"):
        Queue("jobs")
    until(lambda: "was refused" in node.log.read_text())


def test_the_node_logs_who_comes_and_goes(node: Standing, short_dir: Path) -> None:
    other = Program(
        short_dir, "from fiberq import Queue\nQueue('jobs').close()\n", FIBERQ_NODE=str(node.log.parent / "url")
    )
    try:
        other.wait()
        who = f"process {other.pid} on {os.uname().nodename}"
        until(lambda: f"{who} went" in node.log.read_text())
        assert f"{who} came" in node.log.read_text()
    finally:
        other.end()


def test_the_node_logs_who_dies_with_items_and_what_becomes_a_dead_letter(node: Standing, short_dir: Path) -> None:
    with Queue[str]("jobs", max_deliveries=1) as jobs:
        jobs.put("an item", sync=True)
        other = Program(
            short_dir,
            "import time\nfrom fiberq import Queue\nq = Queue('jobs')\nprint(q.get(), flush=True)\ntime.sleep(60)\n",
            FIBERQ_NODE=str(node.log.parent / "url"),
        )
        try:
            assert other.read() == "an item"
        finally:
            other.end()
        who = f"process {other.pid} on {os.uname().nodename}"
        until(lambda: f"{who} is gone, without a goodbye; it had 1 items" in node.log.read_text())
        assert "queue jobs has 1 dead letters, now that the only delivery failed" in node.log.read_text()


def test_the_node_logs_that_writers_wait(node: Standing) -> None:
    node.stop()
    os.environ["FIBERQ_MAX_BYTES"] = "100000"
    try:
        node.start()
    finally:
        del os.environ["FIBERQ_MAX_BYTES"]
    with Queue[bytes]("jobs") as jobs:
        for _ in range(3):
            jobs.put(bytes(40_000), sync=True)
        until(lambda: "who puts more into jobs waits" in node.log.read_text())


def test_the_commands_know_pipes(node: Standing) -> None:
    here, there = Pipe()
    with here, there:
        there.send("message")
        there.flush(PATIENCE)
        (name,) = [queue["number"] for queue in json.loads(node.command("ls", "--json")) if queue["put"]]
        assert "pipe" in node.command("ls")
        assert "kind: pipe" in node.command("stats", name, "--interval", "0")
        assert node.command("purge", name) == "1 items were dropped\n"
        assert not here.poll()


def test_a_url_that_everybody_can_read_is_told_of_once(node: Standing, caplog: pytest.LogCaptureFixture) -> None:
    copy = node.log.parent / "copy"
    copy.write_text(node.url)
    copy.chmod(0o644)
    config.node = str(copy)
    for _ in range(2):
        Queue[int]("jobs").close()
    (record,) = caplog.records
    assert "every user can read" in record.message
    assert key_of(node.url) not in record.message


def read_secret(url: str) -> bytes:
    return split_key(key_of(url))[0]


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("made", [lambda: Queue("jobs"), lambda: Queue(), lambda: JoinableQueue(5), SimpleQueuePush])
def test_a_url_opens_what_it_names(made: Callable[[], Any]) -> None:
    with made() as queue, fiberq.open(queue.url) as other:
        queue.put("item")
        assert other.get(timeout=PATIENCE) == "item"
        assert type(other) is type(queue)
        with fiberq.open(queue.writer.url) as writer, fiberq.open(queue.reader.url) as reader:
            writer.send("another")
            assert reader.recv() == "another"


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("duplex", [True, False])
def test_a_url_opens_the_end_of_a_pipe(duplex: bool) -> None:
    first, second = Pipe(duplex)
    with fiberq.open(first.url) as one, fiberq.open(second.url) as other:
        other.send("there")
        assert one.recv() == "there"
        if duplex:
            one.send("back")
            assert other.recv() == "back"
    first.close()
    second.close()


def test_what_names_no_queue_is_an_error(node: Standing) -> None:
    with pytest.raises(AddressError, match="no queue on it"):
        fiberq.open(node.url)
    with pytest.raises(HandleError, match="no queue or pipe 'unknown'"):
        fiberq.open(f"{node.url}/unknown")
    end, _ = Pipe()
    with pytest.raises(AddressError, match="no end of it"):
        fiberq.open(end.url.rpartition("/")[0])
    with Queue[int]("jobs") as jobs, pytest.raises(AddressError, match="jobs is a queue"):
        fiberq.open(f"{jobs.url}/a")


@pytest.mark.usefixtures("node")
def test_the_line_of_a_file_is_a_url() -> None:
    with Queue[int]("jobs") as jobs, fiberq.open(f" {jobs.url}\n") as other:
        assert other.stats()["name"] == "jobs"


@pytest.mark.usefixtures("node")
def test_who_has_a_right_to_a_queue_and_asks_for_it_by_its_name_is_told_what_to_do() -> None:
    with Queue[int]("jobs") as jobs:
        config.node = jobs.restrict("put").url
        with pytest.raises(AccessError, match=r"fiberq\.open takes the URL"):
            Queue("jobs")


@pytest.mark.usefixtures("node")
def test_a_restricted_handle_can_do_no_more() -> None:
    with Queue[int]("jobs") as jobs, Queue[int]("others") as others:
        putter, getter = jobs.restrict("put"), fiberq.open(jobs.restrict("get").url)
        putter.put(1)
        assert putter.flush(PATIENCE)
        assert getter.get(timeout=PATIENCE) == 1
        assert putter.qsize() == 0
        with pytest.raises(DirectionError):
            putter.get()
        with pytest.raises(DirectionError):
            getter.put(2)
        for handle, side in ((putter, "r"), (getter, "w")):
            endpoint = handle._channel.endpoint
            for number, sides in (
                (jobs._channel.number, side),
                (jobs._channel.number, "rw"),
                (others._channel.number, "w"),
            ):
                with pytest.raises(AccessError, match="no right"):
                    Channel(endpoint, number, sides).attach()
            link = handle._channel.attach()
            for question in (
                {"op": "create", "channel": 2, "kind": ["pull", 0]},
                {"op": "shutdown", "channel": jobs._channel.number},
                {"op": "dead letters", "channel": jobs._channel.number},
                {"op": "stat", "channel": others._channel.number},
                {"op": "queues"},
                {"op": "purge", "channel": jobs._channel.number},
                {"op": "delete", "channel": jobs._channel.number},
                {"op": "revoke", "number": 1},
                {"op": "restrict", "holds": [[jobs._channel.number, "rw"]]},
                {"op": "queues", "holds": []},
                {"op": "create", "channel": 2, "kind": ["pull", 0], "holds": []},
                {"op": "delete", "channel": others._channel.number, "holds": []},
                {"op": "revoke", "number": 1, "holds": [[jobs._channel.number, ""]]},
            ):
                with pytest.raises(AccessError):
                    link.question(**question)
                if "holds" not in question:
                    with pytest.raises(AccessError):
                        link.question(**question, holds=[])
            with pytest.raises(HandleError):
                link.find("others")
        with pytest.raises(AccessError):
            putter.restrict("get")
        with pytest.raises(ValueError, match='"put" or "get"'):
            jobs.restrict("both")
        for wrong in (0, -1, float("inf"), float("nan"), 1e300):
            for handle in (jobs, jobs.writer):
                with pytest.raises(ValueError, match="seconds above 0"):
                    handle.restrict("put", expires=wrong)
        with pytest.raises(TypeError, match="a number of seconds"):
            jobs.restrict("put", expires="1h")  # type: ignore[arg-type]
        jobs.restrict("put", expires=0.5).put(0, sync=True)
        assert jobs.get(timeout=PATIENCE) == 0
        again = fiberq.open(putter.restrict("put").url)
        again.put(3, sync=True)
        assert jobs.get(timeout=PATIENCE) == 3


@pytest.mark.usefixtures("node")
def test_a_restricted_end_of_a_pipe_is_not_the_other() -> None:
    first, second = Pipe()
    mine = fiberq.open(first.restrict().url)
    mine.send("hello")
    assert second.recv() == "hello"
    endpoint = mine._reads._channel.endpoint if hasattr(mine._reads, "_channel") else mine._reads.endpoint
    for number, sides in ((mine._reads.number, "w"), (mine._writes.number, "r")):
        with pytest.raises(AccessError):
            Channel(endpoint, number, sides).attach()
    sender = fiberq.open(first.restrict("put").url)
    sender.send("more")
    assert second.recv() == "more"
    with pytest.raises(DirectionError):
        sender.recv()


@pytest.mark.usefixtures("node")
def test_a_put_into_what_is_not_held_is_a_breach() -> None:
    from fiberq.protocol.frames import PUT, Frame, pack_items

    with Queue[int]("jobs") as jobs:
        getter = jobs.restrict("get")
        link = getter._channel.attach()
        with link._lock:
            body = pack_items((5).to_bytes(4, sys.byteorder), [b"12345"])
            link._client.session.send(Frame(PUT, jobs._channel.number, body), time.monotonic())
            link._transmit(time.monotonic())
        with pytest.raises(NodeError, match="does not hold"):
            getter.get(timeout=PATIENCE)
        assert jobs.empty()


@pytest.mark.usefixtures("node")
def test_a_right_that_expired_is_over_for_those_who_have_it() -> None:
    with Queue[int]("jobs") as jobs:
        getter = jobs.restrict("get", expires=1)
        url = getter.url
        with pytest.raises(AccessError, match="expired"):
            getter.get(timeout=PATIENCE)
        with pytest.raises(AccessError, match="expired"):
            fiberq.open(url)
        jobs.put(1)
        assert jobs.get(timeout=PATIENCE) == 1


@pytest.mark.usefixtures("node")
def test_a_right_for_less_than_a_second_ends_in_time() -> None:
    with Queue[int]("jobs") as jobs:
        before = time.time()
        right = jobs.restrict("put", expires=0.25).url
        assert before + 0.25 <= read_right(right) + 0.001 < time.time() + 0.26


def test_a_right_expires_while_the_node_is_stopped(node: Standing) -> None:
    with Queue[int]("jobs") as jobs:
        putter = jobs.restrict("put", expires=1)
        assert (
            putter.stats()["writers"] == [{"host": None, "pid": None, "away": False}] * 2
        )  # who it is, others may not know
        node.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: time.time() > read_right(putter.url) + 0.1)
        finally:
            node.process.send_signal(signal.SIGCONT)
        with pytest.raises(AccessError, match="expired"):
            until(lambda: putter.put(1, sync=True), timeout=1.5)


def read_right(url: str) -> float:
    """When the right in a URL ends, in seconds since 1970."""
    return float(json.loads(split_key(key_of(url))[1][16:])[1])


def test_a_right_that_was_revoked_is_over_also_after_a_restart(node: Standing) -> None:
    with Queue[int]("jobs") as jobs:
        kept, gone = jobs.restrict("put").url, jobs.restrict("put").url
        handle, other = fiberq.open(gone), fiberq.open(kept)
        handle.put(1, sync=True)
        assert node.command("revoke", gone) == "revoked; 1 processes were cut off\n"
        with pytest.raises(AccessError, match="revoked"):
            handle.put(2, sync=True)
        other.put(3, sync=True)
        assert [jobs.get(timeout=PATIENCE) for _ in range(2)] == [1, 3]
        assert "the owner's" in node.command("revoke", node.url, status=2)
        node.stop(signal.SIGKILL)
        node.start()
        with pytest.raises(NodeError):
            until(lambda: jobs.put(1, sync=True))
        jobs.put(4, sync=True)
        with pytest.raises(AccessError, match="revoked"):
            fiberq.open(gone)
        fiberq.open(kept).put(5, sync=True)


@pytest.mark.parametrize("new", ["opened", "named", "pipe"])
def test_what_is_new_is_not_told_of_the_node_before(node: Standing, new: str) -> None:
    """Where this process has not noticed yet that the node was started anew: only its older handles tell it."""
    older = Queue[int]("jobs")
    older.put(1, sync=True)
    link = older._channel.attach()
    asked = threading.Event()
    reconnect, ask = link._reconnect, link.ask

    def reconnect_late() -> None:
        asked.wait(PATIENCE)
        reconnect()

    def ask_first(**question: Any) -> dict[str, Any]:
        asked.set()
        return ask(**question)

    link._reconnect, link.ask = reconnect_late, ask_first  # type: ignore[method-assign]
    node.stop(signal.SIGKILL)
    node.start()
    with pytest.raises(HandleError, match="jobs") if new == "opened" else nullcontext():
        {"opened": lambda: fiberq.open(older.url), "named": lambda: Queue("others"), "pipe": Pipe}[new]()
    assert asked.is_set()
    with pytest.raises(NodeError, match="started anew"):
        older.put(2)
    older.put(3, sync=True)
    assert older.get(timeout=PATIENCE) == 3


def test_a_right_whose_revocation_cannot_be_kept_is_over_and_that_is_said(node: Standing) -> None:
    with Queue[int]("jobs") as jobs:
        url = jobs.restrict("put").url
        handle = fiberq.open(url)
        handle.put(1, sync=True)
        in_the_way = node.log.parent / "revoked"
        in_the_way.mkdir()
        for _ in range(2):
            assert "cannot be kept" in node.command("revoke", url, status=2)
            with pytest.raises(AccessError, match="revoked"):
                handle.put(2, sync=True)
        in_the_way.rmdir()
        assert "revoked" in node.command("revoke", url)
        assert in_the_way.read_text()


def test_no_secret_is_seen(node: Standing, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = key_of(node.url)
    secret = read_secret(node.url)
    with Queue[int]("jobs") as jobs:
        shown = [
            repr(jobs),
            repr(jobs._channel.endpoint),
            repr(jobs._channel.attach()),
            repr(jobs.writer),
            repr(config),
        ]
        shown += [str(jobs.stats()), node.command("ls"), node.command("stats", "jobs", "--interval", "0")]
        shown += [node.command(*wrong, node.url, status=2) for wrong in (["ls"], ["stats"], ["stats", "jobs", "x"])]
        shown += [Path(f"/proc/{node.process.pid}/cmdline").read_text(), caplog.text, node.log.read_text()]
    node.stop(signal.SIGKILL)
    with pytest.raises(NodeError) as raised:
        until(lambda: SimpleQueue().put(1, sync=True))
    shown.append(str(raised.value))
    for text in shown:
        assert key not in text
        assert secret.hex() not in text
        assert key[:40] not in text


# -- looking after it --


def test_the_commands_tell_and_do(node: Standing) -> None:
    jobs = JoinableQueue[int]("jobs")
    with SimpleQueue[int]():
        jobs.put_many(range(5))
        jobs.flush()
        assert jobs.get(timeout=PATIENCE) == 0
        jobs.qsize()
        heading, line, other = node.command("ls").splitlines()
        assert heading.split()[:3] == ["queue", "kind", "waiting"]
        assert line.split() == ["jobs", "joinable,", "without", "a", "bound", "4", "1", "5", "0", "0", "0", "25"]
        assert other.split()[1:3] == ["pull,", "without"]
        (told, _) = json.loads(node.command("ls", "--json"))
        assert (told["name"], told["qsize"], told["in_flight"]) == ("jobs", 4, 1)
        lines = node.command("stats", "jobs", "--interval", "0.01").splitlines()
        host = os.uname().nodename
        assert f"reader: process {os.getpid()} on {host}" in lines
        assert f"writer: process {os.getpid()} on {host}" in lines
        assert "waiting: 4" in lines
        assert "put in a second: 0.0" in lines
        assert json.loads(node.command("stats", "jobs", "--interval", "0", "--json"))["in_flight"] == 1
        assert "has 5 items" in node.command("delete", "jobs", status=1)
        assert node.command("purge", "jobs") == "4 items were dropped\n"
        jobs.task_done()
        assert jobs.join(PATIENCE)
        assert jobs.stats()["finished"] == 5
        assert node.command("delete", "jobs") == ""
        with pytest.raises(HandleError):
            until(lambda: jobs.put(1, sync=True))
        assert "no queue 'jobs'" in node.command("stats", "jobs", status=2)


def test_a_queue_that_was_deleted_ends_for_who_waits(node: Standing) -> None:
    jobs = Queue[int]("jobs")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            jobs.get()
        except HandleError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: jobs.stats()["readers"])
    node.command("delete", "--force", "jobs")
    thread.join(PATIENCE)
    assert len(raised) == 1


# -- a program's own node --


def listening(pid: int) -> set[str]:
    """The ports at which a process listens."""
    sockets = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


PROGRAM = """
import os, sys
from fiberq import Queue, config
config.transport = {transport!r}
{listen}
q = Queue()
q.put("from afar", sync=True)
from support import node_of
print(node_of(os.getpid()), q.url, flush=True)
sys.stdin.readline()
print(q.get(), flush=True)
"""


def test_a_programs_own_node_listens_on_no_network(transport: str, program: type[Program]) -> None:
    running = program(PROGRAM.format(transport=transport, listen=""))
    pid, url = running.read().split()
    assert listening(int(pid)) == set()
    assert url.startswith(f"{transport}+ipc:///")
    running.write("go on")
    assert running.read() == "from afar"
    with Queue() as queue, pytest.raises(AccessError, match="listens on no network"):
        queue.restrict("put")


def test_a_program_can_offer_its_queues_to_other_machines(transport: str, program: type[Program]) -> None:
    running = program(PROGRAM.format(transport=transport, listen="config.listen = 'tcp://127.0.0.1:0'"))
    pid, url = running.read().split()
    assert len(listening(int(pid))) == 1
    assert url.startswith(f"{transport}+tcp://")
    with fiberq.open(url) as queue:
        assert queue.get(timeout=PATIENCE) == "from afar"
        queue.put("from there", sync=True)
    running.write("go on")
    assert running.read() == "from there"


def test_to_listen_too_late_is_an_error(transport: str, program: type[Program]) -> None:
    running = program(
        """
from fiberq import Queue, config
from fiberq.errors import ConfigError
Queue()
config.listen = "tcp://127.0.0.1:0"
try:
    Queue()
except ConfigError as error:
    print(error)
""",
        FIBERQ_TRANSPORT=transport,
    )
    assert "before the first queue" in running.read()
    running.wait()


def test_a_host_whose_name_is_unknown_is_called_so(transport: str) -> None:
    config.node = f"{transport}+tcp://{Authority(make_keys()).owner_key}@no-such-host.invalid:7100"
    try:
        with pytest.raises(ConnectError, match="the name of its host cannot be resolved"):
            Queue("jobs")
    finally:
        del config.node


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_programs_own_node_leaves_no_socket_where_it_listens(
    number: signal.Signals, transport: str, program: type[Program], short_dir: Path
) -> None:
    if transport == "nng":
        pytest.skip("it does not listen at ipc for others, as it cannot protect that")
    path = short_dir / "node"
    running = program(PROGRAM.format(transport=transport, listen=f"config.listen = 'ipc://{path}'"))
    _, url = running.read().split()
    assert f"@{path}" in url
    assert path.is_socket()
    running.process.send_signal(number)
    until(lambda: not path.exists())


@pytest.mark.usefixtures("transport")
def test_a_handle_that_comes_to_another_machine_says_what_to_do() -> None:
    with SimpleQueue[int]() as queue:
        endpoint = queue._channel.endpoint
        assert endpoint.host == os.uname().nodename
        far = endpoint._replace(address="ipc:///nowhere/node", host="elsewhere")
        with pytest.raises(NodeError, match=r"a queue on elsewhere, whose node listens on no network.*config\.listen"):
            Channel(far, 2, "r").attach()


def test_an_ipc_url_that_comes_to_another_machine_says_what_to_do(transport: str) -> None:
    with pytest.raises(ConnectError, match=r"another machine.*fiberq serve.*config\.listen"):
        fiberq.open(f"{transport}+ipc:///nowhere/node?jobs")


@pytest.mark.parametrize("found", [True, False])
def test_a_handle_finds_its_way_from_another_machine(found: bool, transport: str, program: type[Program]) -> None:
    """It uses the node's own socket where that is, and the network's address elsewhere."""
    move = "" if found else "endpoint = endpoint._replace(address='ipc:///nowhere/node', host='elsewhere')"
    running = program(
        f"""
from fiberq import Queue, config
from fiberq.channel import Channel
config.transport, config.listen = {transport!r}, "tcp://127.0.0.1:0"
q = Queue()
q.put("an item", sync=True)
endpoint = q._channel.endpoint
{move}
there = Channel(endpoint, q._channel.number, "r")
print(there.attach().address.scheme, there.get(), flush=True)
there.close()
"""
    )
    assert running.read() == f"{'ipc' if found and transport != 'nng' else 'tcp'} an item"
    running.wait()


# -- bad settings --


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe\0", "no text"), (b"", "empty"), (b"\nzmq+tcp://h:1", "empty")]
)
@pytest.mark.usefixtures("transport")
def test_a_node_file_without_a_url_is_a_clear_error(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_bytes(content)
    config.node = str(tmp_path / "url")
    try:
        with pytest.raises(ConfigError, match=said):
            Queue()
    finally:
        del config.node


@pytest.mark.parametrize("text", ["nonsense", "zmq+tcp://short@127.0.0.1:1", "zmq+tcp://127.0.0.1"])
@pytest.mark.usefixtures("transport")
def test_a_node_that_is_no_url_is_a_clear_error(text: str) -> None:
    config.node = text
    try:
        with pytest.raises((AddressError, ConfigError, ConnectError)):
            Queue()
    finally:
        del config.node


@pytest.mark.parametrize("instead", ["", "/", " ", "%40", "@@"])
def test_a_url_that_lost_its_at_is_an_error_that_does_not_show_the_key(instead: str, transport: str) -> None:
    key = Authority(make_keys()).owner_key
    damaged = f"{transport}+tcp://{key}{instead}127.0.0.1:9/jobs"
    maker = make(resolve(transport))
    client = make_client(resolve(transport), maker, None)
    server = make_server(resolve(transport), maker, None)
    config.node = damaged
    try:
        for use in (
            Queue,
            lambda: fiberq.open(damaged),
            lambda: fiberq.open(damaged.replace(key, key[:44])),
            lambda: client.connect(damaged.partition("+")[2], 1.0),
            lambda: server.bind(damaged.partition("+")[2]),
        ):
            with pytest.raises((AddressError, ConfigError, TransportError)) as raised:
                use()
            assert key[:32] not in str(raised.value)
    finally:
        del config.node
        maker.close()


def test_an_advertised_address_is_a_host_and_perhaps_a_port() -> None:
    assert advertised("tcp://0.0.0.0:7100", "example.org") == "tcp://example.org:7100"
    assert advertised("tcp://0.0.0.0:7100", "example.org:80") == "tcp://example.org:80"
    assert advertised("tcp://0.0.0.0:7100", "[2001:db8::1]") == "tcp://[2001:db8::1]:7100"
    assert advertised("tcp://[::]:7100", "[2001:db8::1]:80") == "tcp://[2001:db8::1]:80"
    assert advertised("tcp://10.0.0.1:7100", None) == "tcp://10.0.0.1:7100"
    assert "0.0.0.0" not in advertised("tcp://0.0.0.0:7100", None)
    for wrong in ("tcp://x:1", "x/y", ""):
        with pytest.raises(AddressError):
            advertised("tcp://0.0.0.0:7100", wrong)


def test_a_transport_that_cannot_authenticate_is_refused_a_network(transport: str) -> None:
    real = load(transport)

    class Open(real):  # type: ignore[misc, valid-type]
        capabilities = Capabilities(real.capabilities.schemes, authenticates=False)

    keys = make_keys()
    made = Open()
    with pytest.raises(TransportError, match="allow_insecure"):
        listen(resolve(transport), made, ["tcp://127.0.0.1:0"], keys, Authority(keys), False)
    found = listen(resolve(transport), made, ["tcp://127.0.0.1:0"], keys, Authority(keys), True)
    assert found.authority is None
    found.server.close()
    made.close()


@pytest.mark.usefixtures("node")
def test_a_handle_carries_its_rights_in_its_pickle() -> None:
    with Queue[int]("jobs") as jobs:
        putter = pickle.loads(pickle.dumps(jobs.restrict("put")))
        putter.put(1, sync=True)
        with pytest.raises(DirectionError):
            putter.get()
        assert key_of(jobs.url) not in putter.url
