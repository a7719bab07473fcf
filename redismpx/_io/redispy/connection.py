"""One connection to one server, owned by the object that dialled it. Never belongs to a pool, and never reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import selectors
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .credentials import Login
from .secrets import Secrets
from .tap import Tap

ROLE_INTERVAL = 1.0  # seconds between two questions for the role of a server that is in use
COUNTS_INTERVAL = 1.0  # seconds for which a server that does not count all subscribers is not asked again

# In the reply to INFO of a server that counts all subscribers of a shard channel, and of any channel.
ALONE = frozenset({b"role:master", b"connected_slaves:0", b"repl_backlog_active:0"})
ALONE_AND_NO_NODE = ALONE | {b"cluster_enabled:0"}

Address: TypeAlias = tuple[str, int]
"""A host and a port; the path and 0 for a Unix socket."""


class Leftover(NamedTuple):
    """What redis-py had read beyond the handshake when a protocol took the connection over."""

    data: bytes
    closed: bool
    """Whether the server closed the connection since the handshake."""
    error: BaseException | None
    """The error that closed it, if there was one."""


class Connection:
    """A redis-py connection after its handshake.

    The link takes it over with a protocol of its own; everything else sends commands and reads replies. The owner ends
    it with `release()`, which waits for nothing.
    """

    def __init__(
        self, raw: AbstractConnection, health_check_interval: float, secrets: Secrets, *, is_resp3: bool
    ) -> None:
        # `_writer` and `_reader` are not public, and unchanged from redis-py 5 to 8.
        self._raw: Any = raw
        transport: Any = getattr(getattr(raw, "_writer", None), "transport", None)
        # fakeredis has no transport, or one that only tells whether it is closing. redis-py forgets the transport when
        # it disconnects, and with it what was not sent yet; so it is kept here.
        self._transport: asyncio.Transport | None = transport if hasattr(transport, "set_protocol") else None
        self._health_check_interval = health_check_interval
        self._secrets = secrets
        self._is_resp3 = is_resp3
        self._checked = monotonic()
        self._is_master = False  # whether the server has said so, at `_asked`
        self._asked = -math.inf
        self.scripts: set[bytes] = set()
        """The scripts that were sent over it, and that the server has therefore."""
        self._tap: Tap | None = None
        self._incomplete: dict[bool, float] = {}  # when the server was found not to count all, by `sharded`

    @property
    def address(self) -> Address:
        """The other end, as it was dialled."""
        raw = self._raw
        return str(getattr(raw, "host", getattr(raw, "path", ""))), int(getattr(raw, "port", 0))

    # --- for a protocol that reads

    def take_over(self, protocol: asyncio.BufferedProtocol) -> tuple[asyncio.Transport, Leftover] | None:
        """Let `protocol` read from now on; return None if there is no transport, and replies have to be polled."""
        transport = self._transport
        if transport is None:
            return None
        reader = self._raw._reader
        limit = getattr(transport, "set_read_buffer_limits", None)
        if limit is not None:  # TLS would read on while reading is paused, and lose that when the server closes
            limit(high=1)
        transport.pause_reading()  # uvloop chooses how to read when reading begins
        transport.set_protocol(protocol)
        transport.resume_reading()
        closed = transport.is_closing() or reader.at_eof()
        return transport, Leftover(bytes(reader._buffer), closed, reader.exception() if closed else None)

    def write(self, data: bytes) -> None:
        """Send bytes over a connection without a transport. Raises whatever such a connection raises."""
        self._raw._writer.writelines([data])

    @property
    def is_readable(self) -> bool:
        """Whether the socket has something to read."""
        if self._transport is None:
            return False
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:  # the socket is closed
            selector.register(self._transport.get_extra_info("socket"), selectors.EVENT_READ)
            return bool(selector.select(0))
        return False

    def read_rest(self, most: int) -> bytes:
        """Return what had arrived on a connection that was lost, `most` bytes at most.

        A failed write ends a transport although there may be something to read. Call this in `connection_lost()`: the
        socket is still open then.
        """
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        file = self._transport.get_extra_info("socket")
        if file is None:  # a transport in memory
            return b""
        chunks: list[bytes] = []
        size = 0
        with contextlib.suppress(OSError, ValueError):  # nothing is left, or the other end has reset the connection
            while size < most and (chunk := os.read(file.fileno(), most) if tls is None else tls.read(most)):
                chunks.append(chunk)
                size += len(chunk)
        return b"".join(chunks)

    def accepts(self, login: Login) -> bool:
        """Tell whether AUTH may be sent beside subscriptions, which RESP2 forbids; hide its password from now on."""
        self._secrets.renew(login.password)
        return self._is_resp3

    # --- for commands and their replies

    async def call(self, *words: str | bytes | int) -> Any:
        """Send one command; return its reply, or raise it if it is an error."""
        try:
            await self._raw.send_command(*words, check_health=False)
            return await self._raw.read_response()
        except Exception as error:
            self.hide_secrets_in(error)
            raise

    async def send(self, data: bytes) -> None:
        """Send commands that are encoded already. There is no timeout but the caller's, as for `reader()`."""
        if self._transport is None:
            await self._raw.send_packed_command(data, check_health=False)
        else:
            self._transport.write(data)
            await self._raw._writer.drain()

    def tap(self, take: Callable[[bytes], bool], on_end: Callable[[], None]) -> bool:
        """Let `take` see all data first from now on, as `Tap` describes. Return False if there is no transport."""
        if self._transport is not None and self._tap is None:
            self._tap = Tap(self._transport, take, on_end)
            self._transport.set_protocol(self._tap)
        return self._tap is not None

    def pass_on(self, data: bytes) -> None:
        """Let redis-py read data that the `take` of `tap()` has taken. Not after the end of the connection."""
        assert self._tap is not None
        self._tap.pass_on(data)

    def write_now(self, data: bytes) -> bool:
        """Send a little data without a wait; return False if the connection is closed. Only after `tap()`."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        transport.write(data)
        return True

    def reader(self, *, pushes: bool = False) -> Callable[[], Awaitable[Any]]:
        """Return a function that reads the next reply as bytes. An error reply is raised, and does not disconnect.

        There is no timeout but the caller's: redis-py's would cost a timer for each reply. `pushes` has what a server
        sends unasked returned too.
        """
        return partial(
            self._raw.read_response,
            disable_decoding=True,
            timeout=math.inf,
            disconnect_on_error=False,
            **({"push_request": True} if pushes else {}),
        )

    def hide_secrets_in(self, error: BaseException) -> None:
        """Replace the password of the connection in an error from the server, which may repeat it."""
        self._secrets.hide_in(error)

    async def is_usable(self) -> bool:
        """Tell whether commands can be sent: not after a close, a reset or unasked data. No reply may be awaited."""
        if self._transport is not None and self._transport.is_closing():
            return False
        can_read = getattr(self._raw, "can_read", None) or self._raw.can_read_destructive  # its name in redis-py 7
        try:
            return not await can_read()
        except RedisConnectionError:  # redis-py 7 has read the end of the stream
            return False

    @property
    def is_check_due(self) -> bool:
        """Whether `was_demoted()` has anything to ask."""
        return self._is_ping_due or self._is_role_due

    @property
    def _is_ping_due(self) -> bool:
        return bool(self._health_check_interval) and monotonic() - self._checked > self._health_check_interval

    @property
    def _is_role_due(self) -> bool:
        return self._is_master and monotonic() >= self._asked + ROLE_INTERVAL

    async def hello(self, *protocol: int) -> None:
        """Switch to a protocol, if one is given, and note the role of the server. Needs no right."""
        reply = await self.call("HELLO", *protocol)
        words = list(chain(*reply.items())) if isinstance(reply, dict) else reply  # RESP3, RESP2
        fields = list(zip(words[::2], words[1::2], strict=False)) if isinstance(words, list) else []
        self._is_master = (b"role", b"master") in fields or ("role", "master") in fields
        self._asked = monotonic()

    async def was_demoted(self) -> bool:
        """Tell whether the server was a master at the handshake, and is none any more.

        Also send a PING when the client's `health_check_interval` says so.

        A planned failover closes no connection, and the former master accepts a PUBLISH that reaches nobody at the new
        one. The server is asked at most once in ROLE_INTERVAL, and not at all if the handshake was done without HELLO.
        """
        if self._is_ping_due:
            await self.call("PING")
            self._checked = monotonic()
        if not self._is_role_due:
            return False
        await self.hello()
        return not self._is_master

    async def counts_all(self, *, sharded: bool) -> bool:
        """Tell whether nobody gets a message that PUBLISH, or SPUBLISH, was answered with 0 for before this call.

        A replica of the server gets the message too, and its subscribers are not counted. It gets the message even if
        it is not connected at the moment: later, out of the backlog. A server frees the backlog when it had no replica
        for some time, an hour by default; so there has been no replica if there is no backlog. A replica itself, and a
        node of a cluster, count their own subscribers only.

        A server that does not say all this proves nothing. Such an answer is believed for COUNTS_INTERVAL: if it is
        wrong, a request waits for its timeout. The other answer is about the past, and is never used twice.
        """
        if monotonic() < self._incomplete.get(sharded, -math.inf) + COUNTS_INTERVAL:
            return False
        await self._raw.send_command("INFO", check_health=False)
        try:
            reply = await self._raw.read_response(disable_decoding=True)
        except ResponseError:  # no right to ask
            reply = b""
        lines = reply.split(b"\r\n") if type(reply) is bytes else []
        counts_all = (ALONE if sharded else ALONE_AND_NO_NODE).issubset(lines)
        if not counts_all:
            self._incomplete[sharded] = monotonic()
        return counts_all

    # --- the end

    def abort(self) -> None:
        """Close the socket at once, whatever the other end does."""
        if self._transport is not None:
            self._transport.abort()

    async def release(self) -> None:
        """End the connection at once, and let redis-py forget it."""
        self.abort()
        await self._raw.disconnect(nowait=True)
