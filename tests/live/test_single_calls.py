"""Publishing, one call after the other: a call goes out and gets its reply without a step of the publisher's task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from redismpx import ConnectionLost, Multiplexer, MultiplexerIsClosed, NoResponders
from redismpx.errors import RedisMPXError

from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.waiting import until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]

WRONG = b"-ERR wrong\r\n"
EMPTY = b"*3\r\n:1\r\n$0\r\n\r\n*0\r\n"  # a page of a history without entries
PAGE = b"*3\r\n:1\r\n$7\r\n1-1 1-2\r\n*2\r\n$1\r\nx\r\n$5\r\n:12\r\n\r\n"  # one with two


async def at_rest(mpx: Multiplexer) -> object:
    """Wait until the task of the publisher waits for the next call; return what it waits for."""
    called = mpx._hub.deployment.publisher._pipeline._called
    await until(lambda: called._event is not None)
    return called._event


class Script:
    """A server that answers PUBLISH by its payload: with these bytes one by one, or else with the payload as a count.

    It answers a script in the same way, by its key: with these bytes, or else with an empty page of a history. `calls`
    has the payloads or keys, and for each the number of the connection.
    """

    def __init__(self, **replies: bytes) -> None:
        self.replies = replies
        self.calls: list[tuple[int, bytes]] = []
        self.server = FakeServer(self.run)
        self.write: Callable[[bytes], object] = print
        self.write_eof: Callable[[], object] = print

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.write, self.write_eof = self.server.accepted, writer.write, writer.write_eof
        command = await shake_hands(reader, writer)
        while True:
            is_script = command[0].startswith(b"EVAL")
            word = command[3 if is_script else 2]
            self.calls.append((number, word))
            reply = self.replies.get(word.decode())
            if reply is None:
                writer.write(EMPTY if is_script else b":%b\r\n" % word)
            else:
                for part in range(len(reply)):
                    writer.write(reply[part : part + 1])
                    await asyncio.sleep(0.002)  # or the parts would arrive as one
            command = await read_command(reader)


async def test_a_single_call_does_not_wake_the_task(url: str) -> None:
    """From the third call on, the task of the publisher waits on, and each call gets the count of its own message."""
    async with Multiplexer(url) as mpx, mpx.subscribe("a"):
        assert [await mpx.publish("a", "0") for _ in range(2)] == [1, 1]
        waiter = await at_rest(mpx)
        for channel in "abab":
            assert await mpx.publish(channel, "1") == (channel == "a")
        assert await at_rest(mpx) is waiter


async def test_calls_that_come_together_go_out_together(url: str) -> None:
    """After calls that came together, two at a time, the next ones go out together, and the task waits on."""
    async with Multiplexer(url) as mpx:
        assert [await mpx.publish("a", "0") for _ in range(3)] == [0, 0, 0]
        waiter = await at_rest(mpx)
        for _ in range(2):
            assert await asyncio.gather(mpx.publish("a", "1"), mpx.publish("a", "2")) == [0, 0]
        calls = [asyncio.ensure_future(mpx.publish("a", text)) for text in "34"]
        await asyncio.sleep(0)  # they are made
        assert len(mpx._hub.deployment.publisher._pipeline._sent) != 1  # both may be sent, or none yet
        assert await asyncio.gather(*calls) == [0, 0]
        assert await at_rest(mpx) is waiter


@pytest.mark.parametrize("behind", ["", "34"])
@pytest.mark.parametrize("reply", [b":12\r\n", WRONG, b"+OK\r\n"])
async def test_a_reply_in_pieces_is_that_of_its_call(reply: bytes, behind: str) -> None:
    """A reply that arrives byte by byte is read as a whole, and the calls before and after it get theirs."""
    script = Script(odd=reply)
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        calls = [mpx.publish("a", each) for each in ("odd", *behind)]
        odd, *after = await asyncio.gather(*calls, return_exceptions=True)
        if reply == b":12\r\n":
            assert odd == 12
        else:
            assert str(odd) == "wrong" if reply == WRONG else isinstance(odd, ConnectionLost)
        if reply != b"+OK\r\n":
            assert after == list(map(int, behind))
        await until(lambda: mpx._hub.deployment.publisher.pending == 0)
        assert [await mpx.publish("a", str(n)) for n in range(5, 9)] == [5, 6, 7, 8]


async def test_a_count_that_is_no_number_ends_the_connection() -> None:
    """A reply with more digits than a count has fails its call as ConnectionLost, and raises nowhere else."""
    messages: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: messages.append(context["message"]))
    script = Script(silent=b"")
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        call = asyncio.ensure_future(mpx.publish("a", "silent"))
        await until(lambda: script.calls[-1] == (1, b"silent"))
        script.write(b":" + b"1" * 5_000 + b"\r\n")
        with pytest.raises(ConnectionLost):
            await call
        assert await mpx.publish("a", "3") == 3
    assert not [text for text in messages if "Fatal error" in text]  # the fake server may raise at its end


async def test_an_error_reply_fails_its_single_call_alone() -> None:
    """A call that Redis rejects raises its error, and the connection stays."""
    script = Script(bad=WRONG)
    async with script.server.run() as url, Multiplexer(url) as mpx:
        for number in range(1, 4):
            assert await mpx.publish("a", str(number)) == number
            with pytest.raises(Exception, match="wrong"):
                await mpx.publish("a", "bad")
        assert script.server.accepted == 1


async def test_unasked_data_ends_an_idle_connection() -> None:
    """Data that arrives while no call is open belongs to no call: the next one goes over a new connection."""
    script = Script()
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        script.write(b":9\r\n")
        connection = mpx._hub.deployment.publisher._pipeline.current._connection
        assert connection is not None
        await until(lambda: bool(connection._raw._reader._buffer))
        assert await mpx.publish("a", "3") == 3
        assert script.calls == [(1, b"1"), (1, b"2"), (2, b"3")]


async def test_a_single_call_ends_at_its_deadline() -> None:
    """A call without a reply raises ConnectionLost in time, and a late reply goes to no other call."""
    script = Script(silent=b"")
    async with script.server.run() as url, Multiplexer(url, publish_timeout=0.2) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        calls = [asyncio.ensure_future(mpx.publish("a", "silent"))]
        await until(lambda: script.calls[-1] == (1, b"silent"))
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.2 s") as caught:
            await calls[0]
        assert caught.value.sent
        current = mpx._hub.deployment.publisher._pipeline.current
        await until(lambda: current._connection is None)  # without another call
        assert await mpx.publish("a", "3") == 3
        assert script.calls[-1] == (2, b"3")


async def test_a_single_call_leaves_an_outdated_connection() -> None:
    """A call right after the news that the server is the wrong one goes over a new connection."""
    script = Script()
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        mpx._hub.deployment.publisher.abandon(None)
        assert await mpx.publish("a", "3") == 3
        assert script.calls[-1] == (2, b"3")


@pytest.mark.parametrize("how", ["aclose", "cancel", "end", "reset"])
async def test_a_single_call_ends_with_its_connection(how: str) -> None:
    """A call without a reply raises as soon as the connection or the multiplexer ends, or it is cancelled."""
    script = Script(silent=b"")
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        call = asyncio.ensure_future(mpx.publish("a", "silent"))
        await until(lambda: script.calls[-1] == (1, b"silent"))
        if how == "cancel":
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            script.write(b":9\r\n")
            assert await mpx.publish("a", "3") == 3
            return
        if how == "aclose":
            await mpx.aclose()
        elif how == "end":  # the other end sends nothing more, and does not close the connection
            script.write_eof()
        else:
            connection = mpx._hub.deployment.publisher._pipeline.current._connection
            assert connection is not None
            connection.abort()
        with pytest.raises(RedisMPXError) as caught:
            await asyncio.wait_for(call, 2)
        assert isinstance(caught.value, ConnectionLost)
        assert caught.value.sent
        if how != "aclose":
            assert await mpx.publish("a", "3") == 3
            assert script.calls[-1] == (2, b"3")


async def test_calls_behind_a_single_one_keep_their_order() -> None:
    """Calls that are made while a single call is open wait for its reply, then go out in their order."""
    script = Script(slow=b":77\r\n")
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        texts = ["slow", *map(str, range(3, 20))]
        counts = await asyncio.gather(*[mpx.publish("a", text) for text in texts])
        assert counts == [77, *range(3, 20)]
        assert [text for _, text in script.calls] == [b"1", b"2", *map(str.encode, texts)]


async def test_a_large_call_is_not_overtaken() -> None:
    """A message that is too large to be sent at once goes out before the small ones behind it."""
    large = "x" * 100_000
    script = Script(**{large: b":77\r\n"})
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.publish("a", str(n)) for n in (1, 2)] == [1, 2]
        assert await asyncio.gather(*[mpx.publish("a", text) for text in (large, "3", "4")]) == [77, 3, 4]
        assert [len(text) for _, text in script.calls] == [1, 1, 100_000, 1, 1]


async def test_a_single_request_that_nobody_hears_fails(url: str) -> None:
    """A request without a responder raises NoResponders at once, also when no other call is made."""
    async with Multiplexer(url) as mpx:
        await mpx.publish("a", "1")
        await mpx.publish("a", "2")
        with pytest.raises(NoResponders):
            await mpx.request("nobody", "x", timeout=5)


# --- several calls that come together


@contextlib.asynccontextmanager
async def batch_of(
    count: int, *, by_task: bool = False, **options: Any
) -> AsyncIterator[tuple[Script, Multiplexer, list[asyncio.Task[int]]]]:
    """Make so many calls, which are sent in one batch, most often without the task. Only the test replies to them."""
    script = Script(silent=b"")
    async with script.server.run() as url, Multiplexer(url, **options) as mpx:
        for texts in () if by_task else ("12", "34"):
            assert await asyncio.gather(*[mpx.publish("a", text) for text in texts]) == list(map(int, texts))
            await at_rest(mpx)
        before = mpx._hub.deployment.publisher._pipeline._called._event
        calls = [asyncio.ensure_future(mpx.publish("a", "silent")) for _ in range(count)]
        await until(lambda: [text for _, text in script.calls[-count:]] == [b"silent"] * count)
        assert by_task or await at_rest(mpx) is before
        yield script, mpx, calls


@pytest.mark.parametrize(
    "chunks",
    [
        [b":1\r\n:2\r\n:3\r\n"],
        [b":1\r\n:2\r\n", b":3\r\n"],
        [b":1\r\n:2", b"\r\n:3\r\n"],
        [b":1\r\n:2\r", b"\n:3\r\n"],
        [b":1\r\n:", b"2\r\n:3\r\n"],
    ],
)
async def test_each_call_of_a_batch_gets_its_own_count(chunks: list[bytes]) -> None:
    """The counts go to the calls in their order, wherever the data is split; and so do those of the next batch."""
    async with batch_of(3) as (script, mpx, calls):
        behind = [asyncio.ensure_future(mpx.publish("a", text)) for text in "456"]
        for chunk in chunks:
            script.write(chunk)
            await asyncio.sleep(0.002)  # or the chunks would arrive as one
        assert await asyncio.gather(*calls, *behind) == [1, 2, 3, 4, 5, 6]
        assert script.server.accepted == 1


async def test_an_error_in_a_batch_fails_its_call_alone() -> None:
    """The calls before and after the one that Redis rejects get their counts, also if all replies arrive together."""
    async with batch_of(3) as (script, mpx, calls):
        behind = asyncio.ensure_future(mpx.publish("a", "4"))
        script.write(b":1\r\n" + WRONG + b":3\r\n")
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, str(second), third) == (1, "wrong", 3)
        assert await behind == 4
        assert script.server.accepted == 1


async def test_a_count_too_many_ends_the_connection() -> None:
    """More counts than calls prove that the counts belong to other calls: the next call gets a new connection."""
    async with batch_of(2) as (script, mpx, calls):
        script.write(b":1\r\n:2\r\n:3\r\n")
        await asyncio.gather(*calls)
        assert await mpx.publish("a", "4") == 4
        assert script.calls[-1] == (2, b"4")


@pytest.mark.parametrize("by_task", [False, True])
async def test_a_cancelled_call_of_a_batch_takes_its_count(by_task: bool) -> None:
    """The count of a call that was cancelled after it was sent goes to no other call."""
    async with batch_of(3, by_task=by_task) as (script, _, calls):
        calls[1].cancel()
        script.write(b":1\r\n:2\r\n:3\r\n")
        await asyncio.wait(calls)
        assert calls[1].cancelled()
        assert (await calls[0], await calls[2]) == (1, 3)


@pytest.mark.parametrize("how", ["aclose", "deadline", "end", "reset"])
async def test_a_batch_ends_with_its_connection(how: str) -> None:
    """Calls without a reply raise when the connection ends. A call before has its count, and one behind is sent."""
    async with batch_of(3, publish_timeout=0.5 if how == "deadline" else 5) as (script, mpx, calls):
        script.write(b":1\r\n")
        assert await calls[0] == 1
        behind = asyncio.ensure_future(mpx.publish("a", "4"))
        await asyncio.sleep(0)  # it is made
        if how == "aclose":
            await mpx.aclose()
        elif how == "end":
            script.write_eof()
        elif how == "reset":
            connection = mpx._hub.deployment.publisher._pipeline.current._connection
            assert connection is not None
            connection.abort()
        for call in calls[1:]:
            with pytest.raises(ConnectionLost) as caught:
                await asyncio.wait_for(call, 2)
            assert caught.value.sent
        if how == "aclose":
            with pytest.raises(MultiplexerIsClosed):
                await behind
        elif how != "deadline":  # its deadline is the same
            assert await behind == 4
            assert script.calls[-1] == (2, b"4")


async def test_calls_that_come_together_leave_an_outdated_connection() -> None:
    """Calls right before the news that the server is the wrong one, and not sent yet, go over a new connection."""
    script = Script()
    async with script.server.run() as url, Multiplexer(url) as mpx:
        for texts in ("12", "34"):
            assert await asyncio.gather(*[mpx.publish("a", text) for text in texts]) == list(map(int, texts))
        await at_rest(mpx)
        calls = [asyncio.ensure_future(mpx.publish("a", text)) for text in "56"]
        if not mpx._hub.deployment.publisher.pending:  # eager tasks have made the calls
            await asyncio.sleep(0)
        mpx._hub.deployment.publisher.abandon(None)
        assert await asyncio.gather(*calls) == [5, 6]
        assert script.calls[-2:] == [(2, b"5"), (2, b"6")]


async def test_large_batches_do_not_wake_the_task(url: str) -> None:
    """Calls with more data than is sent at once go out in several batches, in their order."""
    async with Multiplexer(url) as mpx, mpx.subscribe("a") as sub:
        for _ in range(2):
            await asyncio.gather(*[mpx.publish("a", "0") for _ in range(2)])
        waiter = await at_rest(mpx)
        payloads = [b"%03d" % n + b"x" * 10_000 for n in range(30)]
        assert await asyncio.gather(*[mpx.publish("a", each) for each in payloads]) == [1] * 30
        assert await at_rest(mpx) is waiter
        received = [(await sub.get(timeout=5)).data for _ in range(34)]
        assert received == [b"0"] * 4 + payloads


async def test_messages_and_scripts_keep_their_order(url: str) -> None:
    """Messages and entries that come together, after messages that did, go out in the order of the calls."""
    async with Multiplexer(url) as mpx, mpx.subscribe("mixed") as sub:
        for _ in range(2):
            await asyncio.gather(*[mpx.publish("mixed", "0") for _ in range(2)])
        await at_rest(mpx)
        calls: list[Coroutine[Any, Any, object]] = []
        for number in range(10):
            calls += [mpx.publish("mixed", b"%d" % number), mpx.append("mixed", b"%d" % number)]
        outcomes = await asyncio.gather(*calls)
        assert outcomes[::2] == [1] * 10
        received = [(await sub.get(timeout=5)).data for _ in range(24)]
        assert [data[-1:] for data in received[4:]] == [b"%d" % (n // 2) for n in range(20)]


async def test_requests_that_nobody_hears_fail_together(url: str) -> None:
    """Requests without a responder raise NoResponders, and messages that come with them get their counts."""
    async with Multiplexer(url) as mpx, mpx.subscribe("a"):
        for _ in range(2):
            await asyncio.gather(*[mpx.publish("a", "0") for _ in range(2)])
        await at_rest(mpx)
        calls: list[Coroutine[Any, Any, object]] = [mpx.publish("a", "1"), mpx.request("nobody", "x", timeout=5)]
        one, two, three = await asyncio.gather(*calls, mpx.publish("b", "2"), return_exceptions=True)
        assert (one, type(two), three) == (1, NoResponders, 0)


# --- scripts


def single_of(mpx: Multiplexer) -> Any:
    return mpx._hub.deployment.publisher._pipeline._shortcut


async def test_a_single_script_does_not_wake_the_task(url: str) -> None:
    """From the third call on, the task of the publisher waits on while pages and ids arrive."""
    async with Multiplexer(url) as mpx:
        ids = [await mpx.append("single", "0") for _ in range(2)]
        assert [message.id for message in await mpx.history("single")] == ids
        waiter = await at_rest(mpx)
        for number in range(5):
            ids.append(await mpx.append("single", b"%d" % number, key=b"%d" % number))
            assert await mpx.publish("single", "1") == 0
            assert [message.id for message in await mpx.history("single")] == ids
        assert await at_rest(mpx) is waiter


@pytest.mark.parametrize("behind", ["", "34"])
@pytest.mark.parametrize("reply", [PAGE, WRONG, b"*1\r\n@\r\n", b":1\r\n"])
async def test_a_page_in_pieces_is_that_of_its_call(reply: bytes, behind: str) -> None:
    """A page that arrives byte by byte is read as a whole, also if another call is made in the middle of it."""
    script = Script(odd=reply)
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.history("s") for _ in range(2)] == [[], []]
        call = asyncio.ensure_future(mpx.history("odd"))
        await until(lambda: bool(single_of(mpx)._parts))
        odd, *after = await asyncio.gather(call, *[mpx.publish("a", each) for each in behind], return_exceptions=True)
        if reply == PAGE:
            assert [(each.data, each.id) for each in odd] == [(b"x", b"1-1"), (b":12\r\n", b"1-2")]
        else:
            assert isinstance(odd, Exception)
        if reply in (PAGE, WRONG):
            assert after == list(map(int, behind))
            assert script.server.accepted == 1
        await until(lambda: mpx._hub.deployment.publisher.pending == 0)
        assert [await mpx.history("s") for _ in range(4)] == [[]] * 4


async def test_a_long_page_is_not_kept_twice() -> None:
    """The task reads a reply of more than a megabyte: for the others, what has arrived is kept beside the parser."""
    script = Script(long=b"")
    async with script.server.run() as url, Multiplexer(url) as mpx:
        assert [await mpx.history("s") for _ in range(2)] == [[], []]
        call = asyncio.ensure_future(mpx.history("long"))
        await until(lambda: script.calls[-1] == (1, b"long"))
        single = single_of(mpx)
        assert single._busy is not None
        script.write(b"*3\r\n:1\r\n$3\r\n1-1\r\n*1\r\n$2000000\r\n" + b"x" * 1_900_000)
        await until(lambda: single._busy is None)
        script.write(b"x" * 100_000 + b"\r\n")
        (message,) = await call
        assert message.data == b"x" * 2_000_000
        assert await mpx.history("s") == []
        assert script.server.accepted == 1


async def test_a_script_that_was_rejected_fails_alone(url: str, admin: Redis) -> None:
    """A script for a key of another type fails; one that the server has forgotten is sent again."""
    await admin.set("text", "x")
    async with Multiplexer(url) as mpx:
        for number in range(5):
            appended = await mpx.append("s", b"%d" % number)
            with pytest.raises(ResponseError, match="WRONGTYPE"):
                await mpx.history("text")
            await admin.script_flush()
            assert (await mpx.history("s", limit=1_000))[-1].id == appended


@pytest.mark.parametrize("how", ["deadline", "cancel", "reset", "end"])
async def test_half_a_page_goes_to_no_other_call(how: str) -> None:
    """A call that ends in the middle of its reply leaves nothing of it to the next one."""
    script = Script(half=b"")
    async with script.server.run() as url, Multiplexer(url, publish_timeout=0.2 if how == "deadline" else 5) as mpx:
        assert [await mpx.history("s") for _ in range(2)] == [[], []]
        call = asyncio.ensure_future(mpx.history("half"))
        await until(lambda: script.calls[-1] == (1, b"half"))
        script.write(PAGE[:4])
        await until(lambda: bool(single_of(mpx)._parts))
        if how == "cancel":
            call.cancel()
            await asyncio.wait([call])
            script.write(PAGE[4:])
            assert await mpx.publish("a", "3") == 3
            assert script.calls[-1] == (1, b"3")
            return
        connection = mpx._hub.deployment.publisher._pipeline.current._connection
        assert connection is not None
        if how == "reset":
            connection.abort()
        elif how == "end":
            script.write_eof()
        with pytest.raises(ConnectionLost) as caught:
            await asyncio.wait_for(call, 2)
        assert caught.value.sent
        assert [await mpx.publish("a", str(n)) for n in range(3, 7)] == [3, 4, 5, 6]
        assert script.calls[-1] == (2, b"6")
