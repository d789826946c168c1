"""Where `fiberq.config` takes a setting from, and what it says of a wrong one."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import fiberq
from fiberq import inherit, settings
from fiberq.errors import ConfigError, FiberqError
from fiberq.settings import Config, UnknownSettingError, config

ROOT = str(Path(fiberq.__path__[0]).parent)
KEYS = list(Config.__annotations__)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory of a process in which nothing is set yet."""
    before = os.environ.get(inherit.VARIABLE)
    for name in list(os.environ):
        if name.startswith("FIBERQ_") and name != inherit.VARIABLE:
            monkeypatch.delenv(name)
    forget(monkeypatch)
    work = tmp_path / "project" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    yield work
    for key in KEYS:
        delattr(config, key)
    assert os.environ.get(inherit.VARIABLE) == before


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next read the first of the process."""
    monkeypatch.setattr(settings, "_found", None)
    monkeypatch.setattr(settings, "_environment_names_checked", False)


def message(what: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        what(*arguments)
    return str(caught.value)


def read(key: str) -> Any:
    return getattr(config, key)


def run(directory: Path, body: str, *arguments: str, **variables: str) -> Any:
    """Run `body` as the main module of a fresh Python and return the JSON that it prints."""
    script = directory / "script.py"
    script.write_text(dedent(body))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FIBERQ_")}
    environment["PYTHONPATH"] = os.pathsep.join([ROOT, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        env=environment | variables,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_defaults_are_those_that_the_design_names() -> None:
    assert {key: read(key) for key in KEYS} == {
        "transport": "zmq",
        "use_push_queue": False,
        "node": None,
        "listen": None,
        "advertise": None,
        "allow_insecure": False,
        "connect_timeout": 5.0,
        "reconnect_timeout": 10.0,
        "heartbeat": 1.0,
        "session_grace": 2.0,
        "session_timeout": 30.0,
        "linger": 10.0,
        "spin_us": 100,
        "max_bytes": 1 << 30,
        "shared_memory": True,
        "max_connections": 4096,
        "max_deliveries": 5,
    }


def test_code_wins_over_environment_over_file_over_default(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (config.transport, config.source("transport")) == ("zmq", "default")
    (directory / "fiberq.toml").write_text('transport = "file"')
    forget(monkeypatch)
    assert (config.transport, config.source("transport")) == ("file", str(directory / "fiberq.toml"))
    monkeypatch.setenv("FIBERQ_TRANSPORT", "env")
    assert (config.transport, config.source("transport")) == ("env", "environment variable FIBERQ_TRANSPORT")
    config.transport = "code"
    assert (config.transport, config.source("transport")) == ("code", "assigned in code")
    del config.transport
    assert config.transport == "env"
    monkeypatch.delenv("FIBERQ_TRANSPORT")
    assert config.transport == "file"


def test_an_assigned_none_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERQ_NODE", "tcp://10.0.0.1:9000")
    config.node = None
    assert config.node is None
    assert config.source("node") == "assigned in code"


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", "OFF", " no "])
def test_these_words_in_the_environment_mean_false(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fiberq.toml").write_text("use_push_queue = true")
    monkeypatch.setenv("FIBERQ_USE_PUSH_QUEUE", word)
    assert config.use_push_queue is False


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "True", "ON"])
def test_these_words_in_the_environment_mean_true(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERQ_USE_PUSH_QUEUE", word)
    assert config.use_push_queue is True


def test_numbers_and_texts_in_the_environment_get_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERQ_LINGER", "3")
    monkeypatch.setenv("FIBERQ_SPIN_US", "0")
    monkeypatch.setenv("FIBERQ_NODE", "")
    assert (config.linger, type(config.linger)) == (3.0, float)
    assert config.spin_us == 0
    assert config.node is None


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("use_push_queue", "maybe"),
        ("use_push_queue", ""),
        ("use_push_queue", "2"),
        ("transport", ""),
        ("linger", "nan"),
        ("linger", "inf"),
        ("linger", "-1"),
        ("linger", "soon"),
        ("spin_us", "1.5"),
        ("spin_us", "true"),
        ("max_bytes", "0"),
        ("max_deliveries", "-5"),
    ],
)
def test_a_wrong_value_in_the_environment_is_named_with_its_variable(
    key: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FIBERQ_{key.upper()}", text)
    for found in (message(read, key), message(config.validate)):
        assert found.startswith(f"{key} must be ")
        assert f"environment variable FIBERQ_{key.upper()}" in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transport", ""),
        ("transport", None),
        ("transport", b"zmq"),
        ("use_push_queue", 1),
        ("use_push_queue", "false"),
        ("node", 3),
        ("linger", True),
        ("linger", -0.5),
        ("linger", float("nan")),
        ("linger", float("inf")),
        ("linger", 10**400),
        ("linger", "3"),
        ("spin_us", True),
        ("spin_us", 1.0),
        ("spin_us", -1),
        ("max_bytes", 0),
        ("max_deliveries", None),
    ],
)
def test_assigning_a_wrong_type_is_refused_at_once_and_changes_nothing(key: str, value: object) -> None:
    before = read(key)
    found = message(setattr, config, key, value)
    assert found.startswith(f"{key} must be ")
    assert "assigned in code" in found
    assert message(lambda: config.update(connect_timeout=1, **{key: value})) == found
    assert read(key) == before
    assert config.source("connect_timeout") == "default"


def test_a_whole_number_is_good_for_seconds_and_becomes_a_float() -> None:
    config.linger = 3
    assert (config.linger, type(config.linger)) == (3.0, float)


def test_update_assigns_several() -> None:
    config.update(linger=1, transport="nng")
    assert (config.linger, config.transport) == (1.0, "nng")


@pytest.mark.parametrize(
    "use",
    [
        lambda: config.trnsport,  # type: ignore[attr-defined]
        lambda: setattr(config, "trnsport", "zmq"),
        lambda: delattr(config, "trnsport"),
        lambda: config.update(trnsport="zmq"),
        lambda: config.source("trnsport"),
    ],
)
def test_an_unknown_key_in_code_is_an_error_of_both_kinds_that_names_the_nearest(use: Any) -> None:
    with pytest.raises(UnknownSettingError, match=r"'trnsport'; the nearest is transport") as caught:
        use()
    assert isinstance(caught.value, AttributeError)
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, FiberqError)


def test_a_key_that_is_like_no_other_is_answered_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'xyzzy'; the settings are transport, " in message(lambda: config.update(xyzzy=1))
    monkeypatch.setenv("FIBERQ_XYZZY", "1")
    found = message(config.validate)
    assert "nearest" not in found
    assert "the settings are FIBERQ_TRANSPORT, " in found


def test_an_unknown_variable_is_an_error_at_the_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERQ_USE_PUSHQUEUE", "1")
    for what in (lambda: config.linger, lambda: config.source("linger"), config.validate):
        found = message(what)
        assert "FIBERQ_USE_PUSHQUEUE" in found
        assert "the nearest is FIBERQ_USE_PUSH_QUEUE" in found


def test_an_unknown_variable_that_was_set_after_the_first_read_is_found_by_validate_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert config.linger == 10
    monkeypatch.setenv("FIBERQ_linger", "1")
    assert config.linger == 10
    assert "FIBERQ_linger names no setting of fiberq; the nearest is FIBERQ_LINGER" in message(config.validate)


def test_variables_with_two_underscores_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERQ__ANYTHING", "1")
    config.validate()


def test_an_unknown_key_in_the_file_is_named_with_the_file_and_the_nearest(directory: Path) -> None:
    (directory / "fiberq.toml").write_text("max_byte = 5")
    for what in (lambda: config.transport, config.validate):
        found = message(what)
        assert str(directory / "fiberq.toml") in found
        assert "'max_byte'" in found
        assert "the nearest is max_bytes" in found


@pytest.mark.parametrize("line", ['linger = "3"', "linger = true", "linger = -1", "linger = nan", "linger = []"])
def test_a_wrong_type_in_the_file_is_named_with_the_file(directory: Path, line: str) -> None:
    (directory / "pyproject.toml").write_text(f"[tool.fiberq]\n{line}")
    found = message(read, "transport")
    assert found.startswith("linger must be a number of seconds")
    assert str(directory / "pyproject.toml") in found


def test_validate_finds_what_code_overrides(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.linger = 1
    config.transport = "nng"
    (directory / "fiberq.toml").write_text("linger = []")
    assert config.linger == 1
    assert "linger" in message(config.validate)
    (directory / "fiberq.toml").unlink()
    forget(monkeypatch)
    config.validate()
    monkeypatch.setenv("FIBERQ_TRANSPORT", "")
    assert "transport" in message(config.validate)


def test_the_nearest_directory_that_has_settings_counts_and_fiberq_toml_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = directory.parent

    def linger() -> float:
        forget(monkeypatch)
        return config.linger

    (parent.parent / "fiberq.toml").write_text("linger = 1")
    assert linger() == 1
    (parent / "pyproject.toml").write_text("[tool.fiberq]\nlinger = 2\n")
    assert linger() == 2
    (parent / "fiberq.toml").write_text("linger = 3")
    assert linger() == 3
    (directory / "pyproject.toml").write_text('[project]\nname = "user-of-fiberq"\n[tool.other]\n')
    assert linger() == 3
    (directory / "fiberq.toml").write_text("")
    assert linger() == 10


def test_the_file_is_looked_up_once(directory: Path) -> None:
    assert config.linger == 10
    (directory / "fiberq.toml").write_text("linger = 3")
    assert config.linger == 10


def test_a_file_that_is_no_toml_is_an_error_unless_it_is_a_project_that_does_not_mention_fiberq(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "pyproject.toml").write_text("not toml")
    assert config.linger == 10
    for name, content in [("pyproject.toml", b"fiberq"), ("fiberq.toml", b"linger"), ("fiberq.toml", b"\xff")]:
        (directory / name).write_bytes(content)
        forget(monkeypatch)
        assert f"{directory / name} is not valid TOML" in message(read, "linger")


@pytest.mark.parametrize("content", ["tool = 1 # fiberq", "[tool]\nfiberq = 1"])
def test_a_project_whose_fiberq_is_no_table_is_an_error(directory: Path, content: str) -> None:
    (directory / "pyproject.toml").write_text(content)
    assert "must be a table" in message(read, "linger")


def test_a_strangers_file_in_a_directory_that_anyone_can_write_to_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "fiberq.toml").write_text('node = "tcp://evil:1"')
    directory.chmod(0o777)
    assert config.node == "tcp://evil:1"  # it is our own
    forget(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: (directory / "fiberq.toml").stat().st_uid + 1)
    if os.getuid() == 0:  # root may own what it likes: hand the file to a stranger
        os.chown(directory / "fiberq.toml", 12345, -1)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "is not trusted" in message(read, "node")
    directory.chmod(0o755)
    assert config.node == "tcp://evil:1"


def test_without_a_current_directory_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert config.linger == 10


def test_repr_shows_each_key_with_its_source_on_a_line_and_survives_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    config.transport = "nng"
    monkeypatch.setenv("FIBERQ_SPIN_US", "7")
    monkeypatch.setenv("FIBERQ_MAX_BYTES", "many")
    lines = repr(config).splitlines()
    assert [line.partition(" ")[0].rstrip(":") for line in lines] == KEYS
    assert "transport = 'nng' (assigned in code)" in lines
    assert "spin_us = 7 (environment variable FIBERQ_SPIN_US)" in lines
    assert "linger = 10.0 (default)" in lines
    assert "max_bytes: max_bytes must be a whole number" in repr(config)


def test_neither_repr_nor_an_error_shows_the_url_of_the_node(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.node = "tcp://127.0.0.1:9000/secret"
    assert "secret" not in repr(config)
    assert "node = '...' (assigned in code)" in repr(config)
    (directory / "fiberq.toml").write_text('node = ["tcp://127.0.0.1:9000/secret"]')
    forget(monkeypatch)
    assert "secret" not in message(config.validate)


@pytest.mark.parametrize("key", ["listen", "advertise", "transport", "linger", "spin_us"])
def test_a_url_that_is_given_to_another_setting_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FIBERQ_{key.upper()}", "zmq+tcp://KEY@127.0.0.1:9000")
    assert "127.0.0.1:9000" in repr(config)
    assert "KEY" not in repr(config)
    assert "KEY" not in message(lambda: setattr(config, "spin_us", "zmq+tcp://KEY@127.0.0.1:9000"))
    assert "KEY" not in message(lambda: setattr(config, "zmq+tcp://KEY@127.0.0.1:9000", 1))


def test_hasattr_copies_and_pickles_behave() -> None:
    assert hasattr(config, "transport")
    assert not hasattr(config, "trnsport")
    assert not hasattr(config, "__array__")
    assert copy.copy(config) is config
    assert copy.deepcopy(config) is config
    assert pickle.loads(pickle.dumps(config)) is config
    assert set(KEYS) <= set(dir(config))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_child_has_what_its_parent_assigned_and_its_own_assignment_wins(directory: Path, method: str) -> None:
    assert run(
        directory,
        """
        import json, multiprocessing, sys
        from fiberq.settings import config

        config.linger = 1  # runs once more in a child that is not forked

        def child(pipe):
            inherited = [config.transport, config.linger, config.spin_us, config.source("transport")]
            config.transport = "own"
            pipe.send([*inherited, config.transport])

        def ask():
            mine, its = multiprocessing.Pipe()
            process = multiprocessing.Process(target=child, args=(its,))
            process.start()
            assert mine.poll(30)
            process.join(30)
            return mine.recv()

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            answers = [ask()]
            config.update(transport="assigned", linger=2)
            answers.append(ask())
            del config.transport
            answers.append([config.transport, *ask()])
            print(json.dumps(answers))
        """,
        method,
        FIBERQ_TRANSPORT="env",
        FIBERQ_SPIN_US="7",
    ) == [
        ["env", 1, 7, "environment variable FIBERQ_TRANSPORT", "own"],
        ["assigned", 2, 7, "assigned in code", "own"],
        ["env", "env", 2, 7, "environment variable FIBERQ_TRANSPORT", "own"],
    ]


def test_a_python_started_with_popen_has_what_was_assigned(directory: Path) -> None:
    assert run(
        directory,
        """
        import json, subprocess, sys
        from fiberq.settings import config
        config.node = "tcp://10.0.0.1:9000"
        config.use_push_queue = True
        code = "from fiberq.settings import config; print(config.node, config.use_push_queue, config.linger)"
        print(json.dumps(subprocess.check_output([sys.executable, "-c", code], text=True).split()))
        """,
    ) == ["tcp://10.0.0.1:9000", "True", "10.0"]
