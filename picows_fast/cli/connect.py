"""The `connect` command: lines from stdin go out as TEXT messages, what comes in is printed.

Messages go to stdout, everything about the connection to stderr, so that the output can be piped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator

from picows_fast import WSAutoPingStrategy, WSFrame, WSMsgType, WSTransport
from picows_fast.layers.histogram import LatencyHistogram

from .client import (
    MAX_MESSAGE_SIZE,
    MessageListener,
    close,
    describe_end,
    open_connection,
    printable,
    wait_end,
)
from .live import format_bytes, format_duration, format_latency
from .plot import check_plot, draw_latency
from .runtime import CommandError

_CHUNK = 65536
_BINARY_SHOWN = 64


class _Console(MessageListener):
    """Prints what comes in, and the round-trip time of each auto-ping."""

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = sys.stdout.isatty()
        self._ping_number = 0
        # When each ping that has not been answered was sent, by its payload.
        self._pings: dict[bytes, int] = {}
        # How long frames had been in this machine's hands, where the kernel tells.
        self.age = LatencyHistogram()

    def on_text(self, text: str) -> None:
        print(printable(text) if self._is_terminal else text, flush=True)

    def on_binary(self, payload: bytes) -> None:
        more = " ..." if len(payload) > _BINARY_SHOWN else ""
        shown = payload[:_BINARY_SHOWN].hex(" ")
        print(f"[binary, {len(payload)} bytes] {shown}{more}", flush=True)

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        self._record_age(payload)
        super().on_ws_message(transport, msg_type, payload)

    def on_ws_control(self, transport: WSTransport, frame: WSFrame) -> None:
        self._record_age(frame)
        if frame.msg_type == WSMsgType.PING:
            note(f"ping from the peer, {frame.payload_size} bytes")
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.PONG:
            self._on_pong(frame)
        else:
            super().on_ws_control(transport, frame)

    def _record_age(self, frame: WSFrame) -> None:
        age = frame.age_ns()
        if age is not None:
            self.age.record(age)

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        self._ping_number += 1
        payload = b"%d" % self._ping_number
        self._pings[payload] = time.perf_counter_ns()
        transport.send_ping(payload)

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        if frame.msg_type != WSMsgType.PONG:
            return False
        self._on_pong(frame)
        return True

    def _on_pong(self, frame: WSFrame) -> None:
        sent = self._pings.get(frame.get_payload_as_bytes())
        if sent is None:
            note(f"pong from the peer, {frame.payload_size} bytes")
            return
        note(f"round trip {format_duration(time.perf_counter_ns() - sent)}")
        # Earlier pings need no answer of their own (RFC 6455 5.5.3).
        self._pings = {key: value for key, value in self._pings.items() if value > sent}


def note(text: str) -> None:
    """Say something about the connection."""
    print(f"* {text}", file=sys.stderr, flush=True)


async def _read_lines(descriptor: int) -> AsyncIterator[str]:
    """Yield the lines of a descriptor, without their ends, until its end.

    A thread reads: that works for terminals, pipes and files alike, and leaves the mode of a
    terminal alone that other programs share. It reads no further ahead than one chunk. It uses
    the descriptor because a thread that is in sys.stdin would hold its lock at exit.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    wanted = threading.Semaphore(1)

    def read() -> None:
        chunk = b"."
        while chunk:
            wanted.acquire()
            try:
                chunk = os.read(descriptor, _CHUNK)
            except OSError:
                # Closed, or taken away with its terminal: there is no more to come.
                chunk = b""
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:
                return  # The command has ended, and its loop with it.

    threading.Thread(target=read, name="stdin", daemon=True).start()
    number = 0
    rest: list[bytes] = []
    size = 0
    while chunk := await chunks.get():
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            number += 1
            yield _decode(b"".join(rest) + line, number)
            rest.clear()
            size = 0
        if tail:
            rest.append(tail)
            size += len(tail)
        if size > MAX_MESSAGE_SIZE:
            raise CommandError(f"standard input, line {number + 1}: too long")
        wanted.release()
    if rest:
        yield _decode(b"".join(rest), number + 1)


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise CommandError(f"standard input, line {number}: not valid UTF-8") from None


async def _send_lines(transport: WSTransport, listener: MessageListener) -> None:
    async for line in _read_lines(0):
        await listener.writable.wait()
        transport.send(WSMsgType.TEXT, line)


def _show_figures(args: argparse.Namespace, transport: WSTransport, listener: _Console) -> None:
    """What there was, in two lines, and the picture of it."""
    stats = transport.stats()
    received, sent = stats.received.total, stats.sent.total
    text = f"received {received.frames:,} frames, {format_bytes(received.payload_bytes)}; "
    text += f"sent {sent.frames:,} frames, {format_bytes(sent.payload_bytes)}"
    if stats.round_trip_smoothed_ns is not None:
        text += f"; round trip {format_duration(stats.round_trip_smoothed_ns)}, smoothed"
    note(text)
    if listener.age.count:
        note(f"from the kernel to this program: {format_latency(listener.age)}")
    if args.plot is not None:
        histograms = {"from the kernel": listener.age}
        drawn = draw_latency(args.plot, histograms, "Latency to the callback")
        note(f"plot: {args.plot if drawn else 'nothing to draw'}")


async def run(args: argparse.Namespace) -> int:
    """Run the command; 0 after a clean end, 1 if the connection was lost or ended in an error."""
    check_plot(args.plot)
    transport, listener = await open_connection(
        args,
        _Console,
        # The console answers pings itself: they are to be seen.
        enable_auto_pong=False,
        enable_auto_ping=args.ping,
        auto_ping_strategy=WSAutoPingStrategy.PING_PERIODICALLY,
        auto_ping_idle_timeout=args.ping_interval,
        rx_timestamps=True,
    )
    try:
        code = await _talk(args, transport, listener)
    except (CommandError, OSError):
        raise  # it is told in one line
    except BaseException:
        _show_figures(args, transport, listener)  # Ctrl-C: how one leaves
        raise
    _show_figures(args, transport, listener)
    return code


async def _talk(args: argparse.Namespace, transport: WSTransport, listener: _Console) -> int:
    sender = asyncio.ensure_future(_send_lines(transport, listener))
    ended = asyncio.ensure_future(wait_end(transport, listener))
    try:
        subprotocol = transport.subprotocol
        note("connected" + (f", subprotocol {printable(subprotocol)}" if subprotocol else ""))
        await asyncio.wait({sender, ended}, return_when=asyncio.FIRST_COMPLETED)
        if sender.done():
            sender.result()
            await asyncio.wait({ended}, timeout=None if args.wait == float("inf") else args.wait)
            if not ended.done():
                await close(transport)
                return 0
        ended.result()
        text, clean = describe_end(transport)
        note(text)
        return 0 if clean else 1
    finally:
        sender.cancel()
        if not ended.done():
            await close(transport)
        ended.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await ended
