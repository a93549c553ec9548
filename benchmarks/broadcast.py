"""Publishing to many clients: CPU time of the server for each message that a client gets.

picows_fast publishes to a channel of `layers.broadcast`; picows, which has no such thing, sends in
a loop over its transports, in Python and in Cython. The clients are the C reference, on another
core, and drop what they get.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import fanout
from .measuring import Case, Settings, contestants
from .peers import CALLBACKS

CLIENTS = (200, 1000, 5000)
TURNS = (1, 16)  # messages that one turn of the loop publishes


def cases(settings: Settings) -> Iterator[Case]:
    for clients in CLIENTS[:1] if settings.quick else CLIENTS:
        for messages in TURNS:
            for listener in ("cython", "python"):
                few = min(clients, settings.clients or clients)
                yield Case(
                    "broadcast",
                    {
                        "clients": str(few),
                        "messages": str(messages),
                        "tls": "plain",
                        "loop": "uvloop",
                        "listener": listener,
                        "code": "channel",
                    },
                    "CPU ns/message",
                    contestants(
                        settings,
                        CALLBACKS,
                        fanout.measure,
                        clients=few,
                        messages=messages,
                        tls=False,
                        loop="uvloop",
                        listener=listener,
                        code="channel",
                        seconds=settings.seconds,
                    ),
                    higher_is_better=False,
                )
