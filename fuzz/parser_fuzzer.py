"""Any bytes, in any pieces, to FrameParser: frames and error are those of the model.

Input: a byte of settings, a byte of cuts, then what the peer sends. `check` is also the oracle of
`messages_fuzzer`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from picows_fast import FrameParser, WSFrame, WSPeerProtocolError, WSViolation

from . import models
from .models import Outcome, Settings
from .source import pieces

try:
    from .exact import read_exact
except ImportError:  # built for fuzzing only
    read_exact = None

_MAX_FRAME_SIZES = (10 * 1024 * 1024, 0, 125, 70000)


def one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    flags, cuts = data[0], data[1]
    settings = Settings(
        is_client=bool(flags & 1),
        validate_sequence=not flags & 2,
        allowed_rsv=flags >> 2 & 7,
        max_frame_size=_MAX_FRAME_SIZES[flags >> 5 & 3],
    )
    check(data[2:], settings, cuts)


def check(received: bytes, settings: Settings, cuts: int) -> Outcome:
    """Whole and in pieces, `received` gives what the model says."""
    expected = models.parse(received, settings)
    _check_whole(received, settings, expected)
    cut = list(pieces(received, cuts))
    _check_pieces(cut, settings, expected)
    if read_exact is not None:
        for chunks in ([received], cut):
            seen, error, arrived = read_exact(FrameParser(**settings._asdict()), chunks)
            _check_outcome(seen, error or None, expected)
            if error:
                _check_error_time(chunks, arrived, expected)
    return expected


def describe(frame: WSFrame) -> tuple[int, bytes, bool, int]:
    rsv = 4 * frame.rsv1 + 2 * frame.rsv2 + frame.rsv3
    return int(frame.msg_type), frame.get_payload_as_bytes(), bool(frame.fin), rsv


def _check_outcome(seen: list[Any], error: int | None, expected: Outcome) -> None:
    assert seen == expected.frames, (seen, expected.frames)
    assert error == expected.error, (error, expected.error)


def _check_whole(received: bytes, settings: Settings, expected: Outcome) -> None:
    parser = FrameParser(**settings._asdict())
    parser.feed(received)
    kept: list[tuple[WSFrame, memoryview]] = []
    error = _drain(parser, lambda frame: kept.append((frame, memoryview(frame))))
    _check_outcome([describe(frame) for frame, _ in kept], error, expected)
    for number, (frame, view) in enumerate(kept):
        payload = expected.frames[number].payload
        assert view == payload
        assert frame.get_payload_as_memoryview() == payload
        assert len(frame) == frame.payload_size == len(payload)
        assert frame.tail_size == len(received) - expected.ends[number]
        assert bool(frame.last_in_buffer) == (
            number == len(kept) - 1 and not _close_ahead(expected)
        )
        _check_accessors(frame, payload)
    assert parser.close_received == expected.closed
    consumed = expected.ends[-1] if expected.ends else 0
    assert parser.buffered == len(received) - consumed
    if expected.closed:
        parser.feed(b"\xff" * 64)  # discarded, RFC 6455 5.5.1
        assert parser.next_frame() is None
        assert parser.buffered == len(received) - consumed


def _close_ahead(expected: Outcome) -> bool:
    """Whether the error is in the payload of a CLOSE, whose frame is complete and counts as one."""
    return expected.error in (
        WSViolation.CLOSE_PAYLOAD_SHORT, WSViolation.CLOSE_CODE, WSViolation.CLOSE_REASON_UTF8,
    )  # fmt: skip


def _check_pieces(cut: list[bytes], settings: Settings, expected: Outcome) -> None:
    parser = FrameParser(**settings._asdict())
    seen: list[tuple[int, bytes, bool, int]] = []
    arrived = 0
    for chunk in cut:
        arrived += len(chunk)
        # A read buffer is used again for the next read.
        buffer = bytearray(chunk)
        parser.feed(buffer)
        buffer[:] = bytes(len(buffer))
        error = _drain(parser, lambda frame: seen.append(describe(frame)))
        assert len(seen) == bisect_right(expected.ends, arrived), (
            "a complete frame was not delivered, or an incomplete one was"
        )
        if error is not None:
            _check_error_time(cut, arrived, expected)
            break
    else:
        error = None
    _check_outcome(seen, error, expected)


def _check_error_time(cut: Iterable[bytes], arrived: int, expected: Outcome) -> None:
    """The error came with the piece that brought its last byte."""
    total = 0
    for chunk in cut:
        total += len(chunk)
        if total >= expected.error_at:
            break
    assert arrived == total, (arrived, total)


def _drain(parser: FrameParser, deliver: Callable[[WSFrame], None]) -> WSViolation | None:
    """Deliver all that is complete; the violation that ends it, which every later call repeats."""
    try:
        for frame in parser:
            deliver(frame)
    except WSPeerProtocolError as error:
        assert str(error)
        assert error.close_reason
        assert error.code in (1002, 1007, 1009)
        try:
            parser.feed(b"\x81\x00")
            parser.next_frame()
        except WSPeerProtocolError as again:
            assert again.violation == error.violation
        else:
            raise AssertionError("the parser went on after a violation") from None
        return error.violation
    return None


def _check_accessors(frame: WSFrame, payload: bytes) -> None:
    if frame.msg_type == models.CLOSE:
        assert frame.get_close_code() == int.from_bytes(payload[:2], "big")
        assert frame.get_close_message() == (payload[2:] or None)
        assert frame.get_close_reason() == (payload[2:].decode() or None)
    else:
        assert frame.get_close_code() == 0
        assert frame.get_close_message() is None
        assert frame.get_close_reason() is None
    decoders = (
        ("utf-8", frame.get_payload_as_utf8_text),
        ("ascii", frame.get_payload_as_ascii_text),
    )
    for encoding, decode in decoders:
        try:
            text = payload.decode(encoding)
        except UnicodeDecodeError:
            try:
                decode()
            except UnicodeDecodeError:
                continue
            raise AssertionError(f"decoded what is not {encoding}") from None
        assert decode() == text
    assert repr(frame).startswith("WSFrame(")
