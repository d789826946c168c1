"""What a test's child process does: one function a role, run by `processes.Child`, or by multiprocessing's spawn."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from fiberq import registry
from fiberq.abc import ClientSocket, Credentials, Message, Transport
from fiberq.errors import FiberqError

PATIENCE = 20.0

_line = 1
"""The descriptor of the line to the test."""


class Stage:
    """What a role plays with: its transport class, its wire, its arguments, and its line to the test."""

    def __init__(self, args: dict[str, Any]) -> None:
        secret = args.pop("secret")
        self.transport_class = registry.load(args.pop("transport"))
        self.credentials = None if secret is None else Credentials(bytes.fromhex(secret))
        self.scheme: str = args.pop("scheme")
        self.directory: str = args.pop("directory")
        self.args = args

    def tell(self, line: str) -> None:
        """Say a line to the test, whole: forked children share the pipe."""
        os.write(_line, line.encode() + b"\n")

    def hear(self) -> str:
        """Wait for the test's next line; the end of the process when the test is gone."""
        line = sys.stdin.readline()
        if not line:
            sys.exit("the test is gone")
        return line.strip()

    def free_address(self, transport: Transport) -> str:
        return next(each for each in transport.bind_any(self.directory) if each.startswith(self.scheme + "://"))

    def connect(self, transport: Transport, address: str) -> ClientSocket:
        client = transport.client(self.credentials)
        client.connect(address, PATIENCE)
        return client


def check_echo(client: ClientSocket, *parts: bytes) -> None:
    """Send a message to a server that echoes, and see that the same comes back."""
    client.send(parts)
    reply = client.recv(PATIENCE)
    if reply is None or [bytes(each) for each in reply] != list(parts):
        raise AssertionError(f"sent {parts!r}, and got {reply!r} back")


def talk(stage: Stage) -> None:
    """Send some numbered messages, then echo what comes until the test kills this process or says stop."""
    client = stage.connect(stage.transport_class(), stage.args["address"])
    for number in range(stage.args["count"]):
        client.send([b"%d" % number, bytes(stage.args.get("size", 10))])
    if stage.args.get("helper"):
        # In this process's group, so that it ends with the test.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    stage.tell("ready")
    for _ in range(100_000):
        parts = client.recv(PATIENCE)
        if parts is None:
            continue
        if parts and bytes(parts[0]) == b"stop":
            return
        client.send(parts)


def crowd(stage: Stage) -> None:
    """Be many clients in one process, which is then killed."""
    transport = stage.transport_class()
    clients = [stage.connect(transport, stage.args["address"]) for _ in range(stage.args["count"])]
    for client in clients:
        client.send([b"crowd"])
    stage.tell("ready")
    stage.hear()


def chatter(stage: Stage) -> None:
    """Be several clients at once that each check many echoes."""
    transport = stage.transport_class()
    clients = [stage.connect(transport, stage.args["address"]) for _ in range(stage.args["clients"])]
    for number in range(stage.args["rounds"]):
        for which, client in enumerate(clients):
            client.send([b"%d %d" % (which, number)])
        for which, client in enumerate(clients):
            reply = client.recv(PATIENCE)
            if reply is None or [bytes(each) for each in reply] != [b"%d %d" % (which, number)]:
                raise AssertionError(f"client {which}, round {number}: got {reply!r}")
    stage.tell("done")


def serve(stage: Stage) -> None:
    """Be a server: echo, or send many messages for one that says so."""
    transport = stage.transport_class()
    server = transport.server(stage.credentials)
    stage.tell("address " + server.bind(stage.args.get("address") or stage.free_address(transport)))
    for _ in range(100_000):
        event = server.recv(PATIENCE)
        if not isinstance(event, Message):
            continue
        if event.parts and bytes(event.parts[0]) == b"flood":
            for number in range(int(bytes(event.parts[1]))):
                server.send(event.peer, [b"%d" % number])
        elif event.parts and bytes(event.parts[0]) == b"stop":
            server.close()
            stage.tell("closed")
            stage.hear()
            return
        else:
            server.send(event.peer, event.parts)


def abandon(stage: Stage) -> None:
    """End without closing anything, with much that nobody has received."""
    transport = stage.transport_class()
    client = stage.connect(transport, stage.args["address"])
    stage.tell("connected")
    stage.hear()
    for _ in range(stage.args["count"]):
        client.send([bytes(stage.args["size"])])
    server = transport.server(stage.credentials)
    server.bind(stage.free_address(transport))
    stage.tell("leaving")


class Kit:
    """All that one generation made; the only reference to it, so that a forked child can drop it."""

    def __init__(self, stage: Stage) -> None:
        self.transport = stage.transport_class()
        self.client = stage.connect(self.transport, stage.args["address"])
        self.server = self.transport.server(stage.credentials)
        self.address = self.server.bind(stage.free_address(self.transport))

    def check_server(self, stage: Stage) -> None:
        """See that somebody can still connect to the server."""
        client = self.transport.client(stage.credentials)
        failures: list[BaseException] = []

        def connect() -> None:
            try:
                client.connect(self.address, PATIENCE)
                client.send([b"anybody there?"])
            except BaseException as error:
                failures.append(error)

        threading.Thread(target=connect, daemon=True).start()
        deadline = time.monotonic() + PATIENCE
        while not isinstance(self.server.recv(0.01), Message):
            if failures:
                raise failures[0]
            if time.monotonic() > deadline:
                raise AssertionError("nobody can connect to the server that was made before the fork")
        client.close()

    def drop(self) -> None:
        """Let go of everything without closing it."""
        self.__dict__.clear()
        gc.collect()

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self.transport.close()


def fork(stage: Stage) -> None:
    """Use the transport, fork, let the child use a new one, go on; as many generations deep as asked."""
    kit = Kit(stage)
    check_echo(kit.client, b"before the fork")
    _generation(stage, stage.args["generations"], kit)
    check_echo(kit.client, b"after the fork")
    another = stage.connect(kit.transport, stage.args["address"])
    check_echo(another, b"a new client after the fork")
    another.close()
    kit.check_server(stage)
    kit.close()
    stage.tell("done")


def fork_unnoticed(stage: Stage) -> None:
    """Use the transport, fork, and see that the descriptor tells of nothing, since nothing has come."""
    kit = Kit(stage)
    check_echo(kit.client, b"before the fork")
    descriptor = kit.client.fileno()
    _generation(stage, 1, kit)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if poller.poll(50):
        raise AssertionError("the client's descriptor is readable though nothing has come since the fork")
    check_echo(kit.client, b"after the fork")
    kit.close()
    stage.tell("done")


def _generation(stage: Stage, left: int, inherited: Kit) -> None:
    """Fork a child that forks a child, and so on; return when the child has ended well."""
    how = stage.args["how"]
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=_forked, args=(stage, left, inherited))
        process.start()
        process.join(PATIENCE)
        if process.exitcode != 0:
            process.kill()
            raise AssertionError(f"generation {left} ended with {process.exitcode}")
        return
    pid = os.fork()
    if pid == 0:
        _leave(how, lambda: _forked(stage, left, inherited))
    deadline = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            raise AssertionError(f"generation {left} hangs")
        time.sleep(0.002)
    if status != 0:
        raise AssertionError(f"generation {left} ended with {os.waitstatus_to_exitcode(status)}")


def _leave(how: str, work: Callable[[], None]) -> NoReturn:
    """End a forked child in the way that is being tested; it never returns into its parent's code."""
    if how == "sys.exit":
        # Back through the parent's frames, as any forked program would: module-level exit hooks and all.
        work()
        sys.exit(0)
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(code)


def _forked(stage: Stage, left: int, inherited: Kit) -> None:
    """A forked child's life: forget what it inherited, make its own, fork on."""
    inherited.drop()
    kit = Kit(stage)
    check_echo(kit.client, b"generation %d" % left)
    if left > 1:
        _generation(stage, left - 1, kit)
        check_echo(kit.client, b"generation %d goes on" % left)
    kit.close()


def fork_refused(stage: Stage) -> None:
    """In a forked child of a process that used a transport that cannot fork: report how a new one fails."""
    transport = stage.transport_class()
    client = stage.connect(transport, stage.args["address"])
    check_echo(client, b"before the fork")
    pid = os.fork()
    if pid == 0:
        try:
            with contextlib.suppress(FiberqError):
                check_echo(stage.connect(stage.transport_class(), stage.args["address"]), b"after the fork")
                stage.tell("worked")
                os._exit(0)
            stage.tell("refused")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    stage.tell(f"status {status}")
    check_echo(client, b"the parent goes on")
    stage.tell("done")


def echo_once(name: str, secret: bytes | None, address: str, line: Connection) -> None:
    """What a child of multiprocessing's spawn runs: one echo."""
    transport = registry.load(name)()
    client = transport.client(None if secret is None else Credentials(secret))
    client.connect(address, PATIENCE)
    check_echo(client, b"spawned")
    line.send("done")
    client.close()
    transport.close()


ROLES = {each.__name__: each for each in (talk, crowd, chatter, serve, abandon, fork, fork_unnoticed, fork_refused)}


if __name__ == "__main__":
    _line = os.dup(1)
    os.dup2(2, 1)  # a transport that prints something does not disturb the line
    ROLES[sys.argv[1]](Stage(json.loads(sys.stdin.readline())))
