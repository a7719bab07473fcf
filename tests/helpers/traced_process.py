"""A consumer in a process of its own: `python -m tests.helpers.traced_process URL`.

It subscribes to a channel and a topic and serves requests, all with traces that are kept in memory. It writes a line
when it is ready; at a line of its standard input it ends, and writes its spans as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from redismpx import Multiplexer, Request
from redismpx.contrib.opentelemetry import Tracing
from redismpx.topics import Topics


async def main(url: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("application")

    async def on_message(channel: bytes, data: bytes) -> None:
        await asyncio.sleep(0)
        with tracer.start_as_current_span("inside callback"):
            pass

    def on_topic(topic: tuple[str, ...], **message: object) -> None:
        with tracer.start_as_current_span("inside topic"):
            pass

    async def answer(request: Request) -> bytes:
        with tracer.start_as_current_span("inside handler"):
            return b"reply"

    async with Multiplexer(url, observers=[Tracing(provider)]) as mpx, Topics(mpx) as topics:
        sub = mpx.new_channel_subscription(on_message)
        sub.add("news")
        service = mpx.serve("service", answer)
        topics.subscribe("a", on_topic)
        await sub.wait_for_activation(timeout=10)
        await service.wait_for_activation(timeout=10)
        await topics.wait_for_activation(timeout=10)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    found = [
        {
            "name": span.name,
            "kind": span.kind.name,
            "trace": span.context.trace_id,
            "id": span.context.span_id,
            "parent": None if span.parent is None else span.parent.span_id,
            "links": [link.context.span_id for link in span.links],
            "attributes": dict(span.attributes or {}),
        }
        for span in exporter.get_finished_spans()
    ]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
