"""Frames for tests of the codec: an encoder by the book, and a reader that tells everything it got.

The encoder shares no code with the package, so that the codec's two halves are not only tested
against each other.
"""

from __future__ import annotations

from picows_fast import FrameParser, WSFrame, WSMsgType, WSPeerProtocolError

CONTINUATION, TEXT, BINARY = WSMsgType.CONTINUATION, WSMsgType.TEXT, WSMsgType.BINARY
CLOSE, PING, PONG = WSMsgType.CLOSE, WSMsgType.PING, WSMsgType.PONG

KEY = b"\x37\xfa\x21\x3d"
KIB = 1024
MIB = 1024 * 1024

#: the sizes on both sides of every change of the header's form (RFC 6455 5.2)
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537]


def xor(payload: bytes, key: bytes) -> bytes:
    # As two large numbers: a loop over the bytes would be most of what a test of large frames does.
    stream = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(
        len(payload), "big"
    )


def encode(opcode, payload=b"", fin=True, rsv=0, key=None, length_bytes=None) -> bytes:
    """A frame by the book; `length_bytes` (0, 2, 8) forces how the length is written."""
    size = len(payload)
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65536 else 8
    code = {0: size, 2: 126, 8: 127}[length_bytes]
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode, (0x80 if key else 0) | code])
    if length_bytes:
        head += size.to_bytes(length_bytes, "big")
    return head + (key + xor(payload, key) if key else payload)


def key_for(is_client: bool) -> bytes | None:
    """What frames that come to this side are masked with."""
    return None if is_client else KEY


def content(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


def describe(frame: WSFrame):
    rsv = 4 * frame.rsv1 + 2 * frame.rsv2 + frame.rsv3
    return (frame.msg_type, frame.get_payload_as_bytes(), bool(frame.fin), rsv)


def read(parser: FrameParser, *chunks: bytes):
    """Everything that comes out, and the error that ends it or None."""
    seen = []
    try:
        for chunk in chunks:
            parser.feed(chunk)
            seen.extend(describe(frame) for frame in parser)
    except WSPeerProtocolError as error:
        return seen, error
    return seen, None
