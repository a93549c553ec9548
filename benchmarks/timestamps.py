"""What the kernel's times of arrival cost: round trips of 256 B with rx_timestamps, and without.

Server and client share a core, and both have it on or off, so that a round trip pays it twice. Ours
on its own loop.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import OURS, Case, Settings
from .roundtrip import measure

SIZE = 256
WITHOUT = "picows_fast, without"


def cases(settings: Settings) -> Iterator[Case]:
    for tls in (False, True):

        def one(code: str, tls: bool = tls) -> float:
            return measure(OURS, SIZE, tls, "own", "cython", code, settings.seconds)

        yield Case(
            "timestamps",
            {"size": str(SIZE), "tls": "tls" if tls else "plain", "listener": "cython"},
            "round trips/s",
            {
                OURS: lambda one=one: one("stamped"),  # type: ignore[misc]
                WITHOUT: lambda one=one: one("best"),  # type: ignore[misc]
            },
        )
