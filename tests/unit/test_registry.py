"""How plug-ins are found and loaded, with fake distributions on `sys.path`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import fiberq
from fiberq import registry
from fiberq.abc import Capabilities, Transport
from fiberq.errors import FiberqError, TransportLoadError, UnknownTransport

ROOT = str(Path(fiberq.__path__[0]).parent)
GOOD = """
    from fiberq.abc import Capabilities, Transport
    class Good(Transport):
        capabilities = Capabilities(("ipc", "x+y"), forks=False)
        def server(self, credentials=None): raise NotImplementedError
        def client(self, credentials=None): raise NotImplementedError
        def bind_any(self, directory): return ()
        def close(self): pass
"""
Install = Callable[..., None]


def clear() -> None:
    importlib.invalidate_caches()
    registry.resolve.cache_clear()
    registry.load_target.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A function that installs a distribution with some plug-ins and one module into a directory on `sys.path`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def do(distribution: str, version: str = "1.0", *, module: str = "", source: str = GOOD, **plugins: str) -> None:
        metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [f"{name} = {target}" for name, target in plugins.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[fiberq.transports]", *lines, ""]))
        if module:
            (site / f"{module}.py").write_text(dedent(source))
        clear()

    clear()
    yield do
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    clear()


def failure(name: str) -> str:
    with pytest.raises(TransportLoadError) as caught:
        registry.load(name)
    assert isinstance(caught.value, ImportError)
    return str(caught.value)


def python(code: str, site: Path) -> Any:
    """Run `code` in a fresh Python that has `site` and return the JSON that it prints."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(site), ROOT, environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", dedent(code)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_load_returns_the_class_and_remembers_it(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("dist-a", module="plugin_a", fake="plugin_a:Good")
    found = registry.load("fake")
    assert issubclass(found, Transport)
    assert registry.resolve("fake") == "plugin_a:Good"
    monkeypatch.setattr("importlib.metadata.entry_points", None)
    assert registry.load("fake") is found
    assert registry.load_target("plugin_a:Good") is found


def test_an_unknown_name_is_answered_with_the_installed_ones_and_the_nearest(install: Install) -> None:
    install("dist-a", fakeone="missing:X", other="missing:Y")
    with pytest.raises(UnknownTransport, match=r"'fakeon'; installed: .*fakeone.*other.*; the nearest is fakeone$"):
        registry.load("fakeon")
    assert issubclass(UnknownTransport, ValueError)
    assert issubclass(UnknownTransport, FiberqError)


def test_a_name_that_is_like_no_installed_one_is_answered_with_no_nearest() -> None:
    with pytest.raises(UnknownTransport, match=r"'rabbits'; installed: ((?!nearest).)*$"):
        registry.load("rabbits")
    with pytest.raises(UnknownTransport, match=r"'ZMQ'; installed: .*; the nearest is zmq$"):
        registry.load("ZMQ")


def test_without_any_plug_in_the_error_says_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clear()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    with pytest.raises(UnknownTransport, match="none is installed"):
        registry.load("zmq")


def test_a_name_in_two_distributions_is_refused_naming_both(install: Install) -> None:
    install("dist-a", "1.2", module="plugin_a", fake="plugin_a:Good")
    install("dist-b", "3.4", module="plugin_b", fake="plugin_b:Good")
    found = failure("fake")
    assert "dist-a 1.2 (plugin_a:Good)" in found
    assert "dist-b 3.4 (plugin_b:Good)" in found
    assert "uninstall" in found
    assert not {"plugin_a", "plugin_b"} & set(sys.modules)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("assert False, 'no luck'", "AssertionError: no luck"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: "),
        ("", "AttributeError: module 'plugin_a' has no attribute 'Good'"),
    ],
)
def test_an_import_that_fails_is_an_error_with_plug_in_distribution_and_cause(
    install: Install, source: str, cause: str
) -> None:
    install("dist-a", "1.2", module="plugin_a", source=source, fake="plugin_a:Good")
    found = failure("fake")
    assert "the transport 'fake' (plugin_a:Good, from dist-a 1.2)" in found
    assert cause in found


def test_ctrl_c_during_an_import_stays_what_it_is(install: Install) -> None:
    install("dist-a", module="plugin_a", source="raise KeyboardInterrupt", fake="plugin_a:Good")
    with pytest.raises(KeyboardInterrupt):
        registry.load("fake")


def test_a_first_party_transport_without_pynng_says_what_to_install(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynng", None)
    install("dist-a", module="fiberq_fake", source="import pynng", fake="fiberq_fake:Good")
    assert 'pip install "fiberq[nng]"' in failure("fake")
    install("dist-b", module="plugin_b", source="import pynng", third="plugin_b:Good")
    assert "fiberq[nng]" not in failure("third")


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ("Good = 7", "7 is no subclass of fiberq.abc.Transport"),
        ("class Good: pass", "is no subclass of fiberq.abc.Transport"),
        ("Good = Good()", "is no subclass of fiberq.abc.Transport"),
        ("Good.api_version = 99", "its api_version is 99, and this fiberq has 1: install a release"),
        ("class Good(Transport): capabilities = Capabilities(('ipc',))", "define bind_any, client, close, server"),
        ("del Good.capabilities", "set the class attribute capabilities"),
        ("Good.capabilities = {'schemes': ['ipc']}", "set the class attribute capabilities"),
        ("Good.capabilities = Capabilities('ipc')", "capabilities.schemes must be a tuple"),
        ("Good.capabilities = Capabilities(())", "capabilities.schemes must be a tuple"),
        ("Good.capabilities = Capabilities(('ipc://',))", "capabilities.schemes must be a tuple"),
        ("Good.capabilities = Capabilities(('ipc',), forks=1)", "capabilities.forks must be True or False, not 1"),
    ],
)
def test_an_unusable_class_is_refused_with_what_its_author_has_to_change(
    install: Install, change: str, advice: str
) -> None:
    install("dist-a", "1.2", module="plugin_a", source=f"{dedent(GOOD)}\n{change}\n", fake="plugin_a:Good")
    found = failure("fake")
    assert "the transport 'fake' (plugin_a:Good, from dist-a 1.2) is not usable: " in found
    assert advice in found


def test_a_constructor_that_raises_is_an_error_with_plug_in_and_advice(install: Install) -> None:
    source = f"{dedent(GOOD)}    def __init__(self, port): pass\n"
    install("dist-a", "1.2", module="plugin_a", source=source, fake="plugin_a:Good")
    with pytest.raises(TransportLoadError) as caught:
        registry.make(registry.resolve("fake"))
    assert "the transport 'fake' (plugin_a:Good, from dist-a 1.2) cannot be made: TypeError: " in str(caught.value)
    assert "its constructor takes no arguments" in str(caught.value)


def test_available_makes_one_of_each_and_closes_it(install: Install) -> None:
    source = f"{dedent(GOOD)}    def __init__(self): self.told = told.append('made')\n"
    source = source.replace("def close(self): pass", "def close(self): told.append('closed')") + "told = []\n"
    install("dist-a", "1.2", module="plugin_a", source=source, fake="plugin_a:Good")
    assert [plugin.error for plugin in registry.available() if plugin.name == "fake"] == [None]
    assert importlib.import_module("plugin_a").told == ["made", "closed"]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("__init__(self): raise SystemExit(3)", "cannot be made: SystemExit: 3; its constructor"),
        ("__init__(self): 1 / 0", "cannot be made: ZeroDivisionError: division by zero; its constructor"),
        ("close(self): 1 / 0", "cannot be closed: ZeroDivisionError: division by zero"),
    ],
)
def test_available_says_what_is_wrong_with_one_that_cannot_be_made_or_closed(
    install: Install, method: str, told: str
) -> None:
    install("dist-a", "1.2", module="plugin_a", source=f"{dedent(GOOD)}    def {method}\n", fake="plugin_a:Good")
    install("dist-b", module="plugin_b", fake_other="plugin_b:Good")
    found = {plugin.name: plugin for plugin in registry.available()}
    assert f"the transport 'fake' (plugin_a:Good, from dist-a 1.2) {told}" in (found["fake"].error or "")
    assert found["fake"].capabilities is None
    assert found["fake_other"].error is None


@pytest.mark.parametrize("make", [registry.make_server, registry.make_client])
@pytest.mark.parametrize("base", ["abc", "object"])
def test_a_socket_that_lacks_methods_is_an_error_that_says_which(install: Install, make: Any, base: str) -> None:
    source = """
        from fiberq.abc import Capabilities, ClientSocket, ServerSocket, Transport
        class Server(ServerSocket):
            def recv(self, timeout): pass
            def send(self, peer, parts): pass
        class Client(ClientSocket):
            def recv(self, timeout): pass
            def send(self, parts): pass
            def fileno(self): pass
        class Good(Transport):
            capabilities = Capabilities(("ipc",))
            def server(self, credentials=None): return Server()
            def client(self, credentials=None): return Client()
            def bind_any(self, directory): return ()
            def close(self): pass
    """
    if base == "object":
        source = source.replace("(ServerSocket)", "").replace("(ClientSocket)", "")
    install("dist-a", "1.2", module="plugin_a", source=source, fake="plugin_a:Good")
    target = registry.resolve("fake")
    with pytest.raises(TransportLoadError) as caught:
        make(target, registry.make(target))
    missing = "bind, close in Server" if make is registry.make_server else "close, connect in Client"
    assert f"the transport 'fake' (plugin_a:Good, from dist-a 1.2) is not usable: define {missing}" in str(caught.value)


def test_another_type_error_of_a_socket_stays_what_it_is(install: Install) -> None:
    install(
        "dist-a",
        module="plugin_a",
        source=dedent(GOOD).replace("raise NotImplementedError", "1 + ''"),
        a="plugin_a:Good",
    )
    with pytest.raises(TypeError, match="unsupported operand"):
        registry.make_server("plugin_a:Good", registry.make("plugin_a:Good"))


def test_available_lists_every_plug_in_and_the_broken_break_no_other(install: Install) -> None:
    install("dist-a", "1.2", module="plugin_a", fake_good="plugin_a:Good", fake_assert="plugin_c:Good")
    install("dist-b", "3.4", module="plugin_b", fake_exit="plugin_b:Good", source="raise SystemExit")
    install("dist-c", module="plugin_c", source="assert False", fake_twice="plugin_a:Good", fake_seven="plugin_d:seven")
    install("dist-d", module="plugin_d", source="seven = 7", fake_twice="plugin_d:Good")
    found = [plugin for plugin in registry.available() if plugin.name.startswith("fake")]
    assert [(plugin.name, plugin.distribution, plugin.version, plugin.target) for plugin in found] == [
        ("fake_assert", "dist-a", "1.2", "plugin_c:Good"),
        ("fake_exit", "dist-b", "3.4", "plugin_b:Good"),
        ("fake_good", "dist-a", "1.2", "plugin_a:Good"),
        ("fake_seven", "dist-c", "1.0", "plugin_d:seven"),
        ("fake_twice", "dist-c", "1.0", "plugin_a:Good"),
        ("fake_twice", "dist-d", "1.0", "plugin_d:Good"),
    ]
    by_name = {plugin.name: plugin for plugin in found}
    good = by_name.pop("fake_good")
    assert good.error is None
    assert good.capabilities == Capabilities(("ipc", "x+y"), forks=False)
    assert good.location == sys.modules["plugin_a"].__file__
    for name, words in {
        "fake_assert": "AssertionError",
        "fake_exit": "SystemExit",
        "fake_seven": "7 is no subclass",
        "fake_twice": "installed more than once",
    }.items():
        assert words in (by_name[name].error or "")
        assert by_name[name].capabilities is None


def test_available_sees_a_reinstalled_plug_in_at_once(install: Install) -> None:
    install("dist-a", module="plugin_a", fake="plugin_a:Missing")
    errors = [plugin.error for plugin in registry.available() if plugin.name == "fake"]
    assert len(errors) == 1
    assert errors[0]
    install("dist-a", module="plugin_a", fake="plugin_a:Good", fake_new="plugin_a:Good")
    found = {plugin.name: plugin.error for plugin in registry.available() if plugin.name.startswith("fake")}
    assert found == {"fake": None, "fake_new": None}


def test_a_distribution_without_metadata_still_has_a_usable_plug_in(install: Install, tmp_path: Path) -> None:
    install("dist-a", module="plugin_a", fake="plugin_a:Good")
    next((tmp_path / "site").glob("*.dist-info/METADATA")).write_text("")
    clear()
    assert registry.load("fake").__name__ == "Good"
    assert [plugin.distribution for plugin in registry.available() if plugin.name == "fake"] == [""]


def test_load_imports_no_other_plug_in_and_no_stevedore_and_load_target_not_even_the_metadata(
    install: Install, tmp_path: Path
) -> None:
    install("dist-a", module="plugin_a", fake="plugin_a:Good")
    install("dist-b", module="plugin_b", source="raise SystemExit", other="plugin_b:Good")
    imported = python(
        """
        import json, sys
        def imported():
            return [name for name in ("importlib.metadata", "plugin_b", "stevedore") if name in sys.modules]
        from fiberq import registry
        before = imported()
        registry.load_target("plugin_a:Good")
        after_load_target = imported()
        registry.load("fake")
        print(json.dumps([before, after_load_target, imported()]))
        """,
        tmp_path / "site",
    )
    assert imported == [[], [], ["importlib.metadata"]]


def test_only_the_registry_mentions_stevedore() -> None:
    mentions = [
        path.name for path in Path(ROOT, "fiberq").rglob("*.py") if "import ExtensionManager" in path.read_text()
    ]
    assert mentions == ["registry.py"]
    imports = [path.name for path in Path(ROOT, "fiberq").rglob("*.py") if "import stevedore" in path.read_text()]
    assert imports == []


def test_a_url_that_is_given_as_a_transport_is_not_shown() -> None:
    with pytest.raises(UnknownTransport) as raised:
        registry.resolve("zmq+tcp://KEY@127.0.0.1:9000")
    assert "KEY" not in str(raised.value)
