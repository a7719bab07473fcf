"""Bytes that no server should send, and any bytes cut into any pieces: see tools/fuzz.py."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from redismpx._io.session import link as link_module
from tools.fuzz import GARBAGE, IGNORED_FRAMES, Rig, bulk, conversation, cut, mutate, push

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_four_thousand_mutated_streams_are_handled() -> None:
    """tools/fuzz.py finds no fault in 4,000 mutated streams."""
    pytest.importorskip("resource")
    command = [sys.executable, "-m", "tools.fuzz", "--streams", "4000", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "all 4,000 streams ended well" in done.stdout


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A rig whose turns never end, so that no piece is made two of by a slow machine."""
    monkeypatch.setattr(link_module, "TIME_SLICE", math.inf)
    rig = Rig()
    yield rig
    rig.check()
    await rig.mpx.aclose()


async def outcome(rig: Rig, pieces: Iterable[bytes]) -> tuple[Any, ...]:
    """All that can be seen of a connection that brings these pieces."""
    transport = await rig.connect()
    before = rig.mpx.stats()
    await rig.play(transport, pieces)
    events = [list(w.events) for w in (rig.sync, rig.promising, rig.pattern, rig.read)]
    after = rig.mpx.stats()
    lost = transport.protocol.lost
    return (
        events,
        lost.result().reason if lost.done() else None,
        after.messages - before.messages,
        after.ignored - before.ignored,
    )


async def some_streams(rig: Rig) -> list[bytes]:
    """Honest ones, and what mutation makes of them."""
    rng = random.Random(1)
    commands = (await rig.connect()).commands()
    honest = [b"".join(conversation(rng, commands)[0]) for _ in range(2)]
    return [
        *honest,
        honest[0] + b"".join(IGNORED_FRAMES),
        *(stream + rng.choice(GARBAGE) for stream in honest),
        *(mutate(rng, stream) for stream in honest),
    ]


async def test_events_do_not_depend_on_how_a_stream_is_cut(rig: Rig) -> None:
    """The same bytes give the same events, whatever pieces they arrive in."""
    rng = random.Random(2)
    for stream in await some_streams(rig):
        whole = await outcome(rig, [stream])
        assert whole[0][0]
        assert await outcome(rig, [stream[i : i + 1] for i in range(len(stream))]) == whole
        for at in range(1, len(stream)):
            assert await outcome(rig, [stream[:at], stream[at:]]) == whole, (at, stream)
        for _ in range(20):
            pieces = cut(rng, stream)
            assert await outcome(rig, pieces) == whole, pieces


async def test_a_stream_cut_anywhere_ends_in_one_disconnect(rig: Rig) -> None:
    """A stream that ends at any byte delivers the complete frames before it, then one disconnect."""
    commands = (await rig.connect()).commands()
    stream = b"".join(conversation(random.Random(3), commands)[0])
    (events, *_), *_ = await outcome(rig, [stream])
    lengths = set()
    for at in range(len(stream)):
        transport = await rig.connect()
        await rig.play(transport, [stream[:at]])
        before = list(rig.sync.events)
        transport.protocol.connection_lost(None)
        assert (await transport.protocol.lost).reason == "the server closed the connection"
        after = rig.sync.events
        await rig.connect()
        assert before == events[: len(before)]
        assert after[len(before) :] == ([("disconnect", None)] if before else [])
        lengths.add(len(before))
    assert lengths == set(range(len(events) + 1))


async def test_an_unexpected_confirmation_ends_the_link(rig: Rig) -> None:
    """A confirmation other than the expected one ends the connection and delivers nothing."""

    def confirmation(verb: bytes, name: bytes) -> bytes:
        return push(b"*", bulk(verb.lower()), bulk(name), b":1\r\n")

    commands = (await rig.connect()).commands()
    asked = [confirmation(verb, name) for verb, *names in commands for name in names]
    never_asked = [confirmation(b"subscribe", b"x"), confirmation(b"psubscribe", b"a")]
    for at, right in enumerate(asked):
        honest, *_ = await outcome(rig, asked[:at])
        for wrong in {*asked, *never_asked} - {right}:
            events, reason, *_ = await outcome(rig, [*asked[:at], wrong])
            assert "no command in flight" in reason
            assert events == honest
