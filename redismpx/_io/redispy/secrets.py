"""The passwords of a client: replaced in texts and exceptions, in every form in which a server may repeat them."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any

from .pool import Pool

_HIDDEN = "***"
_SHORTEST = 4  # characters of a password that is hidden: a shorter text occurs anywhere by chance
_LONGEST = 128  # characters of a password that are compared; the rest of the word is hidden with them
_HEAD = 16  # characters by which a long password is known that a server has cut off
_WORD = r"""[^\s'"`,]*"""  # the rest of a word


class Secrets:
    """What must not be shown of one connection."""

    def __init__(self, pool: Pool) -> None:
        self._values: set[str] = set()
        self._renewed: deque[str] = deque(maxlen=2)  # a server repeats what it has just got
        for options in _all_options(pool):
            self.add(options.get("password"))
            self.add(options.get("ssl_password"))
            self.add(getattr(options.get("credential_provider"), "password", None))

    def add(self, value: object) -> None:
        """Hide a value from now on; ignore one that is no text."""
        if isinstance(value, bytes):
            value = value.decode(errors="surrogateescape")
        if isinstance(value, str) and len(value) >= _SHORTEST:
            self._values.add(value)

    def renew(self, value: str) -> None:
        """Hide new credentials of a connection too; forget those before the last ones."""
        self._renewed.append(value)

    def watch(self, connection: Any) -> None:
        """Hide also the passwords that the credential provider of a connection returns."""
        provider = getattr(connection, "credential_provider", None)
        if provider is not None:
            connection.credential_provider = _WatchedProvider(provider, self)

    def hide(self, text: str) -> str:
        """Replace the passwords in a text.

        A server that does not know a command repeats its arguments, most often after these words. Those of HELLO and
        AUTH are the password, which may be cut off.
        """
        text = text.partition(", with args")[0]
        for value in sorted({*self._values, *self._renewed}, key=len, reverse=True):
            text = re.sub(_pattern(value), _HIDDEN, text)
        return text

    def hide_in(self, error: BaseException) -> None:
        """Replace the passwords in an exception, and in all exceptions that led to it."""
        todo: list[BaseException | None] = [error]
        seen: set[int] = set()
        while todo:
            each = todo.pop()
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                each.args = tuple(map(self._hide_value, each.args))
                each.__dict__.update({name: self._hide_value(value) for name, value in each.__dict__.items()})
                todo += [each.__cause__, each.__context__]

    def _hide_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, bytes):
            return self.hide(value.decode("latin-1")).encode("latin-1")
        return value


class _WatchedProvider:
    """A credential provider that tells the secrets of a connection what it returns."""

    def __init__(self, provider: Any, secrets: Secrets) -> None:
        self._provider = provider
        self._secrets = secrets

    async def get_credentials_async(self) -> tuple[str, ...]:
        """Return the user and password, or only the password."""
        credentials: tuple[str, ...] = await self._provider.get_credentials_async()
        if credentials:  # a provider may have none
            self._secrets.add(credentials[-1])
        return credentials


def _all_options(pool: Any) -> list[dict[str, Any]]:
    """Return the options of a pool; for a Sentinel service, also those of the connections to the Sentinels."""
    sentinels = getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())
    return [pool.connection_kwargs, *[sentinel.connection_pool.connection_kwargs for sentinel in sentinels]]


def _pattern(value: str) -> str:
    """Return a pattern for a password, whichever of its characters are escaped, and for the head of a long one."""
    forms = [_forms(char) for char in value[:_LONGEST]]
    whole = "".join(forms) + (_WORD if len(value) > _LONGEST else "")
    return f"{whole}|{''.join(forms[:_HEAD])}{_WORD}" if len(value) > _HEAD else whole


def _forms(char: str) -> str:
    """Return a pattern for a character: itself, or escaped as in a URL, in Python, in JSON or by Redis."""
    if char.isascii() and char.isalnum():
        return char  # nobody escapes it, and a long pattern of alternatives is slow to compile
    data = char.encode(errors="surrogateescape")
    forms = {
        char,
        data.decode("latin-1"),
        "\\" + char,
        repr(char)[1:-1],
        repr(data)[2:-1],
        json.dumps(char)[1:-1],
        "".join([f"\\x{byte:02x}" for byte in data]),
        "".join([f"%{byte:02x}" for byte in data]),
        "".join([f"%{byte:02X}" for byte in data]),
    }
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"
