"""Publish and subscribe on a tree of topics, in one process. No server and no event loop are needed."""

__all__ = ["TopicSubscription", "Topics"]

from .subscription import TopicSubscription
from .topics import Topics
