"""The kinds of URLs and clients that a multiplexer can be made from."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import fakeredis
import pytest
import trustme
from fakeredis import FakeAsyncRedis
from redis import CredentialProvider
from redis.asyncio import Redis, Sentinel
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer
from redismpx.testing import Checker

from ..helpers.servers import SentinelServer, Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def works(mpx: Multiplexer, admin: Redis) -> None:
    """A channel, a pattern and a promise over one multiplexer."""
    checker = Checker()
    sub = mpx.new_channel_subscription(*checker.callbacks)
    sub.add("a")
    pattern = mpx.new_pattern_subscription("b*", checker.on_message)
    promises = mpx.new_promise_subscription("c")
    await sub.wait_for_activation(timeout=5)
    await pattern.wait_for_activation(timeout=5)
    promise = await promises.wait_for_new_promise("1", 5)
    for name in ("a", "b1", "c1"):
        await admin.publish(name, name)
    assert await promise == b"c1"
    await until(lambda: sorted(checker.payloads) == [b"a", b"b1"])
    sub.remove("a")
    await sub.wait_for_activation(timeout=5)


@pytest.mark.parametrize(("options", "resp"), [({}, "2"), ({"protocol": 2}, "2"), ({"protocol": 3}, "3")])
async def test_a_url_with_options_connects(url: str, admin: Redis, options: dict[str, int], resp: str) -> None:
    """Database, client name and protocol are used; RESP2 is the default, because it is cheaper to parse."""
    async with Multiplexer(url + "/3", client_name="me", health_check_interval=1, **options) as mpx:
        await works(mpx, admin)
        me = next(c for c in await admin.client_list() if c["name"] == "me")
        assert (me["db"], me["resp"]) == ("3", resp)


async def test_a_unix_socket_connects(server: Server, admin: Redis) -> None:
    """A unix:// URL works."""
    async with Multiplexer(f"unix://{server.socket_path}") as mpx:
        await works(mpx, admin)


async def test_a_username_and_password_in_the_url_connect(server: Server, admin: Redis) -> None:
    """A percent-encoded username and password in the URL work."""
    await admin.acl_setuser("someone", enabled=True, passwords=["+p@ss:w/rd"], channels=["*"], categories=["+@all"])
    async with Multiplexer(f"redis://someone:p%40ss%3Aw%2Frd@127.0.0.1:{server.port}") as mpx:
        await works(mpx, admin)


class Rotating(CredentialProvider):
    """A provider whose password is asked for at every dial."""

    def __init__(self) -> None:
        self.password = "old"
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return "someone", self.password


async def test_a_credential_provider_is_called_for_each_connection(server: Server, admin: Redis) -> None:
    """Each attempt to connect gets new credentials from the provider."""

    async def set_password(password: str) -> None:
        await admin.execute_command(
            "ACL", "SETUSER", "someone", "on", "resetpass", f">{password}", "allchannels", "+@all"
        )

    await set_password("old")
    provider = Rotating()
    async with Multiplexer(server.url, credential_provider=provider, backoff=ConstantBackoff(0.01)) as mpx:
        await works(mpx, admin)
        await set_password("new")
        provider.password = "wrong"
        await admin.execute_command("CLIENT", "KILL", "USER", "someone")
        await until(lambda: provider.asked > 3)
        provider.password = "new"
        await mpx.connect(5)
        await works(mpx, admin)


async def test_a_wrong_password_is_named_and_not_shown(server: Server) -> None:
    """The error names the wrong credentials without showing them."""
    async with Multiplexer(server.url, username="nobody", password="canary") as mpx:
        with pytest.raises(TimeoutError) as caught:
            await mpx.connect(0.3)
        text = f"{caught.value} {caught.value.__cause__}"
        assert "username-password" in text
        assert "canary" not in text


async def test_a_client_is_used_and_never_closed(url: str, admin: Redis) -> None:
    """A given client, also one that decodes responses, is used and stays open."""
    client = Redis.from_url(url, client_name="mine", decode_responses=True)
    await client.ping()
    mpx = Multiplexer(client)
    await works(mpx, admin)
    assert sum(c["name"] == "mine" for c in await admin.client_list()) == 2
    await mpx.aclose()
    assert await client.ping()
    assert sum(c["name"] == "mine" for c in await admin.client_list()) == 1
    await client.aclose()


@pytest.mark.fakeredis
async def test_fakeredis_works() -> None:
    """A fakeredis client works."""
    client = FakeAsyncRedis()
    async with Multiplexer(client) as mpx:
        await works(mpx, client)
    assert await client.ping()
    await client.aclose()


@pytest.mark.fakeredis
async def test_fakeredis_can_decode_and_disconnect() -> None:
    """A fakeredis client that decodes responses works, and reconnects."""
    server = fakeredis.FakeServer()
    client = FakeAsyncRedis(server=server, decode_responses=True)
    async with Multiplexer(client, backoff=ConstantBackoff(0.01), ping_interval=0.05, ping_timeout=0.2) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await client.publish("a", "1")
        await until(lambda: checker.payloads == [b"1"])
        server.connected = False
        await until(lambda: "disconnect" in checker.kinds)
        server.connected = True
        await sub.wait_for_activation(timeout=5)
        await client.publish("a", "2")
        await until(lambda: checker.payloads == [b"1", b"2"])
    await client.aclose()


async def test_a_client_from_sentinel_works(server: Server, admin: Redis) -> None:
    """A client from Sentinel works, and reconnects."""
    sentinel = SentinelServer(server.binary, server).start()
    try:
        manager = Sentinel([("127.0.0.1", sentinel.port)], socket_timeout=1)
        client = manager.master_for("main", client_name="through-sentinel")
        async with Multiplexer(client, backoff=ConstantBackoff(0.01)) as mpx:
            await works(mpx, admin)
            assert "through-sentinel" in [c["name"] for c in await admin.client_list()]
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: mpx.stats().connections == 2)
            await mpx.connect(5)
        for each in (client, *manager.sentinels):
            await each.aclose()
    finally:
        sentinel.remove()


@contextlib.asynccontextmanager
async def tls_in_front_of(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A TLS-terminating proxy in front of a port."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        except asyncio.CancelledError:
            pass
        finally:
            inner_writer.transport.abort()
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_tls_is_verified(url: str, admin: Redis, tmp_path: object) -> None:
    """TLS works with the right authority and fails with another or none."""
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    port = int(url.rpartition(":")[2])
    async with tls_in_front_of(port, context) as tls_port:
        with authority.cert_pem.tempfile() as good, stranger.cert_pem.tempfile() as bad:
            async with Multiplexer(f"rediss://localhost:{tls_port}", ssl_ca_certs=good) as mpx:
                await works(mpx, admin)
                big = b"x" * 1_000_000  # many TLS records
                checker = Checker()
                sub = mpx.new_channel_subscription(*checker.callbacks)
                sub.add("big")
                await sub.wait_for_activation(timeout=5)
                await admin.publish("big", big)
                await until(lambda: checker.payloads == [big])
            for options in ({"ssl_ca_certs": bad}, {}):
                async with Multiplexer(f"rediss://localhost:{tls_port}", **options) as mpx:
                    with pytest.raises(TimeoutError, match="certificate verify failed"):
                        await mpx.connect(1)


async def test_a_message_arrives_whatever_its_size_and_bytes(url: str, admin: Redis) -> None:
    """Payloads of any bytes, from 0 to 5 MB, arrive unchanged."""
    async with Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        payloads = [b"", b"\x00", b"\r\n", b"+OK\r\n", b"*1\r\n$1\r\nx\r\n", bytes(range(256)) * 5000]
        payloads += [b"y" * size for size in (16383, 16384, 16385, 65535, 65536, 65537, 5_000_000)]
        for payload in payloads:
            await admin.publish("a", payload)
        await until(lambda: len(checker.payloads) == len(payloads))
        assert checker.payloads == payloads
