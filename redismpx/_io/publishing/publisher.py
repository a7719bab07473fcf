"""Publishing: each call goes into a pipeline, and waits there for its outcome. Never retries a call that was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from ..._core.scripts import Evaluation
from ...stats import Counters
from ..redispy.client import key_slot
from ..redispy.connection import Address
from ..redispy.endpoint import Endpoint
from ..runtime.slices import Step
from ..runtime.tasks import Tasks
from .call import PublishCall, ScriptCall
from .pipeline import Pipeline


class Publisher:
    """Publishes over one pipeline, in the order of the calls.

    It calls `on_lost` with the address of each connection that was lost in use.
    """

    def __init__(
        self, endpoint: Endpoint, timeout: float, tasks: Tasks, counters: Counters, on_lost: Callable[[Address], None]
    ) -> None:
        self._timeout = timeout
        self._tasks = tasks
        self._counters = counters
        self._on_lost = on_lost
        self._pipeline = self._new_pipeline(endpoint)

    def _new_pipeline(self, endpoint: Endpoint) -> Pipeline:
        return Pipeline(endpoint, self._timeout, self._tasks, self._counters, self._on_lost)

    @property
    def pending(self) -> int:
        """Calls without an outcome."""
        return len(self._outcomes)

    @property
    def _outcomes(self) -> list[asyncio.Future[Any]]:
        return [outcome for pipeline in self._all_pipelines() for outcome in pipeline.outcomes]

    def _all_pipelines(self) -> Iterable[Pipeline]:
        return (self._pipeline,)

    async def publish(self, channel: bytes, data: bytes, *, sharded: bool, must_be_heard: bool = False) -> int:
        """Publish after all earlier calls; return how many connections received the message, as Redis counts.

        Raise `NoResponders` if the message must be heard, and it is certain that nobody received it.
        """
        slot = key_slot(channel) if sharded else None
        call = PublishCall(channel, data, slot, self._timeout, must_be_heard=must_be_heard)
        self._put(call)
        try:
            count: int = await call.outcome
            return count
        except BaseException:  # the outcome, or a cancellation: for the caller in both cases
            call.cancel()
            del call  # otherwise the exception would refer to itself, through its traceback
            raise

    def begin(
        self,
        channel: bytes,
        data: bytes,
        outcome: asyncio.Future[int],
        *,
        sharded: bool,
        must_be_heard: bool = False,
    ) -> Callable[[], None]:
        """Publish as `publish()` does, and have the outcome set on a future; return what cancels the call.

        The future may be of a class that tells another thread of its outcome: without a task, and at once.
        """
        slot = key_slot(channel) if sharded else None
        call = PublishCall(channel, data, slot, self._timeout, must_be_heard=must_be_heard, outcome=outcome)
        self._put(call)
        return call.cancel

    publish_command = b"PUBLISH"
    """The command that publishes on the channel of a stream."""

    def _stream_slot(self, name: bytes) -> int | None:
        """Return the slot of a stream; None if there are no slots."""
        return None

    async def evaluate(self, name: bytes, evaluation: Evaluation) -> Any:
        """Run a script about a stream, after all earlier calls; return its reply."""
        self._counters.scripts += 1
        call = ScriptCall(name, evaluation, self._stream_slot(name), self._timeout)
        self._put(call)
        try:
            return await call.outcome
        except BaseException:  # see publish()
            call.command, call.evaluation = b"", evaluation._replace(words=())
            del call
            raise

    def _put(self, call: PublishCall) -> None:
        """Queue a call that was made just now."""
        self._pipeline.put(call)

    async def flushed(self) -> None:
        """Wait until each call made so far has its outcome."""
        for outcome in self._outcomes:  # one by one: very many calls need no callback each
            if not outcome.done():
                await asyncio.wait([outcome])

    @property
    def addresses(self) -> set[Address]:
        """Where the connections lead."""
        return set(filter(None, [pipeline.current.address for pipeline in self._all_pipelines()]))

    def abandon(self, address: Address | None) -> None:
        """Leave the server at an address, or every server: dial again before the next batch."""
        for pipeline in self._all_pipelines():
            pipeline.abandon(address)

    def reached(self) -> None:
        """Take note that a session has connected: connect now, if the last attempts failed."""
        for pipeline in self._all_pipelines():
            pipeline.current.reached()

    def close(self) -> Iterator[Step]:
        """Take out all calls; return, for each, a step that fails it if it has no outcome yet."""
        return chain(*[pipeline.close() for pipeline in self._all_pipelines()])
