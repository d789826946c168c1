"""Keys, rights and URLs: what a token allows, and that nobody but the node can make one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberq.access import (
    Authority,
    Keys,
    Right,
    Url,
    kept_authority,
    make_keys,
    number_of,
    read_url,
    split_key,
    state_directory,
    write_private,
)
from fiberq.errors import AccessError, AddressError, ConfigError

KEYS = Keys(b"s" * 32, b"t" * 32)
HOLDS = st.lists(st.tuples(st.text(max_size=9), st.sampled_from(["r", "w", "rw"])), max_size=3).map(tuple)


@given(st.none() | HOLDS, st.integers(0, 1 << 40), st.integers(0, 1 << 60))
def test_a_right_that_the_node_signed_is_read_back(
    holds: tuple[tuple[str, str], ...] | None, until: int, number: int
) -> None:
    authority = Authority(KEYS, clock=lambda: 0.0)
    right = Right(holds, until, number)
    secret, token = split_key(authority.key(right))
    assert secret == KEYS.secret
    assert authority.check(token) == right
    assert number_of(authority.key(right)) == number


@given(st.integers(0, 1 << 20), st.integers(1, 255), st.binary(max_size=40))
def test_no_other_token_is_one(place: int, change: int, more: bytes) -> None:
    authority = Authority(KEYS)
    token = bytearray(authority.sign(Right((("jobs", "r"),), 0, 7)))
    token[place % len(token)] ^= change
    for forged in (bytes(token), bytes(token) + more, more):
        with pytest.raises(AccessError):
            authority.check(forged)


def test_another_nodes_token_is_none() -> None:
    with pytest.raises(AccessError, match="did not give that right"):
        Authority(make_keys()).check(Authority(make_keys()).sign(Right()))


def test_a_right_ends_at_its_time() -> None:
    now = 1000.0
    authority = Authority(KEYS, clock=lambda: now)
    right = authority.narrow(Right(), (("jobs", "r"),), 60)
    assert authority.check(authority.sign(right)).until == 1060
    assert authority.seconds_left(right) == 60
    now = 1060.0
    with pytest.raises(AccessError, match="expired"):
        authority.check(authority.sign(right))


def test_what_is_made_of_a_right_ends_and_is_revoked_with_it() -> None:
    kept: list[int] = []
    authority = Authority(KEYS, keep=kept.append, clock=lambda: 0.0)
    first = authority.narrow(Right(), (("jobs", "rw"),), 60)
    other = authority.narrow(Right(), (("jobs", "rw"),), 60)
    second = authority.narrow(first, (("jobs", "r"),), 600)
    third = authority.narrow(first, (("jobs", "r"),), None)
    assert (second.until, third.until, other.number != first.number) == (60, 60, True)
    authority.revoke(first.number)
    authority.revoke(first.number)
    assert kept == [first.number]
    for right in (first, second, third):
        with pytest.raises(AccessError, match="revoked"):
            authority.check(authority.sign(right))
    assert authority.check(authority.sign(other)) == other
    assert authority.check(authority.sign(Right())) == Right()


def test_a_right_allows_what_it_names() -> None:
    right = Right((("jobs", "w"), ("00000000000000ff", "r"), ("jobs", "r")))
    assert right.allows(("jobs", "0000000000000001"), "rw")
    assert right.allows(("00000000000000ff",), "r")
    assert right.allows(("00000000000000ff",), "")
    assert not right.allows(("00000000000000ff",), "w")
    assert not right.allows(("others",), "")
    assert not Right(()).allows(("jobs",), "")
    assert Right().allows(("anything",), "rw")


def test_a_nodes_keys_are_kept_for_its_user_alone(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    with state_directory(str(state)):
        keys, authority = kept_authority(str(state))
    assert [each.name for each in state.iterdir()] == ["keys"]
    assert (state.stat().st_mode & 0o777, (state / "keys").stat().st_mode & 0o777) == (0o700, 0o600)
    authority.revoke(77)
    again, other = kept_authority(str(state))
    assert again == keys
    with pytest.raises(AccessError, match="revoked"):
        other.check(other.sign(Right((), 0, 77)))
    assert (state / "revoked").stat().st_mode & 0o777 == 0o600


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    kept_authority(str(tmp_path))
    (tmp_path / "keys").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        kept_authority(str(tmp_path))


def test_a_state_directory_is_one_nodes_and_one_users(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with state_directory(str(state)), pytest.raises(ConfigError, match="another node"), state_directory(str(state)):
        pass
    state.chmod(0o770)
    with pytest.raises(ConfigError, match="others could change"), state_directory(str(state)):
        pass
    state.chmod(0o755)
    with state_directory(str(state)):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), state_directory(str(tmp_path / "file" / "state")):
        pass


@pytest.mark.parametrize("text", ["", "{}", '{"secret": "00", "signing": "00"}', '{"secret": 1, "signing": 2}', "[]"])
def test_damaged_keys_are_refused(text: str, tmp_path: Path) -> None:
    os.close(os.open(tmp_path / "keys", os.O_CREAT, 0o600))
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        kept_authority(str(tmp_path))


def test_keys_that_are_no_text_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="damaged"):
        kept_authority(str(tmp_path))


@pytest.mark.parametrize("name", ["keys", "revoked", "url"])
def test_a_state_directory_that_cannot_be_used_is_said(name: str, tmp_path: Path) -> None:
    """As another user's is, or one on a disk that is full."""
    (tmp_path / name).mkdir(0o700)
    before = {*tmp_path.iterdir()}

    def use() -> None:
        kept_authority(str(tmp_path))
        write_private(str(tmp_path / "url"), "text")

    with pytest.raises(ConfigError, match=f"the state directory {tmp_path} cannot be used: "):
        use()
    assert {*tmp_path.iterdir()} - before <= {tmp_path / "keys"}


def test_no_repr_shows_a_secret() -> None:
    key = Authority(KEYS).owner_key
    assert KEYS.secret.hex() not in repr(KEYS)
    assert key not in repr(read_url(f"zmq+tcp://{key}@host:1"))
    assert key in str(read_url(f"zmq+tcp://{key}@host:1"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("zmq+tcp://{}@10.0.0.1:7100", ""),
        ("my-own.one+tcp://{}@[::1]:7100", "/jobs"),
        ("nng+ipc://{}@/run/node", "?jobs/r"),
    ],
)
def test_a_url_is_read_back(before: str, after: str) -> None:
    text = before.format(Authority(KEYS).owner_key) + after
    assert str(read_url(text)) == text


def test_a_bare_address_is_a_url_without_a_key() -> None:
    assert read_url("tcp://host:1").transport is None
    assert str(read_url("tcp://host:1/jobs/r")) == "tcp://host:1/jobs/r"
    assert str(read_url("zmq+ipc:///run/node")) == "zmq+ipc:///run/node"
    assert read_url("zmq+ipc:///run/node") == Url("zmq", read_url("ipc:///run/node").address, None)


@pytest.mark.parametrize(
    "text", ["zmq+tcp://c2hvcnQ@host:1", "zmq+tcp://{}@host:99999", "zmq+tcp://{}@", "+tcp://{}@h:1"]
)
def test_an_error_about_a_url_does_not_show_its_key(text: str) -> None:
    key = Authority(KEYS).owner_key
    with pytest.raises(AddressError) as raised:
        read_url(text.format(key))
    assert key not in str(raised.value)
