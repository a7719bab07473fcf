"""A command's event loop, and its multiplexer, which must connect at the first attempt."""

from __future__ import annotations

__all__ = ["connected", "run_async"]

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import click

from .. import Multiplexer, OnError

_T = TypeVar("_T")
_FIRST_CONNECT = 5.0  # seconds


def run_async(command: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a new event loop.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM has cancelled it.
    """

    async def main() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        return await command

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextlib.asynccontextmanager
async def connected(url: str, on_error: OnError | None = None) -> AsyncIterator[Multiplexer]:
    """Yield a multiplexer that is connected.

    Raises:
        click.ClickException: there is no connection.
        ValueError: the URL cannot be used.
    """
    try:
        multiplexer = Multiplexer(url, on_error=on_error)
    except TypeError as unknown:  # an option in the URL
        raise click.ClickException(str(unknown)) from None
    # The commands show what is lost; the records of the library would repeat it.
    logging.getLogger("redismpx").addHandler(logging.NullHandler())
    async with multiplexer as mpx:
        connecting = asyncio.ensure_future(mpx.connect(_FIRST_CONNECT))
        while not connecting.done() and mpx.stats().last_error is None:
            await asyncio.wait([connecting], timeout=0.02)
        if not mpx.connected:
            connecting.cancel()
            error = mpx.stats().last_error
            reason = f"no reply within {_FIRST_CONNECT:g} s" if error is None else error.reason
            raise click.ClickException(reason.rstrip("."))
        yield mpx
