"""No library: a callback that reads and sends, and the event loop that calls it (see bare.pyx).

What a library on the same loop comes near to, and none can pass. Plain, small messages only, which
the kernel takes as a whole.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..measuring import UnavailableError
from ..slices import alarm
from .extension import built

SOURCE = Path(__file__).with_name("bare.pyx")
_MASK_KEY = 4  # bytes


def _header_size(size: int) -> int:
    """Bytes of a frame's header without a mask key (RFC 6455 5.2)."""
    return 2 if size < 126 else 4 if size < 65536 else 10


def _watched(sock: socket.socket, incoming: int, outgoing: int) -> Any:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    echo = built("bare", SOURCE.read_text()).BareEcho(sock.fileno(), incoming, outgoing)
    echo.ended = lambda: loop.remove_reader(sock.fileno())
    loop.add_reader(sock.fileno(), echo.readable)
    return echo


class BareServer:
    def __init__(self, listening: socket.socket) -> None:
        self.port: int = listening.getsockname()[1]
        self._listening = listening
        self._opened: list[Any] = []
        self._accepting = asyncio.ensure_future(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listening)
            # The client says first how large its messages are.
            size = int.from_bytes(await loop.sock_recv(sock, 8), "big")
            header = _header_size(size)
            self._opened.append((sock, _watched(sock, header + _MASK_KEY + size, header + size)))


class BarePeer:
    async def serve(self, tls: ssl.SSLContext | None, handler: str) -> BareServer:
        if tls or handler != "echo":
            raise UnavailableError("a bare callback echoes over TCP, and does nothing else")
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        return BareServer(listening)

    async def echo(
        self, tls: ssl.SSLContext | None, port: int, message: bytes, connections: int
    ) -> Callable[[float], Awaitable[int]]:
        if tls or connections != 1:
            raise UnavailableError("a bare callback has one TCP connection")
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(len(message).to_bytes(8, "big"))
        header = _header_size(len(message))
        echo = _watched(sock, header + len(message), header + _MASK_KEY + len(message))

        async def round_trips(seconds: float) -> int:
            before: int = echo.count
            echo.stopped = loop.create_future()
            echo.running = True
            echo.send()
            await alarm(seconds)
            echo.running = False
            await echo.stopped
            count: int = echo.count
            return count - before

        return round_trips
