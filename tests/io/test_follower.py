"""When the slot map is read, and what happens when it cannot be read or a name cannot be placed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from redismpx._io.deployment import follower
from redismpx._io.deployment.follower import SlotMapFollower

from ..helpers.waiting import until


class UnreadableMap:
    """A slot map that cannot be read the first times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.reads = 0

    async def refresh(self, suspect: str | None) -> None:
        self.reads += 1
        if self.reads <= self.failures:
            raise OSError("no node answers")


class Names(SlotMapFollower):
    """Names that are placed at the last of several attempts, of which the first ones may raise."""

    def __init__(self, slot_map: UnreadableMap, *, unsettled: int = 0, faults: int = 0) -> None:
        super().__init__(cast("Any", slot_map))
        self.errors: list[str] = []
        self.placed = 0
        self._unsettled = unsettled
        self._faults = faults

    @property
    def _suspect(self) -> str | None:
        self.errors.append("" if self._error is None else self._error.reason)
        return None

    async def _place_all(self) -> None:
        self.placed += 1
        if self.placed <= self._faults:
            raise AssertionError("a fault")
        if self.placed <= self._unsettled:
            self._look_again()

    def doubt(self) -> None:
        self._look_again()

    def end(self) -> None:
        self._drain()


@asynccontextmanager
async def running(names: Names, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(follower, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(follower, "LONGEST_PAUSE", 0.001)
    task = asyncio.create_task(names.run())
    yield
    names.end()
    await asyncio.wait_for(task, 5)


async def settled(names: Names) -> None:
    await until(lambda: names._is_settled and names.placed > 0)


async def test_the_slot_map_is_read_until_names_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read before a name is in doubt, nor after each is in its place."""
    slot_map = UnreadableMap(0)
    names = Names(slot_map, unsettled=2)
    async with running(names, monkeypatch):
        await asyncio.sleep(0)
        assert slot_map.reads == 0
        names.doubt()
        await settled(names)
        assert (slot_map.reads, names.placed) == (3, 3)
        names.doubt()
        await until(lambda: names.placed == 4)
    assert slot_map.reads == 4


async def test_an_unreadable_slot_map_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is known until the slot map is read; no name moves meanwhile."""
    slot_map = UnreadableMap(2)
    names = Names(slot_map)
    async with running(names, monkeypatch):
        names.doubt()
        await settled(names)
    reason = "the slot map of the cluster cannot be read: no node answers"
    assert names.errors == ["", reason, reason]
    assert (names._error, names.placed) == (None, 1)


async def test_a_fault_in_placing_is_logged_and_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not taken for an unreadable slot map, and does not end the reading."""
    names = Names(UnreadableMap(0), faults=1)
    with caplog.at_level(logging.CRITICAL, "redismpx"):
        async with running(names, monkeypatch):
            names.doubt()
            await settled(names)
    assert names.errors == ["", ""]
    assert [record.message for record in caplog.records] == ["internal error; reading the slot map again"]
