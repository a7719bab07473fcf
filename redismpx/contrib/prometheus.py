"""Prometheus: a collector of the figures of multiplexers, taken from `stats()` when they are scraped."""

from __future__ import annotations

__all__ = ["MultiplexerCollector"]

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ._figures import FIGURES, AnyMultiplexer, Figure, FigureSource


class MultiplexerCollector(Collector):
    """Collects the figures of multiplexers. They cost nothing between two scrapes, and nothing for each message.

    Works in every state of a multiplexer, also offline and when closed. A multiplexer for asyncio that is scraped in
    another thread, as by `start_http_server()`, is asked in its loop: make the collector in that loop.

    Args:
        multiplexer: for asyncio, or for threads.
        name: the value of the label `multiplexer` of its samples.
        others: more multiplexers of this process, by the value of this label. A registry takes one collector.

    Example:
        ::

            REGISTRY.register(MultiplexerCollector(mpx, name="chat"))
    """

    def __init__(
        self, multiplexer: AnyMultiplexer, *, name: str = "main", others: Mapping[str, AnyMultiplexer] | None = None
    ) -> None:
        self._source = FigureSource({name: multiplexer, **(others or {})})

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without samples: a registry looks for names that occur twice."""
        return map(_family, FIGURES)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their samples now."""
        found = self._source.read()
        for figure in FIGURES:
            family = _family(figure)
            for name, stats in found.items():
                value = figure.value(stats)
                if value is not None:
                    family.add_metric([name], value)
            yield family


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
    return family(f"redismpx_{figure.name}", figure.help, labels=["multiplexer"])
