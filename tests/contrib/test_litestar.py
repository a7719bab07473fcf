"""The backend for Litestar's channels plugin: WebSocket clients, under uvicorn, with a real server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from litestar import Litestar
from litestar.channels import ChannelsPlugin
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from redismpx import ConnectionLost, MessageGap, Multiplexer
from redismpx.contrib.litestar import MultiplexerChannelsBackend

from ..helpers.asgi import Served, serving
from ..helpers.backoffs import QUICK
from ..helpers.lengths import at_length
from ..helpers.monitor import kill_clients, settled
from ..helpers.outages import interrupt
from ..helpers.servers import Server
from ..helpers.waiting import DEADLINE, until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]


def new_app(backend: MultiplexerChannelsBackend, history: int = 0) -> Litestar:
    """Serve each channel to WebSockets."""
    plugin = ChannelsPlugin(
        backend, arbitrary_channels_allowed=True, create_ws_route_handlers=True, ws_handler_send_history=history
    )
    return Litestar(plugins=[plugin], logging_config=None)


async def hear(client: ClientConnection) -> str | bytes:
    async with asyncio.timeout(DEADLINE):
        while (text := await client.recv()) == "ready":
            pass
        return text


async def joined(*clients: ClientConnection, say: Callable[[str], Awaitable[object]]) -> None:
    """Publish until each client hears: Litestar accepts a WebSocket before it subscribes."""
    for client in clients:
        async with asyncio.timeout(DEADLINE):
            while True:
                await say("ready")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.recv()
                        break


class Gaps(list[tuple[str, Exception]]):
    """The gaps that the application was told of; its subscribers get a text in their place."""

    def __call__(self, channel: str, error: Exception) -> bytes:
        self.append((channel, error))
        return b"* gap"


@pytest.mark.parametrize("fault", ["kill", "freeze", "restart"])
@pytest.mark.parametrize("history", [0, 100])
async def test_a_cut_connection_is_told_and_mended(server: Server, admin: Redis, fault: str, history: int) -> None:
    """Clients get the text of `on_gap` where messages are missing; with history, none is missing after a kill."""
    gaps = Gaps()
    mpx = Multiplexer(server.url, backoff=QUICK, ping_interval=0.05, ping_timeout=0.1)
    backend = MultiplexerChannelsBackend(mpx, history=history, on_gap=gaps)
    async with mpx, serving(new_app(backend)) as app, app.connect("/a") as ann, app.connect("/a") as bob:
        await joined(ann, bob, say=lambda text: backend.publish(text.encode(), ["a"]))
        await backend.publish(b"before", ["a"])
        assert [await hear(ann), await hear(bob)] == ["before"] * 2
        await interrupt(fault, server, admin, mpx)
        if history:
            await backend.publish(b"in the outage", ["a"])
            expected = ["* gap", "in the outage"] if fault == "restart" else ["in the outage"]
        else:
            await settled(admin, {b"a"})
            expected = ["* gap"]
        for client in (ann, bob):
            assert [await hear(client) for _ in expected] == expected
        await backend.publish(b"after", ["a"])
        assert [await hear(ann), await hear(bob)] == ["after"] * 2
    kinds = [(channel, type(error)) for channel, error in gaps]
    assert kinds == ([("a", MessageGap if history else ConnectionLost)] if "* gap" in expected else [])


async def test_a_new_client_gets_the_history(url: str, admin: Redis) -> None:
    """A WebSocket gets the last messages of its channel first; no more than `history` are returned."""
    backend = MultiplexerChannelsBackend(url, history=20, key_prefix="app:")
    async with serving(new_app(backend, history=3)) as app:
        for number in range(30):
            await backend.publish(b"%d" % number, {"a"})
        assert await backend.get_history("a") == [b"%d" % number for number in range(10, 30)]
        assert await backend.get_history("a", 100) == await backend.get_history("a")
        assert await backend.get_history("none") == []
        async with app.connect("/a") as ann:
            assert [await hear(ann) for _ in range(3)] == ["27", "28", "29"]
            await backend.publish(b"new", {"a", "b"})
            assert await hear(ann) == "new"
    assert await admin.delete("app:a", "app:b") == 2


async def test_without_history_it_says_what_to_pass(url: str) -> None:
    """The history of plain channels raises an error that names the option."""
    with pytest.raises(NotImplementedError, match="pass history=N"):
        await MultiplexerChannelsBackend(url).get_history("a")


async def test_an_application_starts_offline(server: Server, admin: Redis) -> None:
    """The plugin starts without a server, and its channels become active when there is one."""
    server.kill()
    backend = MultiplexerChannelsBackend(server.url, backoff=QUICK)
    await backend.on_startup()
    subscribing = asyncio.create_task(backend.subscribe(["a"]))
    await asyncio.sleep(0)
    server.start()
    async with asyncio.timeout(DEADLINE):
        await subscribing
        await backend.publish(b"hello", ["a"])
        assert await anext(backend.stream_events()) == ("a", b"hello")
    await backend.on_shutdown()


async def test_subscribing_offline_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection, `subscribe()` returns after a while, so that the application can start."""
    server.kill()
    monkeypatch.setattr("redismpx.contrib.litestar.ACTIVE_WITHIN", 0.05)
    backend = MultiplexerChannelsBackend(server.url)
    await backend.on_startup()
    async with asyncio.timeout(DEADLINE):
        await backend.subscribe(["a"])
    await backend.on_shutdown()


async def test_publishing_in_an_outage_ends_nothing(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that `publish()` cannot send is in the log, and later ones arrive; `wait_published()` raises."""
    backend = MultiplexerChannelsBackend(server.url, backoff=QUICK, publish_timeout=0.1)
    async with asyncio.timeout(DEADLINE), ChannelsPlugin(backend, channels=["a"]) as plugin:
        subscriber = await plugin.subscribe("a")
        server.kill()
        plugin.publish("lost", "a")
        with pytest.raises(ConnectionLost):
            await plugin.wait_published("lost", "a")
        await until(lambda: "ChannelsPlugin.publish() is lost" in caplog.text)
        server.start()
        await settled(admin, {b"a"})
        hearing = asyncio.ensure_future(anext(subscriber.iter_events()))
        while not hearing.done():  # the connection to publish may take longer than its timeout
            plugin.publish("again", "a")
            await asyncio.wait([hearing], timeout=0.05)
        assert await hearing == b"again"


async def test_a_message_after_subscribing_is_not_missed(url: str) -> None:
    """A message of this process that follows `subscribe()` arrives, although Redis has not confirmed the channel."""
    for history in (0, 10):
        backend = MultiplexerChannelsBackend(url, history=history, key_prefix="soon:")
        await backend.on_startup()
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            group.create_task(backend.subscribe(["a"]))
            await asyncio.sleep(0)
            await backend.publish(b"hello", ["a"])
            assert await anext(backend.stream_events()) == ("a", b"hello")
        await backend.on_shutdown()


async def test_a_multiplexer_stays_open(url: str) -> None:
    """A multiplexer that is passed in is neither opened nor closed, and its events end with the application."""
    async with Multiplexer(url) as mpx:
        backend = MultiplexerChannelsBackend(mpx)
        for _ in range(2):
            await backend.on_startup()
            await backend.subscribe(["a"])
            await backend.on_shutdown()
            async with asyncio.timeout(DEADLINE):
                assert [event async for event in backend.stream_events()] == []
        assert mpx.connected


# --- processes


PROGRAM = """
import os
from litestar import Litestar, post
from litestar.channels import ChannelsPlugin
from redis.backoff import ConstantBackoff
from redismpx.contrib.litestar import MultiplexerChannelsBackend

def on_gap(channel: str, error: Exception) -> bytes:
    return b"* gap"

@post("/say/{text:str}")
async def say(text: str, channels: ChannelsPlugin) -> None:
    await channels.wait_published(text, "news")

backend = MultiplexerChannelsBackend(os.environ["REDIS_URL"], on_gap=on_gap, backoff=ConstantBackoff(0.01))
plugin = ChannelsPlugin(backend, channels=["news"], create_ws_route_handlers=True)
app = Litestar([say], plugins=[plugin], logging_config=None)
"""


@asynccontextmanager
async def in_a_process(folder: Path, url: str) -> AsyncIterator[Served]:
    """Run the program under uvicorn."""
    (folder / "program.py").write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "--port", "0", "program:app"),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(folder)]),
            "REDIS_URL": url,
        },
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert process.stderr is not None
    log = ""
    try:
        async with asyncio.timeout(3 * DEADLINE):
            while "running on" not in log:
                line = (await process.stderr.readline()).decode()
                assert line, log
                log += line
        yield Served(None, int(log.rpartition("http://127.0.0.1:")[2].split()[0]))  # type: ignore[arg-type]
    finally:
        process.terminate()
        log += (await process.communicate())[1].decode()
    assert "Traceback" not in log


async def test_processes_hear_each_other_through_kills(server: Server, admin: Redis, tmp_path: Path) -> None:
    """What one process publishes reaches the clients of both, after each kill, and each kill is told."""
    async with (
        in_a_process(tmp_path, server.url) as one,
        in_a_process(tmp_path, server.url) as other,
        one.connect("/news") as ann,
        other.connect("/news") as bob,
    ):

        async def say(text: str) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(f"POST /say/{text} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.read()).startswith(b"HTTP/1.1 201")
            writer.close()

        await joined(ann, bob, say=say)
        for number in range(at_length(100, 5)):
            await say(f"{number}")
            assert [await hear(ann), await hear(bob)] == [f"{number}"] * 2
            await kill_clients(admin)
            assert [await hear(ann), await hear(bob)] == ["* gap"] * 2
