"""Report the results as tables, JSON and a chart."""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from .harness import PEERS, UNITS, Case, Result, Results, version
from .targets import TARGETS

HEADINGS = ("case", "contestant", "median", "min", "max", "x floor", "x redismpx", "wall", "besides")


class Report:
    """The results of one run."""

    def __init__(self, cases: list[Case], results: Results, binary: str) -> None:
        self._cases = cases
        self._results = results
        self._binary = binary

    # --- tables

    def markdown(self) -> str:
        """Return tables: the machine and the versions, the cases, the figures, the targets."""
        facts = [f"{name}: {value}" for name, value in self._conditions().items()]
        targets = list(self._targets())
        cases = [(case.name, case.title, f"{UNITS[case.metric]} for each {case.operation}") for case in self._cases]
        parts = [
            "\n".join(f"- {fact}" for fact in facts),
            table(("case", "what is done", "figures"), cases),
            table(HEADINGS, list(self._rows())),
        ]
        if targets:
            parts.append(table(("case", "target for redismpx", "measured", "met"), targets))
        return "\n\n".join(parts) + "\n"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for case in self._cases:
            results = self._results[case.name]
            for number, (name, result) in enumerate(results.items()):
                values = result.rounds.get(case.metric)
                if values is None:
                    yield "" if number else case.name, name, result.failure, *[""] * 6
                    continue
                besides = [
                    f"{metric} {show(statistics.median(others))} {UNITS[metric]}"
                    for metric, others in result.rounds.items()
                    if metric not in (case.metric, "wall")
                ]
                yield (
                    "" if number else case.name,
                    name,
                    *(show(f(values)) for f in (statistics.median, min, max)),
                    *(ratio(result, results.get(other), case.metric) for other in ("floor", "redismpx")),
                    show(statistics.median(result.rounds["wall"])) if "wall" in result.rounds else "",
                    ", ".join(besides) + result.failure,
                )

    def _targets(self) -> Iterator[tuple[str, ...]]:
        for target in TARGETS:
            if target.case in self._results:
                figure = target.measure(self._results[target.case])
                met = "" if figure is None else target.judge(figure)
                yield target.case, str(target), "missing" if figure is None else show(figure), met

    def _conditions(self) -> dict[str, str]:
        """Return the machine and the versions of the software."""
        libraries = {"hiredis": "hiredis", **PEERS}
        server = subprocess.run([self._binary, "--version"], capture_output=True, text=True, check=True).stdout
        return {
            "machine": f"{processor()}, {platform.system()} {platform.release()}",
            "Python": platform.python_version(),
            "server": " ".join(server.split()[:3]),
            "libraries": ", ".join(f"{name} {version(of) or 'missing'}" for name, of in libraries.items()),
        }

    # --- JSON

    def json(self) -> str:
        """Return all figures of all rounds."""
        cases = {
            case.name: {
                "title": case.title,
                "operation": case.operation,
                "contestants": {
                    name: {"failure": result.failure or None, "rounds": result.rounds}
                    for name, result in self._results[case.name].items()
                },
            }
            for case in self._cases
        }
        targets = [dict(zip(("case", "target", "measured", "met"), row, strict=True)) for row in self._targets()]
        return json.dumps({"conditions": self._conditions(), "cases": cases, "targets": targets}, indent=1) + "\n"

    # --- the chart

    def chart(self) -> str:
        """Return an SVG with a bar for each contestant: its cost as a multiple of the floor, on a logarithmic scale."""
        left, right, top, line = 130, 590, 50, 17
        shown = [(case, times) for case in self._cases if (times := self._times(case))]
        longest = max((math.log(value) for _, times in shown for value, _ in times.values()), default=1.0)
        parts, y = [], top
        for case, times in shown:
            parts.append(f'<text x="20" y="{y + 12}" class="case">{escape(case.name)}: {escape(case.title)}</text>')
            for name, (value, median) in times.items():
                y += line
                width = max(2.0, math.log(max(value, 1.0)) / longest * (right - left))
                kind = name if name in ("floor", "redismpx") else "peer"
                label = f"{show(value)} x ({show(median)} {UNITS[case.metric]})"
                parts += [
                    f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
                    f'<rect x="{left}" y="{y + 2}" width="{width:.0f}" height="12" class="{kind}"/>',
                    f'<text x="{left + width + 6:.0f}" y="{y + 12}">{label}</text>',
                ]
            y += line + 10
        style = ".case{font-weight:bold}.floor{fill:#999}.redismpx{fill:#c6302b}.peer{fill:#5b7a9d}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {y}" font-family="sans-serif" font-size="12">'
        title = "Cost in times the floor, on a logarithmic scale: less is better"
        background = f'<style>{style}</style>\n<rect width="760" height="{y}" fill="#fff"/>'
        return "\n".join([head, background, f'<text x="20" y="28" font-size="15">{title}</text>', *parts, "</svg>\n"])

    def _times(self, case: Case) -> dict[str, tuple[float, float]]:
        """Return the cost of each contestant as a multiple of the floor, and its median."""
        medians = {
            name: statistics.median(result.rounds[case.metric])
            for name, result in self._results[case.name].items()
            if case.metric in result.rounds
        }
        floor = medians.get("floor")
        return {name: (median / floor, median) for name, median in medians.items()} if floor else {}


def ratio(result: Result, other: Result | None, metric: str) -> str:
    """Return the median of the ratios within each round. A disturbance often affects both contestants of a round."""
    if other is None or metric not in other.rounds:
        return ""
    pairs = zip(result.rounds[metric], other.rounds[metric], strict=False)
    return f"{statistics.median(ours / (others or math.nan) for ours, others in pairs):.2f}"


def show(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [headings, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
