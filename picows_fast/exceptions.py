"""The errors of this package, and the table of what a peer can do wrong in a frame.

Owns the exception classes, the meaning of the wire reader's negative error codes, and what is
transient: the reasons for which a later attempt may succeed. Decides nothing: which error is raised
when is the business of the code that raises it.

    Exception
      WSError                          everything below
        WSHandshakeError               the opening handshake failed            RFC 6455 4
          WSInvalidMessageError        what arrived is not the HTTP message that was expected
          WSInvalidStatusError         the server answered with another status than 101
          WSInvalidHeaderError         a header is missing, repeated or wrong
            WSInvalidUpgradeError      ... and it is Upgrade or Connection
        WSInvalidURL                   not a WebSocket URL (a ValueError, too)  RFC 6455 3
        WSProxyError                   the proxy refused or failed
        WSProtocolError                fail the connection with a close code    RFC 6455 7.1.7
          WSPeerProtocolError          ... because of the frames the peer sent
        WSConnectionClosedError        the connection ended, or is ending (a ConnectionResetError)

All of them can be pickled and copied. Where python-socks is imported, a WSProxyError is also its
ProxyError, which is what picows raises.
"""

from __future__ import annotations

import errno
import functools
import re
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .states import NamedIntEnum, WSDisconnectCause

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "VIOLATIONS",
    "WSConnectionClosedError",
    "WSError",
    "WSHandshakeError",
    "WSInvalidHeaderError",
    "WSInvalidMessageError",
    "WSInvalidStatusError",
    "WSInvalidURL",
    "WSInvalidUpgradeError",
    "WSPeerProtocolError",
    "WSProtocolError",
    "WSProxyError",
    "WSViolation",
    "is_transient",
]

# What is transient: the same attempt may succeed later, without a change on this side.

# getaddrinfo(3): the server of names cannot tell now, or this machine cannot ask.
_TRANSIENT_NAME_ERRORS = ("EAI_AGAIN", "EAI_MEMORY", "EAI_SYSTEM")
# connect(2), socket(2): the network, the peer's system, or what this system has run out of.
# EAGAIN is a Unix socket's full backlog.
_TRANSIENT_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNREFUSED",
        "ECONNRESET",
        "ECONNABORTED",
        "EPIPE",
        "ENOTCONN",
        "ETIMEDOUT",
        "ENETRESET",
        "EPROTO",
        "ENETUNREACH",
        "EHOSTUNREACH",
        "ENETDOWN",
        "EHOSTDOWN",
        "ENONET",
        "EADDRNOTAVAIL",
        "EADDRINUSE",
        "EAGAIN",
        "EINTR",
        "EMFILE",
        "ENFILE",
        "ENOBUFS",
        "ENOMEM",
    )
    if hasattr(errno, name)
)
# RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4.
_TRANSIENT_CLIENT_STATUSES = frozenset((408, 425, 429))
# RFC 9110 15.6.2, 15.6.6; RFC 6585 6: of all 5xx, these say what will not change by itself.
_LASTING_SERVER_STATUSES = frozenset((501, 505, 511))
# RFC 1928 6: general failure, network or host unreachable, refused, TTL expired; SOCKS4: 91, which
# says no more than "rejected or failed".
_TRANSIENT_SOCKS_REPLIES = frozenset((1, 3, 4, 5, 6, 91))
# RFC 6455 7.4.1 and the registry of 11.7: going away, abnormal closure, internal error, service
# restart, try again later, bad gateway, timeout.
_TRANSIENT_CLOSE_CODES = frozenset((1001, 1006, 1011, 1012, 1013, 1014, 3008))
_TRANSIENT_CAUSES = frozenset(
    (
        WSDisconnectCause.PING_TIMEOUT,
        WSDisconnectCause.CLOSE_TIMEOUT,
        WSDisconnectCause.WRITE_BACKLOG,
        WSDisconnectCause.PEER_FIN,
        WSDisconnectCause.PEER_RESET,
        WSDisconnectCause.NETWORK_ERROR,
        WSDisconnectCause.TLS_CLOSE_NOTIFY,
        WSDisconnectCause.TLS_TRUNCATED,
        WSDisconnectCause.HANDSHAKE_TIMEOUT,
    )
)

# RFC 6455 5.5: a control frame carries 125 bytes; two of them are the close code.
MAX_CLOSE_REASON_SIZE = 123

_SHOWN_VALUE_LENGTH = 200
# Their values may be credentials, or tokens that stand in for some.
_SECRET_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "cookie", "set-cookie", "location")
    + ("sec-websocket-protocol",)
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,20}")
_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Za-z:.%_~\-]*\]|[\w.~\-]{0,255})(?::[0-9]{0,20})?")


def shown_url(url: str) -> str:
    """The URL as texts show it, whatever is wrong with it: scheme, host and port.

    User info, path and query may be secrets, and so is what cannot be told from them.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or _SCHEME.fullmatch(scheme) is None:
        return "..."
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    user_info, at_sign, host = authority.rpartition("@")
    # An "@" behind the authority may end a password that should have been percent-encoded.
    if "@" in tail or "@" in user_info or _HOST_AND_PORT.fullmatch(host) is None:
        return f"{scheme}://..."
    hidden = "/..." if tail not in ("", "/") else tail
    return f"{scheme}://{'***@' if at_sign else ''}{host}{hidden}"


def close_text(code: int, reason: str | None) -> str:
    """What a received CLOSE frame said, for a log line or the text of an error."""
    said = f"CLOSE {code:d} received" if code else "CLOSE received"
    return said if reason is None else f"{said}: {reason!r}"


def _rebuild(cls: type[WSError], args: tuple[object, ...], state: dict[str, Any]) -> WSError:
    error = cls.__new__(cls, *args)
    error.args = args  # __new__ of an OSError with an __init__ of its own does not keep them
    error.__dict__.update(state)
    return error


class WSError(Exception):
    """Base of every error that is particular to WebSocket.

    What ``ws_connect`` raises says where it failed; other errors have None there:

    `phase`: "resolving", "connecting", "proxy", "tls" or "upgrade".
    `host`, `port`: of the server, or of its proxy if that is where it failed.

    An OSError that ``ws_connect`` raises has these attributes and `is_transient`, too; a
    TimeoutError is one.
    """

    phase: str | None = None
    host: str | None = None
    port: int | None = None

    @property
    def is_transient(self) -> bool:
        """Whether the same attempt may succeed later, without a change on this side: a retry makes
        sense, after a pause. Of an error that says neither, False."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException calls the class with `args`, which is not what most constructors below take.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class WSHandshakeError(WSError):
    """The opening handshake failed (RFC 6455 4).

    `raw_header`: the bytes of the HTTP head as far as they were received, or None.
    `raw_body`: the bytes of the body as far as they were received, chunked coding undone, or None.
    `response`: client side, the parsed WSUpgradeResponse if there is one, else None.
    """

    def __init__(
        self,
        description: str,
        raw_header: bytes | None = None,
        raw_body: bytes | None = None,
        response: Any = None,
    ) -> None:
        super().__init__(description)
        self.raw_header = raw_header
        self.raw_body = raw_body
        self.response = response


class WSInvalidMessageError(WSHandshakeError):
    """What arrived is not a complete, well-formed HTTP/1.1 request or response.

    `ended_early`: whether the peer ended the connection before it was complete. That is transient;
    what is not well-formed is not.
    """

    def __init__(
        self,
        description: str,
        raw_header: bytes | None = None,
        raw_body: bytes | None = None,
        response: Any = None,
        *,
        ended_early: bool = False,
    ) -> None:
        super().__init__(description, raw_header, raw_body, response)
        self.ended_early = ended_early

    @property
    def is_transient(self) -> bool:
        """``ended_early``."""
        return self.ended_early


class WSInvalidStatusError(WSHandshakeError):
    """The server answered with another status than 101; `response.status` is that status.

    A body that was cut short, by the end of the connection or by the deadline, is there as far as
    it came.
    """

    @property
    def is_transient(self) -> bool:
        """Whether the status is one that passes: 408, 425, 429 and 5xx, but not 501, 505 and 511
        (RFC 9110 15.5, 15.6; RFC 6585; RFC 8470). Any other 4xx if it has a Retry-After."""
        if self.response is None:
            return False
        status = int(self.response.status)
        return _is_transient_status(status) or (status >= 400 and self.retry_after is not None)

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait (Retry-After, RFC 9110 10.2.3), None if it does not.

        A date counts from the response's own Date, or from now if there is none; never negative.
        """
        headers = {} if self.response is None else self.response.headers
        value = headers.get("Retry-After", "")
        if re.fullmatch(r"[0-9]{1,15}", value):
            return float(value)
        until = _http_date(value)
        if until is None:
            return None
        sent = _http_date(headers.get("Date", ""))
        return max(0.0, until - (time.time() if sent is None else sent))


def _is_transient_status(status: int) -> bool:
    if status >= 500:
        return status not in _LASTING_SERVER_STATUSES
    return status in _TRANSIENT_CLIENT_STATUSES


def _http_date(value: str) -> float | None:
    """Seconds since the epoch of an HTTP-date (RFC 9110 5.6.7), None if it is none."""
    # Only a refusal with a date needs this module, which takes a while to import.
    from datetime import timezone
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


class WSInvalidHeaderError(WSHandshakeError):
    """A header of the opening handshake is missing, repeated, or has a wrong value.

    `name`: the header. `value`: what it said, None if it is missing. The text of the error leaves
    out values of headers that may carry credentials.
    """

    def __init__(
        self,
        description: str,
        name: str,
        value: str | None = None,
        raw_header: bytes | None = None,
        raw_body: bytes | None = None,
        response: Any = None,
    ) -> None:
        super().__init__(description, raw_header, raw_body, response)
        self.name = name
        self.value = value

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.args[0]} ({self.name} is missing)"
        value = self.value
        if self.name.lower() in _SECRET_HEADERS:
            return f"{self.args[0]} ({self.name}: {len(value)} characters)"
        if len(value) > _SHOWN_VALUE_LENGTH:
            value = value[:_SHOWN_VALUE_LENGTH] + "..."
        return f"{self.args[0]} ({self.name}: {value!r})"


class WSInvalidUpgradeError(WSInvalidHeaderError):
    """The Upgrade or the Connection header does not switch to the WebSocket protocol."""


class WSInvalidURL(WSError, ValueError):  # noqa: N818 - the name is public API
    """Not a valid WebSocket URL (RFC 6455 3, RFC 3986).

    `url` is the URL as it was given. The text of the error has no more of it than scheme, host and
    port.
    """

    def __init__(self, url: str, msg: str) -> None:
        super().__init__(f"{shown_url(url)!r} isn't a valid URL: {msg}")
        self.url = url


class WSProxyError(WSError):
    """The proxy refused the tunnel, or did not speak its protocol.

    `error_code`: the status of an HTTP proxy, the reply code of a SOCKS proxy, None if there is
    none. `ended_early`: whether it ended the connection before it had answered.

    It is a ``python_socks.ProxyError``, too, in a program that imports python-socks.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        del kwargs
        socks_error = getattr(sys.modules.get("python_socks"), "ProxyError", None)
        if cls is WSProxyError and socks_error is not None:
            cls = cast("type[Self]", _socks_proxy_error(socks_error))
        return super().__new__(cls, *args)

    def __init__(
        self, description: str, error_code: int | None = None, *, ended_early: bool = False
    ) -> None:
        super().__init__(description)
        self.error_code = error_code
        self.ended_early = ended_early

    @property
    def is_transient(self) -> bool:
        """Whether the proxy ended the connection early, or its code is one that passes.

        HTTP: a status that would be transient from a server. SOCKS5 (RFC 1928 6): 1, 3, 4, 5 and 6.
        SOCKS4: 91.
        """
        code = self.error_code
        if code is None:
            return self.ended_early
        return code in _TRANSIENT_SOCKS_REPLIES or _is_transient_status(code)


@functools.cache
def _socks_proxy_error(base: type[Exception]) -> type[WSProxyError]:
    """Return the class of a WSProxyError that is python-socks' error, too."""

    def reduce(self: WSProxyError) -> tuple[Any, ...]:
        # By the public name: the process that reads it may be without python-socks.
        return _rebuild, (WSProxyError, self.args, self.__dict__.copy())

    return type(
        "WSProxyError", (WSProxyError, base), {"__module__": __name__, "__reduce__": reduce}
    )


class WSConnectionClosedError(WSError, ConnectionResetError):
    """The connection ended, or is ending: what was awaited does not come, what was sent goes
    nowhere.

    `cause`: the WSDisconnectCause, or None if that is not known.
    `close_code`, `close_reason`: what the peer's CLOSE frame said (RFC 6455 7.1.5, 7.1.6), None if
    there was none. The text has all of them.
    """

    def __init__(
        self,
        message: str = "the connection is closed",
        cause: WSDisconnectCause | None = None,
        close_code: int | None = None,
        close_reason: str | None = None,
    ) -> None:
        seen = [] if cause is None else [str(cause)]
        if close_code is not None:
            seen.append(close_text(close_code, close_reason))
        super().__init__(f"{message} ({', '.join(seen)})" if seen else message)
        self.cause = cause
        self.close_code = close_code
        self.close_reason = close_reason

    @property
    def is_transient(self) -> bool:
        """Whether a new connection may last, by the cause and, if the peer closed, by its code.

        Codes: 1001, 1006, 1011-1014 and 3008 (RFC 6455 7.4). Causes: timeouts, a lost network, a
        stream that ended without CLOSE, a peer that did not read. Neither is known: True.
        """
        if self.cause is None or self.cause == WSDisconnectCause.CLOSE_FRAME:
            if self.close_code is None:
                return self.cause is None
            return self.close_code in _TRANSIENT_CLOSE_CODES
        return self.cause in _TRANSIENT_CAUSES


class WSProtocolError(WSError):
    """Fail the connection with this close code and reason (RFC 6455 7.1.7).

    A callback of a listener may raise it to choose what the CLOSE frame says.

    `code`: int or WSCloseCode that may be sent (RFC 6455 7.4): 1000-1003, 1007-1014, 3000-4999.
    `message`: the reason; as long as wanted, `close_reason` is what fits into the frame.

    Raises TypeError if `code` is not an int, ValueError if it may not be sent.
    """

    def __init__(self, code: int, message: object = "") -> None:
        if not isinstance(code, int) or isinstance(code, bool):
            raise TypeError(f"code must be an int, got {type(code).__name__}")
        if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise ValueError(
                f"code must be one that may be sent (1000-1003, 1007-1014, 3000-4999), got {code}"
            )
        super().__init__(code, message)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def is_transient(self) -> bool:
        """Whether the code is one that passes: 1001, 1011-1014, 3008 (RFC 6455 7.4). What a peer
        does wrong in its frames (1002, 1007, 1009) is not."""
        return self.code in _TRANSIENT_CLOSE_CODES

    @property
    def close_reason(self) -> bytes:
        """The message as the CLOSE frame carries it.

        UTF-8, cut between two characters to at most 123 bytes; a lone surrogate becomes "?".
        """
        reason = str(self).encode("utf-8", "replace")
        if len(reason) <= MAX_CLOSE_REASON_SIZE:
            return reason
        return reason[:MAX_CLOSE_REASON_SIZE].decode("utf-8", "ignore").encode("utf-8")


class WSViolation(NamedIntEnum):
    """What a peer can do wrong in its frames. The values are the error codes of wire/frame.h."""

    RESERVED_OPCODE = -1
    CONTROL_FRAGMENTED = -2
    CONTROL_TOO_LONG = -3
    LENGTH_NOT_MINIMAL = -4
    LENGTH_MSB_SET = -5
    RSV_SET = -6
    UNMASKED = -7
    MASKED = -8
    FRAME_TOO_BIG = -9
    UNEXPECTED_CONTINUATION = -10
    EXPECTED_CONTINUATION = -11
    CLOSE_PAYLOAD_SHORT = -12
    CLOSE_CODE = -13
    CLOSE_REASON_UTF8 = -14
    TEXT_UTF8 = -15
    MESSAGE_TOO_BIG = -16
    TOO_MANY_FRAGMENTS = -17


class Violation(NamedTuple):
    """How one violation is answered: the close code and the text that says what was wrong."""

    violation: WSViolation
    close_code: int
    text: str


_PROTOCOL_ERROR = 1002
_INVALID_TEXT = 1007
_TOO_BIG = 1009

#: error code of the wire reader -> what it means and how it is answered
VIOLATIONS: dict[int, Violation] = {
    violation.value: Violation(violation, close_code, text)
    for violation, close_code, text in (
        (
            WSViolation.RESERVED_OPCODE,
            _PROTOCOL_ERROR,
            "reserved opcode (RFC 6455 5.2)",
        ),
        (
            WSViolation.CONTROL_FRAGMENTED,
            _PROTOCOL_ERROR,
            "fragmented control frame (RFC 6455 5.5)",
        ),
        (
            WSViolation.CONTROL_TOO_LONG,
            _PROTOCOL_ERROR,
            "control frame with more than 125 bytes (RFC 6455 5.5)",
        ),
        (
            WSViolation.LENGTH_NOT_MINIMAL,
            _PROTOCOL_ERROR,
            "payload length not in its shortest encoding (RFC 6455 5.2)",
        ),
        (
            WSViolation.LENGTH_MSB_SET,
            _PROTOCOL_ERROR,
            "payload length above 2^63 - 1 (RFC 6455 5.2)",
        ),
        (
            WSViolation.RSV_SET,
            _PROTOCOL_ERROR,
            "reserved bit set without an extension that uses it (RFC 6455 5.2)",
        ),
        (
            WSViolation.UNMASKED,
            _PROTOCOL_ERROR,
            "frame of a client is not masked (RFC 6455 5.1)",
        ),
        (
            WSViolation.MASKED,
            _PROTOCOL_ERROR,
            "frame of a server is masked (RFC 6455 5.1)",
        ),
        (
            WSViolation.FRAME_TOO_BIG,
            _TOO_BIG,
            "frame larger than max_frame_size (RFC 6455 10.4)",
        ),
        (
            WSViolation.UNEXPECTED_CONTINUATION,
            _PROTOCOL_ERROR,
            "continuation frame without a message to continue (RFC 6455 5.4)",
        ),
        (
            WSViolation.EXPECTED_CONTINUATION,
            _PROTOCOL_ERROR,
            "new message before the last one was finished (RFC 6455 5.4)",
        ),
        (
            WSViolation.CLOSE_PAYLOAD_SHORT,
            _PROTOCOL_ERROR,
            "CLOSE frame with a payload of one byte (RFC 6455 5.5.1)",
        ),
        (
            WSViolation.CLOSE_CODE,
            _PROTOCOL_ERROR,
            "close code that may not be sent (RFC 6455 7.4)",
        ),
        (
            WSViolation.CLOSE_REASON_UTF8,
            _INVALID_TEXT,
            "close reason is not UTF-8 (RFC 6455 5.5.1)",
        ),
        (
            WSViolation.TEXT_UTF8,
            _INVALID_TEXT,
            "text message is not UTF-8 (RFC 6455 8.1)",
        ),
        (
            WSViolation.MESSAGE_TOO_BIG,
            _TOO_BIG,
            "message larger than max_message_size (RFC 6455 10.4)",
        ),
        (
            WSViolation.TOO_MANY_FRAGMENTS,
            _TOO_BIG,
            "message in more than max_fragments frames (RFC 6455 10.4)",
        ),
    )
}


class WSPeerProtocolError(WSProtocolError):
    """The peer's frames break RFC 6455 or a limit; the connection fails with `code`.

    `violation`: the WSViolation, or its error code. `detail`: what was seen, added to the text.
    What was seen is there as numbers, too, None where it does not apply:
    `size`, `limit`: of a frame or message in bytes, or of a message in frames, as far as it came.
    `offset`: bytes of the text before the one that cannot be UTF-8, or where the text ends too
    early.
    `seen`: the opcode, close code or reserved bits (RSV1=4, RSV2=2, RSV3=1) that may not be there.

    Raises ValueError if `violation` is not one.
    """

    def __init__(
        self,
        violation: WSViolation | int,
        detail: str = "",
        *,
        size: int | None = None,
        limit: int | None = None,
        offset: int | None = None,
        seen: int | None = None,
    ) -> None:
        try:
            entry = VIOLATIONS[violation]
        except KeyError:
            raise ValueError(f"violation must be a WSViolation, got {violation!r}") from None
        super().__init__(entry.close_code, f"{entry.text}: {detail}" if detail else entry.text)
        self.violation = entry.violation
        self.size = size
        self.limit = limit
        self.offset = offset
        self.seen = seen


def is_transient(error: BaseException) -> bool:
    """Whether the same attempt may succeed later, without a change on this side.

    For every exception that ends a connection, or an attempt to connect: a WSError's own
    `is_transient`; timeouts; of ``socket.gaierror``, what getaddrinfo(3) calls temporary, and lack
    of memory; of ``ssl.SSLError``, the end of the connection in the midst of TLS; of any other
    OSError, the errors of the network, of a peer that is not there, and of a system that has run
    out of ports, descriptors or memory. False for everything else, and so for one's own mistakes.

    :raises TypeError: `error` is not an exception
    """
    if isinstance(error, WSError):
        return error.is_transient
    # asyncio's is one of its own before Python 3.11.
    if isinstance(error, (TimeoutError, _loaded("asyncio", "TimeoutError"))):
        return True
    if isinstance(error, _loaded("socket", "gaierror")):
        transient = {_loaded("socket", name) for name in _TRANSIENT_NAME_ERRORS}
        return getattr(error, "errno", None) in transient
    if isinstance(error, OSError):
        return _is_transient_os_error(error)
    if not isinstance(error, BaseException):
        raise TypeError(f"is_transient() takes an exception, got {type(error).__name__}")
    return False


def _loaded(module: str, name: str) -> Any:
    """What a module that is imported already has by that name, else ().

    No error is of a class that is not imported, and this module has no need of I/O itself.
    """
    return getattr(sys.modules.get(module), name, ())


def _is_transient_os_error(error: OSError) -> bool:
    if isinstance(error, _loaded("ssl", "SSLError")):
        # Their numbers are OpenSSL's.
        ends = ("SSLEOFError", "SSLZeroReturnError", "SSLSyscallError")
        return isinstance(error, tuple(_loaded("ssl", name) for name in ends))
    if isinstance(error, ConnectionError) or error.errno in _TRANSIENT_ERRNOS:
        return True
    # Several addresses that failed for several reasons have no number in common. A server that
    # restarts has removed its Unix socket for a while.
    return getattr(error, "phase", None) == "connecting" and error.errno in (None, errno.ENOENT)
