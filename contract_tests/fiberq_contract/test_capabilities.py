"""What a transport declares of itself, and what it must not take because it did not declare it."""

from __future__ import annotations

import re

import pytest

from fiberq.abc import API_VERSION, Capabilities, Transport
from fiberq.errors import AddressError

from .lab import Lab
from .rules import rule


@rule("CAP-1")
@pytest.mark.one_wire
def test_the_class_is_a_transport_of_this_api_version(lab: Lab) -> None:
    assert issubclass(lab.transport_class, Transport)
    assert lab.transport_class.api_version == API_VERSION
    assert isinstance(lab.capabilities, Capabilities)
    assert lab.capabilities.schemes
    assert all(re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) for scheme in lab.capabilities.schemes)
    transport = lab.transport_class()
    assert isinstance(transport, lab.transport_class)
    assert transport.capabilities == lab.capabilities, "an instance declares something else than its class"
    transport.close()


@rule("CAP-2")
@pytest.mark.one_wire
def test_bind_any_gives_one_address_for_each_scheme(lab: Lab) -> None:
    addresses = lab.transport.bind_any(lab.directory)
    assert sorted(each.partition("://")[0] for each in addresses) == sorted(lab.capabilities.schemes)
    server = lab.server()
    for address in addresses:
        server.bind(address)


@rule("CAP-3")
@pytest.mark.one_wire
@pytest.mark.parametrize(
    "address",
    [
        "inproc://name",
        "ws://127.0.0.1:0/path",
        "tls+tcp://127.0.0.1:0",
        "udp://127.0.0.1:0",
        "ipc:///{dir}/x",
        "tcp://127.0.0.1:0",
    ],
)
def test_a_scheme_that_is_not_declared_is_refused(lab: Lab, address: str) -> None:
    if address.partition("://")[0] in lab.capabilities.schemes:
        pytest.skip("the scheme is declared")
    address = address.format(dir=lab.directory)
    with pytest.raises(AddressError):
        lab.server().bind(address)
    with pytest.raises(AddressError):
        lab.client().connect(address, 1.0)
