"""A process that replies to requests until a line or the end of its stdin: `python responder.py redismpx|nats PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

SERVICE = "service"
CONCURRENCY = 100  # requests that are handled at once


async def serve_redis(port: int) -> None:
    from redismpx import Multiplexer

    async with Multiplexer(f"redis://127.0.0.1:{port}") as mpx:
        service = mpx.serve(SERVICE, lambda request: request.body, concurrency=CONCURRENCY)
        await service.wait_for_activation(timeout=30)
        await until_stopped()


async def serve_nats(port: int) -> None:
    import nats

    async def reply(message: Any) -> None:
        await message.respond(message.data)

    async with await nats.connect(f"nats://127.0.0.1:{port}") as client:
        await client.subscribe(SERVICE, cb=reply)
        await client.flush()
        await until_stopped()


async def until_stopped() -> None:
    print(0, flush=True)  # it has started
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run({"redismpx": serve_redis, "nats": serve_nats}[sys.argv[1]](int(sys.argv[2])))
