"""Options and arguments that several commands share."""

from __future__ import annotations

__all__ = ["is_pattern", "port", "seconds", "text", "with_server"]

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import click

from ..url_file import read_url_file

_DEFAULT_URL = "redis://localhost:6379"


def port(value: str) -> int:
    """Return the port of an option."""
    if not value.isdecimal() or int(value) > 65_535:
        raise click.BadParameter(f"invalid port value: {value!r}")
    return int(value)


def text(value: str | bytes) -> bytes:
    """Return a channel, a pattern or a payload: any bytes, as the shell passes them."""
    return value if isinstance(value, bytes) else os.fsencode(value)


def seconds(value: str) -> float:
    """Return the positive number of seconds of an option."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise click.BadParameter(f"{value!r} is not a positive number of seconds")
    return number


def is_pattern(name: bytes) -> bool:
    """Tell whether a name has a character of glob patterns."""
    return any(character in name for character in b"*?[\\")


def with_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the server. The command gets its URL as `url`."""

    @click.option("--redis", metavar="URL", help=f"The server. Default: $REDIS_URL, or {_DEFAULT_URL}.")
    @click.option("--url-file", metavar="PATH", help="Read the URL from a file, as `redismpx broker` writes it.")
    @functools.wraps(command)
    def with_url(redis: str | None, url_file: str | None, **others: Any) -> Any:
        if redis is not None and url_file is not None:
            raise click.UsageError("give --redis or --url-file, not both")
        if url_file is not None:
            redis = read_url_file(url_file)
        return command(url=redis or os.environ.get("REDIS_URL") or _DEFAULT_URL, **others)

    return with_url
