"""Connections with websockets, aiohttp and picows, each as the client and as the server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
import aiohttp.web
import picows
import pytest
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.exceptions

import picows_fast
from picows_fast import WSCloseCode, WSDisconnectCause, WSFrame, WSMsgType, WSTransport

from .support import Recorder, serving

TIMEOUT = 20
Close = tuple[int | None, str]


class Ours(Recorder):
    """Our side: answers CLOSE, keeps everything."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())


class Pinging(Ours):
    """Keeps when auto-ping is due."""

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        self._note("ping")
        transport.send_ping()


# --- The other side: one interface over each implementation ---------------------------------------


class WebsocketsPeer:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def subprotocol(self) -> str | None:
        return self._connection.subprotocol

    @property
    def extensions(self) -> list[Any]:
        return self._connection.protocol.extensions

    async def send(self, message: str | bytes) -> None:
        await self._connection.send(message)

    async def send_fragments(self, parts: Sequence[str] | Sequence[bytes]) -> None:
        await self._connection.send(parts)

    async def receive(self) -> str | bytes:
        return await self._connection.recv()

    async def ping(self, data: bytes) -> None:
        """Return when the PONG with this payload has come."""
        await (await self._connection.ping(data))

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code, reason)

    async def closed(self) -> Close:
        await self._connection.wait_closed()
        return self._connection.close_code, self._connection.close_reason

    @classmethod
    @contextlib.asynccontextmanager
    async def client(
        cls, url: str, tls: ssl.SSLContext | None, subprotocols: Sequence[str] | None
    ) -> AsyncIterator[WebsocketsPeer]:
        async with websockets.asyncio.client.connect(
            url, ssl=tls, subprotocols=subprotocols, max_size=None, proxy=None
        ) as connection:
            yield cls(connection)

    @classmethod
    @contextlib.asynccontextmanager
    async def server(
        cls,
        on_connected: Callable[[WebsocketsPeer], None],
        tls: ssl.SSLContext | None,
        subprotocols: Sequence[str] | None,
    ) -> AsyncIterator[int]:
        async def handler(connection: Any) -> None:
            on_connected(cls(connection))
            await connection.wait_closed()

        async with websockets.asyncio.server.serve(
            handler, "127.0.0.1", 0, ssl=tls, subprotocols=subprotocols, max_size=None
        ) as server:
            yield server.sockets[0].getsockname()[1]


class AiohttpPeer:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self._close: Close | None = None
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while True:
            message = await self._connection.receive()
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                self._messages.put_nowait(message.data)
            elif message.type == aiohttp.WSMsgType.PING:
                await self._connection.pong(message.data)
            elif message.type == aiohttp.WSMsgType.PONG:
                self._pongs.put_nowait(bytes(message.data))
            elif message.type == aiohttp.WSMsgType.CLOSE:
                self._close = message.data, message.extra
                return
            elif message.type == aiohttp.WSMsgType.ERROR:
                raise message.data
            else:
                return  # closed, or being closed by close()

    @property
    def subprotocol(self) -> str | None:
        if isinstance(self._connection, aiohttp.ClientWebSocketResponse):
            return self._connection.protocol
        return self._connection.ws_protocol

    @property
    def extensions(self) -> list[Any]:
        return ["permessage-deflate"] if self._connection.compress else []

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._connection.send_str(message)
        else:
            await self._connection.send_bytes(message)

    async def receive(self) -> str | bytes:
        return await self._messages.get()

    async def ping(self, data: bytes) -> None:
        await self._connection.ping(data)
        assert await self._pongs.get() == data

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code=code, message=reason.encode())

    async def closed(self) -> Close:
        await self._reader
        return self._close or (self._connection.close_code, "")

    @classmethod
    @contextlib.asynccontextmanager
    async def client(
        cls, url: str, tls: ssl.SSLContext | None, subprotocols: Sequence[str] | None
    ) -> AsyncIterator[AiohttpPeer]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                url,
                ssl=tls or True,
                protocols=subprotocols or (),
                compress=15,
                autoping=False,
                max_msg_size=0,
            ) as connection,
        ):
            peer = cls(connection)
            yield peer
            await soon(connection.close())
            await soon(peer._reader)

    @classmethod
    @contextlib.asynccontextmanager
    async def server(
        cls,
        on_connected: Callable[[AiohttpPeer], None],
        tls: ssl.SSLContext | None,
        subprotocols: Sequence[str] | None,
    ) -> AsyncIterator[int]:
        async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
            connection = aiohttp.web.WebSocketResponse(
                protocols=subprotocols or (), autoping=False, max_msg_size=0
            )
            await connection.prepare(request)
            peer = cls(connection)
            on_connected(peer)
            await peer._reader
            await closing.wait()
            return connection

        closing = asyncio.Event()
        application = aiohttp.web.Application()
        application.router.add_get("/", handler)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        try:
            yield runner.addresses[0][1]
        finally:
            closing.set()
            await runner.cleanup()


class PicowsPeer(picows.WSListener):  # type: ignore[misc]
    def __init__(self, on_connected: Callable[[PicowsPeer], None] | None = None) -> None:
        self._on_connected = on_connected
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self._close: Close = (None, "")
        self._parts: list[bytes] = []
        self._ended = asyncio.Event()
        self.subprotocol: str | None = None

    def on_ws_connected(self, transport: Any) -> None:
        self._transport = transport
        self.subprotocol = transport.response.headers.get("Sec-WebSocket-Protocol")
        self.extensions = transport.response.headers.getall("Sec-WebSocket-Extensions", [])
        if self._on_connected is not None:
            self._on_connected(self)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self._close = int(frame.get_close_code()), (frame.get_close_message() or b"").decode()
            # Without a code it would send 0, which nobody may (RFC 6455 7.4.2).
            code = frame.get_close_code() or picows.WSCloseCode.OK
            transport.send_close(code, frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == picows.WSMsgType.PONG:
            self._pongs.put_nowait(frame.get_payload_as_bytes())
        else:
            if frame.msg_type != picows.WSMsgType.CONTINUATION:
                self._is_text = frame.msg_type == picows.WSMsgType.TEXT
            self._parts.append(frame.get_payload_as_bytes())
            if frame.fin:
                payload = b"".join(self._parts)
                self._parts.clear()
                self._messages.put_nowait(payload.decode() if self._is_text else payload)

    def on_ws_disconnected(self, transport: Any) -> None:
        self._ended.set()

    async def send(self, message: str | bytes) -> None:
        is_text = isinstance(message, str)
        self._transport.send(picows.WSMsgType.TEXT if is_text else picows.WSMsgType.BINARY, message)

    async def send_fragments(self, parts: Sequence[str] | Sequence[bytes]) -> None:
        msg_type = picows.WSMsgType.TEXT if isinstance(parts[0], str) else picows.WSMsgType.BINARY
        for part in parts:
            self._transport.send(msg_type, part, False)
            msg_type = picows.WSMsgType.CONTINUATION
        self._transport.send(msg_type, b"", True)

    async def receive(self) -> str | bytes:
        return await self._messages.get()

    async def ping(self, data: bytes) -> None:
        self._transport.send_ping(data)
        assert await self._pongs.get() == data

    async def close(self, code: int, reason: str) -> None:
        self._transport.send_close(code, reason.encode())
        await self._ended.wait()

    async def closed(self) -> Close:
        await self._ended.wait()
        return self._close

    @classmethod
    @contextlib.asynccontextmanager
    async def client(
        cls, url: str, tls: ssl.SSLContext | None, subprotocols: Sequence[str] | None
    ) -> AsyncIterator[PicowsPeer]:
        headers = {"Sec-WebSocket-Protocol": ", ".join(subprotocols)} if subprotocols else None
        transport, peer = await picows.ws_connect(cls, url, ssl_context=tls, extra_headers=headers)
        try:
            yield peer
        finally:
            transport.disconnect()
            await soon(peer._ended.wait())

    @classmethod
    @contextlib.asynccontextmanager
    async def server(
        cls,
        on_connected: Callable[[PicowsPeer], None],
        tls: ssl.SSLContext | None,
        subprotocols: Sequence[str] | None,
    ) -> AsyncIterator[int]:
        def factory(request: Any) -> Any:
            offered = request.headers.get("Sec-WebSocket-Protocol", "").split(", ")
            common = [name for name in offered if name in (subprotocols or ())]
            headers = {"Sec-WebSocket-Protocol": common[0]} if common else None
            return picows.WSUpgradeResponseWithListener(
                picows.WSUpgradeResponse.create_101_response(headers), cls(on_connected)
            )

        server = await picows.ws_create_server(factory, "127.0.0.1", 0, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await soon(server.wait_closed())


PEERS: dict[str, Any] = {
    "websockets": WebsocketsPeer,
    "aiohttp": AiohttpPeer,
    "picows": PicowsPeer,
}


# --- A connection between us and one of them ------------------------------------------------------


@contextlib.asynccontextmanager
async def interconnected(
    kind: Any,
    our_side: str,
    tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None,
    listener: Callable[[], Recorder] = Ours,
    *,
    our_subprotocols: Sequence[str] | None = None,
    their_subprotocols: Sequence[str] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[WSTransport, Recorder, Any]]:
    """Our transport, our listener and the peer, connected."""
    server_tls, client_tls = tls_contexts or (None, None)
    options["subprotocols"] = our_subprotocols
    if our_side == "server":
        ours = listener()
        async with (
            serving(lambda request: ours, tls=server_tls, **options) as url,
            kind.client(url, client_tls, their_subprotocols) as peer,
        ):
            await ours.until(lambda: ours.transport)
            assert ours.transport is not None
            yield ours.transport, ours, peer
            ours.transport.disconnect()
            await ours.closed()
        return
    connected: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with kind.server(connected.set_result, server_tls, their_subprotocols) as port:
        url = f"{'wss' if server_tls else 'ws'}://127.0.0.1:{port}/"
        transport, ours = await picows_fast.ws_connect(
            listener, url, ssl_context=client_tls, **options
        )
        assert isinstance(ours, Recorder)
        yield transport, ours, await asyncio.wait_for(connected, TIMEOUT)
        transport.disconnect()
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


@pytest.fixture(params=PEERS)
def kind(request: pytest.FixtureRequest) -> Any:
    return PEERS[request.param]


@pytest.fixture(params=["client", "server"])
def our_side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["ws", "wss"])
def tls_contexts(
    request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
    return (server_tls, client_tls) if request.param else None


@pytest.fixture
def open_connection(kind, our_side, tls_contexts, io_options) -> Callable[..., Any]:
    return functools.partial(interconnected, kind, our_side, tls_contexts, **io_options)


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, TIMEOUT)


# --- What is exchanged ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "",
        b"",
        "text: \u00e4\u20ac\U0001f600",
        b"\x00\xff binary",
        b"x" * 125,
        "y" * 126,
        b"z" * 65_535,
        "\u20ac" * 30_000,
        bytes(range(256)) * 4096,
        "\u00e4bc" * 262_144,
    ],
    ids=lambda message: f"{type(message).__name__}-{len(message)}",
)
async def test_messages_both_ways(open_connection, message):
    msg_type = WSMsgType.TEXT if isinstance(message, str) else WSMsgType.BINARY
    payload = message.encode() if isinstance(message, str) else message
    async with open_connection() as (transport, ours, peer):
        transport.send(msg_type, message)
        assert await soon(peer.receive()) == message
        await soon(peer.send(message))
        assert await ours.frame() == (msg_type, payload, True)


async def test_many_messages_at_once(open_connection):
    """Both sides send at the same time, more than the sockets hold."""
    expected = [f"{i}: " + "m" * (i * 37 % 3000) for i in range(2000)]
    async with open_connection() as (transport, ours, peer):

        async def they_send():
            for message in expected:
                await peer.send(message)

        async def they_receive():
            return [await peer.receive() for _ in expected]

        for message in expected:
            transport.send(WSMsgType.TEXT, message)
        _, received = await soon(asyncio.gather(they_send(), they_receive()))
        assert received == expected
        await ours.frame(len(expected) - 1)
        assert [payload.decode() for _, payload, _ in ours.frames] == expected


@pytest.mark.parametrize(
    "parts",
    [["one ", "", "two \u20ac ", "three"], [b"\x00", b"\x01" * 70_000, b""]],
    ids=["text", "binary"],
)
async def test_our_fragments(open_connection, parts):
    async with open_connection() as (transport, _, peer):
        msg_type = WSMsgType.TEXT if isinstance(parts[0], str) else WSMsgType.BINARY
        for part in parts:
            transport.send(msg_type, part, False)
            transport.send_ping(b"in between")  # control frames may come in between (RFC 6455 5.4)
            msg_type = WSMsgType.CONTINUATION
        transport.send(msg_type, None, True)
        assert await soon(peer.receive()) == type(parts[0])().join(parts)


@pytest.mark.parametrize(
    "parts",
    [["one ", "two \u20ac ", "three"], [b"\x00", b"\x01" * 70_000, b"\x02"]],
    ids=["text", "binary"],
)
@pytest.mark.parametrize("kind", [WebsocketsPeer, PicowsPeer])  # aiohttp has no way to send them
async def test_their_fragments(open_connection, parts):
    async with open_connection() as (_, ours, peer):
        await soon(peer.send_fragments(parts))
        await ours.until(lambda: ours.frames and ours.frames[-1][2])
        first = WSMsgType.TEXT if isinstance(parts[0], str) else WSMsgType.BINARY
        payloads = [part.encode() if isinstance(part, str) else part for part in parts]
        assert ours.frames == [
            (first, payloads[0], False),
            (WSMsgType.CONTINUATION, payloads[1], False),
            (WSMsgType.CONTINUATION, payloads[2], False),
            (WSMsgType.CONTINUATION, b"", True),
        ]


async def test_pings_both_ways(open_connection):
    async with open_connection() as (transport, ours, peer):
        await soon(peer.ping(b"theirs"))
        await soon(peer.ping(bytes(125)))
        assert ours.frames == []  # answered by the library
        transport.send_ping(b"ours")
        assert await ours.frame(0) == (WSMsgType.PONG, b"ours", True)
        transport.send_ping()
        assert await ours.frame(1) == (WSMsgType.PONG, b"", True)
        assert len(await soon(transport.measure_roundtrip_time(3))) == 3


async def test_auto_ping(kind, our_side):
    """They answer our auto-pings: the next one is not sent before that."""
    async with interconnected(
        kind, our_side, None, Pinging, enable_auto_ping=True, auto_ping_idle_timeout=0.02
    ) as (transport, ours, _):
        await ours.until(lambda: ours.events.count("ping") == 4)
        assert transport.state == picows_fast.WSState.OPEN
        assert ours.frames == []


# --- The closing handshake ------------------------------------------------------------------------


CLOSES = [(1000, ""), (1000, "bye"), (1001, "gone \u20ac"), (3001, "x" * 123), (4999, "mine")]


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_we_close(open_connection, kind, code, reason):
    async with open_connection() as (transport, ours, peer):
        transport.send(WSMsgType.TEXT, "last words")
        transport.send_close(code, reason)
        assert await soon(peer.receive()) == "last words"
        assert await soon(peer.closed()) == (code, reason)
        await ours.closed()
        assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE
        assert transport.close_handshake.sent.code == code
        assert transport.close_handshake.sent.reason == (reason or None)
        answers = (code, 1000) if kind is AiohttpPeer else (code,)  # RFC 6455 5.5.1: "typically"
        assert transport.close_handshake.recv.code in answers
        assert not transport.close_handshake.recv_then_sent
        assert ours.events.count("disconnected") == 1


async def test_we_close_without_a_code(open_connection):
    async with open_connection() as (transport, ours, peer):
        transport.send_close()
        code, reason = await soon(peer.closed())
        assert code in (None, 0, 1000, 1005)  # each has its own way to say "none"
        assert reason == ""
        await ours.closed()
        assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE
        assert transport.close_handshake.sent.code == WSCloseCode.NO_INFO


@pytest.mark.parametrize("enable_auto_close", [False, True], ids=["listener", "auto-close"])
@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_they_close(kind, our_side, tls_contexts, code, reason, enable_auto_close):
    listener = Recorder if enable_auto_close else Ours
    async with interconnected(
        kind, our_side, tls_contexts, listener, enable_auto_close=enable_auto_close
    ) as (transport, ours, peer):
        await soon(peer.send("last words"))
        await soon(peer.close(code, reason))
        await ours.closed()
        assert [frame[0] for frame in ours.frames] == [WSMsgType.TEXT, WSMsgType.CLOSE]
        assert ours.frames[1][1] == code.to_bytes(2, "big") + reason.encode()
        assert transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
        assert transport.close_handshake.recv.code == code
        assert transport.close_handshake.recv.reason == (reason or None)
        assert transport.close_handshake.sent.code == code
        assert transport.close_handshake.recv_then_sent


async def test_we_disconnect_without_a_close(open_connection):
    """They notice at once, and so do we that they did."""
    async with open_connection() as (transport, ours, peer):
        transport.disconnect()
        await ours.closed()
        assert transport.disconnect_cause == WSDisconnectCause.LOCAL_DISCONNECT
        code, _ = await soon(peer.closed())
        assert code in (None, 0, 1000, 1006)  # as each puts it


# --- What the opening handshake negotiates --------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "spoken", "selected"),
    [
        (["one", "two"], ["two", "three"], "two"),
        (["one"], ["one"], "one"),
        (["one"], ["other"], None),
        (None, ["one"], None),
    ],
)
async def test_subprotocols(kind, our_side, offered, spoken, selected):
    mine, theirs = (offered, spoken) if our_side == "client" else (spoken, offered)
    connection = interconnected(
        kind, our_side, None, our_subprotocols=mine, their_subprotocols=theirs
    )
    if kind is WebsocketsPeer and our_side == "client" and selected is None:
        # Its server insists on one of its subprotocols.
        with pytest.raises(picows_fast.WSInvalidStatusError):
            await connection.__aenter__()
        return
    async with connection as (transport, _, peer):
        assert transport.subprotocol == selected
        assert peer.subprotocol == selected


async def test_no_extension_is_accepted(kind, our_side):
    """Their permessage-deflate is declined (RFC 6455 9.1), and messages go uncompressed."""
    async with interconnected(kind, our_side, None) as (transport, ours, peer):
        assert "Sec-WebSocket-Extensions" not in transport.response.headers
        assert peer.extensions == []
        offered = transport.request.headers.get("Sec-WebSocket-Extensions", "")
        if our_side == "server" and kind is not PicowsPeer:
            assert "permessage-deflate" in offered
        else:
            assert not offered
        message = "compressible " * 100
        await soon(peer.send(message))
        assert await ours.frame() == (WSMsgType.TEXT, message.encode(), True)
        transport.send(WSMsgType.TEXT, message)
        assert await soon(peer.receive()) == message
