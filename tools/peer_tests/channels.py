"""Django Channels: the tests of channels_redis for the layer that ours replaces, and those of Channels for a layer.

A conftest puts our layer in the place of theirs; their servers are replaced by those of this run. Pub/Sub keeps no
message for a channel from which nobody receives. So, in the tests of Channels, each channel has a receiver before it is
used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.helpers.servers import Server, find_binary

from .source import unpack

OF_EACH_LOOP = "looks into the objects that channels_redis has for each event loop"
LEFT_OUT = {
    "channels_redis/test_pubsub": {
        "test_loop_instance_channel_layer_reference": OF_EACH_LOOP,
        "test_multi_event_loop_garbage_collection": OF_EACH_LOOP,
        "test_auto_reconnect": "closes the connection pools of channels_redis; tests/contrib cuts connections instead",
    },
    "channels_redis/test_serializers": {
        "test_refuse_to_register_bad_serializers": "of the registry of channels_redis; ours takes a serializer",
        "test_raise_error_for_unregistered_serializer": "of the registry of channels_redis",
        "test_register_custom_serializer": "of the registry of channels_redis",
        "test_serialize": "of the classes of channels_redis; tests/contrib exchanges messages with them instead",
        "test_deserialize": "of the classes of channels_redis; tests/contrib exchanges messages with them instead",
        "test_serialization_encrypted": "of the classes of channels_redis; tests/contrib exchanges messages with them",
    },
    "channels/test_inmemorychannel": {
        "test_send_receive": "looks for its channel in a dictionary of the layer in memory",
        "test_race_empty": "removes a channel from a dictionary of the layer in memory",
        "test_send_capacity": "the sender is not told that a channel is full: its oldest message is dropped",
        "test_expiry_single": "counts the channels in a dictionary of the layer in memory",
        "test_expiry_unread": "counts the channels in a dictionary of the layer in memory",
        "test_expiry_multi": "a message does not expire while its consumer is busy",
    },
}
"""For each file of tests, those that are left out, and why. The rest must pass."""

CONFTEST = '''
import asyncio, os, sys
from contextlib import suppress

import channels.layers, channels_redis.pubsub, pytest
from redismpx.contrib.channels import ChannelLayer

sys.modules["async_timeout"] = asyncio  # which has timeout() itself in the Pythons that redismpx supports

class Receiving(ChannelLayer):
    """A layer in which each channel has a receiver before it is used."""

    def __init__(self, **options):
        super().__init__([os.environ["REDIS_URL"]], **options)
        self._begun = set()

    async def _begin(self, channel):
        if channel not in self._begun and "specific." not in channel:
            self._begun.add(channel)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.receive(channel), 0.1)

    async def send(self, channel, message):
        await self._begin(channel)
        await super().send(channel, message)

    async def group_add(self, group, channel):
        await self._begin(channel)
        await super().group_add(group, channel)

@pytest.fixture
def event_loop():
    """The loop that older releases of pytest-asyncio provided: the tests of channels_redis 4.2 use it."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

channels_redis.pubsub.RedisPubSubChannelLayer = ChannelLayer
channels.layers.InMemoryChannelLayer = Receiving
'''


def run(source: Path | None, folder: Path) -> int:
    """Run the tests; `source` has a folder of tests of Channels, which its package lacks, unless None."""
    tests = folder / "run"
    tests.mkdir()
    (tests / "conftest.py").write_text(CONFTEST)
    (folder / "redis").mkdir()
    sources = {"channels_redis": unpack("channels_redis", folder / "redis"), "channels": source}
    binary = find_binary("valkey")
    assert binary is not None
    server = Server(binary).start()
    status = 0
    try:
        for name, left_out in LEFT_OUT.items():
            package, _, module = name.partition("/")
            origin = sources[package]
            if origin is None:
                print(f"{name}: pass --source with a checkout of Channels")
                continue
            text = (origin / "tests" / f"{module}.py").read_text()
            (tests / f"{module}.py").write_text(text.replace("redis://localhost:6379", server.url))
            status |= run_module(name, tests / f"{module}.py", left_out, server.url)
    finally:
        server.remove()
        shutil.rmtree(tests)
    return status


def run_module(name: str, path: Path, left_out: dict[str, str], url: str) -> int:
    """Run the tests of a file, and print which passed and which were left out."""
    report = path.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:django", "-o", "asyncio_mode=auto", "-c", os.devnull]
    command += ["--timeout=30"]
    command += ["--rootdir", str(path.parent), f"--junitxml={report}", str(path)]
    for test in left_out:
        command += ["--deselect", f"{path.name}::{test}"]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "REDIS_URL": url, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    passed = [str(case.get("name")) for case in cases if not len(case)]
    print(f"{name}: {len(passed)} passed, {len(left_out)} left out")
    for test in passed:
        print(f"  passed    {test}")
    for test, reason in left_out.items():
        print(f"  left out  {test}: {reason}")
    nothing_to_run = 5  # exit status of pytest
    if done.returncode not in (0, nothing_to_run) or (done.returncode and passed):
        print(done.stdout)
        return 1
    return 0
