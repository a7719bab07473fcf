"""The fixtures for unittest."""

from __future__ import annotations

__all__ = ["MultiplexerMixin"]

import unittest
from typing import ClassVar

from redis.backoff import ConstantBackoff

from ..embedded import Server
from ..multiplexer import Multiplexer
from .faults import Faults


class MultiplexerMixin(unittest.TestCase):
    """Gives each test `faults`, and each test of an `IsolatedAsyncioTestCase` a `multiplexer`.

    The server is started once for the class. Put the mixin first, and call `super()` in `setUp()` and `asyncSetUp()`.

    Example:
        ::

            class TestBoard(MultiplexerMixin, unittest.IsolatedAsyncioTestCase):
                async def test_a_cut_is_reported(self) -> None:
                    async with self.multiplexer.subscribe("board") as board:
                        events = board.events()
                        self.assertIsInstance(await anext(events), Activation)
                        self.faults.cut()
                        self.assertIsInstance(await anext(events), Disconnect)
    """

    redismpx_server: ClassVar[Server]
    """The server, at its `url`."""
    faults: Faults
    """The faults of the server; connect the application to its `url`."""
    multiplexer: Multiplexer
    """A multiplexer that is connected through `faults` and reconnects quickly; it is closed at the end of the test."""

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server."""
        super().setUpClass()
        cls.redismpx_server = Server(port=0)
        cls.redismpx_server.start()
        cls.addClassCleanup(cls.redismpx_server.stop)

    def setUp(self) -> None:
        """Begin the faults."""
        super().setUp()
        self.faults = self.enterContext(Faults(self.redismpx_server))

    async def asyncSetUp(self) -> None:
        """Make the multiplexer. Only `unittest.IsolatedAsyncioTestCase` calls this."""
        self.multiplexer = Multiplexer(self.faults.url, backoff=ConstantBackoff(0.01))
        self.addAsyncCleanup(self.multiplexer.aclose)  # type: ignore[attr-defined]
