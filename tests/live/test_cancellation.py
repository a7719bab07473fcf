"""Each call that waits is cancelled, or the multiplexer closed, at each of its suspensions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from itertools import count
from typing import Any

import pytest
from redis import CredentialProvider
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import (
    InactiveSubscription,
    Multiplexer,
    MultiplexerIsClosed,
    PromiseInterrupted,
    SubscriptionIsClosed,
)

from ..helpers.leaks import open_sockets
from ..helpers.servers import Server, free_port
from ..helpers.steps import Steps
from ..helpers.waiting import until

pytestmark = [
    pytest.mark.one_flavour,
    pytest.mark.usefixtures("no_leaks", "no_complaints"),
    pytest.mark.parametrize("shared_server", ["valkey"], indirect=True),
]

NAMES = [b"%d" % number for number in range(600)]  # more than go into one command
CLOSED = (MultiplexerIsClosed, SubscriptionIsClosed, PromiseInterrupted)


@pytest.fixture
async def no_complaints() -> AsyncIterator[None]:
    """Nothing was never retrieved, never awaited, or pending when destroyed."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    assert not complaints, complaints


class World:
    """A multiplexer with something to do; when its session suspends for the n-th time, a task begins."""

    def __init__(self, url: str, moment: int, begin: Callable[[World], Coroutine[Any, Any, Any]]) -> None:
        self.sockets = open_sockets()
        self.task: asyncio.Task[Any] | None = None
        self.mpx = Multiplexer(url, backoff=ConstantBackoff(0.001))
        session = self.mpx._hub.deployment.main
        steps = Steps(session._run(), moment, lambda: self.begin(begin(self)))
        session._run = steps.run  # type: ignore[method-assign]
        self.sub = self.mpx.new_channel_subscription()
        self.sub.add(*NAMES)
        self.promises = self.mpx.new_promise_subscription("p-")

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.task = asyncio.Task(coroutine)  # in the next tick, in an eager loop too

    async def live(self) -> bool:
        """Get connected, lose that, get connected again; return whether the task began on the way."""
        for connections in (1, 2):
            await until(
                lambda n=connections: self.task is not None or (self.mpx.stats().connections == n and self.all_active)
            )
            if self.task is not None:
                return True
            if connections == 1:
                self.mpx._hub.deployment.main._link.abort("cut")  # type: ignore[union-attr]
        return False

    @property
    def all_active(self) -> bool:
        return self.sub._inbox.active == len(NAMES) and self.promises._inbox.active == 1

    async def is_clean(self) -> None:
        """Nothing is left of it, as soon as the loop has come round."""
        assert not self.mpx._hub.tasks._tasks
        await until(lambda: open_sockets() <= self.sockets)


# --- the end, wherever the session is


async def aclose(mpx: Multiplexer) -> None:
    await mpx.aclose()


async def close(mpx: Multiplexer) -> None:
    mpx.close()


async def drain(mpx: Multiplexer) -> None:
    await mpx.drain(5)


async def cancelled_aclose(mpx: Multiplexer) -> None:
    task = asyncio.create_task(mpx.aclose())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("end", [aclose, close, drain, cancelled_aclose])
@pytest.mark.parametrize("is_there", [True, False], ids=["server", "nobody"])
async def test_closing_at_each_suspension_of_the_session(
    url: str, is_there: bool, end: Callable[[Multiplexer], Coroutine[Any, Any, None]]
) -> None:
    """Closing is clean while connecting, connected, between two connections and in backoff."""
    for moment in range(1, 40):
        world = World(url if is_there else f"redis://127.0.0.1:{free_port()}", moment, lambda w: end(w.mpx))
        if await world.live():
            await world.task
            assert world.mpx._hub.deployment.main.state.value == "closed"
        await world.mpx.aclose()
        await world.is_clean()
        if world.task is None:
            assert moment > 10
            break
    assert is_there == (world.task is None)


async def test_closing_at_each_tick_of_an_unanswered_handshake(
    shared_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing ends an attempt to connect to a silent server, at any tick of the loop."""
    with socket.create_server(("127.0.0.1", 0)) as mute:  # its backlog takes connections
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}"
        for ticks in range(20):
            mpx = Multiplexer(url, socket_timeout=30)
            mpx.new_channel_subscription(print).add("a")
            for _ in range(ticks):
                await asyncio.sleep(0)
            await mpx.aclose()
    assert "did not end" not in caplog.text


class Deaf(CredentialProvider):
    """Takes no notice of being cancelled, once, as Python 3.11's wait_for may."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def get_credentials_async(self) -> tuple[str, str]:
        self.asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "default", "none"


async def test_closing_a_dial_that_swallows_its_cancellation(
    shared_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing ends an attempt to connect that swallows one cancellation."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        provider = Deaf()
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}"
        mpx = Multiplexer(url, socket_timeout=30, credential_provider=provider)
        mpx.new_channel_subscription(print).add("a")
        await provider.asked.wait()
        await mpx.aclose()
    assert "did not end" not in caplog.text


@pytest.mark.parametrize("end", [aclose, close, drain, cancelled_aclose])
async def test_closing_in_the_middle_of_subscribing(
    url: str, end: Callable[[Multiplexer], Coroutine[Any, Any, None]]
) -> None:
    """Closing from on_activation is clean, whichever of 600 names is active by then."""
    for after in (1, 2, 511, 512, 513, len(NAMES)):
        world = World(url, 0, lambda w: end(w.mpx))
        active: list[bytes] = []

        def on_activation(name: bytes, w: World = world, active: list[bytes] = active, after: int = after) -> None:
            active.append(name)
            if len(active) == after:
                w.begin(end(w.mpx))

        other = world.mpx.new_channel_subscription(None, None, on_activation)
        other.add(*NAMES)
        await until(lambda w=world: w.task is not None)
        assert world.task is not None
        await world.task
        await world.mpx.aclose()
        assert len(active) >= after
        await world.is_clean()


# --- who waits, wherever the session is


async def wait_for_promise(world: World) -> None:
    with contextlib.suppress(InactiveSubscription):
        await world.promises.new_promise("x", 5)


async def wait_for_new_promise(world: World) -> None:
    await (await world.promises.wait_for_new_promise("x", 5))


WAITS: dict[str, Callable[[World], Awaitable[Any]]] = {
    "connect": lambda world: world.mpx.connect(5),
    "wait_for_activation": lambda world: world.sub.wait_for_activation(timeout=5),
    "get": lambda world: world.sub.get(5),
    "promise": wait_for_promise,
    "wait_for_new_promise": wait_for_new_promise,
    "drain": lambda world: world.mpx.drain(5),
    "aclose": lambda world: world.mpx.aclose(),
}
ENDS = ("drain", "aclose")


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_waiters_are_cancelled_or_closed_at_each_suspension(url: str, admin: Redis, wait: str, how: str) -> None:
    """Each call that waits can be cancelled or closed at each suspension, and leaves nothing."""

    async def publish() -> None:
        while not stop.is_set():
            await admin.publish(NAMES[0], "x")
            await admin.publish("p-x", "x")
            await asyncio.sleep(0.002)

    stop = asyncio.Event()
    if wait in ENDS:  # draining waits for a reader, and there is none then
        stop.set()
    await admin.ping()  # it has its socket from here on
    publisher = asyncio.create_task(publish())
    struck = 0
    is_at_rest = False
    try:
        for moment in count(1):
            for at in count(1):
                is_at_rest, was_struck, outcome = await strike(url, wait, how, moment, at)
                if not was_struck:
                    # A promise may be made while the loss of the connection is being told.
                    assert not isinstance(outcome, BaseException) or isinstance(outcome, PromiseInterrupted), outcome
                    break
                struck += 1
                if how == "cancel":
                    assert type(outcome) is asyncio.CancelledError, outcome
                else:
                    assert outcome is None if wait in ENDS else isinstance(outcome, CLOSED), outcome
            if is_at_rest:
                break
    finally:
        stop.set()  # not cancelled: on Python 3.11 redis-py may swallow that
        await publisher
    assert moment > 10
    assert struck


async def strike(url: str, wait: str, how: str, moment: int, at: int) -> tuple[bool, bool, Any]:
    """Begin to wait at a moment of the session's, and strike at a suspension of who waits.

    Return whether that moment was the last, whether there was such a suspension, and how the waiting ended.
    """

    async def run() -> Any:
        return await WAITS[wait](world)

    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    steps = Steps(run(), at, cancel if how == "cancel" else lambda: world.mpx.close())
    world = World(url, moment, lambda _: steps.outcome())
    is_at_rest = not await world.live()
    if is_at_rest:
        world.begin(steps.outcome())
    assert world.task is not None
    outcome = await world.task
    if wait not in ENDS and not (how == "close" and steps.struck):
        await world.sub.wait_for_activation(timeout=5)  # nobody else has noticed
        await world.promises.wait_for_activation(timeout=5)
        await world.sub.get(5)
        assert world.promises.pending == 0
        assert world.mpx.stats().connections <= 2
    await world.mpx.aclose()
    await world.is_clean()
    return is_at_rest, steps.struck, outcome
