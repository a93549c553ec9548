"""What type checkers must say about the public API: checked by `dev.py types`, never run.

mypy and pyright accept each line of it. A line that ends in `type: ignore[...]` is a mistake that
both must find: they complain about a comment that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from typing_extensions import Unpack, assert_type, override

import picows_fast
from picows_fast import (
    ClientHandshake,
    ClientOptions,
    FrameParser,
    Negotiated,
    Server,
    ServerOptions,
    ServerStats,
    WSCloseCode,
    WSCloseHandshake,
    WSCloseInfo,
    WSDisconnectCause,
    WSError,
    WSFrame,
    WSInvalidStatusError,
    WSListener,
    WSMsgType,
    WSParsedURL,
    WSPeerProtocolError,
    WSProxyError,
    WSState,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    WSViolation,
    build_close_payload,
    build_frame,
    connect,
    is_transient,
    parse_url,
    serve,
    ws_connect,
    ws_create_server,
)
from picows_fast.layers.broadcast import Channel, SlowConsumer, Subscription
from picows_fast.layers.messages import MessageAssembler, WSMessageListener
from picows_fast.layers.routing import Router
from picows_fast.typed_settings import ClientSettings

# What a subclass may override


class Everything(WSListener):
    @override
    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, "text")

    @override
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame, frame.fin)

    @override
    def on_ws_disconnected(self, transport: WSTransport) -> None: ...

    @override
    def send_user_specific_ping(self, transport: WSTransport) -> None: ...

    @override
    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        return frame.payload_size == 4

    @override
    def pause_writing(self) -> None: ...

    @override
    def resume_writing(self) -> None: ...


class WithArguments(WSListener):
    """A listener's own constructor is its own affair."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol


class OtherNames(WSListener):
    """A callback may name its parameters as it likes."""

    @override
    def on_ws_frame(self, connection: WSTransport, received: WSFrame) -> None:
        assert_type(connection.send(received.msg_type, received), bool)

    @override
    def on_ws_closing(self, connection: WSTransport) -> None:
        assert_type(connection.disconnect_cause, WSDisconnectCause | None)


class Misspelt(WSListener):
    @override
    def on_ws_frmae(self, transport: WSTransport, frame: WSFrame) -> None: ...  # type: ignore[misc]


class NotACoroutine(WSListener):
    """A coroutine would never be awaited."""

    async def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None: ...  # type: ignore[override]


class WrongArguments(WSListener):
    def on_ws_connected(self) -> None: ...  # type: ignore[override]


class Transport(WSTransport): ...  # type: ignore[misc]


class Messages(WSMessageListener):
    def __init__(self) -> None:
        super().__init__(max_message_size=1024, max_fragments=16, check_unfinished_text=True)

    @override
    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        assert_type(payload.get_payload_as_utf8_text(), str)

    @override
    def on_ws_control(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_control(transport, frame)


# What a factory may be and return


async def clients(context: ssl.SSLContext, connected: socket.socket) -> None:
    transport, everything = await ws_connect(Everything, "ws://localhost/")
    assert_type(transport, WSTransport)
    assert_type(everything, Everything)

    _, with_arguments = await ws_connect(lambda: WithArguments("BTC"), "ws://localhost/")
    assert_type(with_arguments.symbol, str)

    def by_response(request: WSUpgradeRequest, response: WSUpgradeResponse) -> Messages:
        return Messages()

    _, messages = await ws_connect(by_response, "wss://localhost/", ssl_context=context)
    assert_type(messages, Messages)

    async def socket_of_the_application(url: WSParsedURL) -> socket.socket | None:
        return None

    await ws_connect(
        Everything,
        "ws://localhost/",
        close_timeout=1,
        max_write_backlog=None,
        subprotocols=("v1", "v2"),
        extra_headers=[("X-Key", "value")],
        socket_factory=socket_of_the_application,
        local_addr=("127.0.0.1", 0),
    )
    await ws_connect(Everything, "ws://localhost/", extra_headers={"X-Key": "value"})

    def nothing() -> None: ...

    async def later() -> WSListener:
        return WSListener()

    await ws_connect(nothing, "ws://localhost/")  # type: ignore[type-var]
    await ws_connect(later, "ws://localhost/")  # type: ignore[type-var]
    await ws_connect(WithArguments, "ws://localhost/")  # type: ignore[arg-type]
    await ws_connect(Everything(), "ws://localhost/")  # type: ignore[arg-type]
    await ws_connect(Everything, "ws://localhost/", close_timeout="1")  # type: ignore[arg-type]
    await ws_connect(Everything, "ws://localhost/", busy_poll="lots")  # type: ignore[arg-type]
    await ws_connect(Everything, "ws://localhost/", local_addr=5)  # type: ignore[arg-type]
    await ws_connect(Everything, "ws://localhost/", rx_timestamp=True)  # type: ignore[call-arg]
    await ws_connect(Everything, "ws://localhost/", enable_autoping=True)  # type: ignore[call-arg]
    await ws_connect(Everything, "ws://localhost/", rx_timestamps=True, raise_if_not_sent=True)


async def wrapper(url: str, **settings: Unpack[ClientSettings]) -> WSTransport:
    """Settings may be passed on."""
    return (await ws_connect(Everything, url, **settings))[0]


async def failures() -> None:
    try:
        await ws_connect(
            WSListener,
            "ws://127.0.0.1/",
            redirect_keeps=["X-Region", "ssl_context"],
            user_agent=None,
            max_head_size=32 * 1024,
            max_header_count=200,
            max_refusal_size=1024,
        )
    except WSProxyError as error:
        assert_type(error.error_code, int | None)
    except WSInvalidStatusError as error:
        assert_type(error.retry_after, float | None)
    except WSError as error:
        assert_type(error.phase, str | None)
        assert_type(error.host, str | None)
        assert_type(error.port, int | None)
        assert_type(error.is_transient, bool)
    except OSError as error:
        assert_type(is_transient(error), bool)


async def options_as_an_object() -> None:
    options = ClientOptions(enable_auto_ping=True)
    assert_type(
        await connect(Everything, "ws://127.0.0.1/", options), tuple[WSTransport, Everything]
    )
    assert_type(await serve(lambda request: None, None, 0, ServerOptions()), Server)


async def servers() -> None:
    def listener(request: WSUpgradeRequest) -> Everything:
        assert_type(request.path, bytes)
        return Everything()

    def http(request: WSUpgradeRequest) -> WSUpgradeResponse:
        return WSUpgradeResponse.create_ok_response(b"ok")

    def nothing(request: WSUpgradeRequest) -> None: ...

    def any_of_them(
        request: WSUpgradeRequest,
    ) -> WSListener | WSUpgradeResponse | WSUpgradeResponseWithListener | None:
        response = WSUpgradeResponse.create_101_response({"X-Session": "1"})
        return WSUpgradeResponseWithListener(response, Everything())

    router = Router()

    @router.websocket("/feed/{symbol}")
    def feed(request: WSUpgradeRequest, symbol: str) -> WSListener:
        return WithArguments(symbol)

    @router.http("/health")
    def health(request: WSUpgradeRequest) -> str:
        return "ok"

    @router.websocket("/later")
    async def feed_later(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener | None:
        assert_type(request.peername, Any)
        assert_type(request.sockname, Any)
        assert_type(request.ssl_object, Any)
        return None

    @router.http("/later")
    async def text_later(request: WSUpgradeRequest) -> str | None:
        return await asyncio.sleep(0, "ok")

    assert_type(await feed_later(WSUpgradeRequest()), WSUpgradeResponseWithListener | None)
    assert_type(await text_later(WSUpgradeRequest()), str | None)

    server = await ws_create_server(listener, "127.0.0.1", 0)
    assert_type(server, Server)
    assert_type(server.stats(), ServerStats)
    for factory in (http, nothing, any_of_them, router):
        await ws_create_server(
            factory, ["127.0.0.1", "::1"], 0, origins=[None, "https://a.example"]
        )
    await ws_create_server(http, "127.0.0.1", 0, proxy_protocol=("10.0.0.0/8", "unix"))
    await ws_create_server(lambda request: Everything(), unix_path="/run/feed.sock")
    async with server:
        await server.shutdown(code=WSCloseCode.GOING_AWAY, reason="bye", timeout=1, spread=0.5)

    async def later(request: WSUpgradeRequest) -> WSListener:
        return WSListener()

    await ws_create_server(later, "127.0.0.1", 0)
    await ws_create_server(lambda request: asyncio.ensure_future(later(request)), "127.0.0.1", 0)

    async def number(request: WSUpgradeRequest) -> int:
        return 1

    await ws_create_server(number, "127.0.0.1", 0)  # type: ignore[arg-type]
    router.http("/number")(number)  # type: ignore[type-var]
    await ws_create_server(listener, "127.0.0.1", 0, reuse_port=True)
    await ws_create_server(listener, "127.0.0.1", 0, reuse_port="no")  # type: ignore[arg-type]
    await ws_create_server(listener, "127.0.0.1", 0, max_conections=5)  # type: ignore[call-arg]
    await ws_create_server(Everything, "127.0.0.1", 0)  # type: ignore[arg-type]
    await ws_create_server(listener, "127.0.0.1", "9001")  # type: ignore[arg-type]


# The transport and the frame


async def transports(transport: WSTransport) -> None:
    for message in ("text", b"bytes", bytearray(4), memoryview(b"view"), None):
        transport.send(WSMsgType.BINARY, message)
        transport.send_ping(message)
        transport.send_close(WSCloseCode.OK, message)
    transport.send_close()
    transport.send_close(4000, "a code of the application's")
    transport.send_reuse_external_bytearray(WSMsgType.BINARY, bytearray(20), 14)
    transport.send_reuse_external_bytearray(WSMsgType.TEXT, b"", 14)  # type: ignore[arg-type]
    transport.send(WSMsgType.TEXT, 1)  # type: ignore[arg-type]
    transport.send(WSMsgType.TEXT, ["text"])  # type: ignore[arg-type]
    WSTransport.send_pong(transport)
    assert_type(transport.state, WSState)
    assert_type(transport.disconnect_cause, WSDisconnectCause | None)
    assert_type(transport.disconnect_exception, BaseException | None)
    assert_type(transport.close_handshake, WSCloseHandshake | None)
    assert_type(transport.subprotocol, str | None)
    assert_type(transport.negotiated, Negotiated)
    assert_type(transport.negotiated.subprotocol, str | None)
    assert_type(transport.negotiated.allowed_rsv, int)
    assert_type(transport.listener, WSListener | None)
    assert_type(transport.request, WSUpgradeRequest)
    assert_type(transport.response, WSUpgradeResponse)
    assert_type(transport.write_backlog, int)
    assert_type(transport.ssl_session, ssl.SSLSession | None)
    assert_type(await transport.measure_roundtrip_time(3), list[float])
    waiting: Awaitable[None] = transport.wait_disconnected()
    await asyncio.wait_for(waiting, 1)
    if transport.close_handshake is not None:
        assert_type(transport.close_handshake.recv, WSCloseInfo | None)
    transport.close_handshake.recv  # type: ignore[union-attr]  # noqa: B018


def read_only(transport: WSTransport, frame: WSFrame) -> None:
    transport.state = WSState.CLOSED  # type: ignore[misc]
    frame.fin = False  # type: ignore[misc]


def frames(frame: WSFrame) -> None:
    assert_type(frame.msg_type, WSMsgType)
    assert_type(frame.fin, bool)
    assert_type(frame.payload_size, int)
    assert_type(frame.get_payload_as_bytes(), bytes)
    assert_type(frame.get_payload_as_utf8_text(), str)
    assert_type(frame.get_payload_as_memoryview(), memoryview)
    assert_type(frame.get_close_reason(), str | None)
    assert_type(frame.get_close_message(), bytes | None)
    assert_type(bytes(frame), bytes)
    assert_type(memoryview(frame), memoryview)


# The protocol without I/O


def protocol(data: bytes) -> None:
    parser = FrameParser(is_client=True, max_frame_size=1024)
    parser.feed(data)
    assert_type(parser.next_frame(), WSFrame | None)
    assembler = MessageAssembler(max_message_size=1024)
    for frame in parser:
        assert_type(frame, WSFrame)
        assert_type(assembler.add(frame), WSFrame | None)
    assert_type(build_frame(WSMsgType.TEXT, "text", mask=True), bytes)
    assert_type(build_close_payload(WSCloseCode.OK, "reason"), bytes)
    FrameParser(True)  # type: ignore[call-arg]
    url = parse_url("wss://localhost/")
    assert_type(url, WSParsedURL)
    assert_type(ClientHandshake(url).receive_data(data), WSUpgradeResponse | None)
    try:
        parser.next_frame()
    except WSPeerProtocolError as error:
        assert_type(error.violation, WSViolation)


# Layers


def channels(transport: WSTransport) -> None:
    def snapshot(transport: WSTransport) -> list[tuple[WSMsgType, str, str]]:
        return [(WSMsgType.TEXT, "97000", "BTC")]

    channel = Channel("prices", policy=SlowConsumer.CONFLATE, snapshot=snapshot, max_bytes=1024)
    subscription = channel.subscribe(transport, policy=SlowConsumer.DROP_OLDEST)
    assert_type(subscription, Subscription)
    assert_type(channel.publish(WSMsgType.TEXT, "97000", key="BTC"), int)
    assert_type(list(channel), list[Subscription])
    assert_type(subscription.slow_since, float | None)
    channel.publish(WSMsgType.TEXT, "97000", key=1.5)  # type: ignore[arg-type]
    Channel("prices", policy="conflate")  # type: ignore[arg-type]


def loops() -> None:
    async def main() -> int:
        return 1

    assert_type(picows_fast.run(main(), busy_poll=1e-4), int)
    make: Callable[[], asyncio.AbstractEventLoop] = picows_fast.new_event_loop
    make().close()
