"""The calls for a slot keep their order, also while the nodes of a cluster do not agree who owns it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import NoPermissionError

from redismpx import ConnectionLost, Multiplexer, MultiplexerIsClosed

from ..helpers.fake_server import FakeServer, read_command
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

CHANNEL = b"a"


class Nodes:
    """Two scripted nodes. `accepts` decides for each message on CHANNEL whether the node with this number has its slot.

    `errors` are payloads that are rejected for another reason. `runs` tells, for each script, the error that the node
    replies with, or that it runs the script.
    """

    def __init__(
        self,
        accepts: Callable[[int], bool] = bool,
        *,
        knows_owner: bool = True,
        errors: Collection[bytes] = (),
        runs: Callable[[int], str] = lambda number: "",
    ) -> None:
        self.accepts = accepts
        self._runs = runs
        self._errors = errors
        self._knows_owner = knows_owner
        self._ports = [0, 0]
        self.published: list[bytes] = []
        """The messages that were accepted, also by a script."""
        self.rejected = 0

    @asynccontextmanager
    async def run(self, **options: Any) -> AsyncIterator[Multiplexer]:
        """Run the nodes; yield a multiplexer whose slot map says that the first of them has all slots."""
        one, other = (FakeServer(lambda reader, writer, n=n: self._serve(reader, writer, n)) for n in range(2))
        async with one.run() as url, other.run() as other_url:
            self._ports = [int(each.rpartition(":")[2].partition("?")[0]) for each in (url, other_url)]
            client = RedisCluster(host="127.0.0.1", port=self._ports[0], protocol=2)
            async with Multiplexer(client, **options) as mpx:
                await mpx.connect(10)  # the slot map is known from here on
                yield mpx

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            command = await read_command(reader)
            if command[0] == b"CLUSTER":
                last = 16383 if self._knows_owner else 0
                writer.write(b"*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % (last, self._ports[0]))
            elif command[0] in (b"EVAL", b"EVALSHA"):
                error = self._runs(number)
                if not error:
                    self.published.append(command[5])
                    error = "+1-1"
                writer.write(f"{error.format(f'{key_slot(CHANNEL)} 127.0.0.1:{self._ports[1 - number]}')}\r\n".encode())
            elif command[0] != b"SPUBLISH":
                writer.write(b"+OK\r\n")
            elif command[2] in self._errors:
                writer.write(b"-NOPERM not this one\r\n")
            elif command[1] != CHANNEL or self.accepts(number):
                self.published.append(command[2])
                writer.write(b":1\r\n")
            else:
                self.rejected += 1
                writer.write(b"-MOVED %d 127.0.0.1:%d\r\n" % (key_slot(CHANNEL), self._ports[1 - number]))


def start(mpx: Multiplexer, count: int, first: int = 0) -> list[asyncio.Task[int]]:
    return [
        asyncio.ensure_future(mpx.publish(CHANNEL, b"%d" % number, sharded=True))
        for number in range(first, first + count)
    ]


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


@pytest.mark.parametrize("knows_owner", [True, False])
@pytest.mark.parametrize("rejections", [1, 2, 3, 5])
async def test_no_call_overtakes_an_earlier_one(rejections: int, knows_owner: bool) -> None:
    """A node that rejects a call may accept the next one. It gets the next one when the first has been accepted."""
    left = rejections

    def accepts(number: int) -> bool:
        nonlocal left
        left -= 1
        return left < 0

    nodes = Nodes(accepts, knows_owner=knows_owner)
    async with nodes.run() as mpx:
        assert await asyncio.gather(*start(mpx, 1000)) == [1] * 1000
    assert nodes.published == numbers(1000)
    assert nodes.rejected == rejections


async def test_a_slot_that_moves_in_a_batch_keeps_its_order() -> None:
    """The old owner accepts the first calls of a batch; the others follow the slot, and new calls go behind them."""
    nodes = Nodes(lambda number: number == (len(nodes.published) >= 700))
    async with nodes.run() as mpx:
        calls = start(mpx, 900)
        await until(lambda: len(nodes.published) >= 701)
        calls += start(mpx, 100, 900)
        await asyncio.gather(*calls)
    assert nodes.published == numbers(1000)


@pytest.mark.parametrize("end", ["MOVED {}", ""])
@pytest.mark.parametrize("error", ["ASK {}", "TRYAGAIN not now", "NOSCRIPT no such script"])
async def test_scripts_keep_their_order_when_keys_move(error: str, end: str) -> None:
    """A node may not run a script for now, and run the next one, or redirect it: none overtakes an earlier one."""
    count = 0

    def runs(number: int) -> str:
        nonlocal count
        count += 1
        if number == 1 or count <= 3:
            return ""
        is_rejected = count <= 6 if end else count <= 14  # a part of the first batch; or all of it, and one more
        return f"-{error}" if is_rejected else end and f"-{end}"

    nodes = Nodes(runs=runs)
    async with nodes.run() as mpx:
        await asyncio.gather(*[mpx.append(CHANNEL, b"%d" % number) for number in range(12)])
    assert nodes.published == numbers(12)


async def test_disagreeing_nodes_leave_other_slots_alone() -> None:
    """While the nodes redirect the calls for one slot to each other, messages for other slots are published."""
    nodes = Nodes(lambda number: False)
    async with nodes.run() as mpx:
        calls = start(mpx, 10_000)
        await until(lambda: nodes.rejected > 3)
        for number in range(10):
            assert await mpx.publish("other", b"other %d" % number, sharded=True) == 1
        nodes.accepts = lambda number: number == 0
        assert await asyncio.gather(*calls) == [1] * 10_000
    assert [each for each in nodes.published if each.isdigit()] == numbers(10_000)


async def test_calls_between_the_nodes_fail_in_time() -> None:
    """Calls that no node accepts fail after `publish_timeout`, as calls that were not sent."""
    nodes = Nodes(lambda number: False)
    async with nodes.run(publish_timeout=0.3) as mpx:
        loop = asyncio.get_running_loop()
        began = loop.time()
        calls = start(mpx, 1000)
        await asyncio.sleep(0.1)
        calls += start(mpx, 10, 1000)
        on_its_way = 0  # one call at a time, and a busy machine may be late with its reply
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, ConnectionLost)
            on_its_way += outcome.sent is True
            assert outcome.sent or "not sent within 0.3 s" in outcome.reason
        assert on_its_way <= 2
        assert loop.time() - began < 5
        assert mpx._hub.deployment.publisher.pending == 0
    assert nodes.published == []


@pytest.mark.parametrize("how", ["close", "drain"])
async def test_calls_between_the_nodes_end_with_the_multiplexer(how: str) -> None:
    """close() fails the calls that no node has accepted yet; drain() waits for them."""
    nodes = Nodes(lambda number: how == "drain" and nodes.rejected > 5)
    async with nodes.run() as mpx:
        calls = start(mpx, 100)
        await until(lambda: nodes.rejected > 3)
        if how == "close":
            assert mpx._hub.deployment.publisher.pending == 100
            mpx.close()
            for _ in range(3):
                await asyncio.sleep(0)
            assert all(call.done() for call in calls)  # none was sent on
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {MultiplexerIsClosed, ConnectionLost}
            assert nodes.published == []
        else:
            await mpx.drain(10)
            assert await asyncio.gather(*calls) == [1] * 100
            assert nodes.published == numbers(100)


async def test_a_cancelled_call_holds_up_no_others() -> None:
    """The call that is being redirected may be cancelled: the calls behind it take its place, in their order."""
    nodes = Nodes(lambda number: False)
    async with nodes.run() as mpx:
        calls = start(mpx, 100)
        await until(lambda: nodes.rejected > 3)
        for call in calls[:10]:
            call.cancel()
        nodes.accepts = lambda number: number == 1
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes[10:] == [1] * 90
    assert nodes.published[-90:] == numbers(100)[10:]


async def test_a_rejected_call_holds_up_no_others() -> None:
    """A call that fails at the first node for another reason does not stop the calls behind it."""
    nodes = Nodes(lambda number: True, errors={b"0", b"1"})
    async with nodes.run() as mpx:
        outcomes = await asyncio.gather(*start(mpx, 100), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes[:2]} == {NoPermissionError}
    assert outcomes[2:] == [1] * 98
    assert nodes.published == numbers(100)[2:]
