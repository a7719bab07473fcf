"""Users with the least rights, and users who lose rights."""

from __future__ import annotations

import logging

import pytest
from redis import CredentialProvider
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from redismpx import ConnectionLost, Multiplexer
from redismpx._io.session import outage
from redismpx.testing import Checker

from ..helpers.acl import PUBLISHER, SUBSCRIBER, set_user
from ..helpers.backoffs import QUICK
from ..helpers.logs import loud
from ..helpers.monitor import settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


def as_user(server: Server, **options: object) -> Multiplexer:
    return Multiplexer(server.url, username="chat", password="secret", backoff=QUICK, **options)  # type: ignore[arg-type]


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in loud(caplog)]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_least_privilege_users_are_enough(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, protocol: int
) -> None:
    """The users of docs/how-to/secure.md have enough rights to subscribe, ping, reconnect and publish."""
    await set_user(admin, "chat", "secret", SUBSCRIBER)
    await set_user(admin, "publisher", "secret", PUBLISHER)
    async with (
        Redis(port=server.port, username="publisher", password="secret") as publisher,
        as_user(server, protocol=protocol, ping_interval=0.05) as mpx,
    ):
        checker, pattern = Checker(), Checker(lambda _: b"chat:*")
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("chat:a", "chat:b")
        listener = mpx.new_pattern_subscription("chat:*", *pattern.callbacks, on_error=pattern.on_error)
        await sub.wait_for_activation(timeout=5)
        await listener.wait_for_activation(timeout=5)
        await publisher.publish("chat:a", "1")
        await until(lambda: checker.payloads == pattern.payloads == [b"1"])
        sub.remove("chat:b")
        await settled(admin, {b"chat:a"}, 1)
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: checker.kinds[3:] == ["disconnect", "activation"])
        with pytest.raises(NoPermissionError):
            await publisher.publish("other", "1")
        assert not checker.faults + checker.errors + pattern.errors
    assert levels(caplog) == ["WARNING"]


async def test_promises_need_permission_for_their_exact_pattern(server: Server, admin: Redis) -> None:
    """A promise subscription works once exactly its pattern is permitted."""
    await set_user(admin, "chat", "secret", SUBSCRIBER + " &reply-7f3a:*")
    async with as_user(server) as mpx:
        promise = await mpx.new_promise_subscription("reply-7f3a:").wait_for_new_promise(timeout=5)
        await admin.publish(promise.channel, "x")
        assert await promise == b"x"


async def test_a_rejected_ping_counts_as_a_sign_of_life(server: Server, admin: Redis) -> None:
    """Without the right to PING, the rejection shows that the connection is alive."""
    await set_user(admin, "chat", "secret", SUBSCRIBER.replace(" +ping", ""))
    async with as_user(server, ping_interval=0.02, ping_timeout=5) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("chat:a")
        await sub.wait_for_activation(timeout=5)
        log: list[dict[str, object]] = []
        while sum(int(str(entry["count"])) for entry in log if entry["object"] in ("ping", b"ping")) < 5:  # bytes: 8.0
            log = await admin.acl_log()
        await admin.publish("chat:a", "1")
        await until(lambda: checker.payloads == [b"1"])
        assert mpx.stats().connections == 1
        assert checker.kinds == ["activation", "message"]


@pytest.mark.parametrize("options", [{"client_name": "me"}, {"client_name": "me", "protocol": 2}, {}])
async def test_the_right_to_set_a_client_name_is_optional(
    server: Server, admin: Redis, options: dict[str, object]
) -> None:
    """CLIENT SETNAME and SETINFO may be denied; the name is set once it is permitted."""
    await set_user(admin, "chat", "secret", SUBSCRIBER)
    async with as_user(server, **options) as mpx:
        sub = mpx.new_channel_subscription(print)
        sub.add("chat:a")
        await sub.wait_for_activation(timeout=5)
        assert mpx.stats().last_error is None
        await set_user(admin, "chat", "secret", SUBSCRIBER + " +client|setname")  # cuts nobody off
        await admin.execute_command("CLIENT", "KILL", "USER", "chat")
        await until(lambda: mpx.stats().connections == 2)
        name = str(options.get("client_name", ""))
        assert [c["name"] for c in await admin.client_list() if c["user"] == "chat"] == [name]


async def test_a_denied_select_fails_the_connection(server: Server, admin: Redis) -> None:
    """A database number without the right to SELECT fails the attempt to connect."""
    await set_user(admin, "chat", "secret", SUBSCRIBER)
    async with as_user(server, db=3, client_name="me") as mpx:
        with pytest.raises(TimeoutError, match="select"):
            await mpx.connect(0.3)


async def test_a_wrong_password_is_logged_once_and_retried(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password is one ERROR in five minutes, and connecting works once it is right."""
    caplog.set_level(logging.DEBUG, "redismpx")
    await set_user(admin, "chat", "other", SUBSCRIBER)

    def attempts() -> int:
        return sum("attempt" in record.getMessage() for record in caplog.records)

    async with as_user(server) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("chat:a")
        await until(lambda: attempts() > 10)
        assert levels(caplog) == ["ERROR"]
        error = mpx.stats().last_error
        assert isinstance(error, ConnectionLost)
        assert "invalid username-password pair" in error.reason
        assert isinstance(error.__cause__, AuthenticationError)
        with pytest.raises(TimeoutError, match="invalid username-password pair") as caught:
            await mpx.connect(0.05)
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert checker.events == []
        monkeypatch.setattr(outage, "ERROR_INTERVAL", 0.0)  # the five minutes are over
        await until(lambda: levels(caplog).count("ERROR") > 1)
        await set_user(admin, "chat", "secret", SUBSCRIBER)
        await sub.wait_for_activation(timeout=5)
        assert checker.kinds == ["activation"]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_missing_password_is_an_error(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, protocol: int
) -> None:
    """A missing password is logged as an ERROR, and connecting works once it is not required."""
    await admin.config_set("requirepass", "secret")
    async with Multiplexer(server.url, protocol=protocol, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await until(lambda: "ERROR" in levels(caplog))
        assert "uthenticat" in str(mpx.stats().last_error)
        await admin.config_set("requirepass", "")
        await sub.wait_for_activation(timeout=5)


async def test_a_disabled_user_works_until_the_next_connection(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis closes no connection of a disabled user; the next attempt to connect fails with the reason."""
    await set_user(admin, "chat", "secret", SUBSCRIBER)
    async with as_user(server) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("chat:a")
        await sub.wait_for_activation(timeout=5)
        await admin.execute_command("ACL", "SETUSER", "chat", "off")
        await admin.publish("chat:a", "1")
        await until(lambda: checker.payloads == [b"1"])
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: "user is disabled" in str(mpx.stats().last_error))
        await until(lambda: levels(caplog) == ["WARNING", "ERROR"])  # the loss, and why it lasts
        await admin.execute_command("ACL", "SETUSER", "chat", "on")
        await sub.wait_for_activation(timeout=5)
        assert checker.kinds == ["activation", "message", "disconnect", "activation"]


async def test_a_deleted_user_reconnects_when_it_is_back(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis closes the connections of a deleted user; all is active again when the user is back."""
    await set_user(admin, "chat", "secret", SUBSCRIBER)
    async with as_user(server) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("chat:a")
        await sub.wait_for_activation(timeout=5)
        await admin.acl_deluser("chat")
        await until(lambda: checker.kinds == ["activation", "disconnect"])
        assert "closed" in checker.events[1][1].reason
        await until(lambda: levels(caplog) == ["WARNING", "ERROR"])
        await set_user(admin, "chat", "secret", SUBSCRIBER)
        await sub.wait_for_activation(timeout=5)
        assert checker.kinds == ["activation", "disconnect", "activation"]


async def test_a_rotated_password_is_used_for_the_next_connection(server: Server, admin: Redis) -> None:
    """A changed password closes no connection; the credential provider's new one is used next."""
    password = "old"

    class Vault(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return "chat", password

    await set_user(admin, "chat", password, SUBSCRIBER)
    async with Multiplexer(server.url, credential_provider=Vault(), backoff=QUICK) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("chat:a")
        await sub.wait_for_activation(timeout=5)
        password = "new"
        await set_user(admin, "chat", password, SUBSCRIBER)
        await admin.publish("chat:a", "1")  # a changed password cuts nobody off
        await until(lambda: checker.payloads == [b"1"])
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: checker.kinds[2:] == ["disconnect", "activation"])
        assert mpx.stats().connections == 2
