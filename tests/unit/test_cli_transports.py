"""The command ``fiberq`` and its subcommand ``transports``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fiberq
from fiberq import cli
from fiberq.abc import Capabilities
from fiberq.cli import main, transports
from fiberq.errors import FiberqError
from fiberq.registry import Plugin

ROOT = str(Path(fiberq.__path__[0]).parent)
LONG = "/a/very/long/directory" * 5
GOOD = Plugin("good", "good_module:T", "dist-a", "1.2", f"{LONG}/good.py", Capabilities(("ipc", "tcp"), True), None)
BAD = Plugin(
    "bad", "bad_module:T", "dist-b", "3.4", LONG, None, 'cannot be imported: pip install "x[nng]" ' + "y" * 300
)


def pretend(monkeypatch: pytest.MonkeyPatch, *plugins: Plugin) -> None:
    monkeypatch.setattr(transports, "available", lambda: list(plugins))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([ROOT, environment.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_the_table_says_what_is_installed_where_from_and_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, GOOD)
    assert main(["transports"]) == 0
    shown = capsys.readouterr().out
    for words in ("good", "dist-a 1.2", "good_module:T", "ipc://, tcp://, authenticates, forks"):
        assert words in shown
    assert "cannot be used" not in shown


def test_one_that_cannot_be_used_is_shown_with_its_whole_error_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, BAD, GOOD)
    assert main(["transports"]) == 1
    shown = capsys.readouterr().out
    assert BAD.error is not None
    assert BAD.error in shown
    assert "cannot be used" in shown
    assert "good_module:T" in shown


def test_duplicates_share_one_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, BAD, BAD)
    assert main(["transports"]) == 1
    assert capsys.readouterr().out.count("cannot be imported") == 1


def test_json_holds_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, BAD, GOOD)
    assert main(["transports", "--json"]) == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert (bad["name"], bad["error"], bad["capabilities"]) == ("bad", BAD.error, None)
    assert (good["target"], good["distribution"], good["version"]) == ("good_module:T", "dist-a", "1.2")
    assert good["capabilities"]["schemes"] == ["ipc", "tcp"]
    assert good["error"] is None


def test_a_fiberq_error_is_one_line_on_stderr_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_arguments: object) -> int:
        raise FiberqError("it did not work")

    command = types.ModuleType("fake_command")
    command.run = run  # type: ignore[attr-defined]
    command.add_arguments = lambda _parser: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_command", command)
    monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_command", "fails"))
    assert main(["fake"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "fiberq: it did not work\n")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["transports", "--nonsense"]])
def test_wrong_arguments_exit_with_2_and_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: fiberq" in capsys.readouterr().err


def test_version_and_help_work_as_a_module_and_help_names_each_subcommand() -> None:
    version = python("-m", "fiberq", "--version")
    assert version.returncode == 0
    assert version.stdout.startswith("fiberq ")
    shown = python("-m", "fiberq", "--help")
    assert shown.returncode == 0
    for name, (_module, help_line) in cli.COMMANDS.items():
        assert name in shown.stdout
        assert help_line.partition(",")[0] in shown.stdout


def test_a_real_run_prints_json_that_agrees_with_its_status() -> None:
    done = python("-m", "fiberq", "transports", "--json")
    assert done.returncode == int(any(plugin["error"] for plugin in json.loads(done.stdout)))
    assert done.stderr == ""


def test_help_imports_no_subcommand() -> None:
    done = python(
        "-c",
        "import sys\n"
        "from fiberq.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name in ('fiberq.cli.transports', 'rich', 'stevedore')])",
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_contract_without_pytest_says_what_to_install() -> None:
    code = "import sys; sys.modules['pytest'] = None; from fiberq.cli import main; sys.exit(main(['contract', 'zmq']))"
    done = python("-c", code)
    assert done.returncode == 2
    assert done.stderr == 'fiberq: the module pytest is missing: pip install "fiberq[contract]"\n'
