"""What a client that does not read costs the others: how old messages are when they read them.

One server publishes by `layers.broadcast`, in turns, to 99 clients that read (the C reference, on
another core) and, for our side of the ratio, to one more that does not. The channel conflates. The
clients compare the clock with the one that each message begins with.
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import OURS, Case, Settings
from .processes import cores, in_c, in_python

CLIENTS = 99
SIZE = 256
KEYS = 16
INTERVAL = 0.005  # seconds from turn to turn: the server rests in between
ALONE = "nobody stalled"
FRAME_SIZE = SIZE + 4


def measure(stalled: int, clients: int, messages: int, seconds: float, loop: str) -> float:
    """The age (ns) that 99 % of all messages did not exceed when a client had read them."""
    core, other = cores()
    with in_python(
        "server", core, library=OURS, loop=loop, tls=False, handler="idle", code="channel"
    ) as serving:
        port = serving.answer()["port"]
        with in_c(
            "drain", other, port=port, clients=clients + stalled, stalled=stalled, stamped=1
        ) as draining:
            draining.answer(30)
            published = serving.ask(
                "paced",
                seconds,
                size=SIZE,
                messages=messages,
                keys=KEYS,
                interval=INTERVAL,
                seconds=seconds,
                stalled=stalled,
            )
            if serving.ask("usage")["open"] != clients + stalled:
                raise RuntimeError("a client was lost")
            ages = draining.finish()
    if ages["count"] != published["messages"] * clients:
        raise RuntimeError(f"{ages['count']} of {published['messages'] * clients} messages came")
    if bool(published["waiting"]) != bool(stalled):
        raise RuntimeError("who stalls is not behind, or who reads is")
    if published["waiting"] > KEYS or published["waiting_bytes"] > KEYS * FRAME_SIZE:
        raise RuntimeError(f"{published['waiting_bytes']} bytes wait for {KEYS} keys")
    return float(ages["p99"])


def cases(settings: Settings) -> Iterator[Case]:
    for messages in (1, 16):

        def with_stalled(stalled: int, messages: int = messages) -> float:
            clients = min(CLIENTS, settings.clients or CLIENTS)
            return measure(stalled, clients, messages, settings.seconds, "uvloop")

        yield Case(
            "stalled",
            {
                "clients": str(min(CLIENTS, settings.clients or CLIENTS)),
                "messages": str(messages),
                "tls": "plain",
                "loop": "uvloop",
                "listener": "python",
                "code": "channel",
            },
            "p99 of the age, ns",
            {OURS: lambda f=with_stalled: f(1), ALONE: lambda f=with_stalled: f(0)},
            higher_is_better=False,
        )
