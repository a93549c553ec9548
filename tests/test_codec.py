"""codec: bytes to frames, frames to bytes, without any I/O.

Building frames is tested in test_frame_building.py, agreement with another implementation in
test_codec_agreement.py.
"""

from __future__ import annotations

import copy
import gc
import pickle
import socket
import struct
import sys
import threading
import tracemalloc

import pytest

from picows_fast import (
    FrameParser,
    WSCloseCode,
    WSFrame,
    WSMsgType,
    WSPeerProtocolError,
    WSViolation,
    build_close_payload,
    build_frame,
)

from .frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    KIB,
    MIB,
    PING,
    PONG,
    SIZES,
    TEXT,
    content,
    describe,
    encode,
    key_for,
    read,
)

ROLES = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])


def cut_points(size: int) -> list[int]:
    """Every point to cut at; of long input all near its ends, and some between."""
    if size <= 2000:
        return list(range(size + 1))
    return [*range(40), *range(40, size - 40, size // 40), *range(size - 40, size + 1)]


# --- Good input ----------------------------------------------------------------------------------

SEQUENCES = {
    "one of each": [
        (TEXT, b"text", True, 0),
        (BINARY, b"\x00\xff", True, 0),
        (PING, b"ping", True, 0),
        (PONG, b"pong", True, 0),
        (CLOSE, b"\x03\xe8bye", True, 0),
    ],
    "empty frames": [
        (TEXT, b"", True, 0),
        (TEXT, b"", False, 0),
        (CONTINUATION, b"", False, 0),
        (PING, b"", True, 0),
        (CONTINUATION, b"", True, 0),
        (PONG, b"", True, 0),
        (CLOSE, b"", True, 0),
    ],
    "control frames between fragments": [
        (BINARY, b"first", False, 0),
        (PING, content(125), True, 0),
        (CONTINUATION, content(126), False, 0),
        (PONG, b"", True, 0),
        (PONG, b"unasked", True, 0),
        (CONTINUATION, b"last", True, 0),
        (TEXT, b"next", True, 0),
    ],
    "CLOSE amid a message": [(TEXT, b"part", False, 0), (CLOSE, b"\x0f\xa0", True, 0)],
    "text cut inside a character": [
        (TEXT, "€".encode()[:1], False, 0),
        (CONTINUATION, "€".encode()[1:], True, 0),
    ],
    "medium lengths": [(BINARY, content(size), True, 0) for size in (124, 125, 126, 127, 300)],
    "a long length": [(BINARY, content(65536), True, 0), (PING, b"after", True, 0)],
}


@ROLES
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_whole_and_cut_anywhere(name, is_client):
    frames = SEQUENCES[name]
    data = b"".join(encode(*frame, key=key_for(is_client)) for frame in frames)
    for cut in cut_points(len(data)):
        parser = FrameParser(is_client=is_client)
        assert read(parser, data[:cut], data[cut:]) == (frames, None), cut
        assert parser.buffered == 0
        assert parser.close_received == any(frame[0] == CLOSE for frame in frames)


@ROLES
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_byte_by_byte(name, is_client):
    frames = SEQUENCES[name]
    data = b"".join(encode(*frame, key=key_for(is_client)) for frame in frames)
    parser = FrameParser(is_client=is_client)
    assert read(parser, *(data[i : i + 1] for i in range(len(data)))) == (frames, None)


@ROLES
@pytest.mark.parametrize("size", SIZES)
def test_payload_sizes_with_an_unfinished_frame_behind(size, is_client):
    """A frame comes with its last byte, not earlier, and what is behind it stays."""
    key = key_for(is_client)
    data = encode(BINARY, content(size), key=key)
    trailing = encode(TEXT, b"trailing", key=key)[:-1]
    parser = FrameParser(is_client=is_client)
    parser.feed(data[:-1])
    assert parser.next_frame() is None
    assert parser.buffered == len(data) - 1
    parser.feed(data[-1:] + trailing)
    frame = parser.next_frame()
    assert frame.get_payload_as_bytes() == content(size)
    assert (frame.payload_size, frame.tail_size) == (size, len(trailing))
    assert frame.last_in_buffer
    assert parser.next_frame() is None
    assert parser.buffered == len(trailing)


@ROLES
def test_every_mask_alignment(is_client):
    """Payloads of every length up to 70 bytes at every offset, one behind the other."""
    frames = [(BINARY, content(size), True, 0) for size in range(70)]
    data = b"".join(
        encode(*frame, key=None if is_client else bytes([i, 255 - i, 1, 2 * i & 255]))
        for i, frame in enumerate(frames)
    )
    assert read(FrameParser(is_client=is_client), data) == (frames, None)


def test_a_mask_key_of_zeros_is_a_mask():
    data = encode(TEXT, b"plain", key=b"\0\0\0\0")
    assert read(FrameParser(is_client=False), data) == ([(TEXT, b"plain", True, 0)], None)


def test_input_is_not_changed_and_may_be_reused():
    data = bytearray(encode(TEXT, b"payload", key=KEY))
    before = bytes(data)
    parser = FrameParser(is_client=False)
    parser.feed(data)
    assert data == before
    data[:] = bytes(len(data))
    assert parser.next_frame().get_payload_as_bytes() == b"payload"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_feed_takes_any_buffer(kind):
    parser = FrameParser(is_client=True)
    parser.feed(kind(encode(TEXT, b"x")))
    parser.feed(kind(b""))
    assert parser.next_frame().get_payload_as_bytes() == b"x"
    assert parser.next_frame() is None


@pytest.mark.parametrize("data", [None, "text", 5, [1, 2]])
def test_feed_refuses_what_is_not_a_buffer(data):
    with pytest.raises(TypeError):
        FrameParser(is_client=True).feed(data)


# --- Violations ----------------------------------------------------------------------------------

V = WSViolation
#: violation: examples of (is_client, bytes that violate it, how many of them tell, frames before,
#: settings). What a header alone tells is known from the byte that is wrong; what depends on role,
#: order or limits, from the complete header; what is wrong with a CLOSE payload, from the complete
#: frame.
VIOLATIONS: dict[WSViolation, list[tuple[bool, bytes, int, list, dict]]] = {}


def violation(kind, build, *, header, before=(), options=None, roles=(True, False)):
    """Add an example. `build(key)` makes the bytes; `header(is_client)` how many of them tell."""
    for is_client in roles:
        VIOLATIONS.setdefault(kind, []).append(
            (is_client, build(key_for(is_client)), header(is_client), list(before), options or {})
        )


def complete_header(length_bytes=0):
    return lambda is_client: 2 + length_bytes + (0 if is_client else 4)


def at(count):
    return lambda is_client: count


for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    violation(V.RESERVED_OPCODE, lambda key, o=opcode: encode(o, b"x", key=key), header=at(1))
    violation(V.RESERVED_OPCODE, lambda key, o=opcode: encode(o, b"x", False, 0, key), header=at(1))
for opcode in (CLOSE, PING, PONG):
    violation(
        V.CONTROL_FRAGMENTED, lambda key, o=opcode: encode(o, b"", False, 0, key), header=at(1)
    )
    for size in (126, 65535, 65536):
        violation(
            V.CONTROL_TOO_LONG,
            lambda key, o=opcode, n=size: encode(o, bytes(n), key=key),
            header=at(2),
        )
    violation(
        V.CONTROL_TOO_LONG,
        lambda key, o=opcode: encode(o, b"short", key=key, length_bytes=2),
        header=at(2),
    )
for size, length_bytes in ((0, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65535, 8)):
    violation(
        V.LENGTH_NOT_MINIMAL,
        lambda key, n=size, b=length_bytes: encode(BINARY, bytes(n), key=key, length_bytes=b),
        header=at(2 + length_bytes),
    )
for first in (0x80, 0xFF):
    violation(
        V.LENGTH_MSB_SET,
        lambda key, f=first: bytes([0x82, 0xFF if key else 0x7F, f]) + bytes(30),
        header=at(3),
    )
for rsv in range(1, 8):
    for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
        violation(
            V.RSV_SET,
            lambda key, o=opcode, r=rsv: encode(o, b"", True, r, key),
            header=complete_header(),
        )
        violation(
            V.RSV_SET,
            lambda key, o=opcode, r=rsv: encode(o, b"", True, r, key),
            header=complete_header(),
            options={"allowed_rsv": 7 & ~(rsv & -rsv)},
        )
for opcode in (TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE):
    violation(V.UNMASKED, lambda key, o=opcode: encode(o, b""), header=at(2), roles=[False])
    violation(V.MASKED, lambda key, o=opcode: encode(o, b"", key=KEY), header=at(6), roles=[True])
violation(V.UNMASKED, lambda key: encode(BINARY, bytes(65536)), header=at(10), roles=[False])
for limit, size in ((0, 1), (125, 126), (1000, 1001), (65535, 65536)):
    violation(
        V.FRAME_TOO_BIG,
        lambda key, n=size: encode(BINARY, bytes(n), key=key),
        header=complete_header(0 if size < 126 else 2 if size < 65536 else 8),
        options={"max_frame_size": limit},
    )
violation(
    V.FRAME_TOO_BIG,
    lambda key: (
        bytes([0x82, 0xFF if key else 0x7F]) + (2**63 - 1).to_bytes(8, "big") + (key or b"")
    ),
    header=complete_header(8),
)
for fin in (True, False):
    violation(
        V.UNEXPECTED_CONTINUATION,
        lambda key, f=fin: encode(CONTINUATION, b"x", f, 0, key),
        header=complete_header(),
    )
    violation(
        V.UNEXPECTED_CONTINUATION,
        lambda key, f=fin: encode(CONTINUATION, b"x", f, 0, key),
        header=complete_header(),
        before=[(TEXT, b"a", False, 0), (PING, b"", True, 0), (CONTINUATION, b"b", True, 0)],
    )
    for opcode in (TEXT, BINARY):
        violation(
            V.EXPECTED_CONTINUATION,
            lambda key, o=opcode, f=fin: encode(o, b"x", f, 0, key),
            header=complete_header(),
            before=[(opcode, b"a", False, 0), (PING, b"", True, 0)],
        )
violation(
    V.CLOSE_PAYLOAD_SHORT,
    lambda key: encode(CLOSE, b"\x03", key=key),
    header=lambda c: 3 if c else 7,
)
for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535):
    violation(
        V.CLOSE_CODE,
        lambda key, c=code: encode(CLOSE, c.to_bytes(2, "big") + b"why", key=key),
        header=lambda is_client: 7 if is_client else 11,
    )
for reason in (
    b"\xff",
    b"caf\xc3",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"ok \xe2\x82",
):
    violation(
        V.CLOSE_REASON_UTF8,
        lambda key, r=reason: encode(CLOSE, b"\x03\xe8" + r, key=key),
        header=lambda is_client, r=reason: (4 if is_client else 8) + len(r),
    )

EXAMPLES = [(kind, *example) for kind, examples in VIOLATIONS.items() for example in examples]
by_example = pytest.mark.parametrize(
    ("kind", "is_client", "bad", "known_at", "before", "options"),
    EXAMPLES,
    ids=[f"{e[0].name}-{'client' if e[1] else 'server'}-{i}" for i, e in enumerate(EXAMPLES)],
)

GOOD = [(PING, b"", True, 0), (BINARY, b"", True, 0)]


def test_every_violation_of_the_parser_has_an_example():
    # The parser gives out frames and knows nothing of the messages that they make.
    assert set(VIOLATIONS) == set(WSViolation) - {
        WSViolation.TEXT_UTF8,
        WSViolation.MESSAGE_TOO_BIG,
        WSViolation.TOO_MANY_FRAGMENTS,
    }


@by_example
def test_violation_is_found_as_soon_as_it_can_be(kind, is_client, bad, known_at, before, options):
    parser = FrameParser(is_client=is_client, **options)
    for frame in before:
        parser.feed(encode(*frame, key=key_for(is_client)))
        assert describe(parser.next_frame()) == frame
    for i in range(known_at - 1):
        parser.feed(bad[i : i + 1])
        assert parser.next_frame() is None, i
    parser.feed(bad[known_at - 1 : known_at])
    with pytest.raises(WSPeerProtocolError) as caught:
        parser.next_frame()
    assert caught.value.violation is kind


@by_example
def test_good_frames_come_before_the_violation(kind, is_client, bad, known_at, before, options):
    good = GOOD + before
    data = b"".join(encode(*frame, key=key_for(is_client)) for frame in good) + bad
    cuts = cut_points(len(data)) if len(data) < 100 else [0, 5, len(data)]
    for cut in cuts:
        parser = FrameParser(is_client=is_client, **options)
        seen, error = read(parser, data[:cut], data[cut:], b"")
        assert seen == good, cut
        assert error.violation is kind, cut


@by_example
def test_violation_is_final(kind, is_client, bad, known_at, before, options):
    parser = FrameParser(is_client=is_client, **options)
    good = b"".join(encode(*frame, key=key_for(is_client)) for frame in before)
    more = encode(BINARY, b"more", key=key_for(is_client))
    seen, first = read(parser, good + bad + more)
    assert seen == before
    for _ in range(2):
        parser.feed(more)
        with pytest.raises(WSPeerProtocolError) as caught:
            parser.next_frame()
        assert caught.value.violation is first.violation is kind
        with pytest.raises(WSPeerProtocolError):
            next(parser)


@pytest.mark.parametrize(
    ("data", "options", "text", "seen"),
    [
        (
            encode(BINARY, bytes(300)),
            {"max_frame_size": 299},
            "300 bytes, max_frame_size is 299",
            {"size": 300, "limit": 299},
        ),
        (
            b"\x82\x7f" + (2**40).to_bytes(8, "big"),
            {},
            "1099511627776 bytes, max_frame_size is 10485760",
            {"size": 2**40, "limit": 10 * 1024 * 1024},
        ),
        (encode(3, b""), {}, "3", {"seen": 3}),
        (encode(PING, b"", False), {}, "PING", {"seen": 9}),
        (encode(CLOSE, bytes(126)), {}, "CLOSE", {"seen": 8}),
        (encode(TEXT, b"", True, 7), {"allowed_rsv": 2}, "RSV1 and RSV3", {"seen": 5}),
        (encode(TEXT, b"", False) + encode(BINARY, b""), {}, "BINARY", {"seen": 2}),
        (encode(CLOSE, b"\x03\xed"), {}, "1005", {"seen": 1005}),
        (encode(CLOSE, b"\x03\xe8ab\xffc"), {}, "byte 2", {"offset": 2}),
        (encode(CLOSE, b"\x03\xe8ab\xc3"), {}, "byte 3", {"offset": 3}),
        (encode(CLOSE, b"\x03"), {}, None, {}),
        (encode(CONTINUATION, b""), {}, None, {}),
    ],
    ids=str,
)
def test_errors_say_what_was_seen(data, options, text, seen):
    nothing = dict.fromkeys(("size", "limit", "offset", "seen"))
    for cut in range(min(len(data), 100)):
        parser = FrameParser(is_client=True, **options)
        _, error = read(parser, data[:cut], data[cut:])
        assert {name: getattr(error, name) for name in nothing} == nothing | seen
        _, separator, said = str(error).rpartition("): ")
        assert (said if separator else None) == text


def test_errors_say_what_was_seen_behind_a_mask():
    for payload, seen in ((b"\x03\xed", (1005, None)), (b"\x03\xe8abc\xff", (None, 3))):
        _, error = read(FrameParser(is_client=False), encode(CLOSE, payload, key=KEY))
        assert (error.seen, error.offset) == seen


def test_errors_carry_the_close_code():
    _, error = read(FrameParser(is_client=True), encode(CLOSE, b"\x03\xe8\xff"))
    assert error.code == WSCloseCode.INVALID_TEXT
    _, error = read(FrameParser(is_client=True, max_frame_size=1), encode(TEXT, b"ab"))
    assert error.code == WSCloseCode.MESSAGE_TOO_BIG
    _, error = read(FrameParser(is_client=True), encode(3))
    assert error.code == WSCloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_close_codes_that_may_come(code):
    payload = code.to_bytes(2, "big") + "gründe €".encode()
    parser = FrameParser(is_client=True)
    parser.feed(encode(CLOSE, payload))
    frame = parser.next_frame()
    assert frame.get_close_code() == code
    assert frame.get_close_message() == payload[2:]
    assert frame.get_close_reason() == "gründe €"


# --- Settings of the parser ----------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("rsv", range(8))
def test_rsv_bits_by_what_is_allowed(rsv, is_client):
    data = encode(TEXT, b"x", True, rsv, key_for(is_client))
    for allowed in range(8):
        seen, error = read(FrameParser(is_client=is_client, allowed_rsv=allowed), data)
        if rsv & ~allowed:
            assert seen == []
            assert error.violation is WSViolation.RSV_SET
        else:
            assert (seen, error) == ([(TEXT, b"x", True, rsv)], None)


@ROLES
def test_unchecked_sequence(is_client):
    """Without `validate_sequence`, order and reserved bits are the application's business."""
    frames = [
        (CONTINUATION, b"stray", True, 0),
        (TEXT, b"a", False, 5),
        (BINARY, b"b", False, 0),
        (PING, b"c", True, 7),
        (TEXT, b"d", True, 2),
    ]
    data = b"".join(encode(*frame, key=key_for(is_client)) for frame in frames)
    parser = FrameParser(is_client=is_client, validate_sequence=False)
    assert read(parser, data) == (frames, None)
    parser.feed(encode(3, key=key_for(is_client)))
    with pytest.raises(WSPeerProtocolError):
        parser.next_frame()


@ROLES
@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536])
def test_max_frame_size(limit, is_client):
    key = key_for(is_client)
    parser = FrameParser(is_client=is_client, max_frame_size=limit)
    good = encode(BINARY, content(limit), key=key)
    assert read(parser, good) == ([(BINARY, content(limit), True, 0)], None)
    seen, error = read(parser, encode(BINARY, content(limit + 1), key=key))
    assert seen == []
    assert error.violation is WSViolation.FRAME_TOO_BIG


def test_max_frame_size_is_10_mib_by_default():
    for size, fits in ((10 * MIB, True), (10 * MIB + 1, False)):
        header = b"\x82\x7f" + size.to_bytes(8, "big")
        assert (read(FrameParser(is_client=True), header)[1] is None) == fits


def test_a_limit_beyond_all_memory_does_not_overflow():
    for size in (2**63 - 1, 2**63 - 14, 2**63 - 15, 2**62):
        parser = FrameParser(is_client=True, max_frame_size=sys.maxsize)
        seen, error = read(parser, b"\x82\x7f" + size.to_bytes(8, "big") + b"data")
        assert seen == []
        assert error is None or error.violation is WSViolation.FRAME_TOO_BIG


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, TypeError),
        ({"is_client": True, "unknown": 1}, TypeError),
        ({"is_client": True, "max_frame_size": -1}, ValueError),
        ({"is_client": True, "max_frame_size": "big"}, TypeError),
        ({"is_client": True, "allowed_rsv": -1}, ValueError),
        ({"is_client": True, "allowed_rsv": 8}, ValueError),
        ({"is_client": True, "allowed_rsv": None}, TypeError),
    ],
)
def test_bad_settings(options, error):
    with pytest.raises(error):
        FrameParser(**options)


def test_settings_are_keyword_only():
    with pytest.raises(TypeError):
        FrameParser(True)


# --- After CLOSE ---------------------------------------------------------------------------------


@ROLES
def test_nothing_comes_after_close(is_client):
    key = key_for(is_client)
    data = encode(CLOSE, b"\x03\xe8", key=key) + encode(TEXT, b"late", key=key) + b"\xff\xff\xff"
    for cut in cut_points(len(data)):
        parser = FrameParser(is_client=is_client)
        seen, error = read(parser, data[:cut], data[cut:], b"\x8f", encode(CLOSE, key=key))
        assert (seen, error) == ([(CLOSE, b"\x03\xe8", True, 0)], None)
        assert parser.close_received


def test_a_frame_before_close_knows_of_it_and_close_is_the_last():
    parser = FrameParser(is_client=True)
    parser.feed(encode(TEXT, b"x") + encode(CLOSE) + encode(TEXT, b"late"))
    first, close = parser
    assert (first.last_in_buffer, close.last_in_buffer) == (False, True)


def test_what_comes_after_close_is_not_stored():
    parser = FrameParser(is_client=True)
    assert read(parser, encode(CLOSE)) == ([(CLOSE, b"", True, 0)], None)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            parser.feed(bytes(64 * KIB))
        assert tracemalloc.get_traced_memory()[0] - before < 64 * KIB
    finally:
        tracemalloc.stop()


# --- WSFrame -------------------------------------------------------------------------------------


@ROLES
def test_attributes_of_a_frame(is_client):
    key = key_for(is_client)
    parser = FrameParser(is_client=is_client, allowed_rsv=7)
    tail = encode(PONG, b"next", key=key)
    parser.feed(encode(TEXT, "größe".encode(), False, 5, key) + tail)
    frame = parser.next_frame()
    assert type(frame) is WSFrame
    assert frame.msg_type is WSMsgType.TEXT
    assert (frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (False, True, False, True)
    assert (frame.payload_size, len(frame), frame.tail_size) == (7, 7, len(tail))
    assert not frame.last_in_buffer
    assert frame.get_payload_as_bytes() == "größe".encode()
    assert frame.get_payload_as_utf8_text() == "größe"
    assert bytes(frame) == bytes(memoryview(frame)) == "größe".encode()
    assert repr(frame) == (
        "WSFrame(TEXT, fin=False, rsv1=True, rsv2=False, rsv3=True, last_in_buffer=False, "
        f"payload_size=7, tail_size={len(tail)})"
    )
    assert parser.next_frame().last_in_buffer


def test_msg_type_is_the_member():
    for member in WSMsgType:
        parser = FrameParser(is_client=True, validate_sequence=False)
        parser.feed(encode(member))
        assert parser.next_frame().msg_type is member


def test_last_in_buffer_means_that_no_complete_frame_follows():
    data = encode(TEXT, b"one") + encode(PING, b"two")
    for cut in range(len(data) + 1):
        parser = FrameParser(is_client=True)
        parser.feed(data[:cut])
        frame = parser.next_frame()
        if frame is not None:
            assert frame.last_in_buffer == (cut < len(data))
            assert frame.tail_size == cut - 5


def test_last_in_buffer_before_a_violation():
    parser = FrameParser(is_client=True)
    parser.feed(encode(TEXT, b"one") + b"\x8f\x00")
    assert parser.next_frame().last_in_buffer


def test_attributes_are_read_only():
    parser = FrameParser(is_client=True)
    parser.feed(encode(TEXT, b"x"))
    frame = parser.next_frame()
    for name in (
        "msg_type", "fin", "rsv1", "rsv2", "rsv3", "last_in_buffer", "payload_size", "tail_size"
    ):  # fmt: skip
        with pytest.raises((AttributeError, TypeError)):
            setattr(frame, name, 1)
    with pytest.raises(AttributeError):
        frame.other = 1
    with pytest.raises((AttributeError, TypeError)):
        parser.close_received = True


def test_memoryview_of_a_frame():
    parser = FrameParser(is_client=False)
    parser.feed(encode(BINARY, b"abcdef", key=KEY))
    frame = parser.next_frame()
    for view in (frame.get_payload_as_memoryview(), memoryview(frame)):
        assert view.readonly
        assert (view.format, view.itemsize, view.ndim, view.shape) == ("B", 1, 1, (6,))
        assert view == b"abcdef"
        with pytest.raises(TypeError):
            view[0] = 1
    with pytest.raises((BufferError, TypeError)):
        struct.pack_into("B", frame, 0, 1)
    assert frame.get_payload_as_bytes() == b"abcdef"


def test_text_of_payloads():
    parser = FrameParser(is_client=True)
    parser.feed(encode(TEXT, b"plain") + encode(TEXT, "€".encode()) + encode(TEXT, b"\xff"))
    plain, euro, bad = parser
    assert plain.get_payload_as_ascii_text() == plain.get_payload_as_utf8_text() == "plain"
    assert euro.get_payload_as_utf8_text() == "€"
    with pytest.raises(UnicodeDecodeError):
        euro.get_payload_as_ascii_text()
    with pytest.raises(UnicodeDecodeError):
        bad.get_payload_as_utf8_text()


def test_close_accessors_without_code_reason_or_close():
    for data, code, message in (
        (encode(CLOSE), WSCloseCode.NO_INFO, None),
        (encode(CLOSE, b"\x03\xe8"), WSCloseCode.OK, None),
        (encode(PING, b"\x03\xe8reason"), WSCloseCode.NO_INFO, None),
    ):
        parser = FrameParser(is_client=True)
        parser.feed(data)
        frame = parser.next_frame()
        assert frame.get_close_code() == code
        assert frame.get_close_message() is message
        assert frame.get_close_reason() is message


def test_frames_outlive_the_parser_and_its_buffer():
    parser = FrameParser(is_client=False)
    kept = []
    for i in range(300):
        parser.feed(encode(BINARY, b"%d " % i * 40, key=KEY))
        frame = parser.next_frame()
        kept.append((frame, memoryview(frame)[2:9]))
    del parser, frame
    gc.collect()
    for i, (frame, view) in enumerate(kept):
        assert frame.get_payload_as_bytes() == b"%d " % i * 40
        assert view == (b"%d " % i * 40)[2:9]


def test_frames_cannot_be_made_copied_or_pickled():
    with pytest.raises(TypeError):
        WSFrame()
    parser = FrameParser(is_client=True)
    parser.feed(encode(TEXT, b"x"))
    frame = parser.next_frame()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(frame)
    blank = WSFrame.__new__(WSFrame)
    assert (blank.get_payload_as_bytes(), blank.payload_size) == (b"", 0)
    assert repr(blank)


# --- Cost ----------------------------------------------------------------------------------------


@ROLES
def test_a_large_frame_byte_by_byte(is_client):
    """A MiB in a million pieces: if a piece cost what is stored so far, this would not end."""
    payload = content(MIB)
    data = encode(BINARY, payload, key=key_for(is_client))
    parser = FrameParser(is_client=is_client)
    feed, next_frame = parser.feed, parser.next_frame
    for i in range(len(data) - 1):
        feed(data[i : i + 1])
        if next_frame() is not None:
            raise AssertionError(i)
    feed(data[-1:])
    assert next_frame().get_payload_as_bytes() == payload


def test_many_small_frames_fed_at_once():
    count = 300_000
    parser = FrameParser(is_client=True)
    parser.feed(encode(TEXT, b"x") * count)
    assert sum(1 for _ in parser) == count


def test_memory_of_a_large_frame_is_given_back():
    parser = FrameParser(is_client=False)
    data = encode(BINARY, bytes(8 * MIB), key=KEY)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        parser.feed(data)
        assert parser.next_frame().payload_size == 8 * MIB
        assert tracemalloc.get_traced_memory()[0] - before < 128 * KIB
        parser.feed(encode(TEXT, b"and on", key=KEY))
        assert parser.next_frame().get_payload_as_bytes() == b"and on"
    finally:
        tracemalloc.stop()


def test_a_claimed_length_costs_no_memory():
    parser = FrameParser(is_client=True, max_frame_size=2**40)
    tracemalloc.start()
    try:
        parser.feed(b"\x82\x7f" + (2**40).to_bytes(8, "big") + b"little")
        assert parser.next_frame() is None
        assert tracemalloc.get_traced_memory()[1] < 64 * KIB
    finally:
        tracemalloc.stop()


# --- Without asyncio -----------------------------------------------------------------------------


def test_in_plain_threads_over_a_socket_pair():
    """Client and server in a thread each, blocking sockets, reads of seven bytes."""
    ours, theirs = socket.socketpair()

    def frames(sock, parser):
        while not parser.close_received:
            data = sock.recv(7)
            if not data:
                return
            parser.feed(data)
            yield from parser

    def serve():
        with theirs:
            for frame in frames(theirs, FrameParser(is_client=False)):
                if frame.msg_type == CLOSE:
                    theirs.sendall(build_frame(CLOSE, frame))
                else:
                    theirs.sendall(build_frame(frame.msg_type, bytes(frame).upper(), fin=frame.fin))

    server = threading.Thread(target=serve)
    server.start()
    with ours:
        for message in (b"one", b"two" * 100, b""):
            ours.sendall(build_frame(TEXT, message, mask=True))
        ours.sendall(build_frame(CLOSE, build_close_payload(1000, "done"), mask=True))
        answers = [describe(frame) for frame in frames(ours, FrameParser(is_client=True))]
    server.join(20)
    assert answers == [
        (TEXT, b"ONE", True, 0),
        (TEXT, b"TWO" * 100, True, 0),
        (TEXT, b"", True, 0),
        (CLOSE, b"\x03\xe8done", True, 0),
    ]
