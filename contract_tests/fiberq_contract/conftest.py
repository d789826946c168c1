"""Ties the suite to pytest: the option, one `Lab` a test on each wire, the watchdog, the summary by rule."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from types import FrameType

import pytest

from fiberq import registry
from fiberq.abc import Credentials, Transport
from fiberq.errors import TransportError

from . import plugin
from .lab import Lab, Wire
from .queues_lab import crew as crew
from .queues_lab import kind as kind
from .queues_lab import kinds, methods
from .queues_lab import method as method
from .recorder import Recorder

SECRET = Credentials(b"a secret that no message may show")

_RECORDER = pytest.StashKey[Recorder]()
_HERE = os.path.dirname(os.path.abspath(__file__))


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    # Already there where fiberq is installed.
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(*ids): the rules of RULES.md that the test proves")
    config.addinivalue_line("markers", "one_wire: proved on the first scheme only")
    config.addinivalue_line("markers", "scheme(name): proved on this scheme only")
    config.addinivalue_line("markers", "slow: left out of a quick run; its rules have other tests")
    config.stash[_RECORDER] = Recorder(config)
    config.addinivalue_line("markers", "credentials: proved on each scheme with credentials, and nowhere else")


def transport_class(config: pytest.Config) -> type[Transport]:
    """The class under test."""
    name = config.getoption("--transport", None)
    if name is None:
        raise pytest.UsageError("fiberq_contract tests a transport: pass --transport NAME")
    return registry.load(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.config.getoption("--transport", None) is None:
        return  # there is nothing to test; raised here, that would be told once for each module
    for name, values in (("kind", kinds), ("method", methods)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values(metafunc.config), indirect=True)
    if "wire" in metafunc.fixturenames:
        capabilities = transport_class(metafunc.config).capabilities
        marker = metafunc.definition.get_closest_marker
        only = marker("scheme")
        schemes = [each for each in capabilities.schemes if only is None or each in only.args]
        plain = [Wire(scheme) for scheme in schemes]
        secured = [Wire(scheme, SECRET) for scheme in schemes if capabilities.authenticates]
        # Credentials change how a transport moves bytes, as a rule alike on all schemes: tcp stands for the others.
        usual = [wire for wire in secured if wire.scheme == "tcp"] or secured[-1:]
        quick = metafunc.config.getoption("--fiberq-quick")
        if marker("credentials"):
            wires = usual if quick else secured
        elif quick or marker("one_wire"):
            wires = plain[:1]
        else:
            wires = plain + usual
        metafunc.parametrize("wire", wires, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if str(item.path).startswith(_HERE)]
    for item in ours:
        # Whatever the project that runs the suite has set: a transport that leaks or crashes a thread is wrong.
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)
    if ours:
        transport_class(config)  # says once that none is named
    recorder = config.stash[_RECORDER]
    unwanted = [item for item in ours if not recorder.wants(item)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_RECORDER].plan(session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_RECORDER].end()


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_RECORDER].start(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.config.stash[_RECORDER].phase(item, call, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say, rule by rule, what the transport gets wrong."""
    report = config.stash[_RECORDER].report
    if report is not None and report.having("holds") + report.having("broken"):
        terminalreporter.section("fiberq contract")
        report.rules = [each for each in report.rules if report.results(each)]  # pytest may have been asked for a few
        for line, style in report.summary():
            terminalreporter.line(line, red="red" in style)


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that hangs: first with an exception, then, where that does not get through, with the whole run."""

    def bark(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{request.node.name} hangs, for {limit} s")

    before = signal.signal(signal.SIGALRM, bark)
    limit = request.config.stash[_RECORDER].limit
    signal.alarm(limit)
    faulthandler.dump_traceback_later(limit + 10, exit=True)
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
