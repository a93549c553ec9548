"""``connect``, ``ws_connect``: from a URL to an open connection, redirects included, in time.

Owns the order of the steps and what is cleaned up when one fails or the caller is cancelled. Each
step is somebody else's: ``dial`` opens the socket, ``net`` the stream, ``core`` runs the
opening handshake.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from ..core import WSAutoPingStrategy, WSListener, WSTransport, new_transport
from ..exceptions import WSError, WSInvalidStatusError
from ..net.open import end_connection, open_stream, tune_socket
from ..options import ClientOptions, check_names, checked_options, handshake_limits
from ..protocol.upgrade import ClientHandshake
from ..protocol.url import WSParsedURL, parse_url, tls_server_name
from ..states import WSDisconnectCause
from ..transport.callables import check_factory
from ..transport.describe import error_text, server_text
from ..transport.logs import resolve_logger
from .dial import Progress, add_place, deadline, open_connection

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..protocol.http.messages import HeadersLike, WSUpgradeRequest, WSUpgradeResponse
    from ..typed_settings import ClientSettings
    from .dial import SocketFactory

__all__ = ["ListenerFactory", "connect", "ws_connect"]

L = TypeVar("L", bound=WSListener)

ListenerFactory = Callable[[], L] | Callable[["WSUpgradeRequest", "WSUpgradeResponse"], L]

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))  # RFC 9110 15.4


async def connect(
    ws_listener_factory: ListenerFactory[L], url: str, options: ClientOptions | None = None
) -> tuple[WSTransport, L]:
    """Connect to a WebSocket server (RFC 6455 4.1), with settings that were made before.

    The same as :func:`ws_connect`, which makes the options of its keyword arguments: it returns and
    raises the same. For settings that several connections share, or that a program keeps.

    :param ws_listener_factory: as of :func:`ws_connect`
    :param url: ``ws://`` or ``wss://``
    :param options: the settings; None: the defaults
    :returns: the transport and what the factory returned
    :raises TypeError: ``options`` is no :class:`ClientOptions`
    """
    options = checked_options("connect", options, ClientOptions)
    timeout = options.websocket_handshake_timeout
    factory = _two_argument_factory(ws_listener_factory)
    attempt = _Attempt(parse_url(url))
    try:
        async with deadline(asyncio.get_running_loop(), timeout):
            return await _connect(factory, options, attempt)
    except (WSError, OSError, asyncio.TimeoutError) as error:
        if isinstance(error, asyncio.TimeoutError) and not error.args:
            # The deadline's.
            refusal = None if attempt.handshake is None else attempt.handshake.end_error()
            if isinstance(refusal, WSInvalidStatusError):
                attempt.progress.mark(refusal)
                _tell_failure(options, attempt, refusal)
                raise refusal from error
            error.args = (f"timed out after {timeout:g} s {attempt.progress}",)
        attempt.progress.mark(error)
        _tell_failure(options, attempt, error)
        raise
    finally:
        # The errors' tracebacks refer to this frame.
        refusal = None


async def ws_connect(
    ws_listener_factory: ListenerFactory[L],
    url: str,
    *,
    ssl_context: ssl.SSLContext | None = ClientOptions.ssl_context,
    disconnect_on_exception: bool = ClientOptions.disconnect_on_exception,
    websocket_handshake_timeout: float | None = ClientOptions.websocket_handshake_timeout,
    logger_name: str | Any | None = ClientOptions.logger_name,
    enable_auto_ping: bool = ClientOptions.enable_auto_ping,
    auto_ping_idle_timeout: float = ClientOptions.auto_ping_idle_timeout,
    auto_ping_reply_timeout: float = ClientOptions.auto_ping_reply_timeout,
    max_reading_pause: float | None = ClientOptions.max_reading_pause,
    auto_ping_strategy: WSAutoPingStrategy = WSAutoPingStrategy.PING_WHEN_IDLE,
    enable_auto_pong: bool = ClientOptions.enable_auto_pong,
    max_frame_size: int = ClientOptions.max_frame_size,
    extra_headers: HeadersLike | None = ClientOptions.extra_headers,
    max_redirects: int = ClientOptions.max_redirects,
    proxy: str | None = ClientOptions.proxy,
    proxy_ssl_context: ssl.SSLContext | None = ClientOptions.proxy_ssl_context,
    read_buffer_init_size: int = ClientOptions.read_buffer_init_size,
    socket_factory: SocketFactory | None = ClientOptions.socket_factory,
    use_aiofastnet: bool | None = ClientOptions.use_aiofastnet,
    close_timeout: float = ClientOptions.close_timeout,
    enable_auto_close: bool = ClientOptions.enable_auto_close,
    validate_sequence: bool = ClientOptions.validate_sequence,
    write_high_watermark: int = ClientOptions.write_high_watermark,
    write_low_watermark: int = ClientOptions.write_low_watermark,
    max_write_backlog: int | None = ClientOptions.max_write_backlog,
    coalesce_writes: bool = ClientOptions.coalesce_writes,
    subprotocols: Sequence[str] | None = ClientOptions.subprotocols,
    ssl_session: ssl.SSLSession | None = ClientOptions.ssl_session,
    **create_connection_kwargs: Unpack[ClientSettings],
) -> tuple[WSTransport, L]:
    """Connect to a WebSocket server (RFC 6455 4.1).

    Every setting is described where its default is: :class:`picows_fast.options.ClientOptions`.
    :func:`connect` takes such an object in place of keyword arguments.

    :param ws_listener_factory: returns the :class:`WSListener`; called without arguments, or with
        the :class:`WSUpgradeRequest` and the :class:`WSUpgradeResponse` if it cannot be called
        without
    :param url: ``ws://`` or ``wss://``
    :param create_connection_kwargs: the remaining settings of ``ClientOptions``, such as
        ``local_addr``, ``sock``, ``unix_path``, ``family`` or ``server_hostname``
    :returns: the transport and what the factory returned
    :raises WSInvalidURL: not a WebSocket URL
    :raises WSHandshakeError: the server refused, or does not speak WebSocket; see its subclasses
    :raises WSProxyError: the proxy refused
    :raises WSError: more than ``max_redirects`` redirects, or one that a setting does not allow:
        any with ``sock``; to another origin with ``unix_path``, and with ``subprotocols`` or
        ``ssl_context`` unless ``redirect_keeps`` has them
    :raises TimeoutError: not done within ``websocket_handshake_timeout``
        (``asyncio.TimeoutError`` before 3.11)
    :raises OSError: the network failed; :class:`ssl.SSLError` if TLS did
    :raises TypeError, ValueError: an argument is not valid
    :raises ImportError: ``proxy`` is a SOCKS proxy, and python-socks is not installed

    A WSError, OSError or TimeoutError says where it happened: ``error.phase`` is "resolving",
    "connecting", "proxy", "tls" or "upgrade"; ``error.host`` and ``error.port`` are the server's,
    or the proxy's; ``error.is_transient`` is whether a retry makes sense.
    """
    check_names("ws_connect", create_connection_kwargs, ClientOptions)
    options = ClientOptions(
        ssl_context=ssl_context,
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
        extra_headers=extra_headers,
        max_redirects=max_redirects,
        proxy=proxy,
        proxy_ssl_context=proxy_ssl_context,
        read_buffer_init_size=read_buffer_init_size,
        socket_factory=socket_factory,
        use_aiofastnet=use_aiofastnet,
        close_timeout=close_timeout,
        enable_auto_close=enable_auto_close,
        validate_sequence=validate_sequence,
        write_high_watermark=write_high_watermark,
        write_low_watermark=write_low_watermark,
        max_write_backlog=max_write_backlog,
        coalesce_writes=coalesce_writes,
        subprotocols=subprotocols,
        ssl_session=ssl_session,
        **create_connection_kwargs,
    )
    return await connect(ws_listener_factory, url, options)


class _Attempt:
    """What a call of ``ws_connect`` is at: its errors tell of it."""

    __slots__ = ("handshake", "progress", "url")

    def __init__(self, url: WSParsedURL) -> None:
        self.url = url
        self.progress = Progress(url)
        self.handshake: ClientHandshake | None = None


def _tell_failure(options: ClientOptions, attempt: _Attempt, error: Exception) -> None:
    logger = resolve_logger(options.logger_name, "client")
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s: not connected: %s", server_text(attempt.url), error_text(error))


async def _connect(
    factory: Callable[[Any, Any], L], options: ClientOptions, attempt: _Attempt
) -> tuple[WSTransport, L]:
    redirects = 0
    sets_cookie = False
    while True:
        try:
            return await _connect_once(factory, options, attempt)
        except WSInvalidStatusError as error:
            location = _redirect_location(error)
            if location is None or options.max_redirects == 0:
                raise
            sets_cookie = sets_cookie or any(error.response.headers.getall("Set-Cookie", ()))
            if redirects == options.max_redirects:
                cookie = "; a cookie was set, which is not sent back: see extra_headers"
                raise WSError(f"more than {redirects} redirects{cookie * sets_cookie}") from error
            if options.sock is not None:
                raise WSError("redirected, but the given socket is used up") from error
            redirects += 1
            target = attempt.url.redirect(location)
            if not target.same_origin(attempt.url):
                try:
                    options = _options_elsewhere(options, target)
                except WSError as refusal:
                    raise refusal from error
            attempt.url = target


def _options_elsewhere(options: ClientOptions, target: WSParsedURL) -> ClientOptions:
    """Return the settings with which a redirect to another origin is followed.

    :raises WSError: one of them must not go there, and cannot be left out
    """
    keeps = {name.lower() for name in options.redirect_keeps}
    if options.unix_path is not None:
        raise WSError(f"redirected to {target.origin}, which is not at the given unix_path")
    needed: dict[str, object] = {"subprotocols": options.subprotocols}
    if target.is_secure:
        needed["ssl_context"] = options.ssl_context
    for name, value in needed.items():
        if value and name not in keeps:
            raise WSError(
                f"redirected to {target.origin}, another origin, to which {name} must not go "
                f"unless redirect_keeps names it"
            )
    changes: dict[str, Any] = {"server_hostname": None, "ssl_session": None}
    if options.extra_headers is not None:
        pairs = cast("tuple[tuple[str, str], ...]", options.extra_headers)
        changes["extra_headers"] = tuple(pair for pair in pairs if pair[0].lower() in keeps)
    if options.user_agent is not None and "user-agent" not in keeps:
        changes["user_agent"] = ClientOptions.user_agent
    return replace(options, **changes)


async def _connect_once(
    factory: Callable[[Any, Any], L], options: ClientOptions, attempt: _Attempt
) -> tuple[WSTransport, L]:
    loop = asyncio.get_running_loop()
    url, progress = attempt.url, attempt.progress
    try:
        attempt.handshake = handshake = ClientHandshake(
            url,
            extra_headers=options.extra_headers,
            subprotocols=options.subprotocols,
            limits=handshake_limits(options),
            user_agent=options.user_agent,
        )
    except BaseException:
        if options.sock is not None:
            options.sock.close()
        raise
    connection = await open_connection(
        url,
        loop=loop,
        proxy=options.proxy,
        proxy_ssl_context=options.proxy_ssl_context,
        socket_factory=options.socket_factory,
        sock=options.sock,
        local_addr=options.local_addr,
        family=options.family,
        proto=options.proto,
        flags=options.flags,
        happy_eyeballs_delay=options.happy_eyeballs_delay,
        interleave=options.interleave,
        unix_path=options.unix_path,
        progress=progress,
    )
    progress.url = url
    progress.phase = "tls" if url.is_secure else "upgrade"
    stream = transport = None
    try:
        tune_socket(
            connection
            if isinstance(connection, socket.socket)
            else connection.get_extra_info("socket"),
            so_busy_poll=options.so_busy_poll,
            so_prefer_busy_poll=options.so_prefer_busy_poll,
            so_incoming_cpu=options.so_incoming_cpu,
            rx_timestamps=options.rx_timestamps,
        )
        context = server_name = None
        if url.is_secure:
            context = options.ssl_context or default_ssl_context()
            server_name = tls_server_name(options.server_hostname or url.host)
        stream = await open_stream(
            loop,
            connection,
            use_loop_transport=options.use_loop_transport,
            context=context,
            server_hostname=server_name,
            session=options.ssl_session,
            handshake_timeout=options.ssl_handshake_timeout,
            busy_poll=options.busy_poll,
            tcp_quickack=options.tcp_quickack,
            rx_timestamps=options.rx_timestamps,
        )
        logger = resolve_logger(options.logger_name, "client")
        transport = new_transport(
            loop,
            stream,
            options,
            handshake,
            factory,
            logger,
            is_client_side=True,
            is_secure=url.is_secure,
            url=url,
        )
        return transport, cast("L", await transport._connect())
    except BaseException as error:
        if transport is not None:
            if url.is_secure and transport._has_tls():
                progress.phase = "upgrade"
            if isinstance(error, OSError) and (
                # Neither the peer's word nor the factory's error.
                transport.disconnect_cause not in (None, WSDisconnectCause.HANDSHAKE_FAILED)
            ):
                add_place(error, progress)
            transport.disconnect(graceful=False)
        elif stream is not None:
            stream.abort()
        else:
            end_connection(connection)
        # The error's traceback refers to this frame, the transport to the error.
        stream = transport = None
        raise


@functools.cache
def default_ssl_context() -> ssl.SSLContext:
    """Return the context of connections that bring none: loading the system's certificates takes a
    while."""
    return ssl.create_default_context()


def _redirect_location(error: WSInvalidStatusError) -> str | None:
    response = error.response
    if response is None or int(response.status) not in _REDIRECTS:
        return None
    location: str | None = response.headers.get("Location")
    return location or None


def _two_argument_factory(factory: ListenerFactory[L]) -> Callable[[Any, Any], L]:
    """Return the factory in the form ``(request, response)``, found out without calling it."""
    make = cast("Callable[..., L]", factory)
    check_factory(factory, "ws_listener_factory", "a WSListener", WSListener)
    if _surely_takes(factory, 0):
        return lambda request, response: make()
    if _surely_takes(factory, 2):
        return make
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        # An extension type without a signature: to be made without arguments, like WSListener
        # itself.
        return lambda request, response: make()
    try:
        signature.bind()
    except TypeError:
        pass
    else:
        return lambda request, response: make()
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"ws_listener_factory must take no arguments or (request, response), not {signature}"
        ) from None
    return make


def _surely_takes(factory: Any, count: int) -> bool:
    """Whether a plain function, method or class of listeners takes ``count`` arguments.

    ``inspect.signature`` knows everything that can be called, and takes a tenth of ``ws_connect``'s
    CPU time; False is a case for it.
    """
    function, bound = factory, 0
    if type(factory) is MethodType:
        function, bound = factory.__func__, 1
    elif type(factory) is type and issubclass(factory, WSListener):
        if type(factory.__new__) is not BuiltinFunctionType:
            return False
        function, bound = factory.__init__, 1
        if function is WSListener.__init__:
            return count == 0
    # What is in its __dict__ may be a signature, or the function that it wraps.
    if type(function) is not FunctionType or function.__dict__:
        return False
    code = function.__code__
    most = code.co_argcount - bound
    least = most - len(function.__defaults__ or ())
    if code.co_kwonlyargcount > len(function.__kwdefaults__ or ()):
        return False
    return least <= count and (count <= most or bool(code.co_flags & inspect.CO_VARARGS))
