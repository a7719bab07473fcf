"""fastapi-websocket-pubsub, with `Broadcast` of redismpx.contrib between two servers.

It is installed into a folder of its own: permit-broadcaster, which it requires, overwrites the modules of broadcaster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.measuring import running_server

PACKAGES = ("fastapi-websocket-pubsub", "fastapi-websocket-rpc", "tenacity")

PROGRAM = """
import asyncio
import os

from fastapi import FastAPI, WebSocket
from fastapi_websocket_pubsub import PubSubClient, PubSubEndpoint
from fastapi_websocket_pubsub.event_broadcaster import EventBroadcaster
from fastapi_websocket_pubsub.websocket_rpc_event_notifier import WebSocketRpcEventNotifier
from redis.asyncio import Redis

from redismpx import Multiplexer
from redismpx.contrib.broadcaster import Broadcast
from tests.helpers.asgi import serving
from tests.helpers.backoffs import QUICK
from tests.helpers.monitor import kill_clients, settled
from tests.helpers.waiting import until


def endpoint(mpx):
    notifier = WebSocketRpcEventNotifier()
    return PubSubEndpoint(notifier=notifier, broadcaster=EventBroadcaster(mpx, notifier, broadcast_type=Broadcast))


async def main(url):
    heard = asyncio.Queue()

    async def on_event(data, topic):
        heard.put_nowait(data)

    async with asyncio.timeout(30), Redis.from_url(url) as admin, Multiplexer(url, backoff=QUICK) as mpx:
        here, there, app = endpoint(mpx), endpoint(mpx), FastAPI()

        @app.websocket("/pubsub")
        async def serve(websocket: WebSocket):
            await here.main_loop(websocket)

        async with serving(app) as served, PubSubClient(["news"], callback=on_event) as client:
            client.start_client(f"ws://127.0.0.1:{served.port}/pubsub")
            await client.wait_until_ready()
            for kills in range(10):
                await settled(admin, {b"EventNotifier"})
                await there.publish(["news"], f"after {kills} kills")
                assert await heard.get() == f"after {kills} kills"
                await kill_clients(admin)
                await until(lambda: not mpx.connected)
    print("PASSED: what one server publishes reaches the client of another, after each of 10 kills")


asyncio.run(main(os.environ["REDIS_URL"]))
"""


def run(source: Path | None, folder: Path) -> int:
    """Install the package into the folder, or take it from `source`, and run it; return 0 if all messages arrive."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *PACKAGES], check=True)
    root = str(Path(__file__).parents[2])
    with running_server() as server:
        paths = os.pathsep.join([*([] if source is None else [str(source)]), str(folder), root])
        environment = {**os.environ, "PYTHONPATH": paths, "REDIS_URL": server.url}
        return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=False).returncode
