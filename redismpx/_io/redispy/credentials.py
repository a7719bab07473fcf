"""Credentials that expire: each token that a streaming provider of redis-py pushes, for the loops that need it.

A provider calls back in the thread of its token manager, and nothing makes it stop. So it gets one callback for good,
which refers to multiplexers weakly. Never sends anything, and never calls a multiplexer in a foreign thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import Context
from typing import Any

from redis.auth.token_manager import CredentialsListener
from redis.credentials import StreamingCredentialProvider

from ..._core.wire import login_command
from ..runtime.log import logger


class Login:
    """New credentials, as the command that logs in with them. Its `repr` does not show them."""

    __slots__ = ("command", "password")

    def __init__(self, token: Any) -> None:
        user = token.try_get("oid")  # as redis-py reads a token
        self.password: str = str(token.get_value())
        self.command: bytes = login_command(*([self.password] if user is None else [str(user), self.password]))


class Follower:
    """Calls `log_in` with each new token in the loop in which it was made, until it is closed."""

    def __init__(self, log_in: Callable[[Login], None]) -> None:
        self._log_in: Callable[[Login], None] | None = log_in
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()

    @property
    def closed(self) -> bool:
        """Whether it calls nothing any more."""
        return self._log_in is None

    def put(self, login: Login) -> None:
        """Take new credentials, in any thread. A fork has a copy, and its loop runs in the parent only."""
        if self._process == os.getpid():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._take, login, context=Context())

    def _take(self, login: Login) -> None:
        if self._log_in is not None:
            self._log_in(login)

    def close(self) -> None:
        """Call nothing any more."""
        self._log_in = None


class _Nothing:
    """What awaits nothing. Some token managers await what a callback returns; a coroutine would warn in the others."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


class _Stream:
    """The callback of one provider. `earlier` is the callback in whose place it was set."""

    def __init__(self, earlier: Callable[[Any], Any] | None) -> None:
        self._earlier = earlier
        self._followers: tuple[weakref.ref[Follower], ...] = ()

    def add(self, follower: Follower) -> None:
        """Add a follower, and forget the followers that have ended."""
        known = [ref for ref in self._followers if (other := ref()) is not None and not other.closed]
        self._followers = (*known, weakref.ref(follower))

    def __call__(self, token: Any) -> Awaitable[Any]:
        try:
            login = Login(token)
        except Exception as error:  # noqa: BLE001, the token may be any object; its text may be a secret
            logger.warning("a credential provider pushed no usable token (%s)", type(error).__name__)
        else:
            for ref in self._followers:
                follower = ref()
                if follower is not None:
                    follower.put(login)
        result = None if self._earlier is None else self._earlier(token)
        return result if isinstance(result, Awaitable) else _Nothing()


_streams: dict[int, _Stream] = {}  # by the ids of their providers, which need no hash
_lock = threading.RLock()


def is_streaming(provider: object) -> bool:
    """Tell whether a credential provider pushes new tokens."""
    return isinstance(provider, StreamingCredentialProvider)


def follow(provider: Any, log_in: Callable[[Login], None]) -> Follower | None:
    """Call `log_in` in the running loop with each token that a provider pushes; None if it pushes none.

    The caller keeps the follower for as long as it is to be called.
    """
    if not is_streaming(provider):
        return None
    follower = Follower(log_in)
    try:
        with _lock:
            if id(provider) not in _streams:
                # Such a listener, as in redis-entraid, has room for one callback: most often that of the client.
                listener = getattr(provider, "_listener", None)
                earlier: Any = listener.on_next if isinstance(listener, CredentialsListener) else None
                stream = _Stream(earlier)
                provider.on_next(stream)
                weakref.finalize(provider, _streams.pop, id(provider), None)
                _streams[id(provider)] = stream
            _streams[id(provider)].add(follower)
    except Exception:  # noqa: BLE001, users' code
        logger.exception("on_next() of the credential provider raised an exception; its tokens are used at reconnects")
    return follower
