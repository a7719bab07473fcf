"""Random walks through the public API, with faults on the way, compared with a model and with the server.

`REDISMPX_WALKS=500 pytest tests/live/test_stateful.py` walks more; `REDISMPX_SEED=7` starts with walk 7.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import repeat
from typing import Any, ClassVar

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

import redismpx._io.runtime.slices as slices_module
import redismpx.channel as channel_module
from redismpx import (
    ChannelSubscription,
    InactiveSubscription,
    Multiplexer,
    PatternSubscription,
    Promise,
    PromiseInterrupted,
    PromiseSubscription,
    PromiseTimeout,
    SubscriptionIsClosed,
    SubscriptionRefused,
)
from redismpx.testing import Checker, Proxy

from ..helpers.monitor import settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

WALKS = int(os.environ.get("REDISMPX_WALKS", "6"))
SEED = int(os.environ.get("REDISMPX_SEED", "1"))
STEPS = 120  # of a walk; what is subscribed is compared after every STRETCH of them
STRETCH = 15

CHANNELS = [b"ok:1", b"ok:2", b"ok:\r\n", b"ok:\xff"]
FORBIDDEN = b"no"  # by the server's access control
PATTERNS = [b"ok:*", b"ok:[12]"]
PREFIXES = [b"p-", b"q[*"]
RULES = ["on", ">secret", "-@all", "+subscribe", "+unsubscribe", "+psubscribe", "+punsubscribe", "+ping",
         "resetchannels", "&ok:*", "&ok:[12]", "&p-*", "&q\\[\\**", "&fence"]  # fmt: skip


class User(Checker):
    """A subscription with a consumer of some kind, and what is wanted of it."""

    def __init__(self, mpx: Multiplexer, rng: random.Random) -> None:
        self.pattern = rng.choice([None, None, None, *PATTERNS])
        super().__init__(lambda channel: channel if self.pattern is None else self.pattern)
        self.names: set[bytes] = set() if self.pattern is None else {self.pattern}
        self.rng = rng
        self.consumer = rng.choice(["sync", "async", "read"])
        on_message = {"sync": self.on_message, "async": self.slowly, "read": None}[self.consumer]
        callbacks: Any = (on_message, self.on_disconnect, self.on_activation)
        self.sub: ChannelSubscription[bytes] | PatternSubscription[bytes]
        if self.pattern is None:
            self.sub = mpx.new_channel_subscription(*callbacks, on_error=self.on_error)
        else:
            self.sub = mpx.new_pattern_subscription(self.pattern, *callbacks, on_error=self.on_error)
        self.reader: asyncio.Task[None] | None = None
        self.read()

    def __repr__(self) -> str:
        return f"{self.consumer} {self.sub!r}"

    def wants(self, channel: bytes) -> bool:
        if self.pattern is None:
            return channel in self.names
        return bool(self.names) and fnmatch.fnmatchcase(channel.decode("latin-1"), self.pattern.decode())

    async def slowly(self, channel: bytes, message: bytes) -> None:
        self.on_message(channel, message)
        await asyncio.sleep(self.rng.choice((0, 0, 0.001)))

    def read(self) -> None:
        """Let another task read; the one before is cancelled, wherever it is."""
        if self.reader is not None:
            self.reader.cancel()
        if self.consumer == "read" and not self.sub.closed:
            self.reader = asyncio.create_task(self.read_on(self.reader))

    async def read_on(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        async for message in self.sub:
            self.on_message(message.channel, message.data)

    def on_activation(self, name: bytes) -> None:
        if name not in self.names:
            self.faults.append(f"{name!r} activated, and not wanted")
        super().on_activation(name)

    def on_disconnect(self, error: Any) -> None:
        if not self.active and self.consumer != "sync":
            return  # it waited in the queue while the last active name was removed
        super().on_disconnect(error)

    def add(self, *names: bytes) -> None:
        self.names.update(names)
        self.sub.add(*names)  # type: ignore[union-attr]

    def remove(self, *names: bytes) -> None:
        self.forget(set(names))
        self.sub.remove(*names)  # type: ignore[union-attr]

    def clear(self) -> None:
        self.forget(set(self.names))
        self.sub.clear()  # type: ignore[union-attr]

    def close(self) -> None:
        self.forget(set(self.names))
        self.sub.close()

    def forget(self, names: set[bytes]) -> None:
        self.names -= names
        self.active -= names
        for channel in list(self.last):
            if self._name_of(channel) in names:
                del self.last[channel]


class Walk:
    """One multiplexer behind a proxy, its users, and what befalls them."""

    def __init__(self, seed: int, proxy: Proxy, admin: Redis) -> None:
        self.rng = random.Random(seed)
        self.proxy = proxy
        self.admin = admin
        self.log: list[str] = []
        self.mpx = Multiplexer(
            proxy.url, username="limited", password="secret", backoff=ConstantBackoff(0.005), ping_interval=0.5
        )
        self.users: list[User] = []
        self.promisers: list[PromiseSubscription] = []
        self.promises: list[tuple[Promise, int]] = []
        self.published: Counter[bytes] = Counter()  # how often, and so the number of the last message
        self.waiting: set[asyncio.Task[None]] = set()
        self.fences = Checker()
        self.mpx.new_channel_subscription(*self.fences.callbacks).add("fence")

    # --- steps

    def one(self, things: list[Any]) -> Any:
        return self.rng.choice(things)

    def some(self, names: list[bytes]) -> list[bytes]:
        return self.rng.sample(names, self.rng.randint(1, len(names)))

    def new_user(self) -> None:
        self.users.append(User(self.mpx, self.rng))

    def add(self) -> None:
        for user in self.channel_users():
            user.add(*self.some([*CHANNELS, FORBIDDEN] if self.rng.random() < 0.1 else CHANNELS))

    def remove(self) -> None:
        for user in self.channel_users():
            user.remove(*self.some([*CHANNELS, FORBIDDEN]))

    def add_and_remove(self) -> None:
        for user in self.channel_users():
            name = self.one(CHANNELS)
            for _ in range(self.rng.randint(1, 4)):
                user.remove(name)
                user.add(name)

    def clear(self) -> None:
        for user in self.channel_users():
            user.clear()

    def channel_users(self) -> list[User]:
        """One, or none."""
        users = [user for user in self.users if user.pattern is None]
        return [self.one(users)] if users else []

    def close(self) -> None:
        if len(self.users) > 2:
            user = self.users.pop(self.rng.randrange(len(self.users)))
            user.close()
            user.close()

    def read(self) -> None:
        for user in self.users:
            user.read()

    def new_promiser(self) -> None:
        if len(self.promisers) < 3:
            self.promisers.append(self.mpx.new_promise_subscription(self.one(PREFIXES)))

    def promise(self) -> None:
        for promiser in self.promisers:
            try:
                promise = promiser.new_promise(b"%d" % self.rng.randrange(4), self.one([None, 30, 0.01]))
            except InactiveSubscription:
                continue
            self.promises.append((promise, self.mpx.stats().connections))

    def break_promises(self) -> None:
        if self.promises:
            self.one(self.promises)[0].cancel()
        if self.promisers and self.rng.random() < 0.2:
            self.one(self.promisers).clear()

    def close_promiser(self) -> None:
        if self.promisers:
            self.promisers.pop(self.rng.randrange(len(self.promisers))).close()

    async def publish(self) -> None:
        pipe = self.admin.pipeline(transaction=False)
        for _ in range(self.one([1, 3, 50])):
            channel = self.one(CHANNELS)
            self.published[channel] += 1
            pipe.publish(channel, self.published[channel])
        pipe.publish(self.one(PREFIXES) + b"%d" % self.rng.randrange(4), "kept")
        await pipe.execute()

    def wait(self) -> None:
        """Somebody waits for what may come, and may be cancelled."""
        subs = [*(user.sub for user in self.users), *self.promisers]
        if subs:
            self.background(self.one(subs).wait_for_activation, self.one([None, 0.01]))
        if self.promisers:
            self.background(self.one(self.promisers).wait_for_new_promise, b"0", self.one([None, 0.01]))

    def background(self, call: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> None:
        async def run() -> None:
            try:
                promise = await call(*arguments)
                if promise is not None:
                    self.promises.append((promise, self.mpx.stats().connections))
            except (TimeoutError, SubscriptionRefused, SubscriptionIsClosed):
                pass

        task = asyncio.create_task(run())
        self.waiting.add(task)
        task.add_done_callback(self.waiting.discard)

    def cancel(self) -> None:
        if self.waiting:
            self.one(list(self.waiting)).cancel()

    async def kill(self) -> None:
        await self.admin.execute_command("CLIENT", "KILL", "USER", "limited")

    def cut(self) -> None:
        self.proxy.cut()

    def reset(self) -> None:
        self.proxy.reset()

    def trouble(self) -> None:
        """A network that is slow, in pieces, stuck, or gone."""
        way = self.one([self.proxy.to_client, self.proxy.to_server])
        what: Callable[[], None] = self.one(
            [
                lambda: setattr(way, "delay", 0.002),
                lambda: setattr(way, "chunk", 7),
                lambda: setattr(way, "stall", True),
                lambda: setattr(self.proxy, "refusing", True),
            ]
        )
        what()

    def heal(self) -> None:
        self.proxy.heal()

    async def rest(self) -> None:
        await asyncio.sleep(self.one([0, 0, 0.001, 0.005, 0.02]))

    STEPS: ClassVar = {
        new_user: 2, add: 8, remove: 5, add_and_remove: 4, clear: 1, close: 2, read: 2, new_promiser: 1, promise: 4,
        break_promises: 1, close_promiser: 1, publish: 10, wait: 4, cancel: 2, kill: 2, cut: 1, reset: 1, trouble: 2,
        heal: 4, rest: 12,
    }  # fmt: skip
    """The steps, and how often each is taken in relation to the others."""

    # --- the walk

    async def go(self) -> None:
        self.new_user()
        self.new_promiser()
        for number in range(1, STEPS + 1):
            (step,) = self.rng.choices(list(self.STEPS), self.STEPS.values())  # type: ignore[call-overload]
            self.log.append(step.__name__)
            taken = step(self)
            if taken is not None:
                await taken
            if number % STRETCH == 0:
                self.log.append("compare")
                await self.compare()
        await self.end()

    async def fence(self) -> None:
        """Wait until what is published arrives: then whatever was lost before has been noticed."""
        seen = len(self.fences.events)

        def has_come() -> bool:
            return any(kind == "message" for kind in self.fences.kinds[seen:])

        for _ in range(100):
            await self.admin.publish("fence", "x")
            try:
                return await until(has_come, 0.1)
            except AssertionError:
                continue
        raise AssertionError("nothing comes through")

    async def compare(self) -> None:
        """Left alone, all becomes as it is wanted: the server's word, each subscription's, and what is delivered."""
        self.proxy.heal()
        await self.fence()
        for user in self.users:
            if FORBIDDEN in user.names:
                with pytest.raises(SubscriptionRefused):
                    await user.sub.wait_for_activation(timeout=10)
                user.remove(FORBIDDEN)
            await user.sub.wait_for_activation(timeout=10)
        for promiser in self.promisers:
            await promiser.wait_for_activation(timeout=10)
        channels = {name for user in self.users for name in user.names if user.pattern is None}
        patterns = {user.pattern for user in self.users if user.pattern is not None}
        prefixes = {promiser.prefix for promiser in self.promisers}
        await settled(self.admin, {b"fence", *channels}, len(patterns) + len(prefixes))
        await self.fence()
        for user in self.users:
            await until(lambda u=user: u.active == u.names and u.sub._inbox.idle)
        before = [user.messages for user in self.users]
        for channel in CHANNELS:
            self.published[channel] += 1
            await self.admin.publish(channel, self.published[channel])
        await self.fence()
        for user, messages in zip(self.users, before, strict=True):
            expected = messages + sum(map(user.wants, CHANNELS))
            await until(lambda u=user, e=expected: u.messages >= e)
            assert user.messages == expected, user
            assert user.faults == [], user
            assert all(isinstance(error, SubscriptionRefused) for error in user.errors), user.errors
        assert self.fences.faults == []
        await self.compare_promises()

    async def compare_promises(self) -> None:
        """Whatever could have been kept is kept, or broken for a reason; and a lost connection breaks it."""
        epoch = self.mpx.stats().connections
        assert all(promise.done() for promise, connections in self.promises if connections < epoch)
        for promiser in self.promisers:
            for number in range(4):
                await self.admin.publish(promiser.prefix + b"%d" % number, "kept")
        await self.fence()
        for promise, connections in self.promises:
            if any(promise.channel.startswith(promiser.prefix) for promiser in self.promisers):
                await until(promise.done)
            assert promise.done(), promise
            if promise.cancelled():
                continue
            error = promise.exception()
            if error is None:
                assert promise.result() == b"kept"
            elif isinstance(error, PromiseInterrupted):
                assert error.reason != "connection lost" or connections < self.mpx.stats().connections
            else:
                assert isinstance(error, PromiseTimeout)
        self.promises.clear()
        assert [promiser.pending for promiser in self.promisers] == [0] * len(self.promisers)

    async def end(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.promise()
        if self.rng.random() < 0.5:
            self.proxy.cut()
        await self.one([self.mpx.aclose, self.mpx.drain])()
        events = [len(user.events) for user in self.users]
        await settled(self.admin, set(), 0)
        assert [len(user.events) for user in self.users] == events
        assert [user.faults for user in self.users] == [[]] * len(self.users)
        assert all(promise.done() for promise, _ in self.promises)
        assert all(user.sub.closed for user in self.users)
        assert self.mpx.stats().pending == self.mpx.stats().promises == self.mpx.stats().channels == 0
        await asyncio.gather(
            *(user.reader for user in self.users if user.reader is not None), *self.waiting, return_exceptions=True
        )


async def test_random_walks_agree_with_the_model(server: Server, admin: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random calls and faults lead to the events, state and subscriptions that the model predicts."""
    await admin.execute_command("ACL", "SETUSER", "limited", *RULES)
    with Proxy(server.port) as proxy:
        for seed in range(SEED, SEED + WALKS):
            if seed == SEED + WALKS // 2:  # from here on, removed channels leave one by one, as thousands of them do
                monkeypatch.setattr(channel_module, "SLICE_STEPS", 0)
                monkeypatch.setattr(slices_module, "SLICE_STEPS", 1)
            walk = Walk(seed, proxy, admin)
            if seed >= SEED + WALKS // 2:
                walk.mpx._hub.slices.begin(repeat(int, 5000))  # other work, so that they leave late
            try:
                await walk.go()
            except BaseException as error:
                error.add_note(f"walk {seed}: {walk.mpx!r} {walk.users} {' '.join(walk.log)}")
                raise
            finally:
                proxy.heal()
                await walk.mpx.aclose()
