"""``ws_create_server``: listening, and a transport for each connection that is accepted.

Owns how the two come together. ``listening`` binds and accepts, ``serving`` has the server object,
which counts and limits connections; ``core`` runs each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl as ssl_module
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from .connections import (
    CLOSED,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_IP,
    MAX_PENDING_HANDSHAKES,
    address_key,
)
from .core import WSAutoPingStrategy, WSListener, new_transport
from .handshake import HandshakeRefusedError, ServerHandshake
from .listening import LoopAcceptor, open_listening_sockets
from .logs import resolve_logger
from .net.foreign import ForeignStream
from .net.open import socket_stream, tune_socket, uses_loop_transport, with_tls
from .options import ServerOptions, handshake_limits
from .origins import OriginPolicy
from .proxied import ProxiedProtocol, ProxiedSocket
from .proxy_protocol import ProxyHeader, TrustedProxies
from .serving import Server

if TYPE_CHECKING:
    from .http_messages import (
        WSUpgradeRequest,
        WSUpgradeResponse,
        WSUpgradeResponseWithListener,
    )
    from .net.stream import ByteStream

__all__ = ["ServerListenerFactory", "ws_create_server"]

ServerListenerFactory = Callable[
    ["WSUpgradeRequest"],
    "WSListener | WSUpgradeResponse | WSUpgradeResponseWithListener | None",
]

_REFUSALS: Final = {
    MAX_CONNECTIONS: (HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"),
    MAX_CONNECTIONS_PER_IP: (
        HTTPStatus.TOO_MANY_REQUESTS,
        "too many connections from this address",
    ),
    MAX_PENDING_HANDSHAKES: (HTTPStatus.SERVICE_UNAVAILABLE, "too many handshakes"),
    CLOSED: (HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down"),
}


async def ws_create_server(
    ws_listener_factory: ServerListenerFactory,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    disconnect_on_exception: bool = ServerOptions.disconnect_on_exception,
    websocket_handshake_timeout: float | None = ServerOptions.websocket_handshake_timeout,
    logger_name: str | Any | None = ServerOptions.logger_name,
    enable_auto_ping: bool = ServerOptions.enable_auto_ping,
    auto_ping_idle_timeout: float = ServerOptions.auto_ping_idle_timeout,
    auto_ping_reply_timeout: float = ServerOptions.auto_ping_reply_timeout,
    auto_ping_strategy: WSAutoPingStrategy = WSAutoPingStrategy.PING_WHEN_IDLE,
    enable_auto_pong: bool = ServerOptions.enable_auto_pong,
    max_frame_size: int = ServerOptions.max_frame_size,
    read_buffer_init_size: int = ServerOptions.read_buffer_init_size,
    use_aiofastnet: bool | None = ServerOptions.use_aiofastnet,
    close_timeout: float = ServerOptions.close_timeout,
    enable_auto_close: bool = ServerOptions.enable_auto_close,
    validate_sequence: bool = ServerOptions.validate_sequence,
    write_high_watermark: int = ServerOptions.write_high_watermark,
    write_low_watermark: int = ServerOptions.write_low_watermark,
    max_write_backlog: int | None = ServerOptions.max_write_backlog,
    coalesce_writes: bool = ServerOptions.coalesce_writes,
    subprotocols: Sequence[str] | None = ServerOptions.subprotocols,
    origins: Sequence[str | None] | None = ServerOptions.origins,
    proxy_protocol: Sequence[str] | None = ServerOptions.proxy_protocol,
    max_connections: int | None = ServerOptions.max_connections,
    max_connections_per_ip: int | None = ServerOptions.max_connections_per_ip,
    max_pending_handshakes: int | None = ServerOptions.max_pending_handshakes,
    ssl: ssl_module.SSLContext | None = ServerOptions.ssl,
    sock: socket.socket | None = ServerOptions.sock,
    unix_path: str | bytes | os.PathLike[str] | None = ServerOptions.unix_path,
    backlog: int = ServerOptions.backlog,
    **create_server_kwargs: Any,
) -> Server:
    """Listen for WebSocket connections (RFC 6455 4.2).

    Every setting is described where its default is: :class:`picows_fast.options.ServerOptions`.

    :param ws_listener_factory: called with the :class:`WSUpgradeRequest`. Returns the
        :class:`WSListener` of the connection, a :class:`WSUpgradeResponseWithListener` to say more
        in the response, a :class:`WSUpgradeResponse` to answer plain HTTP, or None for 404. If it
        raises, the client gets 500 and the log the error.
    :param host: address or name to listen on, or several; None or "": every interface
    :param port: port number; 0 or None: a free one, see ``server.sockets[0].getsockname()``
    :param create_server_kwargs: the remaining settings of ``ServerOptions``, such as ``family``,
        ``reuse_port`` or ``start_serving``
    :returns: a :class:`Server`, which has the interface of :class:`asyncio.Server`
    :raises OSError: an address cannot be listened on
    :raises TypeError, ValueError: an argument is not valid
    """
    options = ServerOptions(
        disconnect_on_exception=disconnect_on_exception,
        websocket_handshake_timeout=websocket_handshake_timeout,
        logger_name=logger_name,
        enable_auto_ping=enable_auto_ping,
        auto_ping_idle_timeout=auto_ping_idle_timeout,
        auto_ping_reply_timeout=auto_ping_reply_timeout,
        auto_ping_strategy=auto_ping_strategy,
        enable_auto_pong=enable_auto_pong,
        max_frame_size=max_frame_size,
        read_buffer_init_size=read_buffer_init_size,
        use_aiofastnet=use_aiofastnet,
        close_timeout=close_timeout,
        enable_auto_close=enable_auto_close,
        validate_sequence=validate_sequence,
        write_high_watermark=write_high_watermark,
        write_low_watermark=write_low_watermark,
        max_write_backlog=max_write_backlog,
        coalesce_writes=coalesce_writes,
        subprotocols=subprotocols,
        origins=origins,
        proxy_protocol=proxy_protocol,
        max_connections=max_connections,
        max_connections_per_ip=max_connections_per_ip,
        max_pending_handshakes=max_pending_handshakes,
        ssl=ssl,
        sock=sock,
        unix_path=unix_path,
        backlog=backlog,
        **create_server_kwargs,
    )
    if not callable(ws_listener_factory):
        raise TypeError(
            f"ws_listener_factory must be callable, got {type(ws_listener_factory).__name__}"
        )
    loop = asyncio.get_running_loop()
    logger = resolve_logger(options.logger_name, "server")
    sockets = await open_listening_sockets(
        loop,
        host,
        port,
        family=options.family,
        flags=options.flags,
        sock=options.sock,
        backlog=options.backlog,
        reuse_address=options.reuse_address,
        reuse_port=options.reuse_port,
        unix_path=options.unix_path,
        listen=options.start_serving,
    )
    try:
        for listening in sockets:
            tune_socket(
                listening,
                so_busy_poll=options.so_busy_poll,
                so_prefer_busy_poll=options.so_prefer_busy_poll,
                so_incoming_cpu=options.so_incoming_cpu,
                rx_timestamps=options.rx_timestamps,
            )
    except BaseException:
        for listening in sockets:
            listening.close()
        raise

    policy = None if options.origins is None else OriginPolicy(options.origins)
    limits = handshake_limits(options)
    proxies = None if options.proxy_protocol is None else TrustedProxies(options.proxy_protocol)
    counts_addresses = options.max_connections_per_ip is not None
    limits_upgrades = counts_addresses or options.max_connections is not None
    is_secure = options.ssl is not None

    def serve(
        address: Any,
        make_stream: Callable[[], ByteStream],
        turn_away: Callable[[bytes | None], None],
        end: Callable[[], None],
        *,
        is_new: bool = True,
        due: float | None = None,
    ) -> None:
        """Serve what was accepted from this address, or turn it away. Whatever fails is ended,
        counted and logged.

        ``make_stream`` takes over what was accepted, until when ``end`` ends it. ``turn_away``
        ends it with a response, None: without one. A connection that is not new has taken the
        place of one whose handshake is ``due`` at this time.
        """
        stream = transport = None
        try:
            key = address_key(address) if counts_addresses else None
            reason = server.reason_to_turn_away(key, is_new=is_new)
            if reason is not None:
                turn_away(None if is_secure else _refusal_bytes(reason))
                return
            stream = make_stream()
            handshake = ServerHandshake(
                limits=limits, subprotocols=options.subprotocols, origins=policy
            )
            transport = new_transport(
                loop,
                stream,
                options,
                handshake,
                _limited(ws_listener_factory, server, key)
                if limits_upgrades
                else ws_listener_factory,
                logger,
                is_client_side=False,
                is_secure=is_secure,
                server=server,
            )
            server.attach(transport, key, due)
            transport._serve()
        except BaseException as error:
            try:
                end() if stream is None else stream.abort()
            finally:
                server.set_up_failed(transport, address, error)
            if not isinstance(error, Exception):
                raise

    def on_socket(accepted: socket.socket, address: Any) -> None:
        if proxies is not None and proxies.trusts(address):
            await_header(accepted, address)
        else:
            serve_socket(accepted, address)

    def serve_socket(
        accepted: socket.socket,
        address: Any,
        noted: dict[str, Any] | None = None,
        due: float | None = None,
    ) -> None:
        def make_stream() -> ByteStream:
            return socket_stream(
                loop,
                accepted,
                options.ssl,
                server_side=True,
                handshake_timeout=options.ssl_handshake_timeout,
                tcp_quickack=options.tcp_quickack,
                rx_timestamps=options.rx_timestamps,
                peername=address,
                noted=noted,
            )

        serve(
            address,
            make_stream,
            partial(_turn_away, accepted),
            accepted.close,
            is_new=noted is None,
            due=due,
        )

    def await_header(accepted: socket.socket, proxy: Any) -> None:
        def take(sock: socket.socket, header: ProxyHeader, due: float | None) -> None:
            noted = _noted(header, proxy)
            serve_socket(sock, noted["peername"], noted, due)

        reason = server.reason_to_turn_away(None)
        if reason is not None:
            _turn_away(accepted, None if is_secure else _refusal_bytes(reason))
            return
        ProxiedSocket(loop, server, accepted, proxy, take, logger).start()

    def make_protocol() -> asyncio.BaseProtocol:
        if proxies is not None:
            return ProxiedProtocol(server, proxies.trusts, turn_away_full, take_transport, logger)

        def on_connected(transport: asyncio.Transport) -> None:
            serve_transport(stream, transport)

        stream = ForeignStream(loop, on_connected)
        return stream.protocol

    def turn_away_full(transport: asyncio.Transport) -> bool:
        reason = server.reason_to_turn_away(None)
        if reason is not None:
            _turn_transport_away(transport, None if is_secure else _refusal_bytes(reason))
        return reason is not None

    def take_transport(
        transport: asyncio.Transport, header: ProxyHeader | None, rest: bytes, due: float | None
    ) -> None:
        noted = None
        if header is not None:
            noted = _noted(header, transport.get_extra_info("peername"))
        serve_transport(ForeignStream(loop), transport, noted, rest, due)

    def serve_transport(
        stream: ForeignStream,
        transport: asyncio.Transport,
        noted: dict[str, Any] | None = None,
        rest: bytes = b"",
        due: float | None = None,
    ) -> None:
        def make_stream() -> ByteStream:
            if proxies is not None:
                stream.attach(transport)
                if noted is not None:
                    stream.note_extra_info(noted)
                if rest:
                    stream.push(rest)
            accepted = stream.get_extra_info("socket")
            if options.keep_alive and accepted is not None:
                # The peer may be gone already, which some systems report here.
                with contextlib.suppress(OSError):
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return with_tls(
                stream,
                options.ssl,
                server_side=True,
                handshake_timeout=options.ssl_handshake_timeout,
            )

        serve(
            transport.get_extra_info("peername") if noted is None else noted["peername"],
            make_stream,
            partial(_turn_transport_away, transport),
            transport.abort,
            is_new=noted is None,
            due=due,
        )

    acceptor = None
    if uses_loop_transport(loop, options.use_loop_transport):
        acceptor = LoopAcceptor(loop, sockets, make_protocol, backlog=options.backlog)
    server = Server(
        loop,
        sockets,
        on_socket,
        acceptor=acceptor,
        backlog=options.backlog,
        keep_alive=bool(options.keep_alive),
        unix_path=options.unix_path,
        logger=logger,
        max_connections=options.max_connections,
        max_connections_per_ip=options.max_connections_per_ip,
        max_pending_handshakes=options.max_pending_handshakes,
        handshake_timeout=options.websocket_handshake_timeout,
    )
    if options.start_serving:
        try:
            await server.start_serving()
        except BaseException:
            server.close()
            raise
    return server


def _limited(
    factory: ServerListenerFactory, server: Server, key: str | None
) -> ServerListenerFactory:
    """The factory, behind the limits on WebSocket connections; plain HTTP passes."""

    def limited(
        request: WSUpgradeRequest,
    ) -> WSListener | WSUpgradeResponse | WSUpgradeResponseWithListener | None:
        reason = server.reason_to_refuse(key) if request.is_upgrade else None
        if reason is not None:
            raise _refusal(reason)
        return factory(request)

    return limited


def _refusal(reason: str) -> HandshakeRefusedError:
    status, text = _REFUSALS[reason]
    return HandshakeRefusedError(status, text, reason)


def _refusal_bytes(reason: str) -> bytes:
    return ServerHandshake().reject(_refusal(reason)).to_bytes()


def _noted(header: ProxyHeader, proxy: Any) -> dict[str, Any]:
    """What get_extra_info() says of a connection that came by a proxy."""
    source = proxy if header.source is None else header.source
    return {"peername": source, "proxy_peername": proxy}


def _turn_transport_away(transport: asyncio.Transport, response: bytes | None) -> None:
    if response is not None:
        transport.write(response)
    transport.close()


def _turn_away(accepted: socket.socket, response: bytes | None) -> None:
    """End a connection before its request was read; say why, if that costs no waiting."""
    with accepted, contextlib.suppress(OSError):
        if response is not None:
            # A socket with something unread is closed by a reset, which may destroy the response.
            with contextlib.suppress(BlockingIOError):
                accepted.recv(16 * 1024)
            accepted.send(response)
            accepted.shutdown(socket.SHUT_WR)
