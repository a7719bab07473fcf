"""What type checkers infer. Checked by mypy and pyright, never run."""

from __future__ import annotations

import json
from array import array
from dataclasses import asdict, dataclass
from typing import Any, assert_type

import msgspec
import pydantic
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from redismpx import (
    Activation,
    ChannelSubscription,
    ConnectionLost,
    Disconnect,
    Envelope,
    KeyEvent,
    KeySubscription,
    Message,
    MessageGap,
    Multiplexer,
    Overflow,
    PatternSubscription,
    Promise,
    Request,
    Service,
    StreamMessage,
    StreamSubscription,
)
from redismpx.contrib.starlette import (
    EventStream,
    ServerSentEvent,
    bridge,
    get_multiplexer,
    last_event_id,
    lifespan,
)


def to_frame(event: Activation | Message[str] | Disconnect) -> str | bytes | None: ...
async def to_frame_later(event: object) -> str:
    return ""


def to_sse(event: Activation | StreamMessage[str] | MessageGap | Disconnect) -> ServerSentEvent | None: ...


async def starlette(mpx: Multiplexer, connection: HTTPConnection, websocket: WebSocket) -> None:
    """The adapter for Starlette."""
    FastAPI(lifespan=lifespan(mpx))
    Starlette(lifespan=lifespan(mpx))
    assert_type(get_multiplexer(connection), Multiplexer)
    assert_type(last_event_id(connection), str | None)
    texts = mpx.new_channel_subscription(decode=bytes.decode)
    stream = mpx.new_stream_subscription(decode=bytes.decode)
    EventStream(texts, heartbeat=1)
    EventStream(stream, to_sse)
    EventStream(mpx.new_key_subscription("a"), to_frame_later)
    EventStream(texts, to_sse)  # type: ignore[arg-type] # pyright: ignore
    async with bridge(websocket, texts, to_frame), bridge(websocket, stream, to_frame_later, send_timeout=1):
        pass
    bridge(websocket, mpx.new_channel_subscription(), to_frame)  # type: ignore[arg-type] # pyright: ignore


class Order:
    """A payload type."""

    @classmethod
    def parse(cls, data: bytes) -> Order:
        return cls()

    def dump(self) -> str:
        return ""


class Quote:
    """Another payload type."""

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        return cls()

    def dump(self) -> bytes:
        return b""


def take_bytes(channel: bytes, data: bytes) -> None: ...
def take_order(channel: bytes, data: Order) -> None: ...
async def take_order_later(channel: bytes, data: Order) -> None: ...


def take_key_event(event: KeyEvent) -> None: ...


class StructOrder(msgspec.Struct):
    """A payload type of msgspec."""

    count: int


class ModelOrder(pydantic.BaseModel):
    """A payload type of pydantic."""

    count: int


@dataclass
class DataOrder:
    """A payload type of the standard library."""

    count: int


def price_struct(request: Request[StructOrder]) -> float:
    return assert_type(request.body, StructOrder).count


def price_model(request: Request[ModelOrder]) -> float:
    return assert_type(request.body, ModelOrder).count


def price_data(request: Request[DataOrder]) -> float:
    return assert_type(request.body, DataOrder).count


async def requests_of_each_library(mpx: Multiplexer) -> None:
    """The programs in docs/how-to/request-reply.md."""
    read_price = msgspec.json.Decoder(float).decode
    mpx.serve("a", price_struct, decode=msgspec.json.Decoder(StructOrder).decode, encode=msgspec.json.encode)
    struct, model, data = StructOrder(count=3), ModelOrder(count=3), DataOrder(3)
    assert_type(await mpx.request("a", struct, timeout=1, encode=msgspec.json.encode, decode=read_price), float)
    mpx.serve("a", price_model, decode=ModelOrder.model_validate_json, encode=json.dumps)
    write, read = ModelOrder.model_dump_json, ModelOrder.model_validate_json
    assert_type(await mpx.request("a", model, timeout=1, encode=write, decode=read), ModelOrder)
    mpx.serve("a", price_data, decode=lambda body: DataOrder(**json.loads(body)), encode=json.dumps)
    assert_type(await mpx.request("a", data, timeout=1, encode=lambda order: json.dumps(asdict(order))), bytes)


def take_order_request(request: Request[Order]) -> bytes | None: ...
def quote_now(request: Request[Order]) -> Quote:
    return Quote()


async def quote_later(request: Request[Order]) -> Quote:
    return Quote()


async def quote_bytes(request: Request) -> Quote:
    return Quote()


async def answer_later(request: Request) -> bytes | None: ...


async def inferred(mpx: Multiplexer) -> None:
    plain = mpx.new_channel_subscription()
    assert_type(plain, ChannelSubscription[bytes])
    assert_type(await plain.get(), Message[bytes])
    assert_type(mpx.new_channel_subscription(take_bytes), ChannelSubscription[bytes])

    orders = mpx.new_channel_subscription(decode=Order.parse)
    assert_type(orders, ChannelSubscription[Order])
    assert_type((await orders.get(1)).data, Order)
    assert_type(orders.get_nowait().data, Order)
    async for message in orders:
        assert_type(message, Message[Order])
    async for step in orders.events():
        match step:
            case Activation(name):
                assert_type(name, bytes)
            case Disconnect(error):
                assert_type(error, ConnectionLost)
            case other:
                assert_type(other, Message[Order])
    assert_type(mpx.new_channel_subscription(take_order, decode=Order.parse), ChannelSubscription[Order])
    assert_type(mpx.new_channel_subscription(take_order_later, decode=Order.parse), ChannelSubscription[Order])

    async with mpx.subscribe("a", b"b") as block:
        assert_type(block, ChannelSubscription[bytes])
    async with mpx.subscribe("a", decode=Order.parse, on_message=take_order) as order_block:
        assert_type(order_block, ChannelSubscription[Order])

    keys = mpx.new_key_subscription("session:*", take_key_event, events={"set", b"expired"})
    assert_type(keys, KeySubscription)
    mpx.new_key_subscription(b"a", take_bytes)  # type: ignore[arg-type]
    assert_type(await keys.get(), KeyEvent)
    assert_type(await anext(keys.events()), KeyEvent | Activation | Disconnect)
    async for event in keys:
        assert_type(event.key, bytes)
        assert_type(event.subkeys, tuple[bytes, ...])

    stream = mpx.new_stream_subscription(decode=Order.parse)
    assert_type(stream, StreamSubscription[Order])
    assert_type((await stream.get()).data, Order)
    assert_type(await mpx.append("s", "x", key="k"), bytes)
    assert_type(await mpx.history("s"), list[StreamMessage[bytes]])
    async for change in stream.events():
        assert_type(change, Activation | StreamMessage[Order] | MessageGap | Disconnect)
    mpx.new_stream_subscription(take_bytes)  # type: ignore[arg-type]

    text = mpx.new_pattern_subscription("a*", decode=bytes.decode, overflow="latest")
    assert_type(text, PatternSubscription[str])
    anything = mpx.new_pattern_subscription(b"a*", decode=json.loads, overflow=Overflow.CLOSE)
    assert_type(anything, PatternSubscription[Any])

    promise = mpx.new_promise_subscription("p").new_promise("x", 1)
    assert_type(promise, Promise)
    assert_type(await promise, bytes)
    assert_type(await promise.get(), bytes)

    for payload in ("x", b"x", bytearray(b"x"), memoryview(b"x"), array("i")):
        assert_type(await mpx.publish("a", payload), int)

    assert_type(mpx.new_channel_subscription(decode=Envelope.from_bytes), ChannelSubscription[Envelope])
    assert_type(await mpx.publish("a", Envelope(b"x")), int)
    assert_type(await mpx.request("a", b"x", timeout=1, headers={"a": "b"}), bytes)
    async for answer in mpx.request_many("a", "x", timeout=1):
        assert_type(answer, bytes)
    assert_type(mpx.serve("a", lambda request: request.body, concurrency=2), Service)
    mpx.serve(b"a*", answer_later)

    mpx.serve("a", quote_now, decode=Order.parse, encode=Quote.dump)
    assert_type(mpx.serve("a", quote_later, decode=Order.parse, encode=Quote.dump), Service)
    mpx.serve("a", take_order_request, decode=Order.parse)
    mpx.serve("a", quote_bytes, encode=Quote.dump)
    mpx.serve("a", lambda request: {"x": request.body}, decode=json.loads, encode=json.dumps)
    assert_type(await mpx.request("a", Order(), timeout=1, encode=Order.dump, decode=Quote.parse), Quote)
    assert_type(await mpx.request("a", "x", timeout=1, decode=Quote.parse), Quote)
    assert_type(await mpx.request("a", Order(), timeout=1, encode=Order.dump), bytes)
    async for quote in mpx.request_many("a", Order(), timeout=1, encode=Order.dump, decode=Quote.parse):
        assert_type(quote, Quote)


async def refused(mpx: Multiplexer) -> None:
    await mpx.publish("a", 1)  # type: ignore[arg-type] # pyright: ignore
    await mpx.publish("a", None)  # type: ignore[arg-type] # pyright: ignore
    await mpx.request("a", b"x")  # type: ignore[call-overload] # pyright: ignore
    await mpx.request("a", Quote(), timeout=1)  # type: ignore[call-overload] # pyright: ignore
    await mpx.request("a", Quote(), timeout=1, encode=Order.dump)  # type: ignore[arg-type] # pyright: ignore
    mpx.serve("a", quote_now, decode=Order.parse)  # type: ignore[arg-type] # pyright: ignore
    mpx.serve("a", quote_now, decode=Quote.parse, encode=Quote.dump)  # type: ignore[misc] # pyright: ignore
    mpx.serve("a", quote_later, decode=Order.parse, encode=Order.dump)  # type: ignore[arg-type] # pyright: ignore
    mpx.serve("a", lambda request: 7)  # type: ignore[arg-type,return-value] # pyright: ignore
    mpx.serve("a", take_bytes)  # type: ignore[arg-type] # pyright: ignore
    mpx.new_channel_subscription(take_order)  # type: ignore[arg-type] # pyright: ignore
    mpx.new_channel_subscription(take_bytes, decode=Order.parse)  # type: ignore[misc] # pyright: ignore
    mpx.new_pattern_subscription(1)  # type: ignore[call-overload] # pyright: ignore
