"""Deadlines that have passed: nobody is judged before what has arrived is read.

A callback that takes long, a stop (SIGSTOP) or a suspended machine let a deadline pass while the
answer to what it is for lies unread. So a timer does not judge: it makes an ``Overdue``, which lets
the loop read first, and has the stream ``read_now``, as other callbacks may come before the loop
does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = ["Overdue"]

# A loop looks for readable descriptors between its turns, and calls back for them behind what waits
# already: in the second turn from now, what one look found has been read.
_TURNS: Final = 2
# A peer that floods is judged in the end: after this many reads.
_MOST_TURNS: Final = 256


class _Readable(Protocol):
    def has_unread(self) -> bool: ...


class Overdue:
    """Calls ``judge`` once the stream has read what the operating system has for it.

    :param stream: what to read first; None: whatever one look at all descriptors finds
    :param turns: turns of the loop that it takes to make something of what was read
    """

    __slots__ = ("_handle", "_judge", "_loop", "_stream", "_turns", "_turns_left")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: _Readable | None,
        judge: Callable[[], Any],
        turns: int = _TURNS,
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._judge: Callable[[], Any] | None = judge
        self._turns = turns
        self._turns_left = _MOST_TURNS
        self._handle: asyncio.Handle | None = loop.call_soon(self._turn)

    def cancel(self) -> None:
        """Judge no more."""
        self._judge = self._stream = None
        if self._handle is not None:
            self._handle.cancel()

    def _turn(self) -> None:
        self._handle = None  # which holds this object, and would also when it has been run
        self._turns -= 1
        self._turns_left -= 1
        has_unread = self._turns_left > 0 and self._stream is not None and self._stream.has_unread()
        if self._turns > 0 or has_unread:
            self._handle = self._loop.call_soon(self._turn)
        elif self._judge is not None:
            judge = self._judge
            self._judge = self._stream = None
            judge()
