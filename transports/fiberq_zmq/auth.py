"""Credentials as CURVE keys, and the ZAP handler that admits exactly one client key. Not who may use which queue."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import zmq
import zmq.backend
from zmq.utils import z85

from fiberq.abc import Credentials

__all__ = ["USER", "KeyPair", "admit", "client_options", "server_options"]

USER = "fiberq"
"""What libzmq calls a client that was admitted. A message from one without it is dropped."""

DOMAIN = b"fiberq"


class KeyPair(NamedTuple):
    public: bytes
    secret: bytes


def _key_pair(credentials: Credentials, role: bytes) -> KeyPair:
    from hashlib import blake2b  # only credentials need it, and it is slow to import

    key = blake2b(credentials.secret, digest_size=32, person=b"fiberq-zmq-1", salt=role).digest()
    secret = z85.encode(key)
    return KeyPair(zmq.backend.curve_public(secret), secret)


def client_options(credentials: Credentials) -> dict[int, bytes]:
    """The socket options of a client that has these credentials."""
    own = _key_pair(credentials, b"client")
    return {
        zmq.CURVE_SERVERKEY: _key_pair(credentials, b"server").public,
        zmq.CURVE_PUBLICKEY: own.public,
        zmq.CURVE_SECRETKEY: own.secret,
    }


def server_options(credentials: Credentials) -> dict[int, int | bytes]:
    """The socket options of a server that has these credentials; `admit` must run before it binds.

    Without a handler libzmq admits every key, unless both a domain is set and its use is enforced.
    """
    return {
        zmq.CURVE_SERVER: 1,
        zmq.CURVE_SECRETKEY: _key_pair(credentials, b"server").secret,
        zmq.ZAP_DOMAIN: DOMAIN,
        zmq.ZAP_ENFORCE_DOMAIN: 1,
    }


def admit(context: zmq.backend.Context, credentials: Credentials) -> None:
    """Answer this context's authentication requests, in a thread, until the context is terminated."""
    socket = zmq.backend.Socket(context, zmq.REP)
    socket.set(zmq.LINGER, 0)
    socket.bind("inproc://zeromq.zap.01")
    allowed = z85.decode(_key_pair(credentials, b"client").public)
    threading.Thread(target=_answer, args=(socket, allowed), name="fiberq-zmq-zap", daemon=True).start()


def _answer(socket: zmq.backend.Socket, allowed: bytes) -> None:
    try:
        while True:
            request = _receive(socket)
            # version, request id, domain, address, routing id, mechanism, key
            right = len(request) == 7 and request[5] == b"CURVE" and request[2] == DOMAIN and request[6] == allowed
            status, text, user = (b"200", b"OK", USER.encode()) if right else (b"400", b"not admitted", b"")
            for part in (b"1.0", request[1], status, text, user):
                socket.send(part, zmq.SNDMORE)
            socket.send(b"")
    except zmq.ContextTerminated:
        pass
    finally:
        socket.close()


def _receive(socket: zmq.backend.Socket) -> list[Any]:
    parts = [socket.recv()]
    while socket.get(zmq.RCVMORE):
        parts.append(socket.recv())
    return parts
