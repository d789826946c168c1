"""A transport whose sockets are not finished: what its user is told, on the node's side and on his own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SICK = """
from fiberq_stream import StreamTransport
from fiberq.abc import ClientSocket, ServerSocket

class Server(ServerSocket):
    pass

class Client(ClientSocket):
    def connect(self, address, timeout): pass

class NoServer(StreamTransport):
    def server(self, credentials=None): return Server()

class NoClient(StreamTransport):
    def client(self, credentials=None): return Client()
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no-server", "(sick:NoServer, from sick 1) is not usable: define bind, close, recv, send in Server"),
        ("no-client", "(sick:NoClient, from sick 1) is not usable: define close, fileno, recv, send in Client"),
    ],
)
def test_a_socket_without_all_methods_is_an_error_that_names_the_plug_in_and_the_methods(
    tmp_path: Path, name: str, told: str
) -> None:
    metadata = tmp_path / "sick-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sick\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[fiberq.transports]\nno-server = sick:NoServer\nno-client = sick:NoClient\n"
    )
    (tmp_path / "sick.py").write_text(SICK)
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
    ran = subprocess.run(
        [sys.executable, "-c", "from fiberq import SimpleQueue; SimpleQueue()"],
        env={**os.environ, "PYTHONPATH": path, "FIBERQ_TRANSPORT": name},
        capture_output=True,
        text=True,
        timeout=50,
    )
    last = ran.stderr.splitlines()[-1]
    assert f"the transport '{name}' {told}" in last
    assert ran.stderr.count("Traceback") == 1 + ran.stderr.count("direct cause")
