"""Cases, turns and ratios: how contestants are compared. Knows no workload and no library.

A case is one line of a table: its contestants take turns, in an order that is turned round every
time, and what counts is the ratio of two that ran in the same round. The median of those ratios is
quoted, with the lowest and the highest.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "picows_fast"

Measure = Callable[[], float]


class UnavailableError(Exception):
    """A case or contestant cannot be measured here; the text says what is missing."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    quick: bool = False
    rounds: int = 5
    seconds: float = 0.5
    """Of one measurement."""
    peers: tuple[str, ...] = ()
    """Only these; none named: all."""
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Only cases whose labels have one of these values."""
    clients: int | None = None
    """At most so many; None: as many as the workload says."""

    def wants(self, labels: dict[str, str]) -> bool:
        return all(labels[key] in values for key, values in self.where.items() if key in labels)


@dataclass
class Case:
    """What is compared once. The first contestant is ours."""

    workload: str
    labels: dict[str, str]
    unit: str
    contestants: dict[str, Measure]
    higher_is_better: bool = True
    rounds: int | None = None
    """Instead of the settings' number, where one round says it all."""


@dataclass(frozen=True)
class Row:
    """Ours against one peer."""

    workload: str
    labels: dict[str, str]
    unit: str
    higher_is_better: bool
    peer: str
    ours: float
    theirs: float
    ratio: float
    """Median of ours / theirs, pair by pair."""
    lowest: float
    highest: float
    pairs: int


class Progress:
    """One line on standard error, if that is a terminal; otherwise nothing."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._visible = sys.stderr.isatty()

    def show(self, what: str) -> None:
        if self._visible:
            left = ""
            if self._done:
                seconds = (time.monotonic() - self._start) / self._done * (self._total - self._done)
                left = f", about {seconds / 60:.1f} min left"
            text = f"[{self._done}/{self._total}{left}] {what}"
            print(f"\r\033[K{text[:110]}", end="", file=sys.stderr, flush=True)

    def step(self) -> None:
        self._done += 1

    def clear(self) -> None:
        if self._visible:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def describe(labels: dict[str, str]) -> str:
    return " ".join(labels.values())


def run(
    case: Case, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> list[Row]:
    """Measure a case; gives a row for each peer.

    A contestant that is unavailable or fails is left out, and `say` tells why.
    """
    values: dict[str, list[float]] = {name: [] for name in case.contestants}
    rounds = case.rounds or settings.rounds
    what = f"{case.workload} {describe(case.labels)}"
    for turn in range(rounds):
        names = list(values)
        for name in names if turn % 2 == 0 else reversed(names):
            if name in values:
                progress.show(
                    f"{case.workload} {describe(case.labels)}: {name}, {turn + 1}/{rounds}"
                )
                try:
                    values[name].append(case.contestants[name]())
                except (UnavailableError, RuntimeError) as error:
                    del values[name]
                    kind = "skipped" if isinstance(error, UnavailableError) else "FAILED"
                    say(f"{kind}: {what}, {name}: {error}")
                    if name == OURS:
                        return []
            progress.step()
    ours = values.pop(OURS)
    if not values:
        return [_row(case, "", ours, ours)]
    return [_row(case, name, ours, theirs) for name, theirs in values.items()]


def _row(case: Case, peer: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True) if other]
    return Row(
        workload=case.workload,
        labels=case.labels,
        unit=case.unit,
        higher_is_better=case.higher_is_better,
        peer=peer,
        ours=statistics.median(ours),
        theirs=statistics.median(theirs),
        ratio=statistics.median(ratios) if ratios else float("nan"),
        lowest=min(ratios, default=float("nan")),
        highest=max(ratios, default=float("nan")),
        pairs=len(ratios),
    )


def contestants(
    settings: Settings, names: Sequence[str], measure: Callable[..., float], **arguments: Any
) -> dict[str, Measure]:
    """Ours and those of the peers that are wanted; `measure` is called with the name first."""

    def bound(name: str) -> Measure:
        return lambda: measure(name, **arguments)

    wanted = [name for name in names if not settings.peers or name in settings.peers]
    return {name: bound(name) for name in (OURS, *(name for name in wanted if name != OURS))}
