"""Publish and subscribe on a tree of topics: in one process without a server, or in many through Redis."""

__all__ = ["TopicMessage", "TopicReader", "TopicService", "TopicSubscription", "Topics"]

from .message import TopicMessage
from .reader import TopicReader
from .service import TopicService
from .subscription import TopicSubscription
from .topics import Topics
