"""OpenTelemetry: one trace from the publisher to its consumers in other processes, and metrics from stats()."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from redismpx import Envelope, Multiplexer
from redismpx import blocking as threads
from redismpx.contrib.opentelemetry import Tracing, observe_metrics, process
from redismpx.topics import Topics

from ..helpers.waiting import until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]


class Traces:
    """The spans and metrics of this process, in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.tracing = Tracing(self.provider, self.meters)
        self.tracer = self.provider.get_tracer("application")

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def metrics(self) -> dict[str, Any]:
        """The data points of each metric."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def traces() -> Iterator[Traces]:
    traces = Traces()
    yield traces
    traces.provider.shutdown()
    traces.meters.shutdown()


async def start(url: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "tests.helpers.traced_process", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


async def test_a_trace_goes_through_redis_to_two_processes(url: str, traces: Traces) -> None:
    """Each consumer's span has the producer's as parent and link, and what its callback does is inside it."""
    consumers = [await start(url) for _ in range(2)]
    async with Multiplexer(url, observers=[traces.tracing]) as mpx, Topics(mpx) as topics:
        with traces.tracer.start_as_current_span("application"):
            await mpx.publish("news", "hello", headers={})
            topics.publish("a.b", n=1)
            await topics.flush()
            assert await mpx.request("service", b"", timeout=10) == b"reply"
        await asyncio.sleep(0.2)  # for the slower one of the two to get all
    outputs = [await asyncio.wait_for(consumer.communicate(b"\n"), 30) for consumer in consumers]
    root = traces.spans["application"].context
    for output, _ in outputs:
        found = {span["name"]: span for span in json.loads(output)}
        assert {span["trace"] for span in found.values()} == {root.trace_id}
        for sent, handled, inside in (
            ("publish news", "process news", "inside callback"),
            ("publish topics:a.b", "process topics:a.b", "inside topic"),
            ("request service", "process service", "inside handler"),
        ):
            producer = traces.spans[sent]
            assert producer.kind is SpanKind.PRODUCER
            assert producer.parent is not None
            assert producer.parent.span_id == root.span_id
            assert found[handled]["kind"] == "CONSUMER"
            assert found[handled]["parent"] == producer.context.span_id
            assert found[handled]["links"] == [producer.context.span_id]
            assert found[inside]["parent"] == found[handled]["id"]
        attributes = found["process news"]["attributes"]
        assert attributes["messaging.message.id"] == traces.spans["publish news"].attributes["messaging.message.id"]  # type: ignore[index]
        del attributes["messaging.message.id"]
        assert attributes == {
            "messaging.system": "redis",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "news",
        }


async def test_a_message_without_an_envelope_has_spans_of_its_own(url: str, traces: Traces) -> None:
    """Its publisher is no producer that a consumer could link to, and the payload is unchanged."""
    got: list[bytes] = []
    async with Multiplexer(url, observers=[traces.tracing]) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: got.append(data))
        sub.add(b"raw\xff")
        await sub.wait_for_activation(timeout=5)
        await mpx.publish(b"raw\xff", "hello")
        await until(lambda: "process raw\\xff" in traces.spans)
    assert got == [b"hello"]
    assert traces.spans["publish raw\\xff"].kind is SpanKind.CLIENT
    handled = traces.spans["process raw\\xff"]
    assert (handled.parent, list(handled.links)) == (None, [])


async def test_a_failure_marks_the_span_without_its_text(url: str, traces: Traces) -> None:
    """The text of an exception may repeat the payload, so the span has its type only."""

    def fail(channel: bytes, data: bytes) -> None:
        raise ValueError("secret")

    async with Multiplexer(url, observers=[traces.tracing], on_error=lambda error: None, max_payload=10) as mpx:
        sub = mpx.new_channel_subscription(fail)
        sub.add("news")
        await sub.wait_for_activation(timeout=5)
        await mpx.publish("news", "hello")
        with pytest.raises(ValueError, match="max_payload"):
            await mpx.publish("large", "x" * 11)
        await until(lambda: "process news" in traces.spans)
    for name in ("process news", "publish large"):
        span = traces.spans[name]
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "ValueError"
        assert "secret" not in span.to_json()


async def test_a_reader_processes_inside_a_span(url: str, traces: Traces) -> None:
    """process() has the producer's span as parent and link, and fails as its block does."""
    async with (
        Multiplexer(url, observers=[traces.tracing]) as mpx,
        mpx.subscribe("news", decode=Envelope.from_bytes) as sub,
    ):
        await mpx.publish("news", "hello", headers={"Own": "1"})
        message = await sub.get(5)
        with (
            pytest.raises(KeyError),
            process(message.channel, message.data.headers, tracer_provider=traces.provider) as span,
        ):
            assert trace.get_current_span() is span
            raise KeyError("secret")
    producer, handled = traces.spans["publish news"], traces.spans["process news"]
    assert handled.parent is not None
    assert handled.parent.span_id == handled.links[0].context.span_id == producer.context.span_id
    assert handled.status.status_code is StatusCode.ERROR


async def test_durations_are_recorded_by_operation(url: str, traces: Traces) -> None:
    """Of publishing and of processing, with the attributes that the conventions require, and no channel."""
    async with Multiplexer(url, observers=[traces.tracing]) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: None)
        sub.add("news")
        await sub.wait_for_activation(timeout=5)
        for _ in range(3):
            await mpx.publish("news", "hello")
        await until(lambda: len(traces.exporter.get_finished_spans()) == 6)
    metrics = traces.metrics()
    for name, operation in (
        ("messaging.client.operation.duration", "publish"),
        ("messaging.process.duration", "process"),
    ):
        (point,) = metrics[name]
        assert point.count == 3
        assert point.attributes == {"messaging.system": "redis", "messaging.operation.name": operation}


async def test_metrics_are_those_of_stats(url: str, traces: Traces) -> None:
    """Read in a thread, as exporters do, while the loop runs; messages have the names of the conventions."""
    async with Multiplexer(url) as mpx, mpx.subscribe("news"):
        observe_metrics(mpx, meter_provider=traces.meters, attributes={"name": "main"})
        for _ in range(3):
            await mpx.publish("news", "hello")
        await until(lambda: mpx.stats().messages == 3)
        found = await asyncio.to_thread(traces.metrics)
    values = {name: points[0].value for name, points in found.items() if len(points) == 1}
    assert values["messaging.client.sent.messages"] == values["messaging.client.consumed.messages"] == 3
    assert (values["redismpx.pending_messages"], values["redismpx.connected"]) == (3, 1)
    assert found["messaging.client.sent.messages"][0].attributes == {
        "messaging.system": "redis", "messaging.operation.name": "publish", "name": "main",
    }  # fmt: skip
    assert found["redismpx.round_trip_seconds"] == [] if "redismpx.round_trip_seconds" in found else True


def test_blocking_threads_have_one_trace(url: str, traces: Traces) -> None:
    """The span of a publishing thread is the parent, and the callback in its worker is inside the consumer's."""
    seen: list[int] = []

    def on_message(channel: bytes, data: bytes) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    with threads.Multiplexer(url, observers=[traces.tracing]) as mpx:
        sub = mpx.new_channel_subscription(on_message)
        sub.add("news")
        sub.wait_for_activation(timeout=5)
        with traces.tracer.start_as_current_span("application") as root:
            mpx.publish("news", "hello", headers={})
        with mpx.subscribe("other"):
            pass  # a round trip: the message before it has arrived
        mpx.drain(timeout=5)
    assert seen == [root.get_span_context().trace_id]
