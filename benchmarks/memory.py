"""Idle connections: resident bytes of the server's process for each of 2,000.

The clients are the C reference, in a process of their own. Ten connections are open before, so that
what is made once is not counted; Python's garbage is collected before each look.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import Case, Settings, contestants
from .peers import CALLBACKS, STREAMS
from .processes import cores, in_c, in_python

CONNECTIONS = 2000
BEFORE = 10


def measure(library: str, tls: bool, loop: str, connections: int) -> float:
    """Bytes for each connection."""
    core, other = cores()
    with in_python("server", core, library=library, loop=loop, tls=tls, handler="idle") as serving:
        port = serving.answer()["port"]
        with in_c("drain", other, tls, port=port, clients=BEFORE) as first:
            first.answer()
            before = serving.ask("usage")["rss"]
            with in_c("drain", other, tls, port=port, clients=connections) as clients:
                clients.answer(60)
                usage = serving.ask("usage")
    if usage["open"] != connections + BEFORE:
        raise RuntimeError(f"{library} has {usage['open']} connections open")
    return float((usage["rss"] - before) / connections)


def cases(settings: Settings) -> Iterator[Case]:
    for tls in (False, True):
        if settings.quick and tls:
            continue
        # One process holds still enough: rounds change a figure by less than a percent.
        yield Case(
            "memory",
            {
                "tls": "tls" if tls else "plain",
                "loop": "uvloop",
                "clients": str(settings.clients or CONNECTIONS),
            },
            "bytes/connection",
            contestants(
                settings,
                CALLBACKS if settings.quick else (*CALLBACKS, *STREAMS),
                measure,
                tls=tls,
                loop="uvloop",
                connections=settings.clients or CONNECTIONS,
            ),
            higher_is_better=False,
            rounds=min(settings.rounds, 1 if settings.quick else 3),
        )
