"""attach: connections that somebody else made and upgraded, on real sockets, for both sides."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType, WSState, WSTransport
from picows_fast.net.tcp import TcpStream

from .frames import encode, key_for
from .support import GUID, Echo, Recorder, nothing_left_behind, open_sockets

TEXT, CLOSE = WSMsgType.TEXT, WSMsgType.CLOSE
ROLES = ["client", "server"]


def frame_for(role: str, opcode: int, payload: bytes = b"", **options: Any) -> bytes:
    """A frame that the peer of this role sends."""
    return encode(opcode, payload, key=key_for(role == "client"), **options)


async def tcp_pair() -> tuple[socket.socket, socket.socket]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        near = socket.create_connection(listening.getsockname())
        far, _ = await loop.sock_accept(listening)
    return near, far


@contextlib.asynccontextmanager
async def connections(kind: str) -> AsyncIterator[tuple[Any, socket.socket]]:
    """What is to be attached, and the blocking-free socket of its peer."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair() if kind == "unix" else await tcp_pair()
    near.setblocking(False)
    far.setblocking(False)
    connection: Any = near
    if kind in ("transport", "paused transport"):
        connection, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        if kind == "paused transport":
            connection.pause_reading()
    elif kind == "stream":
        connection = TcpStream(loop, near)
    try:
        yield connection, far
    finally:
        far.close()


KINDS = [
    pytest.param("unix", marks=pytest.mark.native),
    pytest.param("tcp", marks=pytest.mark.native),
    pytest.param("stream", marks=pytest.mark.native),
    "transport",
    "paused transport",
]


async def end(transport: WSTransport) -> None:
    transport.disconnect(graceful=False)
    await asyncio.wait_for(transport.wait_disconnected(), 20)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_leftover_cut_at_every_byte(kind, role):
    """What has come already is first, then what comes, wherever the cut is."""
    loop = asyncio.get_running_loop()
    data = b"".join(frame_for(role, TEXT, b"%d" % number * number) for number in range(3))
    expected = [(TEXT, b"%d" % number * number, True) for number in range(3)]
    async with nothing_left_behind():
        for cut in range(len(data) + 1):
            async with connections(kind) as (connection, far):
                await loop.sock_sendall(far, data[cut:])
                listener = Recorder()
                transport = picows_fast.attach(
                    listener, connection, role=role, leftover=bytearray(data[:cut])
                )
                assert transport.state == WSState.OPEN
                assert listener.events == ["connected"]
                assert transport.request is transport.response is transport.subprotocol is None
                assert repr(transport).startswith(f"<WSTransport {role} ")
                await listener.frame(2)
                assert listener.frames == expected
                transport.send(TEXT, b"back")
                answer = await asyncio.wait_for(loop.sock_recv(far, 100), 20)
                assert answer[1] >> 7 == (role == "client")
                await end(transport)


class Pauses(Recorder):
    """Is not ready when the connection is there."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        transport.pause_reading()


@pytest.mark.parametrize("kind", KINDS)
async def test_leftover_waits_while_reading_is_paused(kind):
    """A pause in on_ws_connected holds what has come, what comes, and the end behind it."""
    loop = asyncio.get_running_loop()
    big = b"x" * 10_000
    async with nothing_left_behind(), connections(kind) as (connection, far):
        await loop.sock_sendall(far, frame_for("server", TEXT, b"second"))
        far.shutdown(socket.SHUT_WR)
        listener = Pauses()
        transport = picows_fast.attach(
            listener, connection, role="server", leftover=frame_for("server", TEXT, big)
        )
        assert transport.is_reading_paused
        await asyncio.sleep(0.05)
        assert listener.events == ["connected"]
        transport.resume_reading()
        await listener.closed()
        assert [payload for _, payload, _ in listener.frames] == [big, b"second"]
        assert transport.disconnect_cause == WSDisconnectCause.PEER_FIN


@pytest.mark.parametrize("kind", KINDS)
async def test_leftover_that_ends_the_connection(kind):
    """CLOSE is answered; a violation fails the connection; on_ws_connected may end it."""

    class Leaves(Recorder):
        def on_ws_connected(self, transport: WSTransport) -> None:
            super().on_ws_connected(transport)
            transport.disconnect()

    class Raises(Recorder):
        def on_ws_connected(self, transport: WSTransport) -> None:
            raise ValueError("not wanted")

    closing = frame_for("server", CLOSE, b"\x03\xe8") + frame_for("server", TEXT, b"behind")
    for leftover, make, cause in (
        (closing, Recorder, WSDisconnectCause.CLOSE_FRAME),
        (encode(TEXT, b"not masked"), Recorder, WSDisconnectCause.PROTOCOL_ERROR),
        (encode(TEXT, b"x", rsv=4, key=b"abcd"), Recorder, WSDisconnectCause.PROTOCOL_ERROR),
        (closing, Leaves, WSDisconnectCause.LOCAL_DISCONNECT),
        (closing, Raises, WSDisconnectCause.CALLBACK_ERROR),
    ):
        async with nothing_left_behind(), connections(kind) as (connection, far):
            listener = make()
            transport = picows_fast.attach(listener, connection, role="server", leftover=leftover)
            far.shutdown(socket.SHUT_WR)
            await listener.closed()
            assert transport.disconnect_cause == cause
            assert [message for message, _, _ in listener.frames if message != CLOSE] == []


async def test_negotiated_elsewhere():
    """Extensions allow reserved bits; the subprotocol, request and response are the caller's."""
    async with connections("transport") as (connection, _):
        request = picows_fast.WSUpgradeRequest.__new__(picows_fast.WSUpgradeRequest)
        listener = Recorder()
        transport = picows_fast.attach(
            listener,
            connection,
            role="server",
            leftover=frame_for("server", TEXT, b"packed", rsv=4),
            negotiated=picows_fast.Negotiated(
                subprotocol="chat", extensions=[("permessage-deflate", ())]
            ),
            request=request,
        )
        assert transport.subprotocol == "chat"
        assert transport.request is request
        assert await listener.frame() == (TEXT, b"packed", True)
        await end(transport)


async def test_auto_ping():
    loop = asyncio.get_running_loop()
    async with connections("transport") as (connection, far):
        options = picows_fast.ServerOptions(
            enable_auto_ping=True, auto_ping_idle_timeout=0.05, auto_ping_reply_timeout=0.05
        )
        listener = Recorder()
        transport = picows_fast.attach(listener, connection, role="server", options=options)
        assert (await asyncio.wait_for(loop.sock_recv(far, 100), 20))[0] == 0x89
        await listener.closed()
        assert transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


@pytest.mark.parametrize("payloads", [[], [b"last"]], ids=["nothing", "leftover"])
async def test_an_end_that_the_last_protocol_was_told(payloads):
    """The peer's FIN came before, and the transport does not tell of it by itself again."""

    class HalfOpen(asyncio.Protocol):
        def __init__(self) -> None:
            self.ended = asyncio.Event()

        def eof_received(self) -> bool:
            self.ended.set()
            return True

    loop = asyncio.get_running_loop()
    near, far = await tcp_pair()
    connection, protocol = await loop.create_connection(HalfOpen, sock=near)
    far.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(protocol.ended.wait(), 20)
    listener = Recorder()
    leftover = b"".join(frame_for("server", TEXT, payload) for payload in payloads)
    transport = picows_fast.attach(listener, connection, role="server", leftover=leftover)
    await listener.closed()
    assert [payload for _, payload, _ in listener.frames] == payloads
    assert transport.disconnect_cause == WSDisconnectCause.PEER_FIN
    far.close()


async def test_what_is_refused_is_ended():
    """The connection is attach's from the call on."""
    loop = asyncio.get_running_loop()

    class Late(Recorder):
        async def on_ws_frame(self, transport, frame):  # type: ignore[override]
            pass

    ours = Recorder()
    wrong: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (TypeError, "listener must be a WSListener, got type", Recorder, {}),
        (TypeError, "on_ws_frame", Late(), {}),
        (ValueError, 'role must be "client" or "server", got \'peer\'', ours, {"role": "peer"}),
        (TypeError, "leftover must be bytes, got str", ours, {"leftover": "x"}),
        (TypeError, "negotiated must be a Negotiated", ours, {"negotiated": "chat"}),
        (TypeError, "must be ServerOptions", ours, {"options": picows_fast.ClientOptions()}),
    ]
    async with nothing_left_behind():
        for error, text, listener, arguments in wrong:
            for kind in ("tcp", "transport"):
                async with connections(kind) as (connection, far):
                    with pytest.raises(error, match=re.escape(text)):
                        picows_fast.attach(listener, connection, **{"role": "server", **arguments})
                    with contextlib.suppress(ConnectionResetError):
                        assert await asyncio.wait_for(loop.sock_recv(far, 1), 20) == b""


async def test_connections_that_cannot_be_attached():
    before = open_sockets()

    def refused(error: type[Exception], connection: Any, text: str, **options: Any) -> None:
        with pytest.raises(error, match=text):
            picows_fast.attach(Recorder(), connection, role="server", **options)

    refused(TypeError, 5, "connection must be a socket, an asyncio.Transport")
    refused(ValueError, socket.socket(type=socket.SOCK_DGRAM), "must be a stream socket")
    refused(OSError, socket.socket(), "not connected|Invalid")
    with_loop = picows_fast.ServerOptions(use_loop_transport=True)
    refused(ValueError, socket.socket(), "loop.create_connection", options=with_loop)
    context = ssl.create_default_context()
    plain = socket.socket()
    tls = context.wrap_socket(plain, server_hostname="x", do_handshake_on_connect=False)
    refused(TypeError, tls, "SSLSocket")
    async with connections("transport") as (connection, _):
        connection.abort()
        refused(OSError, connection, "closing already")
    async with connections("transport") as (connection, _):
        transport = picows_fast.attach(Recorder(), connection, role="server")
        refused(ValueError, transport.underlying_transport, "in use")
        await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert open_sockets() <= before


# An HTTP server that answers the upgrade itself, and a client of another library.


@pytest.mark.parametrize("with_tls", [False, True], ids=["tcp", "tls"])
async def test_asyncio_streams_hand_over(with_tls, tls_contexts):
    """Also what the reader holds; the transport is attached before the handler awaits again."""
    listeners: list[Recorder] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)[1]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        reader.feed_eof()
        leftover = await reader.read()
        listeners.append(Echo())
        transport = picows_fast.attach(
            listeners[-1], writer.transport, role="server", leftover=leftover
        )
        assert transport.is_secure == with_tls
        await transport.wait_disconnected()

    server = await asyncio.start_server(
        handle, "127.0.0.1", 0, ssl=tls_contexts.server if with_tls else None
    )
    host, port = server.sockets[0].getsockname()
    url = f"{'wss' if with_tls else 'ws'}://{host}:{port}/"
    tls = tls_contexts.client if with_tls else None
    async with connect(url, ssl=tls, compression=None, proxy=None) as client:
        for size in (0, 5, 70_000):
            await client.send("x" * size)
            assert await asyncio.wait_for(client.recv(), 20) == "x" * size
    await listeners[0].closed()
    assert listeners[0].transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
    # The same from the other end: a client's handshake by hand, its transport handed over.
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        + encode(TEXT, b"early", key=b"abcd")
    )
    await reader.readuntil(b"\r\n\r\n")
    reader.feed_eof()
    listener = Recorder()
    transport = picows_fast.attach(
        listener, writer.transport, role="client", leftover=await reader.read()
    )
    assert await listener.frame() == (TEXT, b"early", True)
    transport.send_close(1000)
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    server.close()
    await server.wait_closed()
