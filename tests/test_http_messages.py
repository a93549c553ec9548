"""HTTP heads and bodies: every input whole, cut at every byte, and with trailing bytes."""

from __future__ import annotations

import pickle
from http import HTTPStatus

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from picows_fast.protocol.http.messages import (
    BadHeadError,
    HandshakeLimits,
    RefusalReader,
    RequestHeadReader,
    ResponseHeadReader,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    checked_headers,
)

from .heads import cuttings

TRAILING = b"\x81\x02hi\r\n\r\n"


def read_head(reader_class, pieces, limits):
    """(status of the error, its text) or (head, what follows it), None if more is needed."""
    reader = reader_class(limits)
    for index, piece in enumerate(pieces):
        try:
            if reader.feed(piece):
                return reader, reader.head, reader.rest + b"".join(pieces[index + 1 :])
        except BadHeadError as error:
            return None, int(error.status), error.text
    return None


def read_head_every_way(reader_class, data, limits=None):
    """Reads data in every cutting, checks that all agree, and returns what the last one gave."""
    limits = limits or HandshakeLimits()
    outcomes = [read_head(reader_class, pieces, limits) for pieces in cuttings(data)]
    assert len({outcome and outcome[1:] for outcome in outcomes}) == 1
    return outcomes[-1]


# ---- Heads


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize(
    ("start_line", "method", "path"),
    [
        (b"GET / HTTP/1.1", b"GET", b"/"),
        (b"HEAD /a?b=c HTTP/1.1", b"HEAD", b"/a?b=c"),
        (b"GET /%0d|{}\"'\\ HTTP/1.1", b"GET", b"/%0d|{}\"'\\"),
    ],
)
def test_request_heads(start_line, method, path, trailing):
    head = start_line + b"\r\nHost: h\r\nx-a:\r\nX-A: \t b  c\t \r\n!#$%&'*+-.^_`|~9:\xe9\r\n\r\n"
    reader, read, rest = read_head_every_way(RequestHeadReader, head + trailing)
    assert (read, rest) == (head, trailing)
    request = reader.request()
    assert (request.method, request.path, request.version) == (method, path, b"HTTP/1.1")
    assert list(request.headers.items()) == [
        ("Host", "h"),
        ("x-a", ""),
        ("X-A", "b  c"),
        ("!#$%&'*+-.^_`|~9", "\udce9"),
    ]


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://other:81/a?b", b"/a?b", "other:81"),
        (b"HTTPS://other", b"/", "other"),
        (b"ws://[::1]?q", b"/?q", "[::1]"),
    ],
)
def test_absolute_target_replaces_host(target, path, host):
    data = b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    request = read_head_every_way(RequestHeadReader, data)[0].request()
    assert (request.path, request.headers.getall("Host")) == (path, [host])


def test_absolute_target_does_not_hide_a_repeated_host():
    data = b"GET http://o/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    request = read_head_every_way(RequestHeadReader, data)[0].request()
    assert request.headers.getall("Host") == ["a", "b"]


@pytest.mark.parametrize("target", [b"*", b"h:80", b"http:///x", b"http://u@h/", b"ftp://h/"])
def test_other_targets_are_refused(target):
    data = b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    reader, _, _ = read_head_every_way(RequestHeadReader, data)
    with pytest.raises(BadHeadError) as caught:
        reader.request()
    assert caught.value.status == 400


GOOD_LINE = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "request line"),
        (b"\x80\x2e\x01", 400, "request line"),
        (b"\r\nGET / HTTP/1.1\r\n", 400, "request line"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 400, "request line"),
        (b"GET /\r\n", 400, "request line"),
        (b"GET  / HTTP/1.1\r\n", 400, "request line"),
        (b"GET / HTTP/1.1 \r\n", 400, "request line"),
        (b"GET\t/ HTTP/1.1\r\n", 400, "request line"),
        (b"GET /a#b HTTP/1.1\r\n", 400, "request line"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", 400, "request line"),
        (b"GET / http/1.1\r\n", 400, "request line"),
        (b"GET / HTTP/1.1\r\r\n", 400, "request line"),
        (b"A" * 21, 400, "request line"),
        (b"GET / HTTP/0.9\r\n", 505, "HTTP/1.1"),
        (b"GET / HTTP/1.2\r\n", 505, "HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n", 505, "HTTP/1.1"),
        (b"POST / HTTP/1.1\r\n", 405, "method"),
        (b"get / HTTP/1.1\r\n", 405, "method"),
        (b"CONNECT h:80 HTTP/1.1\r\n", 405, "method"),
        (b"GET / HTTP/1.1\n", 400, "LF"),
        (GOOD_LINE + b"Host: h\n", 400, "LF"),
        (GOOD_LINE + b"Host: h\r\n\n", 400, "LF"),
        (GOOD_LINE + b"X: a\rb\r\n", 400, "header line"),
        (GOOD_LINE + b"X: a\r\r\n", 400, "header line"),
        (GOOD_LINE + b"X: a\0b\r\n", 400, "header line"),
        (GOOD_LINE + b"X: a\x0bb\r\n", 400, "header line"),
        (GOOD_LINE + b"X: a\x7fb\r\n", 400, "header line"),
        (GOOD_LINE + b"X : a\r\n", 400, "header line"),
        (GOOD_LINE + b"X\t: a\r\n", 400, "header line"),
        (GOOD_LINE + b": a\r\n", 400, "header line"),
        (GOOD_LINE + b"X\r\n", 400, "header line"),
        (GOOD_LINE + b"X\0Y: a\r\n", 400, "header line"),
        (GOOD_LINE + b"X\xe9: a\r\n", 400, "header line"),
        (GOOD_LINE + b"X(Y): a\r\n", 400, "header line"),
        (GOOD_LINE + b"X: a\r\n b\r\n", 400, "folded"),
        (GOOD_LINE + b"X: a\r\n\tb\r\n", 400, "folded"),
        (GOOD_LINE + b" X: a\r\n", 400, "folded"),
    ],
)
def test_bad_requests_are_refused_at_once(data, status, text, trailing):
    _, got_status, got_text = read_head_every_way(RequestHeadReader, data + trailing)
    assert got_status == status
    assert text in got_text


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize(
    ("start_line", "version", "status"),
    [
        (b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1", HTTPStatus.SWITCHING_PROTOCOLS),
        (b"HTTP/1.1 101 ", b"HTTP/1.1", HTTPStatus.SWITCHING_PROTOCOLS),
        (b"HTTP/1.1 101", b"HTTP/1.1", HTTPStatus.SWITCHING_PROTOCOLS),
        (b"HTTP/1.0 404 Pas trouv\xe9", b"HTTP/1.0", HTTPStatus.NOT_FOUND),
        (b"HTTP/1.1 499 Other", b"HTTP/1.1", 499),
        (b"HTTP/1.1 600 x", b"HTTP/1.1", 600),
        (b"HTTP/1.1 999 Request denied", b"HTTP/1.1", 999),
    ],
)
def test_response_heads(start_line, version, status, trailing):
    head = start_line + b"\r\nX-A: b\r\n\r\n"
    reader, read, rest = read_head_every_way(ResponseHeadReader, head + trailing)
    assert (read, rest) == (head, trailing)
    response = reader.response()
    assert (response.version, response.status) == (version, status)
    assert list(response.headers.items()) == [("X-A", "b")]


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x03\x00\x02",
        b"SSH-2.0-x\r\n",
        b"HTTP/2 101 \r\n",
        b"HTTP/2.0 101 x\r\n",
        b"HTTP/1.2 101 x\r\n",
        b"http/1.1 101 x\r\n",
        b"HTTP/1.1  101 x\r\n",
        b"HTTP/1.1 10 x\r\n",
        b"HTTP/1.1 1010 x\r\n",
        b"HTTP/1.1 099 x\r\n",
        b"HTTP/1.1 101 x\0\r\n",
        b"HTTP/1.1 101 x\n",
        b"HTTP/1.1 101 x\r\nA: b\r\n c\r\n",
    ],
)
def test_bad_responses_are_refused_at_once(data, trailing):
    outcome = read_head_every_way(ResponseHeadReader, data + trailing)
    assert outcome[0] is None


@pytest.mark.parametrize("reader_class", [RequestHeadReader, ResponseHeadReader])
def test_incomplete_head_asks_for_more(reader_class):
    line = GOOD_LINE if reader_class is RequestHeadReader else b"HTTP/1.1 101 x\r\n"
    assert read_head_every_way(reader_class, line + b"Host: h\r\nX: y\r\n\r") is None
    assert read_head_every_way(reader_class, line[:3]) is None


# ---- Limits


def head_of_size(size: int) -> bytes:
    head = GOOD_LINE + b"X: " + b"y" * (size - len(GOOD_LINE) - 7) + b"\r\n\r\n"
    assert len(head) == size
    return head


def test_head_as_large_as_allowed_is_read():
    limits = HandshakeLimits(max_head_size=80)
    assert read_head_every_way(RequestHeadReader, head_of_size(80), limits)[0] is not None
    assert read_head_every_way(RequestHeadReader, head_of_size(80) + TRAILING, limits)[0]


@pytest.mark.parametrize("data", [head_of_size(81), head_of_size(200), b"GET /" + b"x" * 75])
def test_larger_head_is_refused(data):
    limits = HandshakeLimits(max_head_size=80)
    assert read_head_every_way(RequestHeadReader, data, limits)[1] == 431


def test_header_count_is_limited():
    limits = HandshakeLimits(max_header_count=3)
    head = GOOD_LINE + b"A: b\r\n" * 3 + b"\r\n"
    assert read_head_every_way(RequestHeadReader, head, limits)[0] is not None
    head = GOOD_LINE + b"A: b\r\n" * 4 + b"\r\n"
    assert read_head_every_way(RequestHeadReader, head, limits)[1] == 431


@pytest.mark.parametrize("name", ["max_head_size", "max_header_count", "max_body_size"])
def test_limits_are_checked(name):
    with pytest.raises(ValueError, match=name):
        HandshakeLimits(**{name: 0})
    with pytest.raises(TypeError, match=name):
        HandshakeLimits(**{name: 1.5})
    with pytest.raises(TypeError, match=name):
        HandshakeLimits(**{name: True})


class CountingBuffer(bytearray):
    """Counts the bytes that are searched."""

    searched = 0

    def find(self, needle, start, end):
        self.searched += min(end, len(self)) - start
        return super().find(needle, start, end)


@pytest.mark.parametrize("header", [b"X: " + b"y" * 16_000 + b"\r\n", b"X:\r\n" * 4000])
def test_work_is_linear_however_small_the_pieces(header):
    head = GOOD_LINE + header + b"\r\n"
    reader = RequestHeadReader(HandshakeLimits(max_header_count=5000))
    reader.received = buffer = CountingBuffer()
    read_line_sizes = []
    read_line = reader._read_line
    reader._read_line = lambda line: read_line_sizes.append(len(line) + 1) or read_line(line)

    done = [reader.feed(head[i : i + 1]) for i in range(len(head))]

    assert done == [False] * (len(head) - 1) + [True]
    assert reader.received is buffer
    assert buffer.searched <= len(head)
    assert sum(read_line_sizes) == len(buffer) == len(head)


def test_refused_head_stops_growing():
    reader = RequestHeadReader(HandshakeLimits(max_head_size=100))
    assert not reader.feed(b"GET /" + b"x" * 94)
    with pytest.raises(BadHeadError):
        reader.feed(b"x")
    assert len(reader.received) == 100


# ---- Agreement with another parser

REQUEST = (
    b"GET /chat?x=1 HTTP/1.1\r\nHost: example.com:81\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nContent-Length: 0\r\nX-Y:  z \t\r\n\r\n"
)
RESPONSE = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 3\r\nA:\r\n\r\n"

mutations = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.integers(0, 3),
        st.sampled_from(
            [b"", b" ", b"\t", b"\r", b"\n", b"\r\n", b":", b"\0", b"\xe9", b",", b"1"]
        ),
    ),
    max_size=3,
)


def mutate(data: bytes, changes) -> bytes:
    for position, removed, inserted in changes:
        position = min(position, len(data))
        data = data[:position] + inserted + data[position + removed :]
    return data


def comparable(headers):
    return [(name.lower(), value) for name, value in headers]


def as_bytes(headers):
    return [
        (name.encode("ascii").lower(), value.encode("utf-8", "surrogateescape"))
        for name, value in headers.items()
    ]


@settings(max_examples=500)
@given(mutations)
def test_accepted_requests_are_read_as_h11_reads_them(changes):
    data = mutate(REQUEST, changes)
    reader = RequestHeadReader(HandshakeLimits())
    try:
        if not reader.feed(data):
            return
        request = reader.request()
    except BadHeadError:
        return
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data)
    try:
        event = peer.next_event()
    except h11.RemoteProtocolError as error:
        # Host and Content-Length are checked by who uses the head.
        assert any(word in str(error) for word in ("Host", "Content-Length"))  # noqa: PT017
        return
    assert (request.method, request.path) == (event.method, event.target)
    assert as_bytes(request.headers) == comparable(event.headers)


@settings(max_examples=500)
@given(mutations)
def test_accepted_responses_are_read_as_h11_reads_them(changes):
    data = mutate(RESPONSE, changes)
    reader = ResponseHeadReader(HandshakeLimits())
    try:
        if not reader.feed(data):
            return
        response = reader.response()
    except BadHeadError:
        return
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    peer.receive_data(data)
    try:
        event = peer.next_event()
    except h11.RemoteProtocolError as error:
        assert "Content-Length" in str(error)  # noqa: PT017
        return
    assert response.status == event.status_code
    assert as_bytes(response.headers) == comparable(event.headers)


# ---- Bodies of refusals


def read_refusal(pieces, limits):
    """(body, what completes it: True data, False the end of the connection)."""
    reader = ResponseHeadReader(limits)
    refusal = None
    for piece in pieces:
        if refusal is None:
            if not reader.feed(piece):
                continue
            refusal = RefusalReader(reader)
            piece = reader.rest
        if refusal.feed(piece):
            break
    response = refusal.error().response
    assert "X" not in response.headers
    return response.body, refusal.feed(b"")


@pytest.mark.parametrize(
    ("headers", "body", "expected", "by_data"),
    [
        (b"Content-Length: 3\r\n", b"abc", b"abc", True),
        (b"Content-Length: 3\r\n", b"abcdef", b"abc", True),
        (b"Content-Length: 3\r\n", b"abcHTTP/1.1 200 OK\r\nX: y\r\n\r\nz", b"abc", True),
        (b"Content-Length: 5\r\n", b"abc", b"abc", False),
        (b"Content-Length: 0\r\n", b"abc", b"", True),
        (b"", b"abc", b"abc", False),
        (b"Connection: close\r\n", b"", b"", False),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"abc", b"abc", False),
        (
            b"Transfer-Encoding: chunked\r\n",
            b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            b"abcde",
            True,
        ),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\nX: y\r\n\r\nZ", b"a", True),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\nzz\r\nd", b"abc", True),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nab", b"ab", False),
    ],
)
def test_bodies(headers, body, expected, by_data):
    data = b"HTTP/1.1 403 Forbidden\r\n" + headers + b"\r\n" + body
    outcomes = {read_refusal(pieces, HandshakeLimits()) for pieces in cuttings(data)}
    assert outcomes == {(expected, by_data)}


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_statuses_without_body(status):
    data = b"HTTP/1.1 " + status + b"\r\nContent-Length: 3\r\n\r\nabc"
    outcomes = {read_refusal(pieces, HandshakeLimits()) for pieces in cuttings(data)}
    assert outcomes == {(b"", True)}


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (b"", b"x" * 50, b"x" * 20),
        (b"Content-Length: 50\r\n", b"x" * 50, b"x" * 20),
        (b"Transfer-Encoding: chunked\r\n", b"32\r\n" + b"x" * 50 + b"\r\n0\r\n\r\n", b"x" * 16),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\n" + b"T: y\r\n" * 50, b"x"),
    ],
)
def test_bodies_are_cut(headers, body, expected):
    data = b"HTTP/1.1 403 Forbidden\r\n" + headers + b"\r\n" + body
    limits = HandshakeLimits(max_body_size=20)
    assert {read_refusal(pieces, limits) for pieces in cuttings(data)} == {(expected, True)}


# ---- Headers and messages made by users


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, []),
        ({"A": "b"}, [("A", "b")]),
        ([("A", "b"), ("a", "c")], [("A", "b"), ("a", "c")]),
        (CIMultiDict([("A", "b"), ("a", "c")]), [("A", "b"), ("a", "c")]),
        (iter([("A", " b\t")]), [("A", "b")]),
        ({"A": "b\tc \u00e9\udce9"}, [("A", "b\tc \u00e9\udce9")]),
    ],
)
def test_headers_of_users(headers, expected):
    assert checked_headers(headers) == expected


@pytest.mark.parametrize(
    "value", ["a\r\nX: y", "a\n", "\r", "a\0", "a\x0b", "a\x1f", "a\x7f", "\ud800"]
)
def test_header_values_cannot_break_out(value):
    with pytest.raises(ValueError, match="X-Name"):
        checked_headers({"X-Name": value})
    for create in (
        WSUpgradeResponse.create_101_response,
        WSUpgradeResponse.create_ok_response,
        lambda extra_headers: WSUpgradeResponse.create_error_response(
            404, extra_headers=extra_headers
        ),
        lambda extra_headers: WSUpgradeResponse.create_redirect_response(301, "/", extra_headers),
    ):
        with pytest.raises(ValueError, match="X-Name"):
            create(extra_headers={"X-Name": value})
    with pytest.raises(ValueError, match="Location"):
        WSUpgradeResponse.create_redirect_response(301, value)
    response = WSUpgradeResponse()
    response.headers["X-Name"] = value
    with pytest.raises(ValueError, match="X-Name"):
        response.to_bytes()


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nX", "\u00e9", "a\0", " a", "a "])
def test_header_names_are_tokens(name):
    with pytest.raises(ValueError, match="name"):
        checked_headers({name: "value"})


@pytest.mark.parametrize("headers", ["A: b", b"A: b", {b"A": "b"}, {"A": b"b"}, {"A": 5}, 5])
def test_headers_of_wrong_types(headers):
    with pytest.raises(TypeError):
        checked_headers(headers)


def test_101_response():
    response = WSUpgradeResponse.create_101_response({"X-A": "b", "connection": "close"})
    assert response.status is HTTPStatus.SWITCHING_PROTOCOLS
    assert response.to_bytes() == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"X-A: b\r\n\r\n"
    )


def test_ok_response():
    assert WSUpgradeResponse.create_ok_response(b"hi").to_bytes() == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\r\nhi"
    )
    response = WSUpgradeResponse.create_ok_response(
        bytearray(b"{}"), {"content-type": "application/json"}
    )
    assert response.headers.getall("Content-Type") == ["application/json"]
    assert response.body == b"{}"


def test_error_response():
    response = WSUpgradeResponse.create_error_response(HTTPStatus.NOT_FOUND)
    assert response.to_bytes() == b"HTTP/1.1 404 Not Found\r\n\r\n"
    response = WSUpgradeResponse.create_error_response(499, b"x")
    assert response.to_bytes() == (
        b"HTTP/1.1 499 \r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx"
    )
    assert isinstance(WSUpgradeResponse.create_error_response(404).status, HTTPStatus)


def test_redirect_response():
    response = WSUpgradeResponse.create_redirect_response(
        302, "wss://h/", [("Set-Cookie", "a"), ("Set-Cookie", "b")]
    )
    assert response.to_bytes() == (
        b"HTTP/1.1 302 Found\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nLocation: wss://h/\r\n\r\n"
    )


@pytest.mark.parametrize("status", [101, 200, 399, 600])
def test_error_status_is_checked(status):
    with pytest.raises(ValueError, match="status"):
        WSUpgradeResponse.create_error_response(status)


@pytest.mark.parametrize("status", [200, 299, 400])
def test_redirect_status_is_checked(status):
    with pytest.raises(ValueError, match="status"):
        WSUpgradeResponse.create_redirect_response(status, "/")


def test_body_is_checked():
    with pytest.raises(TypeError, match="body"):
        WSUpgradeResponse.create_ok_response("text")


def test_messages_can_be_pickled():
    request = WSUpgradeRequest(headers=CIMultiDict([("A", "b"), ("A", "c")]))
    twin = pickle.loads(pickle.dumps(request))
    assert (twin.method, twin.path, twin.headers) == (b"GET", b"/", request.headers)
    response = WSUpgradeResponse.create_ok_response(b"hi")
    assert pickle.loads(pickle.dumps(response)).to_bytes() == response.to_bytes()


def test_offered_subprotocols():
    headers = CIMultiDict([("sec-websocket-protocol", "a, ,b"), ("Sec-WebSocket-Protocol", "c")])
    assert WSUpgradeRequest(headers=headers).subprotocols == ["a", "b", "c"]
    assert WSUpgradeRequest().subprotocols == []


def test_response_with_listener():
    response, listener = WSUpgradeResponse(), object()
    pair = WSUpgradeResponseWithListener(response, listener)
    assert (pair.response, pair.listener) == (response, listener)
