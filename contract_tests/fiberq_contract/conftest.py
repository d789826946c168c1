"""Ties the suite to pytest: the option, one `Lab` a test on each wire, the watchdog, the summary by rule."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from types import FrameType

import pytest

from fiberq import registry
from fiberq.abc import Credentials, Transport
from fiberq.errors import TransportError

from . import plugin
from .lab import Lab, Wire
from .rules import RULES

SECRET = Credentials(b"a secret that no message may show")

HANG = 60
"""Seconds that a test may take before it is taken for hanging."""

_HERE = os.path.dirname(os.path.abspath(__file__))


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    # Already there where fiberq is installed.
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(*ids): the rules of RULES.md that the test proves")
    config.addinivalue_line("markers", "one_wire: proved on the first scheme only")
    config.addinivalue_line("markers", "credentials: proved on each scheme with credentials, and nowhere else")


def transport_class(config: pytest.Config) -> type[Transport]:
    """The class under test."""
    name = config.getoption("--transport", None)
    if name is None:
        raise pytest.UsageError("pass --transport NAME")
    return registry.load(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "wire" in metafunc.fixturenames:
        capabilities = transport_class(metafunc.config).capabilities
        plain = [Wire(scheme) for scheme in capabilities.schemes]
        secured = [Wire(scheme, SECRET) for scheme in capabilities.schemes if capabilities.authenticates]
        if metafunc.definition.get_closest_marker("one_wire"):
            wires = plain[:1]
        elif metafunc.definition.get_closest_marker("credentials"):
            wires = secured
        else:
            # Credentials change how a transport moves bytes, as a rule alike on all schemes: tcp stands for the others.
            wires = plain + ([wire for wire in secured if wire.scheme == "tcp"] or secured[-1:])
        metafunc.parametrize("wire", wires, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(_HERE):
            # Whatever the project that runs the suite has set: a transport that leaks or crashes a thread is wrong.
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("rule"):
        item.user_properties.extend(("rule", each) for each in marker.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say, rule by rule, what the transport gets wrong."""
    outcomes: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            for key, value in getattr(report, "user_properties", ()):
                if key == "rule":
                    outcomes.setdefault(str(value), set()).add(outcome)
    broken = [each for each in RULES.values() if outcomes.get(each.id, set()) & {"failed", "error"}]
    held = [each for each in RULES.values() if each not in broken and "passed" in outcomes.get(each.id, set())]
    if not outcomes:
        return
    terminalreporter.section("fiberq contract")
    for each in broken:
        terminalreporter.line(f"BROKEN {each.id} ({each.level}): {each.sentence}", red=True)
    untested = len(RULES) - len(broken) - len(held)
    terminalreporter.line(f"{len(held)} rules hold, {len(broken)} are broken, {untested} were not tested.")


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that hangs: first with an exception, then, where that does not get through, with the whole run."""

    def bark(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{request.node.name} hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(HANG)
    faulthandler.dump_traceback_later(HANG + 10, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def directory() -> Iterator[str]:
    """A private directory with a short path: an ipc path holds about a hundred bytes, pytest's own are longer."""
    path = tempfile.mkdtemp(prefix="fq")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def lab(wire: Wire, directory: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """Sockets, transports and child processes on one wire."""
    lab = Lab(pytestconfig.getoption("--transport"), transport_class(pytestconfig), wire, directory)
    try:
        if wire.credentials:
            try:
                lab.hub().socket.close()
            except TransportError as error:
                pytest.skip(f"refuses credentials on {wire.scheme}, which is safe: {error}")
        yield lab
    finally:
        lab.close()
