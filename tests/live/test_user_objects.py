"""Nothing that a user's object does raises into the library, or is a fault of another subscription."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import pytest
from redis.asyncio import Redis

from redismpx import ConnectionLost, Message, Multiplexer, MultiplexerIsClosed, Request, SubscriptionIsClosed
from redismpx._core.buffer import DEFERRED

from ..helpers.odd_exceptions import odd_exceptions
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


class Gone: ...


def unaskable() -> Any:
    """Return an object that raises ReferenceError when it is asked for its class."""
    gone = Gone()
    proxy = weakref.proxy(gone)
    del gone
    with pytest.raises(ReferenceError):
        isinstance(proxy, int)
    return proxy


async def test_odd_results_in_a_fan_out_cost_nobody_a_message(url: str, admin: Redis) -> None:
    """A callback returns an object that cannot be asked for its class: all others get the message, once."""
    odd = unaskable()
    got: Counter[int] = Counter()
    async with Multiplexer(url) as mpx:

        def note(number: int) -> Callable[[bytes, bytes], object]:
            def on_message(channel: bytes, data: bytes) -> object:
                got[number] += 1
                return odd if number % 100 == 50 else None

            return on_message

        subs = [mpx.new_channel_subscription(note(number)) for number in range(300)]
        for sub in subs:
            sub.add("a")
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        for _ in range(2):
            await admin.publish("a", "x")
        await until(lambda: got.total() == 600)
        assert set(got.values()) == {2}
        assert mpx.stats().connections == 1


@pytest.mark.parametrize("where", ["on_message", "on_activation", "on_disconnect", "on_error"])
async def test_an_odd_result_of_any_callback_is_ignored(url: str, admin: Redis, where: str) -> None:
    """Whichever callback returns it, the connection of the other subscriptions is not touched."""
    odd = unaskable()
    lost: list[ConnectionLost] = []

    def fail(channel: bytes, data: bytes) -> None:
        raise ValueError

    callbacks: dict[str, Any] = {"on_message": fail if where == "on_error" else lambda channel, data: None}
    async with Multiplexer(url) as mpx:
        other = mpx.new_channel_subscription(lambda channel, data: None, lost.append)
        other.add("b")
        await other.wait_for_activation(timeout=10)
        got: list[object] = []

        def note(*arguments: object) -> object:
            got.append(arguments)
            return odd

        sub = mpx.new_channel_subscription(**{**callbacks, where: note})
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        await admin.publish("a", "x")
        if where == "on_disconnect":
            await admin.client_kill_filter(_type="pubsub")
        await until(lambda: len(got) == 1)
        await mpx.connect(10)
        await other.wait_for_activation(timeout=10)
        assert len(lost) == (where == "on_disconnect")


@odd_exceptions
@pytest.mark.parametrize("where", ["on_message", "coroutine", "decode", "on_activation", "on_disconnect", "on_error"])
async def test_an_odd_exception_costs_nobody_a_message(
    url: str, admin: Redis, monkeypatch: pytest.MonkeyPatch, where: str, odd: type[Exception]
) -> None:
    """An exception that cannot be asked for its class, its name or its text is one of its callback only."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a handler cannot write such an exception
    lost: list[ConnectionLost] = []
    got: list[bytes] = []
    failed = 0

    def fail(*arguments: object) -> Any:
        nonlocal failed
        failed += 1
        raise odd

    async def fail_later(*arguments: object) -> None:
        fail()

    callbacks: dict[str, Any] = {"on_message": lambda channel, data: None, where: fail}
    if where == "on_error":
        callbacks["on_message"] = lambda channel, data: 1 / 0
    elif callbacks.pop("coroutine", None):
        callbacks["on_message"] = fail_later
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(**callbacks)
        others = [mpx.new_channel_subscription(lambda channel, data: got.append(data), lost.append) for _ in range(3)]
        for each in (sub, *others):
            each.add("a")
            await each.wait_for_activation(timeout=10)
        for _ in range(2):
            await admin.publish("a", "x")
        await until(lambda: len(got) == 6)
        if where == "on_disconnect":
            await admin.client_kill_filter(_type="pubsub")
            await until(lambda: len(lost) == 3)
            for each in (sub, *others):
                await each.wait_for_activation(timeout=10)
        await until(lambda: failed >= (1 if where in {"on_activation", "on_disconnect"} else 2))
        assert (len(got), len(lost)) == (6, 3 if where == "on_disconnect" else 0)
        assert mpx.stats().connections == 1 + (where == "on_disconnect")


@odd_exceptions
async def test_a_handler_with_an_odd_exception_fails_alone(
    url: str, monkeypatch: pytest.MonkeyPatch, odd: type[Exception]
) -> None:
    """The requester gets a failure, and the service goes on."""
    from redismpx import RequestFailed

    monkeypatch.setattr(logging, "raiseExceptions", False)

    def handle(request: Request[bytes]) -> bytes:
        if request.body == b"odd":
            raise odd
        return b"fine"

    async with Multiplexer(url) as mpx:
        service = mpx.serve("a", handle)
        await service.wait_for_activation(timeout=10)
        with pytest.raises(RequestFailed):
            await mpx.request("a", "odd", timeout=5)
        assert await mpx.request("a", "x", timeout=5) == b"fine"


async def test_a_handler_with_an_odd_result_fails_alone(url: str) -> None:
    """A service whose handler returns it replies with a failure, and goes on."""
    from redismpx import RequestFailed

    odd = unaskable()
    async with Multiplexer(url) as mpx:
        service = mpx.serve("a", lambda request: odd if request.body == b"odd" else b"fine")
        await service.wait_for_activation(timeout=10)
        with pytest.raises(RequestFailed):
            await mpx.request("a", "odd", timeout=5)
        assert await mpx.request("a", "x", timeout=5) == b"fine"


@pytest.mark.parametrize("what", ["subscription", "multiplexer", "channel"])
@pytest.mark.parametrize("raises", [False, True])
async def test_decode_may_end_its_subscription(url: str, admin: Redis, what: str, raises: bool) -> None:
    """When decode closes or removes, neither on_message nor on_error is called after that; the message is counted."""
    called: list[object] = []
    decoded: list[bytes] = []
    async with Multiplexer(url) as mpx:

        def decode(data: bytes) -> bytes:
            decoded.append(data)
            if what == "subscription":
                sub.close()
            elif what == "multiplexer":
                mpx.close()
            else:
                sub.remove("a")
            if raises:
                raise ValueError
            return data

        errors = called.append if what != "channel" else lambda error: None
        sub = mpx.new_channel_subscription(lambda *message: called.append(message), decode=decode, on_error=errors)
        sub.add("a", "b")
        await sub.wait_for_activation(timeout=10)
        await admin.publish("a", "x")
        await until(lambda: bool(decoded))
        await asyncio.sleep(0)
        assert called == []
        assert sub.dropped == 1


async def test_decode_may_end_the_subscription_that_is_read(url: str, admin: Redis) -> None:
    """A reader gets no message that was decoded after the end."""
    async with Multiplexer(url) as mpx:

        def decode(data: bytes) -> bytes:
            sub.close()
            return data

        sub = mpx.new_channel_subscription(decode=decode)
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        await admin.publish("a", "x")
        with pytest.raises(SubscriptionIsClosed):
            await sub.get(5)
        assert sub.dropped == 1


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, GeneratorExit])
async def test_each_exception_of_decode_is_counted(url: str, admin: Redis, error: type[BaseException]) -> None:
    """Received is delivered and dropped, whatever decode raises, for callbacks and for readers."""

    def decode(data: bytes) -> bytes:
        if data == b"bad":
            raise error
        return data

    got: list[bytes] = []
    async with Multiplexer(url) as mpx:
        called = mpx.new_channel_subscription(lambda channel, data: got.append(data), decode=decode)
        read = mpx.new_channel_subscription(decode=decode)
        for sub in (called, read):
            sub.add("a")
            await sub.wait_for_activation(timeout=10)
        for data in ("bad", "bad", "good"):
            await admin.publish("a", data)
        assert await read.get(5) == Message(b"a", b"good", None)
        assert (got, called.dropped, read.dropped, read.pending) == ([b"good"], 2, 2, 0)


async def test_a_payload_may_close_the_multiplexer(url: str) -> None:
    """`__bytes__` closes the multiplexer: nothing is published, and nothing is left running."""
    mpx = Multiplexer(url)
    await mpx.connect(10)

    class Payload:
        def __bytes__(self) -> bytes:
            mpx.close()
            return b"x"

    with pytest.raises(MultiplexerIsClosed):
        await mpx.publish("a", Payload())
    await mpx.aclose()


@pytest.mark.parametrize("what", ["multiplexer", "subscription"])
async def test_a_finalizer_in_the_middle_of_close(url: str, what: str) -> None:
    """The garbage collector frees an object that closes its subscription, at the start of any function in close()."""

    class Owner:
        def __init__(self, mpx: Multiplexer) -> None:
            self.me = self  # a cycle, which only the collector frees
            self.sub = mpx.new_channel_subscription(lambda channel, data: None)
            self.sub.add("a")

        def __del__(self) -> None:
            ended.append(self.sub)
            self.sub.close()

    for at in range(1, 60):
        ended: list[Any] = []
        async with Multiplexer(url) as mpx:
            owners = [Owner(mpx) for _ in range(3)]
            close = mpx.close if what == "multiplexer" else owners[0].sub.close
            left = at

            def collect(frame: Any, event: str, argument: object) -> None:
                nonlocal left
                left -= event == "call"
                if left == 0:
                    sys.setprofile(None)
                    owners.clear()  # noqa: B023
                    gc.collect()

            sys.setprofile(collect)
            try:
                close()
            finally:
                sys.setprofile(None)
            owners.clear()
            gc.collect()
            assert [sub.closed for sub in ended] == [True] * 3
            assert mpx.stats().channels == 0


async def test_a_finalizer_in_the_middle_of_a_burst(url: str) -> None:
    """The garbage collector frees an object that closes its subscription, while messages are counted or read."""

    class Owner:
        def __init__(self, mpx: Multiplexer) -> None:
            self.me = self  # a cycle, which only the collector frees
            self.sub = mpx.new_channel_subscription()

        def __del__(self) -> None:
            self.sub.close()

    async with Multiplexer(url) as mpx:
        for at in range(1, 200):
            owner: Owner | None = Owner(mpx)
            assert owner is not None
            sub, inbox, left = owner.sub, owner.sub._inbox, at
            before = mpx.stats().dropped
            for number in range(3):
                inbox.deliver(b"a", b"%d" % number)

            def collect(frame: Any, event: str, argument: object) -> None:
                nonlocal left, owner
                left -= event in ("call", "c_return")
                if left == 0:
                    sys.setprofile(None)
                    owner = None
                    gc.collect()

            sys.setprofile(collect)
            try:
                inbox.flush()
                is_counted = sub.closed
                inbox.read_nowait()
            finally:
                sys.setprofile(None)
            was_closed = sub.closed
            sub.close()
            assert (sub.pending, mpx.stats().pending, mpx.stats().pending_bytes) == (0, 0, 0)
            if is_counted:
                assert mpx.stats().dropped - before == 3
            if not was_closed:
                break
        assert at > 10


class Lying(bytes):
    """Bytes that claim to be other bytes."""

    def __len__(self) -> int:
        return 1

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


async def test_subclasses_of_bytes_are_taken_as_bytes(url: str, admin: Redis) -> None:
    """A name or payload with a length, hash or equality of its own is only the bytes that it holds."""
    got: list[tuple[bytes, bytes]] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(lambda *message: got.append(message))
        sub.add(Lying(b"first"), Lying(b"second"))
        await sub.wait_for_activation(timeout=10)
        assert sub.channels == {b"first", b"second"}
        assert await mpx.publish(Lying(b"first"), Lying(b"x\r\n*1\r\n$4\r\nPING")) == 1
        await until(lambda: bool(got))
        assert got == [(b"first", b"x\r\n*1\r\n$4\r\nPING")]


async def test_a_subscription_that_came_back_gets_no_old_message(url: str, admin: Redis) -> None:
    """A subscription leaves and joins again during a long fan-out: the message from before is not for it."""
    count = 3_000
    got: dict[int, list[bytes]] = {number: [] for number in range(count)}
    seen = asyncio.Event()
    async with Multiplexer(url) as mpx:

        def note(number: int) -> Callable[[bytes, bytes], None]:
            def on_message(channel: bytes, data: bytes) -> None:
                got[number].append(data)
                seen.set()
                for _ in range(500):  # slow enough for several time slices
                    pass

            return on_message

        subs = [mpx.new_channel_subscription(note(number)) for number in range(count)]
        for sub in subs:
            sub.add("a")
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        await admin.publish("a", "old")
        await seen.wait()
        assert not got[count - 1]
        subs[-1].remove("a")
        subs[-1].add("a")
        await subs[-1].wait_for_activation(timeout=10)
        await admin.publish("a", "new")
        await until(lambda: bool(got[0][1:]) and bool(got[count - 1]))
        await until(lambda: sum(map(len, got.values())) == 2 * count - 1)
        assert got[count - 1] == [b"new"]


async def test_long_names_do_not_cost_the_connection(url: str, admin: Redis) -> None:
    """The confirmations of many long names never fill the server's output buffer."""
    await admin.config_set("client-output-buffer-limit", "pubsub 4mb 4mb 1")
    try:
        lost: list[ConnectionLost] = []
        async with Multiplexer(url) as mpx:
            innocent = mpx.new_channel_subscription(lambda channel, data: None, lost.append)
            innocent.add("a")
            await innocent.wait_for_activation(timeout=10)
            sub = mpx.new_channel_subscription(lambda channel, data: None)
            sub.add(*[f"{number}:".ljust(60_000, "x") for number in range(512)])
            await sub.wait_for_activation(timeout=30)
            assert not lost
    finally:
        await admin.config_set("client-output-buffer-limit", "pubsub 32mb 8mb 60")


class Striker:
    """Has a finalizer run at the n-th event from now: the begin of a function, or the end of a call."""

    def __init__(self, at: int, finalize: Callable[[], object]) -> None:
        self.left = at
        self._finalize = finalize
        self._hook = self._trace  # with this reference it outlives its own call, which ends the profiling

    def __enter__(self) -> Self:
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _trace(self, frame: Any, event: str, argument: object) -> None:
        self.left -= event in ("call", "return", "c_return")
        if self.left == 0:
            sys.setprofile(None)
            with suppress(SubscriptionIsClosed):  # an exception of a finalizer goes nowhere
                self._finalize()


FINALIZERS: dict[str, Callable[[Any], object]] = {
    "close": lambda sub: sub.close(),
    "clear": lambda sub: sub.clear(),
    "remove": lambda sub: sub.remove("a"),
    "add": lambda sub: sub.add("a", "c"),
}


@pytest.mark.parametrize("finalizer", FINALIZERS)
@pytest.mark.parametrize("step", ["add", "remove", "clear", "close", "resume", "deliver", "activate", "disconnect"])
async def test_a_finalizer_in_the_middle_of_any_call(url: str, finalizer: str, step: str) -> None:
    """It calls a method of the same subscription: the names agree everywhere, and nothing stays pending."""
    async with Multiplexer(url) as mpx:
        for at in range(1, 2_000):
            sub = mpx.new_channel_subscription(overflow="drop_newest")
            sub.add("a")
            inbox = sub._inbox
            inbox.deliver(b"a", b"1")
            steps: dict[str, Callable[[], object]] = {
                "add": lambda: sub.add("a", "b"),  # noqa: B023
                "remove": lambda: sub.remove("a"),  # noqa: B023
                "clear": lambda: sub.clear(),  # noqa: B023
                "close": lambda: sub.close(),  # noqa: B023
                "resume": lambda: inbox.read_nowait(),  # noqa: B023
                "deliver": lambda: _deliver(inbox),  # noqa: B023
                "activate": lambda: inbox.activate(b"a"),  # noqa: B023
                "disconnect": lambda: inbox.disconnect(ConnectionLost("lost")),  # noqa: B023
            }
            with Striker(at, lambda: FINALIZERS[finalizer](sub)) as striker:  # noqa: B023
                try:
                    steps[step]()
                except SubscriptionIsClosed:  # by the finalizer, before the call has begun
                    assert finalizer == "close"
            known = {name for name in (b"a", b"b", b"c") if _is_known(mpx, sub, name)}
            assert known == (set() if sub.closed else sub.channels)
            assert (sub.closed or finalizer != "close") or striker.left > 0
            sub.close()
            assert (sub.pending, mpx.stats().pending, mpx.stats().pending_bytes) == (0, 0, 0)
            assert mpx.stats().channels == 0
            if striker.left > 0:
                break
        assert at > 5


@pytest.mark.parametrize("finalizer", FINALIZERS)
@pytest.mark.parametrize("step", ["add", "remove", "clear", "close", "look_at_tails", "save"])
async def test_a_finalizer_in_the_middle_of_a_call_of_streams(url: str, finalizer: str, step: str) -> None:
    """It calls a method of the same stream subscription: its streams and the registry have the same names."""
    async with Multiplexer(url) as mpx:
        registry, streams = mpx._hub.deployment.main.registry, mpx._hub._streams
        for at in range(1, 2_000):
            sub = mpx.new_stream_subscription()
            sub.add("a", "b")
            subscriber = sub._subscriber
            for cursor in subscriber.cursors.values():
                cursor.done = b"1-1"
            streams._quiet.update(dict.fromkeys(streams.streams.values(), 0))
            streams.positions._unsaved[subscriber] = None
            steps: dict[str, Callable[[], object]] = {
                "add": lambda: sub.add("a", "d"),  # noqa: B023
                "remove": lambda: sub.remove("a"),  # noqa: B023
                "clear": lambda: sub.clear(),  # noqa: B023
                "close": lambda: sub.close(),  # noqa: B023
                "look_at_tails": streams._look_at_tails,
                "save": streams.positions._save_all,
            }
            with Striker(at, lambda: FINALIZERS[finalizer](sub)) as striker:  # noqa: B023
                try:
                    steps[step]()
                except SubscriptionIsClosed:  # by the finalizer, before the call has begun
                    assert finalizer == "close"
            kind = sub._messages._kind
            known = {name for name in (b"a", b"b", b"c", b"d") if registry.subscriber_state(kind, name, subscriber)}
            assert known == set(subscriber.cursors)
            assert not (sub.closed and known)
            sub.close()
            assert (len(streams.streams), mpx.stats().channels) == (0, 0)
            if striker.left > 0:
                break
        assert at > 5


def _deliver(inbox: Any) -> None:
    """Deliver a message, as the dispatcher does."""
    result = inbox.deliver(b"a", b"2")
    if result is DEFERRED:
        inbox.flush()
    elif result is not None:
        inbox.accept(result)


def _is_known(mpx: Multiplexer, sub: Any, name: bytes) -> bool:
    """Whether the registry has a subscription for a name."""
    return mpx._hub.deployment.main.registry.subscriber_state(sub._kind, name, sub._inbox) is not None
