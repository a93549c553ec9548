"""Echo round trips: server and client of one library, in two processes on one core.

The time of a round trip is then the CPU time of both sides, and waking another core costs nothing.
The C reference is the floor: what the kernel takes, and little else.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import Case, Settings, contestants
from .peers import CALLBACKS, REFERENCE, STREAMS
from .processes import cores, in_c, in_python

SIZES = (256, 8192, 102_400, 1_048_576)
LOOPS = ("uvloop", "asyncio", "own")  # "own": ours on picows_fast.loop, peers on uvloop


def measure(
    library: str,
    size: int,
    tls: bool,
    loop: str,
    listener: str,
    code: str,
    seconds: float,
    connections: int = 1,
) -> float:
    """Round trips a second."""
    core, _ = cores()
    common = {"library": library, "loop": loop, "listener": listener, "code": code, "tls": tls}
    if library == REFERENCE:
        server = in_c("serve", core, tls)
    else:
        server = in_python("server", core, **common)
    with server as serving:
        port = serving.answer()["port"]
        if library == REFERENCE:
            client = in_c("echo", core, tls, port=port, size=size, seconds=seconds)
        else:
            client = in_python(
                "echo",
                core,
                port=port,
                size=size,
                seconds=seconds,
                connections=connections,
                **common,
            )
        with client as requesting:
            answer = requesting.answer(seconds)
    return float(answer["count"] / answer["seconds"])


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
                    if (listener, code) == ("python", "best"):
                        names.extend(STREAMS)
                    yield Case(
                        "roundtrip",
                        {
                            "size": str(size),
                            "tls": "tls" if tls else "plain",
                            "loop": loop,
                            "listener": listener,
                            "code": code,
                        },
                        "round trips/s",
                        contestants(
                            settings,
                            names,
                            measure,
                            size=size,
                            tls=tls,
                            loop=loop,
                            listener=listener,
                            code=code,
                            seconds=settings.seconds,
                        ),
                    )
