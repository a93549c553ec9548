"""The `record` command: writes the TEXT messages of a connection to a feed file.

A recording that has no message leaves no file.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from picows_fast import WSMsgType, WSTransport

from .client import MessageListener, close, describe_end, open_connection, wait_end
from .feedfile import FeedWriter, utf8_size
from .live import LiveLine, format_bytes
from .runtime import CommandError

# Exit code: the server closed in order, but before the limit that was asked for.
CLOSED_EARLY = 3

# Seconds. If the process is killed, what came in so long before is lost.
_FLUSH_INTERVAL = 1.0


class _Recorder(MessageListener):
    """Writes each message as it comes, and knows when there are enough."""

    def __init__(self, writer: FeedWriter, limit: int | None) -> None:
        super().__init__()
        self.enough = asyncio.Event()
        self.payload_bytes = 0
        self.binary_messages = 0
        self._writer = writer
        self._limit = limit
        self._first: int | None = None

    def on_text(self, text: str) -> None:
        if self.enough.is_set():
            return
        now = time.perf_counter_ns()
        if self._first is None:
            self._first = now
        self._writer.write((now - self._first) // 1000, text)
        self.payload_bytes += utf8_size(text)
        if self._writer.messages == self._limit:
            self.enough.set()

    def on_binary(self, payload: bytes) -> None:
        self.binary_messages += 1


async def _show_progress(writer: FeedWriter, recorder: _Recorder) -> None:
    """Rewrite a line on a terminal for as long as it takes; nothing is shown elsewhere."""
    live = LiveLine(sys.stderr)
    if not live.is_terminal:
        return
    try:
        while True:
            live.show(f"{writer.messages:,} messages, {format_bytes(recorder.payload_bytes)}")
            await asyncio.sleep(live.interval)
    finally:
        live.end()


async def _flush(writer: FeedWriter, recorder: _Recorder, transport: WSTransport) -> None:
    while True:
        await asyncio.sleep(_FLUSH_INTERVAL)
        try:
            writer.flush()
        except OSError as error:
            recorder.fail(transport, error)
            return


def open_output(path: Path, *, replace: bool) -> FeedWriter:
    """The writer that `run` is given. CommandError if the file cannot be written, or exists."""
    try:
        return FeedWriter(path, replace=replace)
    except FileExistsError as error:
        raise CommandError(f"{error}; --force replaces it", 2) from error
    except OSError as error:
        raise _cannot_write(path, error, 2) from error


def _cannot_write(path: Path, error: OSError, exit_code: int = 1) -> CommandError:
    return CommandError(f"cannot write {path}: {error.strerror or error}", exit_code)


async def run(args: argparse.Namespace, writer: FeedWriter) -> int:
    """Run the command; 0 if a limit ended it, or a clean close if there is none.

    CLOSED_EARLY if a clean close came before the limit, 1 if the connection was lost.
    """
    recorder = _Recorder(writer, args.messages)
    transport, _ = await open_connection(args, lambda: recorder)
    ended = asyncio.ensure_future(wait_end(transport, recorder))
    enough = asyncio.ensure_future(recorder.enough.wait())
    others = [
        asyncio.ensure_future(_show_progress(writer, recorder)),
        asyncio.ensure_future(_flush(writer, recorder, transport)),
    ]
    try:
        for text in args.send:
            transport.send(WSMsgType.TEXT, text)
        await asyncio.wait(
            {ended, enough}, timeout=args.seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not ended.done() or args.messages == writer.messages:
            code = 0
        else:
            try:
                ended.result()
            except BrokenPipeError as error:
                raise _cannot_write(writer.path, error) from error
            code = _told(transport, args)
    finally:
        # From here on nothing more is written, also if closing is interrupted.
        recorder.enough.set()
        for task in others:
            task.cancel()
        try:
            await close(transport)
        finally:
            ended.cancel()
            enough.cancel()
            tasks: list[asyncio.Task[Any]] = [*others, ended, enough]
            await asyncio.gather(*tasks, return_exceptions=True)
            has_file = _complete(writer, recorder)
    return code if has_file else code or 1


def _told(transport: WSTransport, args: argparse.Namespace) -> int:
    """Say how the server has ended the connection; the exit code for it."""
    text, clean = describe_end(transport)
    code = 0 if clean else 1
    limits = [name for name in ("messages", "seconds") if getattr(args, name) is not None]
    if clean and limits:
        text += f", before --{limits[0]} was reached"
        code = CLOSED_EARLY
    print(text, file=sys.stderr)
    return code


def _complete(writer: FeedWriter, recorder: _Recorder) -> bool:
    """Finish the file and say what is in it. Returns whether there is one."""
    skipped = recorder.binary_messages
    if not writer.messages:
        writer.discard()
        came = (
            f"{skipped:,} binary messages came, which are not recorded" if skipped else "none came"
        )
        print(f"{writer.path}: not written, no TEXT messages ({came})", file=sys.stderr)
        return False
    try:
        writer.close()
    except OSError as error:
        raise _cannot_write(writer.path, error) from error
    print(
        f"{writer.path}: {writer.messages:,} messages, {format_bytes(recorder.payload_bytes)}"
        + (f" ({skipped:,} binary messages left out)" if skipped else ""),
        file=sys.stderr,
    )
    return True
