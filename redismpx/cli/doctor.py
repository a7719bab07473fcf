"""The command `redismpx doctor`: find out what is wrong between a program and its server, and what to do."""

from __future__ import annotations

__all__ = ["doctor"]

import contextlib
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import click

from .. import Multiplexer, RedisMPXError
from .._io.redispy.direct import DirectServer, Redis, RedisError, ResponseError
from ..errors import plain
from .checks import Finding, Verdict, check_config, check_info, check_unsent, cure_of, explain_failure
from .options import with_server
from .session import run_async

_UNWELL = 1
_RIGHTS_TIMEOUT = 3.0  # seconds for each thing that is tried
_CONFIG = ("client-output-buffer-limit", "timeout", "notify-keyspace-events")


@click.command()
@click.argument("server", metavar="[URL]", required=False)
@with_server
def doctor(url: str, server: str | None) -> int:
    """Check a server: the connection, the login, the rights, and its settings. A line each, with what to do.

    The exit status is 1 if a check has failed, and 0 if there are only warnings.
    """
    return run_async(_examine(server or url))


async def _examine(url: str) -> int:
    logging.getLogger("redismpx").addHandler(logging.NullHandler())
    code = 0
    async for finding in _findings(url):
        cure = f"; {finding.cure}" if finding.cure else ""
        click.echo(f"{finding.verdict.value:8} {finding.subject}: {plain(finding.text + cure)}")
        if finding.verdict is Verdict.FAILURE:
            code = _UNWELL
    return code


async def _findings(url: str) -> AsyncIterator[Finding]:
    try:
        server = DirectServer(url)
    except ValueError as error:
        yield Finding(Verdict.FAILURE, "URL", str(error))
        return
    async with server:
        if server.sentinels:
            places = []
            async for finding, place in _ask_sentinels(server):
                yield finding
                places.append(place)
            known = {place for place in places if place is not None}
            if len(known) != 1:
                text = "no Sentinel names the primary" if not known else "the Sentinels name different primaries"
                cure = "check the service, and SENTINEL MASTERS at each of them"
                yield Finding(Verdict.FAILURE, "Sentinels", text, cure)
                return
        try:
            await server.client.execute_command("CLIENT", "ID")
        except (RedisError, OSError) as error:
            finding = explain_failure(error, tls=server.has_tls)
            yield finding
            if finding.subject not in ("commands", "rights"):
                return
        else:
            yield Finding(Verdict.WELL, "connection", "connected and logged in")
        async for finding in _settings(server.client):
            yield finding
    async for finding in _rights(url):
        yield finding


async def _ask_sentinels(server: DirectServer) -> AsyncIterator[tuple[Finding, tuple[Any, ...] | None]]:
    """Ask each Sentinel for the primary."""
    for address, sentinel in server.sentinels.items():
        where = f"Sentinel {address}"
        try:
            place = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", server.service)
        except (RedisError, OSError) as error:
            reason = explain_failure(error, tls=server.has_tls)
            yield Finding(Verdict.WARNING, where, reason.text, "start it, or take it out of the URL"), None
            continue
        if place is None:
            cure = "check the service in the URL"
            yield Finding(Verdict.WARNING, where, "it does not know the service", cure), None
        else:
            yield Finding(Verdict.WELL, where, "it names a primary"), tuple(place)


async def _settings(client: Redis) -> AsyncIterator[Finding]:
    """Check what the server says about itself, as far as the user may ask."""
    try:
        await client.execute_command("HELLO")
    except ResponseError:
        cure = "allow it, or add ?protocol=2 to the URL, which saves an attempt"
        yield Finding(Verdict.WARNING, "HELLO", "rejected: each connection is dialled a second time without it", cure)
    info: dict[str, Any] = {}
    cluster: dict[str, str] = {}
    with contextlib.suppress(ResponseError):
        info = await client.info()
        if info.get("cluster_enabled"):
            answer: Any = await client.execute_command("CLUSTER INFO")
            cluster = dict(answer)
    for finding in check_info(info, cluster) if info else ():
        yield finding
    try:
        values = await client.config_get(*_CONFIG)
        config = {str(name): str(value) for name, value in values.items()}
        for finding in check_config(config) + check_unsent(config, await client.client_list(_type="pubsub")):
            yield finding
    except ResponseError:
        text = "not checked: the user may not ask for it, or CONFIG was renamed"
        yield Finding(Verdict.WELL, "settings", text, "check them as an administrator")


async def _rights(url: str) -> AsyncIterator[Finding]:
    """Try each thing that the library does, with names that nobody else has."""
    name = f"__mpx_doctor:{secrets.token_hex(8)}"
    async with Multiplexer(url, publish_timeout=_RIGHTS_TIMEOUT) as mpx:

        async def publish() -> None:
            await mpx.publish(name, b"")

        async def append() -> None:
            await mpx.append(name, b"", max_length=1, max_age=1)

        async def subscribe(*, sharded: bool = False) -> None:
            async with mpx.new_channel_subscription(sharded=sharded) as sub:
                sub.add(name)
                await sub.wait_for_activation(timeout=_RIGHTS_TIMEOUT)

        async def listen_to_pattern() -> None:
            async with mpx.new_pattern_subscription(f"{name}*") as sub:
                await sub.wait_for_activation(timeout=_RIGHTS_TIMEOUT)

        async def listen_to_keys() -> None:
            async with mpx.new_key_subscription(f"{name}*") as sub:
                await sub.wait_for_activation(timeout=_RIGHTS_TIMEOUT)

        async def request() -> None:
            async with mpx.serve(name, lambda request: request.body) as service:
                await service.wait_for_activation(timeout=_RIGHTS_TIMEOUT)
                await mpx.request(name, b"", timeout=_RIGHTS_TIMEOUT)

        tried: dict[str, Callable[[], Awaitable[None]]] = {
            "subscribe to channels": subscribe,
            "subscribe to patterns": listen_to_pattern,
            "subscribe to sharded channels": functools.partial(subscribe, sharded=True),
            "publish": publish,
            "append to streams": append,
            "send requests": request,
            "listen to keys": listen_to_keys,
        }
        for subject, attempt in tried.items():
            try:
                await attempt()
            except (RedisMPXError, RedisError, OSError) as error:
                yield Finding(Verdict.WARNING, f"right to {subject}", str(error), cure_of(error))
            else:
                yield Finding(Verdict.WELL, f"right to {subject}", "yes")
