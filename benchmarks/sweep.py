"""No cliff: round trips of every size from 0 B to 16 MiB, and on 1 to 1,000 connections.

As `roundtrip`, both sides on one core. Not part of a run of everything: ``--only sweep``.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import Case, Settings
from .roundtrip import case

SIZES = (0, *(2**power for power in range(25)))
CONNECTIONS = (1, 3, 10, 30, 100, 300, 1000)
SIZE_ON_MANY = 256
PEERS = ("picows",)


def cases(settings: Settings) -> Iterator[Case]:
    sizes = SIZES[::4] if settings.quick else SIZES
    steps = [(size, 1) for size in sizes]
    steps += [(SIZE_ON_MANY, count) for count in CONNECTIONS]
    for tls in (False, True):
        for size, connections in dict.fromkeys(steps):
            labels = {
                "size": str(size),
                "clients": str(connections),
                "tls": "tls" if tls else "plain",
                "loop": "uvloop",
                "listener": "cython",
            }
            yield case(
                "sweep",
                labels,
                settings,
                PEERS,
                size=size,
                connections=connections,
                tls=tls,
                loop="uvloop",
                listener="cython",
                code="best",
            )
