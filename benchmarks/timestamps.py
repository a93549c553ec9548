"""What the kernel's times of arrival cost: round trips of 256 B with rx_timestamps, and without.

Server and client share a core, and both have it on or off, so that a round trip pays it twice. Ours
on its own loop. The C reference with and without them, by `recvmsg` and `recv`: what the kernel
takes for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import OURS, Case, Measure, Settings
from .processes import cores, in_c
from .roundtrip import measure

SIZE = 256
WITHOUT = "picows_fast, without"


def reference(stamps: bool, seconds: float) -> float:
    """Round trips a second of the C reference."""
    core, _ = cores()
    with in_c("serve", core, stamps=int(stamps)) as serving:
        port = serving.answer()["port"]
        with in_c(
            "echo", core, port=port, size=SIZE, seconds=seconds, stamps=int(stamps)
        ) as client:
            answer = client.answer(seconds)
    return float(answer["count"] / answer["seconds"])


def cases(settings: Settings) -> Iterator[Case]:
    for tls in (False, True):

        def one(code: str, tls: bool = tls) -> float:
            return measure(OURS, SIZE, tls, "own", "cython", code, settings.seconds)

        contestants: dict[str, Measure] = {
            OURS: lambda one=one: one("stamped"),  # type: ignore[misc]
            WITHOUT: lambda one=one: one("best"),  # type: ignore[misc]
        }
        if not tls:
            contestants["C"] = lambda: reference(True, settings.seconds)
            contestants["C, without"] = lambda: reference(False, settings.seconds)
        yield Case(
            "timestamps",
            {"size": str(SIZE), "tls": "tls" if tls else "plain", "listener": "cython"},
            "round trips/s",
            contestants,
        )
