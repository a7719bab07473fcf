"""Values and exceptions survive pickle and copy; objects that belong to an event loop do not."""

from __future__ import annotations

import copy
import pickle
import pickletools
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import get_args

import pytest
import redis.exceptions

import redismpx
from redismpx import (
    Activation,
    ChannelSubscription,
    ConnectionLost,
    DecodeError,
    Disconnect,
    Envelope,
    InactiveSubscription,
    KeyEvent,
    KeyEventsDisabled,
    KeySubscription,
    LimitReached,
    Message,
    MessageGap,
    Multiplexer,
    MultiplexerIsClosed,
    NoResponders,
    Overflow,
    PatternSubscription,
    Promise,
    PromiseInterrupted,
    PromiseSubscription,
    PromiseTimeout,
    RedisMPXError,
    Request,
    RequestFailed,
    Service,
    SlowConsumer,
    StreamMessage,
    StreamSubscription,
    SubscriptionIsClosed,
    SubscriptionRefused,
    TooManyChannels,
    TooManyPatterns,
    TooManyPromises,
    observing,
)
from redismpx.topics import TopicMessage

ENVELOPE = Envelope(b"body", {"Name": "value"}, reply_to=b"reply")
LOST = ConnectionLost("gone", frozenset({b"a"}), sent=True, node="127.0.0.1:7001")
PUBLISHING = observing.Publishing("publish", b"channel", ENVELOPE.headers, ENVELOPE.id)
HANDLING = observing.Handling(b"channel", "a channel subscription", None, None)
EXAMPLES = [
    Activation(b"channel"),
    LOST,
    DecodeError(b"channel", b"data"),
    ENVELOPE,
    InactiveSubscription(b"pattern"),
    KeyEvent(b"key", b"set", 0, (b"field",)),
    KeyEventsDisabled(b"key:*", "Ex", "K", "127.0.0.1:7001"),
    LimitReached("max_channels", 1),
    MessageGap(b"stream", b"1-0", None, "trimmed"),
    StreamMessage(b"stream", b"data", b"1-0"),
    Message(b"channel", b"data", b"pattern"),
    TopicMessage(("a",), {"n": 1}, ENVELOPE.id, ENVELOPE.timestamp, ENVELOPE.headers),
    MultiplexerIsClosed(),
    NoResponders(b"channel"),
    Overflow.LATEST,
    PromiseInterrupted(b"channel", "closed"),
    PromiseTimeout(b"channel", 1.5),
    RedisMPXError("text"),
    Request(b"channel", b"body", ENVELOPE.headers, b"reply", ENVELOPE.id, datetime.now(UTC)),
    RequestFailed(b"channel", "ValueError: text"),
    SlowConsumer(1, 2),
    Multiplexer("redis://127.0.0.1:1").stats(),
    observing.Connected("127.0.0.1:6379", 1.5),
    observing.Subscribed("channel", b"channel"),
    observing.Refused("channel", b"channel", "NOPERM"),
    observing.Dropped("a channel subscription", 1),
    observing.Missed(b"stream", b"1-0", None, "trimmed"),
    PUBLISHING,
    observing.Published(PUBLISHING, 0.5, None),
    HANDLING,
    observing.Handled(HANDLING, 0.5, None),
    SubscriptionIsClosed(),
    SubscriptionRefused("channel", b"channel", "NOPERM"),
    TooManyChannels("max_channels", 1),
    TooManyPatterns("max_patterns", 1),
    TooManyPromises("max_promises", 1),
]
"""An object of each public class that is a value or an exception."""
EVENTS = [
    Disconnect(LOST),
    observing.ConnectFailed("127.0.0.1:6379", LOST),
    observing.Lost("127.0.0.1:6379", LOST, 1, 2),
]
"""The same of those that have an error."""
OF_A_LOOP = (
    ChannelSubscription, KeySubscription, Multiplexer, PatternSubscription, Promise, PromiseSubscription, Service,
    StreamSubscription,
)  # fmt: skip
"""The public classes whose objects belong to an event loop."""

COPIES: dict[str, Callable[[object], object]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}
each_way = pytest.mark.parametrize("again", COPIES.values(), ids=list(COPIES))


def test_every_public_class_has_an_example() -> None:
    """The objects of each public class have an example here, or belong to a loop."""
    public = {value for name in redismpx.__all__ if isinstance(value := getattr(redismpx, name), type)}
    facts = {*get_args(observing.Fact), observing.Publishing, observing.Handling}
    assert public | facts | {TopicMessage} == {*map(type, EXAMPLES), *map(type, EVENTS), *OF_A_LOOP}


@each_way
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_keeps_its_error(event: object, again: Callable[[object], object]) -> None:
    """A copy of an event has a copy of its error, with the same facts; errors compare by identity."""
    twin = again(event)
    assert isinstance(twin, type(event))
    error = twin.error  # type: ignore[attr-defined]
    assert (str(error), error.__dict__) == (str(LOST), LOST.__dict__)


@each_way
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_value_or_exception_survives(example: object, again: Callable[[object], object]) -> None:
    """A copy has the type, the text and the attributes of the original."""
    twin = again(example)
    assert type(twin) is type(example)
    assert (str(twin), repr(twin)) == (str(example), repr(example))
    if isinstance(example, BaseException):
        assert isinstance(twin, BaseException)
        assert (twin.args, twin.__dict__) == (example.args, example.__dict__)
    else:
        assert twin == example


@each_way
def test_headers_stay_read_only(again: Callable[[object], object]) -> None:
    """The headers of a copied envelope, and headers that are copied alone, are equal and read-only."""
    twin = again(ENVELOPE)
    assert isinstance(twin, Envelope)
    assert bytes(twin) == bytes(ENVELOPE)
    for headers in (twin.headers, again(ENVELOPE.headers)):
        assert headers == {"Name": "value"}
        with pytest.raises(TypeError):
            headers["Name"] = "other"  # type: ignore[index]


def with_causes() -> PromiseInterrupted:
    """An exception with a cause of this library, whose causes belong to others."""

    class Local(Exception):
        """An exception that cannot be pickled."""

    try:
        try:
            try:
                raise Local("the first")
            except Local:
                raise redis.exceptions.ConnectionError("the second")  # noqa: B904, the context is under test
        except redis.exceptions.ConnectionError as error:
            raise ConnectionLost("gone") from error
    except ConnectionLost as lost:
        interrupted = PromiseInterrupted(b"channel", "connection lost")
        interrupted.__cause__ = lost
        return interrupted


@each_way
def test_the_causes_survive_as_texts(again: Callable[[object], object]) -> None:
    """A copy has all causes: those of this library whole, the others as their type and text."""
    original = with_causes()
    twin = again(again(original))
    assert isinstance(twin, PromiseInterrupted)
    assert isinstance(twin.__cause__, ConnectionLost)
    assert twin.__cause__.reason == "gone"
    text = "".join(traceback.format_exception(twin))
    assert "Local: the first" in text
    assert "redis.exceptions.ConnectionError: the second" in text


def test_unpickling_needs_no_other_library() -> None:
    """A pickle names no class of redis-py, whatever caused the exception."""
    strings = {argument for _, argument, _ in pickletools.genops(pickle.dumps(with_causes()))}
    assert "redismpx.errors" in strings
    assert strings.isdisjoint({"redis.exceptions", __name__})


def test_causes_that_form_a_loop_survive() -> None:
    """An exception whose causes refer to each other is pickled with some of them."""
    lost, other = ConnectionLost("gone"), OSError("other")
    lost.__cause__, other.__cause__ = other, other
    twin = pickle.loads(pickle.dumps(lost))
    assert str(twin.__cause__) == "OSError: other"
    other.__cause__ = lost
    twin = pickle.loads(pickle.dumps(lost))
    assert twin.__cause__.__cause__ is twin


def test_a_subclass_of_a_user_survives() -> None:
    """A subclass with other arguments and attributes of its own keeps them."""
    twin = pickle.loads(pickle.dumps(Mine(7)))
    assert (type(twin), str(twin), twin.number, twin.reason) == (Mine, "connection lost: 7", 7, "7")


class Mine(ConnectionLost):
    """A subclass as a user may write one."""

    def __init__(self, number: int) -> None:
        super().__init__(str(number))
        self.number = number


@pytest.mark.parametrize("kind", [kind for kind in OF_A_LOOP if kind is not Promise], ids=lambda kind: kind.__name__)
def test_an_object_of_a_loop_cannot_be_pickled(kind: type) -> None:
    """An object that belongs to a loop raises TypeError, and is unchanged."""
    mpx = Multiplexer("redis://127.0.0.1:1")
    objects = [
        mpx,
        mpx.new_channel_subscription(),
        mpx.new_pattern_subscription("*"),
        mpx.new_key_subscription("*"),
        mpx.new_stream_subscription(),
        mpx.new_promise_subscription("p"),
        mpx.serve("s", bytes),
    ]
    (example,) = [each for each in objects if type(each) is kind]
    for again in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            again(example)
    mpx.close()
