"""One server that sends to many clients, turn by turn: CPU time for each delivered message.

The clients are the C reference, on another core, and drop what they get. `code` says how the server
sends: "same" is send() for each client and message; "best" puts what one turn sends to a client
between cork() and uncork(); "coalesce" is send() with the setting that joins a turn's frames by
itself; "channel" publishes by picows_fast.layers.broadcast. A peer that has none of them always
sends the plain way; the streams use their broadcast().
"""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import Case, Settings, contestants
from .peers import CALLBACKS, STREAMS
from .processes import cores, in_c, in_python

CLIENTS = 200
SIZE = 256


def measure(
    library: str,
    clients: int,
    messages: int,
    tls: bool,
    loop: str,
    listener: str,
    code: str,
    seconds: float,
) -> float:
    """Nanoseconds of CPU for each message that a client gets."""
    core, other = cores()
    with in_python(
        "server",
        core,
        library=library,
        loop=loop,
        tls=tls,
        handler="idle",
        listener=listener,
        code=code,
    ) as serving:
        port = serving.answer()["port"]
        with in_c("drain", other, tls, port=port, clients=clients) as draining:
            draining.answer(30)
            sent = serving.ask("fanout", seconds, size=SIZE, messages=messages, seconds=seconds)
            if serving.ask("usage")["open"] != clients:
                raise RuntimeError(f"{library} lost clients")
            received = draining.finish()["bytes"]
    if received > sent["messages"] * (SIZE + 4 + 512):
        raise RuntimeError(f"{library}: {received} bytes for {sent['messages']} messages")
    return float(sent["cpu"] / sent["messages"] * 1e9)


def cases(settings: Settings) -> Iterator[Case]:
    # One client shows what sixteen frames to one peer cost, without the others' caches.
    for clients, messages in ((CLIENTS, 1), (CLIENTS, 16), (1, 16)):
        for tls in (False,) if settings.quick else (False, True):
            for code in ("same", "best", "coalesce"):
                if messages == 1 and code != "same":
                    continue
                if settings.quick and code == "coalesce":
                    continue
                is_plain = code == "same" and not settings.quick
                yield Case(
                    "fanout",
                    {
                        "clients": str(min(clients, settings.clients or clients)),
                        "messages": str(messages),
                        "tls": "tls" if tls else "plain",
                        "loop": "uvloop",
                        "listener": "cython",
                        "code": code,
                    },
                    "CPU ns/message",
                    contestants(
                        settings,
                        (*CALLBACKS, *STREAMS) if is_plain else CALLBACKS,
                        measure,
                        clients=min(clients, settings.clients or clients),
                        messages=messages,
                        tls=tls,
                        loop="uvloop",
                        listener="cython",
                        code=code,
                        seconds=settings.seconds,
                    ),
                    higher_is_better=False,
                )
