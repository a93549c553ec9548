"""Round trips in slices: contestants that are all connected take turns of 30 ms.

Owns: how long a slice is, how many make a measurement, what one slice of a client and server is,
and how a client waits for its end. A client that is not at its slice blocks, so that who shares the
core with it has it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from .measuring import Measure
from .processes import Process

SECONDS = 0.03  # of a slice: shorter than the speed of a shared machine stays what it is


def count(seconds: float) -> int:
    """How many slices make a measurement of so many seconds."""
    return max(1, round(seconds / SECONDS))


@contextlib.contextmanager
def connected(
    server: AbstractContextManager[Process],
    client: Callable[[int], AbstractContextManager[Process]],
) -> Iterator[Measure]:
    """Give what measures a slice, in round trips a second.

    `client` is called with the server's port; it answers when it is connected, and then to each
    command how many round trips it made, and in what time.
    """
    with server as serving, client(serving.answer()["port"]) as requesting:
        requesting.answer()

        def measure() -> float:
            answer = requesting.ask("echo")
            return float(answer["count"] / answer["seconds"])

        measure()  # what is made once is not counted
        yield measure


async def alarm(seconds: float) -> None:
    """Sleep without a timer of the loop.

    With one, each wait for a socket would set and clear a timer of the kernel's, which is no
    library's work, and nothing that the C reference does.
    """
    rung = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGALRM, rung.set)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    await rung.wait()
