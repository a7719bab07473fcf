"""The channel layer for Django Channels: any loop, faults, other processes, and WebSocket clients of real servers."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels_redis.pubsub import RedisPubSubChannelLayer
from redis import Redis as BlockingRedis
from redis.asyncio import Redis, RedisCluster
from websockets.asyncio.client import ClientConnection, connect

from redismpx.contrib import channels
from redismpx.contrib.channels import ChannelLayer

from ..helpers.cluster import Cluster
from ..helpers.monitor import calls_of, kill_clients, settled
from ..helpers.programs import run_program
from ..helpers.sentinel import MASTER, Sentinels
from ..helpers.servers import Server, free_port
from ..helpers.waiting import DEADLINE

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]

FULL = bool(os.environ.get("REDISMPX_FULL"))
CLIENTS, KILLS = (1000, 100) if FULL else (20, 5)
GAP, BACK = {"type": "redis.disconnect"}, {"type": "redis.reconnect"}
HELLO = {"type": "chat.message", "text": "hello"}


@pytest.fixture
async def layer(url: str) -> AsyncIterator[ChannelLayer]:
    layer = ChannelLayer([url], on_disconnect="redis.disconnect", on_reconnect="redis.reconnect")
    yield layer
    await layer.flush()


async def receive(layer: Any, channel: str) -> Any:
    return await asyncio.wait_for(layer.receive(channel), DEADLINE)


async def is_silent(layer: ChannelLayer, channel: str) -> bool:
    """Tell whether nothing arrives before the next message that this sends."""
    await layer.send(channel, {"type": "marker"})
    return bool(await receive(layer, channel) == {"type": "marker"})


# --- loops, threads, processes


def test_any_loop_uses_the_same_connections(url: str) -> None:
    """Each call may have a loop of its own, as with async_to_sync: a process has one connection each way."""
    layer = ChannelLayer([url])
    new_channel, group_add, group_send, receive, flush = map(
        async_to_sync, (layer.new_channel, layer.group_add, layer.group_send, layer.receive, layer.flush)
    )
    with BlockingRedis.from_url(url) as admin:
        before = len(admin.client_list())
        channel = new_channel()
        group_add("room", channel)
        for number in range(5):
            group_send("room", {"type": "x", "number": number})
        assert [receive(channel)["number"] for _ in range(5)] == [*range(5)]
        assert len(admin.client_list()) == before + 2
        flush()
        assert len(admin.client_list()) == before


def test_a_forked_process_begins_anew(url: str) -> None:
    """A layer that was used before a fork works in the child, with a connection of its own."""
    run_program(
        """
import os, sys, warnings
from asgiref.sync import async_to_sync
from redismpx.contrib.channels import ChannelLayer

warnings.simplefilter("ignore")  # of Python, about forks with threads
layer = ChannelLayer([sys.argv[1]])

def use():
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.send)(channel, {"pid": os.getpid()})
    assert async_to_sync(layer.receive)(channel) == {"pid": os.getpid()}

use()
child = os.fork()
use()
if child:
    assert os.waitpid(child, 0)[1] == 0
async_to_sync(layer.flush)()
""",
        url,
    )


async def test_loops_in_threads_share_a_channel(layer: ChannelLayer) -> None:
    """Each message of a channel goes to one of its receivers, in whichever threads their loops run."""
    channel = await layer.new_channel()
    received: list[int] = []

    async def read() -> None:
        while (number := (await layer.receive(channel))["number"]) >= 0:
            received.append(number)

    threads = [asyncio.create_task(asyncio.to_thread(asyncio.run, read())) for _ in range(3)]
    for number in range(300):
        await layer.send(channel, {"number": number})
    for _ in threads:
        await layer.send(channel, {"number": -1})
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*threads)
    assert sorted(received) == [*range(300)]


# --- groups and channels


async def test_a_group_message_is_published_once(layer: ChannelLayer, admin: Redis) -> None:
    """Redis gets one PUBLISH for a group, whatever number of consumers it has; each gets a message of its own."""
    names = [await layer.new_channel() for _ in range(3)]
    for name in names:
        await layer.group_add("room", name)
    await layer.group_discard("room", names[1])
    before = await calls_of(admin, "publish")
    await layer.group_send("room", HELLO)
    first, last = await receive(layer, names[0]), await receive(layer, names[2])
    assert first == last == HELLO
    assert first is not last
    assert await calls_of(admin, "publish") == before + 1
    assert await is_silent(layer, names[1])


async def test_only_channels_of_the_process_join_groups(layer: ChannelLayer) -> None:
    """group_add() with another channel raises; group_discard() of a group that was never joined does nothing."""
    with pytest.raises(RuntimeError, match="needs a channel of this process"):
        await layer.group_add("room", "elsewhere")
    await layer.group_discard("room", "elsewhere")


async def test_a_cancelled_receive_loses_nothing(layer: ChannelLayer) -> None:
    """Messages that arrive between two calls of receive() stay, those of groups included."""
    name = await layer.new_channel()
    await layer.group_add("room", name)
    for number in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(layer.receive(name), 0.001)
        await layer.group_send("room", {"number": number})
        assert await receive(layer, name) == {"number": number}


async def test_an_abandoned_channel_is_removed(url: str, admin: Redis) -> None:
    """`expiry` seconds after the last receive() was cancelled, a channel is unsubscribed, with its groups."""
    layer = ChannelLayer([url], expiry=0.1)
    name = await layer.new_channel()
    await layer.group_add("room", name)
    await settled(admin, {name.encode(), b"asgi__group__room"})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(layer.receive(name), 0.01)
    await settled(admin, set())
    with pytest.raises(RuntimeError):
        await layer.group_add("room", name)
    await layer.flush()


async def test_one_of_two_receivers_is_cancelled(url: str) -> None:
    """A channel stays while another call of receive() waits, and while the consumer handles its message."""
    layer = ChannelLayer([url], expiry=0.1)
    name = await layer.new_channel()
    waiting = asyncio.create_task(receive(layer, name))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(layer.receive(name), 0.01)
    await asyncio.sleep(0.2)
    await layer.send(name, HELLO)
    assert await waiting == HELLO
    await asyncio.sleep(0.2)
    await layer.send(name, HELLO)
    assert await receive(layer, name) == HELLO
    await layer.flush()


async def test_a_message_goes_to_another_receiver(layer: ChannelLayer) -> None:
    """A message for which a receiver was woken that is cancelled then goes to one of the others."""
    name = await layer.new_channel()
    first, second = (asyncio.create_task(layer.receive(name)) for _ in range(2))
    await asyncio.sleep(0)
    layer._process.put(layer._process.members[name.encode()], layer.serialize(HELLO))
    first.cancel()
    assert await asyncio.wait_for(second, DEADLINE) == HELLO


async def test_a_finalizer_may_end_a_receive(url: str, admin: Redis) -> None:
    """A coroutine that waits in receive() may be finalized while its thread does other work of the layer."""
    layer = ChannelLayer([url], expiry=0.1)
    waiting = layer.receive(await layer.new_channel())
    waiting.send(None)  # up to the wait
    with layer._process.lock:
        waiting.close()
    await settled(admin, set())
    await layer.flush()


async def test_a_general_channel_is_received_from(layer: ChannelLayer, admin: Redis) -> None:
    """A worker receives from a channel of a name that it knows, also one with an exclamation mark."""
    for name in ("thumbnails", "process!one"):
        waiting = asyncio.create_task(receive(layer, name))
        await settled(admin, {name.encode(), *([b"thumbnails"] if name != "thumbnails" else [])})
        await layer.send(name, HELLO)
        assert await waiting == HELLO


# --- gaps


async def test_consumers_are_told_of_a_lost_connection(layer: ChannelLayer, admin: Redis) -> None:
    """A consumer gets one message when the connection is lost, and one when everything is subscribed again."""
    names = [await layer.new_channel() for _ in range(3)]
    for name in names:
        await layer.group_add("room", name)
    for _ in range(3):
        await kill_clients(admin)
        for name in names:
            assert [await receive(layer, name) for _ in range(2)] == [GAP, BACK]
        await layer.group_send("room", HELLO)
        for name in names:
            assert await receive(layer, name) == HELLO
            assert await is_silent(layer, name)


async def test_a_slow_consumer_is_told_what_it_lost(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond `capacity`, the oldest messages are dropped: the consumer and the log are told."""
    layer = ChannelLayer([url], channel_capacity={"*slow*": 4}, on_reconnect="redis.reconnect")
    slow, other = await layer.new_channel("slow"), await layer.new_channel()
    for name in (slow, other):
        await layer.group_add("room", name)
    for number in range(10):
        await layer.group_send("room", {"number": number})
    await layer.send(other, {"number": 10})  # when it has arrived, both have the message before it
    assert [(await receive(layer, other))["number"] for _ in range(11)] == [*range(11)]
    assert [await receive(layer, slow) for _ in range(4)] == [BACK, *({"number": number} for number in (7, 8, 9))]
    assert await is_silent(layer, slow)
    assert "messages dropped for consumers" in caplog.text
    caplog.clear()
    await layer.flush()


async def test_a_consumer_does_not_begin_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, new_channel() and group_add() raise, and leave nothing."""
    layer = ChannelLayer([("127.0.0.1", free_port())])
    monkeypatch.setattr(channels, "_CONFIRMATION_TIMEOUT", 0.05)
    with pytest.raises(TimeoutError):
        await layer.new_channel()
    assert not layer._process.members
    await layer.flush()


# --- servers and other layers


@pytest.mark.parametrize("kind", ["url", "address", "pair", "options", "client"])
async def test_hosts_are_those_of_channels_redis(kind: str, url: str) -> None:
    """A host is a URL, a dictionary, a host with a port, or a client."""
    port = int(url.rpartition(":")[2])
    user, _, password = url.removeprefix("redis://").partition("@")[0].partition(":")
    login = {"username": user, "password": password} if "@" in url else {}
    host: Any = {
        "url": url,
        "address": {"address": url, "ping_interval": 1},
        "pair": ("127.0.0.1", port),
        "options": {"host": "127.0.0.1", "port": port, **login},
        "client": Redis.from_url(url),
    }[kind]
    layer = ChannelLayer(hosts=[host])
    name = await layer.new_channel()
    await layer.send(name, HELLO)
    assert await receive(layer, name) == HELLO
    await layer.flush()


async def test_sentinels_name_the_server(sentinels: Sentinels) -> None:
    """A dictionary with `sentinels` and `master_name` works as in channels_redis."""
    addresses = [("127.0.0.1", sentinel.port) for sentinel in sentinels.sentinels]
    layer = ChannelLayer([{"sentinels": addresses, "master_name": MASTER}])
    name = await layer.new_channel()
    await layer.send(name, HELLO)
    assert await receive(layer, name) == HELLO
    await layer.flush()


async def test_a_cluster_is_a_host(shared_cluster: Cluster) -> None:
    """A RedisCluster client works as a host."""
    layer = ChannelLayer([RedisCluster.from_url(shared_cluster.url)])
    names = [await layer.new_channel() for _ in range(5)]
    for name in names:
        await layer.group_add("room", name)
    await layer.group_send("room", HELLO)
    assert [await receive(layer, name) for name in names] == [HELLO] * 5
    await layer.flush()


@pytest.mark.parametrize(
    "options",
    [{}, {"serializer_format": "json"}, {"symmetric_encryption_keys": ["new", "old"], "prefix": "mine"}],
    ids=["msgpack", "json", "encrypted"],
)
async def test_channels_redis_understands_its_messages(options: dict[str, Any], url: str, server: Server) -> None:
    """Processes with this layer and with that of channels_redis exchange messages, over several servers."""
    ours = ChannelLayer([url, server.url], **options)
    theirs = RedisPubSubChannelLayer([url, server.url], **options)
    pairs = [(layer, await layer.new_channel()) for layer in (ours, theirs)]
    for layer, name in pairs:
        for number in range(8):
            await layer.group_add(f"room{number}", name)
    for sender, _ in pairs:
        for number in range(8):
            await sender.group_send(f"room{number}", {"number": number})
            for layer, name in pairs:
                assert await receive(layer, name) == {"number": number}
        for layer, name in pairs:
            await sender.send(name, HELLO)
            assert await receive(layer, name) == HELLO
    await theirs.flush()
    await ours.flush()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hosts": "redis://localhost"}, "hosts must be a list"),
        ({"serializer_format": "pickle"}, "'msgpack', 'json' or an object"),
        ({"symmetric_encryption_keys": "secret"}, "must be a list"),
    ],
)
def test_an_unusable_setting_is_rejected(options: dict[str, Any], reason: str) -> None:
    """A wrong setting raises when the layer is made, and says what is right."""
    with pytest.raises(ValueError, match=reason):
        ChannelLayer(**options)


# --- WebSocket clients


PROGRAM = """
import os
import django
from django.conf import settings

settings.configure(CHANNEL_LAYERS={"default": {
    "BACKEND": "redismpx.contrib.channels.ChannelLayer",
    "CONFIG": {
        "hosts": [{"address": os.environ["REDIS_URL"], "ping_interval": 0.5, "ping_timeout": 0.5}],
        "on_disconnect": "redis.disconnect",
        "on_reconnect": "redis.reconnect",
    },
}})
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

class Consumer(AsyncWebsocketConsumer):
    groups = ["everybody"]

    async def chat_message(self, event):
        await self.send(event["text"])

    async def redis_disconnect(self, event):
        await self.send("gap")

    async def redis_reconnect(self, event):
        await self.send("back")

class SyncConsumer(WebsocketConsumer):
    groups = ["everybody"]

    def chat_message(self, event):
        self.send(event["text"])

    def redis_disconnect(self, event):
        self.send("gap")

    def redis_reconnect(self, event):
        self.send("back")

app = ProtocolTypeRouter({"websocket": URLRouter([path("", Consumer.as_asgi()), path("sync", SyncConsumer.as_asgi())])})
"""
COMMANDS = {
    "uvicorn": ["uvicorn", "--lifespan", "off", "--log-level", "warning", "--port"],
    "daphne": ["daphne", "-b", "127.0.0.1", "-v", "0", "-p"],
}


async def hear(client: ClientConnection) -> str:
    async with asyncio.timeout(DEADLINE):
        return str(await client.recv())


@pytest.mark.parametrize("kind", COMMANDS)
async def test_no_consumer_is_deaf_after_faults(kind: str, server: Server, tmp_path: Path) -> None:
    """Through kills, a freeze and a restart, every WebSocket client is told of each gap, and gets what follows."""
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *COMMANDS[kind], str(port), "program:app"),
        env={**os.environ, "PYTHONPATH": paths, "REDIS_URL": server.url},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    layer = ChannelLayer([server.url])
    try:
        await until_open(port)
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    connect(f"ws://127.0.0.1:{port}/{'sync' * (number % 10 == 0)}", proxy=None)
                )
                for number in range(CLIENTS)
            ]

            async def all_hear(text: str) -> None:
                assert await asyncio.gather(*map(hear, clients)) == [text] * CLIENTS

            async def recovered(number: int) -> None:
                await all_hear("back")
                await layer.group_send("everybody", {"type": "chat.message", "text": str(number)})
                await all_hear(str(number))

            for number in range(KILLS):
                await kill_clients(server.admin)
                await all_hear("gap")
                await recovered(number)
            server.freeze()
            await all_hear("gap")
            server.thaw()
            await recovered(-1)
            await server.release()
            server.kill()
            await all_hear("gap")
            server.start()
            await recovered(-2)
    finally:
        await layer.flush()
        await server.release()
        process.terminate()
        log = (await process.stderr.read()).decode()
        await process.wait()
    assert "Traceback" not in log, log


async def until_open(port: int) -> None:
    """Wait until a server accepts connections."""
    give_up = asyncio.get_running_loop().time() + 2 * DEADLINE
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert asyncio.get_running_loop().time() < give_up
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return
