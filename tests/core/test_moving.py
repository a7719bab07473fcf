"""A shard channel moves to another registry with all its subscribers, however many they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest

from redismpx._core.entry import NameState, SubscriberState
from redismpx._core.moving import move
from redismpx._core.registry import Registry
from redismpx._core.wire import Kind, Verb

KIND = Kind.SHARD_CHANNEL
NAME = b"n"


def joined(subscribers: Iterable[int]) -> Registry[int]:
    """Return a registry in which a name is active for these subscribers."""
    registry: Registry[int] = Registry()
    for subscriber in subscribers:
        registry.add(KIND, (NAME,), subscriber)
    registry.next_commands()
    assert list(registry.confirm(Verb.SSUBSCRIBE, NAME))
    return registry


def states(registry: Registry[int], subscribers: Iterable[int]) -> set[SubscriberState | None]:
    return {registry.subscriber_state(KIND, NAME, subscriber) for subscriber in subscribers}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_subscribers_move_and_wait(count: int) -> None:
    """The active ones are returned; the old registry unsubscribes, the new one subscribes, and activates all."""
    source, target, everyone = joined(range(count)), Registry[int](), range(count + 1)
    source.add(KIND, (NAME,), count)  # which is not active yet
    assert sorted(move(NAME, source, target)) == [*range(count)]
    assert states(source, everyone) == {None}
    assert states(target, everyone) == {SubscriberState.WAITING}
    assert [command.verb for command in source.next_commands()] == [Verb.SUNSUBSCRIBE]
    assert not [*source.activate_late()]
    assert [command.verb for command in target.next_commands()] == [Verb.SSUBSCRIBE]
    assert sorted(target.confirm(Verb.SSUBSCRIBE, NAME)) == [*everyone]
    assert (source.name_count(KIND), target.name_count(KIND)) == (0, 1)


def test_a_name_without_an_entry_does_not_move() -> None:
    """drain() may have deleted it, or its last subscriber may have left."""
    source, target = joined([1]), Registry[int]()
    source.remove(KIND, NAME, 1)
    assert move(NAME, source, target) == move(b"other", source, target) == {}
    assert target.is_empty


def test_a_draining_registry_takes_no_name() -> None:
    """Its names are unsubscribed from already."""
    target: Registry[int] = Registry()
    assert not [*target.drain()]
    assert sorted(move(NAME, joined([1, 2]), target)) == [1, 2]
    assert target.is_empty


def test_a_name_that_the_target_still_has_is_active_soon() -> None:
    """Each subscriber is activated there, without another command."""
    source, target = joined([1, 2, 3]), joined([4])
    target.remove(KIND, NAME, 4)
    move(NAME, source, target)
    assert not target.next_commands()
    assert sorted(subscriber for subscriber, _ in target.activate_late()) == [1, 2, 3]


def test_a_subscriber_that_knows_of_the_loss_is_not_active() -> None:
    """A name moves in the middle of a loss: nobody is notified of it twice, and each is notified once."""
    source, target = joined([1, 2, 3]), Registry[int]()
    steps = source.connection_lost()
    told = [subscriber for subscriber, _ in itertools.islice(filter(None, steps), 2)]
    assert len(told) == 2
    assert sorted([*told, *move(NAME, source, target)]) == [1, 2, 3]
    assert not [each for each in steps if each is not None]
    assert target.shard_channels[NAME].state is NameState.ABSENT


def test_a_move_takes_few_steps_for_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registries add and remove one subscriber, whose name moves; the others move together."""
    source, target, calls = joined(range(1_000)), Registry[int](), list[str]()

    def count(name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(Registry, name)

        def call(*arguments: object) -> object:
            calls.append(name)
            return method(*arguments)

        return call

    for name in ("add", "remove"):
        monkeypatch.setattr(Registry, name, count(name))
    assert len(move(NAME, source, target)) == 1_000
    assert sorted(calls) == ["add", "remove"]
