"""Cases, turns and ratios: how contestants are compared. Knows no workload and no library.

A case is one line of a table: its contestants take turns, in an order that is turned round every
time, and what counts is the ratio of two that ran in the same round. The median of those ratios is
quoted, with the lowest and the highest.

Where the machine's speed moves faster than a measurement is made, a round is cut into slices:
sessions are opened at its beginning, stay, and take turns; the median of its slices is what counts.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

OURS = "picows_fast"

T = TypeVar("T")
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


@dataclass(frozen=True)
class Session:
    """A contestant that is opened for each round, and measured once in each of its slices."""

    open: Callable[[], AbstractContextManager[Measure]]


@dataclass
class Case:
    """What is compared once. The first contestant is ours."""

    workload: str
    labels: dict[str, str]
    unit: str
    contestants: Mapping[str, Measure | Session]
    higher_is_better: bool = True
    slices: int = 1
    """Turns of each contestant in a round."""
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

    def give_up(name: str, error: Exception) -> None:
        del values[name]
        kind = "skipped" if isinstance(error, UnavailableError) else "FAILED"
        say(f"{kind}: {what}, {name}: {error}")

    for number in range(rounds):
        taken: dict[str, list[float]] = {name: [] for name in values}
        with contextlib.ExitStack() as stack:
            measures: dict[str, Measure] = {}
            for turn in range(number, number + case.slices):
                for name in list(taken) if turn % 2 == 0 else reversed(taken):
                    if name not in values:
                        continue
                    progress.show(f"{what}: {name}, {number + 1}/{rounds}")
                    try:
                        if name not in measures:
                            measures[name] = _opened(case.contestants[name], stack)
                        taken[name].append(measures[name]())
                    except (UnavailableError, RuntimeError) as error:
                        give_up(name, error)
                        if name == OURS:
                            return []
        for name in taken:
            if name in values:
                values[name].append(statistics.median(taken[name]))
            progress.step()
    ours = values.pop(OURS)
    if not values:
        return [_row(case, "", ours, ours)]
    return [_row(case, name, ours, theirs) for name, theirs in values.items()]


def _opened(contestant: Measure | Session, stack: contextlib.ExitStack) -> Measure:
    if isinstance(contestant, Session):
        return stack.enter_context(contestant.open())
    return contestant


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
    settings: Settings, names: Sequence[str], measure: Callable[..., T], **arguments: Any
) -> dict[str, Callable[[], T]]:
    """Ours and those of the peers that are wanted; `measure` is called with the name first."""

    def bound(name: str) -> Callable[[], T]:
        return lambda: measure(name, **arguments)

    wanted = [name for name in names if not settings.peers or name in settings.peers]
    return {name: bound(name) for name in (OURS, *(name for name in wanted if name != OURS))}
