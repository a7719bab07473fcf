"""A name that moves from one registry to another with all its subscribers at once. No I/O, no clock."""

from __future__ import annotations

from .entry import NameState, S, SubscriberState
from .registry import Registry
from .wire import Kind


def move(name: bytes, source: Registry[S], target: Registry[S]) -> dict[S, SubscriberState]:
    """Move a shard channel, which waits then; return the subscribers for which it was active, to be notified of that.

    Very many subscribers are moved together: only one of them by the registries, for the state of the name.
    """
    kind, active = Kind.SHARD_CHANNEL, SubscriberState.ACTIVE
    entry = source.shard_channels.get(name)
    if entry is None or not entry.has_subscribers:  # drain() deleted it
        return {}
    one = source.loss.notified
    if one is None or entry.state_of(one) is None:
        one = next(iter(entry.subscribers))
    others = entry.remove_others(one)
    was_active = source.remove(kind, name, one)
    target.add(kind, (name,), one)
    arrived = target.shard_channels.get(name)
    if arrived is None:
        pass  # the target drains
    elif arrived.state is NameState.JOINED:  # the target was about to unsubscribe: each of them is activated
        for other in others:
            target.add(kind, (name,), other)
    elif others:
        arrived.add_all(others)
    if list(others.values()).count(active) < len(others):  # most often all are active, and the table can be returned
        others = {other: state for other, state in others.items() if state is active}
    if was_active:
        others[one] = active
    return others
