"""Fuzz test: streams of bytes that no server should send.

    $ python -m tools.fuzz                                # 100,000 streams, with a random seed
    $ python -m tools.fuzz --streams 1000000 --seed 1
    $ python -m tools.fuzz --seed 1 --batch 17            # one batch again

A stream is what one connection receives: the server's side of a conversation, usually mutated, cut into pieces at
random. It passes through a real multiplexer with its link, hiredis and the registry; only the socket is simulated. The
program checks that no exception escapes, nothing hangs, memory stays within bounds, each link is either alive or lost
to a protocol error, and subscribers get nothing but bytes. A conversation that is not mutated must deliver exactly its
events; some streams end in the middle, and deliver what came before. Some consumers block the event loop for a while,
close their subscription in a callback, or return and raise odd objects.

Streams run in batches of 2,000, each batch on one multiplexer, in as many processes as there are CPUs. Prints the
number of streams for each outcome. The exit status is 1 at the first fault, after printing it with its stream, its seed
and its batch; otherwise it is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import hiredis
from redis.asyncio import ConnectionPool, Redis
from redis.backoff import NoBackoff

from redismpx import (
    ConnectionLost,
    InactiveSubscription,
    Multiplexer,
    SlowConsumer,
    SubscriptionRefused,
)
from redismpx.testing import Checker

STREAMS_PER_BATCH = 2000
MAX_ADDRESS_SPACE = 1 << 30  # bytes, for each process
MAX_MEMORY_AFTER_BATCH = 256 << 20  # bytes, for each process
MAX_TICKS = 10_000  # of the event loop, until a link must be connected or reading again
STREAM_TIMEOUT = 10  # seconds, for one stream

CHANNELS = (b"a", b"b", b"\r\n", b"*3\r\n")
PATTERN, PREFIX = b"p*", b"p-"


class Fault(Exception):
    """A check failed."""


class Hang(BaseException):
    """A stream took longer than STREAM_TIMEOUT. A BaseException, so that no `except Exception` catches it."""


# --- a multiplexer without a socket


class Transport:
    """Simulates asyncio's transport. It stores written bytes, and delivers received bytes that the caller chooses."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.paused = self.closing = False
        self.written: list[bytes] = []

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        if self.closing:
            raise Fault("write() was called on a closing transport")
        self.written.append(data)

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def commands(self) -> list[list[bytes]]:
        """Return the commands that were written so far."""
        reader = hiredis.Reader()
        reader.feed(b"".join(self.written))
        return list(iter(reader.gets, False))  # type: ignore[arg-type]

    def bring(self, data: bytes) -> bytes:
        """Deliver bytes to the link while it reads; return the rest."""
        while data and not (self.closing or self.paused):
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            self.protocol.buffer_updated(size)
        return data


class Connection:
    """A connection after its handshake, with the attributes of redis-py's connection that a link uses."""

    health_check_interval = 0
    client_name = None

    def __init__(self, early: bytes) -> None:
        self._reader = asyncio.StreamReader()
        self._reader.feed_data(early)
        self._writer = self
        self.transport = Transport()

    async def connect(self) -> None: ...

    async def send_command(self, *words: object, **options: object) -> None: ...

    async def read_response(self, **options: object) -> list[bytes]:
        return [b"role", b"master"]  # to HELLO

    async def disconnect(self, nowait: bool = False) -> None: ...


class Pool(ConnectionPool):
    """Makes these connections. `early` is data that arrived during the handshake of the next one."""

    early = b""
    transport: Transport | None = None

    def make_connection(self) -> Any:
        connection = Connection(self.early)
        self.transport = connection.transport
        return connection


class Witness(Checker):
    """Checks the order of events, and that channels and payloads are bytes."""

    def on_message(self, channel: bytes, message: bytes) -> None:
        if type(channel) is not bytes or type(message) is not bytes:
            self.faults.append(f"delivered {channel!r}, {message!r}")
        super().on_message(channel, b"")  # without the payload, which the checker would read as a number
        self.events[-1] = ("message", (channel, message))

    def on_disconnect(self, error: ConnectionLost) -> None:
        super().on_disconnect(error)
        self.events[-1] = ("disconnect", error.names)

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, (SubscriptionRefused, SlowConsumer)):
            self.faults.append(repr(error))
        self.events.append(("error", str(error)))


class Lying:
    """An awaitable that raises when it is awaited, and when it is asked for its class."""

    @property
    def __class__(self) -> Any:
        raise ZeroDivisionError

    @__class__.setter
    def __class__(self, value: Any) -> None: ...

    def __await__(self) -> NoReturn:
        raise ZeroDivisionError


class Odd(Witness):
    """Its callbacks return odd objects, raise, and block the event loop for longer than a time slice."""

    def on_message(self, channel: bytes, message: bytes) -> Any:
        super().on_message(channel, message)
        kind = self.messages % 40
        if kind == 0:
            time.sleep(0.002)
        elif kind == 1:
            raise ZeroDivisionError
        elif kind == 2:
            return asyncio.sleep(0)
        return {3: Lying(), 4: Lying, 5: NotImplemented, 6: b"x"}.get(kind)

    def on_error(self, error: Exception) -> None:
        if type(error) is not ZeroDivisionError:
            super().on_error(error)


class Closing(Witness):
    """It closes its subscription in the callback of its third message."""

    def __init__(self, mpx: Multiplexer) -> None:
        super().__init__()
        _, *others = self.callbacks
        self.sub = mpx.new_channel_subscription(self.on_message, *others, on_error=self.on_error)
        self.sub.add(*CHANNELS)

    def on_message(self, channel: bytes, message: bytes) -> None:
        super().on_message(channel, message)
        if self.messages == 3:
            self.sub.close()
            self.closed = True


class Rig:
    """A multiplexer with consumers of every kind, and its simulated connections."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.pool = Pool(protocol=2)  # then nothing is negotiated
        self.mpx = Multiplexer(Redis(connection_pool=self.pool), backoff=NoBackoff(), ping_interval=None)
        self.sync, self.promising, self.slow, self.pattern, self.read, self.odd = self.witnesses = [
            Witness(), Witness(), Witness(), Witness(lambda _: PATTERN), Witness(), Odd()
        ]  # fmt: skip
        for witness, on_message in (
            (self.sync, self.sync.on_message),
            (self.odd, self.odd.on_message),
            (self.promising, self._make_promise),
            (self.slow, self._on_message_slowly),
        ):
            _, *others = witness.callbacks
            self.mpx.new_channel_subscription(on_message, *others, on_error=witness.on_error).add(*CHANNELS)
        self.mpx.new_pattern_subscription(PATTERN, *self.pattern.callbacks, on_error=self.pattern.on_error)
        self.reader = self.mpx.new_channel_subscription(max_pending=50, on_error=self.read.on_error)
        self.reader.add(*CHANNELS[:2])
        self.promises = self.mpx.new_promise_subscription(PREFIX)
        self.closing = Closing(self.mpx)

    def _make_promise(self, channel: bytes, message: bytes) -> None:
        self.promising.on_message(channel, message)
        if self.promises.pending < 10:
            with contextlib.suppress(InactiveSubscription):
                self.promises.new_promise(message[:1]).add_done_callback(self._check_result)

    def _check_result(self, promise: asyncio.Future[bytes]) -> None:
        if promise.exception() is None and type(promise.result()) is not bytes:
            self.faults.append(f"a promise was kept with {promise.result()!r}")

    async def _on_message_slowly(self, channel: bytes, message: bytes) -> None:
        await asyncio.sleep(0)
        self.slow.on_message(channel, message)

    async def connect(self, early: bytes = b"") -> Transport:
        """End the connection and wait for the next one, which has received `early` during its handshake."""
        self.faults += self.closing.faults
        if self.closing.closed:
            self.closing = Closing(self.mpx)
        before, self.pool.early = self.pool.transport, early
        if before is not None:
            before.protocol.connection_lost(None)
        await until(lambda: self.pool.transport is not before)
        transport = self.pool.transport
        assert transport is not None
        await until(lambda: transport.protocol is not None)
        for witness in self.witnesses:
            witness.events = []
        return transport

    async def play(self, transport: Transport, pieces: Iterable[bytes], *, ticking: bool = False) -> None:
        """Deliver the pieces to a connection one by one, until it closes."""
        for piece in pieces:
            rest = transport.bring(piece)
            while rest and not transport.closing:
                await until(lambda: not transport.paused or transport.closing)
                rest = transport.bring(rest)
            if ticking:
                await asyncio.sleep(0)
        await until(lambda: not transport.paused or transport.closing)

    async def end(self, transport: Transport) -> None:
        """Let the server close a connection, and wait for the next one."""
        transport.protocol.eof_received()
        transport.protocol.connection_lost(None)
        await until(lambda: self.pool.transport is not transport)
        following = self.pool.transport
        assert following is not None
        await until(lambda: following.protocol is not None)

    def check(self) -> None:
        """Raise the faults that were found so far."""
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                message = self.reader.get_nowait()
                if type(message.channel) is not bytes or type(message.data) is not bytes:
                    raise Fault(f"read {message!r}")
        for witness in self.witnesses:
            self.faults += witness.faults
        if self.faults:
            raise Fault("; ".join(self.faults))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(MAX_TICKS):
        if condition():
            return
        await asyncio.sleep(0)
    raise Fault(f"nothing happened within {MAX_TICKS} ticks of the event loop")


# --- streams


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def push(mark: bytes, *items: bytes) -> bytes:
    return b"%b%d\r\n%b" % (mark, len(items), b"".join(items))


def message(mark: bytes, channel: bytes, data: bytes) -> bytes:
    return push(mark, bulk(b"message"), bulk(channel), bulk(data))


def pmessage(mark: bytes, pattern: bytes, channel: bytes, data: bytes) -> bytes:
    return push(mark, bulk(b"pmessage"), bulk(pattern), bulk(channel), bulk(data))


def parse_values(text: bytes) -> list[bytes]:
    """Split a text at spaces into values, and replace each slash by CRLF."""
    return [value.replace(b"/", b"\r\n") for value in text.split()]


VALUES = parse_values(
    b"*0/ *-1/ $-1/ _/ #t/ ,1.5/ ,nan/ ,-inf/ :-7/ +OK/ (34928903284092385093248509438/ =8/txt:text/ %1/+k/:1/"
    b" ~2/:1/*0/ *2/*1/$1/x/*1/_/ -ERR/ $0//"
)
"""One value of every RESP type. None of them alone is a valid reply to SUBSCRIBE."""

BYTES = (b"$0", b"+", b"(", b"=")  # the types that hiredis returns as bytes

IGNORED_FRAMES = [
    *(push(b">", bulk(b"invalidate"), value) for value in VALUES),
    *(push(b">", bulk(b"message"), bulk(b"a"), value) for value in VALUES if not value.startswith(BYTES)),
    push(b">", bulk(b"MOVING"), b":1\r\n", b":30\r\n", bulk(b"evil.example:6379")),
    push(b">", bulk(b"smessage"), bulk(b"a"), bulk(b"x")),
    push(b">"), push(b"*"), push(b"~"), b"|1\r\n+ttl\r\n:3600\r\n", message(b">", b"nobody's", b"x"),
    pmessage(b"*", b"nobody's*", b"x", b"x"),
]  # fmt: skip
"""Frames that may arrive at any time, and that a subscriber ignores."""

TOKENS = [
    *VALUES,
    *IGNORED_FRAMES,
    *parse_values(b"+PONG/ -LOADING/ -NOAUTH/ -NOPERM/ / \0 \xff %1/*0/:1/ %1/%0/:1/"),
    *(push(b"*", bulk(b"pmessage"), bulk(PATTERN), value, bulk(b"x")) for value in VALUES),
    *(push(b">", value, value, value) for value in VALUES),
    *(push(b"*", bulk(verb), bulk(b"a"), b":1\r\n") for verb in (b"subscribe", b"unsubscribe", b"ssubscribe")),
    *(push(b"*", bulk(verb), bulk(PATTERN), b":1\r\n") for verb in (b"psubscribe", b"punsubscribe")),
]
"""Values to insert between two others. They may have a meaning, be ignored, or end the link."""

GARBAGE = [
    *TOKENS,
    *parse_values(
        b"*1000000000/ *4294967295/ *4294967296/ %2147483647/ >9223372036854775807/ $9223372036854775807/ $-2/ *-2/ $?/"
        b" *?/ $9223372036854775808/ */ $/ :/ ,/ ,1.5.5/ (/ #x/ _x/ =3/abc/ !5/ERR// $5/hello!! -/ -\xff\xfe/ PING/ {}"
    ),
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html></html>",
    b"\x15\x03\x03\x00\x02\x02\x46",  # a TLS alert
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # a TLS handshake
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"220 mail.example ESMTP\r\n",
    b"-ERR max number of clients reached\r\n",
    b"-DENIED Redis is running in protected mode\r\n",
    b"*1\r\n" * 100_000,
    b"*1\r\n" * 8 + b"+x\r\n",
    b"%1\r\n:1\r\n" * 1000,
    b"*1000000\r\n" * 8,
    b"\0" * 1000,
    b"\r\n" * 1000,
    b"+" + b"x" * 200_000,
]
"""Bytes that are no valid reply, or no RESP at all."""

NUMBERS = [
    b"%d" % n for n in (-2, -1, 0, 1, 2, 3, 4, 5, 7, 99, 65536, 2**31 - 1, 2**31, 2**32, 10**9, 2**63 - 1, 2**63)
]
LENGTH = re.compile(rb"(?<=[*$>%~|=])-?\d+(?=\r\n)")

PAYLOADS = [b"", b"1", b"x" * 100, b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n", b"\0\r\n\xff"]

Expected = list[tuple[str, Any]]


def conversation(rng: random.Random, commands: list[list[bytes]]) -> tuple[list[bytes], Expected]:
    """Return the replies of a correct server, and the events that the subscriber of CHANNELS must get."""
    mark = rng.choice((b"*", b">"))
    confirmed: list[bytes] = []
    expected: Expected = []
    replies: list[bytes] = []
    for verb, *names in commands:
        for name in names:
            replies.append(push(mark, bulk(verb.lower()), bulk(name), b":1\r\n"))
            confirmed.append(name)
            if name in CHANNELS:
                expected.append(("activation", name))
            for _ in range(rng.choice((0, 0, 1, 2))):
                data = rng.choice(PAYLOADS)
                kind = rng.random()
                if kind < 0.5:
                    channel = rng.choice(CHANNELS)
                    replies.append(message(mark, channel, data))
                    if channel in confirmed:
                        expected.append(("message", (channel, data)))
                elif kind < 0.7:
                    replies.append(pmessage(mark, rng.choice((PATTERN, PREFIX + b"*")), b"p-x", data))
                else:
                    replies.append(rng.choice(IGNORED_FRAMES))
        if not names:
            replies.append(b"+PONG\r\n" if mark == b">" else push(mark, bulk(b"pong"), bulk(b"")))
    return replies, expected


def mutate(rng: random.Random, stream: bytes) -> bytes:
    """Return the stream with one random change."""
    at = rng.randrange(len(stream) + 1)
    to = min(len(stream), at + rng.choice((1, 1, 2, 3, 10, 40)))
    kind = rng.randrange(9)
    if kind == 0:
        return stream[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in stream[at : at + 1]) + stream[at + 1 :]
    if kind == 1:
        return stream[:at] + stream[to:]
    if kind == 2:
        return stream[:to] + stream[at:to] * rng.choice((1, 2, 50)) + stream[to:]
    if kind == 3:
        return stream[:at]
    if kind == 4:
        return stream[:at] + rng.randbytes(to - at) + stream[at:]
    if kind == 5:
        return stream[:at] + b"*1\r\n" * rng.choice((1, 8, 9, 300)) + stream[at:]
    lengths = list(LENGTH.finditer(stream))
    if kind == 6 and lengths:
        start, end = rng.choice(lengths).span()
        return stream[:start] + rng.choice(NUMBERS) + stream[end:]
    if lengths:  # between two values, so that the rest of the stream still counts
        at = rng.choice(lengths).start() - 1
    return stream[:at] + rng.choice(TOKENS if kind < 8 else GARBAGE) + stream[at:]


def cut(rng: random.Random, stream: bytes) -> list[bytes]:
    """Cut a stream into random pieces."""
    kind = rng.random()
    if kind < 0.4 or len(stream) > 10_000:
        return [stream]
    if kind < 0.5:
        return [stream[i : i + 1] for i in range(len(stream))]
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(1, 6)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


async def fuzz_one(rig: Rig, rng: random.Random, note: Callable[[object], None]) -> str:
    """Run one stream; return its outcome."""
    early = rng.choice(TOKENS) if rng.random() < 0.05 else b""
    transport = await rig.connect(early)
    note(early)
    if rng.random() < 0.1:
        rig.mpx._hub.deployment.main._send_ping()
    kind, ends = rng.random(), rng.random() < 0.1
    expected: Expected | None = None
    if kind < 0.1:
        stream = rng.choice(GARBAGE)
    else:
        replies, expected = conversation(rng, transport.commands())
        if rng.random() < (0.05 if ends else 0.005):  # more than the link processes in one time slice
            replies += [message(b">", b"a", b"x")] * 3000
            expected += [("message", (b"a", b"x"))] * 3000
        stream = b"".join(replies)
    if kind > (0.5 if ends else 0.15):
        expected = None
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            stream = mutate(rng, stream)
    pieces = cut(rng, stream)
    note(pieces)
    ends_at = rng.randrange(len(pieces)) if ends else len(pieces)
    note(f"the connection ends at piece {ends_at}")
    await rig.play(transport, pieces[:ends_at], ticking=rng.random() < 0.3)
    if pieces[ends_at:] and not transport.closing:
        rest = transport.bring(pieces[ends_at])  # the link may not have parsed all of it when the connection ends
        await rig.end(transport)
        if expected is not None and not early:
            received = b"".join(pieces[: ends_at + 1]).removesuffix(rest)
            expected = events_of(received)
            if rig.sync.events != expected + [("disconnect", None)] * bool(expected):
                raise Fault(f"ended after {received!r}; expected {expected} and a disconnect, got {rig.sync.events}")
    await asyncio.sleep(0)
    link = transport.protocol
    reason = link.lost.result().reason if link.lost.done() else None
    if reason == "the server closed the connection" and ends_at < len(pieces):
        rig.check()
        return "ended"
    if reason is None and transport.closing:
        raise Fault("the transport is closed, but the link is not lost")
    if reason is not None and not re.match("protocol error: .", reason):
        raise Fault(f"the link was lost for another reason than a protocol error: {reason}")
    if expected is not None and not early and (reason is not None or rig.sync.events != expected):
        raise Fault(f"the stream was valid; expected {expected}, got {rig.sync.events}, lost: {reason}")
    rig.check()
    return "alive" if reason is None else f"lost to {type(link.lost.result().__cause__).__name__}"


def events_of(stream: bytes) -> Expected:
    """Return the events that the subscriber of CHANNELS must get of a part of a valid stream."""
    reader = hiredis.Reader()
    reader.feed(stream)
    events: Expected = []
    for reply in iter(reader.gets, False):  # type: ignore[arg-type]
        match reply:
            case [b"subscribe", name, _] if name in CHANNELS:
                events.append(("activation", name))
            case [b"message", channel, bytes(data)] if ("activation", channel) in events:
                events.append(("message", (channel, data)))
    return events


# --- batches of streams


class Records(logging.Handler):
    """Collects ERROR records of the library, but not those of a required password and of a callback that raises."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not ("until this is fixed" in text or "raised ZeroDivisionError" in text):
            self.found.append(self.format(record))


async def fuzz_batch(seed: int, batch: int, streams: int) -> Counter[str]:
    """Run a batch of streams on one multiplexer."""
    rng = random.Random(f"{seed}/{batch}")
    outcomes: Counter[str] = Counter()
    escaped: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    logger = logging.getLogger("redismpx")
    records = Records()
    logger.setLevel(logging.ERROR)
    logger.addHandler(records)
    stream_parts: list[object] = []
    rig = Rig()
    try:
        for number in range(streams):
            stream_parts.clear()
            signal.setitimer(signal.ITIMER_REAL, STREAM_TIMEOUT)
            try:
                outcomes[await fuzz_one(rig, rng, stream_parts.append)] += 1
                if escaped or records.found:
                    raise Fault(f"{escaped} {records.found}")
            except (Exception, Hang) as error:
                raise Fault(
                    f"{error!r}\nseed {seed}, batch {batch}, stream {number}; early data, then pieces: {stream_parts!r}"
                ) from error
        signal.setitimer(signal.ITIMER_REAL, STREAM_TIMEOUT)
        await rig.mpx.aclose()
        if len(asyncio.all_tasks()) > 1 or escaped:
            raise Fault(f"left behind: {asyncio.all_tasks()} {escaped}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        logger.removeHandler(records)
    return outcomes


def raise_hang(*_: object) -> NoReturn:
    raise Hang


def set_up() -> None:
    """Limit the memory of this process, and raise Hang at SIGALRM."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    signal.signal(signal.SIGALRM, raise_hang)


def run_batch(seed: int, batch: int, streams: int) -> tuple[Counter[str], int]:
    """Run a batch in this process; return the outcomes, and the resident memory in bytes after it."""
    outcomes = asyncio.run(fuzz_batch(seed, batch, streams))
    gc.collect()
    return outcomes, int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000, help="(100,000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="(random)")
    parser.add_argument("--batch", type=int, help="run only this batch")
    options = parser.parse_args(arguments)
    if options.batch is not None:
        set_up()
        print(run_batch(options.seed, options.batch, STREAMS_PER_BATCH))
        return
    sizes = [min(STREAMS_PER_BATCH, options.streams - start) for start in range(0, options.streams, STREAMS_PER_BATCH)]
    total: Counter[str] = Counter()
    began, largest = time.monotonic(), 0
    with ProcessPoolExecutor(initializer=set_up) as processes:
        try:
            results = processes.map(functools.partial(run_batch, options.seed), range(len(sizes)), sizes)
            for done, (outcomes, memory) in enumerate(results, 1):
                total += outcomes
                largest = max(largest, memory)
                if memory > MAX_MEMORY_AFTER_BATCH:
                    raise Fault(f"{memory >> 20} MB of memory in use after batch {done - 1}")
                if done % 25 == 0 or done == len(sizes):
                    rate = total.total() / (time.monotonic() - began)
                    print(
                        f"{total.total():,} streams, {rate:,.0f}/s, at most {largest >> 20} MB: {dict(total)}",
                        flush=True,
                    )
        except Fault as fault:
            processes.shutdown(cancel_futures=True)
            raise SystemExit(f"FAULT: {fault}") from None
    print(f"seed {options.seed}: all {total.total():,} streams ended well")


if __name__ == "__main__":
    main()
