"""Raw peers for either side of a connection, and what is measured about memory and descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import picows_fast
from picows_fast import WSTransport

from ..support import (
    Recorder,
    address,
    raw_client,
    raw_server,
    read_frame,
    serving,
    upgrade_request,
)

KIB = 1024
MIB = 1024 * 1024


@dataclass
class Peer:
    """What stands opposite a listener of ours: frames are made and read by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    masks: bool
    transport: WSTransport

    def frame(self, msg_type: int, payload: bytes = b"", **flags: Any) -> bytes:
        """A frame as this side has to send it."""
        return picows_fast.build_frame(msg_type, payload, mask=self.masks, **flags)

    def raw_frame(self, first_byte: int, payload: bytes = b"") -> bytes:
        """A frame of up to 125 bytes with any first byte."""
        assert len(payload) <= 125
        head = bytes((first_byte, len(payload) | (0x80 if self.masks else 0)))
        return head + (bytes(4) if self.masks else b"") + payload

    def send(self, *frames: bytes) -> None:
        """Everything in one piece."""
        self.writer.write(b"".join(frames))

    async def read(self, timeout: float = 20) -> tuple[int, bytes]:
        """The next frame: (opcode, payload)."""
        return await asyncio.wait_for(read_frame(self.reader), timeout)

    async def read_to_end(self, timeout: float = 20) -> list[tuple[int, bytes]]:
        """Every frame until the end of the stream, however it ends."""
        frames = []

        async def read_all() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    frames.append(await read_frame(self.reader))

        await asyncio.wait_for(read_all(), timeout)
        return frames

    async def end(self) -> None:
        """End our side of the stream; the other side may still send."""
        if self.writer.can_write_eof():
            self.writer.write_eof()
        else:
            self.writer.close()


@contextlib.asynccontextmanager
async def against_peer(
    side: str,
    listener: Recorder,
    *,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    **options: Any,
) -> AsyncIterator[Peer]:
    """A connection of `listener`, which is on the given side, with a raw peer on the other."""
    server_tls, client_tls = tls or (None, None)
    if side == "server":
        async with serving(lambda request: listener, tls=server_tls, **options) as url:
            reader, writer = await raw_client(url, tls=client_tls)
            await listener.until(lambda: listener.transport)
            try:
                yield Peer(reader, writer, True, listener.transport)
            finally:
                await drop(writer)
        return

    streams = asyncio.get_running_loop().create_future()
    is_over = asyncio.Event()

    async def hand_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.set_result((reader, writer))
        await is_over.wait()
        await drop(writer)

    async with raw_server(hand_over, tls=server_tls) as url:
        if client_tls is not None:
            options["ssl_context"] = client_tls
        transport, _ = await picows_fast.ws_connect(lambda: listener, url, **options)
        try:
            yield Peer(*await streams, False, transport)
        finally:
            is_over.set()
            transport.disconnect(graceful=False)
            await listener.closed()


async def drop(writer: asyncio.StreamWriter) -> None:
    """Close the connection at once, and wait until the socket is closed."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def deaf_client(url: str) -> socket.socket:
    """A client that does the opening handshake and then reads nothing; its buffers are small."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await loop.sock_connect(sock, address(url))
    await loop.sock_sendall(sock, upgrade_request())
    head = await loop.sock_recv(sock, 1)
    while not head.endswith(b"\r\n\r\n"):
        # Not a byte of the frames behind it.
        seen, separator, _ = sock.recv(4 * KIB, socket.MSG_PEEK).partition(b"\r\n\r\n")
        head += sock.recv(len(seen + separator))
    assert head.startswith(b"HTTP/1.1 101 "), head
    return sock


def set_send_buffer(transport: WSTransport, size: int = 4 * KIB) -> None:
    """Let the kernel take few bytes, so that a peer which does not read is noticed soon."""
    descriptor = transport.underlying_transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def waiting(transport: WSTransport) -> int:
    """Bytes that wait in this process for the peer to read."""
    return transport.underlying_transport.get_write_buffer_size()


class Memory:
    """Bytes allocated since `traced_memory` was entered: at the end, and at most."""

    @property
    def held(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._start

    @property
    def peak(self) -> int:
        return tracemalloc.get_traced_memory()[1] - self._start

    def mark(self) -> None:
        """Count from here on."""
        gc.collect()
        tracemalloc.reset_peak()
        self._start = tracemalloc.get_traced_memory()[0]


@contextlib.contextmanager
def traced_memory() -> Iterator[Memory]:
    """Measure what Python and the extension modules allocate; the kernel's buffers do not count."""
    tracemalloc.start()
    memory = Memory()
    memory.mark()
    try:
        yield memory
    finally:
        tracemalloc.stop()
