"""Echo round trips: server and client of one library, in two processes on one core.

The time of a round trip is then the CPU time of both sides, and waking another core costs nothing.
The C reference is the floor: what the kernel takes, and little else. The pairs of all libraries are
connected at the same time, and take turns in slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from . import slices
from .measuring import Case, Measure, Session, Settings, contestants
from .peers import BARE, CALLBACKS, REFERENCE, STREAMS
from .processes import cores, in_c, in_python

SIZES = (256, 8192, 102_400, 1_048_576)
BARE_SIZE = 102_400  # bytes; the kernel takes such messages as a whole
LOOPS = ("uvloop", "asyncio", "own")  # "own": ours on picows_fast.loop, peers on uvloop


def pair(
    library: str,
    size: int,
    tls: bool,
    loop: str,
    listener: str,
    code: str,
    seconds: float = slices.SECONDS,
    connections: int = 1,
) -> AbstractContextManager[Measure]:
    """A server and a client; `seconds` is how long a slice of them is."""
    core, _ = cores()
    request = {"size": size, "seconds": seconds}
    if library == REFERENCE:
        return slices.connected(
            in_c("serve", core, tls), lambda port: in_c("echo", core, tls, port=port, **request)
        )
    request["connections"] = connections
    common = {"library": library, "loop": loop, "listener": listener, "code": code, "tls": tls}
    return slices.connected(
        in_python("server", core, **common),
        lambda port: in_python("echo", core, port=port, **request, **common),
    )


def case(
    workload: str, labels: dict[str, str], settings: Settings, names: Sequence[str], **pairs: Any
) -> Case:
    """Compare pairs; `pairs` is what `pair` is called with."""
    opened = contestants(settings, names, pair, **pairs)
    return Case(
        workload,
        labels,
        "round trips/s",
        {name: Session(one) for name, one in opened.items()},
        slices=slices.count(settings.seconds),
    )


def cases(settings: Settings) -> Iterator[Case]:
    for tls in (False, True):
        for loop in LOOPS[:1] if settings.quick else LOOPS:
            for size in SIZES[:2] if settings.quick else SIZES:
                for listener, code in (("cython", "best"), ("cython", "same"), ("python", "best")):
                    if settings.quick and (listener, code) != ("cython", "best"):
                        continue
                    if loop == "own" and (listener, code) != ("cython", "best"):
                        continue
                    # Code matters little beside the copying of large messages.
                    if code == "same" and size > SIZES[1]:
                        continue
                    names = [*CALLBACKS]
                    if (listener, code) == ("cython", "best"):
                        names.append(REFERENCE)
                        if not tls and size <= BARE_SIZE:
                            names.append(BARE)
                    if (listener, code) == ("python", "best"):
                        names.extend(STREAMS)
                    labels = {
                        "size": str(size),
                        "tls": "tls" if tls else "plain",
                        "loop": loop,
                        "listener": listener,
                        "code": code,
                    }
                    yield case(
                        "roundtrip",
                        labels,
                        settings,
                        names,
                        size=size,
                        tls=tls,
                        loop=loop,
                        listener=listener,
                        code=code,
                    )
