"""`redismpx bench` as a program, with a real server."""

from __future__ import annotations

import json
import time

from redis import Redis

from ..helpers.command import run, running
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.servers import Server

QUICK = ("--messages", "200", "--callers", "5")


def test_a_table_has_both_sides(target: Server) -> None:
    """A row for each figure, with a column for redismpx and one for redis-py alone; nothing is left in the server."""
    code, output, errors = run("bench", *QUICK, "--redis", target.admin_url)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[1].split() == ["┃", "┃", "redismpx", "┃", "redis-py", "┃"]
    rows = ["latency, median", "latency, 99 of 100", "messages per second", "CPU for a message"]
    assert [line.split("│")[1].strip() for line in lines[3:-1]] == rows
    with Redis.from_url(target.admin_url) as admin:
        assert not admin.pubsub_channels("__mpx_bench*")
        assert not admin.keys("__mpx_bench*")


def test_json_has_plain_numbers(target: Server) -> None:
    """One object: what was asked for, and the figures of both sides in seconds."""
    code, output, errors = run("bench", *QUICK, "--size", "7", "--json", REDIS_URL=target.admin_url)
    assert (code, errors) == (0, "")
    found = json.loads(output)
    sides = {name: found.pop(name) for name in ("redismpx", "redis-py")}
    assert found == {"messages": 200, "size": 7, "callers": 5}
    for side in sides.values():
        assert set(side) == {"p50", "p99", "rate", "cpu"}
        assert 0 < side["p50"] <= side["p99"] < 5
        assert 0 < side["cpu"] < 1
        assert side["rate"] > 1


def test_a_lost_connection_is_an_error_of_one_line() -> None:
    """While all callers publish: exit status 2, and no traceback."""
    server = start_server(FLAVOURS[0])
    try:
        with running("bench", "--messages", "1000000", "--redis", server.admin_url) as command:
            with Redis.from_url(server.admin_url) as admin:
                give_up = time.monotonic() + 20
                while admin.info("stats")["total_commands_processed"] < 5_000:  # it has begun to use all callers
                    assert time.monotonic() < give_up
                    time.sleep(0.01)
            server.kill()
            code, output = command.end()
    finally:
        server.remove()
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("redismpx bench: ")
