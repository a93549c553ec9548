"""The `record` command: writes the TEXT messages of a connection to a feed file."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from picows_fast import WSMsgType

from .client import MessageListener, close, describe_end, open_connection, wait_end
from .feedfile import FeedWriter, utf8_size
from .live import LiveLine, format_bytes
from .runtime import CommandError


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


async def run(args: argparse.Namespace) -> int:
    """Run the command; 0 if a limit or a clean close ended it, 1 if the connection was lost."""
    try:
        writer = FeedWriter(args.output)
    except OSError as error:
        raise CommandError(f"cannot write {args.output}: {error.strerror or error}", 2) from error
    recorder = _Recorder(writer, args.messages)
    try:
        transport, _ = await open_connection(args, lambda: recorder)
    except BaseException:
        writer.discard()
        raise
    ended = asyncio.ensure_future(wait_end(transport, recorder))
    enough = asyncio.ensure_future(recorder.enough.wait())
    progress = asyncio.ensure_future(_show_progress(writer, recorder))
    try:
        for text in args.send:
            transport.send(WSMsgType.TEXT, text)
        await asyncio.wait(
            {ended, enough}, timeout=args.seconds, return_when=asyncio.FIRST_COMPLETED
        )
        recorder.enough.set()
        if not ended.done():
            return 0
        ended.result()
        text, clean = describe_end(transport)
        if not clean:
            print(text, file=sys.stderr)
        return 0 if clean or args.messages == writer.messages else 1
    finally:
        # From here on nothing more is written, also if closing is interrupted.
        recorder.enough.set()
        progress.cancel()
        try:
            await close(transport)
        finally:
            ended.cancel()
            enough.cancel()
            await asyncio.gather(progress, ended, enough, return_exceptions=True)
            _complete(writer, recorder)


def _complete(writer: FeedWriter, recorder: _Recorder) -> None:
    try:
        writer.close()
    except OSError as error:
        raise CommandError(f"cannot write {writer.path}: {error.strerror or error}") from error
    skipped = recorder.binary_messages
    print(
        f"{writer.path}: {writer.messages:,} messages, {format_bytes(recorder.payload_bytes)}"
        + (f" ({skipped:,} binary messages left out)" if skipped else ""),
        file=sys.stderr,
    )
