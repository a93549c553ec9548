"""The HTTP/1.1 messages of the opening handshake: what they hold, reading and writing them.

Owns the request and response types, the checks that keep a message in its bounds (size, syntax,
framing), and the encoding. Performs no I/O, and knows nothing of WebSocket but two header names.

`HeadReader` goes over the bytes of a head once, however they are cut, and lets through only what
every HTTP parser reads the same way; a message that says something of a body is then taken apart by
httptools. What httptools tolerates (folded lines, bare LF, whitespace before the colon ...) differs
from version to version and never gets that far; what it is strict about (the syntax and the number
of Content-Length and Transfer-Encoding) is left to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar, Final, Protocol, TypeAlias
from urllib.parse import parse_qsl

import httptools
from multidict import CIMultiDict, MultiDict

from ..._version import __version__
from ...exceptions import WSInvalidStatusError

__all__ = [
    "HandshakeLimits",
    "WSUpgradeRequest",
    "WSUpgradeResponse",
    "WSUpgradeResponseWithListener",
]

HeadersLike: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
Buffer: TypeAlias = bytes | bytearray | memoryview

_TOKEN_CHARACTER: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 5.6.2
TOKEN = _TOKEN_CHARACTER + "+"
IS_TOKEN = re.compile(TOKEN)
_FIELD_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")

_FIELD_LINE = re.compile(TOKEN.encode() + rb":[\t\x20-\x7e\x80-\xff]*")
_METHOD = _TOKEN_CHARACTER.encode() + b"{1,20}"  # longer than any that is registered
_REQUEST_LINE = re.compile(rb"(" + _METHOD + rb") ([\x21\x22\x24-\x7e]+) (HTTP/[0-9]\.[0-9])")
_REQUEST_BEGINNING = re.compile(_METHOD + rb"(?: |\Z)")
_ABSOLUTE_FORM = re.compile(rb"(?:http|ws)s?://([^/?@]+)([/?].*)?", re.IGNORECASE)
# A head without any fault, but for what its start line says.
_FAULTLESS_HEAD = re.compile(rb"[^\r\n]+\r\n(?:" + _FIELD_LINE.pattern + rb"\r\n)*\r\n")
# Statuses from 600 on are in use, and a client treats them as 5xx (RFC 9110 15).
_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")

#: what a client says of itself (RFC 9110 10.1.5)
USER_AGENT: Final = (
    f"picows_fast/{__version__} Python/{sys.version_info.major}.{sys.version_info.minor}"
)

# Looking one up in the enumeration itself takes ten times as long.
_NAMED_STATUSES: Final[Mapping[int, HTTPStatus]] = {status.value: status for status in HTTPStatus}
BODILESS_STATUSES = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True)
class HandshakeLimits:
    """What the peer's side of an opening handshake may cost.

    `max_head_size`: bytes of the start line and the headers, the final empty line included.
    `max_header_count`: header lines.
    `max_body_size`: bytes of the body of a refusal, chunk framing included; the rest is cut off.

    Raises TypeError or ValueError if one of them is not a positive int.
    """

    max_head_size: int = 16 * 1024
    max_header_count: int = 128
    max_body_size: int = 64 * 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


DEFAULT_LIMITS = HandshakeLimits()


class _Connected(Protocol):
    def get_extra_info(self, name: str, /) -> Any: ...


@dataclass(eq=False, repr=False)
class WSUpgradeRequest:
    """The client's request of an opening handshake (RFC 6455 4.1).

    `method`: b"GET", or b"HEAD" for plain HTTP. `path`: path and query. `version`: b"HTTP/1.1", or
    b"HTTP/1.0" for plain HTTP. `headers`: case-insensitive; bytes that are not UTF-8 are
    surrogate-escaped (PEP 383).

    `peername`, `sockname` and `ssl_object` tell whom a server's request came from; they are None
    where a request did not come by a connection.

    Its repr has the names of the headers; path and values may be secrets.
    """

    # Set on a server's requests, and asked when an attribute is read. Not a field.
    _stream: ClassVar[_Connected | None] = None

    method: bytes = b"GET"
    path: bytes = b"/"
    version: bytes = b"HTTP/1.1"
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method!r}, headers {list(self.headers)}>"

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: not the connection."""
        return {name: value for name, value in vars(self).items() if name != "_stream"}

    @property
    def peername(self) -> Any:
        """The client's address: (host, port, ...) of TCP, str or bytes of a Unix socket.

        With the PROXY protocol it is the one that a trusted proxy names. None if it is not known.
        """
        return self._connection_info("peername")

    @property
    def sockname(self) -> Any:
        """The server's own address on this connection, as `peername`; None after the end, on some
        event loops."""
        return self._connection_info("sockname")

    @property
    def ssl_object(self) -> Any:
        """What TLS negotiated, with `getpeercert()`, `cipher()` and `version()` of an
        `ssl.SSLObject`; None without TLS."""
        return self._connection_info("ssl_object")

    def _connection_info(self, name: str) -> Any:
        return None if self._stream is None else self._stream.get_extra_info(name)

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols the client offers, in its order of preference."""
        return list_elements(self.headers, "Sec-WebSocket-Protocol")

    @property
    def is_upgrade(self) -> bool:
        """Whether it asks for WebSocket; otherwise it is plain HTTP."""
        return has_token(self.headers, "Upgrade", "websocket")

    @property
    def query(self) -> MultiDict[str]:
        """The query of the path, as a form encodes it; empty if there is none.

        Percent-encoded bytes that are not UTF-8 become U+FFFD.
        """
        text = self.path.partition(b"?")[2].decode("ascii", "replace")
        return MultiDict(parse_qsl(text, keep_blank_values=True))


@dataclass(eq=False, repr=False)
class WSUpgradeResponse:
    """The server's response of an opening handshake (RFC 6455 4.2.2).

    `version`: b"HTTP/1.1". `status`: an HTTPStatus, or an int if the number has no name.
    `headers`: case-insensitive. `body`: bytes or None; chunked transfer coding is undone.

    Its repr has the names of the headers; values and body may be secrets.
    """

    version: bytes = b"HTTP/1.1"
    status: HTTPStatus | int = HTTPStatus.OK
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes | None = None

    def __repr__(self) -> str:
        size = 0 if self.body is None else len(self.body)
        return (
            f"<{type(self).__name__} {int(self.status)}, headers {list(self.headers)}, "
            f"{size} bytes of body>"
        )

    @staticmethod
    def create_101_response(extra_headers: HeadersLike | None = None) -> WSUpgradeResponse:
        """A response that switches to WebSocket.

        The server completes it (Sec-WebSocket-Accept, subprotocol). `extra_headers` may select a
        Sec-WebSocket-Protocol that the client offered.

        Raises TypeError or ValueError if a header is not valid.
        """
        headers = CIMultiDict({"Upgrade": "websocket", "Connection": "Upgrade"})
        for name, value in checked_headers(extra_headers):
            if name.lower() not in ("upgrade", "connection"):
                headers.add(name, value)
        return WSUpgradeResponse(status=HTTPStatus.SWITCHING_PROTOCOLS, headers=headers)

    @staticmethod
    def create_ok_response(
        body: Buffer | None = None, extra_headers: HeadersLike | None = None
    ) -> WSUpgradeResponse:
        """A plain 200 response, text/plain in UTF-8 unless `extra_headers` say otherwise.

        Raises TypeError or ValueError if a header or the body is not valid.
        """
        headers = CIMultiDict(checked_headers(extra_headers))
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        return WSUpgradeResponse(status=HTTPStatus.OK, headers=headers, body=checked_body(body))

    @staticmethod
    def create_error_response(
        status: HTTPStatus | int,
        body: Buffer | None = None,
        extra_headers: HeadersLike | None = None,
    ) -> WSUpgradeResponse:
        """A refusal with a status of 400 to 599.

        Raises TypeError or ValueError if the status, a header or the body is not valid.
        """
        if not 400 <= status <= 599:
            raise ValueError(f"status of an error response must be within 400..599, got {status}")
        return WSUpgradeResponse(
            status=_named_status(status),
            headers=CIMultiDict(checked_headers(extra_headers)),
            body=checked_body(body),
        )

    @staticmethod
    def create_redirect_response(
        status: HTTPStatus | int, location: str, extra_headers: HeadersLike | None = None
    ) -> WSUpgradeResponse:
        """A redirect to `location` with a status of 300 to 399.

        Raises TypeError or ValueError if the status, `location` or a header is not valid.
        """
        if not 300 <= status <= 399:
            raise ValueError(f"status of a redirect must be within 300..399, got {status}")
        headers = CIMultiDict(checked_headers(extra_headers))
        headers["Location"] = checked_headers([("Location", location)])[0][1]
        return WSUpgradeResponse(status=_named_status(status), headers=headers)

    def to_bytes(self) -> bytes:
        """The response as it goes on the wire; Content-Length and Content-Type follow from a body.

        Raises TypeError or ValueError if a header or the body is not valid.
        """
        headers = CIMultiDict(checked_headers(self.headers))
        body = checked_body(self.body)
        if body is not None:
            headers.setdefault("Content-Type", "text/plain")
            headers["Content-Length"] = str(len(body))
        return encode_response(WSUpgradeResponse(self.version, self.status, headers, body))


class WSUpgradeResponseWithListener:
    """What a server's listener factory may return: a response, and the listener that goes with it.

    `listener` is None if the response does not switch to WebSocket.
    """

    __slots__ = ("listener", "response")

    def __init__(self, response: WSUpgradeResponse, listener: object) -> None:
        self.response = response
        self.listener = listener


def _named_status(status: int) -> HTTPStatus | int:
    named = _NAMED_STATUSES.get(status)
    return int(status) if named is None else named


def status_phrase(status: int) -> str:
    """The reason phrase of a status line, "" for a status without a name."""
    named = _named_status(status)
    return named.phrase if isinstance(named, HTTPStatus) else ""


def checked_headers(headers: HeadersLike | None) -> list[tuple[str, str]]:
    """The headers as pairs, without white space around their values.

    Raises TypeError, or ValueError for what would break out of its line (RFC 9110 5.5).
    """
    if headers is None:
        return []
    if isinstance(headers, (str, bytes)):
        raise TypeError("headers must be a mapping or an iterable of (name, value) pairs")
    checked: list[tuple[str, str]] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(name, str):
            raise TypeError(f"header name must be a str, got {type(name).__name__}")
        if IS_TOKEN.fullmatch(name) is None:
            # What begins as a name may go on as its value.
            shown = re.split(r"[^A-Za-z0-9_-]", name, maxsplit=1)[0]
            raise ValueError(f"header name {shown + '...'!r} is not a token (RFC 9110 5.6.2)")
        if not isinstance(value, str):
            raise TypeError(f"value of header {name} must be a str, got {type(value).__name__}")
        if _FIELD_VALUE.fullmatch(value) is None:
            raise ValueError(f"value of header {name} has a control character (RFC 9110 5.5)")
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(f"value of header {name} has a lone surrogate") from None
        checked.append((name, value.strip(" \t")))
    return checked


def checked_body(body: Buffer | None) -> bytes | None:
    """The body as bytes of its own; TypeError if it is not bytes-like."""
    if body is None:
        return None
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError(f"body must be bytes-like or None, got {type(body).__name__}")
    return bytes(body)


def encode_head(start_line: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head as bytes; the headers are checked already."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    return f"{start_line}\r\n{''.join(lines)}\r\n".encode("utf-8", "surrogateescape")


def encode_response(response: WSUpgradeResponse) -> bytes:
    """As `to_bytes`, for a response that is complete and checked."""
    status = response.status
    if status is HTTPStatus.SWITCHING_PROTOCOLS and response.version == b"HTTP/1.1":
        return encode_head("HTTP/1.1 101 Switching Protocols", response.headers.items())
    start_line = f"{response.version.decode('ascii')} {int(status)} {status_phrase(status)}"
    return encode_head(start_line, response.headers.items()) + (response.body or b"")


def list_elements(headers: CIMultiDict[str], name: str) -> list[str]:
    """The elements of a comma-separated list, empty ones left out (RFC 9110 5.6.1)."""
    if name not in headers:
        return []
    elements = (part.strip(" \t") for part in ",".join(headers.getall(name, ())).split(","))
    return [element for element in elements if element]


def has_token(headers: CIMultiDict[str], name: str, token: str) -> bool:
    """Whether a comma-separated list has this element, given in lower case; any case matches."""
    if headers.get(name, "").lower() == token:
        return True
    return token in (element.lower() for element in list_elements(headers, name))


def joined_values(headers: CIMultiDict[str], name: str) -> str | None:
    """All the values of a header, for the text of an error."""
    values = headers.getall(name, None)
    return None if values is None else ", ".join(values)


class BadHeadError(Exception):
    """A head that is not well-formed, not supported, or too long.

    `status`: how a server answers it. `text`: what is wrong, free of the peer's own words.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _FieldCollector:
    """Takes the headers and the decoded body that httptools reports."""

    def __init__(self) -> None:
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.body = bytearray()
        self.head_complete = False
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_complete:  # otherwise it is a trailer field
            self.headers.add(
                name.decode("ascii"), value.strip(b" \t").decode("utf-8", "surrogateescape")
            )

    def on_headers_complete(self) -> None:
        self.head_complete = True

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


class HeadReader:
    """Collects the head of one message and checks it line by line, each byte once."""

    def __init__(self, limits: HandshakeLimits) -> None:
        self.limits = limits
        self.received = bytearray()
        self.head_size = 0
        self._line_start = 0
        self._searched = 0
        self._line_count = 0

    @property
    def head(self) -> bytes:
        """The head, or what has been received of it."""
        return bytes(self.received[: self.head_size or self.limits.max_head_size])

    @property
    def rest(self) -> bytes:
        """What was received behind the complete head."""
        return bytes(self.received[self.head_size :])

    def feed(self, data: Buffer) -> bool:
        """Takes the next bytes; True once the head is complete. Raises BadHeadError."""
        received, limits = self.received, self.limits
        is_first = not received
        received += data
        if is_first and self._read_faultless():
            return True
        while True:
            line_end = received.find(b"\n", self._searched, limits.max_head_size)
            if line_end < 0:
                self._searched = min(len(received), limits.max_head_size)
                if self._line_count == 0 and received:
                    self._check_beginning(bytes(received[:32]))
                if len(received) >= limits.max_head_size:
                    raise BadHeadError(
                        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                        "no end of the headers within max_head_size "
                        f"({limits.max_head_size} bytes)",
                    )
                return False
            line = bytes(received[self._line_start : line_end])
            self._line_start = self._searched = line_end + 1
            if self._read_line(line):
                self.head_size = line_end + 1
                return True

    def _read_faultless(self) -> bool:
        """Reads a head that came whole, as nearly all do, without looking at each line."""
        received, limits = self.received, self.limits
        if len(received) > limits.max_head_size or not received.endswith(b"\r\n\r\n"):
            return False
        head = bytes(received)
        if (
            head.count(b"\n") - 2 > limits.max_header_count
            or _FAULTLESS_HEAD.fullmatch(head) is None
        ):
            return False
        start_line = head[: head.index(b"\r")]
        self._check_beginning(start_line[:32])
        self._read_start_line(start_line)
        self.head_size = len(head)
        return True

    def _read_line(self, line: bytes) -> bool:
        if self._line_count == 0:
            # As for a part of the line: what is reported must not depend on how it was cut.
            self._check_beginning(line[:32])
        if not line.endswith(b"\r"):
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "line ends with LF instead of CR LF")
        line = line[:-1]
        self._line_count += 1
        if self._line_count == 1:
            self._read_start_line(line)
        elif not line:
            return True
        elif self._line_count - 1 > self.limits.max_header_count:
            raise BadHeadError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"more headers than max_header_count ({self.limits.max_header_count})",
            )
        elif line[0] in b" \t":
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "folded header line")
        elif _FIELD_LINE.fullmatch(line) is None:
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "malformed header line")
        return False

    def _check_beginning(self, beginning: bytes) -> None:
        """Refuses at once what cannot become a start line: TLS, for example."""
        raise NotImplementedError

    def _read_start_line(self, line: bytes) -> None:
        raise NotImplementedError

    def read_headers(self) -> CIMultiDict[str]:
        """The headers of the complete head, whose lines are known to be name, colon and value."""
        lines = self.head.decode("utf-8", "surrogateescape").split("\r\n")[1:-2]
        pairs = [line.partition(":") for line in lines]
        return CIMultiDict([(name, value.strip(" \t")) for name, _, value in pairs])


def _says_something_of_a_body(headers: CIMultiDict[str]) -> bool:
    return "Content-Length" in headers or "Transfer-Encoding" in headers


def _collect_fields(
    parser: httptools.HttpRequestParser | httptools.HttpResponseParser,
    fields: _FieldCollector,
    head: bytes,
) -> None:
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        # An upgrade stops httptools behind the head; only what stops it earlier is an error.
        if not fields.head_complete:
            raise BadHeadError(HTTPStatus.BAD_REQUEST, f"malformed head: {error}") from None


class RequestHeadReader(HeadReader):
    """Of a request: GET or HEAD in HTTP/1.1 or 1.0 (RFC 9112 3)."""

    method = target = version = b""

    def _check_beginning(self, beginning: bytes) -> None:
        if _REQUEST_BEGINNING.match(beginning) is None:
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "malformed request line")

    def _read_start_line(self, line: bytes) -> None:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "malformed request line")
        self.method, self.target, self.version = match.groups()
        if self.version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise BadHeadError(
                HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "neither HTTP/1.1 nor HTTP/1.0"
            )
        if self.method not in (b"GET", b"HEAD"):
            raise BadHeadError(HTTPStatus.METHOD_NOT_ALLOWED, "method is neither GET nor HEAD")

    def request(self) -> WSUpgradeRequest:
        """The request of a complete head; raises BadHeadError for its target or its body."""
        headers = self._headers()
        path = self.target
        if not path.startswith(b"/"):
            match = _ABSOLUTE_FORM.fullmatch(path)
            if match is None:
                raise BadHeadError(HTTPStatus.BAD_REQUEST, "malformed request target")
            path = match[2] or b"/"
            if not path.startswith(b"/"):
                path = b"/" + path
            # RFC 9112 3.2.2: the target's authority takes the place of the Host header.
            if len(headers.getall("Host", ())) == 1:
                headers["Host"] = match[1].decode("ascii")
        return WSUpgradeRequest(self.method, path, self.version, headers)

    def _headers(self) -> CIMultiDict[str]:
        headers = self.read_headers()
        if _says_something_of_a_body(headers):
            fields = _FieldCollector()
            _collect_fields(httptools.HttpRequestParser(fields), fields, self.head)
            headers = fields.headers
        return headers


class ResponseHeadReader(HeadReader):
    """Of a response of any status (RFC 9112 4)."""

    version = b""
    status: HTTPStatus | int = 0

    def _check_beginning(self, beginning: bytes) -> None:
        if not b"HTTP/1.".startswith(beginning[:7]):
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "malformed status line")

    def _read_start_line(self, line: bytes) -> None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "malformed status line")
        self.version = match[1]
        self.status = _named_status(int(match[2]))

    def response(self) -> WSUpgradeResponse:
        """The response of a complete head; raises BadHeadError for what it says of a body."""
        headers = self.read_headers()
        if _says_something_of_a_body(headers):
            return self.response_with_body()[0]
        return WSUpgradeResponse(self.version, self.status, headers)

    def response_with_body(
        self,
    ) -> tuple[WSUpgradeResponse, _FieldCollector, httptools.HttpResponseParser]:
        """The response, and what to read its body with; raises BadHeadError as `response` does."""
        fields = _FieldCollector()
        parser = httptools.HttpResponseParser(fields)
        _collect_fields(parser, fields, self.head)
        response = WSUpgradeResponse(self.version, self.status, fields.headers)
        return response, fields, parser


class RefusalReader:
    """A response other than 101, whose body is still being read.

    The body ends where Content-Length, the last chunk or the connection ends, or at a fault in it.
    """

    def __init__(self, reader: ResponseHeadReader) -> None:
        self.head = reader.head
        self.response, self._fields, self._parser = reader.response_with_body()
        self._max_size = reader.limits.max_body_size
        self._received_size = 0
        # httptools does not know all the statuses that have no body.
        self._complete = self._fields.complete or self.response.status in BODILESS_STATUSES

    def feed(self, data: Buffer) -> bool:
        """True once the body is complete, or as long as it may get."""
        if not self._complete:
            data = bytes(data[: self._max_size - self._received_size])
            self._received_size += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                self._complete = True
            self._complete = self._complete or self._fields.complete
        return self._complete or self._received_size >= self._max_size

    def error(self) -> WSInvalidStatusError:
        """What to raise: the status, with the body as far as it was received."""
        status = self.response.status
        body = self.response.body = bytes(self._fields.body)
        return WSInvalidStatusError(
            f"the server answered {int(status)} {status_phrase(status)}".rstrip()
            + ", expected 101",
            self.head,
            body,
            self.response,
        )
