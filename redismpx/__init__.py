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
from .message import Message
from .multiplexer import Multiplexer
from .pattern import PatternSubscription, escape_glob
from .promise import Promise, PromiseSubscription
from .request import Request
from .service import Service
from .stats import Stats
from .typing import OnActivation, OnDisconnect, OnError, OnMessage

__version__ = "0.1.0"

__all__ = [
    "ChannelSubscription",
    "ConnectionLost",
    "DecodeError",
    "Envelope",
    "InactiveSubscription",
    "KeyEvent",
    "KeyEventsDisabled",
    "KeySubscription",
    "LimitReached",
    "Message",
    "Multiplexer",
    "MultiplexerIsClosed",
    "NoResponders",
    "OnActivation",
    "OnDisconnect",
    "OnError",
    "OnMessage",
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
    "SubscriptionIsClosed",
    "SubscriptionRefused",
    "TooManyChannels",
    "TooManyPatterns",
    "TooManyPromises",
    "escape_glob",
]
