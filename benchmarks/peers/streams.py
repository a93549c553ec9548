"""websockets, picows.websockets and aiohttp: messages that are awaited.

No compression, no keepalive and no limit on messages: what the others do by default.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ..measuring import UnavailableError
from ..slices import alarm

PLAIN = {"compression": None, "max_size": None, "ping_interval": None}


def url_of(tls: ssl.SSLContext | None, port: int) -> str:
    return f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"


async def _take(messages: AsyncIterator[Any], take: str) -> dict[str, Any]:
    """The messages are bytes or str already, so that "nothing" and "bytes" are the same."""
    cpu = time.process_time()
    frames = 0
    async for _ in messages:
        frames += 1
    result: dict[str, Any] = {"cpu": time.process_time() - cpu}
    if take == "count":
        result["frames"] = frames
    return result


class StreamServer:
    def __init__(
        self, port: int, connected: set[Any], send: Callable[..., Awaitable[None]]
    ) -> None:
        self.port = port
        self._connected = connected
        self._send = send

    def connections(self) -> int:
        return len(self._connected)

    def clogged(self) -> bool:
        return False

    async def send_to_all(self, message: bytes, count: int) -> None:
        for _ in range(count):
            await self._send(self._connected, message)


class _StreamPeer:
    """What a client does, whose connections are opened and used by the library's own names."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    async def _open(self, tls: ssl.SSLContext | None, port: int) -> Any:
        raise NotImplementedError

    async def _round_trip(self, connection: Any, message: bytes) -> None:
        raise NotImplementedError

    async def echo(
        self, tls: ssl.SSLContext | None, port: int, message: bytes, connections: int
    ) -> Callable[[float], Awaitable[int]]:
        opened = [await self._open(tls, port) for _ in range(connections)]
        running = False

        async def run(connection: Any) -> int:
            count = 0
            while running:
                await self._round_trip(connection, message)
                count += 1
            return count

        async def round_trips(seconds: float) -> int:
            nonlocal running
            running = True
            tasks = [asyncio.ensure_future(run(connection)) for connection in opened]
            await alarm(seconds)
            running = False
            return sum(await asyncio.gather(*tasks))

        return round_trips

    async def flood(self, tls: ssl.SSLContext | None, port: int, take: str) -> dict[str, Any]:
        return await _take(aiter(await self._open(tls, port)), take)

    async def send_many(self, port: int, message: bytes, count: int) -> None:
        raise UnavailableError("no send() that does not wait")


class WebsocketsPeer(_StreamPeer):
    """websockets, and picows.websockets, which has its API."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self._module = importlib.import_module(library)
        if library == "websockets":
            self._server = importlib.import_module("websockets.asyncio.server")
            self._connect = importlib.import_module("websockets.asyncio.client").connect
        else:
            self._server = self._module
            self._connect = self._module.connect

    async def serve(self, tls: ssl.SSLContext | None, handler: str) -> StreamServer:
        connected: set[Any] = set()

        async def handle(connection: Any) -> None:
            connected.add(connection)
            try:
                async for message in connection:
                    if handler == "echo":
                        await connection.send(message)
            except self._module.exceptions.ConnectionClosedError:
                pass
            finally:
                connected.remove(connection)

        async def broadcast(connections: set[Any], message: bytes) -> None:
            self._server.broadcast(connections, message)

        self._running = server = await self._server.serve(
            handle, "127.0.0.1", 0, ssl=tls, backlog=1024, **PLAIN
        )
        port = next(iter(server.sockets)).getsockname()[1]
        return StreamServer(port, connected, broadcast)

    async def _open(self, tls: ssl.SSLContext | None, port: int) -> Any:
        connection = await self._connect(url_of(tls, port), ssl=tls, proxy=None, **PLAIN)
        self._kept.append(connection)
        return connection

    async def _round_trip(self, connection: Any, message: bytes) -> None:
        await connection.send(message)
        await connection.recv()


class AiohttpPeer(_StreamPeer):
    async def serve(self, tls: ssl.SSLContext | None, handler: str) -> StreamServer:
        from aiohttp import web

        connected: set[Any] = set()

        async def handle(request: web.Request) -> web.WebSocketResponse:
            connection = web.WebSocketResponse(compress=False, max_msg_size=0)
            await connection.prepare(request)
            connected.add(connection)
            try:
                async for message in connection:
                    if handler == "echo":
                        await connection.send_bytes(message.data)
            finally:
                connected.remove(connection)
            return connection

        async def send_to_all(connections: set[Any], message: bytes) -> None:
            for connection in list(connections):
                await connection.send_bytes(message)

        application = web.Application()
        application.router.add_get("/", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, backlog=1024)
        await site.start()
        return StreamServer(runner.addresses[0][1], connected, send_to_all)

    async def _open(self, tls: ssl.SSLContext | None, port: int) -> Any:
        import aiohttp

        session = aiohttp.ClientSession()
        self._kept.append(session)
        return await session.ws_connect(
            url_of(tls, port), ssl=tls or True, compress=0, max_msg_size=0
        )

    async def _round_trip(self, connection: Any, message: bytes) -> None:
        await connection.send_bytes(message)
        await connection.receive()
