"""HTTP heads read a second time, by splitting them: the oracle of `handshake_fuzzer`.

Follows RFC 9112 and RFC 6455 4, shares no code with the package and no parser with it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from http import HTTPStatus

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

Fields = list[tuple[bytes, bytes]]


def split(received: bytes, max_size: int, max_count: int) -> tuple[bytes, Fields] | None:
    """Start line and header fields of a well-formed head within the limits."""
    end = received.find(b"\r\n\r\n")
    if end < 0 or end + 4 > max_size:
        return None
    start, *lines = received[:end].split(b"\r\n")
    if len(lines) > max_count:
        return None
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not is_token(name):
            return None
        if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value):
            return None
        fields.append((name.lower(), value.strip(b" \t")))
    return start, fields


def is_token(text: bytes) -> bool:
    return bool(text) and all(byte in _TOKEN for byte in text)


def values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for field, value in fields if field == name]


def elements(fields: Fields, name: bytes) -> list[bytes]:
    parts = b",".join(values(fields, name)).split(b",")
    return [part.strip(b" \t") for part in parts if part.strip(b" \t")]


def has_body(fields: Fields) -> bool | None:
    """None where it is a matter of how strictly Content-Length is read."""
    if values(fields, b"transfer-encoding"):
        return True
    lengths = values(fields, b"content-length")
    if not lengths:
        return False
    return None if all(length.strip(b"0") == b"" for length in lengths) else True


def upgrades(fields: Fields) -> bool:
    return b"websocket" in [element.lower() for element in elements(fields, b"upgrade")] and (
        b"upgrade" in [element.lower() for element in elements(fields, b"connection")]
    )


def is_upgrade_request(received: bytes, max_size: int, max_count: int) -> bool | None:
    """RFC 6455 4.2.1; None where extensions or Content-Length leave it open."""
    parts = split(received, max_size, max_count)
    if parts is None:
        return False
    start, fields = parts
    words = start.split(b" ")
    if len(words) != 3 or words[0] != b"GET" or words[2] != b"HTTP/1.1":
        return False
    if any(not 0x21 <= byte <= 0x7E or byte == 0x23 for byte in words[1]) or not words[1]:
        return False
    keys, hosts = values(fields, b"sec-websocket-key"), values(fields, b"host")
    if len(keys) != 1 or len(hosts) != 1 or not _is_key(keys[0]) or not upgrades(fields):
        return False
    if values(fields, b"sec-websocket-version") != [b"13"]:
        return False
    if not all(map(is_token, elements(fields, b"sec-websocket-protocol"))):
        return False
    if has_body(fields):
        return False
    plain = words[1].startswith(b"/") and hosts[0].replace(b".", b"").isalnum()
    undecided = values(fields, b"content-length") + values(fields, b"sec-websocket-extensions")
    return True if plain and not undecided else None


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def is_upgrade_response(
    received: bytes, max_size: int, max_count: int, accept: bytes, subprotocols: Sequence[str]
) -> bool | None:
    """RFC 6455 4.1; None where extensions or Content-Length leave it open."""
    for _ in range(9):  # the response, behind up to eight interim ones
        parts = split(received, max_size, max_count)
        if parts is None:
            return False
        start, fields = parts
        version, _, rest = start.partition(b" ")
        status, _, phrase = rest.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3 or not status.isdigit():
            return False
        if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in phrase):
            return False
        if status == b"101" or not status.startswith(b"1"):
            break
        received = received[received.find(b"\r\n\r\n") + 4 :]
    if status != b"101" or version != b"HTTP/1.1" or not upgrades(fields) or has_body(fields):
        return False
    if values(fields, b"sec-websocket-accept") != [accept]:
        return False
    selected = values(fields, b"sec-websocket-protocol")
    if selected and (
        len(selected) > 1 or selected[0] not in [name.encode() for name in subprotocols]
    ):
        return False
    undecided = values(fields, b"content-length") + values(fields, b"sec-websocket-extensions")
    return None if undecided else True


def check_request(head: bytes, request: tuple[bytes, bytes, bytes, list[tuple[str, str]]]) -> None:
    """What was read is what stands in the head; the target's authority may replace Host."""
    parts = split(head, len(head), head.count(b"\n"))
    assert parts is not None
    assert head.endswith(b"\r\n\r\n")
    start, fields = parts
    method, path, version, headers = request
    words = start.split(b" ")
    assert words[0] == method
    assert words[2] == version
    assert words[1] == path or words[1].endswith(path.lstrip(b"/"))
    read = [
        (name.lower().encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers
    ]
    if words[1].startswith(b"/"):
        assert read == fields
    else:
        ours = [field for field in read if field[0] != b"host"]
        assert ours == [field for field in fields if field[0] != b"host"]


def check_written(response: bytes) -> int:
    """A response of ours: well-formed, its length right; gives the status."""
    parts = split(response, len(response), 64)
    assert parts is not None, response
    start, fields = parts
    version, status, phrase = start.split(b" ", 2)
    assert version in (b"HTTP/1.1", b"HTTP/1.0")  # that of the request
    assert phrase == HTTPStatus(int(status)).phrase.encode()
    assert len({name for name, _ in fields}) == len(fields)
    body = response[response.find(b"\r\n\r\n") + 4 :]
    if status == b"101":
        assert not body
        assert upgrades(fields)
        assert has_body(fields) is False
    else:
        assert b"close" in elements(fields, b"connection")
        (length,) = values(fields, b"content-length")
        assert not body or int(length) == len(body)
    if status == b"426":
        assert values(fields, b"sec-websocket-version") == [b"13"]
    return int(status)


def status_text(status: int) -> str:
    return f"{int(status)} {HTTPStatus(status).phrase}"
