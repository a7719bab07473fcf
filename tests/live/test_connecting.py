"""Faults before a connection is established: attempts are repeated with backoff, and the cause is shown."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.backoff import ConstantBackoff, ExponentialBackoff

from redismpx import ConnectionLost, Multiplexer, SubscriptionRefused
from redismpx.testing import Checker, Proxy

from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.logs import warnings
from ..helpers.monitor import settled
from ..helpers.servers import Server, free_port
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, int] | None) -> list[object]:
    """Let the host name `redis.test` have these addresses, all of them at once; None: it does not exist."""
    asked: list[object] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: fake(*args, **options))

    def fake(host: object, *args: Any, **options: Any) -> Any:
        if host not in ("redis.test", b"redis.test"):
            return real(host, *args, **options)  # type: ignore[arg-type]
        asked.append(host)
        if answers[0] is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", a) for a in answers]

    return asked


def run(main: Any) -> None:
    """Run in asyncio's own loop, whose resolver can be patched: uvloop has one in C."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(main)


@pytest.mark.one_flavour
def test_a_host_is_resolved_at_every_attempt(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may move, or have no address for a while: each attempt to connect resolves its name."""

    async def main() -> None:
        with Proxy(server.port) as old, Proxy(server.port) as new, monkeypatch.context() as patch:
            resolve(patch, ("127.0.0.1", old.port))
            async with Multiplexer("redis://redis.test", backoff=QUICK) as mpx:
                checker = Checker()
                sub = mpx.new_channel_subscription(*checker.callbacks)
                sub.add("a")
                await sub.wait_for_activation(timeout=5)
                asked = resolve(patch, None)
                old.cut()
                await until(lambda: len(asked) >= 3)
                assert mpx.stats().state in ("backing off", "dialling")
                assert "Name or service not known" in str(mpx.stats().last_error)
                resolve(patch, ("127.0.0.1", new.port))
                await sub.wait_for_activation(timeout=5)
                assert (len(old.accepted), len(new.accepted)) == (1, 1)
                assert checker.kinds == ["activation", "disconnect", "activation"]

    run(main())


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that swallows whoever connects: its queue of connections to be accepted is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


@pytest.mark.one_flavour
def test_a_black_hole_address_does_not_block_the_next(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With broken IPv6 before working IPv4, the first attempt uses up its time; the second tries both side by side."""

    async def main() -> None:
        with black_hole() as hole:
            asked = resolve(monkeypatch, ("127.0.0.1", hole), ("127.0.0.1", server.port))
            async with Multiplexer("redis://redis.test", socket_connect_timeout=1) as mpx:
                await mpx.connect(10)
                assert len(asked) >= 2
            asked = resolve(monkeypatch, ("127.0.0.1", hole), ("127.0.0.1", hole))
            async with Multiplexer("redis://redis.test", socket_connect_timeout=1) as mpx:
                mpx.new_channel_subscription(print).add("a")
                await until(lambda: len(asked) == 2)
                with pytest.raises(TimeoutError):
                    await mpx.connect(0.5)  # both are being tried: no_leaks sees that closing ends that

    run(main())


@pytest.mark.one_flavour
async def test_a_silent_handshake_times_out_and_is_retried(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A frozen server's kernel still accepts connections: the handshake has a timeout."""
    with Proxy(server.port) as proxy:
        server.freeze()
        began = asyncio.get_running_loop().time()
        async with Multiplexer(proxy.url, socket_timeout=0.2, backoff=QUICK) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await until(lambda: len(proxy.accepted) == 4)
            assert asyncio.get_running_loop().time() - began >= 3 * 0.2
            server.thaw()
            await sub.wait_for_activation(timeout=10)
            assert checker.kinds == ["activation"]
    assert len(warnings(caplog)) == 1


async def test_reset_connections_are_retried_with_backoff(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A load balancer without servers accepts and closes: that is no success, so delays grow."""
    with Proxy(free_port()) as proxy:
        proxy.refusing = True
        async with Multiplexer(proxy.url, backoff=ExponentialBackoff(cap=10, base=0.02)) as mpx:
            checker = Checker()
            mpx.new_channel_subscription(*checker.callbacks).add("a")
            await until(lambda: len(proxy.accepted) == 7)
            assert checker.events == []
        for number, (before, after) in enumerate(pairwise(proxy.accepted[1:])):  # the first retry is at once
            assert after - before >= 0.02 * 2**number
    assert len(warnings(caplog)) == 1


async def test_a_full_server_is_named_and_retried(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The error about maxclients comes before the handshake, and must not be hidden by the failed write after it."""
    await admin.config_set("maxclients", 1)
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(print)
        sub.add("a")
        await until(lambda: "max number of clients reached" in str(mpx.stats().last_error))
        assert len(warnings(caplog)) == 1
        await admin.config_set("maxclients", 100)
        await sub.wait_for_activation(timeout=10)


async def test_a_loading_server_accepts_subscriptions(server: Server, admin: Redis) -> None:
    """While a server loads its data it rejects PING and accepts SUBSCRIBE, so subscriptions need not wait."""
    pipe = admin.pipeline(transaction=False)
    for number in range(100):
        pipe.set(str(number), os.urandom(3000))
    await pipe.execute()
    await admin.save()
    server.kill()
    server.options = ("--key-load-delay", "30000", "--loading-process-events-interval-bytes", "1024")
    server.start()  # 100 keys, 30 ms each, and between them it answers
    async with Multiplexer(server.url, backoff=QUICK, ping_interval=0.05, ping_timeout=2) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        link = mpx._hub.deployment.main._link
        assert link is not None
        await until(lambda: link.liveness.state.value == "pinged")
        await until(lambda: link.state.value == "live")  # by -LOADING
        async with Redis.from_url(server.url) as publisher:
            assert await publisher.publish("a", "1") == 1
            await until(lambda: checker.kinds == ["activation", "message"])
            assert (await publisher.info("persistence"))["loading"] == 1
        assert mpx.stats().connections == 1


async def test_without_hello_the_password_is_sent_with_auth(caplog: pytest.LogCaptureFixture) -> None:
    """Old servers and some proxies have no HELLO: the next connection sends the password with AUTH."""
    caplog.set_level(logging.INFO, "redismpx")
    dials: list[list[list[bytes]]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dials.append([])
        while (command := await read_command(reader))[0] != b"SUBSCRIBE":
            dials[-1].append(command)
            writer.write(b"-ERR unknown command 'HELLO'\r\n" if command[0] == b"HELLO" else b"+OK\r\n")
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")

    async with FakeServer(script).run() as url:
        address = url.partition("?")[0].removeprefix("redis://")
        async with Multiplexer(f"redis://me:secret@{address}", backoff=QUICK) as mpx:
            checker = Checker()
            mpx.new_channel_subscription(*checker.callbacks).add("a")
            await until(lambda: checker.activations == 3)
    with_hello, without = dials[0:6:2], dials[1:6:2]
    assert all(commands[0][0] == b"HELLO" for commands in with_hello)
    assert all([b"AUTH", b"me", b"secret"] in commands for commands in without)
    assert all(b"HELLO" not in [command[0] for command in commands] for commands in without)
    assert caplog.text.count("falling back to RESP2") >= 3
    assert "secret" not in caplog.text


async def test_a_proxy_without_patterns_keeps_the_channels() -> None:
    """Some proxies have no PSUBSCRIBE: its error reply refuses the pattern and keeps the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        while True:
            if command[0] == b"SUBSCRIBE":
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n1\r\n")
            else:
                writer.write(b"-ERR unknown command '%b'\r\n" % command[0])
            command = await read_command(reader)

    fake = FakeServer(script)
    async with fake.run() as url, Multiplexer(url, backoff=QUICK) as mpx:
        errors, checker = Checker(), Checker()
        pattern = mpx.new_pattern_subscription("p*", *errors.callbacks, on_error=errors.on_error)
        with pytest.raises(SubscriptionRefused, match="unknown command"):
            await pattern.wait_for_activation(timeout=5)
        mpx.new_channel_subscription(*checker.callbacks).add("a")
        await until(lambda: checker.kinds == ["activation", "message"])
        assert [(type(e), e.kind) for e in errors.errors] == [(SubscriptionRefused, "pattern")]  # type: ignore[attr-defined]
        assert fake.accepted == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x0a", b""])
async def test_another_protocol_is_reported_as_such(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The error about a port that speaks HTTP or TLS, or closes, asks whether TLS is needed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_command(reader)
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    fake = FakeServer(script)
    async with fake.run() as url, Multiplexer(url.partition("?")[0], backoff=ConstantBackoff(0.1)) as mpx:
        mpx.new_channel_subscription(print).add("a")
        began = asyncio.get_running_loop().time()
        await until(lambda: fake.accepted == 5)
        assert asyncio.get_running_loop().time() - began >= 3 * 0.1  # the second is at once
        assert "does this port want TLS?" in str(mpx.stats().last_error)
    assert len(warnings(caplog)) == 1


@pytest.mark.one_flavour
async def test_tls_on_a_plain_port_is_reported_as_such(server: Server) -> None:
    """A TLS handshake with a port without TLS gets no reply: the error asks about TLS."""
    async with Multiplexer(f"rediss://127.0.0.1:{server.port}", socket_connect_timeout=0.2, backoff=QUICK) as mpx:
        mpx.new_channel_subscription(print).add("a")
        await until(lambda: "speaks TLS: does this port?" in str(mpx.stats().last_error))


@pytest.mark.one_flavour
async def test_short_lived_connections_are_retried_with_backoff(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message over the client-output-buffer-limit ends each connection: delays grow and the log names the limit."""
    monkeypatch.setattr("redismpx._io.session.outage.WARN_INTERVAL", 0.2)

    async def publish() -> None:
        while True:
            await admin.publish("a", "poison" * 1000)
            await asyncio.sleep(0.002)

    with Proxy(server.port) as proxy:
        proxy.to_client.limit = 3000
        publisher = asyncio.create_task(publish())
        async with Multiplexer(proxy.url, backoff=ExponentialBackoff(cap=10, base=0.02)) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await until(lambda: checker.disconnects >= 6)
            assert checker.kinds[:4] == ["activation", "disconnect"] * 2
            assert not checker.faults + checker.payloads
        publisher.cancel()
        for number, (before, after) in enumerate(pairwise(proxy.accepted[1:])):
            assert after - before >= 0.02 * 2**number
    first, *others = warnings(caplog)
    assert "client-output-buffer-limit" not in first
    assert others
    assert all("client-output-buffer-limit" in each for each in others)


@pytest.mark.one_flavour
async def test_without_a_file_descriptor_connecting_is_retried(server: Server, admin: Redis) -> None:
    """At the limit of open files there is one warning and no busy loop, and it connects when a file is closed."""
    program = """
import asyncio, logging, os, resource, sys
from redis.backoff import ConstantBackoff
from redismpx import Multiplexer
attempts, warnings = [], []
class Handler(logging.Handler):
    def emit(self, record):
        begins = record.levelno >= logging.WARNING and "after an outage" not in record.getMessage()
        (warnings if begins else attempts).append(record.getMessage())
logging.getLogger("redismpx").addHandler(Handler())
logging.getLogger("redismpx").setLevel(logging.DEBUG)
async def main():
    mpx = Multiplexer(sys.argv[1], backoff=ConstantBackoff(0.05))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    began = asyncio.get_running_loop().time()
    connecting = asyncio.ensure_future(mpx.connect(30))
    while sum("failed (" in text for text in attempts) < 5:
        await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - began >= 3 * 0.05  # the second is at once
    assert "Too many open files" in str(mpx.stats().last_error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await connecting
    sub = mpx.new_channel_subscription(print)
    sub.add("a")
    await sub.wait_for_activation(timeout=10)
    print("active", len(warnings), flush=True)
    sys.stdin.readline()
    await mpx.aclose()
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, server.url, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert await child.stdout.readline() == b"active 1\n"
    await settled(admin, {b"a"})
    child.stdin.write(b"\n")
    assert await child.wait() == 0
    child._transport.close()  # type: ignore[attr-defined]


def test_add_itself_makes_no_connection(url: str) -> None:
    """The first call in a loop starts to connect, but later: a connection may have to load certificates from files."""
    made: list[bool] = []
    adding = True

    class Watched(Connection):
        def __init__(self, **options: Any) -> None:
            made.append(adding)
            super().__init__(**options)

    client = Redis.from_pool(ConnectionPool.from_url(url, connection_class=Watched))
    mpx = Multiplexer(client)
    sub = mpx.new_channel_subscription(lambda *_: None)
    sub.add("a")  # no loop runs yet

    async def main() -> None:
        nonlocal adding
        sub.add("b")
        adding = False
        await sub.wait_for_activation(timeout=5)
        assert made == [False]
        await mpx.aclose()
        await client.aclose()

    asyncio.run(main())


async def test_publishing_alone_dials_one_connection(url: str, admin: Redis) -> None:
    """`async with` dials no connection, publish() one, and the first name or connect() another."""
    before = len(await admin.client_list())

    async def dialled() -> int:
        return len(await admin.client_list()) - before

    async with Multiplexer(url) as mpx:
        assert mpx.stats().state == "idle"
        assert await mpx.publish("a", "x") == 0
        assert await mpx.publish("a", "x") == 0
        sub = mpx.new_channel_subscription()
        assert await dialled() == 1
        assert not mpx.connected
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        assert await dialled() == 2
    async with Multiplexer(url) as mpx:
        await mpx.connect(5)
        assert await dialled() == 1


async def test_a_silent_server_is_named_in_each_timeout() -> None:
    """While nothing has ever answered, each error says so, and none that the server has not confirmed a name."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with Multiplexer(f"redis://{address}", publish_timeout=0.05) as mpx:
            sub = mpx.new_channel_subscription()
            sub.add("a")
            promises = mpx.new_promise_subscription("p")
            for waiting in (
                sub.wait_for_activation(timeout=0.05),
                mpx.connect(0.05),
                promises.wait_for_new_promise(timeout=0.05),
                mpx.request("a", "x", timeout=0.05),
                anext(mpx.request_many("a", "x", timeout=0.05)),
                mpx.publish("a", "x"),
            ):
                with pytest.raises((TimeoutError, ConnectionLost), match=f"no reply from Redis at {address} yet"):
                    await waiting


@pytest.mark.one_flavour
async def test_each_call_says_why_there_is_no_connection(server: Server, admin: Redis) -> None:
    """No password, a wrong one, or a wrong port: the text of each timeout has the reason, and what to do."""
    await admin.config_set("requirepass", "secret")
    for url, reason in (
        (server.url, r"no password was given: redis://user:password@host"),
        (server.url.replace("redis://", "redis://:wrong@"), r"invalid username-password pair[^(]*$"),
        (f"redis://127.0.0.1:{free_port()}", "Connect call failed"),
    ):
        async with Multiplexer(url, publish_timeout=0.2, backoff=QUICK) as mpx:
            for waiting in (
                mpx.connect(0.2),
                mpx.request("a", "x", timeout=0.2),
                anext(mpx.request_many("a", "x", timeout=0.2)),
                mpx.publish("a", "x"),
            ):
                with pytest.raises((TimeoutError, ConnectionLost), match=reason):
                    await waiting
