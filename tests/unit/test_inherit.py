"""What `fiberq.inherit` hands to descendants, under each way to start one. Each test runs a script of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import fiberq
from fiberq import inherit

ROOT = str(Path(fiberq.__path__[0]).parent)
METHODS = ["spawn", "forkserver", "fork"]
HELPERS = """
import json, multiprocessing, os, subprocess, sys
from fiberq import inherit

def report(pipe, *names):
    pipe.send([inherit.get(name) for name in names])

def ask(*names, target=report):
    "Start a child and return what it reports."
    process, pipe = prepare(*names, target=target)
    return start(process, pipe)

def prepare(*names, target=report):
    mine, its = multiprocessing.Pipe()
    return multiprocessing.Process(target=target, args=(its, *names)), mine

def start(process, pipe):
    process.start()
    assert pipe.poll(30), "the child did not answer"
    answer = pipe.recv()
    process.join(30)
    assert process.exitcode == 0
    return answer
"""


@pytest.fixture
def name():  # type: ignore[no-untyped-def]
    before = os.environ.get(inherit.VARIABLE)
    yield "test-inherit"
    inherit.drop("test-inherit")
    assert os.environ.get(inherit.VARIABLE) == before


def run(tmp_path: Path, body: str, *arguments: str, helpers: str = HELPERS, **variables: str) -> Any:
    """Run `body` as the main module of a fresh Python and return the JSON that it prints."""
    script = tmp_path / "script.py"
    script.write_text(helpers + dedent(body))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FIBERQ_")}
    environment["PYTHONPATH"] = os.pathsep.join([ROOT, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        env=environment | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_process_puts_it_gets_and_can_drop(name: str) -> None:
    assert inherit.get(name) is None
    assert inherit.get(name, 7) == 7
    inherit.put(name, {"a": [1, None]})
    assert inherit.get(name) == {"a": [1, None]}
    inherit.put(name, None)
    assert inherit.get(name, 7) is None
    inherit.drop(name)
    inherit.drop(name)
    assert inherit.get(name, 7) == 7


def test_what_json_cannot_hold_is_refused_and_changes_nothing(name: str) -> None:
    inherit.put(name, 1)
    with pytest.raises(TypeError):
        inherit.put(name, object())
    assert inherit.get(name) == 1
    assert json.loads(os.environ[inherit.VARIABLE])[name] == 1


def test_values_that_many_threads_put_at_once_all_reach_a_new_program(tmp_path: Path) -> None:
    assert (
        run(
            tmp_path,
            """
        import threading
        sys.setswitchinterval(1e-6)
        def work(number):
            for i in range(20):
                inherit.put(f"{number}.{i}", i)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        print(len(json.loads(os.environ["FIBERQ__INHERIT"])))
        """,
        )
        == 160
    )


def test_a_program_started_with_popen_gets_the_values_of_that_moment(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        child = [sys.executable, "-c", "from fiberq import inherit; print(inherit.get('x'))"]
        answers = []
        for value in "first", "second":
            inherit.put("x", value)
            answers.append(subprocess.check_output(child, text=True).strip())
        inherit.drop("x")
        answers.append(subprocess.check_output(child, text=True).strip())
        print(json.dumps(answers))
        """,
    ) == ["first", "second", "None"]


def test_a_damaged_variable_is_an_error_that_names_it(tmp_path: Path) -> None:
    for damaged in ("{", "[1]"):
        message = run(
            tmp_path,
            """
            try:
                inherit.get("x")
            except ValueError as error:
                print(json.dumps(str(error)))
            """,
            FIBERQ__INHERIT=damaged,
        )
        assert "FIBERQ__INHERIT" in message
        assert "unset it" in message


@pytest.mark.parametrize("method", METHODS)
def test_children_get_the_values_of_the_moment_in_which_they_start(tmp_path: Path, method: str) -> None:
    assert run(
        tmp_path,
        """
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            inherit.put("gone", 0)
            answers = [ask("x", "gone")]  # from here on a fork server runs, with the environment of this moment
            inherit.drop("gone")
            answers.append(ask("x", "gone"))
            inherit.put("x", 1)
            answers.append(ask("x", "y"))
            made_before = prepare("x", "y")
            inherit.put("x", 2)
            inherit.put("y", 3)
            answers.append(start(*made_before))
            inherit.drop("x")
            answers.append(ask("x", "y"))
            print(json.dumps(answers))
        """,
        method,
    ) == [[None, 0], [None, None], [1, None], [2, 3], [None, 3]]


@pytest.mark.parametrize("method", METHODS)
def test_a_process_that_was_made_before_the_first_put_gets_it(tmp_path: Path, method: str) -> None:
    assert run(
        tmp_path,
        """
        def nothing(pipe):
            pipe.send(None)
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            ask(target=nothing)
            made_before = prepare("x")
            inherit.put("x", 1)
            print(json.dumps(start(*made_before)))
        """,
        method,
    ) == [1]


@pytest.mark.parametrize("method", METHODS)
def test_values_put_before_multiprocessing_is_imported_reach_children(tmp_path: Path, method: str) -> None:
    assert run(
        tmp_path,
        """
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            answers = [ask("x", "y")]
            inherit.put("y", 2)
            print(json.dumps([*answers, ask("x", "y")]))
        """,
        method,
        helpers="""
import sys
from fiberq import inherit
if __name__ == "__main__":
    assert "multiprocessing" not in sys.modules
    inherit.put("x", 1)
    assert "multiprocessing" not in sys.modules
"""
        + HELPERS,
    ) == [[1, None], [1, 2]]


@pytest.mark.parametrize("method", METHODS)
def test_a_childs_own_value_wins_there_and_below_and_stays_unknown_above(tmp_path: Path, method: str) -> None:
    assert run(
        tmp_path,
        """
        def child(pipe, *names):
            inherit.put("x", "child")
            pipe.send([inherit.get("x"), inherit.get("y"), ask(*names)])
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            inherit.put("x", "parent")
            inherit.put("y", "parent")
            print(json.dumps([ask("x", "y", target=child), inherit.get("x"), ask("x")]))
        """,
        method,
    ) == [["child", "parent", ["child", "parent"]], "parent", ["parent"]]


@pytest.mark.parametrize("method", METHODS)
def test_a_program_that_a_child_starts_gets_what_the_child_sees(tmp_path: Path, method: str) -> None:
    assert (
        run(
            tmp_path,
            """
        def child(pipe):
            inherit.get("x")
            code = "from fiberq import inherit; print(inherit.get('x'))"
            pipe.send(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            inherit.put("x", "before the fork server started")
            ask("x")
            inherit.put("x", "newest")
            print(json.dumps(ask(target=child)))
        """,
            method,
        )
        == "newest"
    )


@pytest.mark.parametrize("method", METHODS)
def test_running_the_main_module_again_does_not_undo_what_the_parent_put_later(tmp_path: Path, method: str) -> None:
    assert run(
        tmp_path,
        """
        inherit.put("x", "the script's default")
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            inherit.put("x", "from the command line")
            answers = [ask("x")]
            inherit.put("x", "later")
            print(json.dumps([*answers, ask("x")]))
        """,
        method,
    ) == [["from the command line"], ["later"]]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_only_a_childs_set_up_puts_is_kept(tmp_path: Path, method: str) -> None:
    assert run(
        tmp_path,
        """
        if __name__ == "__mp_main__":
            inherit.put("mine", 1)
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            inherit.put("x", 2)
            print(json.dumps(ask("mine", "x")))
        """,
        method,
    ) == [1, 2]


def test_a_fork_while_another_thread_puts_leaves_the_child_able_to_put(tmp_path: Path) -> None:
    assert (
        run(
            tmp_path,
            """
        import threading, time
        stop = threading.Event()
        def work():
            while not stop.is_set():
                inherit.put("x", "x" * 1000)
        thread = threading.Thread(target=work)
        thread.start()
        children = []
        for _ in range(40):
            child = os.fork()
            if child == 0:
                inherit.put("y", 1)
                os._exit(0)
            children.append(child)
        stop.set()
        thread.join()
        deadline = time.monotonic() + 20
        while children and time.monotonic() < deadline:
            children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
        [os.kill(child, 9) for child in children]
        print(len(children))
        """,
        )
        == 0
    )


def test_importing_and_using_it_does_not_import_multiprocessing_and_importing_it_not_even_json(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        import sys
        before = set(sys.modules)
        from fiberq import inherit, settings
        heavy = {"json", "multiprocessing", "difflib", "tomli", "tomllib", "importlib.metadata"}
        loaded = sorted(heavy & (set(sys.modules) - before))
        inherit.put("x", 1)
        import json
        print(json.dumps([loaded, "multiprocessing" in sys.modules]))
        """,
        helpers="",
    ) == [[], False]
