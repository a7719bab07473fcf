"""A client of `feed.py`. It reconnects with the id of its last message: so it prints each message, and each once.

$ python -m examples.feed_client ws://localhost:8000/
$ python -m examples.feed_client ws://localhost:8000/ 1700000000005-0   (goes on where a killed client was)
"""

import asyncio
import contextlib
import json
import random
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException


async def follow(url: str, last_id: str = "") -> None:
    while True:
        with contextlib.suppress(OSError, WebSocketException):
            async with connect(f"{url}?after={last_id}") as ws:
                async for frame in ws:
                    print(frame, flush=True)
                    last_id = json.loads(frame)["id"]
        await asyncio.sleep(random.uniform(0, 2))  # noqa: S311, not all clients at once


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow(*sys.argv[1:]))
