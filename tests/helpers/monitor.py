"""What a server reports about its clients, their commands and their subscriptions."""

from __future__ import annotations

import asyncio
from typing import Self

from redis.asyncio import Redis

from .waiting import until


class Monitor:
    """The commands that a server gets, from MONITOR."""

    def __init__(self, admin: Redis) -> None:
        self._client = admin
        self.commands: list[str] = []
        self.times: list[float] = []
        """When the server ran each command, by the server's clock."""

    async def __aenter__(self) -> Self:
        self._monitor = self._client.monitor()
        await self._monitor.__aenter__()
        self._task = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        async for record in self._monitor.listen():
            self.commands.append(record["command"])
            self.times.append(record["time"])

    async def saw(self, marker: str) -> None:
        """Publish `marker`, and wait until MONITOR shows it: by then it has shown all commands before."""
        await self._client.publish("monitor", marker)
        await until(lambda: any(marker in command for command in self.commands))

    def count(self, *words: str) -> int:
        return sum(all(word in command for word in words) for command in self.commands)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._monitor.__aexit__(None, None, None)


async def subscribed(admin: Redis) -> tuple[set[bytes], int]:
    """Ask the server for the channels that have subscribers, and for the number of patterns."""
    # Not pubsub_channels(): its pattern `*` does not match the empty name.
    return set(await admin.execute_command("PUBSUB", "CHANNELS")), await admin.pubsub_numpat()


async def settled(admin: Redis, channels: set[bytes], patterns: int = 0) -> None:
    """Wait up to 1 s until the server reports exactly these channels and this number of patterns."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + 1
    while (word := await subscribed(admin)) != (channels, patterns):
        assert loop.time() < give_up, f"{word} instead of {(channels, patterns)}"
        await asyncio.sleep(0.005)


async def calls_of(admin: Redis, *commands: str) -> int:
    """Ask the server how often it got these commands, rejected calls included."""
    counts = await admin.info("commandstats")
    found = [counts[f"cmdstat_{command}"] for command in commands if f"cmdstat_{command}" in counts]
    return sum(count["calls"] + count["rejected_calls"] for count in found)


async def kill_clients(admin: Redis) -> None:
    """Have the server close every connection that is subscribed."""
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
