"""500 connections in one process that get one small frame each in every turn of the loop.

What counts is the CPU time of the receiving process: asking which connections are ready, reading
each, calling its listener. It sleeps before each turn until all frames have arrived, which costs no
CPU time; the sender, on another core, is the same for all. The C reference is what the kernel
takes, and little else: most of it is the ACK that each read sends.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import OURS, Case, Measure, Settings
from .peers import REFERENCE
from .processes import cores, in_c, in_python

CONNECTIONS = 500
SIZE = 64
PAUSE = 0.01  # seconds

# contestant -> (library, loop)
CONTESTANTS = {
    OURS: (OURS, "own"),
    "C": (REFERENCE, ""),
    "picows, uvloop": ("picows", "uvloop"),
    "picows, asyncio": ("picows", "asyncio"),
    "picows_fast, uvloop": (OURS, "uvloop"),
}
QUICK = (OURS, REFERENCE, "picows, uvloop")


def measure(library: str, loop: str, seconds: float) -> float:
    """Frames per CPU second."""
    core, other = cores()
    common = {"listener": "cython", "code": "best", "tls": False}
    with in_python("turns_server", other, library=OURS, loop="own", size=SIZE, **common) as serving:
        request = {
            "port": serving.answer()["port"],
            "connections": CONNECTIONS,
            "pause": PAUSE,
            "seconds": seconds,
        }
        if library == REFERENCE:
            receiving = in_c("turns", core, **request)
        else:
            receiving = in_python("turns", core, library=library, loop=loop, **request, **common)
        with receiving as client:
            answer = client.answer(seconds)
    return float(answer["frames"] / answer["cpu"])


def cases(settings: Settings) -> Iterator[Case]:
    def bound(name: str) -> Measure:
        library, loop = CONTESTANTS[name]
        return lambda: measure(library, loop, max(settings.seconds, 0.5))

    names = [
        name
        for name, (library, _) in CONTESTANTS.items()
        if name == OURS or not settings.peers or library in settings.peers
        if name in QUICK or not settings.quick
    ]
    yield Case(
        "many",
        {"connections": str(CONNECTIONS), "size": str(SIZE), "listener": "cython"},
        "frames per CPU second",
        {name: bound(name) for name in names},
    )
