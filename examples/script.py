"""A script that acts when a message comes, until a message says `exit`.

    python -m examples.script
    redis-cli publish commands '{"type": "greet", "name": "Ada"}'
    redis-cli publish commands '{"type": "exit"}'

Ctrl-C ends it, too.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from redismpx import Message
from redismpx.blocking import Multiplexer

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
logger = logging.getLogger("examples.script")


def main() -> None:
    with (
        Multiplexer(REDIS_URL, on_error=lambda error: logger.warning("ignored: %s", error)) as mpx,
        mpx.subscribe("commands", decode=json.loads) as commands,
    ):

        def handle(message: Message[Any]) -> None:
            match message.data:
                case {"type": "greet", "name": str(name)}:
                    print(f"Hello, {name}!", flush=True)
                case {"type": "exit"}:
                    commands.close()  # ends run()
                case other:
                    print("unknown command:", other, flush=True)

        print("ready", flush=True)
        print("handled:", commands.run(handle))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted")
