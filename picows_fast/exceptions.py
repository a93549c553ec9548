"""The errors of this package, and the table of what a peer can do wrong in a frame.

Owns the exception classes and the meaning of the wire reader's negative error codes. Decides
nothing: which error is raised when is the business of the code that raises it.

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
]

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

    An OSError that ``ws_connect`` raises has these attributes, too; a TimeoutError is one.
    """

    phase: str | None = None
    host: str | None = None
    port: int | None = None

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
    """What arrived is not a complete, well-formed HTTP/1.1 request or response."""


class WSInvalidStatusError(WSHandshakeError):
    """The server answered with another status than 101; `response.status` is that status.

    A body that was cut short, by the end of the connection or by the deadline, is there as far as
    it came.
    """

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
    none.

    It is a ``python_socks.ProxyError``, too, in a program that imports python-socks.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        del kwargs
        socks_error = getattr(sys.modules.get("python_socks"), "ProxyError", None)
        if cls is WSProxyError and socks_error is not None:
            cls = cast("type[Self]", _socks_proxy_error(socks_error))
        return super().__new__(cls, *args)

    def __init__(self, description: str, error_code: int | None = None) -> None:
        super().__init__(description)
        self.error_code = error_code


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
