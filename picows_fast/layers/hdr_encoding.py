"""HdrHistogram's V2 encoding, compressed and in base64: the text that its tools and ports exchange.

Owns the format. Knows counts by bucket and what the buckets mean; who counted what is not its
business. A text may come from anywhere, so decoding takes bounded time and memory.

The text is base64 of a cookie, a size and what zlib made of: a header (cookie, size, offset, digits
of precision, lowest and highest value, a ratio) and the counts, each a ZigZag LEB128 number, of
which a negative one stands for so many empty buckets.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["decode", "encode"]

_COOKIE: Final = 0x1C849313
_COMPRESSED_COOKIE: Final = 0x1C849314
_HEADER: Final = struct.Struct(">IIIIqqd")
_OUTER: Final = struct.Struct(">II")

# Bytes of the text, and of what is in it; a histogram of 3 digits has half a million at most.
_MAX_TEXT: Final = 16 * 1024 * 1024
_MAX_PAYLOAD: Final = 16 * 1024 * 1024
_MAX_COUNT: Final = 2**63 - 1
_MAX_DIGITS: Final = 5


def encode(counts: Sequence[int], highest: int, *, digits: int = 2) -> str:
    """Return the text of these counts, which are of a histogram from 1 to `highest`.

    :param counts: by bucket; those at the end may be left out
    :param highest: the largest value that the histogram can count
    :param digits: decimal digits of precision, from which the buckets follow
    """
    out = bytearray()
    empty = 0
    for count in counts:
        if count == 0:
            empty += 1
            continue
        if empty:
            _write_number(out, -empty)
            empty = 0
        _write_number(out, count)
    payload = _HEADER.pack(_COOKIE, len(out), 0, digits, 1, highest, 1.0) + out
    compressed = zlib.compress(payload)
    return base64.b64encode(_OUTER.pack(_COMPRESSED_COOKIE, len(compressed)) + compressed).decode()


def decode(text: str | bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (lowest, highest, count) of every bucket that is not empty, in ascending order.

    :raises ValueError: it is no such text, or damaged
    """
    payload = _payload(text)
    _, size, offset, digits, lowest, _, ratio = _HEADER.unpack_from(payload)
    if offset or ratio != 1.0 or digits > _MAX_DIGITS or lowest < 1:
        raise ValueError("not a histogram of whole numbers")
    if size != len(payload) - _HEADER.size:
        raise ValueError("the histogram is cut off")
    # Each power of two has 2**half_bits buckets; below them, the values of the unit are told apart.
    half_bits = (2 * 10**digits - 1).bit_length() - 1
    unit_bits = lowest.bit_length() - 1
    index = total = 0
    position = _HEADER.size
    while position < len(payload):
        number, position = _read_number(payload, position)
        if number < 0:
            index -= number
            continue
        if index >> half_bits > 64:
            raise ValueError("a value of the histogram is too large")
        total += number
        if total > _MAX_COUNT:
            raise ValueError("the histogram counts more than 2**63 - 1")
        if number:
            shift = max((index >> half_bits) - 1, 0)
            first = (index - (shift << half_bits)) << (shift + unit_bits)
            yield first, first + (1 << (shift + unit_bits)) - 1, number
        index += 1


def _payload(text: str | bytes) -> bytes:
    if len(text) > _MAX_TEXT:
        raise ValueError("the histogram is too large")
    try:
        data = base64.b64decode(text, validate=True)
        cookie, size = _OUTER.unpack_from(data)
        if cookie != _COMPRESSED_COOKIE or size != len(data) - _OUTER.size:
            raise ValueError("not a compressed histogram of HdrHistogram's V2 encoding")
        unpacker = zlib.decompressobj()
        payload = unpacker.decompress(data[_OUTER.size :], _MAX_PAYLOAD)
    except (binascii.Error, struct.error, zlib.error) as error:
        raise ValueError(f"not a histogram: {error}") from None
    if not unpacker.eof:
        raise ValueError("the histogram is cut off, or too large")
    if len(payload) < _HEADER.size or payload[:4] != _COOKIE.to_bytes(4, "big"):
        raise ValueError("not a histogram of HdrHistogram's V2 encoding")
    return payload


def _write_number(out: bytearray, number: int) -> None:
    """ZigZag LEB128 of 64 bits, whose ninth byte has eight of them."""
    bits = (number << 1) ^ (number >> 63)
    bits &= (1 << 64) - 1
    for _ in range(8):
        if bits < 0x80:
            out.append(bits)
            return
        out.append(bits & 0x7F | 0x80)
        bits >>= 7
    out.append(bits)


def _read_number(data: bytes, position: int) -> tuple[int, int]:
    """The number there, and where the next one is."""
    bits = 0
    for shift in range(0, 57, 7):
        if position == len(data):
            raise ValueError("the histogram is cut off")
        byte = data[position]
        position += 1
        if shift == 56:
            bits |= byte << shift
            break
        bits |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return (bits >> 1) ^ -(bits & 1), position
