"""``fiberq new-transport``: what it writes, what it refuses, and that its work is a plug-in without a defect."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiberq_contract
import pytest

import fiberq
from fiberq import registry
from fiberq.abc import Credentials
from fiberq.cli import main, new_transport
from fiberq.errors import AddressError, ClosedError, TransportError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOTS = [str(Path(module.__path__[0]).parent) for module in (fiberq, fiberq_contract)]
CACHES = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}


def files(directory: Path) -> set[str]:
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not CACHES & set(path.parts)}


def generate(directory: Path, name: str) -> Path:
    assert main(["new-transport", name, "--directory", str(directory)]) == 0
    return directory / f"fiberq-{name}"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A project that was generated, with the metadata beside it that installing it would make."""
    site = generate(tmp_path, "my-bus2")
    project: dict[str, Any] = tomllib.loads((site / "pyproject.toml").read_text())["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`site` on the path of this process."""
    monkeypatch.syspath_prepend(site)
    caches = (registry.resolve, registry.load_target)
    for each in caches:
        each.cache_clear()
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "fiberq_my_bus2"]:
        del sys.modules[name]
    for each in caches:
        each.cache_clear()


@pytest.mark.parametrize(
    ("name", "module", "class_name"),
    [
        ("unheard", "fiberq_unheard", "Unheard"),
        ("my-bus2", "fiberq_my_bus2", "MyBus2"),
        ("a_b-c", "fiberq_a_b_c", "ABC"),
        ("blanks", "fiberq_blanks", "Blanks"),
    ],
)
def test_the_project_bears_the_name_everywhere(tmp_path: Path, name: str, module: str, class_name: str) -> None:
    project = generate(tmp_path, name)
    assert files(project) == {path.replace("fiberq_blank", module) for path in new_transport.FILES}
    for path in files(project):
        text = (project / path).read_text()
        assert not re.search("blank(?!s)", text.lower())
        if path.endswith(".py"):
            compile(text, path, "exec")
    table = tomllib.loads((project / "pyproject.toml").read_text())
    assert table["project"]["name"] == f"fiberq-{name}"
    assert table["project"]["entry-points"] == {"fiberq.transports": {name: f"{module}:{class_name}Transport"}}
    assert table["project"]["optional-dependencies"] == {"test": ["fiberq[contract]"]}
    assert table["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [module]
    assert f"def test_{module.removeprefix('fiberq_')}_keeps" in (project / "tests/test_contract.py").read_text()
    readme = (project / "README.md").read_text()
    assert readme.index(f"fiberq contract {name}") < readme.index("pytest --pyargs")


def test_every_file_of_the_blank_project_is_written() -> None:
    assert files(new_transport.BLANK) == set(new_transport.FILES)


def test_the_next_steps_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    generate(spaced, "unheard")
    shown = capsys.readouterr().out
    assert f"cd '{spaced}/fiberq-unheard'" in shown
    assert "fiberq contract unheard" in shown


def test_without_a_directory_the_project_is_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-transport", "unheard"]) == 0
    assert os.listdir(tmp_path) == ["fiberq-unheard"]


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a/b", "../a", "2a", "-a", "_a", "a-", "a--b", "a.b", "Unheard", "mïne", "unheard\n", "fiberq-a"],
)
def test_a_name_that_will_not_do_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["new-transport", f"--directory={tmp_path}", "--", name])
    assert "NAME: " in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"), [("zmq", "'zmq' is installed already"), ("contract", "fiberq_contract is installed already")]
)
def test_a_name_that_is_taken_is_refused(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-transport", name, "--directory", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_what_is_there_already_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "fiberq-unheard"
    project.mkdir()
    (project / "README.md").write_text("unheard")
    (tmp_path / "fiberq-yours").write_text("a file")
    for name in ("unheard", "yours"):
        assert main(["new-transport", name, "--directory", str(tmp_path)]) == 2
        assert f"fiberq-{name} is there already, and nothing was changed" in capsys.readouterr().err
    assert files(tmp_path) == {"fiberq-unheard/README.md", "fiberq-yours"}
    assert (project / "README.md").read_text() == "unheard"


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-transport", "unheard", "--directory", str(tmp_path / "missing")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_transport_is_listed_without_a_defect(installed: Path) -> None:
    (plugin,) = [each for each in registry.available() if each.name == "my-bus2"]
    assert plugin.error is None
    assert plugin.distribution == "fiberq-my-bus2"
    assert plugin.location == str(installed / "fiberq_my_bus2" / "__init__.py")
    assert plugin.capabilities is not None
    assert plugin.capabilities.schemes == ("ipc", "tcp")


@pytest.mark.usefixtures("installed")
def test_what_is_not_written_says_so_and_the_rest_is_right(tmp_path: Path) -> None:
    transport = registry.load("my-bus2")()
    server, client = transport.server(), transport.client()
    for address in transport.bind_any(str(tmp_path)):
        with pytest.raises(TransportError, match=r"^my-bus2: Server.bind is not written yet; its rules: ADDR$"):
            server.bind(address)
    for address in ("garbage", "nosuch://x", "tcp://[1]:1", "tcp://host", f"ipc://{'x' * 200}"):
        with pytest.raises(AddressError, match=r"^my-bus2: "):
            client.connect(address, 1)
    with pytest.raises(TransportError, match="not written yet"):
        client.connect("tcp://[::1]:65535", 1)
    with pytest.raises(TransportError, match="credentials"):
        transport.server(Credentials(bytes(32)))
    transport.close()
    with pytest.raises(ClosedError):
        server.recv(0)
    with pytest.raises(ClosedError):
        client.fileno()


def test_the_contract_says_what_to_write(site: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *ROOTS])}
    command = [sys.executable, "-m", "fiberq_contract", "my-bus2", "--quick", "--rule", "CAP-2", "--rule", "ADDR-5"]
    done = subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "my-bus2: Server.bind is not written yet" in done.stdout
    assert "1 holds, 1 broken" in done.stdout
