"""The adapter for Starlette and FastAPI: real clients, under uvicorn, with a real server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from redis.asyncio import Redis
from starlette.websockets import WebSocketState
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from redismpx import Activation, Disconnect, Event, Message, MessageGap, Multiplexer, StreamEvent
from redismpx.contrib.starlette import (
    EventStream,
    ServerSentEvent,
    bridge,
    get_multiplexer,
    last_event_id,
    lifespan,
)

from ..helpers.asgi import Events, Served, serving
from ..helpers.backoffs import QUICK
from ..helpers.logs import broken_log, warnings
from ..helpers.outages import interrupt
from ..helpers.servers import Server
from ..helpers.waiting import DEADLINE

pytestmark = [pytest.mark.usefixtures("no_leaks", "quiet"), pytest.mark.one_flavour]

Mpx = Annotated[Multiplexer, Depends(get_multiplexer)]
LastId = Annotated[str | None, Depends(last_event_id)]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback and no error is in the log, whichever way clients leave."""
    caplog.set_level(logging.INFO)
    yield
    records = caplog.get_records("call")  # caplog.records has those of the teardown
    assert not [record for record in records if record.exc_info or record.levelno >= logging.ERROR]


# --- applications


def encode(event: Event[bytes]) -> str | bytes | None:
    match event:
        case Message(data=data):
            return data if data.startswith(b"\0") else data.decode()
        case Activation(name):
            return f"* {name.decode()}"
        case Disconnect():
            return "* disconnected"


def new_app(mpx: Multiplexer, max_pending: int = 10, **options: Any) -> FastAPI:
    """Serve channels and streams to `EventSource`, and channels to WebSockets that publish what they receive.

    `app.state.subs` keeps the subscriptions of WebSockets: garbage would be closed anyway.
    """
    app = FastAPI(lifespan=lifespan(mpx))
    app.state.subs = []

    @app.api_route("/channels/{name}", methods=["GET", "HEAD"])
    async def channel_events(name: str, mpx: Mpx) -> EventStream:
        sub = mpx.new_channel_subscription(max_pending=10, overflow="latest", on_error=lambda error: None)
        sub.add(name)
        return EventStream(sub, **options)

    @app.get("/streams/{name}")
    async def stream_events(name: str, mpx: Mpx, last_id: LastId) -> EventStream:
        sub = mpx.new_stream_subscription()
        sub.add(name, after=last_id)
        return EventStream(sub, **options)

    @app.websocket("/rooms/{name}")
    async def room(websocket: WebSocket, name: str, mpx: Mpx) -> None:
        await websocket.accept()
        sub = mpx.new_channel_subscription(max_pending=max_pending, overflow="close", on_error=lambda error: None)
        app.state.subs.append(sub)
        sub.add(name)
        async with bridge(websocket, sub, encode, **options):
            async for text in websocket.iter_text():
                await mpx.publish(name, text)

    return app


async def hear(client: ClientConnection) -> str | bytes:
    async with asyncio.timeout(DEADLINE):
        return await client.recv()


async def no_channels(admin: Redis) -> None:
    """Wait until nothing is subscribed."""
    async with asyncio.timeout(DEADLINE):
        while await admin.pubsub_channels():
            await asyncio.sleep(0.005)


# --- Server-Sent Events


async def test_messages_are_framed_whatever_their_bytes(url: str, admin: Redis) -> None:
    """Each stream gets the events of its channel, one subscription for each client, one connection for all."""
    async with serving(new_app(Multiplexer(url))) as app, app.streaming("/channels/a") as ann:
        assert await ann.hear() == "event: activation\ndata: "
        async with app.streaming("/channels/a") as bob:
            assert await bob.hear() == "event: activation\ndata: "
            for payload, text in [
                (b"sunny", "data: sunny"),
                (b"one\r\ntwo\rid: 3\n\nfour", "data: one\ndata: two\ndata: id: 3\ndata: \ndata: four"),
                (b"\xff", "data: \N{REPLACEMENT CHARACTER}"),
                (b"", "data: "),
            ]:
                assert await admin.publish("a", payload) == 1
                assert [await ann.hear(), await bob.hear()] == [text, text]
        assert await admin.publish("a", b"after bob") == 1
        assert await ann.hear() == "data: after bob"


async def test_a_silent_stream_has_heartbeats(url: str, admin: Redis) -> None:
    """A stream without events gets comments, misses no message between them, and lasts longer than `send_timeout`."""
    app = new_app(Multiplexer(url), heartbeat=0.01, send_timeout=0.001)
    async with serving(app) as served, served.streaming("/channels/a") as ann:
        assert await ann.hear() == "event: activation\ndata: "
        for number in range(5):
            assert await ann.hear(heartbeats=True) == ": heartbeat"
            await admin.publish("a", f"{number}")
            assert await ann.hear() == f"data: {number}"


async def test_a_client_resumes_at_its_last_event_id(url: str, admin: Redis) -> None:
    """A client that comes back gets all that it has missed, once; without an id, only new messages."""
    mpx = Multiplexer(url)
    async with serving(new_app(mpx)) as app:
        ids = [(await mpx.append("resume", str(number))).decode() for number in range(20)]
        async with app.streaming("/streams/resume", ids[9]) as ann:
            events = [await ann.hear() for _ in range(11)]
            events.remove("event: activation\ndata: ")
            assert events == [f"id: {ids[number]}\ndata: {number}" for number in range(10, 20)]
        await admin.xtrim("resume", maxlen=2, approximate=False)
        for last_id, kinds in ((ids[9], {"activation", "gap"}), ("nonsense", {"activation"}), (None, {"activation"})):
            async with app.streaming("/streams/resume", last_id) as ann:
                assert {await ann.hear() for _ in kinds} == {f"event: {kind}\ndata: " for kind in kinds}
                for number in range(18, 20) if "gap" in kinds else ():
                    assert await ann.hear() == f"id: {ids[number]}\ndata: {number}"
                await mpx.append("other", "x")
    await admin.delete("resume", "other")


@pytest.mark.parametrize("fault", ["kill", "freeze", "restart"])
async def test_a_cut_connection_reaches_each_client(server: Server, admin: Redis, fault: str) -> None:
    """Each client of a channel is told of the gap, one of a stream misses nothing, and everything comes back."""
    mpx = Multiplexer(server.url, backoff=QUICK, ping_interval=0.05, ping_timeout=0.1)
    async with (
        serving(new_app(mpx)) as app,
        app.streaming("/channels/a") as ann,
        app.connect("/rooms/a") as bob,
        app.streaming("/streams/s") as eve,
    ):
        assert await ann.hear() == await eve.hear() == "event: activation\ndata: "
        assert await hear(bob) == "* a"
        await interrupt(fault, server, admin, mpx)
        await mpx.append("s", "in the outage")
        assert [await ann.hear(), await ann.hear()] == ["event: disconnect\ndata: ", "event: activation\ndata: "]
        assert [await hear(bob), await hear(bob)] == ["* disconnected", "* a"]
        await bob.send("again")
        assert await ann.hear() == "data: again"
        assert await hear(bob) == "again"
        events = [await eve.hear() for _ in range(3)]
        assert events[:2] == ["event: disconnect\ndata: ", "event: activation\ndata: "]
        if fault == "restart":  # which has forgotten the stream
            assert events[2].startswith("event: gap") or events[2].endswith("in the outage")
        else:
            assert events[2].endswith("\ndata: in the outage")


async def test_a_vanished_client_leaves_nothing(url: str, admin: Redis) -> None:
    """The subscription of a client that breaks off is closed at once, although there is nothing to send."""
    async with serving(new_app(Multiplexer(url))) as app:
        async with app.streaming("/channels/a") as ann, app.connect("/rooms/b") as bob:
            assert await ann.hear() == "event: activation\ndata: "
            assert await hear(bob) == "* b"
            ann.transport.abort()
            bob.transport.abort()
            await no_channels(admin)
        async with app.streaming("/channels/a") as ann, app.connect("/rooms/b") as bob:
            assert await ann.hear() == "event: activation\ndata: "
            assert await hear(bob) == "* b"
            for name in ("a", "b") * 50:  # while messages are sent to them
                await admin.publish(name, "x" * 100)
            ann.transport.abort()
            bob.transport.abort()
            for name in ("a", "b") * 50:
                await admin.publish(name, "x" * 100)
            await no_channels(admin)


@pytest.mark.parametrize("path", ["/channels/a", "/rooms/a"])
async def test_a_client_that_does_not_read_is_disconnected(
    url: str, admin: Redis, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After `send_timeout`, the subscription of a client that reads nothing is closed; the log has a warning."""
    app = new_app(Multiplexer(url, max_pending_bytes=None), max_pending=1_000, send_timeout=0.1)
    async with serving(app, timeout_graceful_shutdown=1) as served:
        if path == "/channels/a":
            client: Any = served.streaming(path)
        else:
            client = served.connect(path)
        async with client as stuck:
            assert "a" in str(await (stuck.hear() if isinstance(stuck, Events) else hear(stuck)))
            stuck.transport.pause_reading()
            async with asyncio.timeout(DEADLINE):
                while await admin.publish("a", "x" * 1_000_000):
                    await asyncio.sleep(0.005)
            stuck.transport.abort()
    warning, *others = warnings(caplog)
    assert "has not read for 0.1 s" in warning
    assert others == (["ASGI callable returned without completing response."] if path == "/channels/a" else [])
    caplog.clear()


class Stuck:
    """The sending half of a server whose client stops reading before a message of this type."""

    def __init__(self, kind: str, **fields: object) -> None:
        self._last = {"type": kind, **fields}

    async def send(self, message: Any) -> None:
        if self._last.items() <= message.items():
            await asyncio.get_running_loop().create_future()

    async def receive(self) -> Any:
        await asyncio.get_running_loop().create_future()


async def stream_to(stuck: Stuck, url: str) -> None:
    """Send the response of a subscription that is closed."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        stream = EventStream(sub, send_timeout=0.05)
        sub.close()
        scope = {"type": "http", "method": "GET", "path": "/stuck", "headers": []}
        await asyncio.wait_for(stream(scope, stuck.receive, stuck.send), DEADLINE)


@pytest.mark.parametrize(
    "stuck", [Stuck("http.response.start"), Stuck("http.response.body", more_body=False)], ids=["first", "last"]
)
async def test_a_first_or_last_send_has_a_timeout(url: str, stuck: Stuck, caplog: pytest.LogCaptureFixture) -> None:
    """The headers and the end of a stream wait for its client no longer than `send_timeout`; the log has a warning."""
    await stream_to(stuck, url)
    assert warnings(caplog) == ["a client of '/stuck' has not read for 0.05 s, and is disconnected"]


async def test_a_broken_log_keeps_no_client(url: str) -> None:
    """A client that does not read is disconnected also if a log filter raises."""
    with broken_log():
        await stream_to(Stuck("http.response.start"), url)


async def test_a_websocket_that_cannot_be_closed_is_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge ends although its client does not take the frame that closes the WebSocket."""
    monkeypatch.setattr("redismpx.contrib.starlette._GRACE", 0.05)
    stuck = Stuck("websocket.close")
    websocket = WebSocket({"type": "websocket", "path": "/stuck", "headers": []}, stuck.receive, stuck.send)
    websocket.client_state = WebSocketState.CONNECTED
    await websocket.accept()
    mpx = Multiplexer(url)
    async with mpx, asyncio.timeout(DEADLINE), bridge(websocket, mpx.new_channel_subscription(), lambda event: None):
        mpx.close()
        await stuck.receive()


async def test_events_are_converted(url: str, admin: Redis) -> None:
    """`encode` may be a coroutine function, leave events out, and set type and id; its results are checked."""
    mpx = Multiplexer(url)
    app = FastAPI(lifespan=lifespan(mpx))

    async def convert(event: StreamEvent[bytes]) -> ServerSentEvent | str | None:
        await asyncio.sleep(0)
        match event:
            case Activation():
                return ServerSentEvent("[]", event="snapshot", id="5-0")
            case Disconnect() | MessageGap():
                return None
        if event.data == b"own":
            return ServerSentEvent("[1]", id="7-0")
        return None if event.data == b"odd" else event.data.decode()

    @app.get("/")
    async def events() -> EventStream:
        sub = mpx.new_stream_subscription()
        sub.add("convert")
        return EventStream(sub, convert)

    async with serving(app) as served, served.streaming("/") as ann:
        assert await ann.hear() == "id: 5-0\nevent: snapshot\ndata: []"
        await mpx.append("convert", "odd")
        last = await mpx.append("convert", "even")
        assert await ann.hear() == f"id: {last.decode()}\ndata: even"
        await mpx.append("convert", "own")
        assert await ann.hear() == "id: 7-0\ndata: [1]"
    await admin.delete("convert")
    assert bytes(ServerSentEvent("\ud800")) == b"data: ?\n\n"
    for bad in (ServerSentEvent(event="a\nb"), ServerSentEvent(id="a\rb"), ServerSentEvent(id="\0")):
        with pytest.raises(ValueError, match="must be one line without NUL"):
            bytes(bad)


async def test_a_head_request_ends(url: str, admin: Redis) -> None:
    """HEAD, which Starlette routes to the same function, gets headers and no stream."""
    async with serving(new_app(Multiplexer(url))) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(b"HEAD /channels/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            response = (await reader.read()).decode()
        assert response.startswith("HTTP/1.1 200 ")
        assert "text/event-stream" in response
        writer.close()
        await no_channels(admin)


# --- the end


async def test_shutdown_ends_streams_and_completes_requests(url: str, admin: Redis) -> None:
    """Within 3 s, each stream ends with its last chunk; a request in progress may publish; WebSockets get 1012."""
    mpx = Multiplexer(url)
    app = new_app(mpx)
    arrived, go = asyncio.Event(), asyncio.Event()

    @app.post("/slow")
    async def slow(mpx: Mpx) -> int:
        arrived.set()
        await go.wait()
        return await mpx.publish("nobody", "x")

    handlers = signal.getsignal(signal.SIGTERM)
    async with serving(app) as served, contextlib.AsyncExitStack() as stack:
        assert getattr(signal.getsignal(signal.SIGTERM), "__self__", None) is served.server
        streams = [await stack.enter_async_context(served.streaming(f"/channels/{n}")) for n in range(5)]
        bob = await stack.enter_async_context(served.connect("/rooms/b"))
        assert await hear(bob) == "* b"
        for stream in streams:
            assert await stream.hear() == "event: activation\ndata: "
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        await arrived.wait()
        served.server.should_exit = True
        for stream in streams:
            await stream.end()
        with pytest.raises(ConnectionClosed):
            await hear(bob)
        assert bob.close_code == 1012
        assert mpx.connected
        go.set()
        assert (await reader.read()).endswith(b"\r\n\r\n0")
        writer.transport.abort()
    assert signal.getsignal(signal.SIGTERM) is handlers
    assert mpx.stats().state == "closed"


async def test_a_stream_that_begins_at_shutdown_ends(url: str) -> None:
    """A request in progress that returns a stream after the shutdown has begun gets its last chunk at once."""
    mpx = Multiplexer(url)
    app = new_app(mpx)
    arrived, go = asyncio.Event(), asyncio.Event()

    @app.get("/late")
    async def late(mpx: Mpx) -> EventStream:
        arrived.set()
        await go.wait()
        sub = mpx.new_channel_subscription()
        sub.add("a")
        return EventStream(sub)

    async with serving(app) as served, served.streaming("/channels/a") as ann:
        assert await ann.hear() == "event: activation\ndata: "
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await arrived.wait()
        served.server.should_exit = True
        await ann.end()
        go.set()
        async with asyncio.timeout(DEADLINE):
            assert (await reader.read()).endswith(b"\r\n\r\n0\r\n\r\n")
        writer.transport.abort()


async def test_shutdown_cancels_a_stream_that_is_stuck(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that does not read keeps no stream running beyond the shutdown, whatever its `send_timeout` is."""
    mpx = Multiplexer(url)
    app = FastAPI(lifespan=lifespan(mpx))
    ended = asyncio.Event()

    class Observed(EventStream):
        async def __call__(self, *arguments: Any) -> None:
            await super().__call__(*arguments)
            ended.set()

    @app.get("/")
    async def events() -> EventStream:
        sub = mpx.new_channel_subscription(max_pending=10, overflow="latest", on_error=lambda error: None)
        sub.add("a")
        return Observed(sub, send_timeout=3600)

    async with serving(app) as served, served.streaming("/") as stuck:
        assert await stuck.hear() == "event: activation\ndata: "
        stuck.transport.pause_reading()
        for _ in range(20):  # more than the buffers take
            await admin.publish("a", "x" * 1_000_000)
        served.server.should_exit = True
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
        stuck.transport.abort()
    assert "ASGI callable returned without completing response." in warnings(caplog)
    caplog.clear()


async def test_a_closed_multiplexer_ends_every_client(url: str) -> None:
    """When the application closes its multiplexer, streams end, and WebSockets are closed with 1012."""
    mpx = Multiplexer(url)
    async with serving(new_app(mpx)) as app, app.streaming("/channels/a") as ann, app.connect("/rooms/a") as bob:
        assert await ann.hear() == "event: activation\ndata: "
        assert await hear(bob) == "* a"
        mpx.close()
        await ann.end()
        with pytest.raises(ConnectionClosed):
            await hear(bob)
        assert bob.close_code == 1012


def test_one_test_client_after_the_other_works(url: str) -> None:
    """A multiplexer of a module serves each `TestClient`, in the loop of each."""
    app = new_app(Multiplexer(url))
    for _ in range(2):
        with TestClient(app) as client, client.websocket_connect("/rooms/a") as websocket:
            assert websocket.receive_text() == "* a"
            websocket.send_text("hello")
            assert websocket.receive_text() == "hello"


async def test_an_application_that_was_shut_down_starts_again(url: str) -> None:
    """The streams of the second start are not ended by the first shutdown."""
    app = new_app(Multiplexer(url))
    for _ in range(2):
        async with serving(app) as served, served.streaming("/channels/a") as ann:
            assert await ann.hear() == "event: activation\ndata: "
            served.server.should_exit = True
            await ann.end()


def test_an_application_without_the_lifespan_is_told() -> None:
    """`get_multiplexer()` says what is missing."""
    app = FastAPI()

    @app.get("/")
    async def get(mpx: Mpx) -> None: ...

    with TestClient(app) as client, pytest.raises(RuntimeError, match=r"pass lifespan=lifespan\(mpx\)"):
        client.get("/")


# --- WebSockets


async def test_a_slow_websocket_is_closed_with_1013(url: str, admin: Redis) -> None:
    """`overflow="close"` ends the subscription of a client that is too slow, and the client may try again later."""
    async with serving(new_app(Multiplexer(url))) as app, app.connect("/rooms/a") as bob:
        assert await hear(bob) == "* a"
        async with admin.pipeline(transaction=False) as pipe:
            for _ in range(1000):
                pipe.publish("a", "x")
            await pipe.execute()
        with pytest.raises(ConnectionClosed):
            while True:
                await hear(bob)
        assert bob.close_code == 1013


async def test_text_and_binary_frames_are_sent(url: str, admin: Redis) -> None:
    """A text of `encode` becomes a frame of text, `bytes` become a binary one."""
    async with serving(new_app(Multiplexer(url))) as app, app.connect("/rooms/a") as bob:
        assert await hear(bob) == "* a"
        await admin.publish("a", b"\0\xff")
        assert await hear(bob) == b"\0\xff"


async def test_an_error_of_encode_is_raised(url: str, admin: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """The exception ends the block, its subscription and the WebSocket, and is in the log."""
    mpx = Multiplexer(url)
    app = FastAPI(lifespan=lifespan(mpx))
    ended: list[BaseException] = []

    async def fail(event: object) -> str:
        raise TimeoutError("of the application")

    @app.websocket("/")
    async def handle(websocket: WebSocket) -> None:
        await websocket.accept()
        sub = mpx.new_channel_subscription()
        sub.add("a")
        try:
            async with bridge(websocket, sub, fail):
                async for _ in websocket.iter_text():
                    pass
        except TimeoutError as error:
            ended.append(error)
            raise

    async with serving(app) as served, served.connect("/") as bob:
        with pytest.raises(ConnectionClosed):
            await hear(bob)
        await no_channels(admin)
    assert [str(error) for error in ended] == ["of the application"]
    assert [record for record in caplog.records if record.exc_info]
    caplog.clear()


async def test_a_timeout_of_the_block_is_raised(url: str) -> None:
    """A `TimeoutError` of the code in the block is not taken for that of a slow client."""

    class Idle(WebSocket):
        async def send(self, message: Any) -> None: ...

    async with Multiplexer(url) as mpx, mpx.subscribe("a") as sub:
        websocket = Idle({"type": "websocket", "path": "/"}, None, None)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError, match="of the block"):
            async with bridge(websocket, sub, encode):
                raise TimeoutError("of the block")


async def test_the_last_message_of_a_client_is_published(url: str, admin: Redis) -> None:
    """A client that leaves while its message is handled does not cancel that."""
    mpx = Multiplexer(url)
    app = FastAPI(lifespan=lifespan(mpx))
    received, left, handled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.websocket("/")
    async def handle(websocket: WebSocket) -> None:
        await websocket.accept()
        async with mpx.subscribe("a") as sub, bridge(websocket, sub, encode):
            async for _ in websocket.iter_text():
                received.set()
                await left.wait()
                await admin.publish("a", "to a client that is gone")
                await asyncio.sleep(0.05)
                handled.set()

    async with serving(app) as served, served.connect("/") as bob:
        assert await hear(bob) == "* a"
        await bob.send("bye")
        await received.wait()
        bob.transport.abort()
        await asyncio.sleep(0.05)
        left.set()
        async with asyncio.timeout(DEADLINE):
            await handled.wait()
        await no_channels(admin)


async def test_a_websocket_that_is_not_accepted_is_an_error(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The error of Starlette is raised, as for any other use of it."""
    mpx = Multiplexer(url)

    class Unaccepted(WebSocket):
        async def send(self, message: Any) -> None:
            raise RuntimeError('Expected ASGI message "websocket.accept"')

    async with mpx, mpx.subscribe("a") as sub:
        websocket = Unaccepted({"type": "websocket", "path": "/"}, None, None)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="accept"):
            async with bridge(websocket, sub, encode):
                await asyncio.sleep(DEADLINE)
        assert sub.closed


# --- processes and signals


PROGRAM = """
import os
from fastapi import FastAPI
from redismpx import Multiplexer
from redismpx.contrib.starlette import EventStream, lifespan

mpx = Multiplexer(os.environ["REDIS_URL"])
app = FastAPI(lifespan=lifespan(mpx))

@app.get("/")
async def events() -> EventStream:
    sub = mpx.new_channel_subscription()
    sub.add("a")
    return EventStream(sub)
"""


async def test_sigterm_ends_uvicorn_with_open_streams(url: str, tmp_path: Path) -> None:
    """uvicorn ends within 3 s of SIGTERM, though streams are open, and logs no traceback."""
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "uvicorn", "--port", "0", "program:app"),
        env={**os.environ, "PYTHONPATH": paths, "REDIS_URL": url},
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert process.stderr is not None
    log = ""
    async with asyncio.timeout(2 * DEADLINE):
        while "running on" not in log:
            line = (await process.stderr.readline()).decode()
            assert line, log
            log += line
        port = int(log.rpartition("http://127.0.0.1:")[2].split()[0])
        served = Served(None, port)  # type: ignore[arg-type]
        async with served.streaming("/") as ann, served.streaming("/") as bob:
            for stream in (ann, bob):
                assert await stream.hear() == "event: activation\ndata: "
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            for stream in (ann, bob):
                await stream.end()
            log += (await process.stderr.read()).decode()
            await process.wait()
    assert time.monotonic() - began < 3
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert "ERROR" not in log
