"""What is loaded when: an import costs little, and a plug-in is loaded by name where it is used."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import fiberq
from fiberq import Pipe, SimpleQueue, ZConnection, config
from fiberq.errors import UnknownTransport

LOADED = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules} | set(sys.modules)))"


def loaded_after(code: str, *args: str) -> set[str]:
    """The modules that a new interpreter has after it ran `code`."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LOADED}", *args], capture_output=True, text=True, timeout=20, check=True
    )
    return set(ran.stdout.split())


def test_import_fiberq_loads_no_transport_and_no_stevedore_and_no_link() -> None:
    loaded = loaded_after("import fiberq")
    assert "fiberq" in loaded
    unwanted = {
        "zmq",
        "pynng",
        "stevedore",
        "fiberq_zmq",
        "fiberq_nng",
        "fiberq.link",
        "fiberq.registry",
        "cloudpickle",
    }
    assert not loaded & unwanted


def test_reading_a_setting_loads_no_transport() -> None:
    loaded = loaded_after("import fiberq; fiberq.config.use_push_queue = True; fiberq.config.transport")
    assert not loaded & {"zmq", "pynng", "stevedore", "fiberq.link"}


def test_core_imports_no_transport_library() -> None:
    files = list(Path(fiberq.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    files.remove(Path(fiberq.__file__).parent / "bench" / "peers.py")  # which measures those libraries beside fiberq
    for file in files:
        for statement in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                names = [statement.module or ""]
            for name in names:
                assert name.partition(".")[0] not in {"zmq", "pynng", "fiberq_zmq", "fiberq_nng"}, file
                assert name.partition(".")[0] != "stevedore" or file.name == "registry.py", file
                assert not name.startswith("fiberq.bench") or "bench" in (file.parent.name, file.stem), file


def test_a_received_handle_loads_its_transport_without_discovery(transport: str) -> None:
    q: SimpleQueue[object] = SimpleQueue()
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])).put(('here', 1), sync=True)"
    loaded = loaded_after(code, pickle.dumps(q).hex())
    assert q.get(timeout=20) == ("here", 1)
    assert "stevedore" not in loaded
    assert {"fiberq_zmq", "fiberq_nng", "fiberq_stream"} & loaded == {f"fiberq_{transport}"}
    assert ("pynng" if transport == "zmq" else "zmq") not in loaded


def test_an_unknown_transport_is_refused_by_name() -> None:
    config.transport = "zmqq"
    try:
        with pytest.raises(UnknownTransport, match="zmq"):
            SimpleQueue()
        with pytest.raises(UnknownTransport, match="zmq"):
            Pipe()
        with pytest.raises(UnknownTransport, match="zmq"):
            ZConnection(("r", "tcp://127.0.0.1:1"))
    finally:
        del config.transport
