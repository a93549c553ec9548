"""Every setting of a connection, once: its default, its unit, its check and its documentation.

``ClientOptions`` and ``ServerOptions`` are what ``ws_connect`` and ``ws_create_server`` read their
defaults from and check their arguments with. A value is checked when the object is made, and the
error names the parameter. What a setting does is carried out elsewhere: this module imports
nothing of the package but the syntax of HTTP, origins and subprotocols, does no I/O and knows no
event loop.

Each field is declared by ``setting``, which keeps the check, the unit and the text in the field's
metadata. Rules that concern two settings at once stand in ``_check_combinations``.

The classes are dataclasses in that ``dataclasses.fields`` and ``dataclasses.replace`` know their
settings. Their methods are ``_Settings``', written once: what ``dataclass`` would generate for each
of them, with some fifty parameters, takes longer to compile than the rest of the package to import.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import Field, FrozenInstanceError, dataclass, field, fields
from ssl import SSLContext, SSLSession
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from .protocol.http.messages import DEFAULT_LIMITS, IS_TOKEN, USER_AGENT, HandshakeLimits
from .protocol.origins import OriginPolicy
from .protocol.proxy_protocol import TrustedProxies
from .protocol.subprotocols import checked_subprotocols

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

__all__ = [
    "KIB",
    "MIB",
    "PING_PERIODICALLY",
    "PING_WHEN_IDLE",
    "ClientOptions",
    "ConnectionOptions",
    "ServerOptions",
    "handshake_limits",
]

T = TypeVar("T")
Check = Callable[[str, Any], None]

KIB: Final = 1024
MIB: Final = 1024 * 1024

# The values of WSAutoPingStrategy, which this module may not import.
PING_WHEN_IDLE: Final = 1
PING_PERIODICALLY: Final = 2

# RFC 6455 5.2: the most significant bit of the 64-bit length is 0.
_MAX_LENGTH: Final = 2**63 - 1

_LOGGER_METHODS: Final = (
    "debug",
    "info",
    "warning",
    "error",
    "exception",
    "log",
    "isEnabledFor",
)


# Checks. Each takes the parameter's name and value, and raises TypeError or ValueError.


def _wrong_type(name: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong_type(name, "a bool", value)


def _integer(name: str, value: Any) -> None:
    # bool is a subclass of int, and never meant where a size is asked for.
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "an int", value)


def _not_negative(name: str, value: Any) -> None:
    _integer(name, value)
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def _positive(name: str, value: Any) -> None:
    _integer(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _length(name: str, value: Any) -> None:
    _positive(name, value)
    if value > _MAX_LENGTH:
        raise ValueError(f"{name} must be less than 2**63, got {value}")


def _finite_seconds(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(name, "a number of seconds", value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _seconds(name: str, value: Any) -> None:
    _finite_seconds(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _seconds_or_zero(name: str, value: Any) -> None:
    _finite_seconds(name, value)
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def _c_int(name: str, value: Any) -> None:
    _not_negative(name, value)
    if value >= 2**31:
        raise ValueError(f"{name} must be less than 2**31, got {value}")


def _optional(check: Check) -> Check:
    def check_unless_none(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none


def _instance(*types: type, expected: str) -> Check:
    def check_type(name: str, value: Any) -> None:
        if not isinstance(value, types):
            raise _wrong_type(name, expected, value)

    return check_type


def _callable(name: str, value: Any) -> None:
    if not callable(value):
        raise _wrong_type(name, "callable", value)


def _anything(name: str, value: Any) -> None:
    del name, value


def _strategy(name: str, value: Any) -> None:
    _integer(name, value)
    if value not in (PING_WHEN_IDLE, PING_PERIODICALLY):
        raise ValueError(f"{name} must be a WSAutoPingStrategy, got {value}")


def _logger(name: str, value: Any) -> None:
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{name} must not be empty")
        return
    missing = [method for method in _LOGGER_METHODS if not hasattr(value, method)]
    if missing:
        raise TypeError(
            f"{name} must be a str or a logger, got {type(value).__name__}, "
            f"which has no {', '.join(missing)}"
        )


def _subprotocols(name: str, value: Any) -> None:
    del name
    checked_subprotocols(value)


def _origins(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _wrong_type(name, "a sequence of str and None", value)
    OriginPolicy(value)


def _header_names(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _wrong_type(name, "a sequence of str", value)
    for element in value:
        if not isinstance(element, str):
            raise TypeError(f"{name} must contain str, got {type(element).__name__}")
        if IS_TOKEN.fullmatch(element) is None:
            raise ValueError(f"{name} must contain names of headers or settings, got {element!r}")


def _header_value(name: str, value: Any) -> None:
    _text(name, value)
    if not value.isprintable() or not value.isascii():
        raise ValueError(f"{name} must be printable ASCII")


def _trusted_proxies(name: str, value: Any) -> None:
    del name
    TrustedProxies(value)


def _headers(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, (Mapping, Iterable)):
        raise _wrong_type(name, "a mapping or an iterable of pairs", value)


def _local_address(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or len(value) < 2:
        raise _wrong_type(name, "a tuple (host, port)", value)
    host, port = value[:2]
    if host is not None and not isinstance(host, str):
        raise TypeError(f"{name} must start with a str, got {type(host).__name__}")
    _integer(f"{name}'s port", port)
    if not 0 <= port <= 65535:
        raise ValueError(f"{name}'s port must be in 0..65535, got {port}")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _wrong_type(name, "a str", value)
    if not value:
        raise ValueError(f"{name} must not be empty")


_ssl_context = _optional(_instance(SSLContext, expected="an ssl.SSLContext"))
_socket = _optional(_instance(socket.socket, expected="a socket.socket"))
_path = _optional(_instance(str, bytes, os.PathLike, expected="a str, bytes or os.PathLike"))


# Declaring settings.


def setting(default: T, check: Check, doc: str, *, unit: str = "", has_secrets: bool = False) -> T:
    """Declare a field with its default, check, documentation and unit.

    A field that ``has_secrets`` is left out of ``repr``.
    """
    # To a type checker a field is its default: the annotation gives the type, this the value.
    metadata = {"check": check, "doc": doc, "unit": unit}
    declared: T = field(default=default, repr=not has_secrets, metadata=metadata)
    return declared


def _other_default(name: str, default: T) -> T:
    """Declare a field of ConnectionOptions again with another default, and nothing else new."""
    metadata = ConnectionOptions.__dataclass_fields__[name].metadata
    declared: T = field(default=default, metadata=metadata)
    return declared


# TLS contexts are called as in asyncio, which has two names for them.
_NAMES_OF_THE_OTHER_SIDE: Final = {"ssl": "ssl_context", "ssl_context": "ssl"}


class _Settings:
    """What objects with settings do: take them by keyword, check them, never change.

    An object holds what it was given. What it was not is its class's attribute: the default.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **given: Any) -> None:
        settings, values = self.__dataclass_fields__, self.__dict__
        for name, value in given.items():
            declared = settings.get(name)
            if declared is None:
                check_names(type(self).__name__, (name,), type(self))
                continue
            if value is not declared.default:
                declared.metadata["check"](name, value)
                values[name] = value
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raise ValueError for settings that do not go together."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Settings) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = (
            f"{declared.name}={getattr(self, declared.name)!r}"
            for declared in fields(self)
            if declared.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"


S = TypeVar("S", bound=_Settings)


def check_names(function: str, given: Iterable[str], settings: type[_Settings]) -> None:
    """Raise TypeError, in the name of the function that was called, for what is no setting."""
    names = settings.__dataclass_fields__
    for name in given:
        if name not in names:
            import difflib  # which only a mistake needs

            likely = [_NAMES_OF_THE_OTHER_SIDE[name]] if name in _NAMES_OF_THE_OTHER_SIDE else []
            likely += difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {likely[0]!r}?" if likely else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def checked_options(function: str, options: Any, kind: type[S]) -> S:
    """Return the options that a function was given, the defaults for None.

    They were checked when they were made. Raises TypeError, in the name of that function, for what
    is not of this kind.
    """
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise TypeError(
            f"options of {function}() must be {kind.__name__} or None, got {type(options).__name__}"
        )
    return options


if TYPE_CHECKING:

    @dataclass_transform(kw_only_default=True, frozen_default=True)
    def _settings(cls: type[T]) -> type[T]: ...

else:
    _settings = dataclass(kw_only=True, init=False, repr=False, eq=False)


@_settings
class ConnectionOptions(_Settings):
    """Settings that both sides have."""

    disconnect_on_exception: bool = setting(
        True,
        _flag,
        "Whether an exception raised by a listener's method ends the connection with close code "
        "1011. If not, it is logged and the connection goes on, except after on_ws_connected.",
    )
    websocket_handshake_timeout: float | None = setting(
        5,
        _optional(_seconds),
        "Deadline for the whole opening handshake: DNS, TCP, proxy, TLS and upgrade on the client, "
        "TLS and upgrade on the server. None: no deadline.",
        unit="seconds",
    )
    close_timeout: float = setting(
        5.0,
        _seconds,
        "Deadline for ending a connection: the closing handshake, sending what waits, and the "
        "peer's end of stream together. After it the connection is aborted. RFC 6455 7.1.1.",
        unit="seconds",
    )
    logger_name: str | Any | None = setting(
        None,
        _optional(_logger),
        "A name, which becomes the logger `picows_fast.<name>`, or an object with the methods of "
        "logging.Logger. None: `picows_fast.client` or `picows_fast.server`.",
    )

    enable_auto_ping: bool = setting(
        False,
        _flag,
        "Whether to find dead connections by PINGs. Not needed to answer the peer's PINGs: that "
        "is enable_auto_pong.",
    )
    auto_ping_idle_timeout: float = setting(
        10,
        _seconds,
        "With PING_WHEN_IDLE, the silence after which a PING is sent; with PING_PERIODICALLY, the "
        "time between PINGs.",
        unit="seconds",
    )
    auto_ping_reply_timeout: float = setting(
        10,
        _seconds,
        "How long the answer to a PING may take before the connection is ended with close code "
        "1001: any byte with PING_WHEN_IDLE, a PONG with PING_PERIODICALLY. May be longer than "
        "auto_ping_idle_timeout.",
        unit="seconds",
    )
    max_reading_pause: float | None = setting(
        None,
        _optional(_seconds),
        "With auto-ping, how long reading may be paused without a break: nobody can see meanwhile "
        "whether the peer is alive, so the connection then ends as without an answer. None: no "
        "bound.",
        unit="seconds",
    )
    auto_ping_strategy: int = setting(
        PING_WHEN_IDLE,
        _strategy,
        "A WSAutoPingStrategy: PING_WHEN_IDLE sends a PING when nothing was received for a while, "
        "PING_PERIODICALLY whatever is received.",
    )
    enable_auto_pong: bool = setting(
        True,
        _flag,
        "Whether the peer's PINGs are answered. RFC 6455 5.5.2 asks for an answer, so turn this "
        "off only where the listener gives it.",
    )
    enable_auto_close: bool = setting(
        False,
        _flag,
        "Whether the peer's CLOSE is answered. If not, the listener answers with send_close or "
        "disconnect, within close_timeout.",
    )

    max_head_size: int = setting(
        DEFAULT_LIMITS.max_head_size,
        _positive,
        "Largest head of the peer's message in the opening handshake: start line and headers. A "
        "larger request gets 431; a larger response raises WSInvalidMessageError.",
        unit="bytes",
    )
    max_header_count: int = setting(
        DEFAULT_LIMITS.max_header_count,
        _positive,
        "Most header lines of the peer's message in the opening handshake. More are answered as a "
        "head that is too large.",
        unit="headers",
    )
    max_frame_size: int = setting(
        10 * MIB,
        _length,
        "Largest payload of an incoming frame. A larger one ends the connection with close code "
        "1009 before it is buffered.",
        unit="bytes",
    )
    validate_sequence: bool = setting(
        True,
        _flag,
        "Whether the order of data frames and CONTINUATIONs (RFC 6455 5.4) and unnegotiated "
        "reserved bits (RFC 6455 5.2) are checked. A violation ends the connection with close "
        "code 1002. Turn this off where an extension that the library does not know is in use.",
    )
    read_buffer_init_size: int = setting(
        16 * KIB,
        _length,
        "Size at which a receive buffer starts. It grows for larger frames up to max_frame_size "
        "and shrinks again.",
        unit="bytes",
    )

    write_high_watermark: int = setting(
        64 * KIB,
        _not_negative,
        "Waiting outgoing bytes above which the listener's pause_writing is called.",
        unit="bytes",
    )
    write_low_watermark: int = setting(
        16 * KIB,
        _not_negative,
        "Waiting outgoing bytes at which resume_writing is called after pause_writing. At most "
        "write_high_watermark.",
        unit="bytes",
    )
    max_write_backlog: int | None = setting(
        64 * MIB,
        _optional(_length),
        "Waiting outgoing bytes above which the connection is ended, because the peer does not "
        "read. At least write_high_watermark. None: no limit.",
        unit="bytes",
    )

    raise_if_not_sent: bool = setting(
        False,
        _flag,
        "Whether send, send_ping, send_pong and send_reuse_external_bytearray raise "
        "WSConnectionClosedError if the frame goes nowhere, as the connection is closing or "
        "closed. If not, they return False.",
    )
    coalesce_writes: bool = setting(
        False,
        _flag,
        "Whether what one turn of the event loop sends leaves as one system call, at the end of "
        "the turn, instead of each frame at once.",
    )
    use_loop_transport: bool | None = setting(
        None,
        _optional(_flag),
        "Whether bytes go through a transport of the event loop's own instead of the descriptor "
        "itself, which is faster. None: only where the loop cannot watch descriptors.",
    )

    so_busy_poll: int | None = setting(
        None,
        _optional(_c_int),
        "SO_BUSY_POLL (Linux): how long a read or a wait polls the network device's queue before "
        "it sleeps. More than the system's net.core.busy_read needs CAP_NET_ADMIN. None: as the "
        "system says.",
        unit="microseconds",
    )
    so_prefer_busy_poll: bool | None = setting(
        None,
        _optional(_flag),
        "SO_PREFER_BUSY_POLL (Linux): whether the network device's interrupts are put off while "
        "the socket is polled. Turning it on needs CAP_NET_ADMIN. None: as the system says.",
    )
    so_incoming_cpu: int | None = setting(
        None,
        _optional(_c_int),
        "SO_INCOMING_CPU (Linux): the CPU that handles what this socket receives. Of several "
        "sockets that listen with reuse_port, the one with the CPU that took the packet is "
        "preferred. None: not set.",
    )
    tcp_quickack: bool = setting(
        False,
        _flag,
        "Whether TCP_QUICKACK (Linux) is set again after each read, as the system clears it: what "
        "arrives is acknowledged at once, for a system call a read. No effect over a transport of "
        "the event loop's.",
    )

    rx_timestamps: bool = setting(
        False,
        _flag,
        "Whether frames carry the time at which the kernel received them "
        "(WSFrame.recv_timestamp_ns). Linux and TCP, with TLS or without, for about 300 ns a read; "
        "elsewhere, and over a transport of the event loop's, frames carry none.",
    )

    use_aiofastnet: bool | None = setting(
        None, _anything, "Accepted for compatibility with picows; has no effect."
    )
    zero_copy_unsafe_ssl_write: bool | None = setting(
        None, _anything, "Accepted for compatibility with picows; has no effect."
    )
    ssl_handshake_timeout: float | None = setting(
        None,
        _optional(_seconds),
        "Deadline for the TLS handshake alone, inside websocket_handshake_timeout. None: only "
        "the latter.",
        unit="seconds",
    )
    ssl_shutdown_timeout: float | None = setting(
        None,
        _optional(_seconds),
        "Accepted as a parameter of asyncio's; has no effect: close_timeout covers it.",
        unit="seconds",
    )

    def _check_combinations(self) -> None:
        if self.write_low_watermark > self.write_high_watermark:
            raise ValueError(
                f"write_low_watermark must not exceed write_high_watermark "
                f"({self.write_high_watermark}), got {self.write_low_watermark}"
            )
        if self.max_write_backlog is not None and (
            self.max_write_backlog < self.write_high_watermark
        ):
            raise ValueError(
                f"max_write_backlog must be at least write_high_watermark "
                f"({self.write_high_watermark}), got {self.max_write_backlog}"
            )


@_settings
class ClientOptions(ConnectionOptions):
    """Settings of ``ws_connect``."""

    extra_headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = setting(
        None,
        _optional(_headers),
        "Headers added to the opening handshake request. Host replaces the one made from the URL. "
        "Kept as a tuple of pairs.",
        has_secrets=True,
    )
    user_agent: str | None = setting(
        USER_AGENT,
        _optional(_header_value),
        "Value of the User-Agent header, unless extra_headers has one. None: none is sent. RFC "
        "9110 10.1.5.",
    )
    subprotocols: Sequence[str] | None = setting(
        None,
        _optional(_subprotocols),
        "Subprotocols to offer, the preferred first. RFC 6455 1.9.",
        has_secrets=True,
    )
    max_redirects: int = setting(
        5,
        _not_negative,
        "How many HTTP redirects are followed. 0: none. What belongs to one origin does not follow "
        "to another, see redirect_keeps.",
    )
    redirect_keeps: Sequence[str] = setting(
        (),
        _header_names,
        "What follows a redirect to another origin (scheme, host or port): names of extra_headers, "
        "`subprotocols`, `ssl_context`. Without its name here, a header is left out, and with "
        "subprotocols or, to a wss URL, an ssl_context the redirect raises WSError.",
    )
    max_refusal_size: int = setting(
        DEFAULT_LIMITS.max_body_size,
        _positive,
        "Most bytes of a refusal's body that are kept, in WSInvalidStatusError.raw_body; the rest "
        "is cut off.",
        unit="bytes",
    )

    ssl_context: SSLContext | None = setting(
        None,
        _ssl_context,
        "TLS context for wss URLs. None: ssl.create_default_context(), which verifies the server.",
    )
    server_hostname: str | None = setting(
        None,
        _optional(_instance(str, expected="a str")),
        "Name for SNI and certificate verification in place of the URL's host.",
    )
    ssl_session: SSLSession | None = setting(
        None,
        _optional(_instance(SSLSession, expected="an ssl.SSLSession")),
        "TLS session of an earlier connection, made with the same context, to resume.",
    )

    proxy: str | None = setting(
        None,
        _optional(_text),
        "URL of a proxy: http, https, socks4 (socks4a) or socks5 (socks5h), with credentials if it "
        "asks for them. It resolves the target's name.",
        has_secrets=True,
    )
    proxy_ssl_context: SSLContext | None = setting(
        None,
        _ssl_context,
        "TLS context for an https proxy. None: ssl.create_default_context().",
    )

    socket_factory: (
        Callable[[Any], socket.socket | Awaitable[socket.socket | None] | None] | None
    ) = setting(
        None,
        _optional(_callable),
        "Called with the parsed URL of the server, or of the proxy if there is one. Returns, or "
        "is a coroutine function that returns, a connected or unconnected stream socket, which "
        "then belongs to the connection, or None for the usual way of connecting.",
    )
    sock: socket.socket | None = setting(
        None,
        _socket,
        "A connected or unconnected stream socket to use in place of a new one. It belongs to the "
        "connection.",
    )
    unix_path: str | bytes | os.PathLike[str] | None = setting(
        None, _path, "Path of a Unix socket to connect to in place of the URL's host and port."
    )
    busy_poll: float = setting(
        0.0,
        _seconds_or_zero,
        "How long the connection spins, trying to read again, after each time that data came. "
        "Meanwhile the event loop does nothing else. On picows_fast's own loop, the loop spins "
        "for as long after this connection received, and stops for anything else. No effect over "
        "a transport of the event loop's. 0: not at all.",
        unit="seconds",
    )
    local_addr: tuple[Any, ...] | None = setting(
        None, _optional(_local_address), "Local address (host, port) to connect from."
    )
    family: int = setting(0, _integer, "Address family for getaddrinfo: AF_INET, AF_INET6 or 0.")
    proto: int = setting(0, _integer, "Protocol number for getaddrinfo.")
    flags: int = setting(0, _integer, "Flags for getaddrinfo.")
    happy_eyeballs_delay: float | None = setting(
        0.25,
        _optional(_seconds),
        "How long an address is tried before the next one is tried beside it (RFC 8305). None: "
        "one after the other.",
        unit="seconds",
    )
    interleave: int | None = setting(
        None,
        _optional(_not_negative),
        "How many addresses of the first family are tried before the families alternate (RFC "
        "8305 4). None: 1 with happy_eyeballs_delay, else addresses are not reordered.",
    )

    def _check_combinations(self) -> None:
        super()._check_combinations()
        if self.sock is not None and self.socket_factory is not None:
            raise ValueError("sock and socket_factory must not be used together")
        if self.sock is not None and self.local_addr is not None:
            raise ValueError("sock and local_addr must not be used together")
        for other in ("proxy", "local_addr"):
            if self.unix_path is not None and getattr(self, other) is not None:
                raise ValueError(f"unix_path and {other} must not be used together")
        if self.extra_headers is not None:
            # A redirect sends them again: an iterator would be empty then.
            self.__dict__["extra_headers"] = _header_pairs(self.extra_headers)


@_settings
class ServerOptions(ConnectionOptions):
    """Settings of ``ws_create_server``."""

    auto_ping_idle_timeout: float = _other_default("auto_ping_idle_timeout", 20)
    auto_ping_reply_timeout: float = _other_default("auto_ping_reply_timeout", 20)

    subprotocols: Sequence[str] | None = setting(
        None,
        _optional(_subprotocols),
        "Subprotocols the server speaks, the preferred first. The first that the client offers "
        "too is chosen. RFC 6455 1.9.",
    )

    origins: Sequence[str | None] | None = setting(
        None,
        _optional(_origins),
        "Origins that WebSocket requests may come from, others get 403: `https://example.com`, "
        "`https://*.example.com` for its subdomains, None in the list for requests without an "
        "Origin, which are not a browser's. None: no check. RFC 6455 10.2.",
    )
    proxy_protocol: Sequence[str] | None = setting(
        None,
        _optional(_trusted_proxies),
        "Addresses and networks (`10.0.0.0/8`) of load balancers, and `unix` for Unix sockets: "
        "each connection from there must begin with a header of the PROXY protocol, version 1 or "
        "2, before TLS and HTTP, and the client's address that it tells is believed. Connections "
        "from elsewhere must have none. None: no connection has one.",
    )
    max_connections: int | None = setting(
        None,
        _optional(_positive),
        "Open WebSocket connections above which a request for one more gets 503. None: no limit.",
        unit="connections",
    )
    max_connections_per_ip: int | None = setting(
        None,
        _optional(_positive),
        "Open WebSocket connections from one IP address above which a request for one more gets "
        "429. IPv6 addresses count by their first 64 bits; Unix sockets do not count. None: no "
        "limit.",
        unit="connections",
    )
    max_pending_handshakes: int | None = setting(
        None,
        _optional(_positive),
        "Connections in their opening handshake above which no more are accepted: the next ones "
        "wait in the system, see backlog. None: no limit.",
        unit="connections",
    )

    ssl: SSLContext | None = setting(None, _ssl_context, "TLS context. None: no TLS.")

    sock: socket.socket | None = setting(
        None, _socket, "A bound stream socket to listen on in place of host and port."
    )
    unix_path: str | bytes | os.PathLike[str] | None = setting(
        None,
        _path,
        "Path of a Unix socket to listen on in place of host and port. A stale socket there is "
        "removed; any other file is an error.",
    )
    family: int = setting(
        0, _integer, "Address family to listen on: AF_INET, AF_INET6 or 0 for both."
    )
    flags: int = setting(int(socket.AI_PASSIVE), _integer, "Flags for getaddrinfo.")
    backlog: int = setting(
        100,
        _positive,
        "Connections that wait in the system for being accepted, and the most that are accepted "
        "in one turn of the loop.",
        unit="connections",
    )
    reuse_address: bool | None = setting(
        None, _optional(_flag), "SO_REUSEADDR. None: on, except on Windows."
    )
    reuse_port: bool | None = setting(None, _optional(_flag), "SO_REUSEPORT. None: off.")
    keep_alive: bool | None = setting(
        None, _optional(_flag), "SO_KEEPALIVE of accepted connections. None: off."
    )
    start_serving: bool = setting(
        True,
        _flag,
        "Whether connections are accepted at once. If not, addresses are bound, and the server's "
        "start_serving or serve_forever begins to listen on them.",
    )

    def _check_combinations(self) -> None:
        super()._check_combinations()
        if self.sock is not None and self.unix_path is not None:
            raise ValueError("sock and unix_path must not be used together")
        if self.max_pending_handshakes is not None and self.websocket_handshake_timeout is None:
            # Clients that say nothing would keep all others out, for ever.
            raise ValueError("max_pending_handshakes needs a websocket_handshake_timeout")


def _header_pairs(
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    # A multidict is a Mapping whose items() repeats names, as it should here.
    pairs: tuple[Any, ...] = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"extra_headers must contain pairs, got {type(pair).__name__}")
        for text in pair:
            if not isinstance(text, str):
                raise TypeError(f"extra_headers must contain str, got {type(text).__name__}")
    return tuple((name, value) for name, value in pairs)


def handshake_limits(options: ConnectionOptions) -> HandshakeLimits:
    """Return what the peer's side of an opening handshake may cost by these settings."""
    given = options.__dict__
    if not ("max_head_size" in given or "max_header_count" in given or "max_refusal_size" in given):
        return DEFAULT_LIMITS
    return HandshakeLimits(
        max_head_size=options.max_head_size,
        max_header_count=options.max_header_count,
        max_body_size=getattr(options, "max_refusal_size", DEFAULT_LIMITS.max_body_size),
    )
