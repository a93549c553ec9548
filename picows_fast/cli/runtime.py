"""What every command runs on: the event loop, Ctrl-C, and the errors a user gets to read.

Knows nothing of WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import signal
from collections.abc import Coroutine
from typing import Any, Final

from picows_fast import new_event_loop

LOOP_NAMES: Final = ("uvloop", "asyncio", "picows_fast")

# What a shell reports for a program that a signal ended: 128 + its number.
INTERRUPTED = 128 + signal.SIGINT


class CommandError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def default_loop() -> str:
    """The loop a command uses if it is not told: uvloop where it is installed."""
    return "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A new event loop, one of LOOP_NAMES. CommandError if uvloop is not installed."""
    if name == "asyncio":
        return asyncio.new_event_loop()
    if name == "picows_fast":
        return new_event_loop()
    try:
        import uvloop
    except ImportError:
        raise CommandError("uvloop is not installed: pip install 'uvloop>=0.19'", 2) from None
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run_command(command: Coroutine[Any, Any, int], loop_name: str = "asyncio") -> int:
    """Run a command on a new loop; return its exit code.

    SIGINT and SIGTERM cancel the command, which closes what it opened on the way out; the exit
    code then is 128 plus the signal's number, unless the command takes the cancellation for a
    normal end and returns a code itself. A second signal cancels the closing, too.
    """
    try:
        loop = new_loop(loop_name)
    except CommandError:
        command.close()
        raise
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        task.cancel()

    try:
        task = loop.create_task(command)
        for number in (signal.SIGINT, signal.SIGTERM):
            # Loops that cannot do it leave Ctrl-C to KeyboardInterrupt, as Python does anyway.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, functools.partial(on_signal, number))
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not signals:
                raise
            return 128 + signals[0]
    finally:
        _finish(loop)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs, wait for it, close the loop."""
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
