"""The measurement of the adapters kills the connections, and finds what is lost. No test asserts a time."""

from __future__ import annotations

import pytest

from tools import measure_adapters
from tools.measure_adapters import CONTESTANTS, measure, table
from tools.measuring import running_server

CLIENTS, KILLS = 20, 2
OURS = ["Channels: redismpx", "Socket.IO: redismpx", "broadcaster: Broadcast of redismpx",
        "broadcaster: MultiplexerBackend", "Litestar: redismpx", "Starlette: bridge()"]  # fmt: skip


@pytest.mark.parametrize("name", OURS)
async def test_an_adapter_is_measured(name: str) -> None:
    """After each kill all clients get messages again, and the application is told."""
    with running_server() as server:
        row = await measure(CONTESTANTS[name], server.admin_url, CLIENTS, KILLS)
    assert (row.kills, row.told) == (KILLS, KILLS)
    assert row.connections == row.connections_after == 2
    assert row.back is not None
    assert row.lost < row.published


async def test_an_adapter_that_is_deaf_is_not_killed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages after the kills are lost, and after a few of these kills there is no further one."""
    monkeypatch.setattr(measure_adapters, "TIMEOUT", 0.2)
    monkeypatch.setattr(measure_adapters, "TOLD_WITHIN", 0.2)
    name = "Starlette: PubSub, Redis.from_url()"
    with running_server() as server:
        row = await measure(CONTESTANTS[name], server.admin_url, CLIENTS, 10)
    kills = measure_adapters.MOST_DEAF
    assert (row.kills, row.back, row.told) == (kills, None, 1)  # the first kill ends all clients
    assert row.connections > CLIENTS > row.connections_after
    assert row.lost == row.published >= kills
    assert table({name: row}).endswith(f"| never | {row.lost} of {row.lost} | 1 of {kills} |")
