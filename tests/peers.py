"""A connection of ours, and at its other end a plain socket that does exactly what the test says.

The peer writes and reads bytes by itself, TLS included, so that it can cut records, leave out a
close_notify, reset the connection or stop reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

import pytest

import picows_fast
from picows_fast import (
    WSConnectionClosedError,
    WSDisconnectCause,
    WSListener,
    WSMsgType,
    WSState,
    WSTransport,
)

from .frames import xor
from .support import Recorder, accept_response, address, serving, upgrade_request

SMALL_BUFFER = 32 * 1024
SYSTEM_HOLDS = 400_000
TIMEOUT = 20  # seconds until a test that waits has failed

UPGRADE_REQUEST = upgrade_request()


class Peer:
    """The other end of a connection. `data` is what was received and not yet asked for.

    With `context` it speaks TLS: `start_tls` does the handshake, `encrypt` gives records without
    sending them.
    """

    def __init__(
        self, sock: socket.socket, *, is_client: bool, context: ssl.SSLContext | None = None
    ) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.is_client = is_client
        self.data = bytearray()
        self.ended = False
        self.reset_seen = False
        self.close_notify_seen = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None
        if context is not None:
            self.tls = context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=not is_client,
                server_hostname="localhost" if is_client else None,
            )

    # --- out

    async def send_raw(self, data: bytes) -> None:
        """Send bytes below TLS."""
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.sock_sendall(self.sock, data), TIMEOUT)

    def encrypt(self, data: bytes) -> bytes:
        """The records for these bytes, which are the caller's to send; without TLS the bytes."""
        if self.tls is None:
            return data
        if data:
            self.tls.write(data)
        return self._outgoing.read()

    async def send_bytes(self, data: bytes) -> None:
        await self.send_raw(self.encrypt(data))

    def frame(self, msg_type: WSMsgType, payload: bytes | str = b"", **flags: Any) -> bytes:
        return picows_fast.build_frame(msg_type, payload, mask=self.is_client, **flags)

    async def send(self, msg_type: WSMsgType, payload: bytes | str = b"", **flags: Any) -> None:
        await self.send_bytes(self.frame(msg_type, payload, **flags))

    async def send_close(self, code: int = 1000, reason: str = "") -> None:
        await self.send(WSMsgType.CLOSE, picows_fast.build_close_payload(code, reason))

    def close_notify(self) -> bytes:
        """The record that ends TLS, which is the caller's to send."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._outgoing.read()

    def fin(self) -> None:
        with contextlib.suppress(OSError):  # the connection may have been reset meanwhile
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    # --- in

    async def start_tls(self) -> None:
        assert self.tls is not None
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_raw(self._outgoing.read())
                if not await self._receive():
                    raise ConnectionError("the connection ended in the TLS handshake") from None
            else:
                await self.send_raw(self._outgoing.read())
                return

    async def _receive(self) -> bool:
        """One read below TLS; False at the end."""
        loop = asyncio.get_running_loop()
        try:
            data = await asyncio.wait_for(loop.sock_recv(self.sock, 65536), TIMEOUT)
        except ConnectionError:
            self.reset_seen = True
            data = b""
        if not data:
            self.ended = True
            return False
        self.receive(data)
        return True

    def receive(self, data: bytes) -> None:
        """Take bytes from below TLS that the test has read by itself."""
        if self.tls is None:
            self.data += data
        else:
            self._incoming.write(data)

    def _decrypt(self) -> None:
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            try:
                while data := self.tls.read(65536):
                    self.data += data
            except ssl.SSLZeroReturnError:
                pass
            self.close_notify_seen = True

    async def more(self) -> bool:
        """Wait for more of `data`; False at the end."""
        before = len(self.data)
        if self.tls is not None:
            self._decrypt()  # what came with the end of the TLS handshake
        while len(self.data) == before and not (self.ended or self.close_notify_seen):
            if not await self._receive():
                return False
            if self.tls is not None:
                self._decrypt()
        return len(self.data) > before

    async def readexactly(self, size: int) -> bytes:
        while len(self.data) < size:
            if not await self.more():
                raise asyncio.IncompleteReadError(bytes(self.data), size)
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken

    async def read_head(self) -> bytes:
        while (end := self.data.find(b"\r\n\r\n")) < 0:
            if not await self.more():
                raise asyncio.IncompleteReadError(bytes(self.data), None)
        return await self.readexactly(end + 4)

    async def read_to_end(self) -> bytes:
        """Everything until the stream ends, however it ends."""
        while await self.more():
            pass
        taken = bytes(self.data)
        self.data.clear()
        return taken

    async def read_frame(self) -> tuple[int, bytes]:
        """One frame, unmasked: (opcode, payload)."""
        first, second = await self.readexactly(2)
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await self.readexactly(2 if size == 126 else 8), "big")
        key = await self.readexactly(4) if second & 0x80 else None
        payload = await self.readexactly(size)
        return first & 0x0F, payload if key is None else xor(payload, key)

    async def read_close(self) -> tuple[int, str]:
        """Skip to CLOSE: (code, reason); (0, "") if it is empty."""
        while True:
            opcode, payload = await self.read_frame()
            if opcode == WSMsgType.CLOSE:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()


class Link(NamedTuple):
    """A connection of ours with its peer."""

    transport: WSTransport
    listener: Any
    peer: Peer


class Contexts(NamedTuple):
    """What a server and a client need for TLS with each other."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def listening_socket() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def connect_socket(address: tuple[Any, ...], **options: int) -> socket.socket:
    """A connected socket; an option is one of SOL_SOCKET, set before connecting."""
    sock = socket.socket()
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    return sock


@contextlib.asynccontextmanager
async def connected(
    side: str,
    listener: WSListener | None = None,
    *,
    contexts: Contexts | None = None,
    behind_handshake: bytes = b"",
    small_buffers: bool = False,
    **options: Any,
) -> AsyncIterator[Link]:
    """Connect a peer to a connection of ours; `side` says which of the two ours is.

    `behind_handshake` are bytes the peer sends in one piece with its half of the opening
    handshake. With `small_buffers` the system holds less than SYSTEM_HOLDS bytes on their way to
    the peer. At the end everything is closed.
    """
    if listener is None:
        listener = Recorder()
    async with contextlib.AsyncExitStack() as stack:
        if side == "client":
            listening = stack.enter_context(listening_socket())
            if small_buffers:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            scheme = "ws"
            if contexts is not None:
                scheme = "wss"
                options.setdefault("ssl_context", contexts.client)
            connecting = asyncio.create_task(
                picows_fast.ws_connect(
                    lambda: listener,
                    f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/",
                    **options,
                )
            )
            stack.callback(connecting.cancel)
            accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listening))
            stack.callback(accepting.cancel)
            await asyncio.wait(
                {accepting, connecting}, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
            if not accepting.done():
                connecting.result()  # says why nobody comes
            sock, _ = await accepting
            peer = Peer(sock, is_client=False, context=contexts and contexts.server)
            stack.callback(peer.close)
            if contexts is not None:
                await peer.start_tls()
            await peer.send_bytes(accept_response(await peer.read_head()) + behind_handshake)
            transport, _ = await asyncio.wait_for(connecting, TIMEOUT)
        else:
            url = await stack.enter_async_context(
                serving(lambda request: listener, tls=contexts and contexts.server, **options)
            )
            given = {"SO_RCVBUF": SMALL_BUFFER} if small_buffers else {}
            sock = await connect_socket(address(url), **given)
            peer = Peer(sock, is_client=True, context=contexts and contexts.client)
            stack.callback(peer.close)
            if contexts is not None:
                await peer.start_tls()
            await peer.send_bytes(UPGRADE_REQUEST + behind_handshake)
            assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
            transport = listener.transport
        if small_buffers:
            ours = transport.underlying_transport.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError, ValueError):  # closed already
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        try:
            yield Link(transport, listener, peer)
        finally:
            transport.disconnect(graceful=False)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


async def drip(peer: Peer, data: bytes, sizes: Iterable[int] = ()) -> None:
    """Send bytes below TLS in pieces, each in a turn of its own; by default one byte each."""
    at = 0
    sizes = iter(sizes)
    while at < len(data):
        size = next(sizes, 1)
        await peer.send_raw(data[at : at + size])
        at += size
        await asyncio.sleep(0)


async def ended(transport: WSTransport) -> None:
    await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


async def check_end(link: Any, cause: WSDisconnectCause) -> None:
    """Wait for the end, and check what every end has in common."""
    await link.listener.closed()
    assert link.listener.events.count("disconnected") == 1
    assert link.transport.disconnect_cause == cause
    assert link.transport.state == WSState.CLOSED
    assert link.transport.is_disconnected
    assert link.transport.write_backlog == 0
    # All of them do nothing now.
    link.transport.send(WSMsgType.TEXT, b"late")
    link.transport.send_ping()
    link.transport.send_close()
    link.transport.disconnect()
    link.transport.disconnect(False)
    link.transport.pause_reading()
    link.transport.resume_reading()
    link.transport.cork()
    link.transport.uncork()
    link.transport.notify_user_specific_pong_received()
    with pytest.raises(WSConnectionClosedError):
        await link.transport.measure_roundtrip_time(1)
    await asyncio.sleep(0)
    assert link.listener.events.count("disconnected") == 1
