"""The node lives with the process tree that it serves, whatever starts, ends or interrupts that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import NOISE, Crew, Program, every_method, node_of, nodes_of, processes, until
from workers import node_address

from fiberq import SimpleQueue

pytestmark = pytest.mark.usefixtures("transport")

SECOND = 1.0
METHODS = ["spawn", "forkserver", "fork"]


def test_first_queue_starts_the_node_without_a_main_guard(program: type[Program]) -> None:
    running = program("""
import multiprocessing
from fiberq import SimpleQueue
multiprocessing.set_start_method("fork")
q = SimpleQueue()
child = multiprocessing.Process(target=q.put, args=("from a child",))
child.start()
print(q.get())
child.join()
print(child.exitcode)
""")
    assert running.read() == "from a child"
    assert running.read() == "0"
    running.wait()


def test_a_queue_needs_no_main_guard_where_the_main_module_runs_again(method: str, program: type[Program]) -> None:
    running = program(f"""
import multiprocessing
from fiberq import SimpleQueue
q = SimpleQueue()
node = q.reader.handle[1].partition("?")[0]
def work(theirs):
    theirs.put((node, __name__))
if __name__ == "__main__":
    child = multiprocessing.get_context({method!r}).Process(target=work, args=(q,))
    child.start()
    theirs, name = q.get()
    child.join()
    print(theirs == node, name, child.exitcode)
""")
    name = "__main__" if method == "fork" else "__mp_main__"
    assert running.read() == f"True {name} 0"
    running.wait()


@every_method
def test_descendants_use_the_same_node(crew: Crew) -> None:
    answers: SimpleQueue[str] = SimpleQueue()
    mine = answers.reader.handle[1].partition("?")[0]
    crew.start(node_address, answers, METHODS)
    assert {answers.get(timeout=20) for _ in range(4)} == {mine}
    crew.finish()


def test_a_program_that_a_descendant_runs_uses_the_same_node() -> None:
    q: SimpleQueue[object] = SimpleQueue()
    code = "from fiberq import SimpleQueue; q = SimpleQueue(); print(q.reader.handle[1].partition('?')[0])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert ran.stdout.strip() == q.reader.handle[1].partition("?")[0]


@pytest.mark.parametrize(
    "end", ["pass", "sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit(0)"]
)
def test_the_node_ends_with_its_tree_and_leaves_no_file(program: type[Program], short_dir: Path, end: str) -> None:
    running = program(f"""
import os, sys
from fiberq import SimpleQueue
q = SimpleQueue()
q.put(1)
print(q.get())
sys.stdin.readline()
{end}
""")
    assert running.read() == "1"
    node = node_of(running.pid)
    assert any(path.name.startswith("fiberq-") for path in short_dir.iterdir())
    running.write("end")
    running.wait(-9 if "kill" in end else 0)
    until(lambda: node not in processes(), SECOND + NOISE)
    until(lambda: [path.name for path in short_dir.iterdir()] == ["program0.py"], NOISE)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("raise ImportError('it needs a thing')", "TransportLoadError", "it needs a thing"),
        ("class Sick: pass", "TransportLoadError", "Transport"),
        (
            "from fiberq_zmq import ZmqTransport\\nclass Sick(ZmqTransport):\\n def server(self, _=None): return 1 / 0",
            "NodeError",
            "ZeroDivisionError",
        ),
        (
            "from fiberq_zmq import ZmqTransport\\nclass Sick(ZmqTransport):\\n def __init__(self): 1 / 0",
            "NodeError",
            "the transport 'sick' (sick:Sick, from sick 1) cannot be made: ZeroDivisionError",
        ),
        (
            "from fiberq_zmq import ZmqTransport\\nclass Sick(ZmqTransport):\\n def bind_any(self, _): return []",
            "NodeError",
            "Sick has no ipc:// addresses",
        ),
        (
            "from fiberq.abc import Capabilities\\nCapabilities(('ipc',), teleports=True)",
            "TransportLoadError",
            "the capabilities are schemes, authenticates, forks",
        ),
    ],
)
def test_the_first_queue_says_what_is_wrong_with_its_transport(
    program: type[Program], code: str, error: str, text: str
) -> None:
    running = program(f"""
import os, sys
from pathlib import Path
site = Path(os.environ["TMPDIR"]) / "site"
(site / "sick-1.dist-info").mkdir(parents=True)
(site / "sick-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\\nName: sick\\nVersion: 1\\n")
(site / "sick-1.dist-info" / "entry_points.txt").write_text("[fiberq.transports]\\nsick = sick:Sick\\n")
(site / "sick.py").write_text("{code}")
sys.path.append(str(site))
from fiberq import SimpleQueue, config
config.transport = "sick"
try:
    SimpleQueue()
except Exception as error:
    print(type(error).__name__, {text!r} in str(error), [one for one in os.listdir(site.parent) if "fiberq" in one])
""")
    assert running.read() == f"{error} True []"
    running.wait()


def test_a_transport_that_prints_something_works(program: type[Program]) -> None:
    running = program("""
import os, sys
from pathlib import Path
site = Path(os.environ["TMPDIR"]) / "site"
(site / "noisy-1.dist-info").mkdir(parents=True)
(site / "noisy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\\nName: noisy\\nVersion: 1\\n")
(site / "noisy-1.dist-info" / "entry_points.txt").write_text("[fiberq.transports]\\nnoisy = noisy:ZmqTransport\\n")
(site / "noisy.py").write_text("from fiberq_zmq import ZmqTransport\\nprint('here I am')")
sys.path.append(str(site))
from fiberq import SimpleQueue, config
config.transport = "noisy"
q = SimpleQueue()
q.put("works")
print(q.get())
""")
    assert [running.read(), running.read()] == ["here I am", "works"]
    running.wait()


@every_method
def test_what_a_child_puts_last_arrives_where_the_main_module_makes_queues(method: str, program: type[Program]) -> None:
    running = program(f"""
import multiprocessing
from fiberq import SimpleQueue
q = SimpleQueue()
def work(theirs):
    for number in range(3000):
        theirs.put(number)
if __name__ == "__main__":
    multiprocessing.get_context({method!r}).Process(target=work, args=(q,)).start()
    print([q.get(timeout=20) for _ in range(3000)] == list(range(3000)))
""")
    assert running.read(30) == "True"
    running.wait()


def test_the_node_does_not_outlive_its_tree_for_a_child_that_goes_on(program: type[Program]) -> None:
    running = program("""
import os, time
from fiberq import SimpleQueue
pids, q = SimpleQueue(), SimpleQueue()
if not os.fork():
    try:
        pids.put(os.getpid(), sync=True)
        q.get(timeout=20)
    except OSError as error:
        print(type(error).__name__)
    os._exit(0)
print(pids.get())
os.kill(os.getpid(), 9)
""")
    running.read()
    running.wait(-9)
    assert running.read(SECOND + 2 * NOISE) == "NodeError"


def test_a_forked_child_is_told_that_the_node_ended_before_its_first_use(program: type[Program]) -> None:
    running = program("""
import os, time
from fiberq import SimpleQueue, links
q = SimpleQueue()
q.put(1, sync=True)
address = next(iter(links._links.values())).address.location
assert os.path.exists(address)
parent = os.getpid()
if not os.fork():
    deadline = time.monotonic() + 20
    while os.getppid() == parent or os.path.exists(address):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(2):
        try:
            q.get(timeout=20)
        except OSError as error:
            print(type(error).__name__, "is gone, with its queues and the items in them" in str(error))
    os._exit(0)
os.kill(parent, 9)
""")
    running.wait(-9)
    assert [running.read(SECOND + 2 * NOISE) for _ in range(2)] == ["NodeError True"] * 2


def test_the_node_survives_control_c(program: type[Program]) -> None:
    running = program("""
import sys, time
from fiberq import SimpleQueue
q = SimpleQueue()
q.put("before")
q.flush()
try:
    print("ready")
    time.sleep(20)
except KeyboardInterrupt:
    print("interrupted")
q.put("after")
print(q.get(), q.get())
sys.stdin.readline()
""")
    assert running.read() == "ready"
    node = node_of(running.pid)
    os.killpg(running.pid, signal.SIGINT)
    assert running.read() == "interrupted"
    assert running.read() == "before after"
    assert node_of(running.pid) == node
    running.write("end")
    running.wait()


def test_the_node_hardly_delays_its_creators_exit(program: type[Program]) -> None:
    running = program("""
import time
from fiberq import SimpleQueue
q = SimpleQueue()
for number in range(1000):
    q.put(number)
print(time.monotonic())
""")
    before = float(running.read())
    running.wait()
    assert time.monotonic() - before < SECOND


WAITING = {
    "get": "q.get()",
    "get with a timeout": "q.get(timeout=30)",
    "recv": "a.recv()",
    "poll": "a.poll(30)",
    "qsize": """
while True:
    q.qsize()
""",
    "put": """
while True:
    q.put(b"x" * 100)
""",
    "put of large items": """
while True:
    q.put(bytes(1_000_000))
""",
    "put with sync": """
while True:
    q.put(1, sync=True)
""",
    "send": """
while True:
    a.send(1)
""",
}


@pytest.mark.parametrize("call", WAITING)
def test_whoever_waits_for_a_killed_node_gets_an_error(program: type[Program], call: str) -> None:
    running = program(f"""
import sys, time
from fiberq import Pipe, SimpleQueue
from fiberq.errors import NodeError
q = SimpleQueue()
a, b = Pipe()
print("ready")
def wait():
{_indented(WAITING[call])}
try:
    wait()
except NodeError:
    print(time.monotonic())
try:
    wait()
except NodeError:
    print("again")
q = SimpleQueue()
q.put("a new node")
print(q.get())
sys.stdin.readline()
""")
    assert running.read() == "ready"
    node = node_of(running.pid)
    os.kill(node, signal.SIGKILL)
    killed = time.monotonic()
    assert float(running.read(5)) - killed < SECOND + NOISE
    assert running.read(5) == "again"
    assert running.read(10) == "a new node"
    (new,) = nodes_of(running.pid)
    assert new != node
    running.write("end")
    running.wait()


def test_a_flush_to_a_killed_node_raises(program: type[Program]) -> None:
    running = program("""
import sys, time
from fiberq import SimpleQueue
from fiberq.errors import NodeError
q = SimpleQueue()
q.put(1, sync=True)
print("ready")
sys.stdin.readline()
q.put(2)
print("flushing")
try:
    q.flush()
except NodeError as error:
    print(time.monotonic())
    assert "is gone, with its queues and the items in them" in str(error), error
    assert "not all that this process put had been accepted" in str(error), error
try:
    q.put(3)
except NodeError:
    print("again")
""")
    assert running.read() == "ready"
    node = node_of(running.pid)
    os.kill(node, signal.SIGSTOP)
    running.write("go on")
    assert running.read() == "flushing"
    os.kill(node, signal.SIGKILL)
    killed = time.monotonic()
    assert float(running.read(5)) - killed < SECOND + NOISE
    assert running.read(5) == "again"
    running.wait()


def test_all_threads_that_wait_for_a_killed_node_get_an_error(program: type[Program]) -> None:
    running = program("""
import threading, time
from fiberq import SimpleQueue, Pipe
from fiberq.errors import NodeError
q, r = SimpleQueue(), SimpleQueue()
a, b = Pipe()
def wait(call):
    try:
        call()
    except NodeError:
        print(f"{time.monotonic()}\\n", end="")
threads = [threading.Thread(target=wait, args=(call,)) for call in (q.get, q.get, r.get, a.recv, lambda: b.poll(30))]
for thread in threads:
    thread.start()
print("ready")
wait(q.get)
for thread in threads:
    thread.join()
""")
    assert running.read() == "ready"
    os.kill(node_of(running.pid), signal.SIGKILL)
    killed = time.monotonic()
    for _ in range(6):
        assert float(running.read(5)) - killed < SECOND + NOISE
    running.wait()


def test_a_child_that_waits_for_a_killed_node_gets_an_error(method: str, program: type[Program]) -> None:
    running = program(f"""
import multiprocessing
from fiberq import SimpleQueue
from workers import tell_error_of_get
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    q, ready, (ours, theirs) = SimpleQueue(), context.Event(), context.Pipe(False)
    child = context.Process(target=tell_error_of_get, args=(q, ready, theirs))
    child.start()
    assert ready.wait(20)
    print("ready")
    print(ours.recv())
    child.join(20)
    print(child.exitcode)
""")
    assert running.read() == "ready"
    os.kill(node_of(running.pid), signal.SIGKILL)
    killed = time.monotonic()
    assert float(running.read(5)) - killed < SECOND + NOISE
    assert running.read() == "0"
    running.wait()


def test_a_tree_whose_ancestors_node_is_gone_starts_its_own(program: type[Program], short_dir: Path) -> None:
    orphan = short_dir / "orphan"
    orphan.write_text("""
import os, time
deadline = time.monotonic() + 20
while not os.path.exists("go"):
    assert time.monotonic() < deadline
    time.sleep(0.01)
from fiberq import SimpleQueue
began = time.monotonic()
q = SimpleQueue()
q.put("my own")
print(q.get(), time.monotonic() - began < 6, flush=True)
""")
    running = program("""
import subprocess, sys, time
from fiberq import SimpleQueue
q = SimpleQueue()
child = subprocess.Popen([sys.executable, "orphan"])
print("ready")
time.sleep(20)
""")
    assert running.read() == "ready"
    node = node_of(running.pid)
    os.kill(running.pid, signal.SIGKILL)
    running.wait(-9)
    until(lambda: node not in processes())
    (short_dir / "go").touch()
    assert running.read() == "my own True"


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.strip().splitlines())


STANDING_ALONE = """
import os
from fiberq import config
from fiberq.node import serve
from fiberq.protocol.broker import Broker
from fiberq.registry import make, make_server, resolve
target = resolve(config.transport)
server = make_server(target, make(target))
print(server.bind("ipc://" + os.path.abspath("node")), flush=True)
serve(server, Broker(os.urandom(8).hex()), 0.0)
"""


def test_a_handle_on_a_queue_whose_node_was_started_again_says_so(program: type[Program]) -> None:
    node = program(STANDING_ALONE)
    address = node.read()
    running = program(
        """
import pickle, subprocess, sys
from fiberq import Queue
from fiberq.errors import HandleError, NodeError
if len(sys.argv) > 1:
    try:
        pickle.loads(bytes.fromhex(sys.argv[1])).get()
    except HandleError as error:
        print(error)
    raise SystemExit
q, named = Queue(), Queue(name="jobs")
q.put("in memory", sync=True)
named.put("in memory, too", sync=True)
handle = pickle.dumps(q).hex()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2):
    try:
        q.qsize()
    except NodeError as error:
        print("gone" if "with its queues and the items in them" in str(error) else error, flush=True)
print(named.qsize(), flush=True)  # this thread was told already
subprocess.run([sys.executable, __file__, handle], check=True)
again = Queue(name="jobs")
again.put("new")
print(again.get(), again.qsize(), flush=True)
""",
        FIBERQ_NODE=address,
    )
    assert running.read() == "ready"
    node.end()
    node = program(STANDING_ALONE)
    assert node.read() == address
    running.write("go on")
    assert [running.read(), running.read(), running.read()] == ["gone", "gone", "0"]
    assert running.read() == "the queue or pipe is gone: its last holder closed it or died, or it was deleted"
    assert running.read() == "new 0"
    running.wait()


def test_a_node_that_was_stopped_takes_nobody_for_dead(program: type[Program]) -> None:
    running = program(
        """
import time
from multiprocessing import get_context
from fiberq import SimpleQueue
from workers import echo
tasks, results = SimpleQueue(), SimpleQueue()
context = get_context("fork")
workers = [context.Process(target=echo, args=(tasks, results)) for _ in range(4)]
for worker in workers:
    worker.start()
for number in range(100):
    tasks.put(number)
print("busy")
passed = 0
until = time.monotonic() + 4
while time.monotonic() < until:
    tasks.put(results.get())
    passed += 1
print("the node went on" if passed > 1000 else passed)
for _ in workers:
    tasks.put("stop")
for worker in workers:
    worker.join()
print([worker.exitcode for worker in workers])
""",
        FIBERQ_SESSION_TIMEOUT="1.5",
    )
    assert running.read() == "busy"
    node = node_of(running.pid)
    time.sleep(0.3)
    os.kill(node, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(node, signal.SIGCONT)
    assert running.read() == "the node went on"
    assert running.read() == "[0, 0, 0, 0]"
    running.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_signal_that_goes_to_all_processes_leaves_the_node_to_the_program(
    program: type[Program], number: signal.Signals
) -> None:
    running = program("""
import sys
from fiberq import SimpleQueue
q = SimpleQueue()
q.put("item", sync=True)
print("ready", flush=True)
sys.stdin.readline()
print(q.get(), flush=True)
""")
    assert running.read() == "ready"
    node = node_of(running.pid)
    os.kill(node, number)
    running.write("go on")
    assert running.read() == "item"
    running.wait()
    until(lambda: node not in processes())


def test_what_a_node_left_that_was_killed_with_its_program_is_removed_by_the_next(
    program: type[Program], short_dir: Path
) -> None:
    first = program("from fiberq import SimpleQueue\nSimpleQueue()\nprint('made', flush=True)\ninput()\n")
    assert first.read() == "made"
    (left,) = short_dir.glob("fiberq-*")
    stranger = short_dir / "fiberq-of-mine"
    stranger.mkdir()
    second = program("from fiberq import SimpleQueue\nSimpleQueue()\nprint('made', flush=True)\ninput()\n")
    assert second.read() == "made"
    node = node_of(first.pid)
    os.kill(first.pid, signal.SIGSTOP)
    os.kill(node, signal.SIGKILL)  # its program cannot tidy up
    os.kill(first.pid, signal.SIGKILL)
    assert left.exists()
    third = program("from fiberq import SimpleQueue\nSimpleQueue()\nprint('made', flush=True)\ninput()\n")
    assert third.read() == "made"
    until(lambda: not left.exists())
    assert len(list(short_dir.glob("fiberq-*"))) == 3
    assert stranger.exists()
