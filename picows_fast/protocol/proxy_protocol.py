"""The PROXY protocol, versions 1 and 2: whom a load balancer's connection is made for.

Owns the syntax of the header (HAProxy's proxy-protocol.txt), and which peers must send one. Does no
I/O: ``proxied`` reads the header of an accepted connection.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ProxyHeader", "ProxyHeaderError", "ProxyHeaderReader", "TrustedProxies"]

_V1_BEGINNING: Final = b"PROXY "
_V1_MAX_SIZE: Final = 107  # bytes, CRLF among them (2.1)
_PORT: Final = re.compile(rb"0|[1-9][0-9]{0,4}")

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED_SIZE: Final = 16  # signature, version and command, family, length (2.2)
_V2_LOCAL: Final = 0x20
_V2_PROXY: Final = 0x21
_V2_UNIX_PATH_SIZE: Final = 108
_V2_STREAMS: Final = {  # family and transport: bytes of both addresses
    0x11: 2 * (4 + 2),  # TCP over IPv4
    0x21: 2 * (16 + 2),  # TCP over IPv6
    0x31: 2 * _V2_UNIX_PATH_SIZE,
}
# Not specified, and datagrams: the address, if there is one, is not that of a stream.
_V2_WITHOUT_ADDRESS: Final = frozenset({0x00, 0x12, 0x22, 0x32})

_UNIX: Final = "unix"


class ProxyHeaderError(ValueError):
    """A connection does not begin with a valid PROXY header."""


@dataclass(frozen=True)
class ProxyHeader:
    """What a header says."""

    version: int
    """1 or 2."""
    source: Any
    """The client's address, as ``socket.getpeername`` gives it. None if the connection is the
    proxy's own, such as a health check, or the proxy does not know."""
    destination: Any
    """The address that the client connected to, or None."""


class ProxyHeaderReader:
    """Reads the header at the beginning of one connection, in whatever pieces it comes."""

    #: the header, once it is complete
    header: ProxyHeader | None = None

    def __init__(self) -> None:
        self._head = b""  # what has come of it, but for extensions
        self._to_skip: int | None = None  # bytes of extensions that are still to come
        self._found: ProxyHeader | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the header has been taken."""
        return bool(self._head) or self._found is not None

    def feed(self, data: bytes) -> int:
        """Take the next bytes, and return how many of them belong to the header; what follows is
        the client's. ``header`` is set with the last of them.

        Raises ProxyHeaderError if this is no header.
        """
        taken = 0
        if self._found is None:
            before = len(self._head)
            size = self._read_head(data)
            taken = size - before
        if self._found is not None:
            extensions = min(self._to_skip or 0, len(data) - taken)
            self._to_skip = (self._to_skip or 0) - extensions
            taken += extensions
            if self._to_skip == 0:
                self.header = self._found
        return taken

    def _read_head(self, data: bytes) -> int:
        """Read what is no extension; returns its size, or of what there is of it."""
        wanted = _V2_FIXED_SIZE + max(_V2_STREAMS.values())
        head = self._head = self._head + data[: wanted - len(self._head)]
        signature = head[: len(_V2_SIGNATURE)]
        if _V2_SIGNATURE.startswith(signature):
            return self._read_v2(head)
        if _V1_BEGINNING.startswith(head[: len(_V1_BEGINNING)]) or head.startswith(_V1_BEGINNING):
            return self._read_v1(head)
        raise ProxyHeaderError("no PROXY header")

    def _read_v1(self, head: bytes) -> int:
        end = head.find(b"\r\n", 0, _V1_MAX_SIZE)
        if end < 0:
            if len(head) >= _V1_MAX_SIZE:
                raise ProxyHeaderError(f"more than {_V1_MAX_SIZE} bytes without an end of line")
            return len(head)
        self._found = _parse_v1(head[:end])
        self._head = head[: end + 2]
        return end + 2

    def _read_v2(self, head: bytes) -> int:
        if len(head) < _V2_FIXED_SIZE:
            return len(head)
        command, family = head[12], head[13]
        length = int.from_bytes(head[14:16], "big")
        if command not in (_V2_LOCAL, _V2_PROXY):
            raise ProxyHeaderError(f"unknown version and command {command:#04x}")
        # Of LOCAL the family is ignored, too.
        address_size = 0
        if command == _V2_PROXY and family not in _V2_WITHOUT_ADDRESS:
            if family not in _V2_STREAMS:
                raise ProxyHeaderError(f"unknown address family and transport {family:#04x}")
            address_size = _V2_STREAMS[family]
        if length < address_size:
            raise ProxyHeaderError(f"{length} bytes are too few for addresses of {family:#04x}")
        size = _V2_FIXED_SIZE + address_size
        if len(head) < size:
            return len(head)
        source, destination = _parse_v2(family, head[_V2_FIXED_SIZE:size])
        self._found = ProxyHeader(2, source, destination)
        self._to_skip = length - address_size
        self._head = head[:size]
        return size


def _parse_v1(line: bytes) -> ProxyHeader:
    """The line of version 1, without its end."""
    fields = line.split(b" ")
    family = fields[1]
    if family == b"UNKNOWN":
        return ProxyHeader(1, None, None)  # whatever follows is to be ignored
    if family not in (b"TCP4", b"TCP6"):
        raise ProxyHeaderError("the protocol is none of TCP4, TCP6 and UNKNOWN")
    if len(fields) != 6:
        raise ProxyHeaderError("not two addresses and two ports")
    source, destination, source_port, destination_port = fields[2:]
    return ProxyHeader(
        1,
        _v1_address(family, source, source_port),
        _v1_address(family, destination, destination_port),
    )


def _v1_address(family: bytes, host: bytes, port: bytes) -> tuple[Any, ...]:
    try:
        text = host.decode("ascii")
        if family == b"TCP4":
            address = str(ipaddress.IPv4Address(text))
        elif "%" in text:
            raise ValueError("an IPv6 zone")
        else:
            address = str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ProxyHeaderError(f"not an address of {family.decode()}") from None
    if _PORT.fullmatch(port) is None or int(port) > 65535:
        raise ProxyHeaderError("not a port number")
    return _as_the_system_says(address, int(port))


def _parse_v2(family: int, data: bytes) -> tuple[Any, Any]:
    """Source and destination, (None, None) if there are none."""
    half = _V2_UNIX_PATH_SIZE
    if len(data) == 2 * half:
        return _unix_path(data[:half]), _unix_path(data[half:])
    if not data:
        return None, None
    size = (len(data) - 4) // 2
    source, destination = data[:size], data[size : 2 * size]
    ports = data[2 * size :]
    return (
        _as_the_system_says(str(ipaddress.ip_address(source)), int.from_bytes(ports[:2], "big")),
        _as_the_system_says(
            str(ipaddress.ip_address(destination)), int.from_bytes(ports[2:], "big")
        ),
    )


def _as_the_system_says(host: str, port: int) -> tuple[Any, ...]:
    return (host, port, 0, 0) if ":" in host else (host, port)


def _unix_path(padded: bytes) -> str | bytes:
    if padded.startswith(b"\0"):
        return padded.rstrip(b"\0")  # abstract, or without a name
    return os.fsdecode(padded.partition(b"\0")[0])


class TrustedProxies:
    """The peers that must begin each connection with a PROXY header, and are believed.

    :param networks: IP addresses and networks (``10.0.0.0/8``); ``"unix"``: every peer of a Unix
        socket
    :raises TypeError, ValueError: ``networks`` is not a sequence of such str, or empty
    """

    def __init__(self, networks: Sequence[str]) -> None:
        if isinstance(networks, (str, bytes)) or not isinstance(networks, Sequence):
            raise TypeError(
                f"proxy_protocol must be a sequence of str, got {type(networks).__name__}"
            )
        if not networks:
            raise ValueError("proxy_protocol must name at least one network; None turns it off")
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._trusts_unix = False
        for network in networks:
            if not isinstance(network, str):
                raise TypeError(f"proxy_protocol must contain str, got {type(network).__name__}")
            if network == _UNIX:
                self._trusts_unix = True
                continue
            try:
                self._networks.append(ipaddress.ip_network(network))
            except ValueError as error:
                raise ValueError(f"proxy_protocol: {error}") from None

    def trusts(self, address: Any) -> bool:
        """Whether a connection from this address, as ``socket.accept`` gives it, has a header."""
        if isinstance(address, (str, bytes)):
            return self._trusts_unix
        if not isinstance(address, tuple):
            return False
        try:
            ip = ipaddress.ip_address(address[0].partition("%")[0])
        except (AttributeError, IndexError, ValueError):
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)
