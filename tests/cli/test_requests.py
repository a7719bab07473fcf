"""`redismpx request`, `redismpx serve` and `redismpx history`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from redismpx import NoResponders, RequestFailed, blocking

from ..helpers.command import PATIENCE, Running, run, running
from ..helpers.servers import Server


@pytest.fixture
def mpx(target: Server) -> Iterator[blocking.Multiplexer]:
    with blocking.Multiplexer(target.admin_url) as mpx:
        yield mpx


@contextmanager
def serving(server: Server, channel: str, command: str, *options: str) -> Iterator[Running]:
    """Run the service until it serves."""
    with running("serve", channel, "--command", command, "--redis", server.admin_url, *options) as service:
        service.until("Serving ")
        yield service


def test_a_request_prints_the_reply(target: Server, mpx: blocking.Multiplexer) -> None:
    """The reply is escaped; --raw prints it as it is, and stdin is the request if there is no DATA."""
    with mpx.serve("mirror", lambda request: request.body):
        assert run("request", "mirror", "\x1b[31m", "--redis", target.admin_url) == (0, "\\x1b[31m\n", "")
        assert run("request", "mirror", "--raw", stdin=b"\x1b\n", REDIS_URL=target.admin_url) == (0, "\x1b\n\n", "")


def test_a_request_without_a_reply_is_an_error(target: Server, mpx: blocking.Multiplexer) -> None:
    """Nobody who serves, and a service that fails, are errors of one line."""
    code, output, errors = run("request", "nobody", "x", "--redis", target.admin_url)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("redismpx request: no subscriber on b'nobody'")


def test_a_program_replies(target: Server, mpx: blocking.Multiplexer) -> None:
    """The program gets the request and the channel as data, whatever their characters, and its output is the reply."""
    with serving(target, "shout.*", "sh -c 'printf %s \"$REDISMPX_CHANNEL \"; tr a-z A-Z'"):
        assert mpx.request("shout.$(id)", "a;`id`", timeout=PATIENCE) == b"shout.$(id) A;`ID`"


def test_a_failing_program_fails_the_request(target: Server, mpx: blocking.Multiplexer) -> None:
    """The requester gets the exit status, and the errors are those of the program and one line."""
    with serving(target, "fail", "sh -c 'echo reason >&2; exit 3'") as service:
        with pytest.raises(RequestFailed, match="ended with exit status 3"):
            mpx.request("fail", "", timeout=PATIENCE)
        service.until("redismpx serve: .*exit status 3\n")
        assert "reason\n" in service.output.decode()


def test_a_hanging_program_is_killed(target: Server, mpx: blocking.Multiplexer) -> None:
    """After --timeout the program is killed, and the service goes on with the next request."""
    with serving(target, "hang", "sh -c 'echo $$ >&2; exec sleep 60'", "--timeout", "0.3") as service:
        with pytest.raises(RequestFailed, match=r"not ended within 0\.3 s"):
            mpx.request("hang", "", timeout=PATIENCE)
        pid = int(service.until(r"\n(\d+)\n")[1])
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_signal_ends_a_service_after_its_replies(target: Server, mpx: blocking.Multiplexer) -> None:
    """SIGTERM leaves no new request, and waits for the program that runs."""
    with serving(target, "slow", "sh -c 'echo started >&2; sleep 0.5; cat'") as service:
        with ThreadPoolExecutor() as pool:
            reply = pool.submit(mpx.request, "slow", "late", timeout=PATIENCE)
            service.until("started")
            service.process.send_signal(signal.SIGTERM)
            assert reply.result() == b"late"
        assert service.end()[0] == 0
    with pytest.raises(NoResponders):
        mpx.request("slow", "", timeout=PATIENCE)


def test_a_missing_program_is_an_error(target: Server) -> None:
    """A program that does not exist, and a quote without its end, are errors at once."""
    for command, reason in (("no-such-program x", "there is no program 'no-such-program'"), ("'", "No closing quot")):
        code, output, errors = run("serve", "x", "--command", command, "--redis", target.admin_url)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert errors.startswith(f"redismpx serve: --command: {reason}")


def test_history_is_printed(target: Server, mpx: blocking.Multiplexer) -> None:
    """A line is an id and a payload; --after and --limit choose, and --json is for programs."""
    ids = [mpx.append("told", data).decode() for data in ("one", "two\n", "three")]
    assert run("history", "told", "--redis", target.admin_url)[1].splitlines() == [
        f"{ids[0]}\tone", f"{ids[1]}\ttwo\\n", f"{ids[2]}\tthree",
    ]  # fmt: skip
    _, output, _ = run("history", "told", "--after", ids[0], "--limit", "1", "--json", "--redis", target.admin_url)
    assert json.loads(output) == {"id": ids[1], "data": "two\n"}
    code, output, errors = run("history", "told", "--after", "x", "--redis", target.admin_url)
    assert (code, output, errors.count("\n")) == (2, "", 1)
