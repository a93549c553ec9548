"""proxy_protocol: headers of both versions in every cutting, and bytes that are none."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picows_fast.protocol.proxy_protocol import (
    ProxyHeader,
    ProxyHeaderError,
    ProxyHeaderReader,
    TrustedProxies,
)

from .heads import cuttings

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
IPV4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + b"\x12\x34\x01\xbb"
IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 4660, 443)
)
UNIX = b"/run/client".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")
TLV = b"\x04\x00\x05hello"  # PP2_TYPE_NOOP
V4 = (("192.0.2.7", 4660), ("198.51.100.1", 443))
V6 = (("2001:db8::7", 4660, 0, 0), ("2001:db8::1", 443, 0, 0))
NEITHER = (None, None)


def v2(command: int, family: int, data: bytes = b"", length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", size) + data


GOOD = {
    "v1 IPv4": (b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 443\r\n", V4),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::7 2001:0db8:0:0:0:0:0:1 4660 443\r\n", V6),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", NEITHER),
    "v1 unknown, and more": (b"PROXY UNKNOWN ffff::1 - what not\r\n", NEITHER),
    "v1 longest": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", NEITHER),
    "v2 IPv4": (v2(0x21, 0x11, IPV4), V4),
    "v2 IPv6": (v2(0x21, 0x21, IPV6), V6),
    "v2 Unix": (v2(0x21, 0x31, UNIX), ("/run/client", b"\0abstract")),
    "v2 extensions": (v2(0x21, 0x11, IPV4 + TLV * 40), V4),
    "v2 local": (v2(0x20, 0x00), NEITHER),
    "v2 local with what is ignored": (v2(0x20, 0xFF, IPV4 + TLV), NEITHER),
    "v2 unspecified": (v2(0x21, 0x00, TLV), NEITHER),
    "v2 datagrams": (v2(0x21, 0x12, IPV4), NEITHER),
}
BAD = {
    "HTTP": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01",
    "lower case": b"proxy TCP4 192.0.2.7 198.51.100.1 4660 443\r\n",
    "v1 of no end": b"PROXY UNKNOWN " + b"x" * 93,
    "v1 of a byte too many": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "v1 UDP": b"PROXY UDP4 192.0.2.7 198.51.100.1 4660 443\r\n",
    "v1 without a protocol": b"PROXY \r\n",
    "v1 without ports": b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
    "v1 with more": b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 443 1\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 4660 443\r\n",
    "v1 other family": b"PROXY TCP4 2001:db8::7 2001:db8::1 4660 443\r\n",
    "v1 zone": b"PROXY TCP6 fe80::1%eth0 2001:db8::1 4660 443\r\n",
    "v1 leading zero": b"PROXY TCP4 192.0.2.07 198.51.100.1 4660 443\r\n",
    "v1 name": b"PROXY TCP4 localhost 198.51.100.1 4660 443\r\n",
    "v1 not ASCII": b"PROXY TCP4 \xff 198.51.100.1 4660 443\r\n",
    "v1 port": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
    "v1 port with zeros": b"PROXY TCP4 192.0.2.7 198.51.100.1 04660 443\r\n",
    "v1 signed port": b"PROXY TCP4 192.0.2.7 198.51.100.1 +4660 443\r\n",
    "v2 signature": SIGNATURE[:11] + b"\r",
    "v2 other version": v2(0x11, 0x11, IPV4),
    "v2 other command": v2(0x22, 0x11, IPV4),
    "v2 other family": v2(0x21, 0x41, IPV4),
    "v2 other transport": v2(0x21, 0x13, IPV4),
    "v2 too short": v2(0x21, 0x21, IPV4),
}


@pytest.mark.parametrize("trailing", [b"", b"\x16\x03\x01 the client's own \r\n\r\n"])
@pytest.mark.parametrize(("data", "addresses"), GOOD.values(), ids=GOOD)
def test_headers(data, addresses, trailing):
    version = 1 if data.startswith(b"PROXY") else 2
    for pieces in cuttings(data + trailing):
        reader = ProxyHeaderReader()
        assert not reader.has_begun
        taken = 0
        for piece in pieces:
            if reader.header is not None or not piece:
                break
            taken += reader.feed(piece)
            assert reader.has_begun
        assert reader.header == ProxyHeader(version, *addresses)
        assert taken == len(data)


def feed(reader: ProxyHeaderReader, pieces: list[bytes]) -> None:
    for piece in pieces:
        assert reader.feed(piece) == len(piece)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bytes_that_are_no_header(data):
    errors = set()
    for pieces in cuttings(data):
        reader = ProxyHeaderReader()
        with pytest.raises(ProxyHeaderError) as caught:
            feed(reader, pieces)
        errors.add(str(caught.value))
        assert reader.header is None
    assert len(errors) == 1


@pytest.mark.parametrize("data", [data for data, _ in GOOD.values()], ids=GOOD)
def test_an_unfinished_header_is_none(data):
    for size in range(len(data)):
        reader = ProxyHeaderReader()
        assert reader.feed(data[:size]) == size
        assert reader.header is None


@given(st.data(), st.binary(max_size=300))
def test_whatever_comes(data, noise):
    """Either an error, or a count of bytes and perhaps a header."""
    start = data.draw(st.sampled_from([b"", b"PROXY ", SIGNATURE, v2(0x21, 0x11), v2(0x20, 0x00)]))
    reader = ProxyHeaderReader()
    sent = start + noise
    try:
        taken = reader.feed(sent)
    except ProxyHeaderError:
        return
    assert 0 <= taken <= len(sent)
    assert reader.header is not None or taken == len(sent)


def test_long_extensions_are_not_kept():
    reader = ProxyHeaderReader()
    reader.feed(v2(0x21, 0x11, IPV4, length=65535))
    for _ in range((65535 - len(IPV4)) // 1000):
        assert reader.feed(bytes(1000)) == 1000
    assert reader.header is None
    assert len(reader._head) < 300
    assert reader.feed(bytes(1000)) == (65535 - len(IPV4)) % 1000
    assert reader.header is not None


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        (("10.1.2.3", 5), True),
        (("11.1.2.3", 5), False),
        (("::ffff:10.1.2.3", 5, 0, 0), True),
        (("2001:db8::5", 5, 0, 0), True),
        (("2001:db9::5", 5, 0, 0), False),
        (("fe80::1%eth0", 5, 0, 2), True),
        (("192.0.2.9", 1), True),
        (("192.0.2.8", 1), False),
        ("", True),
        ("/run/client", True),
        (b"\0name", True),
        (("not an address", 1), False),
        ((), False),
        (None, False),
    ],
)
def test_trusted_proxies(address, is_trusted):
    networks = ["10.0.0.0/8", "2001:db8::/32", "fe80::/10", "192.0.2.9", "unix"]
    assert TrustedProxies(networks).trusts(address) is is_trusted
    if isinstance(address, (str, bytes)):
        assert not TrustedProxies(networks[:-1]).trusts(address)


@pytest.mark.parametrize(
    ("networks", "error", "text"),
    [
        ("10.0.0.0/8", TypeError, "a sequence of str, got str"),
        ({"10.0.0.0/8"}, TypeError, "a sequence of str, got set"),
        ([], ValueError, "at least one"),
        ([10], TypeError, "must contain str, got int"),
        (["10.0.0.1/8"], ValueError, "proxy_protocol: 10.0.0.1/8 has host bits set"),
        (["balancer.example"], ValueError, "proxy_protocol: 'balancer.example'"),
    ],
)
def test_networks_that_are_none(networks, error, text):
    with pytest.raises(error, match=text):
        TrustedProxies(networks)
