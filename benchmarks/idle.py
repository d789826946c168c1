"""What a queue costs that nobody uses: ``python -m benchmarks.idle``, on Linux.

Wake-ups (voluntary switches of context, of all threads) and processor time in a second, of the node and of processes
that have used a queue and now: do nothing, wait in `get`, or have taken 2 items of a bounded queue that has 500.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

PROGRAM = """
import glob, json, os, sys, time
from multiprocessing import get_context
import fiberq
from fiberq import tree

SETTLE, SECONDS = 3.0, float(sys.argv[1])

def state(pid):
    switches = 0
    for path in glob.glob(f"/proc/{pid}/task/*/status"):
        with open(path) as file:
            switches += sum(int(line.split()[1]) for line in file if line.startswith("voluntary"))
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return switches, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

def write(full, empty, bounded, told, go):
    full.put(1)
    full.flush()
    told.send(0)
    go.recv()

def wait(full, empty, bounded, told, go):
    told.send(0)
    empty.get()

def take_one(full, empty, bounded, told, go):
    bounded.get()
    bounded.get()
    told.send(0)
    go.recv()

if __name__ == "__main__":
    context = get_context("spawn")
    queues = fiberq.Queue(), fiberq.Queue(), fiberq.Queue(1000)
    for number in range(500):
        queues[2].put(number)
    processes = {}
    ends = []
    for name, target in ("put once", write), ("waits in get", wait), ("took 2 of 500", take_one):
        here, told = context.Pipe(duplex=False)
        go, there = context.Pipe(duplex=False)
        processes[name] = context.Process(target=target, args=(*queues, told, go))
        processes[name].start()
        ends.append(there)
        here.recv()
    pids = {"made the queues": os.getpid(), **{name: each.pid for name, each in processes.items()}}
    pids["node"] = tree._started[tree.endpoint().address].process.pid
    time.sleep(SETTLE)
    before = {name: state(pid) for name, pid in pids.items()}
    time.sleep(SECONDS)
    after = {name: state(pid) for name, pid in pids.items()}
    print(json.dumps({name: [(now - then) / SECONDS for now, then in zip(after[name], before[name])] for name in pids}))
    queues[1].put(None)
    for end in ends:
        end.send(0)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    title = (
        f"Python {platform.python_version()}, {options.seconds:g} s: wake-ups a second / ms of processor time a second"
    )
    table = Table(title=title, title_justify="left")
    with TemporaryDirectory() as directory:
        path = os.path.join(directory, "program.py")
        with open(path, "w") as file:
            file.write(PROGRAM)
        for transport in options.transports:
            done = subprocess.run(
                [sys.executable, path, str(options.seconds)],
                env={**os.environ, "FIBERQ_TRANSPORT": transport},
                stdout=subprocess.PIPE,
                check=True,
            )
            found = json.loads(done.stdout)
            if not table.columns:
                for heading in ("", *found):
                    table.add_column(heading, justify="right" if heading else "left")
            table.add_row(transport, *(f"{wakes:.1f} / {1000 * busy:.1f}" for wakes, busy in found.values()))
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
