"""fiberq over NNG: raw REP/REQ sockets, through the C library that the `pynng` package brings.

`NngTransport` is registered as ``nng``. Install with ``pip install "fiberq[nng]"``.
"""

from .transport import NngTransport

__all__ = ["NngTransport"]
