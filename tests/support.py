"""What tests are made of: a listener that records, servers, raw peers that do as they are told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport

from .frames import xor

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Recorder(WSListener):
    """Keeps what happens. `frames` has (msg_type, payload, fin).

    Waiting is by `frame()` and `closed()`.
    """

    def __init__(self) -> None:
        self.transport: WSTransport | None = None
        self.frames: list[tuple[WSMsgType, bytes, bool]] = []
        self.events: list[str] = []
        self._changed = asyncio.Event()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._changed.set()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._note("connected")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.frames.append((frame.msg_type, frame.get_payload_as_bytes(), bool(frame.fin)))
        self._note("frame")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._note("disconnected")

    def pause_writing(self) -> None:
        self._note("pause_writing")

    def resume_writing(self) -> None:
        self._note("resume_writing")

    async def until(self, condition: Callable[[], Any], timeout: float = 20) -> None:
        """Wait for a condition on what was recorded."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), timeout)

    async def frame(self, index: int = 0) -> tuple[WSMsgType, bytes, bool]:
        """Wait for the frame of that number."""
        await self.until(lambda: len(self.frames) > index)
        return self.frames[index]

    async def closed(self) -> None:
        """Wait for on_ws_disconnected."""
        await self.until(lambda: "disconnected" in self.events)


class Echo(Recorder):
    """A server's listener that sends data back and answers CLOSE."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            transport.send(frame.msg_type, frame.get_payload_as_bytes(), frame.fin)


class TextPings(Recorder):
    """Pings of the user's own making, which carry no number: text, answered by `pong`."""

    pong = b"pong"

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, "ping")

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        return frame.get_payload_as_bytes() == self.pong


@contextlib.asynccontextmanager
async def serving(
    factory: Callable[..., Any], *, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[str]:
    """A server of ours on 127.0.0.1; gives its URL."""
    server = await picows_fast.ws_create_server(factory, "127.0.0.1", 0, ssl=tls, **options)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
    finally:
        server.close()
        server.abort_clients()
        await asyncio.wait_for(server.wait_closed(), 20)


async def check_echo(
    url: str, factory: Callable[..., Recorder] = Recorder, **options: Any
) -> WSTransport:
    """Connect to an echo server, send, receive, end; gives the transport."""
    transport, client = await asyncio.wait_for(picows_fast.ws_connect(factory, url, **options), 20)
    transport.send(WSMsgType.TEXT, "through")
    assert await client.frame() == (WSMsgType.TEXT, b"through", True)
    transport.send_close(1000)
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    return transport


RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def upgrade_request(extra: bytes = b"") -> bytes:
    """A request for a WebSocket connection; `extra` are header lines."""
    key = base64.b64encode(os.urandom(16))
    return (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n" + extra + b"\r\n"
    )


def accept_response(request_head: bytes, extra: bytes = b"") -> bytes:
    """The 101 response to a request."""
    key = next(
        line.split(b":", 1)[1].strip()
        for line in request_head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key:")
    )
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n" + extra + b"\r\n"
    )


@contextlib.asynccontextmanager
async def raw_server(
    handler: RawHandler, *, tls: ssl.SSLContext | None = None, upgrade: bool = True
) -> AsyncIterator[str]:
    """A server that does the opening handshake (unless not `upgrade`) and then what `handler` does.

    Gives its URL. The connection is closed when the handler returns. What it raises is raised at
    the end.
    """
    errors: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            if upgrade:
                writer.write(accept_response(await read_head(reader)))
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except asyncio.CancelledError:
            # The test is over. Python 3.11 would log a handler that ends so as an error.
            pass
        except Exception as error:
            errors.append(error)
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for error in errors:
        raise error


async def raw_client(
    url: str, *, tls: ssl.SSLContext | None = None, extra: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has done the opening handshake; the caller closes the writer."""
    parsed = picows_fast.parse_url(url)
    reader, writer = await asyncio.open_connection(parsed.host, parsed.port, ssl=tls)
    writer.write(upgrade_request(extra))
    head = await read_head(reader)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return reader, writer


def client_frame(msg_type: WSMsgType, payload: bytes = b"", **flags: Any) -> bytes:
    return picows_fast.build_frame(msg_type, payload, mask=True, **flags)


def server_frame(msg_type: WSMsgType, payload: bytes = b"", **flags: Any) -> bytes:
    return picows_fast.build_frame(msg_type, payload, **flags)


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One frame of either side, unmasked: (opcode, payload)."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8), "big")
    key = await reader.readexactly(4) if second & 0x80 else None
    payload = await reader.readexactly(size)
    return first & 0x0F, payload if key is None else xor(payload, key)


async def until(condition: Callable[[], Any], timeout: float = 20) -> None:
    """Wait for something that nobody announces."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), timeout)


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL, as sockets want them."""
    parsed = picows_fast.parse_url(url)
    return parsed.host, parsed.port


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def open_descriptors() -> int:
    """How many this process has, by /proc/self/fd."""
    return len(os.listdir("/proc/self/fd"))


def open_sockets() -> set[str]:
    """The sockets that this process has open (Linux; elsewhere: none).

    Nameless pairs, which event loops use, are left out.
    """
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{name}")
            if path.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    try:
                        names = sock.getsockname(), sock.getpeername()
                    except OSError:
                        names = sock.getsockname(), None
                if names != ("", ""):
                    found.add(f"{path} {names[0]}")
    return found


def live_timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """The timers that are set (asyncio's own loop; others do not tell)."""
    return [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]


@contextlib.asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check that the body leaves no task, no timer and no socket behind."""
    loop = asyncio.get_running_loop()

    def left() -> list[Any]:
        tasks = {task for task in asyncio.all_tasks() if not task.done()} - tasks_before
        timers = [timer for timer in live_timers(loop) if timer not in timers_before]
        return [*(tasks - {asyncio.current_task()}), *timers, *(open_sockets() - sockets_before)]

    tasks_before = asyncio.all_tasks()
    timers_before = live_timers(loop)
    sockets_before = open_sockets()
    yield
    for _ in range(100):  # closing takes a few turns of the loop
        if not left():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"left behind: {left()}")
