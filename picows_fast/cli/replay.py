"""The `replay` command: serves a feed file to every client that connects.

Each client gets the feed from its beginning, at its own pace: one that reads slowly is waited for,
so that what is queued for it stays below the connection's high watermark.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from picows_fast import (
    WSCloseCode,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

from .connection import CLOSE_TIMEOUT
from .feedfile import FeedError, FeedSummary, cut_off_note, read_feed, repeat_feed
from .live import format_bytes
from .publish import Subscriber, paced
from .runtime import CommandError


class _Session(Subscriber):
    """Publishes the feed to one client."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self._args = args
        self._task: asyncio.Task[None] | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self._task = asyncio.get_running_loop().create_task(self._publish(transport))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        super().on_ws_disconnected(transport)
        if self._task is not None:
            self._task.cancel()

    async def _publish(self, transport: WSTransport) -> None:
        try:
            file = self._args.file
            messages = (
                repeat_feed(file) if self._args.repeat else read_feed(file, allow_cut_off=True)
            )
            async for text in paced(messages, self._args.speed):
                if not self.writable.is_set():
                    await self.writable.wait()
                transport.send(WSMsgType.TEXT, text)
            transport.send_close(WSCloseCode.OK, b"end of feed")
        except FeedError as error:
            # The file was whole when it was checked: it has been changed since.
            print(error, file=sys.stderr)
            transport.send_close(WSCloseCode.INTERNAL_ERROR)


async def run(args: argparse.Namespace, summary: FeedSummary) -> int:
    """Run the command until it is cancelled."""

    def accept(request: WSUpgradeRequest) -> WSListener:
        return _Session(args)

    try:
        server = await ws_create_server(
            accept, args.host, args.port, enable_auto_close=True, close_timeout=CLOSE_TIMEOUT
        )
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from error
    try:
        if summary.is_cut_off:
            print(cut_off_note(args.file, summary), file=sys.stderr)
        port = server.sockets[0].getsockname()[1]
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(
            f"{args.file}: {summary.messages:,} messages, {format_bytes(summary.payload_bytes)}, "
            f"{summary.microseconds / 1e6:.1f} s\n"
            f"serving ws://{host}:{port}/ - Ctrl-C to stop",
            flush=True,
        )
        await asyncio.get_running_loop().create_future()
        return 0
    finally:
        server.close()
        server.close_clients()
        await server.wait_closed()
