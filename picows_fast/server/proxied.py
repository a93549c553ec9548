"""Accepted connections whose PROXY header is awaited, before TLS and HTTP.

Owns reading the header, and not a byte more, from a socket or from a transport of the event loop's.
To the server each is a connection in its handshake, until another takes its place. The syntax of
the header is ``proxy_protocol``'s.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

from ..protocol.proxy_protocol import ProxyHeader, ProxyHeaderError, ProxyHeaderReader
from ..protocol.upgrade import HandshakeRefusedError
from ..states import WSDisconnectCause
from .limits import PROXY_PROTOCOL
from .server import Server

__all__ = ["ProxiedProtocol", "ProxiedSocket"]

_PEEK_SIZE: Final = 4096  # bytes


class _Proxied:
    """What the two kinds have in common."""

    #: It has none of its own: this is never an open connection.
    disconnect_cause: WSDisconnectCause | None = None

    def __init__(self, server: Server, proxy: Any, logger: Any) -> None:
        self._server = server
        self._proxy = proxy
        self._logger = logger
        self._reader = ProxyHeaderReader()
        self._is_over = False

    def send_close(self, close_code: int, close_message: str | None = None) -> bool:
        """Nothing can be sent yet."""
        return False

    def disconnect(self, graceful: bool = True) -> None:
        """End the connection at once."""
        del graceful
        if not self._is_over:
            self._is_over = True
            self._release()
            self._server.detach(self)

    def _handshake_timed_out(self) -> None:
        self._refuse("timeout", HTTPStatus.REQUEST_TIMEOUT, "its header did not arrive in time")

    def _has_been_silent(self) -> bool:
        return not self._reader.has_begun

    def _feed(self, data: bytes) -> int:
        """Give what has come to the reader. Returns how much of it is the header's; all, if the
        connection is refused for it."""
        try:
            return self._reader.feed(data)
        except ProxyHeaderError as error:
            self._refuse(PROXY_PROTOCOL, HTTPStatus.BAD_REQUEST, str(error))
        return len(data)

    def _refuse(self, reason: str, status: HTTPStatus, text: str) -> None:
        """End the connection without a response, as what comes is not known to be HTTP."""
        if not self._is_over:
            error = HandshakeRefusedError(status, text, reason)
            self._server.connection_refused(self, status, error)
            self.disconnect()
            self._logger.info("connection from proxy %r refused: %s", self._proxy, text)

    def _abandoned(self) -> None:
        """The peer has ended the connection."""
        if not self._is_over:
            self.disconnect()
            self._logger.info("connection from proxy %r ended before its header", self._proxy)

    def _failed(self, error: BaseException) -> None:
        """Something raised that is not the proxy's doing."""
        if not self._is_over:
            self._server.set_up_failed(self, self._proxy, error)
            self.disconnect()

    def _hand_over(self, take: Callable[[float | None], None]) -> None:
        self._is_over = True
        try:
            self._server.hand_over(self, take)
        except BaseException:
            self._close()  # if it was not taken yet
            raise

    def _release(self) -> None:
        """Stop reading, and close what carries the bytes."""
        self._close()

    def _close(self) -> None:
        """Close what carries the bytes. Does nothing if it is closed."""
        raise NotImplementedError


class ProxiedSocket(_Proxied):
    """Over an accepted, non-blocking socket, which it owns until the header is there.

    :param take: called with the socket, the header, and when the handshake is due
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Server,
        accepted: socket.socket,
        proxy: Any,
        take: Callable[[socket.socket, ProxyHeader, float | None], None],
        logger: Any,
    ) -> None:
        super().__init__(server, proxy, logger)
        self._loop = loop
        self._socket = accepted
        self._take = take

    def start(self) -> None:
        """Wait for the header."""
        try:
            self._server.attach(self)
            self._loop.add_reader(self._socket, self._on_readable)
        except BaseException as error:
            self._failed(error)
            if not isinstance(error, Exception):
                raise

    def _release(self) -> None:
        self._loop.remove_reader(self._socket)
        super()._release()

    def _close(self) -> None:
        self._socket.close()

    def _on_readable(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._failed(error)
            raise

    def _read(self) -> None:
        # What is not the header's stays in the system, for TLS that reads the descriptor itself.
        try:
            data = self._socket.recv(_PEEK_SIZE, socket.MSG_PEEK)
            header_size = self._feed(data)
            while header_size and not self._is_over:
                header_size -= len(self._socket.recv(header_size))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._abandoned()
        header = self._reader.header
        if header is not None and not self._is_over:
            self._loop.remove_reader(self._socket)
            self._hand_over(lambda due: self._take(self._socket, header, due))


class ProxiedProtocol(_Proxied, asyncio.Protocol):
    """Over a transport of the event loop's: its protocol, until the header is there.

    :param must_have_header: whether a peer of this address sends one
    :param turn_away: called with the transport; returns whether it was turned away
    :param take: called with the transport, the header or None, what came behind it, and when the
        handshake is due
    """

    def __init__(
        self,
        server: Server,
        must_have_header: Callable[[Any], bool],
        turn_away: Callable[[asyncio.Transport], bool],
        take: Callable[[asyncio.Transport, ProxyHeader | None, bytes, float | None], None],
        logger: Any,
    ) -> None:
        super().__init__(server, None, logger)
        self._must_have_header = must_have_header
        self._turn_away = turn_away
        self._take = take
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = self._transport = cast("asyncio.Transport", transport)
        try:
            self._proxy = made.get_extra_info("peername")
            if not self._must_have_header(self._proxy):
                self._is_over = True
                self._take(made, None, b"", None)
            elif self._turn_away(made):
                self._is_over = True
            else:
                self._server.attach(self)
        except BaseException as error:
            self._failed(error)
            if not isinstance(error, Exception):
                raise

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if self._is_over or transport is None:
            return
        try:
            header_size = self._feed(data)
            header = self._reader.header
            if header is not None and not self._is_over:
                self._hand_over(lambda due: self._take(transport, header, data[header_size:], due))
        except BaseException as error:
            self._failed(error)
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._abandoned()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
