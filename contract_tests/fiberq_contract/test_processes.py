"""Forked and spawned children, and several transports in one process."""

from __future__ import annotations

import multiprocessing

import pytest

from . import child as roles
from .lab import PATIENCE, Hub, Lab
from .rules import rule

WAYS = pytest.mark.parametrize(
    "how",
    [
        pytest.param("os._exit", marks=pytest.mark.slow),
        "sys.exit",
        pytest.param("multiprocessing", marks=pytest.mark.slow),
    ],
)
"""How forked children come about and end."""


@rule("PROC-1")
@WAYS
def test_a_forked_child_uses_a_new_transport_and_the_parent_goes_on(lab: Lab, how: str) -> None:
    if not lab.capabilities.forks:
        pytest.skip("declares that it cannot fork")
    address = lab.child("serve").expect("address")
    child = lab.child("fork", address=address, how=how, generations=1)
    child.expect("done")
    child.expect_exit(5)


@rule("PROC-2")
@WAYS
def test_three_generations_of_forks_work(lab: Lab, how: str) -> None:
    if not lab.capabilities.forks:
        pytest.skip("declares that it cannot fork")
    address = lab.child("serve").expect("address")
    child = lab.child("fork", address=address, how=how, generations=3)
    child.expect("done")
    child.expect_exit(5)


@rule("PROC-6")
@pytest.mark.parametrize("how", ["os._exit", "multiprocessing"])
def test_the_parents_descriptor_does_not_notice_a_fork(lab: Lab, how: str) -> None:
    if not lab.capabilities.forks:
        pytest.skip("declares that it cannot fork")
    address = lab.child("serve").expect("address")
    child = lab.child("fork_unnoticed", address=address, how=how)
    child.expect("done")
    child.expect_exit(5)


@rule("PROC-3")
def test_a_transport_that_cannot_fork_says_so_in_the_child(lab: Lab) -> None:
    if lab.capabilities.forks:
        pytest.skip("declares that it can fork")
    address = lab.child("serve").expect("address")
    child = lab.child("fork_refused", address=address)
    child.expect("refused")
    assert child.expect("status") == "0"
    child.expect("done")
    child.expect_exit(5)


@rule("PROC-4")
def test_a_spawned_child_uses_the_transport(lab: Lab) -> None:
    hub = lab.hub()
    here, there = multiprocessing.Pipe(duplex=False)
    secret = lab.wire.credentials.secret if lab.wire.credentials else None
    process = multiprocessing.get_context("spawn").Process(
        target=roles.echo_once, args=(lab.name, secret, hub.address, there)
    )
    process.start()
    try:
        there.close()
        message = hub.take(30)
        hub.socket.send(message.peer, message.parts)
        hub.until(here.poll, "the child is content")
        assert here.recv() == "done"
        process.join(PATIENCE)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()


@rule("PROC-5")
def test_several_transports_in_one_process_do_not_disturb_each_other(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub)]
    others = [lab.new_transport() for _ in range(3)]
    for other in others:
        client = other.client(lab.wire.credentials)
        hub.connect(client)
        links.append(type(links[0])(client, lab.introduce(hub, client)))
    others[0].close()
    hub.until(lambda: hub.lost == [links[1].peer], "the client of the closed transport is lost")
    server = others[1].server(lab.wire.credentials)
    elsewhere = Hub(server, server.bind(lab.free_address()))
    lab.join(elsewhere)
    for link in (links[0], *links[2:]):
        hub.socket.send(link.peer, [b"here"])
        assert hub.hear(link.client) == [b"here"]
