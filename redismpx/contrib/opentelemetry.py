"""OpenTelemetry: spans of messages across processes, and metrics, by the semantic conventions for messaging."""

from __future__ import annotations

__all__ = ["Tracing", "observe_metrics", "process"]

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from ..observing import Handled, Handling, MessageObserver, Operation, Published, Publishing
from ._figures import FIGURES, AnyMultiplexer, Figure, FigureSource

_SYSTEM = {"messaging.system": "redis"}
_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]  # of the conventions
_SCOPE = "redismpx"
_CONVENTIONS = {
    "published_messages": ("messaging.client.sent.messages", {**_SYSTEM, "messaging.operation.name": "publish"}),
    "received_messages": ("messaging.client.consumed.messages", {**_SYSTEM, "messaging.operation.name": "receive"}),
}
"""The figures that the conventions have a name for, with the attributes that it requires."""


class Tracing(MessageObserver):
    """Makes a span for each message that is published, and for each that a callback, a service or a topic handles.

    Pass it to `Multiplexer(observers=[...])`, in each process. A message that is an `Envelope` carries the trace: of
    `publish(..., headers={})`, of `request()` and of topics. The span of the callback has the span of the publisher as
    its parent, and a link to it. The callback runs inside its span. Messages without an envelope get spans of their
    own.

    It also records how long these operations take: `messaging.client.operation.duration` and
    `messaging.process.duration`.

    Args:
        tracer_provider: makes the spans. None: the global one.
        meter_provider: takes the durations. None: the global one.

    Example:
        ::

            mpx = Multiplexer("redis://localhost:6379", observers=[Tracing()])
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._sending, self._processing = [
            meter.create_histogram(name, unit="s", description=text, explicit_bucket_boundaries_advisory=_BUCKETS)
            for name, text in (
                ("messaging.client.operation.duration", "Duration of messaging operation initiated by a client."),
                ("messaging.process.duration", "Duration of processing operation."),
            )
        ]

    def begin(self, fact: Publishing | Handling, /) -> Operation:
        """Begin the span of a message."""
        if isinstance(fact, Publishing):
            return _Sending(_start_sending(self._tracer, fact), fact.name, self._sending)
        span = _start_processing(self._tracer, fact.channel, fact.headers, fact.id)
        return _Operation(span, "process", self._processing)


class _Operation(Operation):
    """One span."""

    def __init__(self, span: Span, name: str, duration: Histogram) -> None:
        self._span = span
        self._context = trace.set_span_in_context(span)
        self._name = name
        self._duration = duration

    def enter(self) -> None:
        self._token = context.attach(self._context)

    def leave(self) -> None:
        context.detach(self._token)

    def end(self, fact: Published | Handled) -> None:
        attributes = {**_SYSTEM, "messaging.operation.name": self._name}
        if fact.error is not None:
            attributes["error.type"] = type(fact.error).__qualname__
            _fail(self._span, fact.error)
        self._span.end()
        self._duration.record(fact.seconds, attributes, self._context)


class _Sending(_Operation):
    """The span of a message that is published, whose envelope carries it."""

    @property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]
        carrier: dict[str, str] = {}
        propagate.inject(carrier, self._context)
        return carrier


def _start_sending(tracer: Tracer, fact: Publishing) -> Span:
    channel = _text(fact.channel)
    attributes = _attributes(fact.name, "send", channel, fact.id)
    kind = SpanKind.CLIENT if fact.headers is None else SpanKind.PRODUCER  # a producer is one that a consumer links to
    return tracer.start_span(f"{fact.name} {channel}", kind=kind, attributes=attributes)


def _start_processing(tracer: Tracer, name: bytes, headers: Mapping[str, str] | None, message_id: str | None) -> Span:
    channel = _text(name)
    producer: Context | None = None
    links = []
    if headers is not None:
        extracted = propagate.extract(headers)
        creation = trace.get_current_span(extracted).get_span_context()
        if creation.is_valid:
            producer, links = extracted, [Link(creation)]
    attributes = _attributes("process", "process", channel, message_id)
    return tracer.start_span(
        f"process {channel}", context=producer, kind=SpanKind.CONSUMER, attributes=attributes, links=links
    )


def _attributes(name: str, kind: str, channel: str, message_id: str | None) -> dict[str, str]:
    attributes = {
        **_SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": channel,
    }
    if message_id is not None:
        attributes["messaging.message.id"] = message_id
    return attributes


def _fail(span: Span, error: BaseException) -> None:
    """Mark a span as failed. The text of an error may have a payload, so only its type is told."""
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR))


def _text(channel: bytes) -> str:
    """Return a channel as text. It may be any bytes."""
    return channel.decode(errors="backslashreplace")


@contextmanager
def process(
    channel: bytes, headers: Mapping[str, str] | None, *, tracer_provider: TracerProvider | None = None
) -> Iterator[Span]:
    """Handle a message inside a span, where a subscription is read: `Tracing` sees callbacks only.

    Args:
        channel: the channel of the message.
        headers: the headers of its envelope. The publisher's span in them is the parent. None: it has no envelope.
        tracer_provider: makes the span. None: the global one.

    Returns:
        A context manager with the span, which is the current one in its block.

    Example:
        ::

            async with mpx.subscribe("news", decode=Envelope.from_bytes) as sub:
                await mpx.publish("news", "hello", headers={})  # in another process, with Tracing
                message = await sub.get(timeout=5)
                with process(message.channel, message.data.headers):
                    print(message.data.body)  # b'hello'
    """
    span = _start_processing(trace.get_tracer(_SCOPE, tracer_provider=tracer_provider), channel, headers, None)
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except BaseException as error:
            _fail(span, error)
            raise


def observe_metrics(
    multiplexer: AnyMultiplexer,
    *,
    meter_provider: MeterProvider | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Report the figures of a multiplexer as metrics. They cost nothing for each message.

    `messaging.client.sent.messages` and `messaging.client.consumed.messages` are those of the semantic conventions; the
    names of all others begin with `redismpx.`. They are taken from `stats()` when they are collected. Most readers do
    that in a thread of their own. A multiplexer for asyncio is then asked in its loop: call this in that loop.

    Args:
        multiplexer: for asyncio, or for threads.
        meter_provider: takes the metrics. None: the global one.
        attributes: attributes of all of them, for example a name, if a process has several multiplexers.
    """
    meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
    source = FigureSource({"": multiplexer})
    for figure in FIGURES:
        create = meter.create_observable_counter if figure.is_counter else meter.create_observable_gauge
        name, own = _CONVENTIONS.get(figure.name, (f"redismpx.{figure.name}", {}))
        create(name, [partial(_observe, source, figure, {**own, **(attributes or {})})], description=figure.help)


def _observe(
    source: FigureSource, figure: Figure, attributes: Mapping[str, str], options: CallbackOptions
) -> Iterable[Observation]:
    value = figure.value(source.read()[""])
    return [] if value is None else [Observation(value, attributes)]
