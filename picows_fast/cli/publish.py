"""The server side that `demo` and `replay` share: one subscriber, and the clock of a feed."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterable

from picows_fast import WSListener, WSTransport

# Messages published in one turn of the event loop, at most: between turns, connections are
# served, also those that the messages come in on.
_MESSAGES_A_TURN = 32


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
    start = time.perf_counter()
    turn = 0
    for microseconds, text in messages:
        if speed is not None:
            delay = start + microseconds / (1e6 * speed) - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
                turn = 0
        if turn == _MESSAGES_A_TURN:
            await asyncio.sleep(0)
            turn = 0
        turn += 1
        yield text
