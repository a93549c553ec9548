"""picows_fast.cli.live: percentiles, units, and the live line."""

from __future__ import annotations

import io
import os

import pytest

from picows_fast.cli.live import LiveLine, format_bytes, format_duration, format_latency
from picows_fast.layers.histogram import LatencyHistogram


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (85_240, "85.2 us"),
        (999_400, "999 us"),
        (999_600, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (2_100_000_000, "2.10 s"),
        (7_200_000_000_000, "7,200 s"),
    ],
)
def test_durations_are_readable(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (4_914_000, "4.91 MB"),
        (999_700, "1.00 MB"),
        (12_000_000_000, "12.0 GB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_latency_is_one_line() -> None:
    histogram = LatencyHistogram()
    assert format_latency(histogram) == "no messages"
    for nanoseconds in (50, 64, 64_000_000):
        histogram.record(nanoseconds)
    assert format_latency(histogram) == "p50 64 ns  p99 64.0 ms  max 64.0 ms"


def test_live_line_is_a_line_per_update_where_it_cannot_rewrite() -> None:
    out = io.StringIO()
    live = LiveLine(out)
    live.show("one")
    live.show("two")
    live.end()
    assert out.getvalue() == "one\ntwo\n"
    assert live.updates == 2
    assert live.interval == 1.0


def test_live_line_rewrites_itself_and_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((10, 24)))
    out = Terminal()
    live = LiveLine(out)
    live.end()
    live.show("short")
    live.show("longer than the terminal")
    live.end()
    live.end()
    assert out.getvalue() == "\rshort\x1b[K\rlonger th\x1b[K\n"
