"""The commands of docker-compose.yml start what the file says. Docker itself is not run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import Sentinel

from redismpx import Multiplexer

from ..helpers.demo import Demo
from ..helpers.flavours import start_server
from ..helpers.servers import free_port

pytestmark = pytest.mark.usefixtures("no_leaks")

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())[
    "services"
]
PROFILES = ("processes", "cluster", "sentinel")
DEADLINE = 60.0  # seconds for a cluster to be formed, on a busy machine


def profile(name: str) -> dict[str, dict[str, Any]]:
    """The services of one profile; of none by the empty name."""
    return {key: service for key, service in SERVICES.items() if service.get("profiles", [""]) == [name]}


def test_each_service_has_its_dependencies_in_its_profile() -> None:
    """Each service is in one profile at most, and what it depends on is started with it."""
    assert list(profile("")) == ["redis", "demo"]
    assert SERVICES.keys() == {name for each in ("", *PROFILES) for name in profile(each)}
    for name in "", *PROFILES:
        services = profile("") | profile(name)
        for service in profile(name).values():
            assert services.keys() >= set(service.get("depends_on", {}))
            for other, condition in service.get("depends_on", {}).items():
                assert condition == {"condition": "service_healthy"}
                assert "healthcheck" in services[other]
            if "network_mode" in service:
                kind, _, other = service["network_mode"].partition(":")
                assert kind == "service"
                assert other in services
                assert not service.keys() & {"ports", "networks"}


def test_ports_are_published_on_loopback_only() -> None:
    """Only loopback ports are published, and each belongs to a server of its profile."""
    for name in "cluster", "sentinel":
        published: list[int] = []
        for service in profile(name).values():
            for text in service.get("ports", ()):
                address, here, there = text.split(":")
                assert (address, here) == ("127.0.0.1", there)
                first, last = there.split("-")
                published += range(int(first), int(last) + 1)
        assert published == sorted(published)
        ports = [int(service["environment"]["PORT"]) for service in profile(name).values() if "environment" in service]
        assert ports == published
    assert SERVICES["demo"]["ports"] == ["127.0.0.1:8000:8000"]
    assert SERVICES["demo-2"]["ports"] == ["127.0.0.1:8001:8000"]


def free_cluster_port() -> int:
    """A port, and the one ten thousand above it, where the nodes of a cluster talk to each other."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 10_000))
            return port


@contextlib.asynccontextmanager
async def up(name: str, folder: Path, last: str) -> AsyncIterator[dict[int, int]]:
    """Run the commands of a profile without Docker, on other ports, and yield these. `last` ends by itself."""
    services = {key: service for key, service in profile(name).items() if not key.endswith("-net")}
    ports = {
        int(service["environment"]["PORT"]): free_cluster_port()
        for service in services.values()
        if "environment" in service
    }

    def translate(text: str) -> str:
        text = text.replace("$$", "$").replace("protected-mode no", "bind 127.0.0.1")
        return re.sub(r"\b\d{4,5}\b", lambda found: str(ports.get(int(found[0]), found[0])), text)

    async def start(key: str) -> asyncio.subprocess.Process:
        (folder / key).mkdir()
        environment = {word: translate(value) for word, value in services[key].get("environment", {}).items()}
        return await asyncio.create_subprocess_exec(
            *map(translate, services[key]["command"]),
            cwd=folder / key,
            env={"PATH": os.environ["PATH"], **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if key == last else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def healthy(key: str) -> None:
        shell, check = services[key]["healthcheck"]["test"]
        assert shell == "CMD-SHELL"
        port = ports[int(services[key]["environment"]["PORT"])]
        while True:
            probe = await asyncio.create_subprocess_shell(
                check.replace("$$", "$"),
                env={"PATH": os.environ["PATH"], "PORT": str(port)},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            if await probe.wait() == 0:
                return
            await asyncio.sleep(0.05)

    running: dict[str, asyncio.subprocess.Process] = {}
    try:
        async with asyncio.timeout(DEADLINE):
            while len(running) < len(services):
                for key in services.keys() - running.keys():
                    needed = services[key].get("depends_on", {})
                    if running.keys() >= set(needed):
                        for other in needed:
                            await healthy(other)
                        running[key] = await start(key)
            said, _ = await running[last].communicate()
        assert running[last].returncode == 0, said.decode()
        yield ports
    finally:
        for process in running.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture(autouse=True)
def programs() -> None:
    """The commands are written for what is in the image."""
    for program in "redis-server", "redis-cli":
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")


async def test_a_message_crosses_from_one_demo_to_the_other() -> None:
    """The profile `processes` starts the demo twice, with one Redis server: a message of one page is in the other."""
    commands = [SERVICES[name]["command"][-1].partition("exec redismpx demo ")[2] for name in ("demo", "demo-2")]
    assert commands == ["--host 0.0.0.0 --redis redis://redis:6379"] * 2
    server = start_server("redis")
    try:
        arguments = [
            word.replace("0.0.0.0", "127.0.0.1").replace("redis:6379", f"127.0.0.1:{server.port}")
            for word in [*commands[0].split(), "--port", "0"]
        ]
        here, there = await Demo.start(*arguments), await Demo.start(*arguments)
        async with here.chat("lobby") as ada, there.chat("lobby") as ben:
            await ada.ask(do="say", room="lobby", text="hello")
            await ben.until(type="message", room="lobby", text="hello")
        assert [(await each.stop())[0] for each in (here, there)] == [0, 0]
    finally:
        server.remove()


async def test_the_cluster_is_formed_and_serves_sharded_channels(tmp_path: Path) -> None:
    """The commands of the profile `cluster` form a cluster that serves sharded channels."""
    names = [f"room:{number}" for number in range(30)]
    async with (
        up("cluster", tmp_path, "cluster") as ports,
        RedisCluster(host="127.0.0.1", port=ports[7004]) as client,
        Multiplexer(client) as mpx,
    ):
        assert len(client.get_primaries()) == len(client.get_replicas()) == 3
        assert {(node.host, node.port) for node in client.get_nodes()} == {("127.0.0.1", p) for p in ports.values()}
        sub = mpx.new_channel_subscription(sharded=True)
        sub.add(*names)
        await sub.wait_for_activation(timeout=DEADLINE)
        assert mpx.stats().shards == 3
        for name in names:
            assert await mpx.publish(name, "hello", sharded=True) == 1
            assert (await sub.get(timeout=DEADLINE)).channel == name.encode()


async def test_the_sentinels_know_the_master_and_its_replicas(tmp_path: Path) -> None:
    """The commands of the profile `sentinel` start Sentinels that name the master and its replicas."""
    async with up("sentinel", tmp_path, "sentinel") as ports:
        sentinels = Sentinel([("127.0.0.1", ports[port]) for port in (26380, 26381, 26382)])
        assert await sentinels.discover_master("mymaster") == ("127.0.0.1", ports[6380])
        replicas = await sentinels.discover_slaves("mymaster")
        assert set(replicas) == {("127.0.0.1", ports[6381]), ("127.0.0.1", ports[6382])}
        client = sentinels.master_for("mymaster")
        async with Multiplexer(client) as mpx:
            sub = mpx.new_channel_subscription()
            sub.add("news")
            await sub.wait_for_activation(timeout=DEADLINE)
            assert await mpx.publish("news", "hello") == 1
            assert (await sub.get(timeout=DEADLINE)).data == b"hello"
        await client.aclose()
        for sentinel in sentinels.sentinels:
            await sentinel.aclose()
