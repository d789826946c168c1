"""Other queues to compare with, each used as its own documentation says; those that are not installed are left out.

A peer's queue goes to a child process as little more than an address, and connects there at its first use.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from fiberq.bench.contenders import QUEUE, Contender, standard
from fiberq.bench.crew import Crew

LONG: Final = 1e6
"""Seconds, for peers that know no infinite timeout: the measurement has a deadline of its own."""


class Peer(NamedTuple):
    """A queue of this kind can be made if the modules can be imported, and the programs are on the path."""

    make: Callable[[Crew, str], Any]
    modules: tuple[str, ...]
    programs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        modules = [name for name in self.modules if find_spec(name) is None]
        return modules + [name for name in self.programs if shutil.which(name) is None]


def installed(names: list[str]) -> tuple[list[Contender], list[str]]:
    """Return the peers that can be used, of these or of all, and of each other what it lacks."""
    found, lacking = [], []
    for name in names or PEERS:
        missing = PEERS[name].missing()
        if missing:
            lacking.append(f"{name}: {', '.join(missing)} not found")
        else:
            found.append(Contender(name, PEERS[name].make))
    return found, lacking


class Remote:
    """What is in the instance's ``__init__`` arguments travels; what was connected does not."""

    def __init__(self, *where: Any) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return type(self), self.where


class ZmqQueue(Remote):
    """PUSH and PULL through `zmq.proxy` in a process of its own."""

    @cached_property
    def context(self) -> Any:
        import zmq

        return zmq.Context()

    @cached_property
    def push(self) -> Any:
        import zmq

        socket = self.context.socket(zmq.PUSH)
        socket.connect(self.where[0])
        return socket

    @cached_property
    def pull(self) -> Any:
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        socket = self.context.socket(zmq.PULL)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(self.where[1])
        recv_monitor_message(monitor)  # until then, others get what comes
        socket.disable_monitor()
        return socket

    def attach(self) -> None:
        self.pull  # noqa: B018

    def put(self, item: Any) -> None:
        self.push.send(pickle.dumps(item, 5))

    def get(self) -> Any:
        return pickle.loads(self.pull.recv())


def _zmq(crew: Crew, directory: str) -> ZmqQueue:
    return ZmqQueue(*_forwarded(crew, directory, forward_zmq))


def forward_zmq(talk: Connection[Any, Any], front: str, back: str) -> None:
    import zmq

    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pull.bind(front)
    push.bind(back)
    talk.send("ready")
    zmq.proxy(pull, push)


class NngQueue(Remote):
    """PUSH and PULL through `nng_device` in a process of its own."""

    @cached_property
    def push(self) -> Any:
        import pynng

        return pynng.Push0(dial=self.where[0], block_on_dial=True)

    @cached_property
    def pull(self) -> Any:
        import pynng

        return pynng.Pull0(dial=self.where[1], block_on_dial=True, recv_max_size=0)

    def attach(self) -> None:
        self.pull  # noqa: B018

    def put(self, item: Any) -> None:
        self.push.send(pickle.dumps(item, 5))

    def get(self) -> Any:
        return pickle.loads(self.pull.recv())


def _nng(crew: Crew, directory: str) -> NngQueue:
    return NngQueue(*_forwarded(crew, directory, forward_nng))


def forward_nng(talk: Connection[Any, Any], front: str, back: str) -> None:
    import pynng

    pull = pynng.Pull0(listen=front, opener=pynng.lib.nng_pull0_open_raw, recv_max_size=0)
    push = pynng.Push0(listen=back, opener=pynng.lib.nng_push0_open_raw)
    talk.send("ready")
    pynng.lib.nng_device(pull.socket, push.socket)


def _forwarded(crew: Crew, directory: str, forward: Callable[..., None]) -> tuple[str, str]:
    """Two addresses, and a process that forwards from one to the other."""
    name = os.path.join(directory, f"{forward.__name__}-{len(crew.members)}")
    front, back = f"ipc://{name}-front", f"ipc://{name}-back"
    crew.hear(crew.start("forwarder", forward, front, back))
    return front, back


class FasterFifo:
    """faster-fifo's queue, whose methods have timeouts of 10 s unless they are told otherwise."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def put(self, item: Any) -> None:
        self.queue.put(item, timeout=LONG)

    def get(self) -> Any:
        return self.queue.get(timeout=LONG)

    def put_many(self, items: list[Any]) -> None:
        self.queue.put_many(items, timeout=LONG)

    def get_many(self, most: int) -> Any:
        return self.queue.get_many(timeout=LONG, max_messages_to_get=most)


def _faster_fifo(crew: Crew, directory: str) -> FasterFifo:  # noqa: ARG001
    from faster_fifo import Queue

    return FasterFifo(Queue(max_size_bytes=100_000_000))


class RedisQueue(Remote):
    """A list of a Redis server that is started for it, over a UNIX socket."""

    @cached_property
    def server(self) -> Any:
        import redis

        return redis.Redis(unix_socket_path=self.where[0])

    def put(self, item: Any) -> None:
        self.server.rpush("queue", pickle.dumps(item, 5))

    def get(self) -> Any:
        return pickle.loads(self.server.blpop(["queue"], timeout=0)[1])

    def put_many(self, items: list[Any]) -> None:
        self.server.rpush("queue", *(pickle.dumps(item, 5) for item in items))

    def get_many(self, most: int) -> Any:
        return [pickle.loads(item) for item in self.server.blmpop(0, 1, "queue", direction="LEFT", count=most)[1]]


def _redis(crew: Crew, directory: str) -> RedisQueue:
    import redis

    path = os.path.join(directory, f"redis-{time.monotonic_ns()}")
    subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--daemonize", "no"],
        cwd=directory,
        stdout=subprocess.DEVNULL,
    )
    queue = RedisQueue(path)

    def answers() -> bool:
        try:
            return bool(queue.server.ping())
        except redis.ConnectionError:
            return False

    crew.until(answers)
    return queue


class RayQueue(Remote):
    """What `ray.util.queue.Queue` does, on an actor that other processes find by its name."""

    @cached_property
    def actor(self) -> Any:
        import ray

        if not ray.is_initialized():
            ray.init(address=self.where[0], namespace="bench", log_to_driver=False)
        return ray.get_actor(self.where[1])

    def put(self, item: Any) -> None:
        import ray

        ray.get(self.actor.put.remote(item, None))

    def get(self) -> Any:
        import ray

        return ray.get(self.actor.get.remote(None))


def _ray(crew: Crew, directory: str) -> RayQueue:  # noqa: ARG001
    import ray
    from ray.util.queue import Queue

    if not ray.is_initialized():
        ray.init(namespace="bench", log_to_driver=False, include_dashboard=False)
    name = f"queue-{time.monotonic_ns()}"
    Queue(actor_options={"name": name, "lifetime": "detached", "num_cpus": 0})
    return RayQueue(ray.get_runtime_context().gcs_address, name)


class DaskQueue(Remote):
    """`distributed.Queue`, by its name."""

    @cached_property
    def queue(self) -> Any:
        from distributed import Client, Queue

        return Queue(self.where[1], client=Client(self.where[0]))

    def put(self, item: Any) -> None:
        self.queue.put(item)

    def get(self) -> Any:
        return self.queue.get()


_clusters: list[Any] = []  # they live as long as this process


def _dask(crew: Crew, directory: str) -> DaskQueue:
    from distributed import LocalCluster

    if not _clusters:
        _clusters.append(
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, local_directory=directory)
        )
    return DaskQueue(_clusters[0].scheduler_address, f"queue-{len(crew.members)}-{time.monotonic_ns()}")


def _torch(crew: Crew, directory: str) -> Any:  # noqa: ARG001
    import torch.multiprocessing

    return torch.multiprocessing.get_context("spawn").SimpleQueue()


def _fiber(crew: Crew, directory: str) -> Any:  # noqa: ARG001
    import fiber

    return fiber.SimpleQueue()


PEERS: Final[dict[str, Peer]] = {
    QUEUE: Peer(standard(QUEUE).make, ()),
    "faster-fifo": Peer(_faster_fifo, ("faster_fifo",)),
    "pyzmq": Peer(_zmq, ("zmq",)),
    "pynng": Peer(_nng, ("pynng",)),
    "redis": Peer(_redis, ("redis",), ("redis-server",)),
    "ray": Peer(_ray, ("ray",)),
    "dask": Peer(_dask, ("distributed",)),
    "torch": Peer(_torch, ("torch",)),
    "fiber": Peer(_fiber, ("fiber",)),
}
