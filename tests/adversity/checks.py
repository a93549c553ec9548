"""What is checked after every adversity: nothing stays behind, memory kept in its bound, a quiet
log.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ..support import live_timers

KIB = 1024
MIB = 1024 * KIB

# What the connections of an event loop share, made by the first of them: a buffer to receive in,
# and one to put frames together in.
LOOP_BUFFERS = 256 * KIB + MIB


class Leftovers:
    """Tasks, timers and descriptors that were not there when this was made: cheap enough for every
    cut.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.all_tasks()
        self._timers = len(live_timers(self._loop))
        self._descriptors = self._open_descriptors()

    @staticmethod
    def _open_descriptors() -> int:
        """Not counted: /dev/null. libuv keeps one for when there are no others, from a loop's first
        transport to the loop's end."""
        number = 0
        for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
            with contextlib.suppress(OSError):  # it was the one that read the folder
                number += os.readlink(f"/proc/self/fd/{name}") != os.devnull
        return number

    def found(self) -> list[Any]:
        tasks = {task for task in asyncio.all_tasks() if not task.done()} - self._tasks
        left: list[Any] = list(tasks - {asyncio.current_task()})
        timers = live_timers(self._loop)
        if len(timers) > self._timers:
            left += timers
        if not left and self._open_descriptors() > self._descriptors:
            left.append(f"{self._open_descriptors() - self._descriptors} descriptors")
        return left

    async def none(self, what: object = "") -> None:
        """Wait for the few turns that closing takes; fail if something is left then."""
        for turn in range(1000):
            if not self.found():
                return
            await asyncio.sleep(0 if turn < 50 else 0.002)
        raise AssertionError(f"{what}: left behind: {self.found()}")


@contextlib.asynccontextmanager
async def memory_below(peak: int, held: int) -> AsyncIterator[None]:
    """Fail if the body allocates more than `peak` bytes at once, or leaves more than `held` bytes.

    Counts what Python and the extension modules allocate in the whole process, the test's own peers
    included; neither the kernel's nor OpenSSL's buffers.
    """
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        highest = tracemalloc.get_traced_memory()[1] - before
        await asyncio.sleep(0.02)  # loops free what their transports held some turns later
        gc.collect()
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert highest <= peak, f"{highest} bytes were allocated at once"
    assert left <= held, f"{left} bytes stay allocated"


@contextlib.contextmanager
def log_below(
    caplog: pytest.LogCaptureFixture, level: int, *, record: int = logging.DEBUG
) -> Iterator[None]:
    """Fail if anything, the event loop included, is logged at `level` or above.

    What is logged at `record` and above is kept by pytest, errors and what they refer to included.
    """
    with caplog.at_level(record):
        yield
    loud = [entry for entry in caplog.records if entry.levelno >= level]
    assert [(entry.levelname, entry.getMessage()) for entry in loud] == []


def resident_bytes() -> int:
    """What the process occupies, OpenSSL's buffers included (Linux; elsewhere 0)."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
