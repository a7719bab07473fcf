"""The file in which `redismpx broker` writes its URL, so that clients find it and its password.

The broker holds a lock on the file while it runs. The system releases the lock however the broker ends, so a file
without a lock is stale: it cannot be that another process has taken over the number of the broker's process.
"""

from __future__ import annotations

__all__ = ["StaleURLFile", "URLFile", "read_url_file"]

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from .errors import RedisMPXError

try:
    import fcntl
except ImportError:  # Windows, where no broker runs
    fcntl = None  # type: ignore[assignment]

_AnyPath: TypeAlias = "str | os.PathLike[str]"
_MARK = "# locked by redismpx broker on "  # followed by the name of the host: locks are seen on that host only


class StaleURLFile(RedisMPXError):
    """The broker that wrote a URL file has ended.

    Example:
        ::

            try:
                mpx = Multiplexer.from_url_file("broker.url")
            except StaleURLFile as error:
                print("start the broker again:", error.path)
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is stale: its broker has ended; start one with: redismpx broker --url-file {path}")
        self.path = path
        """The path of the file."""


def read_url_file(path: _AnyPath) -> str:
    """Return the URL in a file: its first line that does not begin with `#`.

    Args:
        path: the file, written by `redismpx broker` or by hand.

    Returns:
        The URL.

    Raises:
        StaleURLFile: the broker that wrote the file has ended. This is found out on the host of the broker only.
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read.
        ValueError: there is no URL in the file.

    Example:
        ::

            # after: redismpx broker --url-file broker.url
            client = Redis.from_url(read_url_file("broker.url"))
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
            is_held = _is_held(file.fileno())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no URL file {os.fspath(path)}; start a server with: redismpx broker --url-file {os.fspath(path)}"
        ) from None
    if _MARK + socket.gethostname() in lines and not is_held:
        raise StaleURLFile(os.fspath(path))
    for line in lines:
        if line.strip() and not line.startswith("#"):
            return line.strip()
    raise ValueError(f"there is no URL in {os.fspath(path)}")


class URLFile:
    """A URL file of this process: written and locked by `with`, removed at its end.

    Args:
        path: where to write it. A stale file is replaced; no reader ever sees half a file.
        url: the URL, with its password. Only the owner of the file can read it.

    Raises:
        FileExistsError: from `with`: the broker that wrote the file runs.

    Example:
        ::

            with Server() as server, URLFile("own.url", server.url):
                print(read_url_file("own.url") == server.url)  # True
    """

    def __init__(self, path: _AnyPath, url: str) -> None:
        self._path = Path(path).absolute()
        self._url = url
        self._file: int | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as other:
            if _is_held(other.fileno()):
                raise FileExistsError(f"another broker serves from {self._path}; stop it, or choose another file")
        file, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)  # with mode 0600
        try:
            os.write(file, f"{_MARK}{socket.gethostname()}\n{self._url}\n".encode())
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(name, self._path)
        except BaseException:  # Ctrl-C too: the file has a password
            os.close(file)
            os.unlink(name)
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._file)):  # nobody has replaced it
                    os.unlink(self._path)
            os.close(self._file)
            self._file = None


def _is_held(file: int) -> bool:
    """Tell whether another process holds the lock of a file."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
