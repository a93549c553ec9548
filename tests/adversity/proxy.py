"""A TCP proxy that does to a connection what networks and dying machines do, at the byte the test
names.

It knows nothing of TLS or WebSocket, so that whatever is cut, is cut below them. It runs in the
loop of the test, between two real endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CUTS = ("fin", "reset", "half")


@dataclass
class Flow:
    """What happens to one direction, and what has happened.

    `cut_at`: after this many bytes the connection is cut. `cut`: "fin" ends both endpoints' streams
    in order, "reset" resets both, "half" ends this direction only. `piece`: bytes of one write at
    most; a turn of the loop, or `pause` seconds, lies between two. `hold_at`: bytes from there on
    wait for `hold`, the end for `hold_end`. `join_at`: bytes from there on are kept until the
    sender ends its stream, and leave in one piece with the end. `stall_at`: after this many bytes
    nothing is read any more.
    """

    cut_at: int | None = None
    cut: str = "fin"
    piece: int | None = None
    pause: float = 0
    hold_at: int = 0
    hold: asyncio.Event | None = None
    hold_end: asyncio.Event | None = None
    join_at: int | None = None
    stall_at: int | None = None

    #: what was passed on
    forwarded: bytearray = field(default_factory=bytearray)
    #: the direction's end was passed on, or the connection was cut
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Passage:
    """One connection through the proxy."""

    up: Flow
    down: Flow
    client: socket.socket
    server: socket.socket
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class FaultyProxy:
    """Passes connections on to an address. Use with ``async with``; `url` is where it listens.

    `script(number)` gives the flows (from the client, from the server) of each connection.
    """

    def __init__(
        self,
        target: tuple[str, int],
        script: Callable[[int], tuple[Flow, Flow]] = lambda number: (Flow(), Flow()),
        *,
        scheme: str = "ws",
    ) -> None:
        self.script = script
        self.passages: list[Passage] = []
        self._target = target
        self._scheme = scheme
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultyProxy:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.url = f"{self._scheme}://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._spawn(self._accept())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listening.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listening)
            task = self._spawn(self._pass(client))
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # What failed stays, for __aexit__ to raise.
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    async def _pass(self, client: socket.socket) -> None:
        up, down = self.script(len(self.passages))
        server = socket.socket()
        passage = Passage(up, down, client, server)
        self.passages.append(passage)
        with client, server:
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(server, self._target)
            pumps = {
                asyncio.ensure_future(_pump(up, client, server)),
                asyncio.ensure_future(_pump(down, server, client)),
            }
            try:
                await self._watch(passage, pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                passage.up.ended.set()
                passage.down.ended.set()
        passage.is_over.set()

    async def _watch(self, passage: Passage, pumps: set[asyncio.Task[str]]) -> None:
        running = pumps
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            ends = {pump.result() for pump in done}
            if "reset" in ends:
                for sock in (passage.client, passage.server):
                    reset_on_close(sock)
                return
            if "fin" in ends:
                for pump in running:
                    pump.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await asyncio.gather(_finish(passage.client), _finish(passage.server))
                return


def reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _finish(sock: socket.socket) -> None:
    """Send FIN, and read on until the other end's: unread bytes would turn it into a reset."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while await asyncio.get_running_loop().sock_recv(sock, 65536):
            pass


async def _pump(flow: Flow, source: socket.socket, sink: socket.socket) -> str:
    """Pass bytes on until the direction ends. Returns "end", or how the connection is to be cut."""
    loop = asyncio.get_running_loop()
    kept = b""
    try:
        while flow.cut_at is None or len(flow.forwarded) < flow.cut_at:
            if flow.stall_at is not None and len(flow.forwarded) >= flow.stall_at:
                await asyncio.Event().wait()
            data = await loop.sock_recv(source, 65536)
            if not data:
                break
            if flow.cut_at is not None:
                data = data[: flow.cut_at - len(flow.forwarded)]
            if flow.join_at is not None:
                free = max(flow.join_at - len(flow.forwarded), 0)
                data, kept = data[:free], kept + data[free:]
            await _forward(flow, data, sink)
        else:
            if flow.cut != "half":
                return flow.cut
        if flow.hold_end is not None:
            await flow.hold_end.wait()
        await _forward(flow, kept, sink)
        sink.shutdown(socket.SHUT_WR)
        flow.ended.set()
        if flow.cut_at is not None:
            while await loop.sock_recv(source, 65536):
                pass
    except OSError:
        # One endpoint reset the connection, or is gone: so it is for the other.
        return "reset"
    return "end"


async def _forward(flow: Flow, data: bytes, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data:
        if flow.hold is not None and not flow.hold.is_set():
            free = flow.hold_at - len(flow.forwarded)
            if free <= 0:
                await flow.hold.wait()
                free = len(data)
        else:
            free = len(data)
        piece = data[: min(free, flow.piece or free)]
        # Counted first: once it is sent, the receiver may be quicker than this task.
        flow.forwarded += piece
        await loop.sock_sendall(sink, piece)
        data = data[len(piece) :]
        if flow.piece is not None:
            await asyncio.sleep(flow.pause)
