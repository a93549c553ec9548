"""Compare picows_fast with its peers and with a C reference, all in one run.

examples:
  python -m benchmarks                              everything; about half an hour
  python -m benchmarks --quick                      a choice of it in under three minutes
  python -m benchmarks --only roundtrip,flood
  python -m benchmarks --only roundtrip --where size=256,8192 --where loop=uvloop --peers picows,C
  python -m benchmarks --json results.json --plots docs/plots

Both sides take turns; a ratio is the median of the pairs that ran one after the other, or of the
rounds in which they took turns in slices. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from . import measuring, report
from .measuring import Case, Progress, Row, Settings, UnavailableError
from .processes import RESULTS

WORKLOADS = (
    "roundtrip",
    "flood",
    "fanout",
    "broadcast",
    "stalled",
    "accept",
    "memory",
    "mask",
    "masksend",
    "latency",
    "many",
)
ON_REQUEST = ("sweep", "timestamps", "corners")


def say(text: str) -> None:
    print(text, flush=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter: under three minutes"
    )
    parser.add_argument(
        "--only",
        type=_names,
        default=WORKLOADS,
        metavar="NAMES",
        help=f"{', '.join(WORKLOADS)} (all of these unless named); {', '.join(ON_REQUEST)}",
    )
    parser.add_argument(
        "--peers", type=_names, default=(), metavar="NAMES", help="only these peers"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="LABEL=VALUES",
        help="only cases with one of these values; repeatable",
    )
    parser.add_argument("--rounds", type=int, help="pairs of each case; default: 5, quick 3")
    parser.add_argument(
        "--seconds", type=float, help="of each measurement; default: 0.5, quick 0.15"
    )
    parser.add_argument("--clients", type=int, help="at most so many, for fanout and memory")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "results.json", metavar="FILE", help="%(default)s"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw them; needs matplotlib")
    parser.add_argument("--list", action="store_true", help="the cases, without measuring")
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in WORKLOADS + ON_REQUEST:
            parser.error(f"--only: no workload {name!r}")
    where: dict[str, tuple[str, ...]] = {}
    for text in arguments.where:
        key, equals, values = text.partition("=")
        if not equals:
            parser.error(f"--where: LABEL=VALUE expected, got {text!r}")
        where[key] = where.get(key, ()) + _names(values)
    arguments.settings = Settings(
        quick=arguments.quick,
        rounds=arguments.rounds or (3 if arguments.quick else 5),
        seconds=arguments.seconds or (0.15 if arguments.quick else 0.5),
        peers=arguments.peers,
        where=where,
        clients=arguments.clients,
    )
    return arguments


def _cases(names: tuple[str, ...], settings: Settings) -> list[Case]:
    found = []
    for name in names:
        workload: Any = importlib.import_module(f"{__package__}.{name}")
        found += [case for case in workload.cases(settings) if settings.wants(case.labels)]
    return found


def main() -> None:
    arguments = _arguments()
    settings: Settings = arguments.settings
    cases = _cases(arguments.only, settings)
    if not cases:
        sys.exit("no case has these labels")
    if arguments.list:
        for case in cases:
            labels = " ".join(f"{key}={value}" for key, value in case.labels.items())
            say(f"{case.workload:10} {labels}: {', '.join(case.contestants)}")
        return
    draw = None
    if arguments.plots:
        try:
            from .plots import draw
        except ImportError:
            say("skipped: the plots; matplotlib is not installed")
    rows: list[Row] = []
    progress = Progress(
        sum(len(case.contestants) * (case.rounds or settings.rounds) for case in cases)
    )
    workload = ""
    failures = 0

    def interrupt(text: str) -> None:
        nonlocal failures
        failures += text.startswith("FAILED")
        progress.clear()
        say(text)

    try:
        for case in cases:
            new = measuring.run(
                case, settings, progress, lambda text: (progress.clear(), say(text))
            )
            progress.clear()
            for row in new:
                if row.workload != workload:
                    workload = row.workload
                    say(report.heading(row))
                say(report.line(row))
            rows += new
    finally:
        progress.clear()
        if rows:
            report.write_json(arguments.json, sys.argv[1:], rows)
            say(f"\nwritten: {arguments.json}")
    if draw:
        for path in draw(rows, report.machine(), arguments.plots):
            say(f"written: {path}")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except UnavailableError as error:
        sys.exit(f"unavailable: {error}")
