"""A process of its own that answers requests, until its input ends: `python responder.py redismpx|nats PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

SERVICE = "service"
AT_ONCE = 100  # requests that are handled


async def serve_redis(port: int) -> None:
    from redismpx import Multiplexer

    async with Multiplexer(f"redis://127.0.0.1:{port}") as mpx:
        service = mpx.serve(SERVICE, lambda request: request.body, concurrency=AT_ONCE)
        await service.wait_for_activation(30)
        await until_told()


async def serve_nats(port: int) -> None:
    import nats

    async def answer(message: Any) -> None:
        await message.respond(message.data)

    async with await nats.connect(f"nats://127.0.0.1:{port}") as client:
        await client.subscribe(SERVICE, cb=answer)
        await client.flush()
        await until_told()


async def until_told() -> None:
    print(0, flush=True)  # it has begun
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run({"redismpx": serve_redis, "nats": serve_nats}[sys.argv[1]](int(sys.argv[2])))
