"""What an address and a handle tuple may look like, and that reading undoes writing."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberq import address
from fiberq.address import ENDS, MAX_NAME, Address, check_name, check_sock_type, parse, parse_handle
from fiberq.errors import AddressError, FiberqError

ALNUM = string.ascii_letters + string.digits
HOSTS = st.one_of(
    st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,20}[A-Za-z0-9])?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
)
TCP = st.one_of(HOSTS, st.tuples(HOSTS, st.integers(0, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"))
PRINTABLE = st.characters(exclude_categories=["C", "Z"], exclude_characters="?#")
PATHS = st.text(st.one_of(PRINTABLE, st.sampled_from("/ @%:")), max_size=40).map("/{}".format)
OPAQUE = st.text(PRINTABLE, min_size=1, max_size=40).filter(lambda text: "@" not in text)
NAMES = st.one_of(
    st.text(string.hexdigits[:16], min_size=16, max_size=16),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
SUFFIXES = st.one_of(st.just((None, None)), st.tuples(NAMES, st.sampled_from([*ENDS, None])))
ADDRESSES = st.one_of(
    st.tuples(st.just("tcp"), TCP), st.tuples(st.just("ipc"), PATHS), st.tuples(st.just("x+y"), OPAQUE)
).flatmap(lambda node: SUFFIXES.map(lambda suffix: Address(*node, *suffix)))


LOST = [
    "tcp://KEY192.0.2.1:7100",
    "tcp://KEYhost.example.org",
    "tcp://KEY:7100/jobs/r",
    "tcp://KEY/host:7100",
    "tcp://KEY host:7100",
    "tcp://KEY%40host:7100",
    "tcp:/KEY@host:7100",
    "tcp:KEY@host:7100",
    "KEY@host:7100",
    "KEY",
    "ipc://KEY/tmp/node",
]
"""URLs that lost their @, or more."""


@given(ADDRESSES)
def test_parse_undoes_format(parts: Address) -> None:
    assert parse(address.format(parts)) == parts


@given(
    st.text() | ADDRESSES.map(address.format).flatmap(lambda text: st.integers(0, len(text)).map(lambda n: text[:n]))
)
def test_any_text_either_reads_and_writes_stably_or_is_an_address_error(text: str) -> None:
    try:
        parts = parse(text)
    except AddressError:
        return
    assert parse(address.format(parts)) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tcp://127.0.0.1:9000", ("tcp", "127.0.0.1:9000", None, None)),
        ("tcp://worker-1.example.org", ("tcp", "worker-1.example.org", None, None)),
        ("tcp://[::1]:0", ("tcp", "[::1]:0", None, None)),
        ("tcp://[fe80::1%eth0]:9000/jobs/r", ("tcp", "[fe80::1%eth0]:9000", "jobs", "r")),
        ("tcp://127.0.0.1:9000/00c0ffee00c0ffee/b", ("tcp", "127.0.0.1:9000", "00c0ffee00c0ffee", "b")),
        ("ipc:///run/x/node.sock", ("ipc", "/run/x/node.sock", None, None)),
        ("ipc:///run/x/node.sock/a/r", ("ipc", "/run/x/node.sock/a/r", None, None)),
        ("ipc:///run/x/node.sock?a%20b%2Fc/w", ("ipc", "/run/x/node.sock", "a b/c", "w")),
        ("x+y://anything/at:all?jobs/a", ("x+y", "anything/at:all", "jobs", "a")),
    ],
)
def test_an_address_has_these_parts(text: str, parts: tuple[str, ...]) -> None:
    assert parse(text) == parts
    assert address.format(parse(text)) == text
    assert parse(text).node == text.partition("?")[0] if parts[0] != "tcp" else f"tcp://{parts[1]}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "127.0.0.1:9000",
        "://x",
        "TCP://x",
        "tcp://",
        "tcp://:9000",
        "tcp://host:",
        "tcp://host:65536",
        "tcp://host:99999",
        "tcp://host:-1",
        "tcp://host:1x",
        "tcp://host:٣",
        "tcp://::1:9000",
        "tcp://[::1",
        "tcp://[:::1]:9000",
        "tcp://[1.2.3.4]:9000",
        "tcp://ho st:9000",
        "tcp://host:9000/",
        "tcp://host:9000/jobs/x",
        "tcp://host:9000/jobs/r/",
        "tcp://host:9000//r",
        "tcp://host:9000/jo bs/r",
        "tcp://host:9000/%FF/r",
        "tcp://host:9000/%4/r",
        "tcp://host:9000?jobs/r",
        "tcp://host:9000\n",
        "ipc://",
        "ipc://relative/path",
        "ipc:///a\0b",
        "ipc:///a\nb",
        "ipc:///a?",
        "ipc:///a?jobs/rw",
        "ipc:///a?b?jobs/r",
        "x://",
    ],
)
def test_what_is_no_address_is_an_error_that_names_it_and_gives_an_example(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert '"tcp://127.0.0.1:9000" or "ipc:///' in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FiberqError)


@pytest.mark.parametrize("thing", [None, 9000, b"tcp://127.0.0.1:9000", ("r", "tcp://127.0.0.1:9000")])
def test_what_is_no_text_is_no_address(thing: object) -> None:
    with pytest.raises(AddressError):
        parse(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [("tcp", "h/jobs/r"), ("tcp", "h", "", "r"), ("ipc", "/a?b/r")])
def test_parts_that_no_text_stands_for_are_not_written(parts: tuple[str, ...]) -> None:
    with pytest.raises(AddressError):
        address.format(Address(*parts))


def test_a_lone_surrogate_in_a_name_is_an_address_error() -> None:
    with pytest.raises(AddressError):
        address.format(Address("tcp", "h", "\ud800", "r"))


@pytest.mark.parametrize(
    "url",
    [
        "fiberq+tcp:/x@@#SECRET",
        "tcp://user:SECRET@host:9000",
        "tcp://host:9000/jobs/r#SECRET",
        "tcp://host:9000/jobs/r?key=SECRET",
        "ipc:///a?jobs/r&key=SE\nSECRET",
        *(each.replace("KEY", 13 * "SECRET") for each in LOST),
    ],
)
def test_the_error_for_a_url_that_was_passed_by_mistake_hides_its_credential(url: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["jobs", "a/b", "ä", "%41", "..", " ", "00c0ffee", "x" * MAX_NAME])
def test_a_name_is_read_back_from_an_address(name: str) -> None:
    written = Address("tcp", "h:1", check_name(name), None)
    assert parse(address.format(written)) == written


@pytest.mark.parametrize(
    "name", ["", "a\nb", "\x1b[31m", "\ud800", "\0", "00c0ffee00c0ffee", "zmq+tcp://SECRET@h:1", "x" * (MAX_NAME + 1)]
)
def test_what_is_no_name_is_an_error_that_does_not_show_it(name: str) -> None:
    with pytest.raises(AddressError, match="name must") as raised:
        check_name(name)
    assert not name or name not in str(raised.value)


@pytest.mark.parametrize("sock_type", ["r", "w", "rw"])
def test_a_handle_is_a_socket_type_and_an_address(sock_type: str) -> None:
    assert check_sock_type(sock_type) == sock_type
    assert parse_handle((sock_type, "tcp://h:1/jobs/r")) == (sock_type, Address("tcp", "h:1", "jobs", "r"))


@pytest.mark.parametrize("sock_type", ["", "wr", "R", None, 0, ["r"]])
def test_another_socket_type_is_an_error_that_names_the_three(sock_type: object) -> None:
    for check in (check_sock_type, lambda given: parse_handle((given, "tcp://h:1"))):
        with pytest.raises(AddressError, match='"r", "w" and "rw"'):
            check(sock_type)


@pytest.mark.parametrize("handle", [None, "tcp://h:1", ("r",), ("r", "tcp://h:1", 3), ["r", "tcp://h:1"]])
def test_what_is_no_pair_is_no_handle(handle: object) -> None:
    with pytest.raises(AddressError, match=r"a handle is a tuple \(sock_type, dest_addr\) such as"):
        parse_handle(handle)


@pytest.mark.parametrize("wrap", [str.encode, lambda url: [url], lambda url: ("r", url), lambda url: (url, url)])
def test_no_error_shows_a_url_that_came_where_none_belongs(wrap: Callable[[str], object]) -> None:
    wrong = wrap("zmq+tcp://KEY@127.0.0.1:9000/jobs/r")
    for read in (parse, parse_handle, check_sock_type):
        with pytest.raises(AddressError) as raised:
            read(wrong)  # type: ignore[operator]
        assert "KEY" not in str(raised.value)
