"""TLS with a pre-shared key: both sides prove that they have the credentials, and no certificate is needed."""

from __future__ import annotations

from typing import Any

from fiberq.abc import Credentials

from .native import Native

__all__ = ["protect_dialer", "protect_listener"]

_IDENTITY = b"fiberq"


def protect_listener(native: Native, listener: Any, credentials: Credentials) -> None:
    """Let only peers that have `credentials` through `listener`."""
    config = _config(native, native.lib.NNG_TLS_MODE_SERVER, credentials)
    try:
        native.check(native.lib.nng_listener_set_ptr(listener, b"tls-config", config))
    finally:
        native.lib.nng_tls_config_free(config)


def protect_dialer(native: Native, dialer: Any, credentials: Credentials) -> None:
    """Let `dialer` connect only to a server that has `credentials`."""
    config = _config(native, native.lib.NNG_TLS_MODE_CLIENT, credentials)
    try:
        native.check(native.lib.nng_dialer_set_ptr(dialer, b"tls-config", config))
    finally:
        native.lib.nng_tls_config_free(config)


def _config(native: Native, mode: int, credentials: Credentials) -> Any:
    import hashlib  # only TLS needs it, and it is slow to import

    cell = native.ffi.new("nng_tls_config **")
    native.check(native.lib.nng_tls_config_alloc(cell, mode))
    key = hashlib.sha256(b"fiberq nng tls-psk\0" + credentials.secret).digest()
    native.check(native.lib.nng_tls_config_psk(cell[0], _IDENTITY, key, len(key)))
    return cell[0]
