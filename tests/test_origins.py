"""origins: what may be listed, and which Origin headers match it."""

from __future__ import annotations

from typing import Any

import pytest

from picows_fast import ServerHandshake, ServerOptions, WSUpgradeResponse
from picows_fast.exceptions import WSInvalidHeaderError
from picows_fast.protocol.origins import OriginPolicy

LISTED = ["https://example.com", "https://*.shop.example:8443", "http://[::1]:3000", "app://x"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "https://example.com:443",
        "HTTPS://Example.COM",
        "https://a.shop.example:8443",
        "https://a.b.shop.example:8443",
        "http://[::1]:3000",
        "app://x",
    ],
)
def test_allowed(origin: str) -> None:
    assert OriginPolicy(LISTED).allows([origin])


@pytest.mark.parametrize(
    "origin",
    [
        "http://example.com",
        "https://example.com:8443",
        "https://www.example.com",
        "https://example.com.evil.example",
        "https://evil-example.com",
        "https://example.com/",
        "https://example.com@evil.example",
        "https://evil.example#https://example.com",
        "https://evil.example https://example.com",
        " https://example.com",
        "https://example.com\n",
        "https://exampleXcom",
        "https://shop.example:8443",
        "https://a.shop.example",
        "https://ashop.example:8443",
        "https://*.shop.example:8443",
        "https://.shop.example:8443",
        "http://[::1]",
        "null",
        "",
        "*",
        "https://ex\u0430mple.com",
    ],
)
def test_not_allowed(origin: str) -> None:
    assert not OriginPolicy(LISTED).allows([origin])


def test_requests_without_an_origin() -> None:
    assert not OriginPolicy(LISTED).allows([])
    assert OriginPolicy([*LISTED, None]).allows([])
    assert not OriginPolicy([None]).allows(["https://example.com"])


def test_several_origins_are_none() -> None:
    assert not OriginPolicy([*LISTED, None]).allows(["https://example.com"] * 2)


def test_opaque_origins() -> None:
    assert OriginPolicy(["null"]).allows(["null"])
    assert not OriginPolicy(["null"]).allows(["https://null"])
    assert not OriginPolicy(["https://null"]).allows(["null"])


BAD: list[tuple[Any, type[Exception]]] = [
    ("https://example.com", TypeError),
    (b"https://example.com", TypeError),
    (5, TypeError),
    ([5], TypeError),
    ([b"https://example.com"], TypeError),
    ([], ValueError),
    (["*"], ValueError),
    (["example.com"], ValueError),
    (["https://"], ValueError),
    (["https://example.com/"], ValueError),
    (["https://example.com/path"], ValueError),
    (["https://user@example.com"], ValueError),
    (["https://*"], ValueError),
    (["https://*.[::1]"], ValueError),
    (["https://a.*.example.com"], ValueError),
    (["https://*example.com"], ValueError),
    (["https://example.com:port"], ValueError),
    (["https://b\u00fccher.example"], ValueError),
    ([""], ValueError),
]


@pytest.mark.parametrize(("origins", "error"), BAD, ids=lambda value: ascii(value))
def test_what_cannot_be_listed(origins: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="origins"):
        OriginPolicy(origins)
    with pytest.raises(error, match="origins"):
        ServerOptions(origins=origins)
    with pytest.raises(error, match="origins"):
        ServerHandshake(origins=origins)


def request(*headers: str, upgrade: str = "websocket") -> bytes:
    lines = [
        "GET / HTTP/1.1",
        "Host: example.com",
        f"Upgrade: {upgrade}",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_handshake_refuses_other_origins(size: int) -> None:
    handshake = ServerHandshake(origins=LISTED)
    data = request("Origin: https://evil.example")
    last = (len(data) - 1) // size * size
    for i in range(0, last, size):
        assert handshake.receive_data(data[i : i + size]) is None
    with pytest.raises(WSInvalidHeaderError) as caught:
        handshake.receive_data(data[last:])
    assert (caught.value.name, caught.value.value) == ("Origin", "https://evil.example")
    refusal = handshake.reject(caught.value)
    assert refusal.status == 403
    assert b"evil" not in refusal.to_bytes()


def test_handshake_takes_allowed_origins() -> None:
    handshake = ServerHandshake(origins=OriginPolicy(LISTED))
    assert handshake.receive_data(request("Origin: https://example.com")) is not None
    assert handshake.accept().status == 101


@pytest.mark.parametrize("upgrade", ["h2c", "websockets"])
def test_plain_http_has_no_origin_to_check(upgrade: str) -> None:
    handshake = ServerHandshake(origins=LISTED)
    received = handshake.receive_data(request("Origin: https://evil.example", upgrade=upgrade))
    assert received is not None
    assert not received.is_upgrade
    assert handshake.finish(WSUpgradeResponse.create_ok_response()).status == 200


@pytest.mark.parametrize("upgrade", ["h2c, WebSocket", "WEBSOCKET", "websocket,"])
def test_every_way_to_ask_for_an_upgrade_is_checked(upgrade: str) -> None:
    for origin, allowed in (("https://evil.example", False), ("https://example.com", True)):
        handshake = ServerHandshake(origins=LISTED)
        data = request(f"Origin: {origin}", upgrade=upgrade)
        if allowed:
            handshake.receive_data(data)
            assert handshake.accept().status == 101
        else:
            with pytest.raises(WSInvalidHeaderError):
                handshake.receive_data(data)
