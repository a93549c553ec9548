"""The opening handshake: every input whole, cut at every byte, and with trailing bytes."""

from __future__ import annotations

import base64
import gc
import pickle
import sys
import weakref
from http import HTTPStatus

import pytest
from multidict import CIMultiDict

import picows_fast
from picows_fast.exceptions import (
    WSHandshakeError,
    WSInvalidHeaderError,
    WSInvalidMessageError,
    WSInvalidStatusError,
    WSInvalidUpgradeError,
)
from picows_fast.protocol.http.messages import USER_AGENT, HandshakeLimits, WSUpgradeResponse
from picows_fast.protocol.upgrade import (
    ClientHandshake,
    Negotiated,
    ServerHandshake,
    parse_extensions,
)
from picows_fast.protocol.url import parse_url

from .heads import cuttings, receive

# RFC 6455 1.3
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

URL = parse_url("ws://example.com/chat")
TRAILING = b"\x81\x02hi"

REQUEST = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
RESPONSE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}


def head(start_line: str, headers, **changes) -> bytes:
    """Headers with changes: X_Y="z" replaces or adds X-Y, a list repeats it, None removes it."""
    headers = CIMultiDict(headers)
    for name, values in changes.items():
        name = name.replace("_", "-")
        headers.popall(name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None:
                headers.add(name, value)
    lines = [start_line, *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def request(start_line: str = "GET /chat HTTP/1.1", **changes) -> bytes:
    return head(start_line, REQUEST, **changes)


def response(start_line: str = "HTTP/1.1 101 Switching Protocols", **changes) -> bytes:
    return head(start_line, RESPONSE, **changes)


def client(**arguments) -> ClientHandshake:
    return ClientHandshake(URL, key=KEY, **arguments)


def answer(data: bytes, *, eof: bool = False, **arguments):
    """What a client makes of the response `data`, in every cutting: (handshake, error)."""
    outcomes = set()
    for pieces in cuttings(data):
        handshake = client(**arguments)
        error = received = None
        rest = b""
        try:
            received, rest = receive(handshake, pieces)
            if received is None and eof:
                handshake.receive_eof()
        except WSHandshakeError as caught:
            error = caught
        body = error.raw_body if error is not None else None
        outcomes.add((type(error), str(error), body, received is not None, rest))
    assert len(outcomes) == 1
    handshake.rest = rest
    return handshake, error


def ask(data: bytes, **arguments):
    """What a server makes of the request `data`, in every cutting: (handshake, error)."""
    outcomes = set()
    for pieces in cuttings(data):
        handshake = ServerHandshake(**arguments)
        error = received = None
        rest = refusal = b""
        try:
            received, rest = receive(handshake, pieces)
        except WSHandshakeError as caught:
            error = caught
            refusal = handshake.reject(error).to_bytes()
        outcomes.add((type(error), str(error), received is not None, refusal, rest))
    assert len(outcomes) == 1
    handshake.rest = rest
    return handshake, error


def refused(data: bytes, **arguments):
    """(error, its response) of a request that is refused by receive_data or by accept."""
    handshake, error = ask(data, **arguments)
    if error is None:
        with pytest.raises(WSHandshakeError) as caught:
            handshake.accept()
        error = caught.value
    assert error.raw_header
    return error, handshake.reject(error)


# ---- The client's request


def test_request_on_the_wire():
    handshake = ClientHandshake(
        parse_url("wss://example.com:8443/chat?a=b"),
        subprotocols=["one", "two"],
        extra_headers=[("X-A", "1"), ("x-a", "2")],
        key=KEY,
    )
    assert handshake.request_bytes() == (
        b"GET /chat?a=b HTTP/1.1\r\nHost: example.com:8443\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n"
        b"Sec-WebSocket-Version: 13\r\nUser-Agent: " + USER_AGENT.encode() + b"\r\n"
        b"Sec-WebSocket-Protocol: one, two\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
    )
    assert handshake.request.path == b"/chat?a=b"
    assert handshake.request.subprotocols == ["one", "two"]


def test_user_agent():
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"picows_fast/{picows_fast.__version__} Python/{version}" == USER_AGENT
    sent = {
        name: client(**arguments).request.headers.getall("User-Agent", None)
        for name, arguments in {
            "default": {},
            "setting": {"user_agent": "feed/1"},
            "none": {"user_agent": None},
            "header": {"extra_headers": {"user-agent": "feed/2"}},
            "both": {"extra_headers": {"User-Agent": "feed/2"}, "user_agent": "feed/1"},
        }.items()
    }
    assert sent == {
        "default": [USER_AGENT],
        "setting": ["feed/1"],
        "none": None,
        "header": ["feed/2"],
        "both": ["feed/2"],
    }
    with pytest.raises(ValueError, match="User-Agent"):
        client(user_agent="a\r\nX-Injected: yes")


def test_key_is_random():
    keys = {ClientHandshake(URL).request.headers["Sec-WebSocket-Key"] for _ in range(100)}
    assert len(keys) == 100
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}


def test_host_in_extra_headers_replaces():
    handshake = client(extra_headers={"hOsT": "other:1"})
    assert handshake.request.headers.getall("Host") == ["other:1"]
    assert handshake.request_bytes().count(b"example.com") == 0


@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "Sec-WebSocket-Key",
        "SEC-WEBSOCKET-VERSION",
        "Content-Length",
        "Transfer-Encoding",
    ],
)
def test_headers_of_the_handshake_cannot_be_given(name):
    with pytest.raises(ValueError, match=name):
        client(extra_headers={name: "x"})


def test_host_cannot_be_given_twice():
    with pytest.raises(ValueError, match="Host"):
        client(extra_headers=[("Host", "a"), ("host", "b")])


@pytest.mark.parametrize("value", ["a\r\nX-Injected: yes", "a\n", "a\0", "\r"])
def test_extra_headers_cannot_inject(value):
    with pytest.raises(ValueError, match="X-Name"):
        client(extra_headers={"X-Name": value})
    handshake = client()
    handshake.request.headers["X-Name"] = value
    with pytest.raises(ValueError, match="X-Name"):
        handshake.request_bytes()


def test_credentials_of_the_url_become_basic_authentication():
    url = parse_url("ws://us%40er:p%C3%A9:w@example.com:81/")
    sent = ClientHandshake(url).request.headers
    assert base64.b64decode(sent["Authorization"].removeprefix("Basic ")) == "us@er:pé:w".encode()
    assert sent["Host"] == "example.com:81"
    assert "Authorization" not in ClientHandshake(url, send_credentials=False).request.headers
    given = ClientHandshake(url, extra_headers={"authorization": "Bearer x"}).request.headers
    assert given.getall("Authorization") == ["Bearer x"]


@pytest.mark.parametrize("key", ["", "abc", KEY[:-2], base64.b64encode(b"x" * 15).decode()])
def test_key_is_checked(key):
    with pytest.raises(ValueError, match="key"):
        ClientHandshake(URL, key=key)


def test_offered_extensions_are_checked():
    with pytest.raises(ValueError, match="Sec-WebSocket-Extensions"):
        client(extra_headers={"Sec-WebSocket-Extensions": "a; ="})


# ---- The server's response


@pytest.mark.parametrize("trailing", [b"", TRAILING, b"\r\n\r\nHTTP/1.1 400 x\r\n\r\n"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": ["keep-alive", " , uPGRADE,,"]},
        {"Upgrade": "WebSocket"},
        {"Content-Length": "0"},
        {"Sec_WebSocket_Accept": " \t" + ACCEPT + "\t "},
        {"Server": "x", "X_Obs_Text": "\xe9"},
    ],
)
def test_good_responses(changes, trailing):
    changes = {name.replace("-", "_"): value for name, value in changes.items()}
    handshake, error = answer(response(**changes) + trailing)
    assert error is None
    assert handshake.rest == trailing
    assert handshake.response.status is HTTPStatus.SWITCHING_PROTOCOLS
    assert handshake.subprotocol is None
    assert handshake.extensions == []


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize(
    ("changes", "error_type", "name"),
    [
        ({"Upgrade": None}, WSInvalidUpgradeError, "Upgrade"),
        ({"Upgrade": "h2c"}, WSInvalidUpgradeError, "Upgrade"),
        ({"Upgrade": "websocket2"}, WSInvalidUpgradeError, "Upgrade"),
        ({"Upgrade": ""}, WSInvalidUpgradeError, "Upgrade"),
        # Only Connection is a list (RFC 6455 4.1).
        ({"Upgrade": "h2c, websocket"}, WSInvalidUpgradeError, "Upgrade"),
        ({"Upgrade": "websocket,"}, WSInvalidUpgradeError, "Upgrade"),
        ({"Upgrade": ["websocket", "h2c"]}, WSInvalidUpgradeError, "Upgrade"),
        ({"Upgrade": ["websocket", "websocket"]}, WSInvalidUpgradeError, "Upgrade"),
        ({"Connection": ""}, WSInvalidUpgradeError, "Connection"),
        ({"Connection": None}, WSInvalidUpgradeError, "Connection"),
        ({"Connection": "close"}, WSInvalidUpgradeError, "Connection"),
        ({"Connection": "not-upgrade"}, WSInvalidUpgradeError, "Connection"),
        ({"Sec_WebSocket_Accept": None}, WSInvalidHeaderError, "Sec-WebSocket-Accept"),
        ({"Sec_WebSocket_Accept": KEY}, WSInvalidHeaderError, "Sec-WebSocket-Accept"),
        ({"Sec_WebSocket_Accept": ACCEPT.lower()}, WSInvalidHeaderError, "Sec-WebSocket-Accept"),
        ({"Sec_WebSocket_Accept": [ACCEPT, ACCEPT]}, WSInvalidHeaderError, "Sec-WebSocket-Accept"),
        ({"Sec_WebSocket_Protocol": "one"}, WSInvalidHeaderError, "Sec-WebSocket-Protocol"),
        ({"Sec_WebSocket_Protocol": ""}, WSInvalidHeaderError, "Sec-WebSocket-Protocol"),
        ({"Sec_WebSocket_Extensions": "foo"}, WSInvalidHeaderError, "Sec-WebSocket-Extensions"),
        ({"Sec_WebSocket_Extensions": "a b"}, WSInvalidHeaderError, "Sec-WebSocket-Extensions"),
        ({"Transfer_Encoding": "chunked"}, WSInvalidHeaderError, "Transfer-Encoding"),
        ({"Content_Length": "5"}, WSInvalidHeaderError, "Content-Length"),
    ],
)
def test_responses_that_do_not_answer_the_request(changes, error_type, name, trailing):
    _, error = answer(response(**changes) + trailing)
    assert type(error) is error_type
    assert error.name == name
    assert error.response.status == 101
    assert error.raw_header == response(**changes)
    assert name in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ({"subprotocols": ["one", "two"]}, "two"),
        ({"extra_headers": {"Sec-WebSocket-Protocol": "one, two"}}, "two"),
        ({"subprotocols": ["one"], "extra_headers": {"Sec-WebSocket-Protocol": "two"}}, "two"),
        ({"subprotocols": ["one", "two"]}, None),
    ],
)
def test_selected_subprotocol(arguments, selected):
    handshake, error = answer(response(Sec_WebSocket_Protocol=selected), **arguments)
    assert error is None
    assert handshake.subprotocol == selected


@pytest.mark.parametrize("selected", ["three", "One", "one, two", ["one", "two"], ["one", "one"]])
def test_subprotocol_that_was_not_offered(selected):
    _, error = answer(response(Sec_WebSocket_Protocol=selected), subprotocols=["one", "two"])
    assert type(error) is WSInvalidHeaderError
    assert error.name == "Sec-WebSocket-Protocol"


def test_offered_extension_may_be_selected():
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    selected = 'permessage-deflate; server_max_window_bits="10"'
    handshake, error = answer(response(Sec_WebSocket_Extensions=selected), extra_headers=offer)
    assert error is None
    assert handshake.extensions == [("permessage-deflate", [("server_max_window_bits", "10")])]
    assert handshake.negotiated == Negotiated(extensions=handshake.extensions)
    assert handshake.negotiated.extensions == (
        ("permessage-deflate", (("server_max_window_bits", "10"),)),
    )
    for empty in ("", " ", " ,", ",\t,"):
        handshake, error = answer(response(Sec_WebSocket_Extensions=empty), extra_headers=offer)
        assert error is None
        assert handshake.extensions == []
    selected += ", other"
    _, error = answer(response(Sec_WebSocket_Extensions=selected), extra_headers=offer)
    assert error.name == "Sec-WebSocket-Extensions"


def test_interim_responses_are_skipped():
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    handshake, error = answer(interim + response() + TRAILING)
    assert error is None
    assert handshake.rest == TRAILING
    assert "Link" not in handshake.response.headers


def test_interim_responses_are_limited():
    interim = b"HTTP/1.1 103 \r\n\r\n"
    assert answer(interim * 8 + response())[1] is None
    _, error = answer(interim * 9 + response())
    assert type(error) is WSInvalidMessageError


@pytest.mark.parametrize(
    "data",
    [
        response("HTTP/1.0 101 x"),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"HTTP/1.1 101 x\nUpgrade: websocket\n\n",
        b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n folded\r\n\r\n",
        b"HTTP/1.1 400 x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 400 x\r\nContent-Length: 1, 1\r\n\r\na",
        b"HTTP/1.1 400 x\r\nContent-Length: -1\r\n\r\na",
        b"HTTP/1.1 400 x\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\na",
        b"HTTP/1.1 400 x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        b"HTTP/1.1 200 x\r\n" + b"A: b\r\n" * 129 + b"\r\n",
    ],
)
def test_invalid_responses(data):
    _, error = answer(data)
    assert type(error) is WSInvalidMessageError
    assert "response" in str(error)


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403, b"no"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno and more", 403, b"no"),
        (b"HTTP/1.1 429 \r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 429, b"no"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 301 x\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", 301, b""),
        (b"HTTP/1.1 204 x\r\n\r\n", 204, b""),
        (response("HTTP/1.1 200 OK", Content_Length="2") + b"no", 200, b"no"),
    ],
)
@pytest.mark.parametrize("eof", [False, True])
def test_refusals(data, status, body, eof):
    _, error = answer(data, eof=eof)
    assert type(error) is WSInvalidStatusError
    assert error.response.status == status
    assert (error.raw_body, error.response.body) == (body, body)
    assert error.raw_header == data[: data.index(b"\r\n\r\n") + 4]
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 502 x\r\n\r\n", b""),
        (b"HTTP/1.1 502 x\r\n\r\nno", b"no"),
        (b"HTTP/1.0 502 x\r\n\r\nno", b"no"),
        (b"HTTP/1.1 502 x\r\nContent-Length: 5\r\n\r\nno", b"no"),
        (b"HTTP/1.1 502 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nno", b"no"),
        (response("HTTP/1.1 426 x") + b"no", b"no"),
    ],
)
def test_refusals_that_end_with_the_connection(data, body):
    handshake, error = answer(data)
    assert error is None
    assert handshake.response is None
    _, error = answer(data, eof=True)
    assert type(error) is WSInvalidStatusError
    assert error.response.body == body


def test_refusal_is_cut_at_the_limit():
    data = b"HTTP/1.1 500 x\r\n\r\n" + b"x" * 100
    _, error = answer(data, limits=HandshakeLimits(max_body_size=10))
    assert type(error) is WSInvalidStatusError
    assert error.raw_body == b"x" * 10


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"", "any"), (b"HTTP", "complete"), (response()[:-1], "complete")],
)
def test_connection_closed_before_the_response(data, text):
    _, error = answer(data, eof=True) if data else (None, None)
    if not data:
        with pytest.raises(WSInvalidMessageError) as caught:
            client().receive_eof()
        error = caught.value
    assert type(error) is WSInvalidMessageError
    assert text in str(error)
    assert error.raw_header == data


def test_what_an_end_of_the_connection_means():
    reset = ConnectionResetError()
    assert client().end_error(reset) is reset
    assert type(client().end_error()) is WSInvalidMessageError
    for how in (None, reset):
        handshake = client()
        handshake.receive_data(b"HTTP/1.1 429 x\r\nContent-Length: 9\r\n\r\nslow")
        error = handshake.end_error(how)
        assert type(error) is WSInvalidStatusError
        assert (error.response.status, error.raw_body) == (429, b"slow")
        assert handshake.end_error(how) is how
    handshake = ServerHandshake()
    handshake.receive_data(b"GET / HT")
    assert handshake.end_error(reset) is reset
    assert type(handshake.end_error()) is WSInvalidMessageError
    assert handshake.end_error() is None


def test_client_handshake_ends_once():
    handshake = client()
    handshake.receive_data(response())
    with pytest.raises(RuntimeError):
        handshake.receive_data(b"x")
    with pytest.raises(RuntimeError):
        handshake.receive_eof()
    handshake = client()
    with pytest.raises(WSInvalidMessageError):
        handshake.receive_data(b"x")
    with pytest.raises(RuntimeError):
        handshake.receive_data(response())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_received(kind):
    handshake = client()
    assert handshake.receive_data(kind(response() + TRAILING)) is not None
    assert handshake.trailing_data == TRAILING
    with pytest.raises(WSInvalidStatusError):
        client().receive_data(kind(b"HTTP/1.1 400 x\r\nContent-Length: 1\r\n\r\nab"))
    assert ServerHandshake().receive_data(kind(request())) is not None


# ---- The client's request at the server

FIREFOX = (
    "GET /chat HTTP/1.1\r\nHost: 127.0.0.1:8765\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    "Accept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
    "Sec-WebSocket-Version: 13\r\nOrigin: null\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\n"
    "Connection: keep-alive, Upgrade\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: websocket\r\n"
    "Sec-Fetch-Site: cross-site\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    "Upgrade: websocket\r\n\r\n"
).encode()
CHROME = (
    f"GET /chat HTTP/1.1\r\nHost: localhost:8765\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    f"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (Windows NT 10.0) Chrome/127\r\n"
    f"Upgrade: websocket\r\nOrigin: http://localhost:8000\r\nSec-WebSocket-Version: 13\r\n"
    f"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    f"Cookie: a=b; c=d\r\nSec-WebSocket-Key: {KEY}\r\n"
    f"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
).encode()


@pytest.mark.parametrize("trailing", [b"", TRAILING, request()])
@pytest.mark.parametrize(
    "data",
    [
        FIREFOX,
        CHROME,
        request(),
        request(Connection=["keep-alive", " ,upgrade,"]),
        request(Upgrade="h2c, WebSocket"),
        request(Content_Length="0"),
        request(Host="[::1]:80"),
        request("GET http://example.com/chat HTTP/1.1"),
        request(Sec_WebSocket_Protocol=["a, b", ",c"]),
        request(Sec_WebSocket_Extensions=['x; y="z"; a = b, , u', "v"]),
    ],
)
def test_good_requests_are_accepted(data, trailing):
    handshake, error = ask(data + trailing)
    assert error is None
    assert handshake.rest == trailing
    assert handshake.request.path == b"/chat"
    accepted = handshake.accept()
    assert accepted.to_bytes() == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n\r\n"
    )
    assert handshake.subprotocol is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.0\r\nHost: balancer\r\nConnection: keep-alive\r\n\r\n",
        b"HEAD /health HTTP/1.0\r\nUser-Agent: check\r\n\r\n",
    ],
)
def test_a_request_in_http_1_0(data):
    """As health checks send it: Host may be missing, and the answer is in HTTP/1.0, too."""
    handshake, error = ask(data)
    assert error is None
    assert handshake.request.version == b"HTTP/1.0"
    assert not handshake.request.is_upgrade
    answer = handshake.finish(WSUpgradeResponse.create_ok_response(b"ok"))
    assert answer.to_bytes().startswith(b"HTTP/1.0 200 OK\r\n")
    assert answer.headers["Connection"] == "close"
    assert answer.headers["Content-Length"] == "2"
    assert answer.body == (None if data.startswith(b"HEAD") else b"ok")
    bodiless = handshake.finish(WSUpgradeResponse(status=HTTPStatus.NO_CONTENT))
    assert bodiless.to_bytes().startswith(b"HTTP/1.0 204 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nbad\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\n\r\n", 405),
        (b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\n", 413),
        (request("GET /chat HTTP/1.0"), 505),
    ],
)
def test_a_refusal_in_http_1_0(data, status):
    _, refusal = refused(data)
    assert refusal.status == status
    assert refusal.to_bytes().startswith(b"HTTP/1.0 %d " % status)
    assert refusal.headers["Connection"] == "close"


def test_a_failure_of_the_server_in_http_1_0():
    handshake, _ = ask(b"GET / HTTP/1.0\r\n\r\n")
    assert handshake.reject(ValueError("a secret")).to_bytes().startswith(b"HTTP/1.0 500 ")
    with pytest.raises(WSInvalidUpgradeError):
        handshake.accept()


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize(
    ("data", "error_type", "status"),
    [
        (request(Upgrade=None), WSInvalidUpgradeError, 426),
        (request(Upgrade="h2c"), WSInvalidUpgradeError, 426),
        (request(Connection=None), WSInvalidUpgradeError, 400),
        (request(Connection="keep-alive"), WSInvalidUpgradeError, 400),
        (request(Sec_WebSocket_Version=None), WSInvalidHeaderError, 426),
        (request(Sec_WebSocket_Version="8"), WSInvalidHeaderError, 426),
        (request(Sec_WebSocket_Version="14"), WSInvalidHeaderError, 426),
        (request(Sec_WebSocket_Version=["13", "13"]), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Key=None), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Key=""), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Key=[KEY, KEY]), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Key=KEY[:-1]), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Key="x" * 24), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Key="eHh4eHh4eHh4eHh4eHh4"), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Protocol="a b"), WSInvalidHeaderError, 400),
        (request(Sec_WebSocket_Extensions="a;;"), WSInvalidHeaderError, 400),
        (request("HEAD /chat HTTP/1.1"), WSInvalidMessageError, 405),
        (request("POST /chat HTTP/1.1"), WSInvalidMessageError, 405),
        (request("GET /chat HTTP/1.0"), WSInvalidMessageError, 505),
        (request("GET /chat HTTP/2.0"), WSInvalidMessageError, 505),
        (request("GET chat HTTP/1.1"), WSInvalidMessageError, 400),
        (request(Host=None), WSInvalidHeaderError, 400),
        (request(Host=["a", "a"]), WSInvalidHeaderError, 400),
        (request(Host="a b"), WSInvalidHeaderError, 400),
        (request(Host="u@h"), WSInvalidHeaderError, 400),
        (request(Content_Length="5"), WSInvalidHeaderError, 413),
        (request(Content_Length="+0"), WSInvalidMessageError, 400),
        (request(Content_Length=["0", "0"]), WSInvalidMessageError, 400),
        (request(Content_Length="0, 0"), WSInvalidMessageError, 400),
        (request(Transfer_Encoding="chunked"), WSInvalidHeaderError, 501),
        (request(Transfer_Encoding="identity"), WSInvalidHeaderError, 501),
        (request(Transfer_Encoding="chunked", Content_Length="0"), WSInvalidMessageError, 400),
        (request(X="a\r\n folded"), WSInvalidMessageError, 400),
        (request(X="a\nY: b"), WSInvalidMessageError, 400),
        (request(X="a\0"), WSInvalidMessageError, 400),
        (request().replace(b"Host:", b"Host :"), WSInvalidMessageError, 400),
        (request(X=["y"] * 128), WSInvalidMessageError, 431),
        (b"\x16\x03\x01\x02\x00\x01", WSInvalidMessageError, 400),
    ],
)
def test_bad_requests_are_refused(data, error_type, status, trailing):
    if data.startswith(b"\x16") and not trailing:
        data += b"\x00"
    error, refusal = refused(data + trailing)
    assert type(error) is error_type
    assert refusal.status == status
    assert refusal.headers.getall("Connection")[0].startswith("close")
    assert len(refusal.headers.getall("Content-Length")) == 1
    if not data.startswith(b"HEAD"):
        assert refusal.headers["Content-Length"] == str(len(refusal.body))
    if status == 426:
        assert refusal.headers["Sec-WebSocket-Version"] == "13"
        assert refusal.headers["Upgrade"] == "websocket"
    if status == 405:
        assert "GET" in refusal.headers["Allow"]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_refusals_do_not_repeat_what_the_client_sent():
    for data in (
        request(Upgrade="<script>"),
        request(Sec_WebSocket_Key="<script>"),
        request(Host="<script>"),
        request("GET <script> HTTP/1.1"),
        request("<script> / HTTP/1.1"),
    ):
        _, refusal = refused(data)
        assert b"script" not in refusal.to_bytes()


def test_large_head_is_refused():
    limits = HandshakeLimits(max_head_size=200)
    _, refusal = refused(request(X="y" * 300), limits=limits)
    assert refusal.status == 431
    data = request(X="y" * 500)
    assert ask(data, limits=HandshakeLimits(max_head_size=len(data)))[1] is None


def test_incomplete_request():
    handshake, error = ask(request()[:-1])
    assert handshake.request is None
    assert error is None
    with pytest.raises(WSInvalidMessageError, match="complete") as caught:
        handshake.receive_eof()
    assert handshake.reject(caught.value).status == 400
    with pytest.raises(RuntimeError):
        handshake.receive_data(b"\n")
    with pytest.raises(WSInvalidMessageError, match="any"):
        ServerHandshake().receive_eof()


def test_request_is_read_once():
    handshake, _ = ask(request())
    with pytest.raises(RuntimeError):
        handshake.receive_data(b"")
    with pytest.raises(RuntimeError):
        handshake.receive_eof()
    with pytest.raises(RuntimeError):
        ServerHandshake().accept()


def test_plain_http_is_left_to_the_factory():
    for method in ("GET", "HEAD"):
        data = head(f"{method} /health HTTP/1.1", {"Host": "h"})
        handshake, error = ask(data + TRAILING)
        assert error is None
        assert handshake.request.path == b"/health"
        answer = handshake.finish(
            WSUpgradeResponse.create_ok_response(
                b"fine",
                {
                    "Connection": "keep-alive",
                    "Keep-Alive": "timeout=5",
                    "Transfer-Encoding": "chunked",
                },
            )
        )
        assert answer.to_bytes() == (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: 4\r\n\r\n" + (b"fine" if method == "GET" else b"")
        )


def test_finish_completes_any_response():
    handshake, _ = ask(request())
    given = WSUpgradeResponse.create_error_response(404)
    assert handshake.finish(given).to_bytes() == (
        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    assert dict(given.headers) == {}
    given = WSUpgradeResponse.create_redirect_response(302, "/other", {"Content-Length": "9"})
    assert handshake.finish(given).headers.getall("Content-Length") == ["0"]
    given = WSUpgradeResponse(status=HTTPStatus.NO_CONTENT)
    assert handshake.finish(given).to_bytes() == (
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    )
    with pytest.raises(ValueError, match="status"):
        handshake.finish(WSUpgradeResponse.create_101_response())


def test_factory_failure_is_not_told_to_the_client():
    handshake, _ = ask(request())
    for error in (
        RuntimeError("secret"),
        TimeoutError("secret"),
        WSInvalidStatusError("secret", response=WSUpgradeResponse.create_ok_response(b"secret")),
    ):
        refusal = handshake.reject(error)
        assert refusal.status == 500
        assert b"secret" not in refusal.to_bytes()


def test_only_the_last_refusal_is_answered_by_its_status():
    handshake, _ = ask(request(Upgrade=None))
    with pytest.raises(WSInvalidUpgradeError) as caught:
        handshake.accept()
    other = WSInvalidStatusError("secret")
    assert handshake.reject(other).status == 500
    assert handshake.reject(caught.value).status == 426


def test_refusal_leaves_no_reference_cycle():
    def refuse():
        handshake = ServerHandshake()
        try:
            handshake.receive_data(b"\0")
        except WSInvalidMessageError as error:
            handshake.reject(error)
        return weakref.ref(handshake)

    gc.collect()
    gc.disable()
    try:
        assert refuse()() is None
    finally:
        gc.enable()


def test_late_request():
    handshake = ServerHandshake()
    handshake.receive_data(b"GET / HT")
    assert handshake.reject(TimeoutError()).status == 408
    assert handshake.reject(RuntimeError("secret")).status == 500


# ---- The server's selection


@pytest.mark.parametrize(
    ("offered", "spoken", "selected"),
    [
        ("a, b", ["b", "a"], "b"),
        ("a, b", ["c", "a"], "a"),
        ("a, b", ["c"], None),
        ("a, b", None, None),
        (None, ["a"], None),
    ],
)
def test_server_selects_the_first_of_its_own(offered, spoken, selected):
    handshake, _ = ask(request(Sec_WebSocket_Protocol=offered), subprotocols=spoken)
    accepted = handshake.accept()
    assert handshake.subprotocol == selected
    assert accepted.headers.get("Sec-WebSocket-Protocol") == selected


def test_factory_may_select_the_subprotocol():
    handshake, _ = ask(request(Sec_WebSocket_Protocol="a, b"), subprotocols=["a"])
    given = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": "b", "X-A": "c"})
    accepted = handshake.accept(given)
    assert handshake.subprotocol == "b"
    assert accepted.headers.getall("Sec-WebSocket-Protocol") == ["b"]
    assert accepted.headers["X-A"] == "c"
    assert "Sec-WebSocket-Accept" not in given.headers


@pytest.mark.parametrize(
    "extra_headers",
    [
        {"Sec-WebSocket-Protocol": "c"},
        {"Sec-WebSocket-Protocol": "a, b"},
        [("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "b")],
        {"Sec-WebSocket-Extensions": "y"},
        {"Sec-WebSocket-Extensions": "x, y"},
        {"Sec-WebSocket-Extensions": "x;"},
    ],
)
def test_factory_cannot_select_what_was_not_offered(extra_headers):
    handshake, _ = ask(request(Sec_WebSocket_Protocol="a, b", Sec_WebSocket_Extensions="x"))
    with pytest.raises(ValueError) as caught:
        handshake.accept(WSUpgradeResponse.create_101_response(extra_headers))
    assert handshake.reject(caught.value).status == 500


def test_factory_may_select_an_offered_extension():
    handshake, _ = ask(request(Sec_WebSocket_Extensions="x; a=1, y"))
    given = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Extensions": "y; b"})
    assert handshake.extensions == ()
    assert handshake.accept(given).headers["Sec-WebSocket-Extensions"] == "y; b"
    assert handshake.extensions == [("y", [("b", None)])]
    assert handshake.negotiated == Negotiated(extensions=[("y", [("b", None)])])


def test_negotiated_made_by_hand():
    nothing = Negotiated(extensions=[])
    assert (nothing.subprotocol, nothing.extensions, nothing.allowed_rsv) == (None, (), 0)
    given = [("x", [("a", "1"), ("b", None)])]
    made = Negotiated(subprotocol="v2", extensions=given)
    given[0][1].clear()
    assert made.extensions == (("x", (("a", "1"), ("b", None))),)
    assert made.allowed_rsv == 7
    assert {made: 1}[Negotiated(subprotocol="v2", extensions=made.extensions)] == 1
    with pytest.raises(AttributeError):
        made.subprotocol = "v1"
    for wrong, error in (
        ({"subprotocol": 5}, TypeError),
        ({"subprotocol": "a b"}, ValueError),
        ({"extensions": "x"}, TypeError),
        ({"extensions": 5}, TypeError),
        ({"extensions": [("x y", [])]}, ValueError),
        ({"extensions": [("x", [("a", 1)])]}, TypeError),
        ({"extensions": [("x", ["ab,"])]}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(wrong))):
            Negotiated(**wrong)


@pytest.mark.parametrize("offered", [None, "", "x"])
@pytest.mark.parametrize("selected", ["", " ,"])
def test_an_empty_header_selects_no_extension(offered, selected):
    handshake, _ = ask(request(Sec_WebSocket_Extensions=offered))
    given = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Extensions": selected})
    assert "Sec-WebSocket-Extensions" not in handshake.accept(given).headers
    assert not handshake.extensions


def test_handshake_owns_its_headers():
    handshake, _ = ask(request())
    given = WSUpgradeResponse.create_101_response(
        {"Sec-WebSocket-Accept": "x", "Content-Length": "5", "Transfer-Encoding": "chunked"}
    )
    given.headers["Connection"] = "close"
    assert handshake.accept(given).to_bytes() == handshake.accept().to_bytes()


def test_only_an_empty_101_is_accepted():
    handshake, _ = ask(request())
    with pytest.raises(ValueError, match="101"):
        handshake.accept(WSUpgradeResponse.create_ok_response())
    given = WSUpgradeResponse.create_101_response()
    given.body = b"x"
    with pytest.raises(ValueError, match="body"):
        handshake.accept(given)


# ---- Extensions


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["", " , ,"], []),
        (["a"], [("a", [])]),
        (["a, b", "c"], [("a", []), ("b", []), ("c", [])]),
        (["a;x;y=1 ; z = \t2,b"], [("a", [("x", None), ("y", "1"), ("z", "2")]), ("b", [])]),
        (['a; x="1"; y="\\2\\3"'], [("a", [("x", "1"), ("y", "23")])]),
    ],
)
def test_extensions(values, expected):
    assert parse_extensions(values) == expected


@pytest.mark.parametrize(
    "value",
    ["a b", ";", "a;", "a;;b", "a; x=", 'a; x="', 'a; x="1', 'a; x=""', 'a; x="1 2"', "=", "a=b",
     'a; x="1"2', 'a; x="\\', "a/b", "\u00e9"],
)  # fmt: skip
def test_malformed_extensions(value):
    with pytest.raises(ValueError, match="extension"):
        parse_extensions([value])
    with pytest.raises(ValueError, match="extension"):
        parse_extensions(["good", f"good, {value}"])
