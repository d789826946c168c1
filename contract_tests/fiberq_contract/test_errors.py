"""What errors are, and what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fiberq.errors import AddressError, ClosedError, ConnectError, ConnectionLost, FiberqError, TransportError

from .lab import PATIENCE, Lab
from .rules import proving, rule
from .strangers import mute_listener, nobody

Mistake = Callable[[Lab], "tuple[FiberqError, str]"]


def bind_in_use(lab: Lab) -> tuple[FiberqError, str]:
    hub = lab.hub()
    with pytest.raises(TransportError) as caught:
        lab.server().bind(hub.address)
    return caught.value, hub.address


def bind_no_address(lab: Lab) -> tuple[FiberqError, str]:
    address = f"{lab.wire.scheme}://"
    with pytest.raises(AddressError) as caught:
        lab.server().bind(address)
    return caught.value, address


def connect_to_no_scheme(lab: Lab) -> tuple[FiberqError, str]:
    address = "nosuch://somewhere"
    with pytest.raises(AddressError) as caught:
        lab.client().connect(address, 1.0)
    return caught.value, address


def connect_to_nobody(lab: Lab) -> tuple[FiberqError, str]:
    address = nobody(lab)
    with pytest.raises(ConnectError) as caught:
        lab.client().connect(address, 1.0)
    return caught.value, address


def connect_to_the_mute(lab: Lab) -> tuple[FiberqError, str]:
    with mute_listener(lab) as address, pytest.raises(ConnectError) as caught:
        lab.client().connect(address, 0.1)
    return caught.value, address


def receive_from_a_lost_server(lab: Lab) -> tuple[FiberqError, str]:
    hub = lab.hub()
    link = lab.join(hub)
    hub.socket.close()
    with pytest.raises(ConnectionLost) as caught:
        link.client.recv(PATIENCE)
    return caught.value, hub.address


def send_to_a_lost_server(lab: Lab) -> tuple[FiberqError, str]:
    hub = lab.hub()
    link = lab.join(hub)
    hub.socket.close()
    with pytest.raises(ConnectionLost):
        link.client.recv(PATIENCE)
    with pytest.raises(ConnectionLost) as caught:
        link.client.send([b"x"])
    return caught.value, hub.address


def use_a_closed_server(lab: Lab) -> tuple[FiberqError, str]:
    hub = lab.hub()
    hub.socket.close()
    with pytest.raises(ClosedError) as caught:
        hub.socket.recv(0)
    return caught.value, ""


def use_a_closed_client(lab: Lab) -> tuple[FiberqError, str]:
    client = lab.client()
    client.close()
    with pytest.raises(ClosedError) as caught:
        client.recv(0)
    return caught.value, ""


KINDS: dict[Mistake, tuple[type[BaseException], ...]] = {
    bind_in_use: (TransportError, OSError),
    bind_no_address: (AddressError, ValueError),
    connect_to_no_scheme: (AddressError, ValueError),
    connect_to_nobody: (ConnectError, ConnectionRefusedError),
    connect_to_the_mute: (ConnectError, ConnectionRefusedError),
    receive_from_a_lost_server: (ConnectionLost, ConnectionResetError),
    send_to_a_lost_server: (ConnectionLost, ConnectionResetError),
    use_a_closed_server: (ClosedError, ValueError),
    use_a_closed_client: (ClosedError, ValueError),
}
MISTAKES = pytest.mark.parametrize("mistake", KINDS, ids=lambda mistake: mistake.__name__)


@rule("ERR-1")
@MISTAKES
def test_a_mistake_raises_fiberqs_error_and_the_built_in_that_goes_with_it(lab: Lab, mistake: Mistake) -> None:
    error, _ = mistake(lab)
    assert isinstance(error, FiberqError)
    for kind in KINDS[mistake]:
        assert isinstance(error, kind)


@rule("ERR-2")
@MISTAKES
def test_an_error_names_the_transport_and_the_address(lab: Lab, mistake: Mistake) -> None:
    with proving("ERR-1"):
        error, address = mistake(lab)
    assert lab.name.lower() in str(error).lower(), f"{str(error)!r} does not name the transport {lab.name}"
    assert address in str(error), f"{str(error)!r} does not name the address {address}"
