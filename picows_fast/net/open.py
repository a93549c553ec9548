"""Which ByteStream a connection gets, and how it is put on what was connected or accepted.

Each function owns what it is given from the call on: if it raises, it has ended that first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

from .loop_transport import ForeignStream
from .sockopts import tune_socket
from .tls_bio import TlsStream

if sys.platform != "win32":
    from .tcp import TcpStream
    from .tls_fd import DirectTlsStream

if TYPE_CHECKING:
    from .stream import ByteStream

__all__ = [
    "end_connection",
    "open_stream",
    "socket_stream",
    "tune_socket",
    "uses_loop_transport",
    "with_tls",
]


def uses_loop_transport(loop: asyncio.AbstractEventLoop, wanted: bool | None) -> bool:
    """Whether bytes go through a transport of the loop's: if wanted, or if nothing else can be."""
    if sys.platform == "win32" or type(loop).add_reader is asyncio.AbstractEventLoop.add_reader:
        return True
    proactor = getattr(asyncio, "ProactorEventLoop", None)  # of Windows
    if proactor is not None and isinstance(loop, proactor):
        return True
    return bool(wanted)


async def open_stream(
    loop: asyncio.AbstractEventLoop,
    connection: socket.socket | asyncio.Transport,
    *,
    use_loop_transport: bool | None = None,
    context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    handshake_timeout: float | None = None,
    busy_poll: float = 0.0,
    tcp_quickack: bool = False,
    rx_timestamps: bool = False,
) -> ByteStream:
    """Return the stream of a client's connection; it is not started yet.

    :param connection: a connected, non-blocking socket, or a transport whose reading is paused
    :param context: for TLS; None: none
    :param handshake_timeout: of TLS, seconds
    :param busy_poll: seconds to spin after a read; not over a transport
    :param tcp_quickack: keep TCP_QUICKACK on; not over a transport
    :param rx_timestamps: have the kernel note when data comes; not over a transport
    """
    if isinstance(connection, socket.socket) and not uses_loop_transport(loop, use_loop_transport):
        return socket_stream(
            loop,
            connection,
            context,
            server_hostname=server_hostname,
            session=session,
            handshake_timeout=handshake_timeout,
            busy_poll=busy_poll,
            tcp_quickack=tcp_quickack,
            rx_timestamps=rx_timestamps,
        )
    try:
        stream = ForeignStream(loop)
        try:
            if isinstance(connection, socket.socket):
                await loop.create_connection(lambda: stream.protocol, sock=connection)
            else:
                stream.attach(connection)
        except BaseException:
            stream.give_up()
            raise
    except BaseException:
        end_connection(connection)
        raise
    return with_tls(
        stream,
        context,
        server_hostname=server_hostname,
        session=session,
        handshake_timeout=handshake_timeout,
    )


def end_connection(connection: socket.socket | asyncio.Transport) -> None:
    """End what no stream owns yet. Does nothing if it has ended."""
    if isinstance(connection, socket.socket):
        connection.close()
    else:
        connection.abort()


def socket_stream(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    context: ssl.SSLContext | None,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    handshake_timeout: float | None = None,
    busy_poll: float = 0.0,
    tcp_quickack: bool = False,
    rx_timestamps: bool = False,
    peername: Any = None,
    noted: dict[str, Any] | None = None,
) -> ByteStream:
    """Return the stream of a connected, non-blocking socket.

    :param handshake_timeout: of TLS, seconds
    :param busy_poll: seconds to spin after a read
    :param tcp_quickack: keep TCP_QUICKACK on
    :param rx_timestamps: have the kernel note when data comes
    :param peername: the peer's address, if it is known; None: the system is asked
    :param noted: what get_extra_info() is to say, whatever the system does
    """
    stream: TcpStream | None = None
    try:
        if tcp_quickack or rx_timestamps:
            is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
            tcp_quickack = tcp_quickack and is_tcp
            rx_timestamps = rx_timestamps and is_tcp
        if context is not None:
            stream = DirectTlsStream.create(
                loop,
                sock,
                context,
                server_side=server_side,
                server_hostname=server_hostname,
                session=session,
                handshake_timeout=handshake_timeout,
            )
        is_direct = stream is not None
        if stream is None:
            stream = TcpStream(loop, sock)
        stream.tune(busy_poll=busy_poll, quick_ack=tcp_quickack, timestamps=rx_timestamps)
        if peername is None:
            with contextlib.suppress(OSError):
                peername = sock.getpeername()  # after a reset the system does not know it any more
        stream.note_peername(peername)
        if noted is not None:
            stream.note_extra_info(noted)
    except BaseException:
        if stream is not None:
            stream.abort()
        else:
            sock.close()
        raise
    if is_direct or context is None:
        return stream
    return with_tls(
        stream,
        context,
        server_side=server_side,
        server_hostname=server_hostname,
        session=session,
        handshake_timeout=handshake_timeout,
    )


def with_tls(
    stream: ByteStream,
    context: ssl.SSLContext | None,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    handshake_timeout: float | None = None,
) -> ByteStream:
    """Return the stream with TLS laid over it, or the stream itself if there is no context."""
    if context is None:
        return stream
    try:
        return TlsStream(
            stream,
            context,
            server_side=server_side,
            server_hostname=server_hostname,
            session=session,
            handshake_timeout=handshake_timeout,
        )
    except BaseException:
        stream.abort()
        raise
