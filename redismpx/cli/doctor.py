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
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError, ResponseError

from .. import Multiplexer, RedisMPXError
from ..errors import plain
from .checks import Finding, Verdict, check_config, check_info, check_unsent, explain_failure
from .options import with_server
from .session import run_async
from .target import Target, new_client, read_target

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
        target = read_target(url)
    except ValueError as error:
        yield Finding(Verdict.FAILURE, "URL", str(error))
        return
    if target.sentinels:
        places = []
        async for finding, place in _ask_sentinels(target):
            yield finding
            places.append(place)
        known = {place for place in places if place is not None}
        if len(known) != 1:
            text = "no Sentinel names the primary" if not known else "the Sentinels name different primaries"
            yield Finding(Verdict.FAILURE, "Sentinels", text, "check the service, and SENTINEL MASTERS at each of them")
            return
    async with contextlib.aclosing(new_client(target)) as client:
        try:
            await client.execute_command("CLIENT", "ID")
        except (RedisError, OSError) as error:
            finding = explain_failure(error, tls=target.options.get("connection_class") is SSLConnection)
            yield finding
            if finding.subject not in ("commands", "rights"):
                return
        else:
            yield Finding(Verdict.WELL, "connection", "connected and logged in")
        async for finding in _settings(client):
            yield finding
    async for finding in _rights(url):
        yield finding


async def _ask_sentinels(target: Target) -> AsyncIterator[tuple[Finding, tuple[Any, ...] | None]]:
    """Ask each Sentinel for the primary."""
    tls = target.options.get("connection_class") is SSLConnection
    for host, port in target.sentinels:
        options = {n: v for n, v in target.options.items() if n.startswith(("socket_", "ssl_", "retry"))}
        where = f"Sentinel {host}:{port}"
        async with contextlib.aclosing(Redis(host=host, port=port, ssl=tls, protocol=2, **options)) as sentinel:
            try:
                place = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
            except (RedisError, OSError) as error:
                reason = explain_failure(error, tls=tls)
                yield Finding(Verdict.WARNING, where, reason.text, "start it, or take it out of the URL"), None
                continue
        if place is None:
            cure = "check the service in the URL"
            yield Finding(Verdict.WARNING, where, "it does not know the service", cure), None
        else:
            yield Finding(Verdict.WELL, where, "it names a primary"), tuple(place)


async def _settings(client: Redis) -> AsyncIterator[Finding]:
    """Check what the server tells about itself, as far as the user may ask."""
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
        text = "not checked: the user may not ask for it"
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

        tried: dict[str, Callable[[], Awaitable[None]]] = {
            "subscribe to channels": subscribe,
            "subscribe to patterns": listen_to_pattern,
            "subscribe to sharded channels": functools.partial(subscribe, sharded=True),
            "publish": publish,
            "append to streams": append,
        }
        for subject, attempt in tried.items():
            try:
                await attempt()
            except (RedisMPXError, RedisError, OSError) as error:
                cure = "; ".join(getattr(error, "__notes__", ())) or "see ACL SETUSER on the server"
                yield Finding(Verdict.WARNING, f"right to {subject}", str(error), cure)
            else:
                yield Finding(Verdict.WELL, f"right to {subject}", "yes")
