"""``attach``: a WebSocket connection on what is connected and upgraded already.

Owns the choice of a stream for what is given, and its end if that fails. The opening handshake was
somebody else's; all that follows is the transport's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from .core import WSListener, WSTransport, new_transport
from .net.loop_transport import ForeignStream
from .net.open import end_connection, socket_stream, tune_socket, uses_loop_transport
from .net.stream import ByteStream
from .options import ClientOptions, ServerOptions
from .protocol.upgrade import Negotiated
from .transport.logs import resolve_logger

if TYPE_CHECKING:
    from .protocol.http.messages import WSUpgradeRequest, WSUpgradeResponse

__all__ = ["attach"]

_OPTIONS: Final[dict[str, type[ClientOptions | ServerOptions]]] = {
    "client": ClientOptions,
    "server": ServerOptions,
}


class _Handshake:
    """What the transport asks of an opening handshake of ours."""

    __slots__ = ("negotiated",)

    def __init__(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated


def attach(
    listener: WSListener,
    connection: socket.socket | asyncio.WriteTransport | ByteStream,
    *,
    role: Literal["client", "server"],
    leftover: bytes | bytearray | memoryview = b"",
    negotiated: Negotiated | None = None,
    request: WSUpgradeRequest | None = None,
    response: WSUpgradeResponse | None = None,
    options: ClientOptions | ServerOptions | None = None,
) -> WSTransport:
    """Make a WebSocket connection of one whose opening handshake (RFC 6455 4) is done elsewhere.

    To be called in the event loop that the connection belongs to. ``on_ws_connected`` is called
    before this returns; frames come in later turns of the loop, those in ``leftover`` first. The
    connection belongs to this call, also if it raises: then it is ended.

    :param connection: a connected stream socket without TLS; an :class:`asyncio.Transport`, with
        or without TLS, paused or not; or a ``ByteStream`` that nobody uses and that is not started
    :param role: which side we are: "client" masks its frames, "server" expects masked ones
    :param leftover: bytes that have already come behind the handshake
    :param negotiated: the subprotocol and the extensions, None: neither. Frames with reserved bits
        that an extension may set are given out as they are.
    :param request: for ``transport.request``
    :param response: for ``transport.response``
    :param options: the settings, None: the defaults. Those that concern listening, connecting, TLS
        and the opening handshake have no effect.
    :returns: the transport, open unless ``on_ws_connected`` has ended it
    :raises TypeError, ValueError: an argument is not valid; a socket on an event loop that has no
        ``add_reader``, or with ``use_loop_transport``
    :raises OSError: the connection is not there any more
    :raises RuntimeError: no event loop is running
    """
    if isinstance(connection, asyncio.StreamWriter) or not (
        isinstance(connection, (socket.socket, ByteStream)) or hasattr(connection, "set_protocol")
    ):
        raise TypeError(
            "attach: connection must be a socket, an asyncio.Transport or a ByteStream, "
            f"got {type(connection).__name__}"
        )
    stream: ByteStream | None = None
    transport: WSTransport | None = None
    try:
        loop = asyncio.get_running_loop()
        data, settings = _checked(listener, role, leftover, negotiated, options)
        stream = _stream_of(loop, connection, settings)
        stream.push(data)
        transport = new_transport(
            loop,
            stream,
            settings,
            _Handshake(negotiated or Negotiated()),
            None,
            resolve_logger(settings.logger_name, role),
            is_client_side=role == "client",
            is_secure=stream.get_extra_info("sslcontext") is not None
            or stream.get_extra_info("ssl_object") is not None,
        )
        transport._attached(listener, request, response)
    except BaseException:
        if transport is not None:
            transport.disconnect(graceful=False)
        elif stream is not None:
            stream.abort()
        elif isinstance(connection, ByteStream):
            connection.abort()
        else:
            end_connection(cast("asyncio.Transport", connection))
        # The error's traceback refers to this frame.
        stream = transport = None
        raise
    return transport


def _checked(
    listener: Any,
    role: Any,
    leftover: Any,
    negotiated: Any,
    options: Any,
) -> tuple[bytes, ClientOptions | ServerOptions]:
    """Return the leftover and the settings."""
    if not isinstance(listener, WSListener):
        raise TypeError(f"attach: listener must be a WSListener, got {type(listener).__name__}")
    if role not in ("client", "server"):
        raise ValueError(f'attach: role must be "client" or "server", got {role!r}')
    if not isinstance(leftover, (bytes, bytearray, memoryview)):
        raise TypeError(f"attach: leftover must be bytes, got {type(leftover).__name__}")
    if negotiated is not None and not isinstance(negotiated, Negotiated):
        raise TypeError(f"attach: negotiated must be a Negotiated, got {type(negotiated).__name__}")
    kind = _OPTIONS[role]
    if options is None:
        options = kind()
    elif not isinstance(options, kind):
        raise TypeError(
            f'attach: options of role "{role}" must be {kind.__name__}, '
            f"got {type(options).__name__}"
        )
    return bytes(leftover), options


def _stream_of(
    loop: asyncio.AbstractEventLoop,
    connection: socket.socket | asyncio.WriteTransport | ByteStream,
    options: ClientOptions | ServerOptions,
) -> ByteStream:
    if isinstance(connection, ByteStream):
        if connection.loop is not loop:
            raise ValueError("attach: connection belongs to another event loop")
        if connection.is_taken():
            raise ValueError("attach: connection is in use, or closed")
        return connection
    if isinstance(connection, socket.socket):
        return _socket_stream(loop, connection, options)
    if connection.is_closing():
        raise ConnectionAbortedError("attach: connection is closing already")
    stream = ForeignStream(loop)
    try:
        stream.attach(cast("asyncio.Transport", connection))
    except BaseException:
        stream.give_up()
        raise
    return stream


def _socket_stream(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, options: ClientOptions | ServerOptions
) -> ByteStream:
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError("attach: connection must not be an ssl.SSLSocket; give a transport")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"attach: connection must be a stream socket, got {sock.type!r}")
    if uses_loop_transport(loop, options.use_loop_transport):
        raise ValueError(
            "attach: a socket needs a transport of the event loop here: give what "
            "loop.create_connection(asyncio.Protocol, sock=sock) returns"
        )
    sock.setblocking(False)
    peername = sock.getpeername()  # raises if it is not connected
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tune_socket(
        sock,
        so_busy_poll=options.so_busy_poll,
        so_prefer_busy_poll=options.so_prefer_busy_poll,
        so_incoming_cpu=options.so_incoming_cpu,
        rx_timestamps=options.rx_timestamps,
    )
    return socket_stream(
        loop,
        sock,
        None,
        busy_poll=options.busy_poll if isinstance(options, ClientOptions) else 0.0,
        tcp_quickack=options.tcp_quickack,
        rx_timestamps=options.rx_timestamps,
        peername=peername,
    )
