"""Request and reply: each request has one outcome, handlers are bounded, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.backoff import ConstantBackoff
from redis.exceptions import NoPermissionError

from redismpx import (
    ConnectionLost,
    DecodeError,
    Envelope,
    Multiplexer,
    MultiplexerIsClosed,
    NoResponders,
    Promise,
    PromiseInterrupted,
    PromiseTimeout,
    RedisMPXError,
    Request,
    RequestFailed,
    Service,
    SlowConsumer,
    SubscriptionIsClosed,
    SubscriptionRefused,
    TooManyChannels,
    TooManyPatterns,
    TooManyPromises,
    escape_glob,
)
from redismpx._io.runtime.log import LOG_INTERVAL
from redismpx.request import _PublishingOutcome
from redismpx.testing import Proxy
from tools.measure_requests import storm

from ..helpers.cluster import Cluster
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.monitor import subscribed
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def mpx(url: str) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(url) as mpx:
        yield mpx


@pytest.fixture
async def other(url: str) -> AsyncIterator[Multiplexer]:
    """The multiplexer of another process, as far as the server can tell."""
    async with Multiplexer(url) as other:
        yield other


@pytest.fixture(autouse=True)
def quiet_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No callback of the loop fails, no exception is never retrieved."""
    yield
    assert [
        each for each in caplog.get_records("call") if each.name == "asyncio" and each.levelno >= logging.ERROR
    ] == []


async def active(service: Service) -> Service:
    await service.wait_for_activation(timeout=10)
    return service


def nothing_left(mpx: Multiplexer, subscriptions: int = 1) -> bool:
    """Nothing is left of requests but the promise subscription that all of them share."""
    stats = mpx.stats()
    return (stats.promises, stats.patterns, stats.subscriptions) == (0, subscriptions, subscriptions)


# --- one answer


async def test_a_request_gets_its_reply(mpx: Multiplexer, other: Multiplexer) -> None:
    """A request gets the handler's reply; the handler sees channel, body, headers and reply channel."""
    requests: list[Request] = []

    async def shout(request: Request) -> bytes:
        requests.append(request)
        return request.body.upper()

    async with await active(mpx.serve("shout", shout)) as service:
        assert await other.request("shout", "hä", timeout=10, headers={"Trace": "7"}) == "hä".encode().upper()
        assert await other.request(b"shout", bytearray(b"\0\xff"), timeout=10) == b"\0\xff"
        first, second = requests
        assert (first.channel, first.body, first.headers) == (b"shout", "hä".encode(), {"Trace": "7"})
        assert second.headers == {}
        assert first.reply_to is not None
        assert first.reply_to.startswith(b"__mpx_reply:")
        assert first.id < second.id
        assert first.timestamp <= second.timestamp
        assert repr(first) == f"<Request {first.id} on b'shout', 3 bytes>"
        await until(lambda: service.in_flight == 0)
        assert repr(service) == "<Service b'shout' in_flight=0 active=1/1 pending=0 dropped=0>"
    assert service.closed
    assert repr(service) == "<Service b'shout' in_flight=0 closed pending=0 dropped=0>"
    assert nothing_left(other)


async def test_a_handler_may_be_any_callable(mpx: Multiplexer) -> None:
    """Functions, coroutines, lambdas, partials and objects can be handlers; None is an empty reply."""

    async def later(request: Request) -> bytes:
        await asyncio.sleep(0)
        return b"later"

    class Handler:
        async def __call__(self, request: Request) -> None:
            await asyncio.sleep(0)

    async def two(extra: int, request: Request) -> bytes:
        return b"%d" % extra

    services = [
        mpx.serve("plain", lambda request: b"plain"),
        mpx.serve("coroutine", later),
        mpx.serve("lambda", lambda request: later(request)),
        mpx.serve("partial", functools.partial(two, 7)),
        mpx.serve("none", lambda request: None),
        mpx.serve("object", Handler()),
    ]
    for service in services:
        await active(service)
    names = ["plain", "coroutine", "lambda", "partial", "none", "object"]
    answers = await asyncio.gather(*[mpx.request(name, b"", timeout=10) for name in names])
    assert answers == [b"plain", b"later", b"later", b"7", b"", b""]


async def test_all_requests_share_one_unguessable_pattern(mpx: Multiplexer, other: Multiplexer, admin: Redis) -> None:
    """A multiplexer receives all replies through one pattern, with 128 random bits in it and in each channel."""
    seen: list[bytes] = []
    await active(mpx.serve("note", lambda request: seen.append(request.reply_to or b"")))
    await asyncio.gather(*[each.request("note", b"", timeout=10) for each in (mpx, other) for _ in range(50)])
    assert await subscribed(admin) == ({b"note"}, 2)
    assert mpx.stats().patterns == other.stats().patterns == 1
    assert len(set(seen)) == 100
    prefixes = {channel.rpartition(b":")[0] for channel in seen}
    assert len(prefixes) == 2
    assert {len(channel) for channel in seen} == {len(b"__mpx_reply:") + 22 + 1 + 22}  # 128 bits, twice


async def test_each_forked_child_has_its_own_reply_prefix(url: str) -> None:
    """A multiplexer may be made before processes fork: their requests must not receive each other's replies."""
    unused = Multiplexer(url)
    parent, child = unused._requester, copy.copy(unused._requester)
    assert parent._prefix != child._prefix


async def test_no_responders_raises_at_once(mpx: Multiplexer) -> None:
    """A request on a channel without subscribers raises NoResponders and does not wait for the timeout."""
    with pytest.raises(NoResponders, match="no subscriber on b'nobody'") as caught:
        await mpx.request("nobody", b"", timeout=600)
    assert caught.value.channel == b"nobody"
    with pytest.raises(NoResponders):
        await anext(mpx.request_many("nobody", b"", timeout=600))
    assert nothing_left(mpx)


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_one_cluster_nodes_count_proves_nothing(flavour: str) -> None:
    """A cluster node counts its own subscribers only, so a count of 0 is no reason for NoResponders."""
    server = start_server(flavour, "--cluster-enabled", "yes")
    try:
        async with Multiplexer(server.admin_url) as mpx:
            with pytest.raises(PromiseTimeout):
                await mpx.request("nobody", b"", timeout=0.5)
            assert [answer async for answer in mpx.request_many("nobody", b"", timeout=0.2)] == []
            await active(mpx.serve("somebody", lambda request: b"here"))
            assert await mpx.request("somebody", b"", timeout=10) == b"here"
    finally:
        server.remove()


async def test_a_late_reply_does_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """A reply after the timeout is ignored, and the next request gets its own reply."""
    late = asyncio.Event()
    seen: list[Request] = []

    async def wait(request: Request) -> bytes:
        seen.append(request)
        await late.wait()
        return b"late"

    service = await active(mpx.serve("slow", wait, concurrency=2))
    with pytest.raises(PromiseTimeout, match=r"no reply to a request on b'slow' within 0\.05 s") as caught:
        await mpx.request("slow", b"", timeout=0.05)
    assert caught.value.channel == b"slow"
    assert nothing_left(mpx, 2) is False  # the service has a channel, and no pattern
    assert mpx.stats().promises == 0
    next_one = asyncio.ensure_future(mpx.request("slow", b"", timeout=30))
    await until(lambda: len(seen) == 2)
    late.set()
    assert await next_one == b"late"
    await until(lambda: service.in_flight == 0)
    assert mpx.stats().promises == 0


async def test_a_handlers_exception_reaches_the_requester(
    url: str, other: Multiplexer, caplog: pytest.LogCaptureFixture
) -> None:
    """The requester gets the handler's exception as one escaped line; on_error and the log get it too."""
    errors: list[Exception] = []

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async def fail(request: Request) -> bytes:
        match request.body:
            case b"text":
                raise ValueError("no X: y\0\ud800 \x1b[31m way\r\nthe rest")
            case b"long":
                raise LookupError("x" * 100_000)
            case b"mute":
                raise MuteError
            case b"empty":
                raise KeyError
            case b"cancelled":
                raise asyncio.CancelledError
            case b"interrupted":
                raise PromiseInterrupted(b"a", "closed")
            case _:
                return 7  # type: ignore[return-value]

    async with Multiplexer(url, on_error=errors.append) as mpx:
        await active(mpx.serve("fail", fail))
        reasons: dict[str, str] = {}
        for body in ("text", "long", "mute", "empty", "cancelled", "interrupted", "type"):
            with pytest.raises(RequestFailed) as caught:
                await other.request("fail", body, timeout=10)
            assert str(caught.value) == f"the request on b'fail' failed: {caught.value.reason}"
            assert caught.value.channel == b"fail"
            reasons[body] = caught.value.reason
        assert reasons["text"] == r"ValueError: no X: y\x00\ud800 \x1b[31m way"
        assert reasons["long"] == f"LookupError: {'x' * 487}"
        assert (reasons["mute"], reasons["empty"], reasons["cancelled"]) == ("MuteError", "KeyError", "CancelledError")
        assert reasons["interrupted"] == "PromiseInterrupted: the wait for a message on b'a' was interrupted: closed"
        assert (
            reasons["type"] == "TypeError: a handler must return bytes or None, not int; encode= converts its results"
        )
        await until(lambda: len(errors) == 7)
        assert type(errors[0]) is ValueError
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert messages[0] == "the handler of service on b'fail' raised ValueError"
    assert len(messages) == 7


async def test_a_handler_that_always_fails_does_not_flood_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Failures of one type are logged once per interval, on_error's own failures included."""
    reported = asyncio.Event()

    async def on_error(error: Exception) -> None:
        reported.set()
        raise error

    def fail(request: Request) -> bytes:
        raise ValueError

    began = asyncio.get_running_loop().time()
    async with Multiplexer(url, on_error=on_error) as mpx:
        await active(mpx.serve("fail", fail, concurrency=100))
        several = [mpx.request("fail", b"", timeout=30) for _ in range(200)]
        assert {type(each) for each in await asyncio.gather(*several, return_exceptions=True)} == {RequestFailed}
        await reported.wait()
        rounds = (asyncio.get_running_loop().time() - began) // LOG_INTERVAL + 1
    assert len(caplog.records) <= rounds  # of on_error's failures there are none beside, for they are of the same type


async def test_a_reply_that_cannot_be_sent_is_a_failure(url: str, other: Multiplexer) -> None:
    """A reply longer than max_payload fails the request with the reason."""
    errors: list[Exception] = []
    async with Multiplexer(url, max_payload=1000, on_error=errors.append) as mpx:
        await active(mpx.serve("long", lambda request: b"x" * 1000))
        with pytest.raises(
            RequestFailed, match=r"ValueError: a payload of \d+ bytes is longer than max_payload=1000"
        ) as caught:
            await other.request("long", b"", timeout=10)
        assert caught.value.channel == b"long"
        with pytest.raises(ValueError, match="longer than max_payload=1000"):
            await mpx.request("long", b"x" * 1000, timeout=10)
        await until(lambda: len(errors) == 1)
    assert nothing_left(other)


@pytest.mark.parametrize("is_heard", [False, True], ids=["without on_error", "with on_error"])
async def test_an_outage_is_no_fault_of_the_handler(
    server: Server, caplog: pytest.LogCaptureFixture, is_heard: bool
) -> None:
    """A reply that cannot be published goes to on_error; without one, the log has its reason, and no traceback."""
    errors: list[Exception] = []
    on_error = errors.append if is_heard else None
    with Proxy(server.port) as proxy:
        here = Multiplexer(proxy.url, publish_timeout=0.1, on_error=on_error)
        async with here as mpx, Multiplexer(server.url) as other:
            lost = asyncio.Event()

            def lose(request: Request) -> None:
                proxy.stop_listening()
                proxy.cut()
                lost.set()

            service = await active(mpx.serve("price", lose))
            requesting = asyncio.create_task(other.request("price", b"", timeout=60))
            await lost.wait()
            await until(lambda: not service.in_flight)
            requesting.cancel()
    records = [record for record in caplog.records if "service on b'price'" in record.getMessage()]
    assert [type(error) for error in errors] == [ConnectionLost] * is_heard
    assert [(record.levelno, record.exc_info) for record in records] == [(logging.WARNING, None)] * (not is_heard)


async def test_missing_rights_are_reported_to_each_side(server: Server, admin: Redis) -> None:
    """A missing right raises at the requester; at the service it goes to on_error."""

    async def set_user(name: str, *rights: str) -> str:
        await admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", "+@all", *rights)
        return f"redis://{name}:secret@127.0.0.1:{server.port}"

    errors: list[Exception] = []
    no_prefix = await set_user(
        "no-prefix", "&question", "&__mpx_reply:*"
    )  # patterns must be permitted letter by letter
    no_asking = await set_user("no-asking", "&*", "-publish")
    no_answer = await set_user("no-answer", "&question")
    async with Multiplexer(no_prefix) as one, Multiplexer(no_asking) as two:
        with pytest.raises(SubscriptionRefused):
            await one.request("question", b"", timeout=30)
        with pytest.raises(NoPermissionError):
            await two.request("question", b"", timeout=30)
        assert one.stats().promises == two.stats().promises == 0
    async with Multiplexer(no_answer, on_error=errors.append) as three, Multiplexer(server.admin_url) as four:
        await active(three.serve("question", lambda request: b""))
        with pytest.raises(PromiseTimeout):
            await four.request("question", b"", timeout=0.2)
        assert [answer async for answer in four.request_many("question", b"", timeout=0.2)] == []
        assert [type(error) for error in errors] == [NoPermissionError] * 2


async def test_a_cancelled_request_leaves_nothing(mpx: Multiplexer) -> None:
    """Cancelled requests leave no promise behind, at whatever moment they are cancelled."""
    asked: list[Request] = []

    async def never(request: Request) -> bytes:
        asked.append(request)
        await asyncio.Event().wait()
        return b""

    await active(mpx.serve("never", never, concurrency=1000))
    tasks = [asyncio.ensure_future(mpx.request("never", b"", timeout=600)) for _ in range(500)]
    for task in tasks[:100]:
        await asyncio.sleep(0)
        task.cancel()
    await until(lambda: len(asked) >= 400)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert mpx.stats().promises == 0
    assert mpx.stats().patterns == 1


async def test_a_lost_connection_interrupts_pending_requests(server: Server, admin: Redis) -> None:
    """A lost connection fails pending requests with ConnectionLost; new requests work afterwards."""
    async with Multiplexer(server.admin_url, backoff=ConstantBackoff(0.01)) as mpx:
        gate = asyncio.Event()

        async def wait(request: Request) -> bytes:
            await gate.wait()
            return b"late"

        service = await active(mpx.serve("slow", wait))
        asking = asyncio.ensure_future(mpx.request("slow", b"", timeout=600))
        many = asyncio.ensure_future(anext(mpx.request_many("slow", b"", timeout=600)))
        await until(lambda: service.in_flight + service.pending == 2)
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for each in (asking, many):
            with pytest.raises(ConnectionLost) as caught:
                await each
            assert caught.value.sent
            assert isinstance(caught.value.__cause__, ConnectionLost)
        gate.set()
        await active(service)
        await until(lambda: service.in_flight + service.pending == 0)
        assert await mpx.request("slow", b"", timeout=30) == b"late"


async def test_a_lost_connection_interrupts_an_unsent_request(server: Server) -> None:
    """A request that is still being published fails too when its connection is lost."""
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01), publish_timeout=600) as mpx:
        service = await active(mpx.serve("a", lambda request: b""))
        assert await mpx.request("a", b"", timeout=30) == b""
        server.freeze()
        asking = asyncio.ensure_future(mpx.request("a", b"", timeout=600))
        many = asyncio.ensure_future(anext(mpx.request_many("a", b"", timeout=600)))
        await until(lambda: mpx._hub.deployment.publisher.pending == 1)
        server.kill()
        with pytest.raises(ConnectionLost):
            await asking
        assert mpx.stats().promises == 0
        server.start()
        await active(service)
        assert await many == b""  # it had not begun yet
        assert await mpx.request("a", b"", timeout=30) == b""


async def test_a_lost_connection_interrupts_a_hanging_publish(server: Server, admin: Redis) -> None:
    """A lost connection fails a request although its publish still waits for a reply."""
    async with Multiplexer(server.admin_url, backoff=ConstantBackoff(0.01), publish_timeout=600) as mpx:
        service = await active(mpx.serve("a", lambda request: b""))
        assert await mpx.request("a", b"", timeout=30) == b""
        await admin.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")  # of all that is done here, PUBLISH alone
        asking = asyncio.ensure_future(mpx.request("a", b"", timeout=600))
        many = asyncio.ensure_future(anext(mpx.request_many("a", b"", timeout=600)))
        await until(lambda: mpx._hub.deployment.publisher.pending == 2)
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for each in (asking, many):
            with pytest.raises(ConnectionLost):
                await each
        await admin.execute_command("CLIENT", "UNPAUSE")
        await active(service)
        assert await mpx.request("a", b"", timeout=30) == b""


async def test_the_timeout_includes_time_without_a_connection(server: Server) -> None:
    """A request's timeout runs while there is no connection; its error names the outage as the cause."""
    server.kill()
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
        with pytest.raises(PromiseTimeout) as caught:
            await mpx.request("a", b"", timeout=0.1)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert isinstance(caught.value.__cause__.__cause__, ConnectionLost)
        with pytest.raises(PromiseTimeout):
            await anext(mpx.request_many("a", b"", timeout=0.1))
        assert mpx.stats().channels == 0
        mpx.serve("a", lambda request: b"at last")
        asking = asyncio.ensure_future(mpx.request("a", b"", timeout=60))
        server.start()
        with contextlib.suppress(NoResponders):  # whichever subscription comes first
            assert await asking == b"at last"
        assert nothing_left(mpx, 1) is False
        assert mpx.stats().promises == 0


async def test_closing_interrupts_pending_requests(url: str) -> None:
    """Closing fails pending requests; new ones raise MultiplexerIsClosed too."""

    async def never(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    mpx = Multiplexer(url)
    service = await active(mpx.serve("never", never, concurrency=10))
    asking = [asyncio.ensure_future(mpx.request("never", b"", timeout=600))]
    asking.append(asyncio.ensure_future(anext(mpx.request_many("never", b"", timeout=600))))
    await until(lambda: service.in_flight == 2)
    asking.append(asyncio.ensure_future(mpx.request("never", b"", timeout=600)))
    asking.append(asyncio.ensure_future(anext(mpx.request_many("never", b"", timeout=600))))
    await asyncio.sleep(0)
    await mpx.aclose()
    for each in asking:
        with pytest.raises(MultiplexerIsClosed):
            await each
    for call in (
        lambda: mpx.serve("a", print),  # type: ignore[arg-type]
        lambda: mpx.request_many("a", b"", timeout=1),
    ):
        with pytest.raises(MultiplexerIsClosed):
            call()
    with pytest.raises(MultiplexerIsClosed):
        await mpx.request("a", b"", timeout=1)


@pytest.mark.parametrize("end", ["close", "aclose", "drain", "draining"])
async def test_request_many_read_after_the_end_raises(url: str, end: str) -> None:
    """An iteration that begins after the end has begun raises MultiplexerIsClosed at once, and leaves nothing."""
    gate = asyncio.Event()

    async def hold(channel: bytes, data: bytes) -> None:
        await gate.wait()

    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(hold)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        replies = mpx.request_many("service", b"", timeout=600)
        draining = None
        if end == "close":
            mpx.close()
        elif end == "draining":
            await mpx.publish("a", "x")
            await until(lambda: not sub._inbox.idle)
            draining = asyncio.create_task(mpx.drain())
            await asyncio.sleep(0)
        else:
            await getattr(mpx, end)()
        async with asyncio.timeout(1):
            with pytest.raises(MultiplexerIsClosed):
                await anext(replies)
        gate.set()
        if draining is not None:
            await draining
    assert mpx.stats().subscriptions == 0


async def test_a_forged_reply_to_a_guessed_channel_does_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """Forged replies to guessed channels reach no request, and a second reply is ignored."""
    gate = asyncio.Event()
    asked: list[Request] = []

    async def wait(request: Request) -> bytes:
        asked.append(request)
        await gate.wait()
        return b"true"

    await active(mpx.serve("a", wait))
    asking = asyncio.ensure_future(mpx.request("a", b"", timeout=60))
    await until(lambda: len(asked) == 1)
    real = asked[0].reply_to
    assert real is not None
    prefix = real.rpartition(b":")[0] + b":"
    forged = bytes(Envelope(b"forged"))
    for guess in (prefix, real[:-1], real + b"x", real.swapcase(), prefix + b"*", b"__mpx_reply:", real[:-1] + b"?"):
        assert await admin.publish(guess, forged) == guess.startswith(prefix)
    gate.set()
    assert await asking == b"true"
    assert await admin.publish(real, forged) == 1  # a second answer does nothing either
    assert nothing_left(mpx, 1) is False
    assert mpx.stats().promises == 0


@pytest.mark.parametrize("served", ["svc", "s?c"], ids=["channel", "pattern"])
@pytest.mark.parametrize("fails", [False, True], ids=["reply", "failure"])
async def test_a_reply_is_never_taken_for_a_request(url: str, admin: Redis, served: str, fails: bool) -> None:
    """A forged request whose reply channel is served runs each handler once: the replies to it are dropped."""
    handled: list[bytes] = []
    errors: list[Exception] = []

    def handle(request: Request) -> bytes:
        handled.append(request.body)
        if fails:
            raise ValueError
        return b"reply"

    async with contextlib.AsyncExitStack() as stack:
        services = []
        for _ in range(4):
            mpx = await stack.enter_async_context(Multiplexer(url, on_error=errors.append))
            services.append(await active(mpx.serve(served, handle)))
        assert await admin.publish("svc", bytes(Envelope(b"forged", reply_to=b"svc"))) == 4
        await until(lambda: all(service.dropped == 4 and service.pending == 0 for service in services))
        assert handled == [b"forged"] * 4
    undecodable = [error for error in errors if isinstance(error, DecodeError)]
    assert len(undecodable) == 4 * 4
    assert "for replies" in str(undecodable[0].__cause__)


async def test_a_reply_is_marked_in_its_wire_form(mpx: Multiplexer, admin: Redis) -> None:
    """A reply has the header Mpx-Reply, a failure Mpx-Error; a reply without either is accepted."""
    channels = mpx.new_channel_subscription(decode=Envelope.from_bytes)
    channels.add("replies")
    await channels.wait_for_activation(timeout=10)
    await active(mpx.serve("work", lambda request: b"done" if request.body else None))
    await active(mpx.serve("fail", lambda request: request.headers["missing"].encode()))
    replies = []
    for channel, body in (("work", b"x"), ("work", b""), ("fail", b"")):
        await admin.publish(channel, bytes(Envelope(body, reply_to=b"replies")))
        replies.append((await channels.get(10)).data)
    assert [(reply.body, reply.headers) for reply in replies] == [
        (b"done", {"Mpx-Reply": "ok"}),
        (b"", {"Mpx-Reply": "ok"}),
        (b"", {"Mpx-Error": "KeyError: 'missing'"}),
    ]
    assert {reply.reply_to for reply in replies} == {None}


async def test_a_reply_that_is_no_envelope_is_a_failure(mpx: Multiplexer, admin: Redis) -> None:
    """A reply that is no envelope fails the request without repeating the payload."""
    sub = mpx.new_channel_subscription(decode=Envelope.from_bytes)
    sub.add("a")
    await sub.wait_for_activation(timeout=10)
    asking = asyncio.ensure_future(mpx.request("a", b"", timeout=30))
    message = await sub.get(10)
    assert message.data.reply_to is not None
    await admin.publish(message.data.reply_to, "a secret")
    with pytest.raises(RequestFailed, match="the reply is not an envelope") as caught:
        await asking
    assert "secret" not in str(caught.value)


async def test_requests_count_as_promises(url: str) -> None:
    """Requests and services count against max_promises, max_patterns and max_channels."""

    async def never(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with Multiplexer(url, max_promises=3, max_patterns=1, max_channels=1) as mpx:
        await active(mpx.serve("never", never, concurrency=10))
        several = [asyncio.ensure_future(mpx.request("never", b"", timeout=600)) for _ in range(3)]
        await until(lambda: mpx.stats().promises == 3)
        with pytest.raises(TooManyPromises):
            await mpx.request("never", b"", timeout=1)
        with pytest.raises(TooManyPatterns):
            mpx.serve("n*", never)
        with pytest.raises(TooManyChannels):
            mpx.serve("n", never)
        with pytest.raises(TooManyChannels):
            await anext(mpx.request_many("never", b"", timeout=1))
        for task in several:
            task.cancel()
        await asyncio.gather(*several, return_exceptions=True)


async def test_exceptions_are_freed_with_their_last_reference(url: str, other: Multiplexer) -> None:
    """Errors and promises of failed requests are freed without the garbage collector."""

    async def handle(request: Request) -> bytes:
        if request.body == b"fail":
            raise ValueError
        await asyncio.Event().wait()
        return b""

    def kept() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, (Promise, RedisMPXError, ValueError))]

    logging.disable()  # what is logged is kept, for the test to see
    gc.collect()
    before = kept()  # by other tests
    gc.disable()
    try:
        async with Multiplexer(url, on_error=lambda _: None) as mpx:
            await active(mpx.serve("a", handle, concurrency=10))
            for channel, body, timeout in (("a", "fail", 10.0), ("a", "hang", 0.01), ("nobody", "", 10.0)):
                with contextlib.suppress(RedisMPXError):
                    await other.request(channel, body, timeout=timeout)
                with contextlib.suppress(RedisMPXError, StopAsyncIteration):
                    await anext(other.request_many(channel, body, timeout=max(timeout, 0.1), limit=1))
            await asyncio.sleep(0)
            assert not [each for each in kept() if not any(each is old for old in before)]
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


# --- many answers


async def test_the_first_of_several_replies_wins(mpx: Multiplexer, other: Multiplexer, url: str) -> None:
    """Each service of a channel gets the request: request() returns the first reply, request_many() all."""
    gates = [asyncio.Event() for _ in range(3)]
    done: list[int] = []

    def handler(number: int) -> Callable[[Request], object]:
        async def handle(request: Request) -> bytes:
            await gates[number].wait()
            done.append(number)
            return b"%d" % number

        return handle

    async with Multiplexer(url) as third:
        for number, each in enumerate((mpx, other, third)):
            await active(each.serve("a", handler(number)))  # type: ignore[arg-type]
        first = asyncio.ensure_future(mpx.request("a", b"", timeout=60))
        gates[1].set()
        assert await first == b"1"
        gates[0].set()
        gates[2].set()
        await until(lambda: len(done) == 3)
        answers = [answer async for answer in mpx.request_many("a", b"", timeout=60, limit=3)]
        assert sorted(answers) == [b"0", b"1", b"2"]
        assert len([answer async for answer in mpx.request_many("a", b"", timeout=0.3)]) == 3
        assert len([answer async for answer in mpx.request_many("a", b"", timeout=60, limit=2)]) == 2
    assert mpx.stats().subscriptions == 2
    assert mpx.stats().channels == 1


async def test_a_burst_of_replies_is_complete_for_a_slow_reader(
    mpx: Multiplexer, other: Multiplexer, admin: Redis
) -> None:
    """request_many() delivers all replies that arrived in time, even when they are read after the timeout."""

    async def flood(request: Request) -> bytes:
        assert request.reply_to is not None
        pipe = admin.pipeline(transaction=False)
        for number in range(1000):
            pipe.publish(request.reply_to, bytes(Envelope(b"%d" % number)))
        await pipe.execute()
        return b"last"

    await active(mpx.serve("a", flood))
    read: list[bytes] = []
    answers = other.request_many("a", b"", timeout=1)
    async for answer in answers:
        read.append(answer)
        if len(read) == 1:
            await asyncio.sleep(1.1)  # the time is up before the second is read
    assert read[:1000] == [b"%d" % number for number in range(1000)]
    assert read[1000:] == [b"last"]
    assert other.stats().channels == 0


async def test_request_many_ends_though_replies_never_stop(mpx: Multiplexer, other: Multiplexer, admin: Redis) -> None:
    """request_many() ends at its timeout although replies keep arriving faster than they are read."""
    channels: list[bytes] = []

    def answer_and_go_on(request: Request) -> bytes:
        assert request.reply_to is not None
        channels.append(request.reply_to)
        return b"first"

    await active(mpx.serve("a", answer_and_go_on))
    count = 0
    async for _ in other.request_many("a", b"", timeout=1):
        count += 1
        received = other.stats().messages
        for _ in range(2):  # for each that is read come two more
            await admin.publish(channels[0], bytes(Envelope(b"more")))
        await until(lambda received=received: other.stats().messages == received + 2)
    assert count > 2


async def test_a_failure_among_many_replies_is_raised_last(mpx: Multiplexer, other: Multiplexer, url: str) -> None:
    """request_many() yields the good replies before it raises a service's failure."""
    answered = asyncio.Event()

    async def fail(request: Request) -> bytes:
        raise ValueError("cannot")

    async def wait(request: Request) -> bytes:
        await answered.wait()
        return b"good"

    async with Multiplexer(url, on_error=lambda _: answered.set()) as bad:
        await active(bad.serve("a", fail))
        await active(mpx.serve("a", wait))
        read: list[bytes] = []
        with pytest.raises(RequestFailed, match="ValueError: cannot"):
            async for answer in other.request_many("a", b"", timeout=60, limit=2):
                read += [answer]
        assert read == [b"good"]
    assert other.stats().subscriptions == 0


async def test_a_broken_off_iteration_leaves_nothing(mpx: Multiplexer, other: Multiplexer) -> None:
    """Leaving, cancelling or never starting the iteration of request_many() leaves no subscription."""
    await active(mpx.serve("a", lambda request: b""))
    async with contextlib.aclosing(other.request_many("a", b"", timeout=600)) as answers:
        async for _ in answers:
            break
    assert other.stats().subscriptions == 0
    async for _ in other.request_many("a", b"", timeout=600):
        break
    await until(lambda: other.stats().subscriptions == 0)  # the loop closes what nobody holds any more
    reading = asyncio.ensure_future(anext(other.request_many("a", b"", timeout=600)))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert other.stats().subscriptions == 0
    other.request_many("a", b"", timeout=600)  # never begun
    assert other.stats().subscriptions == 0


# --- serving


async def test_a_service_name_with_glob_characters_is_a_pattern(mpx: Multiplexer) -> None:
    """serve() takes a name with glob characters as a pattern; an escaped name matches itself only."""
    await active(mpx.serve("job.*", lambda request: b"pattern " + request.channel))
    await active(mpx.serve(escape_glob("job[1]?\\*"), lambda request: b"itself " + request.channel))
    await active(mpx.serve(b"job", lambda request: b"channel " + request.channel))
    assert mpx.stats().channels == 1
    assert await mpx.request("job", b"", timeout=10) == b"channel job"
    assert await mpx.request("job.7", b"", timeout=10) == b"pattern job.7"
    assert await mpx.request("job[1]?\\*", b"", timeout=10) == b"itself job[1]?\\*"
    with pytest.raises(NoResponders):
        await mpx.request("job1x\\y", b"", timeout=10)


async def test_concurrency_bounds_handlers_and_keeps_order(mpx: Multiplexer, other: Multiplexer) -> None:
    """At most `concurrency` handlers run at a time, and they start in the order of the requests."""
    begun: list[int] = []
    gates = [asyncio.Event() for _ in range(50)]
    most = 0

    async def handle(request: Request) -> bytes:
        nonlocal most
        most = max(most, service.in_flight)
        number = int(request.body)
        begun.append(number)
        await gates[number].wait()
        return request.body

    service = await active(mpx.serve("a", handle, concurrency=4))
    asking = [asyncio.ensure_future(other.request("a", str(number), timeout=60)) for number in range(50)]
    await until(lambda: service.pending == 46)
    assert mpx.stats().pending == 46
    assert begun == [0, 1, 2, 3]
    gates[2].set()  # whichever ends makes room
    assert await asking[2] == b"2"
    await until(lambda: len(begun) == 5)
    assert service.in_flight == 4
    for gate in gates:
        gate.set()
    assert await asyncio.gather(*asking) == [b"%d" % number for number in range(50)]
    assert begun == list(range(50))
    assert most <= 4
    await until(lambda: service.in_flight == 0)


async def test_a_hanging_handler_blocks_its_own_service_alone(url: str, other: Multiplexer) -> None:
    """A hanging handler fills its own bounded queue; other services go on replying."""

    async def hang(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    errors: list[Exception] = []
    async with Multiplexer(url, max_pending=10, on_error=errors.append) as mpx:
        stuck = await active(mpx.serve("hang", hang))
        await active(mpx.serve("a", lambda request: b"well"))
        hanging = [asyncio.ensure_future(other.request("hang", b"", timeout=600)) for _ in range(31)]
        await until(lambda: stuck.dropped == 20)
        assert (stuck.in_flight, stuck.pending) == (1, 10)
        assert [type(error) for error in errors] == [SlowConsumer]
        assert await other.request("a", b"", timeout=30) == b"well"
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_handlers_may_send_requests_themselves(mpx: Multiplexer) -> None:
    """A handler can send requests, also to its own service."""

    async def countdown(request: Request) -> bytes:
        number = int(request.body)
        return request.body + b" " + await mpx.request("a", str(number - 1), timeout=30) if number else b"0"

    await active(mpx.serve("a", countdown, concurrency=10))
    assert await mpx.request("a", "5", timeout=30) == b"5 4 3 2 1 0"


async def test_an_envelope_without_reply_channel_gets_no_reply(url: str, admin: Redis) -> None:
    """A message without a reply channel is handled, and no reply is published."""
    handled: list[bytes] = []
    errors: list[Exception] = []

    def handle(request: Request) -> bytes:
        handled.append(request.body)
        assert request.reply_to is None
        if request.body == b"bad":
            raise ValueError
        return b"for nobody"

    async with Multiplexer(url, on_error=errors.append) as mpx:
        service = await active(mpx.serve("a", handle))
        for payload in (bytes(Envelope(b"1")), b"not an envelope", bytes(Envelope(b"bad")), bytes(Envelope(b"2"))):
            await admin.publish("a", payload)
        await until(lambda: handled == [b"1", b"bad", b"2"])
        assert [type(error) for error in errors] == [DecodeError, ValueError]
        assert service.dropped == 1
        assert mpx.stats().published == 0


async def test_drain_answers_received_requests(url: str, other: Multiplexer, admin: Redis) -> None:
    """drain() unsubscribes first, then replies to all requests that were received."""
    gate = asyncio.Event()

    async def wait(request: Request) -> bytes:
        await gate.wait()
        await asyncio.sleep(0.01)
        return request.body

    mpx = Multiplexer(url)
    service = await active(mpx.serve("a", wait, concurrency=3))
    asking = [asyncio.ensure_future(other.request("a", str(number), timeout=60)) for number in range(20)]
    await until(lambda: service.pending == 17)
    draining = asyncio.ensure_future(mpx.drain(30))
    await until(lambda: mpx._hub.draining)
    for call in (lambda: mpx.serve("b", wait), lambda: mpx.request_many("b", b"", timeout=1)):
        with pytest.raises(MultiplexerIsClosed):
            call()
    async with asyncio.timeout(10):
        while await subscribed(admin) != (set(), 1):
            await asyncio.sleep(0.005)
    with pytest.raises(NoResponders):
        await other.request("a", b"after", timeout=10)
    gate.set()
    assert await asyncio.gather(*asking) == [b"%d" % number for number in range(20)]
    await draining
    assert service.closed


async def test_drain_does_not_wait_for_impossible_replies(url: str, other: Multiplexer) -> None:
    """drain() interrupts requests that handlers wait for: their replies can no longer arrive."""

    async def never(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    silent = await active(other.serve("silent", never))
    mpx = Multiplexer(url, on_error=lambda _: None)
    await active(mpx.serve("a", lambda request: mpx.request("silent", b"", timeout=600)))
    asking = asyncio.ensure_future(other.request("a", b"", timeout=60))
    await until(lambda: silent.in_flight == 1)
    await mpx.drain(30)
    with pytest.raises(RequestFailed, match="MultiplexerIsClosed: this multiplexer is closed"):
        await asking


async def test_drain_cancels_handlers_at_its_timeout(url: str) -> None:
    """drain() raises TimeoutError at its timeout and cancels the handlers that still run."""
    cancelled: list[bool] = []

    async def never(request: Request) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)
        return b""

    mpx = Multiplexer(url)
    service = await active(mpx.serve("a", never))
    await mpx.publish("a", Envelope(b""))
    await until(lambda: service.in_flight == 1)
    with pytest.raises(TimeoutError):
        await mpx.drain(0.05)
    assert cancelled == [True]


async def test_a_closing_service_cancels_its_handlers(mpx: Multiplexer, other: Multiplexer, admin: Redis) -> None:
    """close() cancels the running handlers, except the one that calls it, and sends no reply any more."""
    cancelled: list[bytes] = []
    finished: list[bytes] = []

    async def never(request: Request) -> bytes:
        if request.body == b"close":
            service.close()
            await asyncio.sleep(0)
            finished.append(request.body)
            return b"closed by it"
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(request.body)
        return b""

    service = await active(mpx.serve("a", never, concurrency=3))
    asking = [asyncio.ensure_future(other.request("a", str(number), timeout=60)) for number in range(2)]
    await until(lambda: service.in_flight == 2)
    asking.append(asyncio.ensure_future(other.request("a", "close", timeout=60)))
    await until(lambda: len(cancelled) == 2 and service.in_flight == 0)
    assert finished == [b"close"]
    service.close()
    with pytest.raises(SubscriptionIsClosed):
        await service.wait_for_activation(timeout=1)
    assert not any(task.done() for task in asking)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert (await subscribed(admin))[0] == set()


def test_a_service_survives_reconnects(server: Server) -> None:
    """A service made before any loop runs replies, and goes on after lost connections."""
    mpx = Multiplexer(server.url, backoff=ConstantBackoff(0.01))
    service = mpx.serve("a", lambda request: b"here")

    async def main() -> None:
        other = Multiplexer(server.url, backoff=ConstantBackoff(0.01))
        async with mpx, other, Redis.from_url(server.admin_url) as admin:
            for connections in range(1, 4):
                await service.wait_for_activation(timeout=10)
                assert await other.request("a", b"", timeout=30) == b"here"
                await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await until(lambda connections=connections: mpx.stats().connections > connections)  # type: ignore[misc]

    asyncio.run(main())


async def test_invalid_arguments_raise_at_once(mpx: Multiplexer) -> None:
    """Invalid handlers, concurrency, names, timeouts, headers and limits raise and change nothing."""
    for bad in (None, 7, "handler"):
        with pytest.raises(TypeError, match="handler must be callable"):
            mpx.serve("a", bad)  # type: ignore[arg-type]
    for bad, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="concurrency"):
            mpx.serve("a", lambda request: b"", concurrency=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a channel or pattern must be str or bytes"):
        mpx.serve(7, lambda request: b"")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stars"):
        mpx.serve("*" * 101, lambda request: b"")
    for call in (mpx.request, mpx.request_many):
        for arguments, options, error, text in (
            (("a", 7), {"timeout": 1}, TypeError, "data must be"),
            ((7, b""), {"timeout": 1}, TypeError, "a channel must be"),
            (("a", b""), {"timeout": None}, TypeError, "timeout must be a number"),
            (("a", b""), {"timeout": -1}, ValueError, "timeout must be from 0"),
            (("a", b""), {"timeout": 1, "headers": {"a:b": ""}}, ValueError, "the name of a header"),
        ):
            with pytest.raises(error, match=text):
                result = call(*arguments, **options)  # type: ignore[operator]
                await (anext(result) if call == mpx.request_many else result)
    with pytest.raises(ValueError, match="limit"):
        mpx.request_many("a", b"", timeout=1, limit=0)
    assert mpx.stats().promises == mpx.stats().channels == 0


# --- all at once


async def test_many_requests_have_one_outcome_each(server: Server) -> None:
    """Among 300 concurrent requests and forged replies, each request gets the outcome that it should."""
    outcomes, most, forged = await storm(server, total=300, timeout=5)
    assert most == 300
    assert forged > 100
    assert outcomes["no responders"] >= 2
    assert outcomes["interrupted"] == 0
    assert min(outcomes[kind] for kind in ("failed", "timed out", *[f"reply from service {n}" for n in range(3)])) > 0


# --- sharded


async def test_a_sharded_service_gets_sharded_requests_only(mpx: Multiplexer, other: Multiplexer, admin: Redis) -> None:
    """A sharded service and a classic service of one name get their own requests only."""
    await active(other.serve("channel", lambda request: b"classic"))
    await active(other.serve("channel", lambda request: b"sharded", sharded=True))
    assert await admin.execute_command("PUBSUB", "SHARDCHANNELS") == [b"channel"]
    assert await mpx.request("channel", "?", timeout=5) == b"classic"
    assert await mpx.request("channel", "?", timeout=5, sharded=True) == b"sharded"
    assert [answer async for answer in mpx.request_many("channel", "?", timeout=5, limit=1, sharded=True)] == [
        b"sharded"
    ]


async def test_a_sharded_service_is_found_in_a_cluster(shared_cluster: Cluster) -> None:
    """A sharded request goes to the owner of the slot, where its service is subscribed."""
    async with RedisCluster.from_url(shared_cluster.url) as client, Multiplexer(client) as mpx:
        await active(mpx.serve("served", lambda request: request.body, sharded=True))
        assert await mpx.request("served", "answer", timeout=5, sharded=True) == b"answer"


async def test_a_sharded_service_cannot_be_a_pattern(mpx: Multiplexer) -> None:
    """serve() with sharded=True and glob characters raises ValueError."""
    with pytest.raises(ValueError, match=r"sharded Pub/Sub has no patterns, and b'a\*' is a pattern"):
        mpx.serve("a*", lambda request: None, sharded=True)
    assert mpx.stats().subscriptions == 0


async def test_a_publishing_that_fails_after_the_reply_changes_nothing(mpx: Multiplexer) -> None:
    """A reply that is there stays the outcome of a request, and `quiet_loop` sees no error."""
    promises = await active(mpx.new_promise_subscription("p"))
    promise = promises.new_promise()
    outcome = _PublishingOutcome(promise)
    promise.set_result(b"reply")
    outcome.set_exception(ConnectionLost("too late"))
    assert await promise == b"reply"


async def test_a_cancelled_request_is_not_sent_and_frees_its_payload(url: str, admin: Redis) -> None:
    """A request that is cancelled while it waits for a connection leaves nothing behind."""
    size = 1_000_000
    async with Multiplexer(url) as mpx:
        bodies: list[bytes] = []
        await active(mpx.serve("a", lambda request: bodies.append(request.body)))
        await mpx.request("a", b"", timeout=5)
        publisher = mpx._hub.deployment.publisher
        await admin.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
        try:
            blocking = asyncio.ensure_future(mpx.request("a", b"", timeout=60))
            await until(lambda: publisher.pending == 1)
            asking = asyncio.ensure_future(mpx.request("a", b"x" * size, timeout=60))
            many = asyncio.ensure_future(anext(mpx.request_many("a", b"x" * size, timeout=60)))
            await until(lambda: publisher.pending == 3)
            for each in (asking, many):
                each.cancel()
            await asyncio.wait((asking, many))
            assert publisher.pending == 1
            assert all(len(call.command) < size for call in publisher._pipeline._waiting)
        finally:
            await admin.execute_command("CLIENT", "UNPAUSE")
        assert await blocking == b""
        assert mpx.stats().promises == 0
        assert bodies == [b"", b""]
