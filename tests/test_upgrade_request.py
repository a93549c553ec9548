"""The quick way to read an upgrade request: what it takes, what it leaves, and that it is no other.

Whole requests are read the quick way if that can be, requests in pieces never are; test_handshake
compares the two for every request that it has. Here, which way was taken counts, too.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picows_fast.exceptions import WSHandshakeError
from picows_fast.protocol.http.messages import HandshakeLimits
from picows_fast.protocol.http.quick import read_upgrade
from picows_fast.protocol.upgrade import ServerHandshake

from .heads import receive

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
LINES = (
    b"GET /chat?a=b HTTP/1.1",
    b"Host: example.com:8080",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY.encode(),
    b"Sec-WebSocket-Version: 13",
)
TRAILING = b"\x81\x02hi"


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def changed(index: int, *lines: bytes) -> bytes:
    return head(*LINES[:index], *lines, *LINES[index + 1 :])


def read(data: bytes, max_size: int = 16 * 1024, max_count: int = 128):
    return read_upgrade(data, max_size, max_count)


ORDINARY = {
    "plain": head(*LINES),
    "other case": changed(2, b"uPGRADE:WebSocket"),
    "other order": head(LINES[0], *reversed(LINES[1:])),
    "connection list": changed(3, b"Connection: keep-alive , uPGRADE"),
    "connection list with gaps": changed(3, b"Connection:,, upgrade,"),
    "white space around": changed(5, b"Sec-WebSocket-Version:\t 13 \t"),
    "empty host": changed(1, b"Host:"),
    "IPv6 host": changed(1, b"Host: [::1]:80"),
    "others": head(*LINES, b"x-a:", b"X-A: \t b  c\t ", b"!#$%&'*+-.^_`|~9:\xe9\xc3\xa9"),
    "subprotocols": head(*LINES, b"Sec-WebSocket-Protocol: a, b"),
    "extensions": head(*LINES, b"sec-websocket-extensions: permessage-deflate; x=y"),
    "bad subprotocol": head(*LINES, b"Sec-WebSocket-Protocol: a b"),
    "bad extension": head(
        *LINES, b"Sec-WebSocket-Extensions: a; =", b"Sec-WebSocket-Extensions: b"
    ),
    "odd target": changed(0, b"GET /%0d|{}\"'\\ HTTP/1.1"),
}
EXTRAORDINARY = {
    "HEAD": changed(0, b"HEAD / HTTP/1.1"),
    "absolute target": changed(0, b"GET http://other/ HTTP/1.1"),
    "fragment": changed(0, b"GET /a#b HTTP/1.1"),
    "HTTP/1.0": changed(0, b"GET / HTTP/1.0"),
    "HTTP/1.12": changed(0, b"GET / HTTP/1.12"),
    "two spaces": changed(0, b"GET  / HTTP/1.1"),
    "no version": changed(0, b"GET /"),
    "obs-text in target": changed(0, b"GET /\xc3\xa9 HTTP/1.1"),
    "no host": changed(1),
    "two hosts": changed(1, LINES[1], LINES[1]),
    "user in host": changed(1, b"Host: user@example.com"),
    "no upgrade": changed(2),
    "two upgrades": changed(2, LINES[2], LINES[2]),
    "upgrade list": changed(2, b"Upgrade: h2c, websocket"),
    "other upgrade": changed(2, b"Upgrade: websocket2"),
    "no connection": changed(3),
    "two connections": changed(3, b"Connection: keep-alive", LINES[3]),
    "other connection": changed(3, b"Connection: not-upgrade"),
    "options run together": changed(3, b"Connection: keep-alive upgrade"),
    "no key": changed(4),
    "two keys": changed(4, LINES[4], LINES[4]),
    "short key": changed(4, LINES[4][:-1]),
    "unpadded key": changed(4, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQaa"),
    "key of other characters": changed(4, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!=="),
    "no version header": changed(5),
    "two versions": changed(5, LINES[5], LINES[5]),
    "version 8": changed(5, b"Sec-WebSocket-Version: 8"),
    "version list": changed(5, b"Sec-WebSocket-Version: 13, 8"),
    "content length": head(*LINES, b"Content-Length: 0"),
    "transfer encoding": head(*LINES, b"transfer-encoding: chunked"),
    "folded": head(*LINES, b"X: a", b" b"),
    "no name": head(*LINES, b": a"),
    "no colon": head(*LINES, b"X"),
    "space before the colon": head(*LINES, b"X : a"),
    "NUL": head(*LINES, b"X: a\0"),
    "DEL": head(*LINES, b"X: a\x7f"),
    "CR": head(*LINES, b"X: a\rb"),
    "LF": head(*LINES, b"X: a\nb"),
    "bare LF": head(*LINES).replace(b"\r\n", b"\n"),
    "CR CR LF": head(*LINES, b"X: a\r"),
    "nothing": b"",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
}


def outcome(pieces: list[bytes], limits: HandshakeLimits) -> tuple[object, ...]:
    """What a server makes of a request in these pieces."""
    handshake = ServerHandshake(limits=limits, subprotocols=["b"], origins=[None, "https://o"])
    try:
        request, rest = receive(handshake, pieces)
        if request is None:
            return ("incomplete",)
        response = handshake.accept()
    except WSHandshakeError as error:
        refusal = handshake.reject(error).to_bytes()
        return type(error), str(error), refusal
    fields = (request.method, request.path, request.version, list(request.headers.items()))
    return *fields, rest, handshake.subprotocol, response.to_bytes()


def assert_same_both_ways(data: bytes, limits: HandshakeLimits) -> None:
    """A first piece that is no head, however short, leads to the careful way."""
    whole = outcome([data], limits)
    assert whole == outcome([data[:1], data[1:]], limits)


@pytest.mark.parametrize("trailing", [b"", TRAILING, head(*LINES)])
@pytest.mark.parametrize("data", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_requests_are_read_at_a_glance(data, trailing):
    found = read(data + trailing)
    assert found is not None
    size, path, headers, key, has_offers = found
    assert size == len(data)
    assert path == data.split(b" ")[1]
    assert headers == [
        (
            line.partition(b":")[0].decode(),
            line.partition(b":")[2].strip(b" \t").decode("utf-8", "surrogateescape"),
        )
        for line in data.split(b"\r\n")[1:-2]
    ]
    assert key == KEY
    assert has_offers == (b"protocol:" in data.lower() or b"extensions:" in data.lower())
    assert_same_both_ways(data + trailing, HandshakeLimits())


@pytest.mark.parametrize("trailing", [b"", TRAILING])
@pytest.mark.parametrize("data", EXTRAORDINARY.values(), ids=EXTRAORDINARY)
def test_everything_else_is_left(data, trailing):
    assert read(data + trailing) is None
    assert_same_both_ways(data + trailing, HandshakeLimits())


@pytest.mark.parametrize("data", ORDINARY.values(), ids=ORDINARY)
def test_what_is_not_whole_is_left(data):
    assert [read(data[:size]) for size in range(len(data))] == [None] * len(data)


def test_limits():
    data = head(*LINES)
    assert read(data + TRAILING, max_size=len(data)) is not None
    assert read(data + TRAILING, max_size=len(data) - 1) is None
    assert read(data, max_count=len(LINES) - 1) is not None
    assert read(data, max_count=len(LINES) - 2) is None
    for size in (len(data), len(data) - 1):
        for count in (len(LINES) - 1, len(LINES) - 2):
            limits = HandshakeLimits(max_head_size=size, max_header_count=count)
            assert_same_both_ways(data, limits)


def test_origin_that_is_not_allowed_is_refused():
    data = head(*LINES, b"Origin: https://elsewhere.example")
    assert read(data) is not None
    handshake = ServerHandshake(origins=["https://example.com"])
    with pytest.raises(WSHandshakeError) as caught:
        handshake.receive_data(data + TRAILING)
    assert handshake.reject(caught.value).status == 403
    assert caught.value.raw_header == data
    with pytest.raises(RuntimeError):
        handshake.receive_data(b"")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_taken(kind):
    handshake = ServerHandshake()
    request = handshake.receive_data(kind(head(*LINES) + TRAILING))
    assert request is not None
    assert request.path == b"/chat?a=b"
    assert handshake.trailing_data == TRAILING


@pytest.mark.parametrize("wrong", [None, "GET / HTTP/1.1", bytearray(head(*LINES))])
def test_wrong_types(wrong):
    with pytest.raises(TypeError):
        read(wrong)


@given(
    base=st.sampled_from([*ORDINARY.values(), *EXTRAORDINARY.values()]),
    position=st.integers(0, 300),
    removed=st.integers(0, 3),
    inserted=st.binary(max_size=3)
    | st.sampled_from([b"\r", b"\n", b":", b" ", b"\t", b",", b"\r\n"]),
    max_size=st.integers(100, 300),
)
def test_both_ways_agree_on_any_damage(base, position, removed, inserted, max_size):
    position %= len(base) + 1
    data = base[:position] + inserted + base[position + removed :]
    assert_same_both_ways(data, HandshakeLimits())
    assert_same_both_ways(data, HandshakeLimits(max_head_size=max_size, max_header_count=6))
