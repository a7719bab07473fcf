"""The tests of broadcaster, on its `Broadcast` with the backend, and on the `Broadcast` that takes its place.

Its source package has no tests: `--source` is a checkout of https://github.com/encode/broadcaster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.measuring import running_server

_OTHER = "another backend, which needs its own server"
LEFT_OUT = {
    "backend": {
        "test_kafka": _OTHER,
        "test_kafka_multiple_urls": _OTHER,
        "test_postgres": _OTHER,
        "test_redis_configured_client": "the constructor of its own backend, which takes a client",
        "test_redis_requires_url_or_connection": "the constructor of its own backend",
    },
    "class": {
        "test_kafka": _OTHER,
        "test_kafka_multiple_urls": _OTHER,
        "test_postgres": _OTHER,
        "test_custom": "the class takes no backend",
        "test_needs_url_or_backend": "the class takes no backend",
        "test_redis_configured_client": "the class takes no backend",
        "test_redis_requires_url_or_connection": "the constructor of its own backend",
        "test_unknown_backend": "a ValueError, too, with the text of redis-py",
        "test_unsubscribe": "looks at a private attribute",
        "test_unsubscribe_w_exception": "looks at a private attribute",
    },
}

PLUGIN = '''
import os
import sys
from unittest.mock import Mock

sys.modules.setdefault("aiokafka", Mock())  # its module is imported, but no test with it runs

import broadcaster
import pytest

from redismpx.contrib.broadcaster import Broadcast, MultiplexerBackend

KIND, PORT, LEFT_OUT = os.environ["PEER_KIND"], os.environ["PEER_PORT"], os.environ["PEER_LEFT_OUT"].split()


def adapted(url):
    """The URL of the server of this run; memory:// stands for any backend."""
    return url.replace("memory://", "redis://localhost:6379").replace("localhost:6379", f"127.0.0.1:{PORT}")


own = broadcaster.Broadcast._create_backend


def create_backend(self, url):
    scheme = url.partition("://")[0]
    return MultiplexerBackend(adapted(url)) if scheme in ("memory", "redis", "redis-stream") else own(self, url)


if KIND == "backend":
    broadcaster.Broadcast._create_backend = create_backend
else:
    broadcaster.Broadcast = lambda url: Broadcast(adapted(url))


def pytest_collection_modifyitems(config, items):
    missing = set(LEFT_OUT) - {item.name for item in items}
    assert not missing, f"tests that are left out are gone: {missing}"
    config.hook.pytest_deselected(items=[item for item in items if item.name in LEFT_OUT])
    items[:] = [item for item in items if item.name not in LEFT_OUT]
'''


def run(source: Path | None, folder: Path) -> int:
    """Run the tests; return 0 if all of them pass."""
    if source is None:
        print("broadcaster has no tests in its source package: pass --source, a checkout of its repository")
        return 2
    for name in ("broadcaster", "tests"):
        shutil.copytree(source / name, folder / name)
    (folder / "redismpx_plugin.py").write_text(PLUGIN)
    root = str(Path(__file__).parents[2])
    options = ("-q", "-rA", "-p", "redismpx_plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".",
               "-o", "asyncio_default_fixture_loop_scope=function")  # fmt: skip
    status = 0
    with running_server() as server:
        for kind, left_out in LEFT_OUT.items():
            environment = {
                "PYTHONPATH": os.pathsep.join([str(folder), root]),
                "PEER_KIND": kind,
                "PEER_PORT": str(server.port),
                "PEER_LEFT_OUT": " ".join(left_out),
            }
            print(f"--- the {kind} of redismpx.contrib.broadcaster", flush=True)
            command = [sys.executable, "-m", "pytest", *options, "tests"]
            status |= subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=False).returncode
            for name, why in left_out.items():
                print(f"LEFT OUT {name}: {why}")
    return int(status != 0)
