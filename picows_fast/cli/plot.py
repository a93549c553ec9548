"""`--plot`: the distribution of latencies as a picture. Needs matplotlib, which is asked for first.

One curve per histogram: the latency that each share of all does not exceed, up to the slowest, on
two logarithmic axes, as the slowest one in a thousand is what such a picture is looked at for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picows_fast.layers.histogram import LatencyHistogram

from .live import format_duration
from .runtime import CommandError

_SUFFIXES = (".svg", ".png", ".pdf")
_MARKS = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def check_plot(path: Path | None) -> None:
    """Raise CommandError if a picture is wanted that could not be drawn at the end."""
    if path is None:
        return
    if path.suffix.lower() not in _SUFFIXES:
        raise CommandError(f"--plot: {path} must end in {', '.join(_SUFFIXES)}", 2)
    if not path.absolute().parent.is_dir():
        raise CommandError(f"--plot: there is no folder {path.absolute().parent}", 2)
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise CommandError("--plot needs matplotlib: pip install 'matplotlib>=3.8'", 2) from None
    matplotlib.use("agg")
    return matplotlib


def draw_latency(path: Path, histograms: Mapping[str, LatencyHistogram], title: str) -> bool:
    """Draw what was recorded; False if there is nothing. CommandError if the file cannot be
    written."""
    _matplotlib()
    from matplotlib import pyplot

    shown = {name: histogram for name, histogram in histograms.items() if histogram.count}
    if not shown:
        return False
    figure, axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")
    most = max(histogram.count for histogram in shown.values())
    for name, histogram in shown.items():
        rest, latencies = _curve(histogram)
        axes.step(rest, latencies, where="pre", label=f"{name}, {histogram.count:,}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1.0, 0.5 / most)
    marks = [percent for percent in _MARKS if 1 - percent / 100 >= 0.5 / most]
    axes.set_xticks([1 - percent / 100 for percent in marks], [f"{p:g} %" for p in marks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: format_duration(int(value)))
    axes.grid(alpha=0.3)
    axes.set_xlabel("share of messages that took no longer")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise CommandError(f"--plot: {error}") from error
    finally:
        pyplot.close(figure)
    return True


def _curve(histogram: LatencyHistogram) -> tuple[list[float], list[int]]:
    """(the share that took longer than the step before, latency) of every bucket."""
    rest = []
    latencies = []
    seen = 0
    for _, highest, count in histogram.buckets():
        rest.append(1 - seen / histogram.count)
        latencies.append(max(min(highest, histogram.max), 1))
        seen += count
    rest.append(0.5 / histogram.count)
    latencies.append(max(histogram.max, 1))
    return rest, latencies
