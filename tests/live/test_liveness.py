"""A silent connection is pinged, and abandoned when no reply arrives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer
from redismpx.testing import Checker, Proxy

from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

NOISE = 3.0  # seconds that a busy machine may be late


def patient(url: str, **options: float) -> Multiplexer:
    return Multiplexer(url, backoff=ConstantBackoff(0.05), socket_timeout=0.5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("how", ["frozen", "both ways", "to the client", "to the server"])
async def test_silence_is_noticed_after_ping_timeout(server: Server, how: str) -> None:
    """A dead network swallows what is sent without an error: only received bytes are a sign of life."""
    interval, timeout = 0.2, 0.4
    loop = asyncio.get_running_loop()
    ended: list[float] = []
    with Proxy(server.port) as proxy:
        async with patient(proxy.url, ping_interval=interval, ping_timeout=timeout) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
            link = mpx._hub.deployment.main._link
            assert link is not None
            link.lost.add_done_callback(lambda _: ended.append(loop.time()))
            await until(lambda: link.liveness.state.value == "pinged")
            await until(lambda: link.liveness.state.value == "live")
            silent = loop.time()
            if how == "frozen":
                server.freeze()
            proxy.to_client.hole = how in ("both ways", "to the client")
            proxy.to_server.hole = how in ("both ways", "to the server")
            await until(lambda: checker.kinds == ["activation", "disconnect"])
            assert "PING" in checker.events[1][1].reason
            assert ended[0] >= link.liveness._last_reply + interval + timeout
            assert ended[0] <= silent + interval + timeout + 0.5 + NOISE
            server.thaw()
            proxy.heal()
            await sub.wait_for_activation(timeout=10)
            assert checker.kinds == ["activation", "disconnect", "activation"]


async def test_a_freeze_within_ping_timeout_is_ignored(server: Server) -> None:
    """A server that is frozen for less than ping_timeout keeps its connection."""
    async with patient(server.url, ping_interval=0.2, ping_timeout=1.0) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        server.freeze()
        link = mpx._hub.deployment.main._link
        assert link is not None
        await until(lambda: link.liveness.state.value == "pinged")
        server.thaw()
        await until(lambda: link.liveness.state.value == "live")
        assert checker.kinds == ["activation"]


async def test_a_blocked_loop_is_no_lost_connection(url: str) -> None:
    """A reply that arrives while our own loop is blocked counts, although it is read after the deadline."""
    async with patient(url, ping_interval=0.1, ping_timeout=0.1) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        link = mpx._hub.deployment.main._link
        assert link is not None
        for _ in range(3):
            await until(lambda: link.liveness.state.value == "live")
            await until(lambda: link.liveness.state.value == "pinged")  # the answer comes while nobody reads
            time.sleep(0.25)  # longer than ping_timeout
        await until(lambda: link.liveness.state.value == "live")
        assert checker.kinds == ["activation"]
        assert mpx.stats().connections == 1


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def test_a_long_fan_out_is_no_lost_connection(url: str, admin: Redis) -> None:
    """A fan-out that takes longer than ping_interval and ping_timeout leaves the connection alone."""
    async with patient(url, ping_interval=0.1, ping_timeout=0.1) as mpx:
        lost: list[Exception] = []
        got: list[bytes] = []

        def slow(channel: bytes, data: bytes) -> None:
            spin(0.001)
            got.append(data)

        subs = [mpx.new_channel_subscription(slow, lost.append) for _ in range(1_000)]
        for sub in subs:
            sub.add("a")
        await subs[-1].wait_for_activation(timeout=10)
        await admin.publish("a", "x")
        await until(lambda: len(got) == len(subs), 60)
        await asyncio.sleep(0.3)  # in which a verdict would come
        assert not lost


async def test_a_server_has_its_time_after_a_fan_out() -> None:
    """The time in which a command must get its reply stands still during a long fan-out."""
    lost: list[Exception] = []
    got: list[bytes] = []

    def slow(channel: bytes, data: bytes) -> None:
        spin(0.001)
        got.append(data)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await shake_hands(reader, writer) == [b"SUBSCRIBE", b"a"]
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
        assert await read_command(reader) == [b"SUBSCRIBE", b"b"]
        writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")
        await until(lambda: len(got) == 1_000, 60)
        await asyncio.sleep(0.2)  # the server replies late, but in time
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:1\r\n")
        while await read_command(reader) == [b"PING"]:
            writer.write(b"+PONG\r\n")

    async with FakeServer(script).run() as url, patient(url, ping_interval=0.1, ping_timeout=0.4) as mpx:
        subs = [mpx.new_channel_subscription(slow, lost.append) for _ in range(1_000)]
        for sub in subs:
            sub.add("a")
        await subs[-1].wait_for_activation(timeout=10)
        sub.add("b")
        await sub.wait_for_activation(timeout=60)
        assert not lost


async def test_a_command_behind_a_backlog_has_time(url: str, admin: Redis) -> None:
    """The reply to a command waits in the socket behind many messages: the connection is kept, nothing is lost."""
    async with patient(url, ping_interval=0.1, ping_timeout=0.1) as mpx:
        checker = Checker()

        async def busy() -> None:
            while True:  # other tasks keep the loop busy between two reads
                spin(0.02)
                await asyncio.sleep(0)

        def slow(channel: bytes, data: bytes) -> None:
            spin(0.00005)
            checker.on_message(channel, data)

        sub = mpx.new_channel_subscription(slow, checker.on_disconnect, checker.on_activation)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        pipe = admin.pipeline(transaction=False)
        for number in range(4_000):
            pipe.publish("a", b"%01000d" % number)
        assert sum(await pipe.execute()) == 4_000
        other = asyncio.create_task(busy())
        mpx.new_channel_subscription(lambda channel, data: None).add("b")
        await until(lambda: checker.messages == 4_000 or checker.disconnects > 0, 60)
        other.cancel()
        assert (checker.messages, checker.disconnects) == (4_000, 0)


async def test_a_dead_server_is_found_after_a_backlog(server: Server) -> None:
    """When the process has caught up, a server that is frozen is found after ping_interval and ping_timeout."""
    async with patient(server.url, ping_interval=0.2, ping_timeout=0.2) as mpx, Redis(port=server.port) as admin:
        checker = Checker()

        def slow(channel: bytes, data: bytes) -> None:
            spin(0.0005)
            checker.on_message(channel, data)

        sub = mpx.new_channel_subscription(slow, checker.on_disconnect, checker.on_activation)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        pipe = admin.pipeline(transaction=False)
        for number in range(2_000):
            pipe.publish("a", b"%0100d" % number)
        await pipe.execute()
        server.freeze()
        await until(lambda: checker.messages == 2_000, 30)
        began = time.monotonic()
        await until(lambda: checker.disconnects == 1)
        assert time.monotonic() - began < 0.4 + NOISE
        server.thaw()


def test_a_suspended_process_is_no_lost_connection(server: Server) -> None:
    """After SIGCONT asyncio runs due timers before it reads its sockets."""
    program = """
import asyncio, sys
from redismpx import Multiplexer
async def main():
    async with Multiplexer(sys.argv[1], ping_interval=0.1, ping_timeout=0.3) as mpx:
        await mpx.connect(5)
        link = mpx._hub.deployment.main._link
        print("connected", flush=True)
        sys.stdin.readline()
        while link.liveness.state.value != "pinged":
            await asyncio.sleep(0.001)
        print("pinged", flush=True)
        while mpx.stats().connections == 1 and link.liveness.state.value in ("pinged", "doubted"):
            await asyncio.sleep(1)
        print(link.liveness.state.value, flush=True)
asyncio.run(main())
"""
    command = [sys.executable, "-c", program, server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "connected\n"
        server.freeze()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "pinged\n"
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.001)  # until it waits for its sockets
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        server.thaw()  # its answer is in the socket long before the deadline
        time.sleep(0.5)  # the deadline passes
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readline() == "live\n"


@pytest.mark.parametrize(
    "answer", [b"+PONG\r\n", b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", b"-NOPERM no ping\r\n", b"-LOADING wait\r\n"]
)
async def test_any_complete_reply_to_a_ping_is_life(answer: bytes) -> None:
    """PONG, an error or any other complete reply shows that the connection is alive."""
    pings = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        command = await shake_hands(reader, writer)
        while True:
            assert command == [b"PING"]
            pings += 1
            writer.write(answer)
            command = await read_command(reader)

    fake = FakeServer(script)
    async with fake.run() as url:
        async with patient(url, ping_interval=0.02, ping_timeout=0.2) as mpx:
            await mpx.connect(5)
            await until(lambda: pings >= 5)
        assert fake.accepted == 1


async def test_an_unanswered_subscribe_is_noticed() -> None:
    """A SUBSCRIBE that gets no reply ends the connection, although pings are answered and messages arrive."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)  # the SUBSCRIBE, never answered

        async def flow() -> None:
            while True:
                writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n")
                await asyncio.sleep(0.01)

        task = asyncio.ensure_future(flow())
        try:
            while await read_command(reader) == [b"PING"]:
                writer.write(b"+PONG\r\n")
        finally:
            task.cancel()

    fake = FakeServer(script)
    async with fake.run() as url, patient(url, ping_interval=0.1, ping_timeout=0.5) as mpx:
        mpx.new_channel_subscription(lambda *_: None).add("a")
        await until(lambda: fake.accepted >= 2)
        assert "PING" in str(mpx.stats().last_error)


async def test_half_a_frame_is_no_sign_of_life() -> None:
    """Bytes that never complete a reply do not keep a connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n$100000000\r\n")
        while True:  # bytes without end, and never a complete reply
            writer.write(b"x" * 100)
            await asyncio.sleep(0.01)

    fake = FakeServer(script)
    async with fake.run() as url, patient(url, ping_interval=0.1, ping_timeout=0.1) as mpx:
        mpx.new_channel_subscription(print).add("a")
        await until(lambda: fake.accepted >= 2)


async def test_without_ping_interval_there_are_no_pings() -> None:
    """ping_interval=None sends no PING."""
    commands: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands.append(await shake_hands(reader, writer))

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url, ping_interval=None)
        await mpx.connect(5)
        await asyncio.sleep(0.2)
        await mpx.aclose()
    assert commands == []
