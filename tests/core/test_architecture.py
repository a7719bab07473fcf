"""Which module may import which, the public names, and the rules for tests and mutants."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

import pytest

import redismpx
from tools.mutants import MUTANTS, Mutant

PACKAGE = Path(redismpx.__file__).parent

FLOORS = [
    {"errors"},
    {"_core"},
    {"typing", "stats", "arguments", "message", "envelope", "observing", "reply", "url_file"},
    {"_io.runtime"},
    {"_io.redispy"},
    {"_io.session"},
    {"_io.publishing"},
    {"_io.delivery"},
    {"_io.streams"},
    {"_io.deployment"},
    {"_io.hub"},
    {"_io.snapshot"},
    {"subscription"},
    {"reading"},
    {"channel", "keys", "pattern", "promise", "stream"},
    {"request"},
    {"service"},
    {"multiplexer"},
    {""},
    {"blocking", "embedded", "topics"},
    {"contrib", "demo", "testing"},
    {"cli"},
    {"__main__"},
]
"""From the ground up; "" is the package itself. A module imports from its own floor and from those below."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The modules of the package by their names, without those that hold nothing but a docstring."""
    found: dict[str, ast.Module] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text())
    return {name: tree for name, tree in found.items() if ast.get_docstring(tree) is None or len(tree.body) > 1}


def folder_of(name: str) -> list[str]:
    """The package that the relative imports of a module begin at."""
    parts = name.split(".") if name else []
    return parts if PACKAGE.joinpath(*parts).is_dir() else parts[:-1]


def imported(name: str, tree: ast.Module) -> set[str]:
    """The modules of the package that a module imports, and the top-level names of others, with a colon."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] + ":" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            inside = module.partition(".")[0] == "redismpx"
            found.add(module.removeprefix("redismpx").lstrip(".") if inside else module.split(".")[0] + ":")
        elif isinstance(node, ast.ImportFrom):
            folder = folder_of(name)
            base = folder[: len(folder) - node.level + 1]
            if node.module:
                found.add(".".join([*base, node.module]))
            else:  # a module of the folder, or a name that the folder itself has
                names = {".".join([*base, alias.name]) for alias in node.names}
                found |= {name if name in modules() else ".".join(base) for name in names}
    return found


def floor_of(name: str) -> int:
    parts = name.split(".")
    rooms = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for number, floor in enumerate(FLOORS):
        if floor.intersection(rooms):
            return number
    raise AssertionError(f"{name or 'redismpx'} has no floor")


@pytest.mark.parametrize("name", modules())
def test_imports_go_down_only(name: str) -> None:
    """A module imports from its own floor or from a lower one."""
    for other in imported(name, modules()[name]):
        if not other.endswith(":"):
            assert floor_of(other) <= floor_of(name), f"{name} imports {other}, which stands above it"


def test_imports_have_no_cycle() -> None:
    """No module imports itself through others."""
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
    """The core imports no I/O, clock, random or logging module, and nothing outside the core."""
    impure = {"asyncio:", "socket:", "time:", "random:", "logging:", "threading:", "os:", "redis:", "secrets:"}
    for name, tree in modules().items():
        if name.startswith("_core."):
            names = imported(name, tree)
            assert not names & impure, name
            assert not [o for o in names if not o.endswith(":") and not o.startswith("_core.")], name


def test_redis_py_is_imported_behind_one_door() -> None:
    """Only `_io/redispy` imports redis, and the front doors, whose signatures name its clients.

    `contrib`, `demo` and `testing` are written as an application is, which may have a client of its own.
    """
    users = {name for name, tree in modules().items() if "redis:" in imported(name, tree)}
    doors = {name for name in users if name.partition(".")[0] not in ("contrib", "demo", "testing")}
    assert {name for name in doors if not name.startswith("_io.redispy")} == {"multiplexer", "blocking.multiplexer"}


def test_adapters_use_the_public_api_alone() -> None:
    """The adapters show what can be built on the package. What they need and cannot get is missing in its API."""
    for name, tree in modules().items():
        if name.startswith("contrib."):
            private = {o for o in imported(name, tree) if o.startswith(("_core.", "_io."))}
            assert not private, f"{name} imports {private}"


def test_nothing_above_the_deployment_tests_for_a_cluster() -> None:
    """Hub, subscriptions and the front door call the deployment; none looks at what it is, or for a slot map."""
    for name, tree in modules().items():
        if floor_of("_io.hub") <= floor_of(name) < floor_of("demo"):
            words = {
                n.attr if isinstance(n, ast.Attribute) else n.id
                for n in ast.walk(tree)
                if isinstance(n, (ast.Attribute, ast.Name))
            }
            assert not words & {
                "Cluster",
                "Standalone",
                "SentinelManaged",
                "Shards",
                "SlotMap",
                "slot_map",
                "shards",
            }, name
            uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "RedisCluster"]
            # In the front doors: once in the signature, and once where an argument of another type is rejected.
            assert len(uses) == {"multiplexer": 2, "blocking.multiplexer": 1}.get(name, 0), name


def test_no_two_classes_or_constants_share_a_name() -> None:
    """A name that is looked for is found in one place. Private names of one module are its own affair.

    The blocking classes have the names of the asyncio ones on purpose, and the adapter for broadcaster has its names.
    """
    places: dict[str, list[str]] = {}
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not name.startswith(("blocking.", "contrib.broadcaster")):
                places.setdefault(node.name, []).append(name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        places.setdefault(target.id, []).append(name)
    places.pop("__all__", None)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


LONGEST_FILE, LONGEST_FUNCTION, MOST_BRANCHES = 350, 60, 15
UNBOUNDED = {
    "multiplexer",  # the front door: overloads and docstrings
    "blocking.multiplexer",  # the same
}
RECEIVE_LOOP = ("_io.session.dispatcher", "receive")
"""One function for the speed of each message; its cases are numbered in comments."""


def test_files_are_short() -> None:
    """A file is short enough to hold in the head."""
    lengths = {name: (PACKAGE / path_of(name)).read_text().count("\n") for name in modules() if name not in UNBOUNDED}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short_and_have_few_branches() -> None:
    """A function has at most 60 lines, without its signature and docstring, and 15 branches."""
    found = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (name, node.name) != RECEIVE_LOOP:
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                length = (node.end_lineno or 0) - body[0].lineno + 1
                branches = sum(isinstance(n, BRANCHES) for n in ast.walk(node))
                if length > LONGEST_FUNCTION or branches > MOST_BRANCHES:
                    found[f"{name}.{node.name}"] = (length, branches)
    assert found == {}


BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)


def path_of(name: str) -> Path:
    parts = name.split(".") if name else []
    folder = Path(*parts)
    return folder / "__init__.py" if PACKAGE.joinpath(folder).is_dir() else folder.with_suffix(".py")


def test_the_public_names_are_the_documented_ones() -> None:
    """`redismpx.__all__` is sorted and has exactly these names, each with a docstring."""
    assert sorted(redismpx.__all__) == redismpx.__all__
    assert set(redismpx.__all__) == {
        "Activation", "ChannelSubscription", "ConnectionLost", "DecodeError", "Disconnect", "Envelope", "Event",
        "InactiveSubscription", "KeyEvent", "KeyEventsDisabled", "KeySubscription", "LimitReached", "Message",
        "MessageGap",
        "Multiplexer", "MultiplexerIsClosed", "NoResponders", "OnActivation", "OnClose", "OnDisconnect", "OnError",
        "OnGap", "OnMessage", "OnStreamMessage", "Overflow", "PatternSubscription", "Promise",
        "PromiseInterrupted", "PromiseSubscription", "PromiseTimeout", "RedisMPXError", "Request", "RequestFailed",
        "Service", "SlowConsumer", "Stats", "StreamEvent", "StreamMessage", "StreamSubscription",
        "SubscriptionIsClosed", "SubscriptionRefused",
        "TooManyChannels", "TooManyPatterns", "TooManyPromises", "escape_glob",
    }  # fmt: skip
    for name in redismpx.__all__:
        value = getattr(redismpx, name)
        assert value.__doc__ or name in (
            *redismpx.typing.__all__,
            "Event",
            "OnGap",
            "OnStreamMessage",
            "StreamEvent",
        )  # an alias has no docstring of its own


def is_public(name: str) -> bool:
    """Whether no part of a module's dotted name begins with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


def defined_in(tree: ast.Module) -> set[str]:
    """The public names that the top level of a module binds, other than by an import."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("name", [name for name in modules() if is_public(name)])
def test_each_public_module_lists_its_names(name: str) -> None:
    """`__all__` of a public module has exactly the public names that the module defines."""
    module = importlib.import_module(f"redismpx.{name}".rstrip("."))
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    assert not [entry for entry in listed if not hasattr(module, entry)]
    if name not in (
        "",
        "blocking",
        "testing",
        "topics",
    ):  # which only re-export; test_the_public_names and test_blocking_twins have them
        assert set(listed) == defined_in(modules()[name])


def test_nothing_is_unpickled_or_evaluated() -> None:
    """No module imports a module that unpickles, or calls eval, exec, compile or __import__."""
    for name, tree in modules().items():
        assert not imported(name, tree) & {"pickle:", "marshal:", "shelve:", "dbm:", "yaml:", "code:", "ctypes:"}, name
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not {"eval", "exec", "compile", "__import__"} & set(calls), name


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_the_text_of_each_mutant_occurs_once(mutant: Mutant) -> None:
    """The line that a mutant replaces occurs exactly once in its file."""
    assert (PACKAGE / mutant.file).read_text().count(mutant.old) == 1


TESTS = Path(__file__).parent.parent
TREES = {path.relative_to(TESTS): ast.parse(path.read_text()) for path in sorted(TESTS.rglob("*.py"))}


@pytest.mark.parametrize("path", TREES, ids=str)
def test_no_module_imports_a_test_module_or_conftest(path: Path) -> None:
    """Code that test modules share is in tests/helpers, which imports no test module either."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [part for alias in node.names for part in alias.name.split(".")]
            names += (getattr(node, "module", None) or "").split(".")
            assert not [name for name in names if name == "conftest" or name.startswith("test_")], node.lineno


@pytest.mark.parametrize("path", [path for path in TREES if path.name.startswith("test_")], ids=str)
def test_each_test_has_a_short_name_and_a_docstring(path: Path) -> None:
    """A test's name has at most 60 characters and is unique in its module; a docstring states the promise."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tests = [node for node in ast.walk(TREES[path]) if isinstance(node, functions) and node.name.startswith("test_")]
    names = [test.name for test in tests]
    assert len(set(names)) == len(names)
    assert not [name for name in names if len(name) > 60]
    assert not [test.name for test in tests if ast.get_docstring(test) is None]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_each_mutant_selects_tests(mutant: Mutant) -> None:
    """The word after `-k` occurs in the name of a test of the file, in a text of the module, or is a flavour."""
    file, *options = mutant.tests.split()
    tree = TREES[Path(file).relative_to("tests")]
    if options:
        option, word = options
        names = [node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str]
        tests = [name for name in names if name.startswith("test_")]
        assert option == "-k"
        assert [name for name in tests if word in name] or word in texts or word in ("valkey", "redis")


SERVERS = {"url", "admin", "server", "shared_server", "cluster", "shared_cluster", "sentinels"}
"""The fixtures of tests/conftest.py that start a real server."""


@pytest.mark.parametrize("path", [path for path in TREES if path.parts[0] in ("core", "io", "api")], ids=str)
def test_core_io_and_api_need_no_server(path: Path) -> None:
    """The tests in these folders run in seconds, without a server."""
    functions = [node for node in ast.walk(TREES[path]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    requesting = [node for node in functions if node.name.startswith("test_") or node.decorator_list]
    assert not [node.name for node in requesting if SERVERS & {argument.arg for argument in node.args.args}]
