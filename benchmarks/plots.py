"""Pictures of the results, as SVG: what docs/performance.md and the README show. Needs matplotlib.

python -m benchmarks --plots docs/plots
python -m benchmarks.plots RESULTS.json docs/plots      from what was measured before
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "picows_fast",  # the same results give the same file
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",  # readable on a dark page, too
    }
)

from matplotlib import pyplot  # noqa: E402

from .measuring import OURS, Row  # noqa: E402
from .peers import CALLBACKS, REFERENCE, STREAMS  # noqa: E402

COLOURS = {
    OURS: "#c0392b",
    "picows": "#34495e",
    "picows.websockets": "#7f8c8d",
    "websockets": "#95a5a6",
    "aiohttp": "#bdc3c7",
    "memcpy": "#bdc3c7",
    REFERENCE: "#27ae60",
}


def size_label(size: int) -> str:
    for factor, unit in ((1_048_576, "MiB"), (1024, "KiB")):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size // 1024} KiB" if size >= 10_240 else f"{size} B"


def _chosen(rows: Sequence[Row], workload: str, **labels: str) -> list[Row]:
    return [
        row
        for row in rows
        if row.workload == workload
        and all(row.labels.get(name) == value for name, value in labels.items())
    ]


def _libraries(axes: Any, rows: Sequence[Row], title: str) -> bool:
    """A bar for each library in one case."""
    values = {row.peer: row.theirs for row in rows if row.peer in COLOURS}
    if not values:
        return False
    values[OURS] = rows[0].ours
    names = [name for name in (*CALLBACKS, *STREAMS) if name in values][::-1]
    axes.barh(names, [values[name] for name in names], color=[COLOURS[name] for name in names])
    better = "more" if rows[0].higher_is_better else "less"
    axes.set_title(f"{title}\n({rows[0].unit}, {better} is better)", fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.locator_params(axis="x", nbins=4)
    return True


def _short(value: float) -> str:
    for factor, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def libraries(rows: Sequence[Row]) -> Any:
    """Every library, in one case of each workload."""
    plain = {"tls": "plain", "loop": "uvloop"}
    panels = (
        (
            _chosen(rows, "roundtrip", **plain, listener="python", code="best", size="256"),
            "echo, 256 B",
        ),
        (_chosen(rows, "flood", **plain, take="bytes", size="100 B"), "received, 100 B frames"),
        (_chosen(rows, "accept", **plain), "connections accepted"),
        (_chosen(rows, "memory", **plain), "memory, idle connection"),
    )
    panels = tuple((found, title) for found, title in panels if found)
    if not panels:
        return None
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(3 * len(panels), 2.2), sharey=True, squeeze=False
    )
    for axes, (found, title) in zip(all_axes[0], panels, strict=True):
        _libraries(axes, found, title)
    return figure


def roundtrip(rows: Sequence[Row]) -> Any:
    """Ratios to picows and to C, by size of the message."""
    found = _chosen(rows, "roundtrip", listener="cython", code="best")
    peers = [peer for peer in ("picows", REFERENCE) if any(row.peer == peer for row in found)]
    if not peers:
        return None
    figure, all_axes = pyplot.subplots(
        1, len(peers), figsize=(4.5 * len(peers), 2.8), squeeze=False
    )
    kinds = [(tls, loop) for tls in ("plain", "tls") for loop in ("uvloop", "asyncio")]
    for axes, peer in zip(all_axes[0], peers, strict=True):
        of_peer = [row for row in found if row.peer == peer]
        sizes = sorted({int(row.labels["size"]) for row in of_peer})
        for index, (tls, loop) in enumerate(kinds):
            bars = [
                row for row in of_peer if (row.labels["tls"], row.labels["loop"]) == (tls, loop)
            ]
            if not bars:
                continue
            ratios = [row.ratio for row in bars]
            axes.bar(
                [sizes.index(int(row.labels["size"])) + 0.2 * index - 0.3 for row in bars],
                ratios,
                width=0.18,
                label=f"{tls}, {loop}",
                color=("#c0392b", "#e67e22", "#2c3e50", "#7f8c8d")[index],
                yerr=[
                    [row.ratio - row.lowest for row in bars],
                    [row.highest - row.ratio for row in bars],
                ],
                error_kw={"elinewidth": 0.8},
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(sizes)), [size_label(size) for size in sizes])
        name = "the C reference" if peer == REFERENCE else peer
        axes.set_title(f"round trips, ratio to {name} (more is better)", fontsize=9)
    all_axes[0][0].legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    return figure


def fanout(rows: Sequence[Row]) -> Any:
    """CPU time of a message to 200 clients, sixteen in a turn."""
    found = _chosen(rows, "fanout", tls="plain", messages="16", clients="200")
    if not found:
        return None
    names = {"same": "send()", "best": "cork()", "coalesce": "coalesce_writes"}
    values = {}
    for row in found:
        code = row.labels["code"]
        values[f"{OURS}, {names[code]}"] = row.ours, OURS
        if code == "same" and row.peer:
            values[row.peer] = row.theirs, row.peer
    figure, axes = pyplot.subplots(figsize=(5, 2.2))
    axes.barh(
        list(values)[::-1],
        [value for value, _ in values.values()][::-1],
        color=[COLOURS[name] for _, name in values.values()][::-1],
    )
    axes.set_title(
        "16 messages to each of 200 clients\n(CPU ns/message, less is better)", fontsize=9
    )
    return figure


def latency(rows: Sequence[Row]) -> Any:
    """Every contestant of `latency`, on one core and on two, and of `many`."""
    panels = (
        (_chosen(rows, "latency", placed="one core"), "256 B, one core"),
        (_chosen(rows, "latency", placed="two cores"), "256 B, two cores"),
        (_chosen(rows, "many"), "500 connections"),
    )
    panels = tuple((found, title) for found, title in panels if found)
    if not panels:
        return None
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 2.2), squeeze=False
    )
    for axes, (found, title) in zip(all_axes[0], panels, strict=True):
        values = {f"{OURS}, own loop": found[0].ours}
        values |= {row.peer: row.theirs for row in found}
        names = list(values)[::-1]
        colours = [COLOURS[name.split(",")[0]] for name in names]
        axes.barh(names, [values[name] for name in names], color=colours)
        axes.set_title(f"{title}\n({found[0].unit}, more is better)", fontsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.locator_params(axis="x", nbins=4)
    return figure


def mask(rows: Sequence[Row]) -> Any:
    """Throughput by size."""
    found = _chosen(rows, "mask", offset="0")
    if not found:
        return None
    figure, axes = pyplot.subplots(figsize=(5, 2.6))
    sizes = sorted({int(row.labels["size"]) for row in found})
    ours = {int(row.labels["size"]): row.ours for row in found}
    axes.plot(sizes, [ours[size] for size in sizes], color=COLOURS[OURS], label=OURS)
    for peer in ("memcpy", "picows"):
        theirs = {int(row.labels["size"]): row.theirs for row in found if row.peer == peer}
        if theirs:
            axes.plot(list(theirs), list(theirs.values()), color=COLOURS[peer], label=peer)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [size_label(size) for size in sizes], fontsize=7)
    axes.set_ylim(bottom=0)
    axes.set_title("masking in place (GB/s, more is better)", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    return figure


def sweep(rows: Sequence[Row]) -> Any:
    """Ratios by size and by number of connections."""
    found = _chosen(rows, "sweep")
    if not found:
        return None
    figure, (by_size, by_clients) = pyplot.subplots(1, 2, figsize=(9, 2.6), sharey=True)
    for tls, colour in (("plain", "#c0392b"), ("tls", "#2c3e50")):
        of_kind = [row for row in found if row.labels["tls"] == tls and row.peer == "picows"]
        sizes = {int(row.labels["size"]): row for row in of_kind if row.labels["clients"] == "1"}
        clients = {
            int(row.labels["clients"]): row for row in of_kind if row.labels["size"] == "256"
        }
        for axes, points in ((by_size, sizes), (by_clients, clients)):
            ratios = [points[key].ratio for key in sorted(points)]
            # 0 B has no place on a logarithmic axis.
            places = [max(key, 0.5) for key in sorted(points)]
            axes.plot(places, ratios, marker=".", color=colour, label=tls)
    for axes, title in ((by_size, "bytes of the message"), (by_clients, "connections, 256 B")):
        axes.set_xscale("log", base=2 if axes is by_size else 10)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xlabel(title)
    by_size.set_ylim(bottom=0)
    by_size.set_title("round trips, ratio to picows (more is better)", fontsize=9)
    by_size.legend(fontsize=7, frameon=False)
    return figure


PICTURES: tuple[Callable[[Sequence[Row]], Any], ...] = (
    libraries,
    roundtrip,
    latency,
    fanout,
    mask,
    sweep,
)


def draw(rows: Sequence[Row], machine: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Write what these rows are enough for; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        figure = picture(rows)
        if figure is None:
            continue
        versions = machine["versions"]
        note = f"picows {versions['picows']}, CPython {machine['python']}, {machine['cpu']}"
        figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=6, color="#7f8c8d")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path = folder / f"{picture.__name__}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        yield path


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit((__doc__ or "").strip())
    content = json.loads(Path(sys.argv[1]).read_text())
    rows = [Row(**row) for row in content["rows"]]
    for path in draw(rows, content["machine"], Path(sys.argv[2])):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
