"""Opening handshakes: connections accepted, upgraded and closed per CPU second of the server.

The client is the C reference, on another core: it connects eight times, upgrades, and closes
without a CLOSE frame, again and again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from .measuring import Case, Settings, contestants
from .peers import CALLBACKS, STREAMS
from .processes import cores, in_c, in_python

SETTLED = 0.1  # seconds that the server has for the last connections' end


def measure(library: str, tls: bool, loop: str, seconds: float) -> float:
    """Handshakes per second of CPU time."""
    core, other = cores()
    with in_python("server", core, library=library, loop=loop, tls=tls, handler="idle") as serving:
        port = serving.answer()["port"]
        # What is made once, for the first connection, is not counted.
        with in_c("handshakes", other, tls, port=port, seconds=0.01) as client:
            client.answer()
        time.sleep(SETTLED)
        before = serving.ask("cpu")["cpu"]
        with in_c("handshakes", other, tls, port=port, seconds=seconds) as client:
            count = client.answer(seconds)["count"]
        time.sleep(SETTLED)
        after = serving.ask("cpu")["cpu"]
    return float(count / (after - before))


def cases(settings: Settings) -> Iterator[Case]:
    for tls in (False, True):
        for loop in ("uvloop",) if settings.quick else ("uvloop", "asyncio"):
            names = CALLBACKS if settings.quick else (*CALLBACKS, *STREAMS)
            yield Case(
                "accept",
                {"tls": "tls" if tls else "plain", "loop": loop},
                "handshakes/CPU s",
                contestants(settings, names, measure, tls=tls, loop=loop, seconds=settings.seconds),
            )
