"""The collector for Prometheus: the figures of stats(), scraped in any thread."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from redismpx import Multiplexer, Stats
from redismpx import blocking as threads
from redismpx.contrib._figures import FIGURES
from redismpx.contrib.prometheus import MultiplexerCollector

from ..helpers.waiting import until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]

DOCS = Path(__file__).parents[2] / "docs"


def scraped(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """The samples of a scrape, by name and multiplexer."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(sample.name, sample.labels["multiplexer"]): sample.value for each in families for sample in each.samples}


def registered(*arguments: Any, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(MultiplexerCollector(*arguments, **options))
    return registry


class Noting(Multiplexer):
    """Notes the threads in which it is asked."""

    asked: ClassVar[set[int]] = set()

    def stats(self) -> Stats:
        self.asked.add(threading.get_ident())
        return super().stats()


async def test_a_scrape_in_another_thread_has_the_figures(url: str) -> None:
    """The multiplexer is asked in its loop; figures that have no value yet are left out."""
    async with Noting(url) as mpx, Multiplexer("redis://127.0.0.1:1") as other, mpx.subscribe("news"):
        registry = registered(mpx, name="a", others={"b": other})
        for _ in range(3):
            await mpx.publish("news", "hello")
        await until(lambda: mpx.stats().messages == 3)
        found = await asyncio.to_thread(scraped, registry)
        assert scraped(registry).keys() == found.keys()
        assert mpx.asked == {threading.get_ident()}
    assert found["redismpx_received_messages_total", "a"] == found["redismpx_published_messages_total", "a"] == 3
    assert (found["redismpx_connected", "a"], found["redismpx_connected", "b"]) == (1, 0)
    assert found["redismpx_pending_messages", "a"] == 3
    assert ("redismpx_last_message_seconds", "a") in found
    assert ("redismpx_last_message_seconds", "b") not in found
    assert scraped(registry)["redismpx_connected", "a"] == 0  # closed


def test_a_blocking_multiplexer_is_scraped_at_any_time(url: str) -> None:
    """Before its first call, open, and closed."""
    mpx = threads.Multiplexer(url)
    registry = registered(mpx)
    assert scraped(registry)["redismpx_connections_total", "main"] == 0
    with mpx, mpx.subscribe("news"):
        assert scraped(registry)["redismpx_connections_total", "main"] == 1
    assert scraped(registry)["redismpx_connected", "main"] == 0


def test_every_number_of_stats_is_a_figure() -> None:
    """A counter that is added to stats() is not forgotten here."""
    numbers = {field.name for field in fields(Stats)} - {"last_error"}

    class Asked(set[str]):
        def __getattr__(self, name: str) -> Any:
            self.add(name)
            return () if name == "largest_queues" else 0

    asked: Any = Asked()
    for figure in FIGURES:
        figure.value(asked)
    assert set(asked) == numbers


# --- the dashboard and the alerts


def expressions(value: object) -> Iterator[str]:
    """All expressions of a dashboard."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr":
                yield inner
            else:
                yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


def names_of_collector() -> set[str]:
    return {f"redismpx_{figure.name}" + "_total" * figure.is_counter for figure in FIGURES}


def test_the_dashboard_asks_for_names_that_exist() -> None:
    """Each metric in its expressions is one of the collector's, and each panel has an expression."""
    dashboard = json.loads((DOCS / "how-to" / "dashboard.json").read_text())
    found = [name for text in expressions(dashboard) for name in re.findall(r"redismpx_\w+", text)]
    assert len(found) >= len(dashboard["panels"]) >= 10
    assert set(found) <= names_of_collector()
    assert all(list(expressions(panel)) for panel in dashboard["panels"])


def test_the_alerts_ask_for_names_that_exist() -> None:
    """There are five alerts, and each has an expression of known metrics, and what to do."""
    page = (DOCS / "how-to" / "observe.md").read_text()
    (rules,) = re.findall(r"```yaml\n(groups:.*?)```", page, re.DOTALL)
    alerts = re.findall(r"- alert: (\w+)\n +expr: (.+)\n", rules)
    assert len(alerts) == 5
    for name, expression in alerts:
        used = set(re.findall(r"redismpx_\w+", expression))
        assert used
        assert used <= names_of_collector()
        assert f"`{name}`\n: " in page
