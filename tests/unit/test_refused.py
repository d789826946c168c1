"""What a node's log says of strangers: where from, why, in few lines, and nothing that they could write themselves."""

from __future__ import annotations

import pytest

from fiberq import refused
from fiberq.refused import LINES, Refusals


def test_a_line_says_where_from_and_why(caplog: pytest.LogCaptureFixture) -> None:
    tell = Refusals()
    for end in (("192.0.2.7", 4711), ("2001:db8::1", 4711, 0, 0), "", None):
        tell(end, "it has no key")
    assert [each.getMessage() for each in caplog.records] == [
        "a client at 192.0.2.7:4711 was refused: it has no key",
        "a client at [2001:db8::1]:4711 was refused: it has no key",
        "a client on this machine was refused: it has no key",
        "a client was refused: it has no key",
    ]
    assert {(each.name, each.levelname) for each in caplog.records} == {("fiberq.node", "WARNING")}


def test_a_transport_cannot_write_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    Refusals()(("a\nb", 1), "c\nd\x1b[31m" + 10_000 * "e")
    (line,) = (each.getMessage() for each in caplog.records)
    assert line.isprintable()
    assert len(line) < 1000


def test_beyond_so_many_lines_they_are_only_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    later: list[float] = []
    monkeypatch.setattr(refused.time, "monotonic", lambda: now)
    monkeypatch.setattr(Refusals, "_say_later", lambda _, seconds: later.append(seconds))
    tell = Refusals()
    for _ in range(LINES + 500):
        tell(None, "it has no key")
    assert len(caplog.records) == LINES
    assert later == [refused.PERIOD]
    tell._end_of_period()
    assert caplog.records[-1].getMessage() == f"500 more clients were refused in {refused.PERIOD:g} s"
    tell._end_of_period()
    assert len(caplog.records) == LINES + 1
    now += refused.PERIOD
    tell(None, "it has no key")
    assert len(caplog.records) == LINES + 2


def test_where_no_thread_can_be_started_the_number_comes_with_the_next_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: object) -> None:
        raise RuntimeError

    now = 1000.0
    monkeypatch.setattr(refused.time, "monotonic", lambda: now)
    monkeypatch.setattr(refused.threading.Timer, "start", none)
    tell = Refusals()
    for _ in range(LINES + 2):
        tell(None, "it has no key")
    now += refused.PERIOD
    tell(None, "it has no key")
    assert caplog.records[-2].getMessage().startswith("2 more clients")
