"""The registry of a session of a multiplexer with observers. Decides nothing: that is for the plain registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ..._core.critical import CriticalSection
from ..._core.registry import Registry
from ..._core.wire import Verb
from ...observing import Subscribed
from ..redispy.client import key_slot
from .options import SessionOptions, Tell
from .subscriber import Subscriber


def new_registry(options: SessionOptions) -> Registry[Subscriber]:
    """Return the registry of a session."""
    if options.tell is None:
        return Registry(key_slot)
    return ObservedRegistry(key_slot, options.critical, options.tell)


class ObservedRegistry(Registry[Subscriber]):
    """Tells the observers which names the server has confirmed, after that change: they may close anything."""

    def __init__(self, slot_of: Callable[[bytes], int], critical: CriticalSection, tell: Tell) -> None:
        super().__init__(slot_of)
        self._critical = critical
        self._tell = tell

    def confirm(self, verb: Verb, name: bytes) -> Iterable[Subscriber]:
        """Take the confirmation of one name."""
        subscribers = super().confirm(verb, name)
        if verb.subscribes:
            self._critical.postpone(partial(self._tell, Subscribed(verb.kind.value, name)))
        return subscribers
