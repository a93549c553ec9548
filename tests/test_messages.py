"""layers.messages: fragments joined, text checked, limits kept; alone and on real connections."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import picows_fast
from picows_fast import (
    FrameParser,
    WSCloseCode,
    WSDisconnectCause,
    WSFrame,
    WSMsgType,
    WSPeerProtocolError,
    WSTransport,
    WSViolation,
    build_frame,
)
from picows_fast.layers.messages import MessageAssembler, WSMessageListener

from .cython_build import load
from .frames import BINARY, CLOSE, CONTINUATION, KIB, MIB, PING, PONG, TEXT
from .peers import connected, drip
from .support import Recorder, serving

# Characters of one to four bytes.
WORD = "a\u00e9\u20ac\U0001f600z"
ENCODED = WORD.encode()

# The shortest starts that cannot become UTF-8 any more: their last byte is the bad one.
BAD_TEXTS = [
    b"\xff",
    b"\x80",
    b"\xc0",
    b"a\xc3a",
    b"\xe0\x80",
    b"\xe2\x82a",
    b"\xed\xa0",
    b"\xf0\x80",
    b"\xf4\x90",
    b"\xf5",
    "\u03ba\u1f79\u03c3\u03bc\u03b5".encode() + b"\xf4\x90",
]


def frames_of(*specs: tuple[WSMsgType, bytes, bool]) -> list[WSFrame]:
    """Frames of (msg_type, payload, fin), in whatever order."""
    frames = []
    for msg_type, payload, fin in specs:
        parser = FrameParser(is_client=True, validate_sequence=False)
        parser.feed(build_frame(msg_type, payload, fin=fin))
        frames.append(next(parser))
    return frames


def added(assembler: MessageAssembler, *specs: tuple[WSMsgType, bytes, bool]) -> list[Any]:
    """(msg_type, payload) of what comes out."""
    out = [assembler.add(frame) for frame in frames_of(*specs)]
    return [(frame.msg_type, bytes(frame)) for frame in out if frame is not None]


class Messages(WSMessageListener, Recorder):
    """Keeps messages and control frames as (msg_type, payload)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        Recorder.__init__(self)
        self.messages: list[tuple[WSMsgType, bytes]] = []
        self.controls: list[tuple[WSMsgType, bytes]] = []

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        assert payload.fin
        assert payload.msg_type is msg_type
        self.messages.append((msg_type, bytes(payload)))
        self._note("message")

    def on_ws_control(self, transport: WSTransport, frame: WSFrame) -> None:
        self.controls.append((frame.msg_type, bytes(frame)))
        self._note("control")
        super().on_ws_control(transport, frame)

    async def message(self, index: int = 0) -> tuple[WSMsgType, bytes]:
        await self.until(lambda: len(self.messages) > index)
        return self.messages[index]


# --- The assembler


def test_a_message_in_one_frame_is_that_frame():
    assembler = MessageAssembler()
    for frame in frames_of((TEXT, ENCODED, True), (BINARY, b"\xff", True), (TEXT, b"", True)):
        assert assembler.add(frame) is frame
    assert assembler.buffered == 0


def test_a_control_frame_is_returned_as_it_is():
    assembler = MessageAssembler()
    first, ping, pong, close, last = frames_of(
        (TEXT, b"a", False),
        (PING, b"\xff", True),
        (PONG, b"", True),
        (CLOSE, b"\x03\xe8", True),
        (CONTINUATION, b"b", True),
    )
    assert assembler.add(first) is None
    assert [assembler.add(frame) for frame in (ping, pong, close)] == [ping, pong, close]
    message = assembler.add(last)
    assert message is not None
    assert message.get_payload_as_utf8_text() == "ab"


def test_a_joined_message_is_a_frame():
    assembler = MessageAssembler()
    first, middle, last = frames_of(
        (TEXT, ENCODED[:2], False), (CONTINUATION, b"", False), (CONTINUATION, ENCODED[2:], True)
    )
    assert assembler.add(first) is None
    assert assembler.add(middle) is None
    assert assembler.buffered == 2
    message = assembler.add(last)
    assert assembler.buffered == 0
    assert message is not None
    assert message.msg_type is TEXT
    assert message.fin
    assert (message.rsv1, message.rsv2, message.rsv3) == (False, False, False)
    assert message.payload_size == len(message) == len(ENCODED)
    assert message.get_payload_as_utf8_text() == WORD
    view = message.get_payload_as_memoryview()
    del message, assembler
    assert bytes(view) == ENCODED


def test_a_message_of_empty_fragments():
    assembler = MessageAssembler(max_message_size=0)
    empty = [(BINARY, b"", False), (CONTINUATION, b"", False), (CONTINUATION, b"", True)]
    assert added(assembler, *empty) == [(BINARY, b"")]


def test_text_cut_anywhere():
    for one in range(len(ENCODED) + 1):
        for two in range(one, len(ENCODED) + 1):
            fragments = (
                (TEXT, ENCODED[:one], False),
                (CONTINUATION, ENCODED[one:two], False),
                (CONTINUATION, ENCODED[two:], True),
            )
            assert added(MessageAssembler(), *fragments, (TEXT, b"x", True)) == [
                (TEXT, ENCODED),
                (TEXT, b"x"),
            ]


@pytest.mark.parametrize("bad", BAD_TEXTS)
def test_bad_text_fails_with_the_frame_that_has_the_bad_byte(bad):
    for cut in range(len(bad)):
        assembler = MessageAssembler()
        first, second = frames_of((TEXT, bad[:cut], False), (CONTINUATION, bad[cut:], False))
        assert assembler.add(first) is None
        for _ in range(2):
            with pytest.raises(WSPeerProtocolError) as caught:
                assembler.add(second)
            assert caught.value.violation is WSViolation.TEXT_UTF8
            assert caught.value.code == 1007
            assert caught.value.offset == len(bad) - 1
            assert str(caught.value).endswith(f": byte {len(bad) - 1}")
    assert added(MessageAssembler(), (BINARY, bad, False), (CONTINUATION, bad, True))


@pytest.mark.parametrize("end", [1, 2, 3])
def test_text_that_ends_inside_a_character(end):
    text = "\U0001f600".encode()[:end]
    for specs in (
        [(TEXT, text, True)],
        [(TEXT, text, False), (CONTINUATION, b"", True)],
    ):
        with pytest.raises(WSPeerProtocolError) as caught:
            added(MessageAssembler(), *specs)
        assert caught.value.violation is WSViolation.TEXT_UTF8
        assert caught.value.offset == end


def test_limits_are_told():
    assembler = MessageAssembler(max_message_size=10, max_fragments=3)
    first, second = frames_of((BINARY, bytes(6), False), (CONTINUATION, bytes(7), False))
    assembler.add(first)
    with pytest.raises(
        WSPeerProtocolError, match="13 bytes so far, max_message_size is 10"
    ) as error:
        assembler.add(second)
    assert (error.value.size, error.value.limit) == (13, 10)
    assembler = MessageAssembler(max_message_size=10, max_fragments=3)
    with pytest.raises(WSPeerProtocolError, match="max_fragments is 3") as error:
        added(assembler, (TEXT, b"", False), *[(CONTINUATION, b"", False)] * 3)
    assert (error.value.size, error.value.limit) == (4, 3)


@pytest.mark.parametrize(
    ("specs", "violation"),
    [
        ([(CONTINUATION, b"", True)], WSViolation.UNEXPECTED_CONTINUATION),
        ([(CONTINUATION, b"", False)], WSViolation.UNEXPECTED_CONTINUATION),
        ([(TEXT, b"", True), (CONTINUATION, b"", True)], WSViolation.UNEXPECTED_CONTINUATION),
        (
            [(TEXT, b"", False), (CONTINUATION, b"", True), (CONTINUATION, b"", True)],
            WSViolation.UNEXPECTED_CONTINUATION,
        ),
        ([(TEXT, b"", False), (TEXT, b"", True)], WSViolation.EXPECTED_CONTINUATION),
        ([(TEXT, b"", False), (BINARY, b"", False)], WSViolation.EXPECTED_CONTINUATION),
    ],
)
def test_sequence(specs, violation):
    *good, bad = frames_of(*specs)
    assembler = MessageAssembler()
    for frame in good:
        assembler.add(frame)
    with pytest.raises(WSPeerProtocolError) as caught:
        assembler.add(bad)
    assert caught.value.violation is violation
    assert caught.value.code == 1002


@pytest.mark.parametrize("bit", ["rsv1", "rsv2", "rsv3"])
def test_reserved_bits_mean_nothing_here(bit):
    parser = FrameParser(is_client=True, allowed_rsv=7)
    parser.feed(build_frame(BINARY, b"", **{bit: True}))
    with pytest.raises(WSPeerProtocolError) as caught:
        MessageAssembler().add(next(parser))
    assert caught.value.violation is WSViolation.RSV_SET


@pytest.mark.parametrize("sizes", [[10], [4, 6], [10, 0], [0, 0, 10], [3, 3, 3, 1]])
def test_max_message_size(sizes):
    def message(sizes):
        last = len(sizes) - 1
        return [
            (CONTINUATION if i else BINARY, bytes(size), i == last) for i, size in enumerate(sizes)
        ]

    assembler = MessageAssembler(max_message_size=10)
    for _ in range(3):
        assert added(assembler, *message(sizes)) == [(BINARY, bytes(10))]
    for i in range(len(sizes)):
        larger = [*sizes[:i], sizes[i] + 1, *sizes[i + 1 :]]
        with pytest.raises(WSPeerProtocolError) as caught:
            added(MessageAssembler(max_message_size=10), *message(larger))
        assert caught.value.violation is WSViolation.MESSAGE_TOO_BIG
        assert caught.value.code == 1009


def test_max_fragments_counts_empty_ones():
    specs = [(TEXT, b"", False), (CONTINUATION, b"", False), (CONTINUATION, b"", True)]
    assembler = MessageAssembler(max_fragments=3)
    for _ in range(3):
        assert added(assembler, *specs) == [(TEXT, b"")]
    with pytest.raises(WSPeerProtocolError) as caught:
        added(MessageAssembler(max_fragments=2), *specs)
    assert caught.value.violation is WSViolation.TOO_MANY_FRAGMENTS
    assert caught.value.code == 1009
    alone = MessageAssembler(max_fragments=1)
    assert added(alone, (TEXT, b"", True), (TEXT, b"", True)) == [(TEXT, b"")] * 2


def test_a_failed_assembler_stays_failed_and_holds_nothing():
    good, bad, more, ping = frames_of(
        (TEXT, b"a", False), (TEXT, b"", True), (CONTINUATION, b"b", True), (PING, b"", True)
    )
    assembler = MessageAssembler()
    assembler.add(good)
    for frame in (bad, more, good, bad):
        with pytest.raises(WSPeerProtocolError) as caught:
            assembler.add(frame)
        assert caught.value.violation is WSViolation.EXPECTED_CONTINUATION
    assert assembler.buffered == 0
    assert assembler.add(ping) is ping


@pytest.mark.parametrize("make", [MessageAssembler, WSMessageListener])
def test_settings(make):
    assert make().max_message_size == 10 * MIB
    assert make().max_fragments == 65536
    assert make(max_message_size=0, max_fragments=1).max_fragments == 1
    with pytest.raises(ValueError, match="max_message_size"):
        make(max_message_size=-1)
    with pytest.raises(ValueError, match="max_fragments"):
        make(max_fragments=0)
    with pytest.raises(TypeError):
        make(max_message_size="1")
    with pytest.raises(TypeError):
        make(1)
    for bad in (None, b"", object()):
        with pytest.raises(TypeError):
            MessageAssembler().add(bad)


def test_memory_follows_what_has_come():
    if sys.gettrace():
        pytest.skip("what traces the lines takes memory, too")

    def fragment(msg_type, size, fin=False):
        (frame,) = frames_of((msg_type, bytes(size), fin))
        return frame

    first, empty = fragment(BINARY, 100), fragment(CONTINUATION, 0)
    more, last = fragment(CONTINUATION, 64 * KIB), fragment(CONTINUATION, 64 * KIB, True)
    assembler = MessageAssembler(max_message_size=8 * MIB)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assembler.add(first)
        for _ in range(10_000):
            assembler.add(empty)
        assert tracemalloc.get_traced_memory()[0] - before < 2 * KIB
        held = set()
        for i in range(1, 120):
            assembler.add(more)
            held.add((tracemalloc.get_traced_memory()[0] - before) // KIB)
            # What the test itself keeps counts, too.
            assert tracemalloc.get_traced_memory()[1] - before < 2 * (100 + i * 64 * KIB) + 8 * KIB
        assert len(held) < 12  # it grows by doubling
        message = assembler.add(last)
        # Exactly what it has, and nothing left with the assembler.
        assert message is not None
        assert len(message) <= tracemalloc.get_traced_memory()[0] - before < len(message) + 2 * KIB
        del message
        assert tracemalloc.get_traced_memory()[0] - before < 2 * KIB
        # The limit is the limit for what doubling reserves, too.
        assembler.add(first)
        for _ in range(127):
            assembler.add(more)
        assert tracemalloc.get_traced_memory()[1] - before < 8 * MIB + 2 * KIB
        with pytest.raises(WSPeerProtocolError):
            assembler.add(more)
        assert tracemalloc.get_traced_memory()[0] - before < 4 * KIB
    finally:
        tracemalloc.stop()


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def completed(data: bytes) -> list[bytes]:
    """The bytes with all ends that may be needed to find out whether they can become text."""
    ends = [bytes(end) for size in range(4) for end in itertools.product(b"\x80\xbf", repeat=size)]
    return [data + end for end in ends]


class Model:
    """What the assembler should do, said simply."""

    def __init__(self, max_message_size: int, max_fragments: int) -> None:
        self.max_message_size = max_message_size
        self.max_fragments = max_fragments
        self.parts: list[bytes] = []
        self.msg_type = CONTINUATION

    def add(self, msg_type: WSMsgType, payload: bytes, fin: bool) -> Any:
        if msg_type >= CLOSE:
            return msg_type, payload
        if msg_type != CONTINUATION and self.parts:
            return WSViolation.EXPECTED_CONTINUATION
        if msg_type == CONTINUATION and not self.parts:
            return WSViolation.UNEXPECTED_CONTINUATION
        self.msg_type = msg_type or self.msg_type
        self.parts.append(payload)
        if len(self.parts) > self.max_fragments:
            return WSViolation.TOO_MANY_FRAGMENTS
        message = b"".join(self.parts)
        if len(message) > self.max_message_size:
            return WSViolation.MESSAGE_TOO_BIG
        if self.msg_type == TEXT and not any(
            map(is_text, [message] if fin else completed(message))
        ):
            return WSViolation.TEXT_UTF8
        if not fin:
            return None
        self.parts = []
        return self.msg_type, message


TEXT_BYTES = st.text(max_size=8).map(str.encode)
PAYLOADS = st.one_of(
    TEXT_BYTES,
    st.binary(max_size=8),
    st.sampled_from([ENCODED[:cut] for cut in range(1, 11)]),
    st.sampled_from([ENCODED[cut:] for cut in range(1, 11)]),
    st.sampled_from(BAD_TEXTS),
)
MOSTLY_IN_ORDER = st.lists(
    st.tuples(
        st.sampled_from([None] * 8 + [TEXT, BINARY, CONTINUATION, PING, PONG]),
        st.sampled_from([TEXT, BINARY]),
        PAYLOADS,
        st.booleans(),
    ),
    max_size=20,
)


@given(MOSTLY_IN_ORDER, st.integers(0, 60), st.integers(1, 6))
@settings(max_examples=150)
def test_agrees_with_the_model(choices, max_message_size, max_fragments):
    model = Model(max_message_size, max_fragments)
    assembler = MessageAssembler(max_message_size=max_message_size, max_fragments=max_fragments)
    for forced, beginning, payload, fin in choices:
        msg_type = forced
        if msg_type is None:
            msg_type = CONTINUATION if model.parts else beginning
        spec = (msg_type, payload, fin or msg_type >= CLOSE)
        expected = model.add(*spec)
        if isinstance(expected, WSViolation):
            with pytest.raises(WSPeerProtocolError) as caught:
                added(assembler, spec)
            assert caught.value.violation is expected
            return
        assert added(assembler, spec) == ([] if expected is None else [expected])
        assert assembler.buffered == sum(map(len, model.parts))


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_text_cut_at_random_comes_out_as_it_was(texts, random):
    stream = b""
    for text in texts:
        data = text.encode()
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(4)))
        edges = [0, *cuts, len(data)]
        for i, (start, end) in enumerate(itertools.pairwise(edges)):
            stream += build_frame(
                CONTINUATION if i else TEXT, data[start:end], fin=i == len(cuts), mask=True
            )
            if random.random() < 0.3:
                stream += build_frame(PING, b"", mask=True)
    parser, assembler = FrameParser(is_client=False), MessageAssembler()
    came = []
    while stream:
        size = random.randrange(1, 20)
        parser.feed(stream[:size])
        stream = stream[size:]
        out = [assembler.add(frame) for frame in parser]
        came += [frame for frame in out if frame is not None and frame.msg_type == TEXT]
    assert [message.get_payload_as_utf8_text() for message in came] == texts


# --- Connections


async def test_every_message_comes_whole(link):
    async with link(Messages()) as (_, listener, peer):
        await peer.send(TEXT, WORD)
        await peer.send(BINARY, b"\xff" * 70_000, fin=False)
        await peer.send(CONTINUATION, b"", fin=False)
        await peer.send(CONTINUATION, b"\xfe" * 70_000)
        await peer.send(TEXT, b"")
        await peer.send(BINARY, b"\x80")
        await listener.message(3)
        assert listener.messages == [
            (TEXT, ENCODED),
            (BINARY, b"\xff" * 70_000 + b"\xfe" * 70_000),
            (TEXT, b""),
            (BINARY, b"\x80"),
        ]


@pytest.mark.parametrize("ahead", [False, True])
async def test_every_cut_of_frames_and_reads(side, ahead):
    listener = Messages(check_unfinished_text=ahead)
    async with connected(side, listener) as (_, _, peer):
        stream = b""
        for cut in range(len(ENCODED) + 1):
            stream += peer.frame(TEXT, ENCODED[:cut], fin=False)
            stream += peer.frame(CONTINUATION, ENCODED[cut:])
        await peer.send_raw(stream)
        await drip(peer, stream)
        await drip(peer, stream, [7] * len(stream))
        await listener.message(3 * (len(ENCODED) + 1) - 1)
    assert set(listener.messages) == {(TEXT, ENCODED)}
    assert len(listener.messages) == 3 * (len(ENCODED) + 1)


@pytest.mark.parametrize("bad", BAD_TEXTS)
async def test_bad_text_fails_at_once_in_an_unfinished_message(bad, side):
    async with connected(side, Messages()) as (transport, listener, peer):
        await peer.send(TEXT, "good")
        await peer.send(TEXT, bad[:-1], fin=False)
        await peer.send(CONTINUATION, bad[-1:], fin=False)
        offset = len(bad) - 1
        text = f"text message is not UTF-8 (RFC 6455 8.1): byte {offset}"
        assert await peer.read_close() == (1007, text)
        peer.close()
        await listener.closed()
        assert transport.disconnect_cause == WSDisconnectCause.PROTOCOL_ERROR
    assert listener.messages == [(TEXT, b"good")]


@pytest.mark.parametrize("bad", BAD_TEXTS)
async def test_bad_text_fails_at_once_in_an_unfinished_frame(bad, side):
    async with connected(side, Messages(check_unfinished_text=True)) as (_, listener, peer):
        head = peer.frame(TEXT, b"good") + peer.frame(TEXT, b"begun ", fin=False)
        frame = peer.frame(CONTINUATION, bad + b"rest", fin=False)
        await drip(peer, head + frame[: -len(b"rest")], [len(head)])
        offset = len(b"begun ") + len(bad) - 1
        text = f"text message is not UTF-8 (RFC 6455 8.1): byte {offset}"
        assert await peer.read_close() == (1007, text)
    assert listener.messages == [(TEXT, b"good")]


async def test_unfinished_frames_one_after_the_other(side):
    async with connected(side, Messages(check_unfinished_text=True)) as (_, listener, peer):
        for size in (1, 30, 5, 10_000, 100, 1):
            await drip(peer, peer.frame(TEXT, ENCODED * size), itertools.repeat(7 * size))
        await listener.message(5)
        assert [len(text) for _, text in listener.messages] == [
            len(ENCODED) * size for size in (1, 30, 5, 10_000, 100, 1)
        ]
        # The bad byte comes earlier in its frame than where the last one had been checked.
        await drip(peer, peer.frame(TEXT, ENCODED))
        await drip(peer, peer.frame(TEXT, b"a\xffbc")[:-2])
        assert (await peer.read_close())[0] == 1007


async def test_an_unfinished_frame_with_a_reserved_bit_is_not_text(side):
    listener = Messages(check_unfinished_text=True)
    async with connected(side, listener, validate_sequence=False) as (_, _, peer):
        await drip(peer, peer.frame(TEXT, b"\xff" * 100, rsv1=True))
        assert (await peer.read_close())[0] == 1002


async def test_bad_text_in_a_large_unfinished_frame(link):
    async with link(Messages(check_unfinished_text=True)) as (_, _, peer):
        frame = peer.frame(TEXT, ENCODED * 100_000 + b"\xff" + b"x" * 100_000)
        await peer.send_bytes(frame[:-100_000])
        assert (await peer.read_close())[0] == 1007


async def test_large_text_checked_as_it_comes_is_not_harmed(link):
    text = ENCODED * 200_000
    async with link(Messages(check_unfinished_text=True)) as (_, listener, peer):
        frame = peer.frame(TEXT, text)
        for start in range(0, len(frame), 99_991):
            await peer.send_bytes(frame[start : start + 99_991])
            await asyncio.sleep(0)
        await peer.send(TEXT, b"x")
        await listener.message(1)
    assert listener.messages == [(TEXT, text), (TEXT, b"x")]


@pytest.mark.parametrize("ahead", [False, True])
async def test_reading_paused_inside_a_frame(side, ahead):
    class Pausing(Messages):
        def on_ws_message(
            self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame
        ) -> None:
            super().on_ws_message(transport, msg_type, payload)
            transport.pause_reading()

    listener = Pausing(check_unfinished_text=ahead)
    async with connected(side, listener) as (transport, _, peer):
        frame = peer.frame(TEXT, ENCODED)
        await peer.send_raw(frame + frame[:-3])
        await listener.message(0)
        await peer.send_raw(frame[-3:] + frame[:9])
        transport.resume_reading()
        await listener.message(1)
        transport.resume_reading()
        await peer.send_raw(frame[9:])
        await listener.message(2)
    assert listener.messages == [(TEXT, ENCODED)] * 3


async def test_a_frame_out_of_order_whose_rest_never_comes(side):
    listener = Messages(check_unfinished_text=True)
    async with connected(side, listener, validate_sequence=False) as (_, _, peer):
        await peer.send(TEXT, b"a", fin=False)
        await peer.send_raw(peer.frame(TEXT, b"bcd")[:-1])
        assert (await peer.read_close())[0] == 1002


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(
    "frames",
    [[(CONTINUATION, True)], [(TEXT, False), (BINARY, True)]],
    ids=["stray", "interleaved"],
)
async def test_a_bad_sequence_fails_with_1002(frames, validate, side):
    async with connected(side, Messages(), validate_sequence=validate) as (_, listener, peer):
        for msg_type, fin in frames:
            await peer.send(msg_type, b"x", fin=fin)
        assert (await peer.read_close())[0] == 1002
    assert listener.messages == []


@pytest.mark.parametrize("limit", ["size", "frame", "count"])
@pytest.mark.parametrize("exception_ends", [False, True])
async def test_limits_fail_with_1009(limit, exception_ends, side, caplog):
    caplog.set_level(logging.INFO, "picows_fast")
    listener = Messages(max_message_size=1000, max_fragments=5 if limit == "count" else 100)
    async with connected(side, listener, disconnect_on_exception=exception_ends) as link:
        transport, _, peer = link
        if limit == "frame":
            await peer.send(BINARY, bytes(1001))
        else:
            await peer.send(BINARY, b"", fin=False)
            for _ in range(5):
                await peer.send(CONTINUATION, bytes(201 if limit == "size" else 0), fin=False)
        code, reason = await peer.read_close()
        assert code == 1009
        assert ("max_fragments" if limit == "count" else "max_message_size") in reason
        peer.close()
        if side == "client":
            with pytest.raises(WSPeerProtocolError):
                await asyncio.wait_for(transport.wait_disconnected(), 20)
        await listener.closed()
        assert transport.disconnect_cause == WSDisconnectCause.PROTOCOL_ERROR
        assert isinstance(transport.disconnect_exception, WSPeerProtocolError)
    # A stranger's doing is no error of ours.
    assert {record.levelname for record in caplog.records} == {"INFO"}
    (said,) = [text for text in caplog.messages if "breaks the protocol" in text]
    assert "larger than" in said or "more than" in said


async def test_control_frames_between_fragments(link):
    async with link(Messages()) as (_, listener, peer):
        await peer.send(TEXT, ENCODED[:2], fin=False)
        await peer.send(PING, b"\xff")
        assert await peer.read_frame() == (PONG, b"\xff")
        await peer.send(PONG, b"unsolicited")
        await listener.until(lambda: listener.controls)
        await peer.send(CONTINUATION, ENCODED[2:])
        assert await listener.message() == (TEXT, ENCODED)
        await peer.send(BINARY, b"begun", fin=False)
        await peer.send_close(4001, "bye")
        assert await peer.read_close() == (4001, "bye")
        assert listener.controls == [(PONG, b"unsolicited"), (CLOSE, b"\x0f\xa1bye")]
        assert listener.messages == [(TEXT, ENCODED)]


async def test_an_empty_close_is_answered(side):
    async with connected(side, Messages()) as (transport, listener, peer):
        await peer.send(CLOSE)
        assert await peer.read_frame() == (CLOSE, b"")
        peer.close()
        await listener.closed()
        assert transport.close_handshake.recv.code == WSCloseCode.NO_INFO
        assert transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME


async def test_control_frames_go_where_they_are_awaited(side):
    """Without on_ws_control nothing of them is needed, and a listener may do without all of it."""

    class Silent(WSMessageListener):
        def __init__(self, changed: Callable[[str], None]) -> None:  # no super().__init__()
            self.changed = changed
            self.transport: WSTransport | None = None

        def on_ws_connected(self, transport: WSTransport) -> None:
            self.transport = transport

        def on_ws_control(self, transport: WSTransport, frame: WSFrame) -> None:
            self.changed(frame.msg_type.name)

    names: asyncio.Queue[str] = asyncio.Queue()
    async with connected(side, Silent(names.put_nowait), enable_auto_pong=False) as (_, _, peer):
        await peer.send(TEXT, b"nobody wants it")
        await peer.send(PING)
        await peer.send(TEXT, b"nor this", fin=False)
        await peer.send(PONG)
        await peer.send_close()
        came = [await asyncio.wait_for(names.get(), 20) for _ in range(3)]
    assert came == ["PING", "PONG", "CLOSE"]


async def test_payloads_that_are_kept_stay_valid(link):
    kept: list[Any] = []

    class Keeping(Messages):
        def on_ws_message(
            self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame
        ) -> None:
            kept.append(payload)
            kept.append(payload.get_payload_as_memoryview())
            self._note("kept")

    sizes = [0, 1, 100, 5000, 40_000, 300_000]
    async with link(Keeping()) as (_, listener, peer):
        for i, size in enumerate(sizes):
            await peer.send(BINARY, bytes([i]) * size)
            await peer.send(BINARY, bytes([i]) * (size // 2), fin=False)
            await peer.send(CONTINUATION, bytes([i]) * (size - size // 2))
        await listener.until(lambda: len(kept) == 4 * len(sizes))
        for _ in range(100):
            await peer.send(BINARY, b"\xff" * 3000, fin=False)
            await peer.send(CONTINUATION, b"\xff" * 3000)
        await listener.until(lambda: len(kept) == 4 * len(sizes) + 200)
    del listener
    gc.collect()
    for i, size in enumerate(sizes):
        for payload in kept[4 * i : 4 * i + 4]:
            assert bytes(payload) == bytes([i]) * size


async def test_a_payload_can_be_sent():
    class Echo(WSMessageListener):
        def on_ws_message(
            self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame
        ) -> None:
            transport.send(msg_type, payload)

    async with serving(lambda request: Echo()) as url:
        transport, client = await picows_fast.ws_connect(Messages, url)
        transport.send(TEXT, WORD)
        transport.send(BINARY, b"x" * 100_000, False)
        transport.send(CONTINUATION, b"y" * 100_000)
        await client.message(1)
        assert client.messages == [(TEXT, ENCODED), (BINARY, b"x" * 100_000 + b"y" * 100_000)]
        transport.send_close(WSCloseCode.OK)
        await asyncio.wait_for(transport.wait_disconnected(), 20)
        assert transport.close_handshake.recv.code == WSCloseCode.OK


async def test_a_listener_of_many_connections_keeps_them_apart():
    shared = Messages()
    async with serving(lambda request: shared) as url:
        one, _ = await picows_fast.ws_connect(Messages, url)
        two, _ = await picows_fast.ws_connect(Messages, url)
        one.send(TEXT, ENCODED[:2], False)
        two.send(BINARY, b"\xff", False)
        await shared.until(lambda: shared.events.count("connected") == 2)
        one.send(CONTINUATION, ENCODED[2:])
        await shared.message(0)
        two.disconnect(graceful=False)
        await shared.closed()
        # The message that two began is nobody's.
        three, _ = await picows_fast.ws_connect(Messages, url)
        three.send(TEXT, "three")
        two.send(CONTINUATION, b"\xff")
        await shared.message(1)
        for transport in (one, three):
            transport.disconnect()
            await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert shared.messages == [(TEXT, ENCODED), (TEXT, b"three")]


async def test_what_a_callback_raises_ends_the_connection(side):
    class Failing(Messages):
        def on_ws_message(
            self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame
        ) -> None:
            raise picows_fast.WSProtocolError(4002, "no such channel")

    async with connected(side, Failing()) as (transport, listener, peer):
        await peer.send(TEXT, b"subscribe", fin=False)
        await peer.send(CONTINUATION, b"")
        assert await peer.read_close() == (4002, "no such channel")
        peer.close()
        await listener.closed()
        assert transport.disconnect_cause == WSDisconnectCause.LOCAL_REFUSAL


async def test_a_callback_that_raises_and_goes_on_gets_the_next_message(side):
    class Failing(Messages):
        def on_ws_message(
            self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame
        ) -> None:
            super().on_ws_message(transport, msg_type, payload)
            raise ValueError("not understood")

    async with connected(side, Failing(), disconnect_on_exception=False) as (_, listener, peer):
        for i in range(3):
            await peer.send(TEXT, str(i), fin=False)
            await peer.send(CONTINUATION, ENCODED)
        await listener.message(2)
    assert listener.messages == [(TEXT, str(i).encode() + ENCODED) for i in range(3)]


async def test_on_ws_frame_called_by_hand(side):
    async with connected(side, Messages(check_unfinished_text=True)) as (transport, listener, peer):
        # More of the unfinished frame has been checked than the frame from elsewhere has.
        await peer.send_raw(peer.frame(PONG) + peer.frame(TEXT, ENCODED * 5)[:-1])
        await listener.until(lambda: listener.controls)
        (frame,) = frames_of((TEXT, b"put in", True))
        listener.on_ws_frame(transport, frame)
        assert listener.messages == [(TEXT, b"put in")]
        for arguments in ((None, frame), (transport, None), (None, None)):
            with pytest.raises(TypeError):
                listener.on_ws_frame(*arguments)
            with pytest.raises(TypeError):
                WSMessageListener.on_ws_control(listener, *arguments)


async def test_methods_of_the_instance_count(side):
    got: asyncio.Queue[bytes] = asyncio.Queue()
    listener = Messages()
    listener.on_ws_message = lambda transport, msg_type, payload: got.put_nowait(bytes(payload))
    async with connected(side, listener) as (_, _, peer):
        await peer.send(TEXT, b"a", fin=False)
        await peer.send(CONTINUATION, b"b")
        assert await asyncio.wait_for(got.get(), 20) == b"ab"
    assert listener.messages == []


async def test_nothing_is_left_of_a_connection_inside_a_message(side):
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        listener = Messages()
        async with connected(side, listener) as link:
            await link.peer.send(BINARY, bytes(4 * MIB), fin=False)
            await link.peer.send(PONG)
            await listener.until(lambda: listener.controls)
            held = tracemalloc.get_traced_memory()[0]
            assert held > 4 * MIB
        await listener.closed()
        # The listener lives on; what its connection had joined does not.
        assert tracemalloc.get_traced_memory()[0] < held - 4 * MIB + 512 * KIB
        gone = weakref.ref(link.transport)
        listener.transport = None
        del link
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        tracemalloc.stop()
        gc.enable()


# --- Cython


@pytest.fixture(scope="session")
def cython_messages(cython_folder: Path) -> ModuleType:
    """tests/cython_user/messages.pyx, built and imported."""
    return load(cython_folder, "messages")


@pytest.mark.parametrize("kind", ["AtCSpeed", "WithDef", "Python under AtCSpeed", "Python over it"])
async def test_listeners_in_cython(cython_messages, kind, link):
    base = getattr(cython_messages, kind.split()[-1], cython_messages.AtCSpeed)
    names = {}
    if kind == "Python over it":

        def on_ws_message(self, transport, msg_type, payload):
            super(listener_class, self).on_ws_message(transport, msg_type, payload)

        names["on_ws_message"] = on_ws_message
    listener_class = type("Listener", (base,), names) if "Python" in kind else base
    async with link(listener_class(check_unfinished_text=True)) as (_, listener, peer):
        await peer.send(TEXT, WORD)
        await peer.send(TEXT, ENCODED[:2], fin=False)
        await peer.send(PONG, b"now")
        await peer.send(CONTINUATION, ENCODED[2:])
        await peer.send(BINARY, b"\xff" * 1000)
        await listener.until(lambda: len(listener.events) == 4)
        assert listener.events == [
            ("message", TEXT, ENCODED),
            ("control", PONG, b"now"),
            ("message", TEXT, ENCODED),
            ("message", BINARY, b"\xff" * 1000),
        ]
        await peer.send(TEXT, b"\xff", fin=False)
        assert (await peer.read_close())[0] == 1007


def test_the_assembler_in_cython(cython_messages):
    frames = frames_of((TEXT, b"ab", False), (CONTINUATION, b"cd", True), (BINARY, b"ef", True))
    assert cython_messages.assemble(frames, 4) == [b"abcd", b"ef"]
    with pytest.raises(WSPeerProtocolError):
        cython_messages.assemble(frames, 3)


def test_no_memory_for_fragments() -> None:
    """At each allocation in turn: a message comes whole, or none comes any more."""
    _testcapi = pytest.importorskip("_testcapi")
    parser = FrameParser(is_client=True)
    sent = [(TEXT, b"first ", False), (CONTINUATION, b"", False), (CONTINUATION, b"second", True)]
    for opcode, payload, fin in [*sent, (TEXT, b"next", True)]:
        parser.feed(picows_fast.build_frame(opcode, payload, fin=fin, mask=False))
    frames = list(parser)
    failed = 0
    for start in range(20):
        assembler = MessageAssembler()
        got: list[bytes | None] = []
        for frame in frames:
            error = None
            _testcapi.set_nomemory(start, start + 1)
            try:
                message = assembler.add(frame)
            except (MemoryError, WSPeerProtocolError) as caught:
                error = caught
            finally:
                _testcapi.remove_mem_hooks()
            if error is None:
                got.append(message and message.get_payload_as_bytes())
            elif isinstance(error, MemoryError):
                failed += 1
                for later in frames[1:]:
                    with pytest.raises(WSPeerProtocolError):
                        assembler.add(later)
                break
        assert got == [None, None, b"first second", b"next"][: len(got)]
    assert failed >= 2
