"""Round trips of 256 B on picows_fast's own loop: what its two ways of saving time are worth.

"one core": server and client of one library share a core, so the time of a round trip is the CPU
time of both; each library on the loop named. "two cores": the C reference serves, and blocks in the
kernel; the clients run on another core, ours with `busy_poll`, the others blocking as they do, but
for "C, spinning", which is what spinning can bring at most. "with a thread": as ours, in processes
that have made a thread, so that each wait has to let go of the interpreter. All are connected at
the same time, and take turns in slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

from . import slices
from .measuring import OURS, Case, Measure, Session, Settings
from .peers import REFERENCE
from .processes import cores, in_c, in_python

SIZE = 256
BUSY_POLL = 200e-6  # seconds

# contestant -> (library, loop)
CONTESTANTS = {
    OURS: (OURS, "own"),
    "C": (REFERENCE, ""),
    "C, spinning": (REFERENCE, "spinning"),
    "picows, uvloop": ("picows", "uvloop"),
    "picows, asyncio": ("picows", "asyncio"),
    "picows_fast, uvloop": (OURS, "uvloop"),
    "picows_fast, with a thread": (OURS, "own, threaded"),
}
QUICK = (OURS, REFERENCE, "picows, uvloop")


def pair(
    library: str, loop: str, one_core: bool, seconds: float = slices.SECONDS
) -> AbstractContextManager[Measure]:
    """A server and a client; `seconds` is how long a slice of them is."""
    core, other = cores()
    request = {"size": SIZE, "seconds": seconds}
    common = {
        "library": library,
        "loop": loop.split(",")[0],
        "threaded": "threaded" in loop,
        "listener": "cython",
        "code": "best",
        "tls": False,
    }
    if one_core and library != REFERENCE:
        server = in_python("server", core, **common)
    else:
        server = in_c("serve", core if one_core else other)
    if library == REFERENCE:
        spin = int(loop == "spinning")
        return slices.connected(
            server, lambda port: in_c("echo", core, spin=spin, port=port, **request)
        )
    busy_poll = BUSY_POLL if loop == "own" and not one_core else 0.0
    return slices.connected(
        server,
        lambda port: in_python("echo", core, busy_poll=busy_poll, port=port, **request, **common),
    )


def cases(settings: Settings) -> Iterator[Case]:
    for placed in ("one core", "two cores"):
        one_core = placed == "one core"
        names = [
            name
            for name, (library, loop) in CONTESTANTS.items()
            if name == OURS or not settings.peers or library in settings.peers
            if name in QUICK or not settings.quick
            if one_core or "threaded" not in loop
            if not one_core or loop != "spinning"
        ]
        yield Case(
            "latency",
            {"size": str(SIZE), "placed": placed, "listener": "cython"},
            "round trips/s",
            {name: Session(partial(pair, *CONTESTANTS[name], one_core)) for name in names},
            slices=slices.count(settings.seconds),
        )
