"""wait_for_activation(): some names, or all of them."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from redismpx import ConnectionLost, Multiplexer, SubscriptionIsClosed, SubscriptionRefused

from ..helpers.acl import limited, set_limited_user
from ..helpers.monitor import kill_clients
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


async def test_a_rejected_name_does_not_spoil_the_others(server: Server, admin: Redis) -> None:
    """Waiting for some names fails for a rejection of these only; without names, for any rejection."""
    await set_limited_user(admin, "&ok*")
    async with limited(server, on_error=lambda _: None) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("ok", "forbidden", "ok2")
        await sub.wait_for_activation("ok", b"ok2", timeout=5)
        assert sub.active == {b"ok", b"ok2"}
        for names in (("forbidden",), ("ok", "forbidden"), ()):
            with pytest.raises(SubscriptionRefused) as caught:
                await sub.wait_for_activation(*names, timeout=5)
            assert caught.value.name == b"forbidden"
        sub.remove("forbidden")
        await sub.wait_for_activation(timeout=5)


async def test_names_are_active_at_the_same_time(url: str, admin: Redis) -> None:
    """Names count while all of them are active on the present connection."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        names = [b"%d" % number for number in range(2000)]
        sub.add(*names)
        await sub.wait_for_activation(*names, timeout=5)
        assert sub.active == frozenset(names)
        for kills in (1, 2, 3):
            await kill_clients(admin)
            await until(lambda kills=kills: mpx.stats().connections == kills + 1)  # type: ignore[misc]
            await sub.wait_for_activation(*names, timeout=5)
            assert sub.active == frozenset(names)


async def test_a_timeout_tells_how_many_are_missing(server: Server) -> None:
    """The error has the number of names that are not active, of those waited for, and why."""
    async with Multiplexer(server.url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a", "b", "c")
        await sub.wait_for_activation(timeout=5)
        server.freeze()
        sub.add("d", "e")
        for names, text in ((("a", "d"), "1 of 2 names"), (("d", "e"), "2 of 2 names"), ((), "2 of 5 names")):
            with pytest.raises(TimeoutError, match=f"{text} not active within 0.02 s .the server has not confirmed"):
                await sub.wait_for_activation(*names, timeout=0.02)
        server.kill()
        await until(lambda: mpx.stats().state == "backing off")
        with pytest.raises(TimeoutError, match="2 of 2 names not active") as caught:
            await sub.wait_for_activation("a", "d", timeout=0.02)
        assert isinstance(caught.value.__cause__, ConnectionLost)


async def test_only_names_of_the_subscription_are_waited_for(url: str) -> None:
    """A name that is not subscribed to, or is removed during the wait, raises at once; so does a wrong argument."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        pattern = mpx.new_pattern_subscription("a*")
        await pattern.wait_for_activation("a*", timeout=5)
        for waiting in (sub.wait_for_activation("a"), pattern.wait_for_activation("a*", "a")):
            with pytest.raises(ValueError, match="b'a' is not a name of this subscription"):
                await waiting
        with pytest.raises(TypeError, match="a name must be str or bytes, not int"):
            await sub.wait_for_activation(*[5])  # type: ignore[list-item]
        sub.add("a", "b")
        waiting = sub.wait_for_activation("a", "b", timeout=5)
        task = asyncio.create_task(waiting)
        await asyncio.sleep(0)
        sub.remove("b")
        with pytest.raises(ValueError, match="b'b' is not a name"):
            await task
        sub.add("c")
        task = asyncio.create_task(sub.wait_for_activation("c"))
        await asyncio.sleep(0)
        sub.close()
        with pytest.raises(SubscriptionIsClosed):
            await task
