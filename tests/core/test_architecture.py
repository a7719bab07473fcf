"""The house: imports go down only, the core is pure, and the public names are the ones that were meant."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import redismpx
from tools.mutants import MUTANTS, Mutant

PACKAGE = Path(redismpx.__file__).parent

FLOORS = [
    {"errors", "_core.wire", "_core.buffer"},
    {"typing", "stats", "arguments", "_core.entry"},
    {"_core.registry"},
    {"message", "envelope"},
    {"_io.runtime.log", "_io.redispy.endpoint"},
    {"_io.runtime", "_io.delivery.reporter", "_io.redispy.dial", "_io.redispy.diagnosis"},
    {
        "_io.delivery.inbox",
        "_io.session.link",
        "_io.session.dispatcher",
        "_io.session.reconnect",
        "_io.redispy.slot_map",
        "_io.publishing.pipeline",
    },
    {"_io.session.listener", "_io.session.session", "subscription"},
    {
        "_io.deployment.sentinel",
        "_io.session.delivery_probe",
        "_io.deployment.cluster",
        "channel",
        "pattern",
        "promise",
    },
    {"_io.hub", "request"},
    {"publisher"},
    {"multiplexer"},
    {""},
    {"demo"},
    {"cli"},
]
"""From the ground up; "" is the package itself, and the demo is one room. A module imports from its floor or below."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    found: dict[str, ast.Module] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text())
    return {name: tree for name, tree in found.items() if ast.get_docstring(tree) is None or len(tree.body) > 1}


def imported(name: str, tree: ast.Module) -> set[str]:
    """The modules of the package that a module imports, and the top-level names of others."""
    folder = name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] + ":" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                module = node.module or ""
                found.add(
                    module.removeprefix("redismpx").lstrip(".")
                    if module.startswith("redismpx")
                    else (module if module == "redis.crc" else module.split(".")[0]) + ":"  # that is arithmetic only
                )
                continue
            base = folder[: len(folder) - node.level + 1]
            if node.module:
                found.add(".".join([*base, node.module]))
            else:  # a module of the folder, or a name that the folder itself has
                names = {".".join([*base, alias.name]) for alias in node.names}
                found |= {name if name in modules() else ".".join(base) for name in names}
    return found


def floor_of(name: str) -> int:
    for number, floor in enumerate(FLOORS):
        if name in floor or name.rpartition(".")[0] in floor or name.partition(".")[0] in floor:
            return number
    raise AssertionError(f"{name or 'redismpx'} has no floor")


@pytest.mark.parametrize("name", modules())
def test_imports_go_down_only(name: str) -> None:
    for other in imported(name, modules()[name]):
        if not other.endswith(":"):
            assert floor_of(other) <= floor_of(name), f"{name} imports {other}, which stands above it"


def test_there_is_no_circle() -> None:
    graph = {name: {o for o in imported(name, tree) if not o.endswith(":")} for name, tree in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_core_is_pure() -> None:
    impure = {"asyncio:", "socket:", "time:", "random:", "logging:", "threading:", "os:", "redis:", "secrets:"}
    for name, tree in modules().items():
        if name.startswith("_core."):
            names = imported(name, tree)
            assert not names & impure, name
            assert not [o for o in names if not o.endswith(":") and not o.startswith("_core.")], name


def test_the_public_names() -> None:
    assert sorted(redismpx.__all__) == redismpx.__all__
    assert set(redismpx.__all__) == {
        "ChannelSubscription", "ConnectionLost", "DecodeError", "Envelope", "InactiveSubscription", "LimitReached",
        "Message", "Multiplexer", "MultiplexerIsClosed", "NoResponders", "Overflow", "PatternSubscription", "Promise",
        "PromiseInterrupted", "PromiseSubscription", "PromiseTimeout", "RedisMPXError", "Request", "RequestFailed",
        "Service", "SlowConsumer", "Stats", "SubscriptionIsClosed", "SubscriptionRefused",
        "TooManyChannels", "TooManyPatterns", "TooManyPromises", "escape_glob",
    }  # fmt: skip
    for name in redismpx.__all__:
        assert getattr(redismpx, name).__doc__


def test_nothing_is_unpickled_or_evaluated() -> None:
    for name, tree in modules().items():
        assert not imported(name, tree) & {"pickle:", "marshal:", "shelve:", "dbm:", "yaml:", "code:", "ctypes:"}, name
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not {"eval", "exec", "compile", "__import__"} & set(calls), name


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_the_text_of_each_mutant_is_there_once(mutant: Mutant) -> None:
    assert (PACKAGE / mutant.file).read_text().count(mutant.old) == 1
