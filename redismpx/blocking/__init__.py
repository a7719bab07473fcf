"""The same API for threads, without `await`. Start with `redismpx.blocking.Multiplexer`."""

from .multiplexer import Multiplexer
from .promise import Promise, PromiseSubscription
from .service import Service
from .streams import StreamSubscription
from .subscriptions import ChannelSubscription, KeySubscription, PatternSubscription
from .topic_reader import TopicReader
from .topics import Topics

__all__ = [
    "ChannelSubscription",
    "KeySubscription",
    "Multiplexer",
    "PatternSubscription",
    "Promise",
    "PromiseSubscription",
    "Service",
    "StreamSubscription",
    "TopicReader",
    "Topics",
]
