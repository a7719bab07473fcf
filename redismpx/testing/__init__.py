"""For tests of applications: a server with faults by name, and a checker of the order of events. The extra `testing`.

Fixtures for pytest come with the plugin `pytest_redismpx`.
"""

from __future__ import annotations

__all__ = ["Checker", "Fault", "Faults", "Flow", "GivenServer", "MemoryServer", "MultiplexerMixin", "Proxy"]

from ._rig import GivenServer
from .case import MultiplexerMixin
from .checker import Checker
from .faults import Fault, Faults
from .memory import MemoryServer
from .proxy import Flow, Proxy
