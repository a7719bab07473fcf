"""The command: `python -m benchmarks [CASE ...]`."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
from pathlib import Path

from tests.helpers.servers import find_binary

from . import (
    adapters,
    channels,
    chat,
    drain,
    fan_out,
    keys,
    latency,
    names,
    observing,
    promises,
    publish,
    readers,
    request,
    sharded,
    socketio,
    streams,
    threads,
    topics,
    websocket,
)
from .bytecodes import Bytecodes
from .harness import Case, run_all, run_here
from .report import Report

CASES: dict[str, Case] = {
    case.name: case
    for module in (
        drain,
        readers,
        fan_out,
        names,
        promises,
        publish,
        request,
        latency,
        keys,
        observing,
        streams,
        websocket,
        socketio,
        channels,
        adapters,
        chat,
        sharded,
        threads,
        topics,
    )
    for case in module.CASES
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", metavar="CASE", nargs="*", help=f"one of {', '.join(CASES)} (all)")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each contestant (5)")
    parser.add_argument("--quick", action="store_true", help="do a hundredth of the work, as a check")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="with other libraries (yes)"
    )
    parser.add_argument("--redis-server", metavar="PATH", help="server to use (the embedded Valkey)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to this file")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw a chart to this file")
    parser.add_argument("--profile", metavar="CONTESTANT", help="run only this one, once, under cProfile")
    parser.add_argument("--bytecodes", metavar="CONTESTANT", help="run only this one, once; count bytecodes")
    parser.add_argument("--alone", metavar="CONTESTANT", help=argparse.SUPPRESS)  # one turn; prints JSON
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"no case {name!r}; the cases are {', '.join(CASES)}")
    if arguments.bytecodes and sys.version_info < (3, 12):
        parser.error("--bytecodes needs Python 3.12 or newer")
    cases = [CASES[name] for name in arguments.cases or CASES]
    binary = arguments.redis_server or find_binary("valkey")
    assert binary is not None

    if arguments.alone:
        print(json.dumps(run_here(cases[0], arguments.alone, binary, arguments.quick)))
    elif arguments.profile:
        for case in cases:
            profile = cProfile.Profile()
            measures = run_here(case, arguments.profile, binary, arguments.quick, lambda _, profile=profile: profile)
            print(f"{case.name}: {measures}")
            pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)
    elif arguments.bytecodes:
        for case in cases:
            bytecodes = Bytecodes()
            run_here(case, arguments.bytecodes, binary, arguments.quick, bytecodes.counted)
            print(f"{case.name}, {arguments.bytecodes}, for each {case.operation}:\n{bytecodes.report()}")
    else:
        results = run_all(cases, arguments.rounds, binary, arguments.quick, arguments.peers)
        report = Report(cases, results, binary)
        print(report.markdown())
        if arguments.json:
            arguments.json.write_text(report.json())
        if arguments.markdown:
            arguments.markdown.write_text(report.markdown())
        if arguments.chart:
            arguments.chart.write_text(report.chart())


if __name__ == "__main__":
    main()
