"""Sequences of frames, right or wrong in chosen places, to FrameParser and MessageAssembler.

Input: settings and cuts as in `parser_fuzzer`, a byte of limits, then a program that says which
frames the peer sends and what is spoilt in them. Random bytes seldom get past one header; a program
gets to fragmented messages, control frames between fragments, large payloads and characters cut in
two.
"""

from __future__ import annotations

from itertools import accumulate

from picows_fast import (
    FrameParser,
    WSFrame,
    WSMsgType,
    WSPeerProtocolError,
    WSViolation,
    build_close_payload,
    build_frame,
)
from picows_fast.layers.messages import MessageAssembler

from . import models
from .models import Limits, Outcome, Settings
from .parser_fuzzer import check, read_exact
from .source import Source, pieces, xor

MAX_FRAMES = 48
MAX_BYTES = 140 * 1024
# Zeros are empty frames, if the frame that they belonged to was spoilt.
MAX_PARSED_FRAMES = 5000

_MAX_MESSAGE_SIZES = (10 * 1024 * 1024, 100, 0, 66000)
_MAX_FRAGMENTS = (65536, 1, 3, 10)
_MAX_FRAME_SIZES = (10 * 1024 * 1024, 125, 4096, 70000)
_SIZES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 64, 124, 125, 126, 127, 128, 1000, 4096, 65535, 65536)
_SMALL_SIZES = _SIZES[:16]
# Characters of each size, the limits of their ranges, and beginnings and ends of them.
_TEXT = (
    b"a", b"market data", b"\x00", b"\x7f", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80",
    b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbf", b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbf",
    b"\xe2\x82\xac", b"\xf0\x9f\x92", b"\x92\xa9", b"\xe2", b"\x82\xac", b"\xc3", b"\xa4",
    b"x" * 70, b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xf8\x88",
    b"\xe0\x80",
)  # fmt: skip
_GOOD_TEXT = _TEXT[:20]
_CLOSE_CODES = (
    1000, 1001, 1003, 1007, 1014, 3000, 4999,
    0, 999, 1004, 1005, 1006, 1015, 2999, 5000,
)  # fmt: skip

# What may be wrong with a frame, one bit each.
_UNDUE_OPCODE, _TURNED_FIN, _WRONG_MASKING, _LONG_LENGTH, _LONGER_LENGTH, _HUGE_LENGTH = (
    1 << bit for bit in range(6)
)


def one_input(data: bytes) -> None:
    source = Source(data)
    flags, cuts, limits = source.byte(), source.byte(), source.byte()
    settings = Settings(
        is_client=bool(flags & 1),
        validate_sequence=not flags & 2,
        allowed_rsv=flags >> 2 & 7,
        max_frame_size=_MAX_FRAME_SIZES[flags >> 5 & 3],
    )
    received = write_frames(source, settings)
    parsed = models.parse(received, settings, MAX_PARSED_FRAMES)
    if len(parsed.frames) == MAX_PARSED_FRAMES:
        received = received[: parsed.ends[-1]]
    outcome = check(received, settings, cuts)
    check_messages(
        received, outcome, settings, cuts,
        Limits(_MAX_MESSAGE_SIZES[limits & 3], _MAX_FRAGMENTS[limits >> 2 & 3]),
    )  # fmt: skip


def check_messages(
    received: bytes, outcome: Outcome, settings: Settings, cuts: int, limits: Limits
) -> None:
    """Messages and violation are those of the model, however input is cut."""
    cut = list(pieces(received, cuts))
    expected, error = models.assemble(outcome.frames, limits)
    for chunks in ([received], cut):
        assert _assemble(chunks, settings, limits) == (expected, error or outcome.error)
    if read_exact is not None:
        assembler = MessageAssembler(**limits._asdict())
        parser = FrameParser(**settings._asdict())
        messages, found, arrived = read_exact(parser, cut, assembler)
        before = max((end for end in accumulate(map(len, cut)) if end < arrived), default=0)
        assert (messages, found or None) == _verdict(received[:arrived], settings, limits)
        assert _verdict(received[:before], settings, limits)[1] is None, "noticed too late"


def _verdict(
    received: bytes, settings: Settings, limits: Limits
) -> tuple[list[tuple[int, bytes]], int | None]:
    """What has to be known once these bytes have arrived."""
    outcome = models.parse(received, settings)
    messages, error = models.assemble(outcome.frames, limits)
    if error or outcome.error:
        return messages, error or outcome.error
    return models.assemble(outcome.frames, limits, outcome.unfinished)


def _assemble(
    chunks: list[bytes], settings: Settings, limits: Limits
) -> tuple[list[tuple[int, bytes]], int | None]:
    parser, assembler = FrameParser(**settings._asdict()), MessageAssembler(**limits._asdict())
    kept: list[WSFrame] = []
    violation = None
    try:
        for chunk in chunks:
            parser.feed(chunk)
            for frame in parser:
                violation = _add(assembler, frame, kept, violation)
                assert assembler.buffered <= limits.max_message_size
    except WSPeerProtocolError as error:
        violation = violation or error.violation
    messages = []
    for message in kept:
        assert message.fin
        assert message.msg_type >= models.CLOSE or not (
            message.rsv1 or message.rsv2 or message.rsv3
        )
        if message.msg_type == models.TEXT:
            message.get_payload_as_utf8_text()
        messages.append((int(message.msg_type), bytes(memoryview(message))))
    return messages, violation


def _add(
    assembler: MessageAssembler, frame: WSFrame, kept: list[WSFrame], violation: WSViolation | None
) -> WSViolation | None:
    """One more frame; after a violation, data frames repeat it and control frames still pass."""
    try:
        message = assembler.add(frame)
    except WSPeerProtocolError as error:
        assert frame.msg_type < models.CLOSE
        assert violation in (None, error.violation)
        assert str(error)
        assert assembler.buffered == 0
        return error.violation
    assert violation is None or frame.msg_type >= models.CLOSE
    if frame.msg_type >= models.CLOSE or (frame.fin and frame.msg_type != models.CONTINUATION):
        assert message is frame
    if message is not None and violation is None:
        kept.append(message)
    return violation


def write_frames(source: Source, settings: Settings) -> bytes:
    """What the peer sends, by the program in `source`."""
    sent = bytearray()
    in_message = False
    for _ in range(MAX_FRAMES):
        if not source or len(sent) > MAX_BYTES:
            break
        kind = source.byte()
        opcode, fin = models.CONTINUATION if in_message else 1 + (kind & 1), not kind & 2
        if kind & 0x1C == 0x04:
            opcode, fin = models.PING + (kind & 1), True
        elif kind & 0x1C == 0x08:
            opcode, fin = models.CLOSE, True
        defects = source.byte() if kind & 0xE0 == 0xE0 else 0
        if defects & _UNDUE_OPCODE:
            opcode = source.byte() % 16
        if defects & _TURNED_FIN:
            fin = not fin
        rsv = defects >> 6
        if rsv:
            rsv = source.byte() & 7
        payload = _close_payload(source) if opcode == models.CLOSE else _payload(source, opcode)
        masked = settings.is_client == bool(defects & _WRONG_MASKING)
        sent += _encode(
            opcode, payload, fin, rsv, source.take(4).ljust(4, b"k") if masked else b"", defects
        )
        if opcode < 8:
            in_message = not fin
    _spoil(source, sent)
    return bytes(sent)


def _payload(source: Source, opcode: int) -> bytes:
    sizes = _SIZES if opcode < 8 or source.chance(5) else _SMALL_SIZES
    form = source.byte()
    if form < 96:  # text
        texts = _GOOD_TEXT if form < 80 else _TEXT
        return b"".join(source.choice(texts) for _ in range(form % 16))
    if form < 160:  # long text, cut where the size says
        size = source.choice(sizes)
        text = b"".join(source.choice(_TEXT) for _ in range(1 + form % 4))
        return (text * (size // len(text) + 1))[:size]
    if form < 224:
        return source.take(form % 32)
    return bytes([form]) * source.choice(sizes)


def _close_payload(source: Source) -> bytes:
    form = source.byte()
    if form < 32:
        return source.take(form % 8)
    code = source.choice(_CLOSE_CODES) if form < 192 else source.byte() << 8 | source.byte()
    reason = b"".join(source.choice(_TEXT) for _ in range(form % 8))
    payload = code.to_bytes(2, "big") + reason
    try:
        built = build_close_payload(code, reason)
    except ValueError as error:
        assert str(error)
        assert not models.is_close_payload(payload) or len(payload) > 125
    else:
        assert built == (payload if code else b"")
        assert models.is_close_payload(built)
        assert len(built) <= 125
        assert build_close_payload(code, reason.decode()) == built
    return payload


def _encode(opcode: int, payload: bytes, fin: bool, rsv: int, key: bytes, defects: int) -> bytes:
    size = len(payload)
    width = 0 if size < 126 else 2 if size < 65536 else 8
    if defects & _LONG_LENGTH and size < 65536:
        width = 2
    if defects & _LONGER_LENGTH:
        width = 8
    length = size.to_bytes(width, "big") if width else b""
    if defects & _HUGE_LENGTH:
        width, length = 8, bytes([0x7F + (defects & 1)]) + length.rjust(7, b"\xff")[-7:]
    code = {0: size, 2: 126, 8: 127}[width]
    head = bytes([0x80 * fin | rsv << 4 | opcode, 0x80 * bool(key) | code]) + length + key
    encoded = head + (xor(payload, key) if key else payload)
    if not defects:
        _check_building(opcode, payload, fin, bool(key), encoded)
    return encoded


def _check_building(opcode: int, payload: bytes, fin: bool, masked: bool, expected: bytes) -> None:
    """The package builds the same frame; masked, with a key of its own."""
    msg_type = WSMsgType(opcode)
    try:
        built = build_frame(msg_type, payload, fin=fin, mask=masked)
    except ValueError as error:
        assert str(error)
        assert opcode >= models.CLOSE
        assert len(payload) > 125
        return
    assert opcode < models.CLOSE or len(payload) <= 125
    if masked:
        start = len(built) - len(payload)
        assert built[: start - 4] == expected[: start - 4]
        assert xor(built[start:], built[start - 4 : start]) == payload
    else:
        assert built == expected
        if opcode == models.TEXT and models.is_utf8(payload):
            assert build_frame(msg_type, payload.decode(), fin=fin, mask=False) == expected
        if not payload:
            assert build_frame(msg_type, None, fin=fin, mask=False) == expected


def _spoil(source: Source, sent: bytearray) -> None:
    """What is left of the program changes bytes of what was written."""
    while source and sent:
        change, position = source.byte(), (source.byte() << 8 | source.byte()) % len(sent)
        if change < 64:
            sent[position] ^= 1 << change % 8
        elif change < 128:
            sent[position] = source.byte()
        elif change < 160:
            del sent[position]
        elif change < 192:
            sent[position:position] = source.take(1 + change % 8)
        elif change < 224:
            del sent[position:]
        else:
            sent += sent[position : position + 200]
