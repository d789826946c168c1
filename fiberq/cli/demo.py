"""``fiberq demo``: a real job for worker processes, whose result is then checked, and an example to read.

Each file of the standard library is hashed and its lines are counted. The paths go to the workers through one queue,
and what they found comes back through another. A path whose worker dies goes to another worker by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import signal
import sys
import sysconfig
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from fiberq import SimpleQueue, config
from fiberq.errors import FiberqError
from fiberq.registry import load

__all__ = ["add_arguments", "run"]

T = TypeVar("T")

LEFT_OUT = {"__pycache__", "site-packages", "dist-packages"}


class Found(NamedTuple):
    """What there is to say about one file."""

    size: int
    lines: int
    digest: str


class Queues(NamedTuple):
    ready: SimpleQueue[int]
    tasks: SimpleQueue[str | None]
    results: SimpleQueue[tuple[int, str, Found]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--transport", metavar="NAME", help="default: config.transport")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--push", action="store_true", default=None, help="deal the files out in turn")
    kind.add_argument("--pull", dest="push", action="store_false", help="give a file to a worker that is ready for it")
    parser.add_argument(
        "--workers", metavar="N", type=_positive, default=os.cpu_count() or 1, help="default: one a CPU"
    )
    parser.add_argument("--directory", metavar="PATH", type=_directory, help="default: Python's standard library")
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods(), default="spawn")


def run(arguments: argparse.Namespace) -> int:
    """Run the job; return 0 if the workers found what one process finds alone, 1 if not, 130 after Ctrl-C."""
    if arguments.transport is not None:
        config.transport = arguments.transport
    if arguments.push is not None:
        config.use_push_queue = arguments.push
    load(config.transport)  # what is wrong with it is said here, and not by the node
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            return _run(arguments, progress)
    except KeyboardInterrupt:
        print("fiberq: interrupted", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, progress: Progress) -> int:
    paths = list_files(arguments.directory or sysconfig.get_path("stdlib"))
    queues = Queues(SimpleQueue(), SimpleQueue(), SimpleQueue())
    workers = start_workers(arguments.workers, arguments.start_method, queues)
    try:
        # A push queue deals to those who are there: without this, the first to come would get everything.
        present = 0
        while present + len(dead(workers)) < len(workers):
            present += receive(queues.ready, workers) is not None
        began = time.monotonic()
        for path in paths:
            queues.tasks.put(path)
        found, shares = collect(queues, workers, len(paths), progress)
        seconds = time.monotonic() - began
        for _ in workers:
            queues.tasks.put(None)
        for worker in workers:
            worker.join(5)
        losses = sum(worker.exitcode not in (0, None) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    expected = {path: measure(path) for path in progress.track(paths, description="checking")}
    total, wanted = summary(found), summary(expected)

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("transport", config.transport)
    table.add_row("queue", type(queues.tasks).__name__)
    table.add_row("files", f"{len(found):,}")
    table.add_row("bytes", f"{total.size:,}")
    table.add_row("lines", f"{total.lines:,}")
    table.add_row("digest", total.digest)
    table.add_row("seconds", f"{seconds:.2f}")
    table.add_row("files per worker", ", ".join(f"{shares[number]:,}" for number in range(len(workers))))
    table.add_row("workers that died", str(losses))
    table.add_row("one process alone", "finds the same" if total == wanted else f"finds something else: {wanted}")
    Console(highlight=False).print(table)
    return 0 if total == wanted else 1


def list_files(directory: str) -> list[str]:
    paths = []
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        paths += [os.path.join(folder, name) for name in names]
    return sorted(path for path in paths if os.path.isfile(path) and not os.path.islink(path))


def measure(path: str) -> Found:
    """The work for one file."""
    size = lines = 0
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                size += len(block)
                lines += block.count(b"\n")
                digest.update(block)
    except OSError as error:
        return Found(0, 0, f"unreadable: {error.strerror}")
    return Found(size, lines, digest.hexdigest())


def summary(found: dict[str, Found]) -> Found:
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(os.fsencode(path) + b"\0" + found[path].digest.encode() + b"\n")
    one = found.values()
    return Found(sum(each.size for each in one), sum(each.lines for each in one), digest.hexdigest())


def start_workers(count: int, start_method: str, queues: Queues) -> list[BaseProcess]:
    context: Any = multiprocessing.get_context(start_method)
    workers: list[BaseProcess] = [
        context.Process(target=work, args=(number, queues), daemon=True) for number in range(count)
    ]
    # Ctrl-C in a terminal reaches every process. The workers inherit that they ignore it, and are stopped by this one.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for worker in workers:
            worker.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    return workers


def work(number: int, queues: Queues) -> None:
    """A worker process: measure files until `None` comes."""
    try:
        try:
            queues.tasks.get(block=False)  # nothing is there yet, but this process is one of the readers from now on
        except Empty:
            queues.ready.put(number)
        while (path := queues.tasks.get()) is not None:
            queues.results.put((number, path, measure(path)))
    except FiberqError:
        sys.exit(1)  # the node is gone, and the main process says so


def collect(
    queues: Queues, workers: list[BaseProcess], count: int, progress: Progress
) -> tuple[dict[str, Found], Counter[int]]:
    """Return what was found in `count` files, and how many of them each worker did."""
    found: dict[str, Found] = {}
    shares: Counter[int] = Counter()
    task = progress.add_task("hashing", total=count)
    while len(found) < count:
        result = receive(queues.results, workers)
        if result is not None and result[1] not in found:  # a worker that died may have reported its last file
            number, path, found[path] = result
            shares[number] += 1
            progress.advance(task)
    return found, shares


def receive(queue: SimpleQueue[T], workers: list[BaseProcess]) -> T | None:
    """Return the next item; `None` if none comes for a moment. Raise if none will, because too many workers died."""
    gone = dead(workers)
    try:
        return queue.get(timeout=0.2)
    except Empty:
        # A file that this many workers died of would be a dead letter, so its result would never come.
        if len(gone) < min(len(workers), config.max_deliveries):
            return None
        statuses = ", ".join(str(worker.exitcode) for worker in gone)
        raise FiberqError(f"{len(gone)} of {len(workers)} workers died (exit status {statuses})") from None


def dead(workers: list[BaseProcess]) -> list[BaseProcess]:
    return [worker for worker in workers if worker.exitcode is not None]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return text
