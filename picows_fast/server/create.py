"""``serve`` and ``ws_create_server``: from arguments to a server that listens.

Owns how the parts come together: ``net.listen`` binds and accepts, ``admission`` makes connections
of what was accepted, ``server`` has the server object, which counts and limits them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core import WSAutoPingStrategy, WSListener
from ..net.listen import LoopAcceptor, open_listening_sockets
from ..net.open import tune_socket, uses_loop_transport
from ..options import ServerOptions, check_names, checked_options
from ..transport.callables import check_factory
from ..transport.logs import resolve_logger
from .admission import Admission, ServerListenerFactory
from .server import Server

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..typed_settings import ServerSettings

__all__ = ["ServerListenerFactory", "serve", "ws_create_server"]


async def serve(
    ws_listener_factory: ServerListenerFactory,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    options: ServerOptions | None = None,
) -> Server:
    """Listen for WebSocket connections (RFC 6455 4.2), with settings that were made before.

    The same as :func:`ws_create_server`, which makes the options of its keyword arguments: it
    returns and raises the same. For settings that several servers share, or that a program keeps.

    :param ws_listener_factory: as of :func:`ws_create_server`
    :param host: address or name to listen on, or several; None or "": every interface
    :param port: port number; 0 or None: a free one
    :param options: the settings; None: the defaults
    :returns: a :class:`Server`
    :raises TypeError: ``options`` is no :class:`ServerOptions`
    """
    options = checked_options("serve", options, ServerOptions)
    check_factory(
        ws_listener_factory,
        "ws_listener_factory",
        "a WSListener, a WSUpgradeResponse or None",
        WSListener,
        is_awaited=True,
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

    admission = Admission(loop, ws_listener_factory, options, logger)
    acceptor = None
    if uses_loop_transport(loop, options.use_loop_transport):
        acceptor = LoopAcceptor(loop, sockets, admission.make_protocol, backlog=options.backlog)
    server = admission.server = Server(
        loop,
        sockets,
        admission.on_socket,
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
    max_reading_pause: float | None = ServerOptions.max_reading_pause,
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
    **create_server_kwargs: Unpack[ServerSettings],
) -> Server:
    """Listen for WebSocket connections (RFC 6455 4.2).

    Every setting is described where its default is: :class:`picows_fast.options.ServerOptions`.
    :func:`serve` takes such an object in place of keyword arguments.

    :param ws_listener_factory: called with the :class:`WSUpgradeRequest`. Returns the
        :class:`WSListener` of the connection, a :class:`WSUpgradeResponseWithListener` to say more
        in the response, a :class:`WSUpgradeResponse` to answer plain HTTP, or None for 404. If it
        raises, the client gets 500 and the log the error. It may be a coroutine function, or
        return another awaitable: the request waits, within ``websocket_handshake_timeout``.
    :param host: address or name to listen on, or several; None or "": every interface
    :param port: port number; 0 or None: a free one, see ``server.sockets[0].getsockname()``
    :param create_server_kwargs: the remaining settings of ``ServerOptions``, such as ``family``,
        ``reuse_port`` or ``start_serving``
    :returns: a :class:`Server`, which has the interface of :class:`asyncio.Server`
    :raises OSError: an address cannot be listened on
    :raises TypeError, ValueError: an argument is not valid
    """
    check_names("ws_create_server", create_server_kwargs, ServerOptions)
    options = ServerOptions(
        disconnect_on_exception=disconnect_on_exception,
        websocket_handshake_timeout=websocket_handshake_timeout,
        logger_name=logger_name,
        enable_auto_ping=enable_auto_ping,
        auto_ping_idle_timeout=auto_ping_idle_timeout,
        auto_ping_reply_timeout=auto_ping_reply_timeout,
        max_reading_pause=max_reading_pause,
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
    return await serve(ws_listener_factory, host, port, options)
