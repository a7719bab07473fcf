"""For tests: a proxy with the faults of a network, and a checker of the order of events. The extra `testing`."""

from __future__ import annotations

__all__ = ["Checker", "Flow", "Proxy"]

from .checker import Checker
from .proxy import Flow, Proxy
