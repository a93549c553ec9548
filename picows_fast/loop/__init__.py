"""asyncio's own event loop with a selector that calls picows_fast's connections in C and can spin.

Owns: making such a loop and running a program on it. What the selector does is in ``selector``; the
loop itself is :class:`asyncio.SelectorEventLoop`, whose ``stop`` tells the selector, too.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
import warnings
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

if sys.platform == "linux":
    from .selector import LoopSelector

    class _EventLoop(asyncio.SelectorEventLoop):
        """asyncio's, and the selector need not look whether it was stopped."""

        _selector: LoopSelector

        def stop(self) -> None:
            super().stop()
            self._selector.interrupt()


__all__ = ["new_event_loop", "run"]

T = TypeVar("T")


def new_event_loop(*, busy_poll: float = 0.0) -> asyncio.AbstractEventLoop:
    """Return a new event loop; usable as the ``loop_factory`` of :class:`asyncio.Runner`.

    On Linux it is an :class:`asyncio.SelectorEventLoop` whose selector calls picows_fast's own
    connections while it waits, without handles. Elsewhere it is asyncio's default loop, and a
    RuntimeWarning says so.

    :param busy_poll: seconds to spin before the loop blocks: a core is busy for as long, and what
        arrives meanwhile needs no wake-up. 0: no spinning
    :raises TypeError, ValueError: busy_poll is not a finite number that is not negative
    """
    return _new_event_loop(busy_poll)


def run(main: Coroutine[Any, Any, T], *, busy_poll: float = 0.0, debug: bool | None = None) -> T:
    """Run a coroutine on a loop of :func:`new_event_loop`, otherwise like :func:`asyncio.run`.

    :param busy_poll: seconds to spin before the loop blocks, as in :func:`new_event_loop`
    :param debug: whether asyncio's debug mode is on; None: as the environment says
    :raises RuntimeError: an event loop runs in this thread
    :raises TypeError, ValueError: an argument is not valid
    """
    if not asyncio.iscoroutine(main):
        raise TypeError(f"main must be a coroutine, got {type(main).__name__}")
    try:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("picows_fast.run() cannot be called while an event loop runs")
        loop = _new_event_loop(busy_poll)
    except BaseException:
        main.close()
        raise
    if sys.version_info >= (3, 11):
        with asyncio.Runner(debug=debug, loop_factory=lambda: loop) as runner:
            return runner.run(main)
    return _run_until_complete(loop, main, debug)


def _new_event_loop(busy_poll: float) -> asyncio.AbstractEventLoop:
    if isinstance(busy_poll, bool) or not isinstance(busy_poll, (int, float)):
        raise TypeError(f"busy_poll must be a number of seconds, got {type(busy_poll).__name__}")
    if not math.isfinite(busy_poll) or busy_poll < 0:
        raise ValueError(f"busy_poll must be finite and not negative, got {busy_poll}")
    if sys.platform != "linux":
        warnings.warn(
            "picows_fast's event loop needs epoll, which this platform does not have; "
            "asyncio's default loop is used",
            RuntimeWarning,
            stacklevel=3,  # whoever called new_event_loop or run
        )
        return asyncio.new_event_loop()
    selector = LoopSelector(busy_poll=busy_poll)
    try:
        # A selector by its interface: an extension type cannot derive from BaseSelector.
        loop = _EventLoop(cast(selectors.BaseSelector, selector))
    except BaseException:
        selector.close()
        raise
    selector.attach(loop)
    return loop


def _run_until_complete(
    loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, T], debug: bool | None
) -> T:
    """What asyncio.run does, for Python 3.10, which has no Runner."""
    try:
        asyncio.set_event_loop(loop)
        if debug is not None:
            loop.set_debug(debug)
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks) if tasks else asyncio.sleep(0))
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "unhandled exception while run() ends",
                    "exception": task.exception(),
                    "task": task,
                }
            )
