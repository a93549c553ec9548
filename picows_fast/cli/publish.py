"""The server side that `demo` and `replay` share: one subscriber, and the clock of a feed."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterable

from picows_fast import WSListener, WSTransport

# Seconds of one turn of the event loop that publishing takes at most: between turns, connections
# are served, also those that the messages come in on.
_TURN = 0.0005


class Subscriber(WSListener):
    """A connection that is published to. What the client sends is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: WSTransport | None = None
        # Set while the connection takes more to send, and once it has ended.
        self.writable = asyncio.Event()
        self.writable.set()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


def speed(text: str) -> float | None:
    """argparse type: a factor above 0, or "max" for None."""
    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a speed is a number above 0 or 'max', got {text!r}")
    return value


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
