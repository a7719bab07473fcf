"""A Redis Pub/Sub multiplexer: one shared connection, many subscriptions, alive after every disconnect."""

from ._core.overflow import Overflow
from .channel import ChannelSubscription
from .envelope import Envelope
from .errors import (
    ConnectionLost,
    DecodeError,
    InactiveSubscription,
    KeyEventsDisabled,
    LimitReached,
    MessageGap,
    MultiplexerIsClosed,
    NoResponders,
    PromiseInterrupted,
    PromiseTimeout,
    RedisMPXError,
    RequestFailed,
    SlowConsumer,
    SubscriptionIsClosed,
    SubscriptionRefused,
    TooManyChannels,
    TooManyPatterns,
    TooManyPromises,
)
from .keys import KeyEvent, KeySubscription
from .message import Activation, Disconnect, Event, Message, OnGap, OnStreamMessage, StreamEvent, StreamMessage
from .multiplexer import Multiplexer
from .pattern import PatternSubscription, escape_glob
from .promise import Promise, PromiseSubscription
from .request import Request
from .service import Service
from .stats import Stats
from .stream import StreamSubscription
from .typing import OnActivation, OnClose, OnDisconnect, OnError, OnMessage

__version__ = "1.0.0"

__all__ = [
    "Activation",
    "ChannelSubscription",
    "ConnectionLost",
    "DecodeError",
    "Disconnect",
    "Envelope",
    "Event",
    "InactiveSubscription",
    "KeyEvent",
    "KeyEventsDisabled",
    "KeySubscription",
    "LimitReached",
    "Message",
    "MessageGap",
    "Multiplexer",
    "MultiplexerIsClosed",
    "NoResponders",
    "OnActivation",
    "OnClose",
    "OnDisconnect",
    "OnError",
    "OnGap",
    "OnMessage",
    "OnStreamMessage",
    "Overflow",
    "PatternSubscription",
    "Promise",
    "PromiseInterrupted",
    "PromiseSubscription",
    "PromiseTimeout",
    "RedisMPXError",
    "Request",
    "RequestFailed",
    "Service",
    "SlowConsumer",
    "Stats",
    "StreamEvent",
    "StreamMessage",
    "StreamSubscription",
    "SubscriptionIsClosed",
    "SubscriptionRefused",
    "TooManyChannels",
    "TooManyPatterns",
    "TooManyPromises",
    "escape_glob",
]
