"""Tests on several hosts, which are network namespaces of this machine; skipped, with the reason, where it has none."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parents[1]))  # benchmarks are not installed

from benchmarks.hosts.network import Network, missing  # noqa: E402

HANG = 60
"""Seconds that a test may take before it is taken for hanging."""


@pytest.fixture(scope="session")
def _possible() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _watchdog() -> Iterator[None]:
    """The namespaces end with this process."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def network(_possible: None) -> Iterator[Network]:
    with closing(Network()) as network:
        yield network
