"""What FrameParser and MessageAssembler must make of bytes, by the letter of RFC 6455.

Shares no code with the package; the names of violations and the settings of the parser are all that
it takes from it. Written to be read beside section 5 of the RFC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from picows_fast import WSViolation

from .source import xor

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_LONGEST_HEADER = 14


class Settings(NamedTuple):
    is_client: bool = True
    max_frame_size: int = 10 * 1024 * 1024
    validate_sequence: bool = True
    allowed_rsv: int = 0


class Frame(NamedTuple):
    opcode: int
    payload: bytes
    fin: bool
    rsv: int


@dataclass
class Outcome:
    """What comes of bytes.

    `ends`: for each frame, how many bytes had to arrive for it. `error_at`: the same for the error.
    """

    frames: list[Frame] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    error: WSViolation | None = None
    error_at: int = 0
    closed: bool = False
    #: the last frame with as much of its payload as has arrived, if its header has
    unfinished: Frame | None = None


class _FoundError(Exception):
    def __init__(self, violation: WSViolation, arrived: int) -> None:
        super().__init__(violation)
        self.violation = violation
        self.arrived = arrived


def parse(data: bytes, settings: Settings, max_frames: int | None = None) -> Outcome:
    """The frames in `data`, and the violation that ends them. No more than the first `max_frames`
    are looked for.
    """
    outcome = Outcome()
    in_message = False
    position = 0
    while not outcome.closed and len(outcome.frames) != max_frames:
        try:
            read = _read_frame(data, position, settings, in_message)
        except _FoundError as error:
            outcome.error = error.violation
            outcome.error_at = position + error.arrived
            break
        if read is None:
            break
        frame, size = read
        if position + size > len(data):
            outcome.unfinished = frame
            break
        position += size
        outcome.frames.append(frame)
        outcome.ends.append(position)
        if frame.opcode < 8:
            in_message = not frame.fin
        outcome.closed = frame.opcode == CLOSE
    return outcome


def _read_frame(
    received: bytes, start: int, settings: Settings, in_message: bool
) -> tuple[Frame, int] | None:
    """The frame and its size, which is more than there is if the payload is not complete."""
    data = received[start : start + _LONGEST_HEADER]
    # 5.2: FIN, RSV1-3, opcode
    if len(data) < 1:
        return None
    fin = data[0] >= 0x80
    rsv = data[0] // 16 % 8
    opcode = data[0] % 16
    if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        raise _FoundError(WSViolation.RESERVED_OPCODE, 1)
    is_control = opcode >= 8
    if is_control and not fin:
        raise _FoundError(WSViolation.CONTROL_FRAGMENTED, 1)

    # 5.2: MASK, payload length
    if len(data) < 2:
        return None
    masked = data[1] >= 0x80
    length = data[1] % 128
    position = 2
    if is_control and length > 125:
        raise _FoundError(WSViolation.CONTROL_TOO_LONG, 2)
    if length > 125:
        width = 2 if length == 126 else 8
        if width == 8 and len(data) > 2 and data[2] >= 0x80:
            raise _FoundError(WSViolation.LENGTH_MSB_SET, 3)
        position += width
        if len(data) < position:
            return None
        length = int.from_bytes(data[2:position], "big")
        if length < (126 if width == 2 else 65536):
            raise _FoundError(WSViolation.LENGTH_NOT_MINIMAL, position)
    key = bytes(4)
    if masked:
        key = data[position : position + 4]
        position += 4
        if len(data) < position:
            return None

    # What the complete header breaks.
    if masked == settings.is_client:
        raise _FoundError(WSViolation.MASKED if masked else WSViolation.UNMASKED, position)
    if length > settings.max_frame_size:
        raise _FoundError(WSViolation.FRAME_TOO_BIG, position)
    if settings.validate_sequence:
        if any(rsv & bit and not settings.allowed_rsv & bit for bit in (1, 2, 4)):
            raise _FoundError(WSViolation.RSV_SET, position)
        if opcode == CONTINUATION and not in_message:
            raise _FoundError(WSViolation.UNEXPECTED_CONTINUATION, position)
        if opcode in (TEXT, BINARY) and in_message:
            raise _FoundError(WSViolation.EXPECTED_CONTINUATION, position)

    end = position + length
    payload = received[start + position : start + end]
    if any(key):
        payload = xor(payload, key)
    if opcode == CLOSE and len(payload) == length:
        _check_close(payload, end)
    return Frame(opcode, payload, fin, rsv), end


def _check_close(payload: bytes, end: int) -> None:
    """RFC 6455 5.5.1, 7.4."""
    if not payload:
        return
    if len(payload) == 1:
        raise _FoundError(WSViolation.CLOSE_PAYLOAD_SHORT, end)
    code = int.from_bytes(payload[:2], "big")
    registered = {*range(1000, 1015)} - {1004, 1005, 1006}
    if code not in registered and code // 1000 not in (3, 4):
        raise _FoundError(WSViolation.CLOSE_CODE, end)
    if not is_utf8(payload[2:]):
        raise _FoundError(WSViolation.CLOSE_REASON_UTF8, end)


def is_close_payload(payload: bytes) -> bool:
    try:
        _check_close(payload, 0)
    except _FoundError:
        return False
    return True


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# --- Messages ------------------------------------------------------------------------------------


class Limits(NamedTuple):
    max_message_size: int = 10 * 1024 * 1024
    max_fragments: int = 65536


def assemble(
    frames: Sequence[Frame], limits: Limits, unfinished: Frame | None = None
) -> tuple[list[tuple[int, bytes]], WSViolation | None]:
    """Messages and control frames up to the first violation (RFC 6455 5.4, 8.1).

    `unfinished`: a frame that has not come whole, judged by its place and its text once some has;
    with a reserved bit it may be compressed, and is not judged.
    """
    if unfinished is not None and (
        unfinished.opcode >= 8 or unfinished.rsv or not unfinished.payload
    ):
        unfinished = None
    messages: list[tuple[int, bytes]] = []
    opcode, payload, fragments = CONTINUATION, b"", 0
    for frame in [*frames, unfinished]:
        if frame is None:
            continue
        if frame.opcode >= 8:
            messages.append((frame.opcode, frame.payload))
            continue
        if frame.rsv and frame is not unfinished:
            return messages, WSViolation.RSV_SET
        if frame.opcode != CONTINUATION:
            if opcode != CONTINUATION:
                return messages, WSViolation.EXPECTED_CONTINUATION
            opcode, payload, fragments = frame.opcode, b"", 0
        elif opcode == CONTINUATION:
            return messages, WSViolation.UNEXPECTED_CONTINUATION
        fragments += 1
        payload += frame.payload
        complete = frame.fin
        if frame is unfinished:
            complete = False
        elif fragments > limits.max_fragments:
            return messages, WSViolation.TOO_MANY_FRAGMENTS
        elif len(payload) > limits.max_message_size:
            return messages, WSViolation.MESSAGE_TOO_BIG
        if opcode == TEXT and not (is_utf8(payload) if complete else may_become_utf8(payload)):
            return messages, WSViolation.TEXT_UTF8
        if complete:
            messages.append((opcode, payload))
            opcode = CONTINUATION
    return messages, None


def may_become_utf8(data: bytes) -> bool:
    """Whether some more bytes make it valid; if any do, the smallest or the largest ones do."""
    ends = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xbf", b"\xbf\xbf", b"\xbf\xbf\xbf")
    return any(is_utf8(data + end) for end in ends)
