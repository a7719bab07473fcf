"""The adapter for broadcaster: its backend, and the class that takes its place, with a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias

import broadcaster
import pytest
import strawberry
from ariadne import QueryType, SubscriptionType, make_executable_schema
from ariadne.asgi import GraphQL as AriadneGraphQL
from ariadne.asgi.handlers import GraphQLTransportWSHandler
from redis.asyncio import Redis
from strawberry.asgi import GraphQL as StrawberryGraphQL
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from redismpx import ConnectionLost, Multiplexer, SlowConsumer, SubscriptionIsClosed
from redismpx.contrib._feed import GapFeed, Transport
from redismpx.contrib.broadcaster import Broadcast, Event, MultiplexerBackend
from redismpx.testing import Proxy

from ..helpers.asgi import serving
from ..helpers.backoffs import QUICK
from ..helpers.lengths import at_length
from ..helpers.logs import broken_log, warnings
from ..helpers.monitor import kill_clients, settled
from ..helpers.outages import interrupt
from ..helpers.servers import Server
from ..helpers.waiting import DEADLINE, until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]

Make: TypeAlias = Callable[..., Any]
"""Makes a Broadcast: this library's own, or broadcaster's with the backend."""


def new_backed(url: str | Multiplexer, **options: Any) -> broadcaster.Broadcast:
    return broadcaster.Broadcast(backend=MultiplexerBackend(url, **options))


BOTH = pytest.mark.parametrize("new", [Broadcast, new_backed])


async def hear(subscriber: Any) -> str:
    async with asyncio.timeout(DEADLINE):
        event = await subscriber.get()
    return str(event.message)


# --- the interface


@BOTH
@pytest.mark.parametrize("scheme", ["redis", "redis-stream"])
async def test_a_message_reaches_each_subscriber(url: str, admin: Redis, new: Make, scheme: str) -> None:
    """A message goes to each subscriber of its channel, by `get()` and by iteration, until the block ends."""
    async with new(url.replace("redis", scheme, 1)) as broadcast:
        async with broadcast.subscribe("a") as ann, broadcast.subscribe("a") as bob, broadcast.subscribe("b"):
            for message, text in (("hello", "hello"), (b"bytes", "bytes"), (7, "7"), (0.5, "0.5")):
                await broadcast.publish("a", message)
                assert [await hear(ann), await hear(bob)] == [text, text]
            await broadcast.publish("a", "last")
            async for event in ann:
                assert (event.channel, event.message) == ("a", "last")
                break
            assert (await bob.get()).channel == "a"
        await settled(admin, set())
        async with asyncio.timeout(DEADLINE):
            assert [event async for event in bob] == []
    await admin.delete("a", "b")


async def test_the_classes_are_those_of_the_interface(url: str) -> None:
    """The backend returns events of broadcaster; the class returns its own, which show no payload."""
    async with new_backed(url) as broadcast, broadcast.subscribe("a") as ann:
        await broadcast.publish("a", "secret")
        assert await ann.get() == broadcaster.Event("a", "secret")
    event = Event("a", "secret")
    assert repr(event) == "Event(channel='a', message=<6 characters>)"
    with pytest.raises(TypeError, match="max_pending: these are options of the Multiplexer"):
        Broadcast(Multiplexer(url), max_pending=1)


def test_the_class_does_not_need_the_package() -> None:
    """`Broadcast` works where broadcaster is not installed, or where another package has its name."""
    program = "import sys; sys.modules['broadcaster'] = None; from redismpx.contrib.broadcaster import Broadcast"
    program += "; Broadcast('redis://localhost')"
    assert subprocess.run([sys.executable, "-W", "error", "-c", program], check=False).returncode == 0


@BOTH
async def test_it_connects_again_after_disconnect(url: str, admin: Redis, new: Make) -> None:
    """After `disconnect()` nothing is subscribed, and `connect()` begins again."""
    broadcast = new(url)
    for _ in range(2):
        await broadcast.connect()
        async with broadcast.subscribe("a") as ann:
            await broadcast.publish("a", "hello")
            assert await hear(ann) == "hello"
        await broadcast.disconnect()
        await settled(admin, set())


@BOTH
async def test_a_multiplexer_stays_open(url: str, new: Make) -> None:
    """A multiplexer that is passed in is shared, and neither opened nor closed."""
    async with Multiplexer(url) as mpx:
        for number in range(3):
            async with new(mpx) as broadcast, broadcast.subscribe("a") as ann:
                await broadcast.publish("a", str(number))
                assert await hear(ann) == str(number)
        assert mpx.connected
        assert mpx.stats().connections == 1


async def test_disconnect_ends_the_iterations(url: str) -> None:
    """`disconnect()` ends the iterations of all subscribers, also of a multiplexer that stays open."""
    async with Multiplexer(url) as mpx:
        broadcast = Broadcast(mpx)
        async with broadcast, broadcast.subscribe("a") as ann:
            reading = asyncio.create_task(anext(ann, "the end"))
            await asyncio.sleep(0)
            await broadcast.disconnect()
            async with asyncio.timeout(DEADLINE):
                assert await reading == "the end"
            with pytest.raises(SubscriptionIsClosed):
                await ann.get()


@BOTH
async def test_first_subscribers_at_the_same_time_all_hear(url: str, new: Make) -> None:
    """Several first subscribers of a channel at the same time all get the messages, and leave without an error."""
    async with new(url) as broadcast:
        heard: list[str] = []
        ready = asyncio.Barrier(6)

        async def listen() -> None:
            async with broadcast.subscribe("a") as subscriber:
                await ready.wait()
                heard.append(await hear(subscriber))
                await ready.wait()

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(listen())
            await ready.wait()
            await broadcast.publish("a", "hello")
            await ready.wait()
        assert heard == ["hello"] * 5


async def test_a_cancelled_get_loses_no_message(url: str, admin: Redis) -> None:
    """After a cancelled `get()`, the next one returns the next message."""
    async with Broadcast(url) as broadcast, broadcast.subscribe("a") as ann:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ann.get()
        await admin.publish("a", "one")
        assert await hear(ann) == "one"


# --- gaps


@BOTH
@pytest.mark.parametrize("fault", ["kill", "freeze", "restart"])
async def test_a_cut_connection_is_told_and_mended(server: Server, admin: Redis, new: Make, fault: str) -> None:
    """`on_gap` is called for the channel when it is active again; its text lies where messages are missing."""
    gaps: list[tuple[str, Exception]] = []

    def on_gap(channel: str, error: Exception) -> str:
        gaps.append((channel, error))
        return "* gap"

    mpx = Multiplexer(server.url, backoff=QUICK, ping_interval=0.05, ping_timeout=0.1)
    async with mpx, new(mpx, on_gap=on_gap) as broadcast, broadcast.subscribe("a") as ann:
        for number in range(at_length(100, 2) if fault == "kill" else 1):
            await broadcast.publish("a", f"before {number}")
            assert await hear(ann) == f"before {number}"
            await interrupt(fault, server, admin, mpx)
            assert await hear(ann) == "* gap"
            await broadcast.publish("a", f"after {number}")
            assert await hear(ann) == f"after {number}"
            channel, error = gaps.pop()
            assert channel == "a"
            assert isinstance(error, ConnectionLost)
            assert not gaps


@BOTH
async def test_streams_miss_nothing_over_a_cut(server: Server, admin: Redis, new: Make) -> None:
    """With streams, what is published in an outage follows; what Redis does not keep is a gap."""
    gaps: list[str] = []

    def on_gap(channel: str, error: Exception) -> str:
        gaps.append(type(error).__name__)
        return "* gap"

    mpx = Multiplexer(server.url, backoff=QUICK)
    async with mpx, new(mpx, stream=True, on_gap=on_gap) as broadcast, broadcast.subscribe("a") as ann:
        for number in range(20):
            if number % 5 == 0:
                await kill_clients(admin)
            await broadcast.publish("a", str(number))
        assert [await hear(ann) for _ in range(20)] == [str(number) for number in range(20)]
        assert not gaps
        server.kill()
        await until(lambda: not mpx.connected)
        server.start()  # which has forgotten the stream
        await broadcast.publish("a", "new")
        assert [await hear(ann), await hear(ann)] == ["* gap", "new"]
        assert gaps == ["MessageGap"]


async def test_a_slow_subscriber_is_bounded(url: str, admin: Redis) -> None:
    """A subscriber that does not read buffers `max_pending` messages, and is told; the others get all."""
    gaps: list[tuple[str, Exception]] = []
    options: Any = {"max_pending": 10, "on_gap": lambda *gap: gaps.append(gap)}
    async with (
        Broadcast(url, **options) as broadcast,
        broadcast.subscribe("a") as slow,
        broadcast.subscribe("a") as quick,
    ):
        for number in range(100):
            await admin.publish("a", str(number))
            assert await hear(quick) == str(number)
        assert [await hear(slow) for _ in range(10)] == [str(number) for number in range(90, 100)]
    ((channel, error),) = gaps
    assert channel == "a"
    assert isinstance(error, SlowConsumer)
    assert error.dropped


@BOTH
async def test_a_payload_that_is_no_text_is_told(url: str, admin: Redis, new: Make) -> None:
    """A payload that is not UTF-8 goes to `on_gap`, and the next message arrives."""
    gaps: list[str] = []

    def on_gap(channel: str, error: Exception) -> None:
        gaps.append(f"{channel}: {type(error).__name__}")

    async with new(url, on_gap=on_gap) as broadcast, broadcast.subscribe("a") as ann:
        await broadcast.publish("a", b"\xff")
        await broadcast.publish("a", "next")
        assert await hear(ann) == "next"
    assert gaps == ["a: DecodeError"]


@BOTH
async def test_an_error_of_on_gap_ends_nothing(
    url: str, admin: Redis, new: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """If `on_gap` raises, the log has its traceback, and the messages go on."""

    def on_gap(channel: str, error: Exception) -> None:
        raise LookupError("of the application")

    mpx = Multiplexer(url, backoff=QUICK)
    async with mpx, new(mpx, on_gap=on_gap) as broadcast, broadcast.subscribe("a") as ann:
        await broadcast.publish("a", "before")
        assert await hear(ann) == "before"
        await kill_clients(admin)
        reading = asyncio.create_task(hear(ann))
        await until(lambda: any(record.exc_info for record in caplog.records))
        await broadcast.publish("a", "after")
        assert await reading == "after"


@pytest.mark.parametrize("is_broken", [False, True])
async def test_errors_of_on_gap_cannot_fill_the_log(
    url: str, admin: Redis, is_broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """If `on_gap` raises for each channel, there is one record for a while; the messages go on also without a log."""
    gaps: list[str] = []

    def on_gap(channel: str, error: Exception) -> None:
        gaps.append(channel)
        raise LookupError("of the application")

    mpx = Multiplexer(url, backoff=QUICK)
    async with mpx, Broadcast(mpx, on_gap=on_gap) as broadcast, contextlib.AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(broadcast.subscribe(f"{n}")) for n in range(5)]
        with broken_log() if is_broken else contextlib.nullcontext():
            await kill_clients(admin)
            await until(lambda: mpx.stats().connections == 2)
            await settled(admin, {b"%d" % n for n in range(5)})
            for number, subscriber in enumerate(subscribers):
                await broadcast.publish(str(number), "after")
                assert await hear(subscriber) == "after"
    assert gaps == list("01234")
    assert [record.exc_info is not None for record in caplog.records if "on_gap" in record.message] == (
        [] if is_broken else [True]
    )


def feed_of(mpx: Multiplexer, gaps: list[str]) -> GapFeed[bytes, tuple[str, bytes]]:
    """Return a feed without channels, which notes the channels that have a gap."""
    return GapFeed(Transport(mpx, False, {}), lambda channel, _: gaps.append(channel), None, lambda item: item)


async def test_a_channel_that_was_never_active_has_no_gap(server: Server) -> None:
    """A channel that is added before the loss of another one is read gets its messages, and no gap before them."""
    gaps: list[str] = []
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        feed = feed_of(mpx, gaps)
        feed.add(b"old")
        await feed.joined(b"old")
        await kill_clients(server.admin)
        await until(lambda: mpx.stats().connections == 2)
        await feed.sub.wait_for_activation(b"old")
        server.freeze()  # the new channel is not active before the loss is read
        feed.add(b"new")
        reading = asyncio.create_task(feed.next())
        await until(lambda: bool(gaps))
        server.thaw()
        await feed.sub.wait_for_activation()
        await mpx.publish("new", "a")
        assert await reading == ("new", b"a")
    await server.release()
    assert gaps == ["old"]


@pytest.mark.parametrize("has_joined", [True, False])
async def test_a_gap_of_a_new_channel_is_reported(server: Server, has_joined: bool) -> None:
    """A channel that was active between two losses has a gap, although nobody has read the Disconnect of the first."""
    gaps: list[str] = []
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, backoff=QUICK) as mpx:
            feed = feed_of(mpx, gaps)
            feed.add(b"old")
            await feed.joined(b"old")
            proxy.cut()
            await until(lambda: mpx.stats().connections == 2)
            feed.add(b"new")
            await (feed.joined(b"new") if has_joined else feed.sub.wait_for_activation("new"))
            proxy.stop_listening()
            proxy.cut()
            await until(lambda: not mpx.connected)
            if has_joined:  # the Disconnect is read before the channel is active again; otherwise after that
                reading = asyncio.create_task(feed.next())
                await until(lambda: b"old" in feed._lost)
            proxy.listen_again()
            await feed.sub.wait_for_activation()
            if not has_joined:
                reading = asyncio.create_task(feed.next())
            await mpx.publish("new", "a")
            assert await reading == ("new", b"a")
    assert sorted(gaps) == ["new", "old"]


@pytest.mark.parametrize("has_joined", [True, False])
@pytest.mark.parametrize("is_offline", [True, False])
async def test_a_channel_added_after_a_loss_has_no_gap(server: Server, is_offline: bool, has_joined: bool) -> None:
    """A channel that is active before an older loss is read gets its messages, and no gap before them."""
    gaps: list[str] = []
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, backoff=QUICK) as mpx:
            feed = feed_of(mpx, gaps)
            feed.add(b"old")
            await feed.joined(b"old")
            proxy.stop_listening()
            proxy.cut()
            await until(lambda: not mpx.connected)
            if is_offline:
                feed.add(b"new")
            proxy.listen_again()
            await feed.sub.wait_for_activation(b"old")
            if not is_offline:
                feed.add(b"new")
            await (feed.joined(b"new") if has_joined else feed.sub.wait_for_activation("new"))
            await mpx.publish("new", "a")
            assert await feed.next() == ("new", b"a")
    assert gaps == ["old"]


async def test_a_channel_that_is_added_twice_has_its_gap(url: str, admin: Redis) -> None:
    """A channel that is active counts as such also after it was added again."""
    gaps: list[str] = []
    async with Multiplexer(url, backoff=QUICK) as mpx:
        feed = feed_of(mpx, gaps)
        feed.add(b"a")
        await feed.joined(b"a")
        await mpx.publish("a", "before")
        assert await feed.next() == ("a", b"before")
        feed.add(b"a")
        reading = asyncio.create_task(feed.next())
        await kill_clients(admin)
        await until(lambda: mpx.stats().connections == 2)
        await feed.sub.wait_for_activation()
        await mpx.publish("a", "x")
        assert await reading == ("a", b"x")
    assert gaps == ["a"]


async def test_without_on_gap_the_log_has_the_outage(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """An application without `on_gap` finds one warning of an outage in the log, however many channels there are."""
    mpx = Multiplexer(server.url, backoff=QUICK)
    async with mpx, Broadcast(mpx) as broadcast, contextlib.AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(broadcast.subscribe(f"{n}")) for n in range(5)]
        await kill_clients(admin)
        await until(lambda: mpx.stats().connections == 2)
        await settled(admin, {b"%d" % n for n in range(5)})
        for number, subscriber in enumerate(subscribers):
            await broadcast.publish(str(number), "again")
            assert await hear(subscriber) == "again"
    assert len([text for text in warnings(caplog) if "no connection to Redis" in text]) == 1


# --- packages that run on it


async def subscribed_by(admin: Redis, channel: str) -> None:
    """Wait until a channel has a subscriber."""
    async with asyncio.timeout(DEADLINE):
        while not (await admin.pubsub_numsub(channel))[0][1]:
            await asyncio.sleep(0.005)


async def hear_in_graphql(app: Any, admin: Redis) -> None:
    """Subscribe with a client of the protocol graphql-transport-ws, and hear a message before and after a kill."""
    async with serving(app) as served, asyncio.timeout(DEADLINE):
        url = f"ws://127.0.0.1:{served.port}/"
        async with connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as client:
            await client.send('{"type": "connection_init"}')
            assert json.loads(await client.recv())["type"] == "connection_ack"
            await client.send('{"id": "1", "type": "subscribe", "payload": {"query": "subscription { messages }"}}')
            for text in ("hello", "again"):
                await subscribed_by(admin, "chatroom")
                await admin.publish("chatroom", text)
                assert json.loads(await client.recv())["payload"]["data"] == {"messages": text}
                await kill_clients(admin)
                await settled(admin, {b"chatroom"})
        await settled(admin, set())


@BOTH
async def test_strawberry_runs_on_it(server: Server, admin: Redis, new: Make) -> None:
    """A subscription of strawberry hears messages before and after a kill, and leaves."""
    async with new(server.url, backoff=QUICK) as broadcast:

        @strawberry.type
        class Query:
            version: str = "1"

        @strawberry.type
        class Subscription:
            @strawberry.subscription
            async def messages(self) -> AsyncGenerator[str, None]:
                async with broadcast.subscribe("chatroom") as subscriber:
                    async for event in subscriber:
                        yield event.message

        schema = strawberry.Schema(query=Query, subscription=Subscription)
        await hear_in_graphql(without_lifespan(StrawberryGraphQL(schema)), admin)


@BOTH
async def test_ariadne_runs_on_it(server: Server, admin: Redis, new: Make) -> None:
    """A subscription of Ariadne hears messages before and after a kill, and leaves."""
    subscription = SubscriptionType()
    async with new(server.url, backoff=QUICK) as broadcast:

        @subscription.source("messages")
        async def generate(_: Any, info: Any) -> AsyncGenerator[str, None]:
            async with broadcast.subscribe("chatroom") as subscriber:
                async for event in subscriber:
                    yield event.message

        @subscription.field("messages")
        def resolve(message: str, info: Any) -> str:
            return message

        schema = make_executable_schema(
            "type Query { version: String } type Subscription { messages: String! }", QueryType(), subscription
        )
        app = AriadneGraphQL(schema, websocket_handler=GraphQLTransportWSHandler())
        await hear_in_graphql(without_lifespan(app), admin)


def without_lifespan(app: Any) -> Any:
    """Serve an application that knows no lifespan."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    return serve
