"""A credential provider whose tokens the test rotates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider

from .acl import SUBSCRIBER, set_user

RULES = SUBSCRIBER + " +publish +spublish +ssubscribe +sunsubscribe +cluster|slots +role &__keyspace@0__:chat:*"


def new_token(user: str | None, password: str) -> SimpleToken:
    """Return a token that does not expire by itself."""
    return SimpleToken(password, -1, 0, {} if user is None else {"oid": user})


class Rotating(StreamingCredentialProvider):
    """Pushes each token to all callbacks, in the thread of `push()`. Each token is the password of a user of its own.

    So a server that deletes the user of the last token cuts off each connection that has not logged in again.
    """

    def __init__(self) -> None:
        self.number = 1
        self.callbacks: list[Callable[[Any], Any]] = []

    @property
    def user(self) -> str:
        return f"chat-{self.number}"

    def get_credentials(self) -> tuple[str, str]:
        return self.user, self.password

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()

    @property
    def password(self) -> str:
        return f"token-number-{self.number}"

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        self.callbacks.append(callback)

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        raise NotImplementedError

    def is_streaming(self) -> bool:
        return True

    def push(self) -> None:
        """Push the token of now."""
        for callback in self.callbacks:
            callback(new_token(self.user, self.password))

    async def admit(self, *admins: Redis) -> None:
        """Have servers know the user of now."""
        for admin in admins:
            await set_user(admin, self.user, self.password, RULES)

    async def expire(self, *admins: Redis) -> None:
        """Have servers cut off what is logged in as the user before."""
        for admin in admins:
            await admin.execute_command("ACL", "DELUSER", f"chat-{self.number - 1}")


async def users_of(admin: Redis) -> set[str]:
    """Ask a server which users of a `Rotating` provider have connections."""
    users = {client["user"] for client in await admin.client_list()}
    return {user for user in users if user.startswith("chat-")}
