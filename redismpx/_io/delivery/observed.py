"""The inbox of a subscription of a multiplexer with observers. Decides nothing: that is for the plain inbox."""

from __future__ import annotations

from functools import partial

from ...observing import Dropped
from ..session.subscriber import Deliver
from .inbox import Inbox
from .watch import Watch, describe


class ObservedInbox(Inbox):
    """Tells the observers what is dropped, and lets them follow each message that a callback handles."""

    __slots__ = ()

    @property
    def _watch(self) -> Watch:
        assert self.context.watch is not None
        return self.context.watch

    @property
    def straight(self) -> Deliver:
        """The function that takes messages while no event is queued."""
        straight = super().straight
        if self.is_read or self.consumer.is_own or not self._watch.follows:
            return straight
        return partial(self._handle, straight)

    def _handle(self, straight: Deliver, channel: bytes, data: bytes) -> object:
        fact = describe(channel, self._label, self._payload_of(data))
        return self._watch.call(fact, straight, channel, data)

    def _payload_of(self, data: bytes) -> bytes:
        """Return the payload of a message, as it was published."""
        return data

    def drop(self, count: int) -> None:
        """Count dropped messages, and tell the observers after the change that is going on: they may close anything."""
        super().drop(count)
        tell = partial(self._watch.tell, Dropped(self._label, count))
        if count and not self.context.budget.critical.postpone(tell):
            tell()
