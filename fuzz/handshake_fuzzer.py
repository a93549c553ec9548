"""Opening handshakes, mostly right and wrong in chosen places, to both sides of the handshake.

Input: a byte of settings, a byte of cuts, then a program that changes a valid request or response.
What comes of it has to be the same however it is cut, and what an independent reading of the head
says about it (`heads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from picows_fast import WSHandshakeError, WSInvalidStatusError, WSInvalidURL, WSParsedURL, parse_url
from picows_fast.protocol.http.messages import HandshakeLimits, WSUpgradeRequest, WSUpgradeResponse
from picows_fast.protocol.upgrade import ClientHandshake, ServerHandshake

from . import heads
from .source import Source, pieces

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
URL = parse_url("ws://user:secret@example.com/chat?room=1")
SECURE_URL = parse_url("wss://user:secret@[2001:db8::1]:8443/chat?room=1")
SUBPROTOCOLS = ["chat", "superchat"]
ORIGINS = ["http://example.com", "https://*.example.com", None]
OFFERED_EXTENSIONS = "permessage-deflate; client_max_window_bits, x-test"

# The whole program is used up after so many changes.
MAX_CHANGES = 24
# From this byte on, what follows changes bytes, no longer lines.
_ENOUGH = 252
MAX_BYTES = 128 * 1024

_LIMITS = (
    HandshakeLimits(),
    HandshakeLimits(max_head_size=400, max_header_count=8, max_body_size=20),
    HandshakeLimits(max_head_size=200, max_header_count=128, max_body_size=1),
    HandshakeLimits(max_head_size=4096, max_header_count=5, max_body_size=300),
)

_REQUEST = (
    b"GET /chat HTTP/1.1", b"Host: example.com", b"Upgrade: websocket", b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY.encode(), b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Protocol: superchat, chat",
)  # fmt: skip
_RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
    b"Sec-WebSocket-Accept: " + ACCEPT,
)  # fmt: skip

_REQUEST_LINES = (
    b"GET / HTTP/1.1", b"GET /chat?room=%C3%A4 HTTP/1.1", b"GET http://other.example/x HTTP/1.1",
    b"GET ws://other.example:8080 HTTP/1.1", b"GET wss://other.example?x HTTP/1.1",
    b"HEAD / HTTP/1.1", b"POST / HTTP/1.1", b"GET / HTTP/1.0", b"GET / HTTP/2.0",
    b"GET * HTTP/1.1", b"GET / HTTP/1.1 ", b"GET  / HTTP/1.1", b"GET /", b"",
    b"CONNECT a:1 HTTP/1.1", b"get / HTTP/1.1", b"PRI * HTTP/2.0",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /#x HTTP/1.1",
    b"GET http://user@other.example/ HTTP/1.1", b"GET http:/// HTTP/1.1", b"GET / HTTP/1.12",
)  # fmt: skip
_STATUS_LINES = (
    b"HTTP/1.1 101", b"HTTP/1.1 101 ", b"HTTP/1.0 101 OK", b"HTTP/1.1 200 OK",
    b"HTTP/1.1 301 Moved", b"HTTP/1.1 302 Found", b"HTTP/1.1 400 Bad", b"HTTP/1.1 404 Not Found",
    b"HTTP/1.1 204 Empty", b"HTTP/1.1 304 Same", b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 103 Early Hints", b"HTTP/1.1 199 X", b"HTTP/1.1 599 Odd", b"HTTP/1.1 600 Odd",
    b"HTTP/1.1 99 X", b"HTTP/2 101 X", b"ICY 200 OK", b"", b"HTTP/1.1  101 X", b"HTTP/1.1 101\tX",
    b"HTTP/1.0 200 OK", b"SSH-2.0-OpenSSH_9", b"HTTP/1.1 205 R",
)  # fmt: skip
_NAMES = (
    b"Host", b"Upgrade", b"Connection", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version",
    b"Sec-WebSocket-Accept", b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions",
    b"Content-Length", b"Transfer-Encoding", b"Location", b"Cookie", b"Origin", b"Expect",
    b"Content-Type", b"X", b"", b"X Y", b"X\xc3\xa4", b"Trailer", b"Keep-Alive",
    b"Proxy-Connection", b"TE", b"Content-Encoding",
)  # fmt: skip
_VALUES = (
    b"websocket", b"WebSocket", b"Upgrade", b"keep-alive, Upgrade", b"close", b"13", b"8",
    b"13, 8", b"", KEY.encode(), ACCEPT, b"chat", b"superchat", b"chat, superchat", b"other",
    b"cha t", b", chat,,", b"permessage-deflate", b"permessage-deflate; client_max_window_bits=15",
    b"x-test; a=b; c=\"d\"", b'x; y="\\"', b'x; y="a\\b"', b"x;", b"x; =y", b"unknown", b"0", b"5",
    b"+5", b"-1", b"0x5", b"5, 5", b"00", b"99999999999999999999", b"chunked", b"identity",
    b"gzip, chunked", b"chunked, chunked", b"example.com", b"example.com:80", b"[::1]:80", b"a b",
    b"user@example.com", b"a/b", b"\xff\xfe", b"\xc3\xa4", b"\x00", b"a\rb", b"a\nb", b"\x7f",
    b"\t websocket \t", b"h2c, websocket", b"websocket/1", b"ws://example.com/other",
    b"http://elsewhere.example/", b"/other?x#y", b"//[::1", b"wss://u:p@h/",
    b"dGhlIHNhbXBsZSBub25jZQ=", b"dGhlIHNhbXBsZSBub25jZQ", b"dGhlIHNhbXBsZSBub25jZ!==",
    b"100-continue", b"ws://example.com:99999/", b"http://[::1%25eth0]:80/", b"http://[::1%eth0]/",
    b"http://[::zz]/", b"http://xn--/", b"http://b\xc3\xbccher.example/", b"ws://u%C3%A4:p@h/",
    b"ws://u%ff@h/", b"ws://u%00@h/", b"ws://u%3Ap@h/", b"ws://u:p:q@h/", b"ftp://h/", b"ws://",
    b"ws://a..b/", b"ws://a_b!/", b"/%zz", b"wss://example.com/chat?%", b"ws://ex%61mple.com/",
    b"https://example.com", b"?x", b"ws://h:0/", b"ws://h:/", b"\xed\xa0\x80",
    b"http://" + b"a." * 130, b"https://a.example.com", b"https://a.example.com:443",
    b"http://EXAMPLE.com:80", b"https://.example.com", b"https://evilexample.com", b"null",
    b"https://a.example.com.elsewhere.example", b"https://a.example.com:8443",
    b"https://*.example.com", b"http://[::1", b"https://a.example.com, http://example.com",
)  # fmt: skip
_ENDINGS = (
    b"\n",
    b"\r",
    b"",
    b" \r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\r\n\r\n",
    b"\r\r\n",
    b"\n\r\n",
    b"\x00\r\n",
)
_TAILS = (
    b"\x81\x02hi", b"\x00" * 40, b"hello", b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n", b"zz\r\n", b"HTTP/1.1 101 Switching\r\n", b"x" * 400,
    b"fffffffffffffffff\r\n", b"0\r\n\r\n", b"-5\r\n",
)  # fmt: skip


def one_input(data: bytes) -> None:
    source = Source(data)
    flags, cuts = source.byte(), source.byte()
    limits = _LIMITS[flags >> 1 & 3]
    if flags & 1:
        received, changed = write_head(source, list(_RESPONSE), _STATUS_LINES, flags >> 3 & 15)
        check_client(received, changed, limits, cuts)
    else:
        received, changed = write_head(source, list(_REQUEST), _REQUEST_LINES, 0)
        check_server(received, changed, limits, cuts, ORIGINS if flags & 8 else None)


# --- Writing heads -------------------------------------------------------------------------------


def write_head(
    source: Source, lines: list[bytes], start_lines: tuple[bytes, ...], interim: int
) -> tuple[bytes, bool]:
    """What the peer sends, and whether it is anything but a valid head with data behind it."""
    endings: dict[int, bytes] = {}
    tail = b""
    changed = bool(interim)
    for _ in range(MAX_CHANGES):
        if not source:
            break
        change = source.byte()
        if change >= _ENOUGH:
            break
        change %= 14
        index = source.byte() % len(lines)
        if change == 0:
            tail += source.choice(_TAILS)
            continue
        changed = True
        if change == 1:
            del lines[index]
        elif change == 2:
            lines.insert(source.byte() % len(lines), lines[index])
        elif change in (3, 4):
            name = lines[index].partition(b":")[0]
            lines[index] = name + b": " + source.choice(_VALUES)
        elif change in (5, 6):
            lines.append(source.choice(_NAMES) + b": " + source.choice(_VALUES))
        elif change == 7:
            lines[index] += b", " + source.choice(_VALUES)
        elif change == 8:
            lines[0] = source.choice(start_lines)
        elif change == 9:
            endings[index] = source.choice(_ENDINGS)
        elif change == 10:
            line = lines[index]
            position = source.byte() % (len(line) + 1)
            lines[index] = line[:position] + source.take(1 + source.byte() % 4) + line[position:]
        elif change == 11:
            lines[index] = lines[index].swapcase()
        elif change == 12:
            lines.extend(b"X-%d: y" % number for number in range(source.byte()))
        else:
            lines[index] += source.choice((b"x", b" ", b",", b"=", b";")) * (source.byte() * 80)
        if not lines:
            lines.append(b"")
    head = b"".join(line + endings.get(i, b"\r\n") for i, line in enumerate(lines)) + b"\r\n"
    sent = bytearray(b"HTTP/1.1 100 Continue\r\n\r\n" * interim + head + tail)
    while source and sent:
        changed = True
        change, position = source.byte(), (source.byte() << 8 | source.byte()) % len(sent)
        if change < 128:
            sent[position] = source.byte()
        elif change < 192:
            del sent[position]
        else:
            del sent[position:]
    return bytes(sent[:MAX_BYTES]), changed


# --- The server's side ---------------------------------------------------------------------------


class Served(NamedTuple):
    """What a server makes of a request. What is None does not apply."""

    request: tuple[bytes, bytes, bytes, list[tuple[str, str]]] | None
    trailing: bytes | None
    error: tuple[type[BaseException], str] | None
    subprotocol: str | None
    response: bytes


def check_server(
    received: bytes,
    changed: bool,
    limits: HandshakeLimits,
    cuts: int,
    origins: Sequence[str | None] | None,
) -> None:
    whole = _serve([received], limits, origins)
    assert _serve(list(pieces(received, cuts)), limits, origins) == whole, (
        "it matters how input is cut"
    )
    status = heads.check_written(whole.response)
    upgrades = heads.is_upgrade_request(received, limits.max_head_size, limits.max_header_count)
    if (
        not changed
        and len(received) < limits.max_head_size
        and limits.max_header_count > len(_REQUEST)
    ):
        assert whole.error is None, whole
    if status == 101:
        assert upgrades is not False
        _check_accepted(whole)
        assert origins is None or _may_come_from(whole)
    elif status == 403:
        assert origins is not None
        assert b"origin" in received.lower()
    else:
        assert status in (400, 405, 413, 426, 431, 501, 505), status
        assert upgrades is not True
    if whole.request is not None:
        assert whole.trailing is not None
        assert received.endswith(whole.trailing)
        head = received[: len(received) - len(whole.trailing)]
        heads.check_request(head, whole.request)


def _may_come_from(served: Served) -> bool:
    """Whether the Origin is one of ORIGINS, as far as a glance shows."""
    assert served.request is not None
    found = [value.lower() for name, value in served.request[3] if name.lower() == "origin"]
    if not found:
        return True
    host = found[0].partition("://")[2].removesuffix(":80").removesuffix(":443")
    return len(found) == 1 and (host == "example.com" or host.endswith(".example.com"))


def _serve(
    chunks: list[bytes], limits: HandshakeLimits, origins: Sequence[str | None] | None
) -> Served:
    handshake = ServerHandshake(limits=limits, subprotocols=SUBPROTOCOLS, origins=origins)
    request: WSUpgradeRequest | None = None
    try:
        for number, chunk in enumerate(chunks):
            request = handshake.receive_data(bytearray(chunk))
            if request is not None:
                assert handshake.request is request
                trailing = handshake.trailing_data + b"".join(chunks[number + 1 :])
                break
        else:
            handshake.receive_eof()
        assert request.query is not None
        described = (request.method, request.path, request.version, list(request.headers.items()))
        try:
            response = handshake.accept()
        except WSHandshakeError as error:
            return _refused(handshake, error, limits, chunks, described, trailing)
        return Served(described, trailing, None, handshake.subprotocol, response.to_bytes())
    except WSHandshakeError as error:
        return _refused(handshake, error, limits, chunks, None, None)


def _refused(
    handshake: ServerHandshake,
    error: WSHandshakeError,
    limits: HandshakeLimits,
    chunks: list[bytes],
    request: tuple[bytes, bytes, bytes, list[tuple[str, str]]] | None,
    trailing: bytes | None,
) -> Served:
    _check_error(error, limits, chunks)
    _check_ended(handshake)
    response = handshake.reject(error)
    if handshake.request is None or handshake.request.method != b"HEAD":
        assert response.body == f"{heads.status_text(response.status)}: {error.args[0]}\n".encode()
    return Served(request, trailing, (type(error), str(error)), None, response.to_bytes())


def _check_accepted(served: Served) -> None:
    """A client that sent this key takes the answer."""
    assert served.request is not None
    key = dict(served.request[3])
    key = {name.lower(): value for name, value in key.items()}["sec-websocket-key"]
    client = ClientHandshake(
        URL, key=key, subprotocols=[served.subprotocol] if served.subprotocol else None
    )
    assert client.receive_data(served.response + b"\x81\x00") is not None
    assert client.trailing_data == b"\x81\x00"
    assert client.subprotocol == served.subprotocol


# --- The client's side ---------------------------------------------------------------------------


class Asked(NamedTuple):
    """What a client makes of a response. What is None does not apply."""

    status: int | None
    headers: list[tuple[str, str]] | None
    trailing: bytes | None
    error: tuple[type[BaseException], str] | None
    body: bytes | None
    subprotocol: str | None


def check_client(received: bytes, changed: bool, limits: HandshakeLimits, cuts: int) -> None:
    whole = _ask([received], limits)
    assert _ask(list(pieces(received, cuts)), limits) == whole, "it matters how input is cut"
    if not changed and len(received) < limits.max_head_size:
        assert whole.error is None, whole
    upgrades = heads.is_upgrade_response(
        received, limits.max_head_size, limits.max_header_count, ACCEPT, SUBPROTOCOLS
    )
    if whole.error is None:
        assert upgrades is not False
        assert whole.trailing is not None
        assert received.endswith(whole.trailing)
    else:
        assert upgrades is not True, whole


def _ask(chunks: list[bytes], limits: HandshakeLimits) -> Asked:
    handshake = ClientHandshake(
        URL, key=KEY, limits=limits, subprotocols=SUBPROTOCOLS,
        extra_headers={"Sec-WebSocket-Extensions": OFFERED_EXTENSIONS, "Cookie": "a=b"},
    )  # fmt: skip
    try:
        for number, chunk in enumerate(chunks):
            response = handshake.receive_data(bytearray(chunk))
            if response is not None:
                assert handshake.response is response
                _check_ended(handshake)
                trailing = handshake.trailing_data + b"".join(chunks[number + 1 :])
                items = list(response.headers.items())
                return Asked(101, items, trailing, None, None, handshake.subprotocol)
        handshake.receive_eof()
    except WSHandshakeError as error:
        _check_error(error, limits, chunks)
        _check_ended(handshake)
        refusal = error.response
        if refusal is None:
            return Asked(None, None, None, (type(error), str(error)), None, None)
        if isinstance(error, WSInvalidStatusError):
            assert refusal.status != 101
            assert refusal.body == error.raw_body
            _follow(URL, refusal)
            _follow(SECURE_URL, refusal)
        return Asked(
            int(refusal.status), list(refusal.headers.items()), None, (type(error), str(error)),
            error.raw_body, None,
        )  # fmt: skip


def _follow(origin: WSParsedURL, refusal: WSUpgradeResponse) -> None:
    """A redirect leads to a WebSocket URL, without what belongs to the first server, or nowhere."""
    for location in refusal.headers.getall("Location", ()):
        try:
            target = origin.redirect(location)
        except WSInvalidURL as error:
            assert str(error)
            assert "secret" not in str(error)
            continue
        assert target.scheme in ("ws", "wss")[origin.is_secure :]
        assert "secret" not in repr(target)
        if not target.same_origin(origin):
            assert target.password != "secret"
        request = ClientHandshake(target).request_bytes()
        assert request.count(b"\r\n\r\n") == 1
        assert request.endswith(b"\r\n\r\n")


# --- Both sides ----------------------------------------------------------------------------------


def _check_error(error: WSHandshakeError, limits: HandshakeLimits, chunks: list[bytes]) -> None:
    assert error.args[0]
    assert str(error)
    assert error.raw_header is not None
    assert len(error.raw_header) <= limits.max_head_size
    assert error.raw_header in b"".join(chunks)
    assert len(error.raw_body or b"") <= limits.max_body_size


def _check_ended(handshake: ServerHandshake | ClientHandshake) -> None:
    """Nothing more is taken, and nothing more than the limits is held."""
    for call in (lambda: handshake.receive_data(b"GET"), lambda: handshake.receive_eof()):
        try:
            call()
        except RuntimeError as error:
            assert str(error)
        else:
            raise AssertionError("the handshake went on after its end")
