"""The examples for threads, run as their users run them: under gunicorn, with a real server and real clients."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis import Redis

from redismpx.embedded import Server

from ..helpers.logs import without_slowness

ROOT = Path(__file__).parents[2]
EXAMPLES = ("flask_stream", "django_view", "script", "threads")
GTHREAD = ("--worker-class", "gthread", "--threads", "8")
MANY_THREADS = ("--worker-class", "gthread", "--threads", "210")  # one for each stream: a process may get nearly all
GEVENT = ("--worker-class", "gevent", "--worker-connections", "200")
WORKERS = {
    "sync": ("--worker-class", "sync"),
    "gthread": GTHREAD,
    "many threads": MANY_THREADS,
    "gevent": GEVENT,
    "preload": (*GTHREAD, "--preload"),
    "gevent preload": (*GEVENT, "--preload"),
}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with Server(port=0) as server:
        yield server.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


def until(condition: Callable[[], object], timeout: float = 15.0) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def environment(redis_url: str) -> dict[str, str]:
    return {**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@contextmanager
def python(redis_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment(redis_url), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # Where a shell has the tests run in the background, they ignore SIGINT, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a program prints, without the warnings of asyncio's debug mode about slow steps."""
    assert process.stdout is not None
    while not without_slowness([line := process.stdout.readline()]):
        pass
    return line


@contextmanager
def gunicorn(redis_url: str, app: str, *options: str) -> Iterator[int]:
    """Serve an application in two processes; yield the port."""
    command = ("-m", "gunicorn", "--workers", "2", "--bind", "127.0.0.1:0", "--graceful-timeout", "2")
    with python(redis_url, *command, *options, app) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise AssertionError("".join(lines))
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        yield int(found[1])


class Browser:
    """Reads the Server-Sent Events of a room."""

    def __init__(self, port: int, room: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.connection.request("GET", f"/{room}/stream")
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        self.events: list[str] = []

    def read(self, count: int) -> list[str]:
        """Return the next events: the name of the event, or its data."""
        events: list[str] = []
        while len(events) < count:
            line = self.response.readline().decode().rstrip("\n")
            if line.startswith("event: "):
                events.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
        return events

    def leave(self) -> None:
        self.response.close()
        self.connection.close()


def post(port: int, path: str, body: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body)
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_threaded_example_is_short(name: str) -> None:
    """An example has at most 60 lines."""
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("workers", "browsers"), [("gthread", 6), ("many threads", 200), ("gevent", 200), ("preload", 6)]
)
def test_flask_streams_to_browsers(redis_url: str, redis: Redis, workers: str, browsers: int) -> None:
    """All browsers get all messages or the gap, over one connection for each process; those that leave are gone."""
    room = workers.partition(" ")[0]
    channel = f"room:{room}"
    before = len(redis.client_list(_type="pubsub"))
    with gunicorn(redis_url, "examples.flask_stream:app", *WORKERS[workers]) as port, ExitStack() as stack:
        assert "EventSource" in get(port, f"/{room}")[1]
        opened: list[Browser] = []
        for _ in range(browsers):
            browser = Browser(port, room)
            stack.callback(browser.leave)
            opened.append(browser)
        for browser in opened:
            assert browser.read(1) == ["active"]
        processes = dict(redis.pubsub_numsub(channel))[channel.encode()]
        assert processes in (1, 2)
        assert len(redis.client_list(_type="pubsub")) - before == processes
        for number in range(20):
            redis.publish(channel, str(number))
        for browser in opened:
            assert browser.read(20) == [str(number) for number in range(20)]
        redis.client_kill_filter(_type="pubsub")
        for browser in opened:
            assert browser.read(2) == ["gap", "active"]
        redis.publish(channel, "after")
        for browser in opened:
            assert browser.read(1) == ["after"]
        for browser in opened:
            browser.leave()
        begin = time.monotonic()
        until(lambda: dict(redis.pubsub_numsub(channel))[channel.encode()] == 0)
        assert time.monotonic() - begin < 5
        assert post(port, f"/{room}", "x") == "0\n"


def test_the_live_page_of_the_tutorial_works(tmp_path: Path) -> None:
    """The two files of the tutorial run as it says, with the broker: pages get what is published, and the gap."""
    tutorial = (ROOT / "docs" / "tutorial" / "live-page.md").read_text()
    first, last = re.findall(r"^```python\n(# live.py\n.*?)^```$", tutorial, re.MULTILINE | re.DOTALL)
    url_file, live = tmp_path / "broker.url", tmp_path / "live.py"
    with python("", "-m", "redismpx", "broker", "--url-file", str(url_file)) as broker:
        assert next_line(broker) == f"Serving at the URL in {url_file} (press Ctrl-C to stop)\n"
        live.write_text(first)
        with gunicorn("", "live:app", "--chdir", str(tmp_path), "--threads", "8") as port:
            assert post(port, "/kitchen", "hello") == "0 processes listen\n"
        live.write_text(last)
        with gunicorn("", "live:app", "--chdir", str(tmp_path), "--threads", "8") as port:
            assert "EventSource" in get(port, "/kitchen")[1]
            browser = Browser(port, "kitchen")
            with Redis.from_url(url_file.read_text().splitlines()[1]) as client:
                until(lambda: client.pubsub_numsub("room:kitchen")[0][1] == 1)
                assert post(port, "/kitchen", "hello\nthere") == "1 processes listen\n"
                assert browser.read(1) == ["hello\nthere"]
                client.client_kill_filter(_type="pubsub")
                assert browser.read(1) == ["gap"]
            browser.leave()


@pytest.mark.parametrize("workers", WORKERS)
def test_a_django_view_waits_for_its_worker(redis_url: str, redis: Redis, workers: str) -> None:
    """Under each kind of gunicorn worker, the view returns what the worker publishes, or 503 without a worker."""
    with gunicorn(redis_url, "examples.django_view:application", *WORKERS[workers]) as port:
        assert get(port, "/?text=a") == (503, "no worker runs\n")
        with python(redis_url, "-W", "error", "-m", "examples.django_view", "worker") as worker:
            assert next_line(worker) == "working\n"
            answers: list[tuple[int, str]] = []
            threads = [
                threading.Thread(target=lambda n=n: answers.append(get(port, f"/?text=n{n}"))) for n in range(20)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert sorted(answers) == sorted((200, f"N{n}\n") for n in range(20))


def test_the_script_acts_until_it_is_told_to_exit(redis_url: str, redis: Redis) -> None:
    """Each message has its effect, a bad one is reported, and the last one ends the script; so does Ctrl-C."""
    with python(redis_url, "-X", "dev", "-W", "error", "-m", "examples.script") as script:
        assert next_line(script) == "ready\n"
        for text in ('{"type": "greet", "name": "Ada"}', "{", '{"type": "dance"}', '{"type": "exit"}'):
            redis.publish("commands", text)
        output, _ = script.communicate(timeout=20)
        assert "Hello, Ada!\n" in output
        assert "ignored: a payload of 1 bytes on b'commands' cannot be decoded\n" in output
        assert "unknown command: {'type': 'dance'}\nhandled: 3\n" in output
        assert script.returncode == 0
    with python(redis_url, "-m", "examples.script") as script:
        assert next_line(script) == "ready\n"
        script.send_signal(signal.SIGINT)
        assert script.communicate(timeout=20)[0] == "interrupted\n"


def test_threads_share_one_connection(redis_url: str) -> None:
    """The example prints that each job was done once, each request answered, over one connection."""
    with python(redis_url, "-X", "dev", "-W", "error", "-m", "examples.threads") as program:
        output, _ = program.communicate(timeout=30)
    printed = ["jobs done, each once: True", "squares: True", "Redis connections for messages: 1"]
    assert without_slowness(output.splitlines()) == printed


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 400),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_flask_rejects_pages_of_other_sites(headers: dict[str, str], status: int) -> None:
    """The Flask example accepts no page of another site, and no name that was made to lead here."""
    from examples.flask_stream import app

    assert app.test_client().get("/room", headers=headers).status_code == status
