"""The server side that `demo` and `replay` share: subscribers, the clock of a feed, TLS."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from picows_fast import WSTransport

from .connection import WritableListener

# Valid for loopback only and public, see the file.
CERTIFICATE = Path(__file__).with_name("loopback.pem")

# Seconds of one turn of the event loop that publishing takes at most: between turns, connections
# are served, also those that the messages come in on.
_TURN = 0.0005


class Subscriber(WritableListener):
    """A connection that is published to. What the client sends is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport


def loopback_context() -> ssl.SSLContext:
    """A server's context with the loopback certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


async def paced(messages: Iterable[tuple[int, str]], speed: float | None) -> AsyncIterator[str]:
    """Yield each text when it is due: at its time divided by `speed`, or at once for None.

    The schedule is absolute: a consumer that was held up gets what it missed without pause.
    """
    clock = time.perf_counter
    start = clock()
    turn_end = start + _TURN
    for microseconds, text in messages:
        now = clock()
        due = now if speed is None else start + microseconds / (1e6 * speed)
        if due > now:
            await asyncio.sleep(due - now)
            turn_end = clock() + _TURN
        elif now >= turn_end:
            await asyncio.sleep(0)
            turn_end = clock() + _TURN
        yield text
