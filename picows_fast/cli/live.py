"""Figures for people: latency percentiles, units, and the live line.

Knows nothing of WebSocket or asyncio.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

from picows_fast.layers.histogram import LatencyHistogram


def format_duration(nanoseconds: int) -> str:
    """Three digits and the unit that fits: 850 ns, 85.2 us, 1.24 ms, 2.10 s."""
    if nanoseconds < 1_000:
        return f"{nanoseconds} ns"
    return _scaled(nanoseconds / 1_000, ("us", "ms", "s"))


def format_bytes(count: float) -> str:
    """Three digits and a decimal unit: 512 B, 4.91 MB."""
    if count < 999.5:
        return f"{count:.0f} B"
    return _scaled(count / 1_000, ("kB", "MB", "GB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    """Three digits of a value that is in the first unit, a thousand of which are the next one."""
    steps = 0
    while value >= 999.5 and steps < len(units) - 1:
        value /= 1_000
        steps += 1
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} {units[steps]}"


def format_latency(histogram: LatencyHistogram) -> str:
    """The percentiles a trader asks for, on one line."""
    if not histogram.count:
        return "no messages"
    return (
        f"p50 {format_duration(histogram.percentile(50))}  "
        f"p99 {format_duration(histogram.percentile(99))}  "
        f"max {format_duration(histogram.max)}"
    )


class LiveLine:
    """A status line that rewrites itself on a terminal, and is a line per update elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.updates = 0
        self._is_open = False

    @property
    def interval(self) -> float:
        """Seconds between updates."""
        return 0.25 if self.is_terminal else 1.0

    def show(self, text: str) -> None:
        """Replace the line's text."""
        if self.is_terminal:
            # A line that wraps could not be rewritten.
            text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r{text}\x1b[K")
            self._is_open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self.updates += 1

    def end(self) -> None:
        """Leave the last text standing and go on below it."""
        if self._is_open:
            self._stream.write("\n")
            self._stream.flush()
            self._is_open = False
