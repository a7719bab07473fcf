"""The tests that python-socketio has for its managers, on ours.

In its modules, our classes take the place of the managers: also where a test is about the plain `Manager`, whose rooms,
events and callbacks ours must have, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.helpers.flavours import start_server

from .source import unpack

CONFTEST = '''
import os
from types import SimpleNamespace

from redismpx.contrib.socketio import AsyncMultiplexerManager, MultiplexerManager


class Async(AsyncMultiplexerManager):
    """Connected to the server of this run; the other arguments are those of python-socketio's managers."""

    def __init__(self, **options):
        super().__init__(os.environ["REDIS_URL"], **options)


class Sync(MultiplexerManager):
    def __init__(self, **options):
        super().__init__(os.environ["REDIS_URL"], **{**options, "write_only": True})


REPLACED = {
    "async/test_pubsub_manager.py": {"async_pubsub_manager": SimpleNamespace(AsyncPubSubManager=Async)},
    "async/test_manager.py": {"async_manager": SimpleNamespace(AsyncManager=Async)},
    "async/test_redis_manager.py": {"AsyncRedisManager": lambda url, **options: Async(**options)},
    "common/test_pubsub_manager.py": {"pubsub_manager": SimpleNamespace(PubSubManager=Sync)},
    "common/test_manager.py": {"manager": SimpleNamespace(Manager=Sync)},
    "common/test_redis_manager.py": {"RedisManager": lambda url, **options: Sync(**options)},
}


def pytest_collection_modifyitems(items):
    for item in items:
        vars(item.module).update(REPLACED["/".join(item.path.parts[-2:])])
'''

FILES = [
    f"tests/{folder}/test_{name}.py"
    for folder in ("async", "common")
    for name in ("pubsub_manager", "manager", "redis_manager")
]

_IMPORTS = "how python-socketio chooses between the packages redis and valkey; we need redis-py only"
_CONNECTS = "the URLs and the client of its own connection; those of redismpx.Multiplexer have tests of their own"
_PLAIN = (
    "about the plain Manager: python-socketio's own managers for several servers fail it, too, as they ask a server"
)
LEFT_OUT = {
    r"/test_manager.py.*_(pre_disconnect|disconnect|disconnect_(default_namespace|twice|all|with_callbacks))$": _PLAIN,
    r"/test_manager.py.*_(get_participants|enter_room_bad_namespace|emit_with_callback)$": _PLAIN,
    r"common/test_pubsub_manager.py.*_default_init$": "about the thread that receives; MultiplexerManager only emits",
    "redis_manager.py.*_not_installed": _IMPORTS,
    "redis_manager.py.*(_connect|_bad_url|sentinel_url_parser)": _CONNECTS,
}
"""Patterns of the tests that do not apply, and why."""


def run(source: Path | None, folder: Path) -> int:
    """Run the tests, and print how many have passed and which are left out."""
    source = source or unpack("python-socketio", folder)
    (source / "tests/conftest.py").write_text(CONFTEST)
    server = start_server("valkey")
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-o", "asyncio_mode=auto", *FILES],
            cwd=source,
            env={**os.environ, "REDIS_URL": server.url, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        server.remove()
    outcomes = re.findall(r"^(tests/\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", result.stdout, re.MULTILINE)
    passed: Counter[str] = Counter()
    bad = []
    left_out: Counter[str] = Counter()
    for test, outcome in outcomes:
        reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, test)), None)
        if reason is not None:
            left_out[reason] += 1
            print(f"left out: {test}: {reason}")
        elif outcome == "PASSED":
            passed[test.partition("::")[0]] += 1
        else:
            bad.append(test)
            print(f"{outcome}: {test}")
    for name in FILES:
        print(f"{passed[name]} passed: {name}")
    print(f"{passed.total()} passed, {left_out.total()} left out, {len(bad)} failed")
    if bad or not passed:
        print(result.stdout[-8000:], result.stderr[-2000:])
    return int(bool(bad) or not passed)
