"""Pipes and connections: their ends, handles and errors, between real processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import NOISE, PATIENCE, Crew, Program, every_method, fork, interrupted, node_of, processes, reap, until
from workers import (
    answer_once,
    answer_through_handle,
    do_nothing,
    forward,
    make_pipe,
    receive_until_end,
    send_all,
    send_and_stay,
    stay,
)

from fiberq import Pipe, SimpleQueue, ZConnection, config, wait
from fiberq.errors import (
    AddressError,
    ClosedError,
    ConnectError,
    DirectionError,
    ItemError,
    NodeError,
)

pytestmark = pytest.mark.usefixtures("transport")


# -- the face --


def test_a_pipe_carries_objects_both_ways() -> None:
    a, b = Pipe()
    for obj in (None, b"", b"bytes", {"a": (1, [2])}, "x" * 100_000, bytes(2_000_000)):
        a.send(obj)
        assert b.recv() == obj
        b.send(obj)
        assert a.recv() == obj
    assert (a.readable, a.writable, b.readable, b.writable) == (True,) * 4


def test_a_one_way_pipe_is_read_only_and_write_only() -> None:
    r, w = Pipe(duplex=False)
    assert (r.readable, r.writable, w.readable, w.writable) == (True, False, False, True)
    assert (r.handle[0], w.handle[0]) == ("r", "w")
    w.send("this way")
    assert r.recv() == "this way"
    with pytest.raises(DirectionError):
        r.send(1)
    with pytest.raises(DirectionError):
        w.recv()
    with pytest.raises(DirectionError):
        w.poll()
    with pytest.raises(OSError, match="read-only"):  # as multiprocessing raises
        r.send(1)


def test_what_cannot_be_pickled_raises_in_send_and_the_pipe_goes_on() -> None:
    a, b = Pipe()
    with pytest.raises(ItemError):
        a.send(n for n in "abc")
    a.send("after")
    assert b.recv() == "after"


def test_a_closed_connection_cannot_be_used() -> None:
    a, b = Pipe()
    with a:
        pass
    a.close()
    assert a.closed
    assert not b.closed
    for use in (a.recv, a.poll, a.flush, lambda: a.send(1), lambda: pickle.dumps(a)):
        with pytest.raises(ClosedError):
            use()


def test_poll_tells_whether_recv_would_return(crew: Crew) -> None:
    a, b = Pipe()
    assert not a.poll()
    began = time.monotonic()
    assert not a.poll(0.2)
    assert 0.2 <= time.monotonic() - began < 0.2 + NOISE
    b.send(1)
    b.flush()
    assert a.poll(PATIENCE)
    assert a.poll()
    assert a.poll(None)
    assert a.recv() == 1
    assert not a.poll(0.01)
    crew.start(send_all, b, ["later"])
    assert a.poll(PATIENCE)
    assert a.recv() == "later"
    crew.finish()
    b.close()
    assert a.poll(PATIENCE)
    with pytest.raises(EOFError):
        a.recv()


# -- ends --


def test_eof_comes_after_the_other_end_was_closed_and_all_was_read() -> None:
    a, b = Pipe()
    for number in range(1000):
        b.send(number)
    b.close()
    assert [a.recv() for _ in range(1000)] == list(range(1000))
    for _ in range(2):
        with pytest.raises(EOFError):
            a.recv()


def test_eof_comes_after_the_last_holder_closed() -> None:
    a, b = Pipe()
    b.send(1)
    again = pickle.loads(pickle.dumps(b))
    again.send(2)
    again.flush()
    b.close()
    assert {a.recv(), a.recv()} == {1, 2}
    assert not a.poll(0.1)
    again.close()
    with pytest.raises(EOFError):
        a.recv()


def test_eof_comes_when_the_last_handle_is_garbage() -> None:
    a, b = Pipe()
    b.send(1)
    del b
    assert a.recv() == 1
    with pytest.raises(EOFError):
        a.recv()


@every_method
def test_eof_comes_after_the_last_holder_died_and_all_was_read(crew: Crew) -> None:
    a, b = Pipe()
    told: SimpleQueue[str] = SimpleQueue()
    child = crew.start(send_and_stay, b, told, "last words")
    assert told.get(timeout=PATIENCE) == "sent"
    b.close()
    crew.kill(child)
    assert a.recv() == "last words"
    with pytest.raises(EOFError):
        a.recv()


@every_method
def test_a_waiting_receiver_gets_eof_when_the_other_end_closes(crew: Crew) -> None:
    r, w = Pipe(duplex=False)
    told: SimpleQueue[Any] = SimpleQueue()
    crew.start(receive_until_end, r, told, w)
    send_all(w, range(100))
    w.close()
    assert told.get(timeout=PATIENCE) == list(range(100))
    crew.finish()


def test_sending_breaks_when_nobody_is_left_to_receive() -> None:
    r, w = Pipe(duplex=False)
    w.send(1)
    r.close()
    with pytest.raises(BrokenPipeError):
        until(lambda: (w.send(2), w.flush(), False)[-1])
    with pytest.raises(BrokenPipeError):
        w.send(3)


@every_method
def test_sending_breaks_when_the_receiver_died(crew: Crew) -> None:
    a, b = Pipe()
    told: SimpleQueue[str] = SimpleQueue()
    child = crew.start(stay, b, told)
    assert told.get(timeout=PATIENCE) == "here"
    b.close()
    a.send("while it lives")
    a.flush()
    crew.kill(child)
    with pytest.raises(BrokenPipeError):
        until(lambda: (a.send(2), a.flush(), False)[-1])


@every_method
def test_the_parent_may_close_its_copy_at_once(crew: Crew) -> None:
    for _ in range(3):
        a, b = Pipe()
        child = crew.start(answer_once, b)
        b.close()
        a.send("question")
        assert a.recv() == ("answer", "question")
        crew.finish(child)
        with pytest.raises(EOFError):
            a.recv()


def test_a_fork_does_not_keep_the_parents_end_open_by_its_death(crew: Crew) -> None:
    # Both ends are inherited by a child that uses neither: it counts as a holder until it ends, not longer.
    r, w = Pipe(duplex=False)
    told: SimpleQueue[str] = SimpleQueue()
    other, _end = Pipe()
    child = crew.start(stay, other, told)
    assert told.get(timeout=PATIENCE) == "here"
    w.send(1)
    w.close()
    assert r.recv() == 1
    crew.kill(child)
    with pytest.raises(EOFError):
        r.recv()


def test_an_end_that_came_long_before_the_first_read_is_seen() -> None:
    r, w = Pipe(duplex=False)
    w.close()
    for _ in range(3):  # each asks the node, which has told of the end by then
        assert not SimpleQueue().qsize()
    assert r.poll(PATIENCE)
    with pytest.raises(EOFError):
        r.recv()


@every_method
def test_a_child_that_does_nothing_with_an_end_does_not_keep_it_open_after_it_ended(crew: Crew) -> None:
    r, w = Pipe(duplex=False)
    crew.finish(crew.start(do_nothing, w))
    w.send(1)
    w.close()
    assert r.recv() == 1
    assert r.poll(PATIENCE)
    with pytest.raises(EOFError):
        r.recv()


def test_a_process_made_by_os_fork_that_does_nothing_keeps_no_end_open_after_it_ended() -> None:
    r, w = Pipe(duplex=False)
    reap(fork(lambda: None))
    w.close()
    assert r.poll(PATIENCE)
    with pytest.raises(EOFError):
        r.recv()


def test_a_forked_child_can_close_the_end_that_is_its_parents() -> None:
    r, w = Pipe(duplex=False)
    told: SimpleQueue[Any] = SimpleQueue()

    def child() -> None:
        w.close()
        told.put(r.recv(), sync=True)
        assert r.poll(PATIENCE), "it holds the writing end itself"
        try:
            r.recv()
        except EOFError:
            told.put("the end", sync=True)

    pid = fork(child)
    w.send(1)
    assert told.get(timeout=PATIENCE) == 1
    w.close()
    assert told.get(timeout=2 * PATIENCE) == "the end"
    reap(pid)


@every_method
def test_a_child_hands_an_end_of_its_pipe_to_its_parent(crew: Crew) -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    child = crew.start(make_pipe, told)
    theirs = told.get(timeout=PATIENCE)
    assert theirs.recv() == "from a child"
    theirs.send("from its parent")
    crew.finish(child)


# -- several processes on one end --


@every_method
def test_several_processes_read_from_and_write_to_the_same_end(crew: Crew) -> None:
    a, b = Pipe()
    for _ in range(3):
        crew.start(forward, b, b, 100)
    b.close()
    send_all(a, range(300))
    got = [a.recv() for _ in range(300)]
    assert Counter(number for _, number in got) == Counter(range(300))
    assert set(Counter(pid for pid, _ in got).values()) == {100}
    crew.finish()
    with pytest.raises(EOFError):
        a.recv()


@every_method
def test_a_handle_tuple_makes_a_connection_in_another_process(transport: str, crew: Crew) -> None:
    a, b = Pipe()
    assert b.handle[0] == "rw"
    child = crew.start(answer_through_handle, transport, b.handle)
    a.send("question")
    assert a.recv() == ("answer", "question")
    crew.finish(child)


@pytest.mark.parametrize("duplex", [True, False])
def test_a_handle_tuple_makes_a_connection_to_the_same_end(duplex: bool) -> None:
    a, b = Pipe(duplex)
    again_a, again_b = ZConnection(a.handle), ZConnection(b.handle)
    assert (again_a.handle, again_b.handle) == (a.handle, b.handle)
    again_b.send(1)
    assert a.recv() == 1
    b.send(2)
    assert again_a.recv() == 2
    if duplex:
        again_a.send(3)
        assert b.recv() == 3


def test_readable_and_writable_narrow_a_connection() -> None:
    a, b = Pipe()
    reads, writes = ZConnection(b.handle, writable=False), ZConnection(b.handle, readable=False)
    a.send(1)
    assert reads.recv() == 1
    writes.send(2)
    assert a.recv() == 2
    with pytest.raises(DirectionError):
        reads.send(3)
    with pytest.raises(DirectionError):
        writes.recv()
    with pytest.raises(AddressError):
        ZConnection(b.handle, readable=False, writable=False)


@every_method
def test_a_bare_address_is_the_nodes_default_pipe(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    node = q.reader.handle[1].partition("?")[0]
    reads = ZConnection(("r", node))
    writes = ZConnection(("w", node))
    writes.send("to whoever reads")
    assert reads.recv() == "to whoever reads"
    child = crew.start(send_all, writes, ["from a child"])
    assert reads.recv() == "from a child"
    crew.finish(child)


def test_the_ends_of_a_queue_are_named_by_their_handles() -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    writer, reader = ZConnection(q.writer.handle), ZConnection(q.reader.handle)
    writer.send(1)
    assert q.get(timeout=PATIENCE) == 1
    q.put(2)
    assert reader.recv() == 2


# -- errors --


@pytest.mark.parametrize(
    "handle",
    [
        ("x", "tcp://127.0.0.1:9000"),
        ("r", "nonsense"),
        ("r", ""),
        ("r", "tcp://"),
        ("r", "tcp://127.0.0.1:99999"),
        ("r", "ipc://relative"),
        ("r", "tcp://127.0.0.1:9000/jobs"),
        ("r", "tcp://127.0.0.1:9000/zz/q"),
        ("r", None),
        (None, "tcp://127.0.0.1:9000"),
        ("r",),
        "tcp://127.0.0.1:9000",
        None,
        42,
    ],
)
def test_a_garbage_handle_raises_an_address_error(handle: Any) -> None:
    with pytest.raises(AddressError):
        ZConnection(handle)


def test_an_address_where_nobody_listens_raises_within_the_timeout(short_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    config.connect_timeout = 1.0
    try:
        for address in (f"tcp://127.0.0.1:{port}", f"ipc://{short_dir}/nobody"):
            for use in (ZConnection.recv, lambda c: c.send(1), ZConnection.poll):
                connection = ZConnection(("rw", address))
                began = time.monotonic()
                with pytest.raises(ConnectError, match=r"127\.0\.0\.1|nobody"):
                    use(connection)
                assert time.monotonic() - began < 1.0 + NOISE
    finally:
        del config.connect_timeout


def test_a_listener_that_is_mute_raises_within_the_timeout(short_dir: Path) -> None:
    config.connect_timeout = 1.0
    try:
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(f"{short_dir}/mute")
            mute.listen()
            connection = ZConnection(("rw", f"ipc://{short_dir}/mute"))
            began = time.monotonic()
            with pytest.raises((ConnectError, NodeError)):
                connection.recv()
            assert time.monotonic() - began < 2 * 1.0 + NOISE
    finally:
        del config.connect_timeout


def test_a_handle_of_a_dead_node_raises(program: type[Program]) -> None:
    running = program("""
import json, pickle, sys
from fiberq import Pipe, SimpleQueue
q, (a, b) = SimpleQueue(), Pipe()
print(json.dumps([pickle.dumps(q).hex(), pickle.dumps(b).hex(), b.handle]))
sys.stdin.readline()
""")
    q, b, handle = json.loads(running.read())
    node = node_of(running.pid)
    os.kill(running.pid, signal.SIGKILL)
    running.wait(-9)
    until(lambda: node not in processes())
    for use in (
        lambda: pickle.loads(bytes.fromhex(q)).get(),
        lambda: pickle.loads(bytes.fromhex(q)).put(1),
        lambda: pickle.loads(bytes.fromhex(b)).recv(),
        lambda: ZConnection(tuple(handle)).recv(),
        lambda: ZConnection(tuple(handle)).poll(),
    ):
        began = time.monotonic()
        with pytest.raises((ConnectError, NodeError)):
            use()
        assert time.monotonic() - began < config.connect_timeout + NOISE


def test_a_handle_on_a_channel_that_is_not_there_raises() -> None:
    a, _b = Pipe()
    node = a.handle[1].partition("?")[0]
    for end, sock_type in (("r", "r"), ("w", "w"), ("a", "rw"), ("b", "rw")):
        connection = ZConnection((sock_type, f"{node}?00c0ffee00c0ffee/{end}"))
        with pytest.raises(EOFError):
            connection.poll() if sock_type != "w" else connection.send(1)


def see(end: Any, told: Any, how: str) -> None:
    told.put("ready", sync=True)
    if how == "poll":
        assert end.poll(PATIENCE)
    else:
        assert wait([end], PATIENCE) == [end]
    told.put("seen", sync=True)
    signal.pause()


@every_method
@pytest.mark.parametrize("how", ["poll", "wait"])
def test_a_message_that_was_only_seen_by_a_process_that_is_killed_goes_to_another(how: str, crew: Crew) -> None:
    receiver, sender = Pipe(False)
    with SimpleQueue[str]() as told:
        process = crew.start(see, receiver, told, how)
        assert told.get(timeout=PATIENCE) == "ready"
        sender.send("message")
        assert told.get(timeout=PATIENCE) == "seen"
        crew.kill(process)
        assert receiver.poll(PATIENCE)
        assert receiver.recv() == "message"
    receiver.close()
    sender.close()


def receive_what_was_seen(how: str) -> None:
    """Where several read, `recv` returns what `poll` or `wait` has seen when the node knows that, and not while that is
    stopped."""
    receiver, sender = Pipe(False)
    crew = Crew("fork")
    with SimpleQueue[str]() as told:
        crew.start(stay, receiver, told)
        assert told.get(timeout=PATIENCE) == "here"
    assert not (wait([receiver], 0.0) if how == "wait" else receiver.poll())
    for number in range(3):
        sender.send(number)
    assert wait([receiver], PATIENCE) if how == "wait" else receiver.poll(PATIENCE)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(receiver.recv()))
    node = node_of(os.getpid())
    os.kill(node, signal.SIGSTOP)
    try:
        with suppress(KeyboardInterrupt):
            interrupted(receiver.recv)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    finally:
        os.kill(node, signal.SIGCONT)
    thread.join(PATIENCE)
    assert [*got, receiver.recv(), receiver.recv()] == [0, 1, 2]
    crew.end()
    print("received", flush=True)


@pytest.mark.parametrize("how", ["poll", "wait"])
def test_a_message_that_was_seen_is_received_when_the_node_knows(
    how: str, transport: str, program: type[Program]
) -> None:
    """Else it would go to another process as well, should this one die then. Ctrl-C meanwhile loses nothing."""
    running = program(
        f"""
from fiberq import config
from test_pipes import receive_what_was_seen
config.transport = {transport!r}
receive_what_was_seen({how!r})
"""
    )
    assert running.read() == "received"
    running.wait()
