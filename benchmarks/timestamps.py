"""What the kernel's times of arrival cost: round trips of 256 B with rx_timestamps, and without.

Server and client share a core, and both have it on or off, so that a round trip pays it twice. Ours
on its own loop. The C reference with and without them, by `recvmsg` and `recv`: what the kernel
takes for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

from . import slices
from .measuring import OURS, Case, Measure, Session, Settings
from .processes import cores, in_c
from .roundtrip import pair

SIZE = 256
WITHOUT = "picows_fast, without"


def reference(stamps: bool) -> AbstractContextManager[Measure]:
    """A server and a client of the C reference."""
    core, _ = cores()
    options = {"stamps": int(stamps)}
    request = {"size": SIZE, "seconds": slices.SECONDS, **options}
    return slices.connected(
        in_c("serve", core, **options), lambda port: in_c("echo", core, port=port, **request)
    )


def cases(settings: Settings) -> Iterator[Case]:
    for tls in (False, True):
        contestants = {
            OURS: Session(partial(pair, OURS, SIZE, tls, "own", "cython", "stamped")),
            WITHOUT: Session(partial(pair, OURS, SIZE, tls, "own", "cython", "best")),
        }
        if not tls:
            contestants["C"] = Session(partial(reference, True))
            contestants["C, without"] = Session(partial(reference, False))
        yield Case(
            "timestamps",
            {"size": str(SIZE), "tls": "tls" if tls else "plain", "listener": "cython"},
            "round trips/s",
            contestants,
            slices=slices.count(settings.seconds),
        )
