"""What a connection has received is delivered before its loss is reported."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import trustme
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer

from ..helpers.fake_server import FakeServer, shake_hands
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.servers import Server, TLSServer, find_binary
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

BURST = 6_000  # messages: more than one read takes, and more than one time slice delivers
SIZE = 100  # bytes of each
SLOW = 20e-6  # seconds that the callback takes


class Wire(NamedTuple):
    """A way to a server: the URL and the options of the multiplexer, and a blocking client for the test."""

    url: str
    options: dict[str, Any]
    admin: redis.Redis


@pytest.fixture(params=[*FLAVOURS, "unix socket", "tls"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wire]:
    """Each transport to a server that does not drop a slow subscriber."""
    options: dict[str, Any] = {}
    if request.param == "tls":
        authority = trustme.CA()
        path = tmp_path / "authority.pem"
        authority.cert_pem.write_to_path(str(path))
        binary = find_binary("redis")
        assert binary is not None
        pem = authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
        server: Server = TLSServer(binary, pem).start()
        assert isinstance(server, TLSServer)
        url, options = f"rediss://localhost:{server.tls_port}", {"ssl_ca_certs": str(path)}
    elif request.param == "unix socket":
        server = start_server(FLAVOURS[0], "--unixsocket", str(tmp_path / "socket"))
        url = f"unix://{tmp_path / 'socket'}"
    else:
        server = start_server(request.param)
        url = server.url
    with redis.Redis(port=server.port) as admin:
        admin.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        yield Wire(url, options, admin)
    server.remove()


class Received:
    """The callbacks of a subscription that is slower than its messages."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.at_loss: int | None = None

    def on_message(self, channel: bytes, data: bytes) -> None:
        end = time.perf_counter() + SLOW
        while time.perf_counter() < end:
            pass
        self.numbers.append(int(data))

    def on_disconnect(self, error: Exception) -> None:
        if self.at_loss is None:
            self.at_loss = len(self.numbers)

    def assert_complete(self) -> None:
        assert self.at_loss == BURST
        assert self.numbers[:BURST] == list(range(BURST))


def publish_burst(admin: redis.Redis) -> None:
    """Publish while the loop stands still."""
    pipeline = admin.pipeline(transaction=False)
    for number in range(BURST):
        pipeline.publish("a", b"%0*d" % (SIZE, number))
    assert sum(pipeline.execute()) == BURST


@pytest.fixture
async def complaints() -> AsyncIterator[list[Any]]:
    """What the loop's exception handler gets: nothing, in each of these tests."""
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))
    yield heard
    assert not heard


@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("how", ["killed", "abandoned", "killed while it is read"])
async def test_all_that_arrived_is_delivered_before_the_loss(wire: Wire, how: str) -> None:
    """Whether the server ends the connection or the client does, every message that was sent is delivered."""
    received = Received()
    async with Multiplexer(wire.url, **wire.options) as mpx:
        sub = mpx.new_channel_subscription(received.on_message, received.on_disconnect)
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        publish_burst(wire.admin)
        if how == "killed while it is read":
            await until(lambda: bool(received.numbers))
        deadline = time.monotonic() + 10  # until the server has written everything to the socket
        while any(int(client["obl"]) + int(client["omem"]) for client in wire.admin.client_list(_type="pubsub")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        if how == "abandoned":
            mpx._hub.deployment.abandon("a test")
        else:
            wire.admin.client_kill_filter(_type="pubsub")
        await until(lambda: received.at_loss is not None)
        received.assert_complete()
        assert sub.dropped == 0


async def send_burst(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Confirm the channel, and send messages; return when they are all in the socket."""
    assert await shake_hands(reader, writer) == [b"SUBSCRIBE", b"a"]
    writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
    for number in range(BURST):
        writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$%d\r\n%0*d\r\n" % (SIZE, SIZE, number))
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()


@pytest.mark.usefixtures("complaints")
async def test_a_failed_write_loses_nothing_that_arrived() -> None:
    """A reset makes the next write fail; the messages before it are still in the socket."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    received = Received()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send_burst(reader, writer)
        file = writer.get_extra_info("socket").fileno()
        await until(lambda: not struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)))[0])  # all has arrived
        reset = struct.pack("ii", 1, 0)  # SO_LINGER of 0 seconds
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

    async with FakeServer(script).run() as url, Multiplexer(url, backoff=ConstantBackoff(5)) as mpx:
        sub = mpx.new_channel_subscription(received.on_message, received.on_disconnect)
        sub.add("a")
        await until(lambda: bool(received.numbers))
        for number in range(8_000):  # each is a write
            if received.at_loss is not None:
                break
            sub.add(f"{number}")
            await asyncio.sleep(0)
        await until(lambda: received.at_loss is not None)
        received.assert_complete()


async def test_an_abandoned_link_sends_nothing_more() -> None:
    """The server gets no command after the decision, although messages are still delivered."""
    received = Received()
    after: list[bytes] = []
    sent = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send_burst(reader, writer)
        sent.set()
        after.append(await reader.read())

    async with FakeServer(script).run() as url, Multiplexer(url, backoff=ConstantBackoff(5)) as mpx:
        sub = mpx.new_channel_subscription(received.on_message, received.on_disconnect)
        sub.add("a")
        await sent.wait()
        mpx._hub.deployment.abandon("a test")
        sub.add("b")
        await until(lambda: received.at_loss is not None)
        received.assert_complete()
        await until(lambda: bool(after))
        assert after[0] == b""


async def test_a_server_that_goes_on_sending_is_left() -> None:
    """A link that is abandoned ends, although the server never stops to send."""
    received = Received()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
        while True:
            writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n0\r\n")
            await writer.drain()
            await asyncio.sleep(0)

    async with FakeServer(script).run() as url, Multiplexer(url, backoff=ConstantBackoff(5)) as mpx:
        sub = mpx.new_channel_subscription(received.on_message, received.on_disconnect)
        sub.add("a")
        await until(lambda: bool(received.numbers))
        mpx._hub.deployment.abandon("a test")
        await until(lambda: received.at_loss is not None)
