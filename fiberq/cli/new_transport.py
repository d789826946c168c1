"""``fiberq new-transport NAME``: the project of a new transport, ready to be installed, tested and written.

The project is the directory ``blank`` beside this file, with another name: a transport called ``blank``, which is
linted and type-checked as it stands.
"""

from __future__ import annotations

import argparse
import re
import shlex
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from ..errors import FiberqError
from ..registry import GROUP

__all__ = ["add_arguments", "run"]

BLANK = Path(__file__).with_name("blank")
FILES = (
    "README.md",
    "pyproject.toml",
    "fiberq_blank/__init__.py",
    "fiberq_blank/address.py",
    "fiberq_blank/base.py",
    "fiberq_blank/client.py",
    "fiberq_blank/py.typed",
    "fiberq_blank/server.py",
    "tests/test_contract.py",
)
"""By name, because tools leave caches there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", type=_name, help="what its users will write: lower-case letters, digits, - and _"
    )
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, default=Path(), help="where fiberq-NAME is made; default: here"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the project and return 0. Raises `FiberqError` when the name is taken, or the directory is there."""
    name: str = arguments.name
    module = "fiberq_" + name.replace("-", "_")
    if name in entry_points(group=GROUP).names:
        raise FiberqError(f"a transport named {name!r} is installed already; `fiberq transports` says from where")
    if find_spec(module) is not None:
        raise FiberqError(f"a module named {module} is installed already; choose another name than {name!r}")
    project = arguments.directory / f"fiberq-{name}"
    try:
        project.mkdir()
        for path in FILES:
            target = project / _renamed(path, name)
            target.parent.mkdir(exist_ok=True)
            target.write_text(_renamed((BLANK / path).read_text("utf-8"), name), "utf-8")
    except FileExistsError:
        raise FiberqError(f"{project} is there already, and nothing was changed") from None
    except OSError as error:
        raise FiberqError(f"{project} cannot be written: {error}") from error
    print("A transport to fill in is written. Next:")
    print(f"  cd {shlex.quote(str(project))}")
    print('  pip install -e ".[test]"')
    print(f"  fiberq contract {name}")
    print("Its README.md says how to go on.")
    return 0


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name for a transport: write lower-case letters and digits, the first a letter, "
            "with single - or _ between them"
        )
    if re.match("fiberq[-_]", text):
        raise argparse.ArgumentTypeError(f"leave out the prefix of {text!r}: {text[7:]}")
    return text


def _renamed(text: str, name: str) -> str:
    """Return `text`, of the project ``blank``, as it is in the project `name`."""
    words = re.split("[-_]", name)
    new = {
        "fiberq_blank": "fiberq_" + "_".join(words),
        "test_blank": "test_" + "_".join(words),
        "Blank": "".join(word.capitalize() for word in words),
        "blank": name,
    }
    return re.sub("|".join(new), lambda found: new[found[0]], text)
