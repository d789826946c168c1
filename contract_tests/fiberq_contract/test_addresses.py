"""Where a server listens: concrete addresses, several of them, and those that cannot be had."""

from __future__ import annotations

import os
import re

import pytest

from fiberq.errors import AddressError, TransportError

from .lab import Hub, Lab, plain
from .rules import rule


@rule("ADDR-1")
def test_bind_returns_an_address_to_which_a_client_can_connect(lab: Lab) -> None:
    hub = lab.hub()
    assert hub.address.startswith(lab.wire.scheme + "://")
    link = lab.join(hub)
    hub.socket.send(link.peer, [b"welcome"])
    assert hub.hear(link.client) == [b"welcome"]


@rule("ADDR-1")
def test_a_concrete_address_comes_back_unchanged(lab: Lab) -> None:
    first = lab.hub()
    first.socket.close()
    second = lab.server()
    assert second.bind(first.address) == first.address


@rule("ADDR-2")
@pytest.mark.scheme("tcp")
def test_tcp_port_0_comes_back_with_the_port_that_was_chosen(lab: Lab) -> None:
    server = lab.server()
    ports = []
    for _ in range(2):
        match = re.fullmatch(r"tcp://127\.0\.0\.1:(\d+)", server.bind("tcp://127.0.0.1:0"))
        assert match
        ports.append(int(match[1]))
    assert 0 not in ports
    assert ports[0] != ports[1]


@rule("ADDR-3")
def test_a_server_receives_from_all_addresses_that_it_bound(lab: Lab) -> None:
    hub = lab.hub()
    addresses = [hub.address, *(hub.socket.bind(lab.free_address()) for _ in range(3))]
    assert len(set(addresses)) == 4
    links = [lab.join(Hub(hub.socket, address)) for address in addresses]
    assert len({link.peer for link in links}) == 4
    for number, link in enumerate(links):
        hub.socket.send(link.peer, [b"%d" % number])
    for number, link in enumerate(links):
        assert hub.hear(link.client) == [b"%d" % number]


@rule("ADDR-3")
@pytest.mark.one_wire
def test_a_server_receives_on_several_schemes_at_once(lab: Lab) -> None:
    server = lab.server()
    addresses = [server.bind(lab.free_address(scheme)) for scheme in lab.capabilities.schemes]
    peers = {lab.join(Hub(server, address)).peer for address in addresses}
    assert len(peers) == len(addresses)


@rule("ADDR-4")
def test_an_address_in_use_is_refused_and_its_server_goes_on(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    second = lab.server()
    with pytest.raises(TransportError):
        second.bind(hub.address)
    with pytest.raises(TransportError):
        hub.socket.bind(hub.address)
    link.client.send([b"still here"])
    assert hub.take_from(link.peer) == [b"still here"]
    lab.join(hub)


@rule("ADDR-4")
def test_a_server_that_was_refused_an_address_can_bind_another(lab: Lab) -> None:
    hub = lab.hub()
    second = lab.server()
    with pytest.raises(TransportError):
        second.bind(hub.address)
    lab.join(Hub(second, second.bind(lab.free_address())))


@rule("ADDR-4")
@pytest.mark.scheme("ipc")
def test_an_ipc_path_whose_directory_is_missing_is_refused(lab: Lab) -> None:
    with pytest.raises(TransportError):
        lab.server().bind(f"ipc://{lab.path('missing')}/socket")


GARBAGE = [
    "",
    "garbage",
    "://",
    "nosuch://127.0.0.1:1",
    "/tmp/no-scheme",
    "tcp:/127.0.0.1:0",
    "tcp://",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://127.0.0.1:port",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:-1",
    "tcp://:::",
    "ipc://",
    "ipc:///tmp/with\0nul",
]


@rule("ADDR-5")
@pytest.mark.one_wire
@pytest.mark.parametrize("address", GARBAGE, ids=repr)
def test_an_address_that_cannot_be_parsed_is_refused(lab: Lab, address: str) -> None:
    with pytest.raises(AddressError):
        lab.server().bind(address)
    with pytest.raises(AddressError):
        lab.client().connect(address, 1.0)


@rule("ADDR-6")
@pytest.mark.scheme("ipc")
def test_an_ipc_path_that_is_too_long_is_refused(lab: Lab) -> None:
    address = f"ipc://{lab.path('x' * 150)}"
    with lab.raises_ours(AddressError, TransportError):
        lab.server().bind(address)
    with lab.raises_ours(AddressError, TransportError):
        lab.client().connect(address, 1.0)
    assert os.listdir(lab.directory) == []


@rule("ADDR-7")
def test_bind_any_gives_each_server_an_address_of_its_own(lab: Lab) -> None:
    hubs = [lab.hub() for _ in range(10)]
    assert len({hub.address for hub in hubs}) == 10
    if lab.wire.scheme == "ipc":
        for hub in hubs:
            path = hub.address.removeprefix("ipc://")
            assert os.path.dirname(path) == lab.directory
            assert os.path.exists(path)


@rule("ADDR-8")
@pytest.mark.scheme("ipc")
def test_an_ipc_path_whose_server_was_killed_can_be_bound_again(lab: Lab) -> None:
    child = lab.child("serve")
    address = child.expect("address")
    child.kill()
    hub = lab.hub(address)
    link = lab.join(hub)
    hub.socket.send(link.peer, [b"back"])
    assert plain(link.client.recv(10)) == [b"back"]
