"""A server of one flavour for the commands, to which the server makes no difference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.servers import Server


@pytest.fixture(scope="package")
def target() -> Iterator[Server]:
    """A server, for tests that leave it unchanged."""
    server = start_server(FLAVOURS[0])
    yield server
    server.remove()
