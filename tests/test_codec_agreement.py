"""codec: agreement with wsproto, an independent implementation, on generated streams.

What one of the two encodes, the other reads as it was meant, however it is cut, in both directions.
Of a damaged stream both give out the same before the same end. They may differ in this, and in
nothing else:

* wsproto reads messages, the parser frames. So wsproto also fails a text message that is not UTF-8,
  and shows a fragment of text only up to its last whole character.
* The close codes that were registered after RFC 6455 are all known to the parser; wsproto refuses
  1014.
* The parser judges role, order and reserved bits when the header is complete, wsproto some of that
  earlier and some with the first byte of payload; the opcode is judged by the parser one byte
  earlier. Some more bytes at the end of each stream make that come out the same.
* Of a frame as large as all memory that can be addressed, the parser says so at once.
"""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from picows_fast import (
    FrameParser,
    WSMsgType,
    WSPeerProtocolError,
    build_close_payload,
    build_frame,
)

from .frames import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, encode

DATA = (CONTINUATION, TEXT, BINARY)

agree = settings(
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --- Streams -------------------------------------------------------------------------------------

#: How often a drawn piece is repeated: payloads that are small to draw, with lengths of every form.
repeats = st.sampled_from([1, 1, 1, 1, 1, 2, 13, 126, 6554])
characters = st.text(st.sampled_from("a€\0é\U0001f600\u2028z"), max_size=10)
controls = st.tuples(
    st.sampled_from([PING, PONG]), st.binary(max_size=20), st.sampled_from([1, 1, 6])
)
messages = st.tuples(
    st.one_of(characters, st.binary(max_size=10)),
    repeats,
    st.lists(st.tuples(st.integers(0, 200), st.lists(controls, max_size=2)), max_size=3),
)
closes = st.one_of(
    st.none(),
    st.just((0, "")),
    st.tuples(
        st.sampled_from([*range(1000, 1004), *range(1007, 1014), 3000, 3456, 4000, 4999]),
        characters,
    ),
)
cuts = st.lists(st.integers(0, 300), max_size=6)


@st.composite
def sequences(draw):
    """Frames of a legal stream: [(msg_type, payload, fin)]."""
    frames = []
    for item in draw(st.lists(st.one_of(messages, controls), max_size=4)):
        if isinstance(item[0], WSMsgType):
            msg_type, payload, repeat = item
            frames.append((msg_type, payload * repeat, True))
            continue
        content, repeat, fragments = item
        msg_type = TEXT if isinstance(content, str) else BINARY
        rest = (content.encode() if isinstance(content, str) else content) * repeat
        for size, between in fragments:
            frames.append((msg_type, rest[:size], False))
            frames.extend((kind, payload * times, True) for kind, payload, times in between)
            msg_type, rest = CONTINUATION, rest[size:]
        frames.append((msg_type, rest, True))
    close = draw(closes)
    if close is not None:
        frames.append((CLOSE, build_close_payload(*close), True))
    return frames


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    """The stream cut in as many pieces; a cut counts from the one before it."""
    cut = []
    for place in places:
        cut.append(data[:place])
        data = data[place:]
    return [*cut, data]


# --- What each makes of a stream -----------------------------------------------------------------
#
# In common terms: ("frame", msg_type of the message, fin, payload or None in a text message),
# ("message", msg_type, payload) behind its last frame, and (msg_type, payload) of a control frame.


def ours(is_client: bool, data: list[bytes]):
    parser = FrameParser(is_client=is_client, max_frame_size=sys.maxsize)
    events = []
    msg_type, message = TEXT, b""
    try:
        for piece in data:
            parser.feed(piece)
            for frame in parser:
                payload = frame.get_payload_as_bytes()
                if frame.msg_type not in DATA:
                    events.append((frame.msg_type, payload))
                    continue
                if frame.msg_type != CONTINUATION:
                    msg_type, message = frame.msg_type, b""
                message += payload
                events.append(("frame", msg_type, frame.fin, None if msg_type == TEXT else payload))
                if frame.fin:
                    events.append(("message", msg_type, message))
    except WSPeerProtocolError as error:
        return events, error.code
    return events, None


def theirs(is_client: bool, data: list[bytes]):
    protocol = FrameProtocol(client=is_client, extensions=[])
    events = []
    payload, message = b"", b""
    try:
        for piece in data:
            protocol.receive_bytes(piece)
            for frame in protocol.received_frames():
                if frame.opcode == Opcode.CLOSE:
                    code, reason = frame.payload
                    content = b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()
                    events.append((CLOSE, content))
                elif frame.opcode.iscontrol():
                    events.append((WSMsgType(frame.opcode), bytes(frame.payload)))
                else:
                    # In pieces, as they come; text as far as it has whole characters.
                    text = isinstance(frame.payload, str)
                    part = frame.payload.encode() if text else bytes(frame.payload)
                    payload += part
                    message += part
                    if not frame.frame_finished:
                        continue
                    kind = WSMsgType(frame.opcode)
                    events.append(
                        ("frame", kind, frame.message_finished, None if text else payload)
                    )
                    payload = b""
                    if frame.message_finished:
                        events.append(("message", kind, message))
                        message = b""
    except ParseFailed as error:
        return events, int(error.code), "CLOSE" not in str(error)
    return events, None, False


def meant(frames):
    """The events of a legal sequence of frames."""
    events = []
    kind, message = TEXT, b""
    for msg_type, payload, fin in frames:
        if msg_type not in DATA:
            events.append((msg_type, payload))
            continue
        if msg_type != CONTINUATION:
            kind, message = msg_type, b""
        message += payload
        events.append(("frame", kind, fin, None if kind == TEXT else payload))
        if fin:
            events.append(("message", kind, message))
    return events


def encoded_by_wsproto(is_client: bool, frames) -> bytes:
    protocol = FrameProtocol(client=is_client, extensions=[])
    data = b""
    for msg_type, payload, fin in frames:
        if msg_type == CLOSE:
            if payload:
                data += protocol.close(int.from_bytes(payload[:2], "big"), payload[2:].decode())
            else:
                data += protocol.close()
        elif msg_type in (PING, PONG):
            data += (protocol.ping if msg_type == PING else protocol.pong)(payload)
        else:
            # send_data() takes fragments of text in whole characters only.
            data += protocol._serialize_frame(Opcode(msg_type), payload, fin)
    return data


# --- The tests -----------------------------------------------------------------------------------

DIRECTIONS = pytest.mark.parametrize("to_client", [True, False], ids=["to client", "to server"])


@DIRECTIONS
@agree
@given(frames=sequences(), places=cuts)
def test_legal_sequences(to_client, frames, places):
    """Each reads what the other encodes; with --thorough 5,000 sequences in each direction."""
    built = b"".join(
        build_frame(kind, payload, fin=fin, mask=not to_client) for kind, payload, fin in frames
    )
    events = meant(frames)
    assert theirs(to_client, [built])[:2] == (events, None)
    assert ours(to_client, pieces(built, places)) == (events, None)
    encoded = encoded_by_wsproto(not to_client, frames)
    assert ours(to_client, pieces(encoded, places)) == (events, None)
    assert len(encoded) == len(built)


damages = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["flip", "set", "insert", "delete", "cut"]),
        st.one_of(
            st.sampled_from([0x80, 0x40, 0x10, 0x08, 0x01, 0x0F, 0x7E, 0x7F]), st.integers(0, 255)
        ),
    ),
    min_size=1,
    max_size=3,
)


def damaged(data: bytes, damage) -> bytes:
    result = bytearray(data)
    for place, how, value in damage:
        if how == "insert":
            result.insert(place, value)
        elif place < len(result):
            if how == "flip":
                result[place] ^= value
            elif how == "set":
                result[place] = value
            elif how == "delete":
                del result[place]
            else:
                del result[place:]
    return bytes(result)


def assert_same_verdict(to_client: bool, data: bytes, places: list[int]) -> None:
    data += bytes(16)
    events, code, in_message = theirs(to_client, [data])
    our_events, our_code = ours(to_client, pieces(data, places))
    extra = our_events[len(events) :]
    if code == 1007 and in_message:
        assert our_events[: len(events)] == events
    elif code == 1002 and len(extra) == 1 and extra[0][:1] == (CLOSE,):
        assert extra[0][1].startswith((1014).to_bytes(2, "big"))
        assert (our_events[:-1], our_code) == (events, None)
    elif our_code == 1009:
        assert b"\x7f" + 6 * b"\xff" in data
    else:
        assert (our_events, our_code) == (events, code)


@DIRECTIONS
@agree
@given(frames=sequences(), damage=damages, places=cuts)
def test_damaged_streams(to_client, frames, damage, places):
    data = b"".join(encode(*frame, key=None if to_client else KEY) for frame in frames)
    assert_same_verdict(to_client, damaged(data, damage), places)


@DIRECTIONS
@agree
@given(
    heads=st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([0x81, 0x82, 0x01, 0x80, 0x00, 0x89, 0x88]), st.integers(0, 255)
            ),
            st.one_of(st.integers(0, 6), st.sampled_from([125, 126, 127])),
            st.booleans(),
            st.binary(max_size=8),
        ),
        max_size=6,
    ),
    places=cuts,
)
def test_streams_of_any_headers(to_client, heads, places):
    """Frame headers of any bits, mostly masked as they must be, before a few bytes of anything."""
    data = b"".join(
        bytes([first, size | (0x80 if to_client == (odd and size == 3) else 0)]) + rest
        for first, size, odd, rest in heads
    )
    assert_same_verdict(to_client, data, places)


def test_the_differences_are_what_they_are_said_to_be():
    invalid_text = encode(TEXT, b"\xff") + encode(PING)
    assert theirs(True, [invalid_text]) == ([], 1007, True)
    assert len(ours(True, [invalid_text])[0]) == 3
    bad_gateway = encode(CLOSE, build_close_payload(1014))
    assert theirs(True, [bad_gateway])[:2] == ([], 1002)
    assert ours(True, [bad_gateway]) == ([(CLOSE, b"\x03\xf6")], None)
