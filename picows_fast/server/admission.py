"""From what was accepted to a connection that is served: the PROXY header, limits, the stream.

Owns an accepted socket or transport until a stream does: whatever fails, it is ended, counted and
logged. How one is accepted is ``net.listen``'s, what the limits count ``server``'s, and what is
received ``core``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..core import WSListener, new_transport
from ..net.loop_transport import ForeignStream
from ..net.open import socket_stream, with_tls
from ..options import ServerOptions, handshake_limits
from ..protocol.origins import OriginPolicy
from ..protocol.proxy_protocol import ProxyHeader, TrustedProxies
from ..protocol.upgrade import HandshakeRefusedError, ServerHandshake
from .limits import (
    CLOSED,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_IP,
    MAX_PENDING_HANDSHAKES,
    address_key,
)
from .proxied import ProxiedProtocol, ProxiedSocket
from .server import Server

if TYPE_CHECKING:
    from ..net.stream import ByteStream
    from ..protocol.http.messages import (
        WSUpgradeRequest,
        WSUpgradeResponse,
        WSUpgradeResponseWithListener,
    )

__all__ = ["Admission", "ServerListenerFactory"]

#: What a factory answers a request with.
ServerFactoryResult: TypeAlias = (
    "WSListener | WSUpgradeResponse | WSUpgradeResponseWithListener | None"
)
ServerListenerFactory: TypeAlias = Callable[
    ["WSUpgradeRequest"], "ServerFactoryResult | Awaitable[ServerFactoryResult]"
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


class Admission:
    """Serves what a server accepts. ``server`` is set before anything is accepted."""

    server: Server

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ServerListenerFactory,
        options: ServerOptions,
        logger: Any,
    ) -> None:
        self._loop = loop
        self._factory = factory
        self._options = options
        self._logger = logger
        self._policy = None if options.origins is None else OriginPolicy(options.origins)
        self._limits = handshake_limits(options)
        self._proxies = (
            None if options.proxy_protocol is None else TrustedProxies(options.proxy_protocol)
        )
        self._counts_addresses = options.max_connections_per_ip is not None
        self._limits_upgrades = self._counts_addresses or options.max_connections is not None

    def on_socket(self, accepted: socket.socket, address: Any) -> None:
        """Serve a socket that was accepted from this address."""
        if self._proxies is None or not self._proxies.trusts(address):
            self._serve_socket(accepted, address)
            return

        def take(sock: socket.socket, header: ProxyHeader, due: float | None) -> None:
            noted = _noted(header, address)
            self._serve_socket(sock, noted["peername"], noted, due)

        if not self._is_turned_away(partial(_turn_away, accepted)):
            ProxiedSocket(self._loop, self.server, accepted, address, take, self._logger).start()

    def make_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol of the next transport that the event loop accepts."""
        if self._proxies is not None:
            return ProxiedProtocol(
                self.server,
                self._proxies.trusts,
                lambda transport: self._is_turned_away(partial(_turn_transport_away, transport)),
                self._take_transport,
                self._logger,
            )
        stream = ForeignStream(
            self._loop, lambda transport: self._serve_transport(stream, transport)
        )
        return stream.protocol

    def _take_transport(
        self,
        transport: asyncio.Transport,
        header: ProxyHeader | None,
        rest: bytes,
        due: float | None,
    ) -> None:
        noted = None
        if header is not None:
            noted = _noted(header, transport.get_extra_info("peername"))
        self._serve_transport(ForeignStream(self._loop), transport, noted, rest, due)

    def _serve_socket(
        self,
        accepted: socket.socket,
        address: Any,
        noted: dict[str, Any] | None = None,
        due: float | None = None,
    ) -> None:
        options = self._options

        def make_stream() -> ByteStream:
            return socket_stream(
                self._loop,
                accepted,
                options.ssl,
                server_side=True,
                handshake_timeout=options.ssl_handshake_timeout,
                tcp_quickack=options.tcp_quickack,
                rx_timestamps=options.rx_timestamps,
                peername=address,
                noted=noted,
            )

        turn_away = partial(_turn_away, accepted)
        self._serve(address, make_stream, turn_away, accepted.close, is_new=noted is None, due=due)

    def _serve_transport(
        self,
        stream: ForeignStream,
        transport: asyncio.Transport,
        noted: dict[str, Any] | None = None,
        rest: bytes = b"",
        due: float | None = None,
    ) -> None:
        options = self._options

        def make_stream() -> ByteStream:
            if stream.transport is None:
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

        address = transport.get_extra_info("peername") if noted is None else noted["peername"]
        turn_away = partial(_turn_transport_away, transport)
        self._serve(address, make_stream, turn_away, transport.abort, is_new=noted is None, due=due)

    def _serve(
        self,
        address: Any,
        make_stream: Callable[[], ByteStream],
        turn_away: Callable[[bytes | None], None],
        end: Callable[[], None],
        *,
        is_new: bool,
        due: float | None,
    ) -> None:
        """Serve what was accepted from this address, or turn it away.

        ``make_stream`` takes over what was accepted, until when ``end`` ends it. ``turn_away``
        ends it with a response, None: without one. A connection that is not new has taken the
        place of one whose handshake is ``due`` at this time.
        """
        options, server = self._options, self.server
        stream = transport = None
        try:
            key = address_key(address) if self._counts_addresses else None
            if self._is_turned_away(turn_away, key, is_new=is_new):
                return
            stream = make_stream()
            handshake = ServerHandshake(
                limits=self._limits, subprotocols=options.subprotocols, origins=self._policy
            )
            transport = new_transport(
                self._loop,
                stream,
                options,
                handshake,
                self._factory,
                self._logger,
                is_client_side=False,
                is_secure=options.ssl is not None,
                server=server,
                check_limits=partial(_check_limits, server, key) if self._limits_upgrades else None,
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

    def _is_turned_away(
        self,
        turn_away: Callable[[bytes | None], None],
        key: str | None = None,
        *,
        is_new: bool = True,
    ) -> bool:
        reason = self.server.reason_to_turn_away(key, is_new=is_new)
        if reason is None:
            return False
        turn_away(_refusal_bytes(reason) if self._options.ssl is None else None)
        if self._logger.isEnabledFor(logging.INFO):
            who = "a connection" if key is None else f"a connection from {key}"
            self._logger.info("%s was turned away before its request: %s", who, reason)
        return True


def _check_limits(server: Server, key: str | None) -> None:
    """Raise if there must not be one more WebSocket connection of this address."""
    reason = server.reason_to_refuse(key)
    if reason is not None:
        raise _refusal(reason)


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
