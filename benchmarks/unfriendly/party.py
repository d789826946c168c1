"""The node, its honest clients, and what is measured of them while somebody attacks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.unfriendly.attacks import Target
from fiberq import Queue, config
from fiberq.access import Authority, Right, kept_keys, read_url, split_key
from fiberq.errors import FiberqError
from fiberq.settings import config as settings

CONNECTIONS = 200
"""What the node is set to take, so that it can be filled."""

KEPT = 3
"""Items of the queue that nobody reads meanwhile."""

STALE = 10.0
"""Seconds without an item, after which the honest clients are wedged."""

PAGE = os.sysconf("SC_PAGE_SIZE")
CONTEXT = multiprocessing.get_context("spawn")


def produce(url: str, count: Any, stop: Any) -> None:
    """Put 0, 1, 2, ...; say how many when it is to stop."""
    settings.node = url
    with Queue(1000, name="honest") as queue:
        number = 0
        while not stop.is_set():
            queue.put(number)
            number += 1
        queue.flush()
    count.value = number


def consume(url: str, count: Any, wrong: Any, total: Any) -> None:
    """Get them in this order, and nothing else, until there are as many as were put."""
    settings.node = url
    with Queue(1000, name="honest") as queue:
        number = 0
        while total.value < 0 or number < total.value:
            with contextlib.suppress(TimeoutError):
                item = _get(queue)
                if item != number:
                    wrong.value += 1
                number += 1
                count.value = number


def _get(queue: Any) -> Any:
    import queue as standard

    try:
        return queue.get(timeout=0.5)
    except standard.Empty:
        raise TimeoutError from None


class Party:
    """``fiberq serve`` on loopback TCP, a producer and a consumer, and a queue with items that nobody is to touch."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.directory = tempfile.mkdtemp(prefix="fq")
        self.log = open(os.path.join(self.directory, "log"), "w+")  # noqa: SIM115 - it is the node's
        self.node = self._serve()
        assert self.node.stdout is not None
        self.url = self.node.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the node did not start: {self.log.read()}")
        config.node = self.url
        self.secrets: Queue[Any] = Queue(name="secrets")
        self.mine: Queue[Any] = Queue(name="mine")
        self.honest: Queue[Any] = Queue(1000, name="honest")
        self.secrets.put_many(range(KEPT))
        self.secrets.flush()
        self._stop = CONTEXT.Event()
        self._count, self._wrong = CONTEXT.Value("q", 0), CONTEXT.Value("q", 0)
        self._put = CONTEXT.Value("q", -1)
        self._processes = [
            CONTEXT.Process(target=produce, args=(self.url, self._put, self._stop)),
            CONTEXT.Process(target=consume, args=(self.url, self._count, self._wrong, self._put)),
        ]
        for process in self._processes:
            process.start()
        self.peak = 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _serve(self) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FIBERQ_")}
        command = ["serve", "--transport", self.transport, "--bind", "tcp://127.0.0.1:0", "--state", self.directory]
        return subprocess.Popen(
            [sys.executable, "-m", "fiberq", *command, "--quiet"],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
            env={**kept, "FIBERQ_MAX_CONNECTIONS": str(CONNECTIONS), "FIBERQ_MAX_BYTES": str(64 << 20)},
        )

    def target(self, frames: int) -> Target:
        """What attackers know."""
        read = read_url(self.url)
        host, _, port = read.address.location.rpartition(":")
        authority = Authority(kept_keys(self.directory))
        rights = {
            "put": Right((("mine", "w"),), 0, 1),
            "get": Right((("mine", "r"),), 0, 2),
            "both": Right((("mine", "rw"),), 0, 3),
            "owner": Right(),
            "expired": Right(None, 1, 4),
            "revoked": Right((("honest", "rw"), ("secrets", "rw")), 0, 5),
        }
        tokens = {name: authority.sign(right) for name, right in rights.items()}
        self.honest._channel.attach().question(op="revoke", number=5)
        return Target(
            transport=self.transport,
            host=host,
            port=int(port),
            secret=split_key(str(read.key))[0],
            tokens=tokens | {"forged": bytes(16) + tokens["put"][16:]},
            honest=self.honest._channel.number,
            secrets=self.secrets._channel.number,
            mine=self.mine._channel.number,
            connections=CONNECTIONS,
            bomb=os.path.join(self.directory, "bomb"),
            frames=frames,
        )

    def count(self) -> int:
        """Items that the honest consumer got."""
        return int(self._count.value)

    def rate(self, seconds: float) -> float:
        """Items a second, from now."""
        before, start = self.count(), time.monotonic()
        time.sleep(seconds)
        return (self.count() - before) / (time.monotonic() - start)

    def flows(self) -> bool:
        """Whether an item comes, in time."""
        before, end = self.count(), time.monotonic() + STALE
        while time.monotonic() < end:
            if self.count() > before:
                return True
            time.sleep(0.01)
        return False

    def memory(self) -> int:
        """The node's resident bytes."""
        with open(f"/proc/{self.node.pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError, IndexError):
                self.peak = max(self.peak, self.memory())

    def faults(self) -> list[str]:
        """What is not as it was, as far as can be seen while all goes on."""
        if self.node.poll() is not None:
            return [f"the node ended with status {self.node.returncode}"]
        try:
            found = self._touched()
        except FiberqError as error:
            return [f"the queue that nobody was to touch: {error}"]
        if not self.flows():
            found.append("the honest clients are wedged")
        return found

    def _touched(self) -> list[str]:
        found = []
        if self._wrong.value:
            found.append(f"{self._wrong.value} items came that the honest producer did not put, or in another order")
        stats = self.secrets.stats()
        told = {key: stats[key] for key in ("put", "finished", "redelivered", "dead", "qsize")}
        if told != {"put": KEPT, "finished": 0, "redelivered": 0, "dead": 0, "qsize": KEPT}:
            found.append(f"the queue that nobody was to touch: {told}")
        if os.path.exists(os.path.join(self.directory, "bomb")):
            found.append("the pickle bomb was unpickled")
        self.mine._channel.attach().question(op="purge", channel=self.mine._channel.number)
        return found

    def finish(self) -> list[str]:
        """Stop the honest clients; tell what was lost or too much."""
        self._stop.set()
        for process in self._processes:
            process.join(30)
            if process.exitcode != 0:
                return [f"an honest client ended with status {process.exitcode}"]
        found = []
        if self.count() != self._put.value or self._wrong.value:
            found.append(f"of {self._put.value} items {self.count()} came, {self._wrong.value} of them wrong")
        got = [self.secrets.get(timeout=5) for _ in range(KEPT)]
        if got != list(range(KEPT)) or not self.honest.empty():
            found.append(f"what nobody was to touch is now {got}")
        return found

    def end(self) -> None:
        self._ended.set()
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        for queue in (self.secrets, self.mine, self.honest):
            with contextlib.suppress(Exception):
                queue.close()
        self.node.send_signal(signal.SIGKILL)
        self.node.wait()
        assert self.node.stdout is not None
        self.node.stdout.close()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        del config.node


@contextlib.contextmanager
def party(transport: str) -> Iterator[Party]:
    made = Party(transport)
    try:
        yield made
    finally:
        made.end()
