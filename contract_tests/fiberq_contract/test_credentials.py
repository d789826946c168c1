"""Who may exchange messages, and who may read them."""

from __future__ import annotations

import base64
import contextlib
import os

import pytest

from fiberq.abc import Credentials, Transport
from fiberq.errors import ConnectError, FiberqError, TransportError

from .lab import Hub, Lab, Link
from .rules import proving, rule
from .strangers import Relay

OTHER = Credentials(bytes(range(32)))
REFUSAL = 2.0
"""Seconds that a client gets to find that it is refused; some transports see no more than silence."""


def secured(lab: Lab) -> Credentials:
    """The credentials of the wire."""
    assert lab.wire.credentials is not None
    return lab.wire.credentials


def refused(lab: Lab, hub: Hub, credentials: Credentials | None) -> None:
    """See that a client with `credentials` can't connect to `hub`, and that nothing that it sends arrives."""
    client = lab.transport.client(credentials)
    try:
        with pytest.raises(ConnectError):
            hub.connect(client, REFUSAL)
        for _ in range(3):
            with contextlib.suppress(FiberqError):
                client.send([b"let me in"])
        hub.drive(0.1)
        hub.drain()
        assert not hub.inbox, "a client without the credentials was heard"
    finally:
        client.close()


@rule("AUTH-1")
@pytest.mark.one_wire
def test_a_transport_that_cannot_authenticate_refuses_credentials(lab: Lab) -> None:
    if lab.capabilities.authenticates:
        pytest.skip("declares that it authenticates")
    with pytest.raises(TransportError):
        lab.transport.server(OTHER)
    with pytest.raises(TransportError):
        lab.transport.client(OTHER)


def takes_credentials(transport: Transport, address: str) -> bool:
    server = transport.server(OTHER)
    try:
        server.bind(address)
    except TransportError:
        return False
    finally:
        server.close()
    return True


@rule("AUTH-2")
@pytest.mark.one_wire
def test_a_transport_that_authenticates_does_so_over_tcp(lab: Lab) -> None:
    if not lab.capabilities.authenticates:
        pytest.skip("declares that it does not authenticate")
    schemes = lab.capabilities.schemes
    taking = [scheme for scheme in schemes if takes_credentials(lab.transport, lab.free_address(scheme))]
    assert taking
    assert "tcp" in taking or "tcp" not in schemes


@rule("AUTH-3", "AUTH-5")
@pytest.mark.credentials
@pytest.mark.parametrize("credentials", [OTHER, None], ids=["other credentials", "no credentials"])
def test_a_client_without_the_credentials_is_refused_and_the_honest_one_goes_on(
    lab: Lab, credentials: Credentials | None
) -> None:
    secured(lab)
    hub = lab.hub()
    honest = lab.join(hub)
    with proving("AUTH-3"):
        refused(lab, hub, credentials)
    with proving("AUTH-5"):
        for link in (honest, lab.join(hub)):
            hub.socket.send(link.peer, [b"welcome"])
            assert hub.hear(link.client) == [b"welcome"]
        assert honest.peer not in hub.lost


@rule("AUTH-3")
@pytest.mark.credentials
def test_one_wrong_bit_is_enough_to_be_refused(lab: Lab) -> None:
    secret = secured(lab).secret
    hub = lab.hub()
    for changed in (bytes([secret[0] ^ 1]) + secret[1:], secret[:-1] + bytes([secret[-1] ^ 0x80])):
        refused(lab, hub, Credentials(changed))
    lab.join(hub)


@rule("AUTH-4")
@pytest.mark.credentials
@pytest.mark.parametrize("credentials", [OTHER, None], ids=["other credentials", "no credentials"])
def test_a_client_does_not_talk_to_a_server_without_its_credentials(lab: Lab, credentials: Credentials | None) -> None:
    mine = secured(lab)
    server = lab.transport.server(credentials)
    try:
        hub = Hub(server, server.bind(lab.free_address()))
        refused(lab, hub, mine)
    finally:
        server.close()


@rule("AUTH-5")
@pytest.mark.credentials
@pytest.mark.slow
def test_servers_with_different_credentials_live_in_one_transport(lab: Lab) -> None:
    mine = secured(lab)
    hubs: list[tuple[Hub, Credentials | None]] = []
    with contextlib.ExitStack() as stack:
        for credentials in (mine, OTHER, None):
            server = lab.transport.server(credentials)
            stack.callback(server.close)
            hubs.append((Hub(server, server.bind(lab.free_address())), credentials))
        for hub, credentials in hubs:
            client = lab.transport.client(credentials)
            stack.callback(client.close)
            hub.connect(client)
            link = Link(client, lab.introduce(hub, client))
            hub.socket.send(link.peer, [b"yours"])
            assert hub.hear(client) == [b"yours"]
        refused(lab, hubs[1][0], mine)
        refused(lab, hubs[0][0], OTHER)
        # A server that goes takes nobody's protection with it.
        hubs[1][0].socket.close()
        refused(lab, hubs[0][0], OTHER)
        refused(lab, hubs[0][0], None)


@rule("AUTH-6")
@pytest.mark.credentials
def test_neither_the_secret_nor_a_message_can_be_read_from_the_wire(lab: Lab) -> None:
    mine = secured(lab)
    hub = lab.hub()
    relay = Relay(lab, hub.address)
    try:
        relayed = Hub(hub.socket, relay.address)
        link = lab.join(relayed)
        marker = b"read me if you can"
        for _ in range(5):
            link.client.send([marker, marker + os.urandom(2000)])  # which nothing makes shorter
            hub.socket.send(hub.take().peer, [marker * 3])
            assert hub.hear(link.client) == [marker * 3]
        heard = bytes(relay.heard)
        assert len(heard) > 5 * 2000, "the relay did not listen"
        assert marker not in heard
        assert mine.secret not in heard
    finally:
        relay.close()


def in_base64(secret: bytes) -> str:
    return base64.b64encode(secret).decode()


@rule("AUTH-7")
@pytest.mark.credentials
def test_no_repr_and_no_error_shows_the_secret(lab: Lab) -> None:
    secret = secured(lab).secret
    hub = lab.hub()
    link = lab.join(hub)
    texts = [f"{each!r} {each!s}" for each in (lab.transport, hub.socket, link.client, link.peer, lab.capabilities)]
    with lab.raises_ours(FiberqError) as errors:
        lab.server().bind(hub.address)
    link.client.close()
    with lab.raises_ours(FiberqError) as more:
        link.client.recv(0)
    stranger = lab.transport.client(OTHER)
    with lab.raises_ours(FiberqError) as refusals:
        hub.connect(stranger, REFUSAL)
    stranger.close()
    texts += [f"{each!r} {each!s}" for each in (*errors, *more, *refusals)]
    forms = [secret.decode(), *(form(each) for each in (secret, OTHER.secret) for form in (repr, bytes.hex, in_base64))]
    for text in texts:
        assert not any(form.lower() in text.lower() for form in forms), text
