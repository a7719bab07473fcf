"""Credentials that expire while connections are open: a provider pushes a token, and the server cuts off the last."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

import pytest
from redis.asyncio import Redis
from redis.auth.idp import IdentityProviderInterface
from redis.auth.token import TokenInterface
from redis.auth.token_manager import CredentialsListener, RetryPolicy, TokenManager, TokenManagerConfig
from redis.credentials import StreamingCredentialProvider

from redismpx import Multiplexer
from redismpx.testing import Checker

from ..helpers.acl import set_user
from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command
from ..helpers.logs import warnings
from ..helpers.monitor import calls_of
from ..helpers.new_sub import new_sub
from ..helpers.servers import Server
from ..helpers.tokens import RULES, Rotating, new_token, users_of
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def only(admin: Redis, *users: str) -> None:
    """Wait until the connections of the server belong to these users."""

    async def complaint() -> str:
        found = await users_of(admin)
        return "" if found == set(users) else f"logged in: {found}"

    await eventually(complaint, 5)


class Numbers:
    """Publishes numbers through a multiplexer, one after the other."""

    def __init__(self, mpx: Multiplexer) -> None:
        self._mpx = mpx
        self.count = 0
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        while not self._is_over:
            assert await self._mpx.publish("chat:a", str(self.count)) == 1
            self.count += 1
            await asyncio.sleep(0.001)

    async def more(self) -> None:
        """Wait for some more; fail if publishing has failed."""
        goal = self.count + 20
        await until(lambda: self.count > goal or self._task.done())
        assert not self._task.done(), self._task

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await self._task


@pytest.mark.parametrize("protocol", [None, 3])
async def test_new_credentials_leave_no_gap(server: Server, admin: Redis, protocol: int | None) -> None:
    """Through several tokens, each of which ends, no message is missed, nothing reconnects, and publishing goes on."""
    provider = Rotating()
    await provider.admit(admin)
    async with Multiplexer(f"redis://127.0.0.1:{server.port}", credential_provider=provider, protocol=protocol) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, "chat:a", sharded=False)
        await sub.wait_for_activation(timeout=5)
        async with Numbers(mpx) as numbers:
            for _ in range(4):
                await numbers.more()
                provider.number += 1
                await provider.admit(admin)
                await asyncio.to_thread(provider.push)
                await only(admin, provider.user)
                await provider.expire(admin)
                await numbers.more()
        await until(lambda: checker.messages == numbers.count)
        assert checker.kinds == ["activation", *["message"] * numbers.count]
        assert mpx.stats().connections == 1
        assert not checker.faults + checker.errors


async def test_an_idle_connection_logs_in_again(server: Server, admin: Redis) -> None:
    """A connection without subscriptions, and one for publishing that is idle, lead to no gap and no failure."""
    provider = Rotating()
    await provider.admit(admin)
    async with Multiplexer(f"redis://127.0.0.1:{server.port}", credential_provider=provider) as mpx:
        await mpx.connect(5)
        await mpx.publish("chat:a", "x")
        provider.number += 1
        await provider.admit(admin)
        provider.push()
        await only(admin, provider.user)
        await provider.expire(admin)
        assert await mpx.publish("chat:a", "x") == 0
        assert mpx.stats().connections == 1


async def test_a_token_pushed_during_a_dial_counts(server: Server, admin: Redis) -> None:
    """A connection that was dialled with the earlier credentials logs in again as soon as it is open."""
    provider = Rotating()
    await provider.admit(admin)
    asked = provider.get_credentials

    def get_credentials() -> tuple[str, str]:
        credentials = asked()
        provider.number += 1
        provider.push()
        return credentials

    async with Multiplexer(f"redis://127.0.0.1:{server.port}", credential_provider=provider) as mpx:
        provider.get_credentials = get_credentials  # type: ignore[method-assign]
        await set_user(admin, "chat-2", "token-number-2", RULES)
        checker = Checker()
        sub = new_sub(mpx, checker, "chat:a", sharded=False)
        await sub.wait_for_activation(timeout=5)
        await only(admin, "chat-2")
        assert mpx.stats().connections == 1


async def test_a_rejected_token_costs_no_connection(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection stays logged in with the earlier credentials; one WARNING says what to check, and no secret."""
    caplog.set_level(logging.DEBUG)
    provider = Rotating()
    await provider.admit(admin)
    async with Multiplexer(f"redis://127.0.0.1:{server.port}", credential_provider=provider) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, "chat:a", sharded=False)
        await sub.wait_for_activation(timeout=5)
        for number in (1, 2, 3):
            provider.number = 9
            provider.push()
            provider.number = 1
            while await calls_of(admin, "auth") < number:
                await asyncio.sleep(0.002)
        await admin.publish("chat:a", "1")
        await until(lambda: checker.payloads == [b"1"])
        (warning,) = warnings(caplog)
        assert "rejects new credentials (WRONGPASS" in warning
        assert "check what the credential provider returns" in warning
        assert "token-number" not in caplog.text
        assert mpx.stats().connections == 1

        provider.push()  # a good one again
        await until(lambda: "logged in again" in caplog.text)
        provider.number = 9
        provider.push()
        await until(lambda: len(warnings(caplog)) == 2)


async def test_in_resp2_the_gap_is_where_the_server_cuts(server: Server, admin: Redis) -> None:
    """A connection in RESP2 cannot log in beside subscriptions: the next one uses the new token, after one gap."""
    provider = Rotating()
    await provider.admit(admin)
    async with Multiplexer(
        f"redis://127.0.0.1:{server.port}", credential_provider=provider, protocol=2, backoff=QUICK
    ) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, "chat:a", sharded=False)
        await sub.wait_for_activation(timeout=5)
        provider.number += 1
        await provider.admit(admin)
        provider.push()
        await admin.publish("chat:a", "1")
        await until(lambda: checker.payloads == [b"1"])
        await provider.expire(admin)
        await until(lambda: checker.kinds == ["activation", "message", "disconnect", "activation"])
        assert await users_of(admin) == {provider.user}


async def test_several_multiplexers_follow_one_provider(server: Server, admin: Redis) -> None:
    """Each gets the tokens in its own loop, the provider gets one callback, and a closed multiplexer is not called."""
    provider = Rotating()
    await provider.admit(admin)
    url = f"redis://127.0.0.1:{server.port}"
    is_open, is_over = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with Multiplexer(url, credential_provider=provider, client_name="elsewhere") as mpx:
            await mpx.connect(5)
            is_open.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    try:
        closed = Multiplexer(url, credential_provider=provider)
        await closed.connect(5)
        await closed.aclose()
        async with Multiplexer(url, credential_provider=provider) as mpx:
            await mpx.connect(5)
            await asyncio.to_thread(is_open.wait, 5)
            provider.number += 1
            await provider.admit(admin)
            provider.push()
            await only(admin, provider.user)
            assert len([client for client in await admin.client_list() if client["user"] == provider.user]) == 2
    finally:
        is_over.set()
        await asyncio.to_thread(thread.join)
    assert len(provider.callbacks) == 1
    provider.push()  # to nobody


async def test_tokens_are_taken_in_its_own_loop(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is pushed in another thread is used in the thread of the loop."""
    provider = Rotating()
    provider.get_credentials = lambda: ("default", "any")  # type: ignore[method-assign]
    threads: list[int] = []
    async with Multiplexer(url, credential_provider=provider) as mpx:
        await mpx.connect(5)
        session = mpx._hub.deployment.main
        monkeypatch.setattr(session, "log_in", lambda login: threads.append(threading.get_ident()))
        await asyncio.to_thread(provider.push)
        await until(lambda: len(threads) == 1)
    assert threads == [threading.get_ident()]


async def test_a_provider_keeps_no_multiplexer_alive(url: str) -> None:
    """A multiplexer that followed a provider is garbage when it is closed and forgotten."""
    provider = Rotating()
    mpx = Multiplexer(url, credential_provider=provider)
    mpx.new_channel_subscription(print)
    ref = weakref.ref(mpx._hub)
    await mpx.aclose()
    del mpx
    gc.collect()
    assert ref() is None
    assert len(provider.callbacks) == 1
    provider.push()


class Identity(IdentityProviderInterface):
    """Issues the token that a test has rotated to."""

    def __init__(self, provider: Rotating) -> None:
        self._rotating = provider

    def request_token(self, force_refresh: bool = False) -> TokenInterface:
        return new_token(self._rotating.user, self._rotating.password)


class Entraid(StreamingCredentialProvider):
    """Has room for one callback, like the provider of redis-entraid, and redis-py's own token manager."""

    def __init__(self, identity: Identity) -> None:
        self.manager = TokenManager(identity, TokenManagerConfig(0.5, 0, 1000, RetryPolicy(1, 1)))
        self._listener = CredentialsListener()

    def get_credentials(self) -> tuple[str, str]:
        token = self.manager.acquire_token().get_token()
        return token.try_get("oid"), token.get_value()

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        self._listener.on_next = callback

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        self._listener.on_error = callback

    def is_streaming(self) -> bool:
        return True


@pytest.mark.parametrize("way", ["loop", "thread"])
async def test_the_token_managers_of_redispy_work(server: Server, admin: Redis, way: str) -> None:
    """Tokens come from redis-py's manager, in a loop or a thread; the callback that the client had is called too."""
    rotating = Rotating()
    await rotating.admit(admin)
    provider = Entraid(Identity(rotating))
    earlier: list[TokenInterface] = []

    async def theirs(token: TokenInterface) -> None:
        earlier.append(token)

    provider.on_next(theirs if way == "loop" else earlier.append)
    async with Multiplexer(f"redis://127.0.0.1:{server.port}", credential_provider=provider) as mpx:
        await mpx.connect(5)
        rotating.number += 1
        await rotating.admit(admin)
        if way == "loop":
            await provider.manager.start_async(provider._listener, block_for_initial=True)
        else:
            provider.manager._listener = provider._listener  # start() would leave a thread behind
            await asyncio.to_thread(provider.manager._renew_token)
        await only(admin, rotating.user)
        assert [token.get_value() for token in earlier] == [rotating.password]
        assert mpx.stats().connections == 1


@pytest.mark.parametrize("fault", ["token", "on_next"])
async def test_a_faulty_provider_only_logs(url: str, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    """A token that is none, and an on_next() that raises, are logged; the multiplexer works."""
    provider = Rotating()
    provider.get_credentials = lambda: ("default", "any")  # type: ignore[method-assign]

    def on_next(callback: Callable[[Any], Any]) -> None:
        if fault == "on_next":
            raise RuntimeError("no")
        callback("secret-token")

    provider.on_next = on_next  # type: ignore[method-assign]
    async with Multiplexer(url, credential_provider=provider) as mpx:
        await mpx.connect(5)
    (text,) = warnings(caplog)
    assert "credential provider" in text
    assert "secret-token" not in caplog.text


async def test_a_token_that_a_server_repeats_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """A server that repeats the new token in an error does not bring it into the log."""
    provider = Rotating()
    logins: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            if command[0] == b"HELLO":
                writer.write(b"%2\r\n+proto\r\n:3\r\n+role\r\n+master\r\n")
            elif command[0] == b"AUTH":
                logins.append(command)
                writer.write(b"-ERR bad arguments '%s' '%s'\r\n" % (command[1], command[2]))
            else:
                writer.write(b"+OK\r\n")

    async with (
        FakeServer(script).run() as url,
        Multiplexer(url.partition("?")[0], credential_provider=provider, ping_interval=None) as mpx,
    ):
        await mpx.connect(5)
        provider.number = 77
        provider.push()
        await until(lambda: len(warnings(caplog)) == 1)
    assert logins == [[b"AUTH", b"chat-77", b"token-number-77"]]
    assert "'chat-77' '***'" in warnings(caplog)[0]
    assert "token-number" not in caplog.text
