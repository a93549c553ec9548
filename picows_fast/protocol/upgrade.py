"""The opening handshake (RFC 6455 4), both sides: bytes in, a checked request or response out.

Owns what a request must ask and a response must answer for a connection to become a WebSocket:
upgrade, key, version, subprotocol, extensions, and the status that refuses a bad request. Performs
no I/O, keeps no time, and knows nothing of frames: who calls it moves the bytes and sets the
deadline. HTTP itself is read and written by `http.messages`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NoReturn, TypeAlias

from multidict import CIMultiDict

from ..exceptions import (
    WSHandshakeError,
    WSInvalidHeaderError,
    WSInvalidMessageError,
    WSInvalidUpgradeError,
)
from .http.messages import (
    BODILESS_STATUSES,
    DEFAULT_LIMITS,
    IS_TOKEN,
    TOKEN,
    USER_AGENT,
    BadHeadError,
    Buffer,
    HandshakeLimits,
    HeadersLike,
    RefusalReader,
    RequestHeadReader,
    ResponseHeadReader,
    WSUpgradeRequest,
    WSUpgradeResponse,
    checked_body,
    checked_headers,
    encode_head,
    has_token,
    joined_values,
)
from .http.quick import read_upgrade
from .origins import OriginPolicy
from .subprotocols import checked_subprotocols
from .url import WSParsedURL

__all__ = [
    "ClientHandshake",
    "HandshakeRefusedError",
    "Negotiated",
    "ServerHandshake",
    "parse_extensions",
]

#: name and parameters of one extension; a parameter without value has None
Extension: TypeAlias = tuple[str, list[tuple[str, str | None]]]

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_WEBSOCKET_VERSION = "13"
_HTTP_1_0 = b"HTTP/1.0"

# What every 101 response has, besides the answer to the key.
_UPGRADE = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
_ACCEPT = "Sec-WebSocket-Accept"

_SEC_WEBSOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # base64 of 16 bytes
_HOST = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]*")

_EXTENSION_NAME = re.compile(rf"({TOKEN})[ \t]*")
_EXTENSION_PARAMETER = re.compile(
    rf';[ \t]*({TOKEN})(?:[ \t]*=[ \t]*(?:({TOKEN})|"((?:[^"\\]|\\.)*)"))?[ \t]*'
)
_QUOTED_PAIR = re.compile(r"\\(.)")

# What the handshake itself says in a request; a user's value would contradict it.
_OWNED_REQUEST_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "sec-websocket-key",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    }
)

# RFC 9110 15.2 sets no limit to interim responses; more than a few of them mean no good.
_MAX_INTERIM_RESPONSES = 8


@dataclass(frozen=True, init=False)
class Negotiated:
    """What the two sides agreed on in an opening handshake (RFC 6455 1.9, 9.1).

    `subprotocol`: a token, or None. `extensions`: (name, parameters) of each, in the order of the
    response; parameters are (name, value), a value is None where there is none.

    Both handshake objects make one, as `negotiated`; after a handshake of another kind, such as
    RFC 8441's, make it by hand:
    ``Negotiated(subprotocol="v2", extensions=parse_extensions(values))``.

    Raises TypeError or ValueError if an argument is not valid.
    """

    subprotocol: str | None
    extensions: tuple[tuple[str, tuple[tuple[str, str | None], ...]], ...]

    def __init__(
        self,
        *,
        subprotocol: str | None = None,
        extensions: Iterable[tuple[str, Iterable[tuple[str, str | None]]]] = (),
    ) -> None:
        if subprotocol is not None:
            _check_token("subprotocol", subprotocol)
        object.__setattr__(self, "subprotocol", subprotocol)
        try:
            extensions = tuple(
                (name, tuple((key, value) for key, value in parameters))
                for name, parameters in extensions
            )
        except (TypeError, ValueError):
            raise TypeError("extensions must contain pairs (name, [(name, value), ...])") from None
        for name, parameters in extensions:
            _check_token("a name in extensions", name)
            for key, value in parameters:
                _check_token("a parameter in extensions", key)
                if value is not None:
                    _check_token("a value in extensions", value)
        object.__setattr__(self, "extensions", extensions)

    @property
    def allowed_rsv(self) -> int:
        """The reserved bits that frames may have, for `FrameParser` and `Connection`.

        All (7) with an extension: which one it uses is beyond frames. Otherwise 0.
        """
        return 7 if self.extensions else 0


def _check_token(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {type(value).__name__}")
    if IS_TOKEN.fullmatch(value) is None:
        raise ValueError(f"{what} must be a token (RFC 9110 5.6.2)")


_NOTHING_NEGOTIATED = Negotiated()


def _negotiated(subprotocol: str | None, extensions: Sequence[Extension]) -> Negotiated:
    # Every connection asks, and most have negotiated nothing.
    if subprotocol is None and not extensions:
        return _NOTHING_NEGOTIATED
    return Negotiated(subprotocol=subprotocol, extensions=extensions)


class ClientHandshake:
    """The client's side of one opening handshake (RFC 6455 4.1).

    Send `request_bytes()`, then give what arrives to `receive_data` until it returns the response.

    `url`: its user name and password become Basic authentication (RFC 7617), unless
    `extra_headers` have Authorization or `send_credentials` is False.
    `extra_headers`: mapping or pairs. Host replaces the one made from the URL; the headers that the
    handshake makes itself (Upgrade, Connection, Sec-WebSocket-Key, Sec-WebSocket-Version) and those
    of a body are refused. Extensions and subprotocols offered here may be selected by the server.
    `subprotocols`: offered, in order of preference. `limits`: what the response may cost.
    `key`: value of Sec-WebSocket-Key; random if None. `user_agent`: value of User-Agent, unless
    `extra_headers` have one; None: the request has none.

    Raises TypeError or ValueError if an argument is not valid.
    """

    def __init__(
        self,
        url: WSParsedURL,
        *,
        extra_headers: HeadersLike | None = None,
        subprotocols: Sequence[str] | None = None,
        limits: HandshakeLimits = DEFAULT_LIMITS,
        send_credentials: bool = True,
        key: str | None = None,
        user_agent: str | None = USER_AGENT,
    ) -> None:
        if key is None:
            key = base64.b64encode(os.urandom(16)).decode("ascii")
        elif _SEC_WEBSOCKET_KEY.fullmatch(key) is None:
            raise ValueError("key must be 16 bytes in base64 (RFC 6455 4.1)")
        #: bytes that came behind the response: the server's first frames
        self.trailing_data = b""
        #: what the server selected, or None
        self.subprotocol: str | None = None
        #: the extensions that the server selected, in its order
        self.extensions: list[Extension] = []
        #: the validated 101 response, or None as long as there is none
        self.response: WSUpgradeResponse | None = None
        #: what `request_bytes` encodes
        self.request = WSUpgradeRequest(
            path=url.resource_name.encode("ascii"),
            headers=_request_headers(
                url, checked_headers(extra_headers), subprotocols, send_credentials, key, user_agent
            ),
        )
        # As they were checked, or made here.
        self._checked_headers = list(self.request.headers.items())
        self._accept = _accept_value(key)
        self._limits = limits
        self._reader = ResponseHeadReader(limits)
        self._interim_responses = 0
        self._refusal: RefusalReader | None = None
        self._finished = False

    @property
    def negotiated(self) -> Negotiated:
        """What the server selected; nothing before the response."""
        return _negotiated(self.subprotocol, self.extensions)

    def request_bytes(self) -> bytes:
        """The request as it goes on the wire.

        Raises ValueError if a header was made invalid after the constructor checked it.
        """
        start_line = f"GET {self.request.path.decode('ascii')} HTTP/1.1"
        headers = list(self.request.headers.items())
        if headers != self._checked_headers:
            headers = checked_headers(headers)
        return encode_head(start_line, headers)

    def receive_data(self, data: Buffer) -> WSUpgradeResponse | None:
        """Takes the next bytes of the server; returns the validated 101 response, None before.

        What follows the response is in `trailing_data`. Interim responses (100, 103) are skipped.

        Raises WSInvalidMessageError if it is no HTTP/1.1 response or exceeds a limit,
        WSInvalidStatusError if its status is not 101 (once its body has arrived, or been cut at
        `max_body_size`), WSInvalidUpgradeError or WSInvalidHeaderError if it does not answer the
        request; RuntimeError after the handshake has ended.
        """
        if self._finished:
            raise RuntimeError("the opening handshake has already ended")
        try:
            return self._receive_data(data)
        except BadHeadError as error:
            self._finished = True
            raise WSInvalidMessageError(
                f"not a valid response: {error.text}", self._reader.head
            ) from None
        except WSHandshakeError:
            self._finished = True
            raise

    def receive_eof(self) -> NoReturn:
        """The server ended the connection, or the caller will wait no longer.

        Raises WSInvalidStatusError if a refusal's head has arrived (with the body as far as it
        got), otherwise WSInvalidMessageError; RuntimeError after the handshake has ended.
        """
        if self._finished:
            raise RuntimeError("the opening handshake has already ended")
        self._finished = True
        if self._refusal is not None:
            raise self._refusal.error()
        received = "the complete" if self._reader.received else "any"
        raise WSInvalidMessageError(
            f"connection closed before {received} response arrived",
            self._reader.head,
            ended_early=True,
        )

    def end_error(self, error: BaseException | None = None) -> BaseException | None:
        """What to raise for an end of the connection that is this error, or is in order (None).

        A refusal whose head has arrived says more than either. `error` after the handshake has
        ended.
        """
        if self._finished or (self._refusal is None and error is not None):
            return error
        try:
            self.receive_eof()
        except WSHandshakeError as eof_error:
            return eof_error

    def _receive_data(self, data: Buffer) -> WSUpgradeResponse | None:
        while self._refusal is None:
            reader = self._reader
            if not reader.feed(data):
                return None
            data = reader.rest
            if reader.status == HTTPStatus.SWITCHING_PROTOCOLS:
                response = reader.response()
                self._check_response(response)
                self.response = response
                self.trailing_data = data
                self._finished = True
                return response
            if reader.status >= 200:
                self._refusal = RefusalReader(reader)
                break
            self._interim_responses += 1
            if self._interim_responses > _MAX_INTERIM_RESPONSES:
                raise BadHeadError(HTTPStatus.BAD_REQUEST, "too many interim responses")
            self._reader = ResponseHeadReader(self._limits)
        if self._refusal.feed(data):
            raise self._refusal.error()
        return None

    def _check_response(self, response: WSUpgradeResponse) -> None:
        """RFC 6455 4.1, the checks of the server's response."""
        headers = response.headers
        raw_header = self._reader.head

        def invalid(
            name: str, text: str, error: type[WSInvalidHeaderError] = WSInvalidHeaderError
        ) -> WSInvalidHeaderError:
            return error(text, name, joined_values(headers, name), raw_header, None, response)

        if response.version != b"HTTP/1.1":
            raise BadHeadError(HTTPStatus.BAD_REQUEST, "HTTP/1.0 cannot switch protocols")
        # RFC 6455 4.1: exactly this. Protocols listed beside it would be layers below or above it.
        if [value.lower() for value in headers.getall("Upgrade", ())] != ["websocket"]:
            raise invalid(
                "Upgrade", "the server does not switch to websocket", WSInvalidUpgradeError
            )
        if not has_token(headers, "Connection", "upgrade"):
            raise invalid(
                "Connection", "the server does not upgrade the connection", WSInvalidUpgradeError
            )
        # RFC 9110 8.6, RFC 9112 6.1: neither may be sent with a 101; nothing to read is harmless.
        if "Transfer-Encoding" in headers:
            raise invalid("Transfer-Encoding", "a 101 response has no body")
        if headers.getall("Content-Length", ["0"]) != ["0"]:
            raise invalid("Content-Length", "a 101 response has no body")
        if headers.getall("Sec-WebSocket-Accept", ()) != [self._accept]:
            raise invalid("Sec-WebSocket-Accept", "the server's answer to the key is wrong")
        self._check_extensions(headers, invalid)

        subprotocols = headers.getall("Sec-WebSocket-Protocol", ())
        if subprotocols:
            # A repeated header never equals one of the names that were offered.
            selected = ", ".join(subprotocols)
            if selected not in self.request.subprotocols:
                raise invalid("Sec-WebSocket-Protocol", "the server selected what was not offered")
            self.subprotocol = selected

    def _check_extensions(
        self, headers: CIMultiDict[str], invalid: Callable[[str, str], WSInvalidHeaderError]
    ) -> None:
        name = "Sec-WebSocket-Extensions"
        if name not in headers:
            return
        offered = parse_extensions(self.request.headers.getall(name, ()))
        try:
            selected = parse_extensions(headers.getall(name))
        except ValueError as error:
            raise invalid(name, str(error)) from None
        if not {extension for extension, _ in selected} <= {extension for extension, _ in offered}:
            raise invalid(name, "the server selected what was not offered")
        self.extensions = selected


def _request_headers(
    url: WSParsedURL,
    extra_headers: list[tuple[str, str]],
    subprotocols: Sequence[str] | None,
    send_credentials: bool,
    key: str,
    user_agent: str | None,
) -> CIMultiDict[str]:
    extra = CIMultiDict(extra_headers)
    host = _check_extra_headers(extra) if extra_headers else None
    fields = {
        "Host": url.host_header if host is None else host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": _WEBSOCKET_VERSION,
    }
    if user_agent is not None and not (extra_headers and "User-Agent" in extra):
        # The default needs no check.
        if user_agent is not USER_AGENT:
            user_agent = checked_headers([("User-Agent", user_agent)])[0][1]
        fields["User-Agent"] = user_agent
    headers = CIMultiDict(fields)
    offered = checked_subprotocols(subprotocols)
    if offered:
        headers["Sec-WebSocket-Protocol"] = ", ".join(offered)
    if send_credentials and url.user_info is not None and "Authorization" not in extra:
        credentials = ":".join(url.user_info).encode("utf-8")
        headers["Authorization"] = "Basic " + base64.b64encode(credentials).decode("ascii")
    if extra_headers:
        headers.extend(extra)
    return headers


def _check_extra_headers(extra: CIMultiDict[str]) -> str | None:
    """Take Host out of what a user adds; return it. Raises ValueError for what does not belong."""
    for name in extra:
        if name.lower() in _OWNED_REQUEST_HEADERS:
            raise ValueError(f"extra_headers has {name}, which the handshake sets itself")
    hosts = extra.popall("Host", [None])
    if len(hosts) > 1:
        raise ValueError("extra_headers has more than one Host")
    try:
        parse_extensions(extra.getall("Sec-WebSocket-Extensions", ()))
    except ValueError as error:
        raise ValueError(f"extra_headers has Sec-WebSocket-Extensions, {error}") from None
    return hosts[0]


class HandshakeRefusedError(Exception):
    """Nothing is wrong with the request, but the server cannot take it now: a limit was reached, it
    stops listening, or it had no answer in time.

    `status`, `text`: what the client gets. `reason`: which of `connections.REFUSAL_REASONS`.
    """

    def __init__(self, status: HTTPStatus, text: str, reason: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.reason = reason


class ServerHandshake:
    """The server's side of one opening handshake (RFC 6455 4.2).

    Give what arrives to `receive_data` until it returns the request, then answer with one of
    `accept`, `finish` and `reject`; each returns the response to send with `to_bytes()`.

    `limits`: what the request may cost. `subprotocols`: what the server speaks, in order of
    preference. `origins`: the Origins that an upgrade may come from (RFC 6455 10.2): what
    `OriginPolicy` takes, one that was made before, or None for no check.

    Raises TypeError or ValueError if an argument is not valid.
    """

    def __init__(
        self,
        *,
        limits: HandshakeLimits = DEFAULT_LIMITS,
        subprotocols: Sequence[str] | None = None,
        origins: OriginPolicy | Iterable[str | None] | None = None,
    ) -> None:
        self._limits = limits
        self._subprotocols = checked_subprotocols(subprotocols)
        if origins is not None and not isinstance(origins, OriginPolicy):
            origins = OriginPolicy(origins)
        self._origins = origins

    # There is one of these for each connection, and what follows mostly stays as it is.

    #: the request, or None as long as it is not complete
    request: WSUpgradeRequest | None = None
    #: bytes that came behind the request
    trailing_data = b""
    #: what was selected by `accept`, or None
    subprotocol: str | None = None
    #: the extensions that were selected by `accept`, in the order of the response
    extensions: Sequence[Extension] = ()
    _finished = False
    # Of a request that was not read at a glance: complete, and right.
    _reader: RequestHeadReader | None = None
    # Of one that was.
    _head = b""
    _key: str | None = None
    _has_offers = True
    # Weak: a traceback refers to this object, and a strong reference would make it a cycle.
    _refused: weakref.ref[WSHandshakeError] | None = None
    _refusal: WSUpgradeResponse | None = None

    @property
    def negotiated(self) -> Negotiated:
        """What `accept` selected; nothing before it."""
        return _negotiated(self.subprotocol, self.extensions)

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the request has been taken."""
        return self._finished or self._reader is not None

    def receive_data(self, data: Buffer) -> WSUpgradeRequest | None:
        """Takes the next bytes of the client; returns the request once, None before.

        The request is a GET or HEAD without a body. Whether it asks for WebSocket is for `accept`
        to check, so that plain HTTP can be answered on the same port. One that does comes from an
        allowed origin.

        Raises WSInvalidMessageError or WSInvalidHeaderError, to be given to `reject`; RuntimeError
        after the request is complete, or was refused.
        """
        if self._finished:
            raise RuntimeError("the request has already been read")
        if self._reader is None:
            data = bytes(data)
            limits = self._limits
            read = read_upgrade(data, limits.max_head_size, limits.max_header_count)
            if read is not None:
                return self._take_upgrade(data, *read)
            self._reader = RequestHeadReader(limits)
        reader = self._reader
        try:
            if not reader.feed(data):
                return None
            self._finished = True
            request = reader.request()
        except BadHeadError as error:
            self._finished = True
            raise self._refuse(
                WSInvalidMessageError(f"not a valid request: {error.text}"), error.status
            ) from None
        self._check_request(request)
        self.request = request
        self.trailing_data = reader.rest
        if self._origins is not None and request.is_upgrade:
            self._check_origin(request, self._origins)
        return request

    def _take_upgrade(
        self,
        data: bytes,
        head_size: int,
        path: bytes,
        headers: list[tuple[str, str]],
        key: str,
        has_offers: bool,
    ) -> WSUpgradeRequest:
        """A whole request in which there was nothing to look at twice."""
        self._finished = True
        self._key = key
        self._has_offers = has_offers
        self.request = request = WSUpgradeRequest(b"GET", path, b"HTTP/1.1", CIMultiDict(headers))
        if head_size < len(data):
            self.trailing_data = data[head_size:]
            data = data[:head_size]
        self._head = data
        if self._origins is not None:
            self._check_origin(request, self._origins)
        return request

    def receive_eof(self) -> NoReturn:
        """The client ended the connection before its request was complete.

        Raises WSInvalidMessageError; RuntimeError after the request is complete, or was refused.
        """
        if self._finished:
            raise RuntimeError("the request has already been read")
        self._finished = True
        received = "any" if self._reader is None or not self._reader.received else "the complete"
        raise self._refuse(
            WSInvalidMessageError(
                f"connection closed before {received} request arrived", ended_early=True
            ),
            HTTPStatus.BAD_REQUEST,
        )

    def end_error(self, error: BaseException | None = None) -> BaseException | None:
        """What to report for an end of the connection that is this error, or is in order (None).

        `error` after the request is complete, or was refused.
        """
        if self._finished or error is not None:
            return error
        try:
            self.receive_eof()
        except WSHandshakeError as eof_error:
            return eof_error

    def unanswered_error(self) -> HandshakeRefusedError:
        """What refuses a complete request that the application did not answer in time."""
        return HandshakeRefusedError(
            HTTPStatus.REQUEST_TIMEOUT, "the request was not answered in time", "timeout"
        )

    def accept(self, response: WSUpgradeResponse | None = None) -> WSUpgradeResponse:
        """Checks that the request asks for WebSocket (RFC 6455 4.2.1), and completes the response.

        `response`: a 101 response to add headers; it may select a subprotocol and extensions that
        the client offered. It is left as it is, the completed copy is returned.

        Raises WSInvalidUpgradeError, WSInvalidHeaderError or WSInvalidMessageError if the request
        is not a valid upgrade, TypeError or ValueError if `response` does not fit; RuntimeError
        before the request is complete.
        """
        request = self.request
        if request is None:
            raise RuntimeError("the request has not been read yet")
        key = self._key
        if key is None:
            self._check_upgrade(request)
            key = request.headers["Sec-WebSocket-Key"]
        if self._has_offers:
            self._check_offers(request)

        accept = _accept_value(key)
        if response is None and not self._subprotocols:
            return WSUpgradeResponse(
                b"HTTP/1.1",
                HTTPStatus.SWITCHING_PROTOCOLS,
                CIMultiDict((*_UPGRADE, (_ACCEPT, accept))),
            )
        headers: CIMultiDict[str] = CIMultiDict()
        if response is not None:
            if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise ValueError(f"status of the response must be 101, got {int(response.status)}")
            if response.body:
                raise ValueError("a 101 response has no body")
            headers = CIMultiDict(checked_headers(response.headers))
            for name in ("Content-Length", "Transfer-Encoding"):
                headers.popall(name, None)
        for name, value in (*_UPGRADE, (_ACCEPT, accept)):
            headers[name] = value
        self._select_extensions(request, headers)
        self.subprotocol = self._select_subprotocol(request, headers)
        if self.subprotocol is not None:
            headers["Sec-WebSocket-Protocol"] = self.subprotocol
        return WSUpgradeResponse(status=HTTPStatus.SWITCHING_PROTOCOLS, headers=headers)

    def finish(self, response: WSUpgradeResponse) -> WSUpgradeResponse:
        """Completes a response that does not switch to WebSocket; the connection ends after it.

        `response` is left as it is; the returned copy has Connection, Content-Length, the HTTP
        version of the request, and no body if the request was HEAD.

        Raises ValueError if its status is 1xx, TypeError or ValueError if a header or the body is
        not valid.
        """
        if response.status < 200:
            raise ValueError(
                f"status of a final response must not be 1xx, got {int(response.status)}"
            )
        headers = CIMultiDict(checked_headers(response.headers))
        body = checked_body(response.body) or b""
        for name in ("Content-Length", "Transfer-Encoding", "Keep-Alive"):
            headers.popall(name, None)
        # RFC 9110 7.8: Upgrade goes with a connection option of its own.
        headers["Connection"] = "close, Upgrade" if headers.get("Upgrade") else "close"
        version = self._version()
        if response.status in BODILESS_STATUSES:
            return WSUpgradeResponse(version, response.status, headers)
        if body:
            headers.setdefault("Content-Type", "text/plain")
        headers["Content-Length"] = str(len(body))
        if self.request is not None and self.request.method == b"HEAD":
            body = b""
        return WSUpgradeResponse(version, response.status, headers, body if body else None)

    def _version(self) -> bytes:
        """The HTTP version to answer in: a client of an older one may not know a later one."""
        is_older = self._reader is not None and self._reader.version == _HTTP_1_0
        return _HTTP_1_0 if is_older else b"HTTP/1.1"

    def reject(self, error: BaseException) -> WSUpgradeResponse:
        """The response that refuses the handshake because of `error`.

        What this object raised about the request gets the status that fits (400, 403, 405, 413,
        426, 431, 501, 505), TimeoutError 408 as long as the request is not complete, and
        HandshakeRefusedError its own. Anything else is a failure of the server: 500, and none of
        its text reaches the client.
        """
        if self._refused is not None and self._refusal is not None and self._refused() is error:
            return self._refusal
        if isinstance(error, HandshakeRefusedError):
            return self._create_refusal(error.status, error.text)
        if self.request is None and isinstance(error, TimeoutError):
            status, text = HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"
        else:
            status, text = HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed"
        return self._create_refusal(status, text)

    def _create_refusal(self, status: HTTPStatus, text: str) -> WSUpgradeResponse:
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD" if self.request is None else "GET"
        elif status == HTTPStatus.UPGRADE_REQUIRED:
            headers["Upgrade"] = "websocket"
            headers["Sec-WebSocket-Version"] = _WEBSOCKET_VERSION
        body = f"{status.value} {status.phrase}: {text}\n".encode()
        return self.finish(WSUpgradeResponse.create_error_response(status, body, headers))

    def _refuse(self, error: WSHandshakeError, status: HTTPStatus) -> WSHandshakeError:
        """Keeps the answer to `error` for `reject`; to be raised by the caller."""
        error.raw_header = self._head if self._reader is None else self._reader.head
        self._refused = weakref.ref(error)
        self._refusal = self._create_refusal(status, error.args[0])
        return error

    def _invalid(
        self,
        headers: CIMultiDict[str],
        name: str,
        text: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        error: type[WSInvalidHeaderError] = WSInvalidHeaderError,
    ) -> WSHandshakeError:
        return self._refuse(error(text, name, joined_values(headers, name)), status)

    def _check_request(self, request: WSUpgradeRequest) -> None:
        """What is asked of any request: one Host (RFC 9112 3.2), and no body; of an upgrade,
        HTTP/1.1."""
        headers = request.headers
        hosts = headers.getall("Host", ())
        is_older = request.version == _HTTP_1_0
        if is_older and request.is_upgrade:
            raise self._refuse(
                WSInvalidMessageError("an upgrade needs HTTP/1.1 (RFC 6455 4.2.1)"),
                HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
            )
        # HTTP/1.0 has no Host; a health check may leave it out.
        if not (is_older and not hosts) and (len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None):
            raise self._invalid(headers, "Host", "exactly one valid Host is required")
        if "Transfer-Encoding" in headers:
            raise self._invalid(
                headers,
                "Transfer-Encoding",
                "a request with a body is not supported",
                HTTPStatus.NOT_IMPLEMENTED,
            )
        if headers.get("Content-Length", "0").strip("0"):
            raise self._invalid(
                headers,
                "Content-Length",
                "a request with a body is not supported",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )

    def _check_origin(self, request: WSUpgradeRequest, origins: OriginPolicy) -> None:
        if not origins.allows(request.headers.getall("Origin", ())):
            raise self._invalid(
                request.headers, "Origin", "the origin is not allowed", HTTPStatus.FORBIDDEN
            )

    def _check_upgrade(self, request: WSUpgradeRequest) -> None:
        """RFC 6455 4.2.1, what the request of a WebSocket connection has."""
        headers = request.headers
        if request.method != b"GET":
            raise self._refuse(
                WSInvalidMessageError("method of an upgrade must be GET"),
                HTTPStatus.METHOD_NOT_ALLOWED,
            )
        if not request.is_upgrade:
            raise self._invalid(
                headers,
                "Upgrade",
                "the request does not upgrade to websocket",
                HTTPStatus.UPGRADE_REQUIRED,
                WSInvalidUpgradeError,
            )
        if not has_token(headers, "Connection", "upgrade"):
            raise self._invalid(
                headers,
                "Connection",
                "the request does not upgrade the connection",
                error=WSInvalidUpgradeError,
            )
        versions = headers.getall("Sec-WebSocket-Version", ())
        if len(versions) > 1:
            raise self._invalid(headers, "Sec-WebSocket-Version", "repeated Sec-WebSocket-Version")
        if versions != [_WEBSOCKET_VERSION]:
            raise self._invalid(
                headers,
                "Sec-WebSocket-Version",
                "version 13 is required",
                HTTPStatus.UPGRADE_REQUIRED,
            )
        keys = headers.getall("Sec-WebSocket-Key", ())
        if len(keys) != 1 or _SEC_WEBSOCKET_KEY.fullmatch(keys[0]) is None:
            raise self._invalid(
                headers, "Sec-WebSocket-Key", "exactly one key of 16 bytes in base64 is required"
            )

    def _check_offers(self, request: WSUpgradeRequest) -> None:
        """The grammar of offered subprotocols and extensions (RFC 6455 4.3)."""
        headers = request.headers
        if not all(map(IS_TOKEN.fullmatch, request.subprotocols)):
            raise self._invalid(headers, "Sec-WebSocket-Protocol", "a subprotocol is not a token")
        try:
            parse_extensions(headers.getall("Sec-WebSocket-Extensions", ()))
        except ValueError as error:
            raise self._invalid(headers, "Sec-WebSocket-Extensions", str(error)) from None

    def _select_subprotocol(
        self, request: WSUpgradeRequest, headers: CIMultiDict[str]
    ) -> str | None:
        """What the response names, else the first that the server speaks and the client offers."""
        offered = request.subprotocols
        if "Sec-WebSocket-Protocol" in headers:
            selected = ", ".join(headers.getall("Sec-WebSocket-Protocol"))
            if selected not in offered:
                raise ValueError(
                    f"the response selects subprotocol {selected!r}, which the client did not offer"
                )
            return selected
        return next((name for name in self._subprotocols if name in offered), None)

    def _select_extensions(self, request: WSUpgradeRequest, headers: CIMultiDict[str]) -> None:
        name = "Sec-WebSocket-Extensions"
        if name not in headers:
            return
        offered = {extension for extension, _ in parse_extensions(request.headers.getall(name, ()))}
        selected = parse_extensions(headers.getall(name))
        for extension, _ in selected:
            if extension not in offered:
                raise ValueError(
                    f"the response selects extension {extension!r}, which the client did not offer"
                )
        if not selected:
            del headers[name]  # RFC 6455 9.1: the header has one element at least
        self.extensions = selected


def parse_extensions(values: Iterable[str]) -> list[Extension]:
    """Reads the values of Sec-WebSocket-Extensions headers (RFC 6455 9.1), in order.

    Raises ValueError if one does not follow the grammar.
    """
    extensions: list[Extension] = []
    for value in values:
        position = 0
        while position < len(value):
            if value[position] in ", \t":
                position += 1
                continue
            match = _EXTENSION_NAME.match(value, position)
            if match is None:
                raise ValueError("extension name expected")
            extensions.append((match[1], []))
            position = match.end()
            while (match := _EXTENSION_PARAMETER.match(value, position)) is not None:
                name, token, quoted = match.groups()
                if quoted is not None:
                    token = _QUOTED_PAIR.sub(r"\1", quoted)
                    # RFC 6455 9.1: once unquoted, it has to be a token.
                    if IS_TOKEN.fullmatch(token) is None:
                        raise ValueError("quoted extension parameter is not a token")
                extensions[-1][1].append((name, token))
                position = match.end()
            if position < len(value) and value[position] != ",":
                raise ValueError("extension parameter expected")
    return extensions


def _accept_value(key: str) -> str:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 4.2.2)."""
    digest = hashlib.sha1(key.encode("ascii") + _WEBSOCKET_GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False).decode("ascii")
