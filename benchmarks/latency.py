"""Round trips of 256 B on picows_fast's own loop: what its two ways of saving time are worth.

"one core": server and client of one library share a core, so the time of a round trip is the CPU
time of both; each library on the loop named. "two cores": the C reference serves, and blocks in the
kernel; the clients run on another core, ours with `busy_poll`, the others blocking as they do, but
for "C, spinning", which is what spinning can bring at most. "with a thread": as ours, in processes
that have made a thread, so that each wait has to let go of the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import OURS, Case, Measure, Settings
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


def measure(library: str, loop: str, busy_poll: float, one_core: bool, seconds: float) -> float:
    """Round trips a second."""
    core, other = cores()
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
    with server as serving:
        request = {"port": serving.answer()["port"], "size": SIZE, "seconds": seconds}
        if library == REFERENCE:
            client = in_c("echo", core, spin=int(loop == "spinning"), **request)
        else:
            client = in_python("echo", core, busy_poll=busy_poll, **request, **common)
        with client as requesting:
            answer = requesting.answer(seconds)
    return float(answer["count"] / answer["seconds"])


def cases(settings: Settings) -> Iterator[Case]:
    for placed in ("one core", "two cores"):
        one_core = placed == "one core"

        def bound(name: str, one_core: bool = one_core) -> Measure:
            library, loop = CONTESTANTS[name]
            busy_poll = BUSY_POLL if loop == "own" and not one_core else 0.0
            return lambda: measure(library, loop, busy_poll, one_core, settings.seconds)

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
            {name: bound(name) for name in names},
        )
