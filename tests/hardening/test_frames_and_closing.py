"""What is delivered and sent around the end of a connection, and which frames are refused."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from picows_fast import WSCloseCode, WSDisconnectCause, WSFrame, WSMsgType, WSTransport

from ..frames import BINARY, CLOSE, PING, PONG, TEXT
from ..support import Recorder, serving
from .peers import (
    KIB,
    deaf_client,
    set_send_buffer,
    waiting,
)

NORMAL = (1000).to_bytes(2, "big")


class Acting(Recorder):
    """Does something in the callback of its first frame."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if len(self.frames) == 1:
            self.action(transport)


def payloads(listener: Recorder) -> list[bytes]:
    return [payload for _, payload, _ in listener.frames]


def raise_error(transport: WSTransport) -> None:
    raise LookupError("no such book")


# --- Nothing more after the end


async def test_after_send_close_only_close_is_delivered(facing_peer):
    """Once we have sent CLOSE, data frames that still arrive are dropped: in the same read and in
    later ones. The peer's CLOSE is delivered."""
    listener = Acting(lambda transport: transport.send_close(1000))
    async with facing_peer(listener) as peer:
        peer.send(peer.frame(TEXT, b"1"), peer.frame(TEXT, b"2"), peer.frame(PING, b"3"))
        assert await peer.read() == (CLOSE, NORMAL)
        peer.send(peer.frame(TEXT, b"4"), peer.frame(CLOSE, NORMAL), peer.frame(TEXT, b"5"))
        await peer.end()
        await listener.closed()
        assert await peer.read_to_end() == []
    assert payloads(listener) == [b"1", NORMAL]


async def test_send_close_outside_a_callback_stops_delivery(facing_peer):
    """The same when CLOSE is not sent from a callback."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        peer.transport.send_close(1000)
        assert await peer.read() == (CLOSE, NORMAL)
        peer.send(peer.frame(TEXT, b"late"), peer.frame(CLOSE, NORMAL))
        await peer.end()
        await listener.closed()
    assert payloads(listener) == [NORMAL]


@pytest.mark.parametrize("graceful", [True, False])
async def test_nothing_is_delivered_after_disconnect(facing_peer, graceful):
    """disconnect() from a callback ends delivery at once: no frame behind the current one, CLOSE
    included."""
    listener = Acting(lambda transport: transport.disconnect(graceful))
    async with facing_peer(listener) as peer:
        peer.send(peer.frame(TEXT, b"1"), peer.frame(TEXT, b"2"), peer.frame(CLOSE, NORMAL))
        await peer.read_to_end()
        await peer.end()
        await listener.closed()
    assert payloads(listener) == [b"1"]
    assert listener.events.count("disconnected") == 1


async def test_nothing_is_delivered_after_disconnect_in_a_later_read(facing_peer):
    """Frames that arrive while a graceful disconnect is under way are dropped."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        peer.transport.disconnect()
        assert await peer.read_to_end() == []  # our FIN is there, so is what follows it here
        peer.send(peer.frame(TEXT, b"late"))
        await peer.end()
        await listener.closed()
    assert listener.frames == []


async def test_nothing_is_delivered_after_a_callback_raised(facing_peer, caplog):
    """A callback that raises gets no further frame, and the peer gets CLOSE 1011."""
    listener = Acting(raise_error)
    async with facing_peer(listener) as peer:
        peer.send(peer.frame(TEXT, b"1"), peer.frame(TEXT, b"2"))
        frames = await peer.read_to_end()
        peer.send(peer.frame(TEXT, b"3"))
        await peer.end()
        await listener.closed()
        if peer.transport.is_client_side:
            with pytest.raises(LookupError):
                await peer.transport.wait_disconnected()
    assert payloads(listener) == [b"1"]
    assert frames == [(CLOSE, (1011).to_bytes(2, "big"))]
    assert peer.transport.disconnect_cause == WSDisconnectCause.CALLBACK_ERROR


BAD_FRAMES = {
    "reserved opcode": lambda peer: peer.raw_frame(0x83),
    "reserved bit": lambda peer: peer.raw_frame(0xC1),
    "stray continuation": lambda peer: peer.raw_frame(0x80),
    "fragmented ping": lambda peer: peer.raw_frame(0x09),
    "close code": lambda peer: peer.raw_frame(0x88, (1005).to_bytes(2, "big")),
    "wrong masking": lambda peer: bytes((0x81, 0x80 if not peer.masks else 0)) + bytes(4),
    "too large": lambda peer: peer.frame(BINARY, bytes(1001)),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_a_good_frame_before_a_bad_one_is_answered_before_close(facing_peer, name):
    """Good frames in front of a bad one are delivered first: what their callbacks send reaches the
    peer, then comes CLOSE."""
    listener = Acting(lambda transport: transport.send(TEXT, b"answer"))
    async with facing_peer(listener, max_frame_size=1000) as peer:
        peer.send(peer.frame(TEXT, b"order"), BAD_FRAMES[name](peer), peer.frame(TEXT, b"more"))
        frames = await peer.read_to_end()
        await peer.end()
        await listener.closed()
    assert payloads(listener) == [b"order"]
    assert [opcode for opcode, _ in frames] == [TEXT, CLOSE]
    assert frames[0][1] == b"answer"
    assert frames[1][1][:2] == (1009 if name == "too large" else 1002).to_bytes(2, "big")
    assert peer.transport.disconnect_cause == WSDisconnectCause.PROTOCOL_ERROR


# --- CLOSE itself


async def test_close_without_a_code_has_no_payload(facing_peer):
    """send_close() without a code puts an empty payload on the wire, never the number 0 (RFC 6455
    7.4.1)."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        peer.transport.send_close()
        assert await peer.read() == (CLOSE, b"")
        assert peer.transport.close_handshake.sent.code == WSCloseCode.NO_INFO


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
async def test_close_codes_that_must_not_be_sent_are_refused(facing_peer, code):
    """An incoming CLOSE with a code outside RFC 6455 7.4 is a protocol error: answered by 1002, not
    delivered."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        peer.send(peer.raw_frame(0x88, code.to_bytes(2, "big")))
        frames = await peer.read_to_end()
        await peer.end()
        await listener.closed()
    assert len(frames) == 1
    assert frames[0][1][:2] == (1002).to_bytes(2, "big")
    assert listener.frames == []
    assert peer.transport.close_handshake.recv is None


@pytest.mark.parametrize(
    "code", [1000, 1001, 1003, 1007, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
)
async def test_close_codes_that_may_be_sent_are_read(facing_peer, code):
    """Every other code, an application's own included, is delivered and can be read."""
    listener = Recorder()
    async with facing_peer(listener, enable_auto_close=True) as peer:
        peer.send(peer.raw_frame(0x88, code.to_bytes(2, "big") + b"why"))
        assert await peer.read() == (CLOSE, code.to_bytes(2, "big"))
        await peer.end()
        await listener.closed()
    assert payloads(listener) == [code.to_bytes(2, "big") + b"why"]
    assert peer.transport.close_handshake.recv.code == code
    assert peer.transport.close_handshake.recv.reason == "why"


@pytest.mark.parametrize("pieces", ["together", "apart"])
@pytest.mark.parametrize("answered_by", ["listener", "setting"])
async def test_a_second_close_is_not_answered(facing_peer, pieces, answered_by):
    """CLOSE is delivered once and answered once, however often the peer sends it."""

    class Answering(Recorder):
        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            super().on_ws_frame(transport, frame)
            if answered_by == "listener":
                transport.send_close(frame.get_close_code())

    listener = Answering()
    async with facing_peer(listener, enable_auto_close=answered_by == "setting") as peer:
        close = peer.frame(CLOSE, NORMAL)
        if pieces == "together":
            peer.send(close, close)
        else:
            peer.send(close)
            assert await peer.read() == (CLOSE, NORMAL)
            peer.send(close)
        await peer.end()
        rest = await peer.read_to_end()
        await listener.closed()
    assert rest == ([(CLOSE, NORMAL)] if pieces == "together" else [])
    assert payloads(listener) == [NORMAL]


async def test_close_sent_as_any_frame_is_tracked(facing_peer):
    """send(CLOSE, ...) is the same as send_close(): it is remembered, and nothing can be sent
    behind it."""
    listener = Recorder()
    async with facing_peer(listener, close_timeout=0.1) as peer:
        peer.transport.send(WSMsgType.CLOSE, NORMAL + b"done")
        peer.transport.send(WSMsgType.TEXT, b"late")
        peer.transport.send_close(1001)
        assert await peer.read_to_end() == [(CLOSE, NORMAL + b"done")]
        assert peer.transport.is_close_frame_sent
        assert peer.transport.close_handshake.sent.code == WSCloseCode.OK
        assert peer.transport.close_handshake.sent.reason == "done"
        await listener.closed()  # the closing deadline runs, too
    assert peer.transport.disconnect_cause == WSDisconnectCause.CLOSE_TIMEOUT


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xed", b"\0\0", NORMAL + b"\xff"])
async def test_close_sent_as_any_frame_is_checked(facing_peer, payload):
    """send(CLOSE, ...) refuses a payload that no CLOSE may have, and the connection goes on."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        with pytest.raises(ValueError):
            peer.transport.send(WSMsgType.CLOSE, payload)
        peer.transport.send(WSMsgType.TEXT, b"on")
        assert await peer.read() == (TEXT, b"on")


async def test_nothing_is_sent_behind_close(facing_peer):
    """Whatever is called after CLOSE was sent, CLOSE is the last frame on the wire."""
    listener = Recorder()
    async with facing_peer(listener, enable_auto_ping=True, auto_ping_idle_timeout=0.02) as peer:
        transport = peer.transport
        transport.send_close(1000)
        transport.send(TEXT, b"x")
        transport.send(BINARY, bytes(100_000))
        transport.send_ping()
        transport.send_pong()
        transport.send_close(1001)
        transport.send_reuse_external_bytearray(BINARY, bytearray(100), 14)
        assert await peer.read() == (CLOSE, NORMAL)
        peer.send(peer.frame(PING, b"answer me"))
        await asyncio.sleep(0.06)
        transport.disconnect()
        assert await peer.read_to_end() == []


@pytest.mark.parametrize("msg_type", [PING, PONG, CLOSE])
async def test_control_frames_above_125_bytes_are_not_sent(facing_peer, msg_type):
    """A control frame of more than 125 bytes is refused with ValueError (RFC 6455 5.5), one of 125
    is sent."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        payload = NORMAL + b"x" * 123
        with pytest.raises(ValueError):
            peer.transport.send(msg_type, payload + b"x")
        external = bytearray(14) + payload
        with pytest.raises(ValueError):
            peer.transport.send_reuse_external_bytearray(msg_type, external + b"x", 14)
        for name in ("send_ping", "send_pong"):
            with pytest.raises(ValueError):
                getattr(peer.transport, name)(payload + b"x")
        with pytest.raises(ValueError):
            peer.transport.send_close(1000, b"x" * 124)
        peer.transport.send(TEXT, b"before")
        peer.transport.send(msg_type, payload)
        assert await peer.read() == (TEXT, b"before")
        assert await peer.read() == (msg_type, payload)


# --- Deadlines of the end


async def test_deadline_for_the_peers_close(facing_peer):
    """A peer that reads our CLOSE and never answers it loses the connection after close_timeout."""
    listener = Recorder()
    async with facing_peer(listener, close_timeout=0.1) as peer:
        peer.transport.send_close(1000)
        assert await peer.read_to_end() == [(CLOSE, NORMAL)]
        await listener.closed()
    assert peer.transport.disconnect_cause == WSDisconnectCause.CLOSE_TIMEOUT
    assert listener.events.count("disconnected") == 1


async def test_deadline_is_not_moved_by_a_peer_that_goes_on_sending(facing_peer):
    """Frames and PINGs that arrive after our CLOSE do not put the deadline off."""
    listener = Recorder()
    async with facing_peer(listener, close_timeout=0.15) as peer:
        peer.transport.send_close(1000)

        async def chatter() -> None:
            while True:
                peer.send(peer.frame(PING, b"x"), peer.frame(TEXT, b"y"))
                await asyncio.sleep(0.01)

        task = asyncio.ensure_future(chatter())
        try:
            await listener.closed()
        finally:
            task.cancel()
    assert listener.frames == []
    assert peer.transport.disconnect_cause == WSDisconnectCause.CLOSE_TIMEOUT


async def test_deadline_for_the_applications_close(facing_peer):
    """The peer's CLOSE that the application never answers ends the connection after
    close_timeout."""
    listener = Recorder()
    async with facing_peer(listener, close_timeout=0.1) as peer:
        peer.send(peer.frame(CLOSE, NORMAL))
        await listener.closed()
    assert payloads(listener) == [NORMAL]
    assert peer.transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
    assert peer.transport.close_handshake.sent is None


async def test_deadline_for_the_end_of_the_stream(facing_peer):
    """After the closing handshake, a peer that never ends its side of the stream is cut off."""
    listener = Recorder()
    async with facing_peer(listener, close_timeout=0.1, enable_auto_close=True) as peer:
        peer.send(peer.frame(CLOSE, NORMAL))
        assert await peer.read() == (CLOSE, NORMAL)
        await listener.closed()  # the peer's side of the stream is open still
    assert peer.transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME


async def test_deadline_for_a_peer_that_ignores_our_fin(facing_peer):
    """After disconnect(), a peer that never ends its side of the stream is cut off."""
    listener = Recorder()
    async with facing_peer(listener, close_timeout=0.1) as peer:
        peer.transport.disconnect()
        assert await peer.read_to_end() == []
        await listener.closed()
    assert peer.transport.disconnect_cause == WSDisconnectCause.LOCAL_DISCONNECT


async def test_deadline_for_a_peer_that_ignores_our_close_notify(facing_tls_peer):
    """The same over TLS, for a peer that does not even read our close_notify."""
    listener = Recorder()
    async with facing_tls_peer(listener, close_timeout=0.1) as peer:
        peer.writer.transport.pause_reading()
        peer.transport.disconnect()
        await listener.closed()
        peer.writer.transport.resume_reading()
    assert peer.transport.disconnect_cause == WSDisconnectCause.LOCAL_DISCONNECT


ENDINGS = {
    "disconnect": lambda transport: transport.disconnect(),
    "send_close": lambda transport: transport.send_close(1000),
    "both": lambda transport: (transport.send_close(1000), transport.disconnect()),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_deadline_for_a_peer_that_never_reads(io_options, ending):
    """What waits for a peer that does not read is given up after close_timeout."""
    listener = Recorder()
    async with serving(lambda request: listener, close_timeout=0.1, **io_options) as url:
        with contextlib.closing(await deaf_client(url)):
            await listener.until(lambda: listener.transport)
            transport = listener.transport
            set_send_buffer(transport)
            while waiting(transport) < 100 * KIB:
                transport.send(BINARY, bytes(10 * KIB))
            ENDINGS[ending](transport)
            await listener.closed()
    assert listener.events.count("disconnected") == 1
    assert waiting(transport) == 0


async def test_deadline_for_a_peer_that_errs_and_never_reads(io_options):
    """A peer that violates the protocol keeps nothing by not reading: its connection ends after
    close_timeout."""
    listener = Recorder()
    async with serving(lambda request: listener, close_timeout=0.1, **io_options) as url:
        with contextlib.closing(await deaf_client(url)) as sock:
            await listener.until(lambda: listener.transport)
            transport = listener.transport
            set_send_buffer(transport)
            while waiting(transport) < 100 * KIB:
                transport.send(BINARY, bytes(10 * KIB))
            await asyncio.get_running_loop().sock_sendall(sock, b"\x83\x80\0\0\0\0")
            await listener.closed()
    assert transport.disconnect_cause == WSDisconnectCause.PROTOCOL_ERROR
    assert waiting(transport) == 0


# --- Frames out of order


SEQUENCES = {
    "RSV1": [(0xC1, b"x")],
    "RSV2": [(0xA1, b"x")],
    "RSV3": [(0x91, b"x")],
    "RSV1 of a PING": [(0xC9, b"x")],
    "RSV1 of a continuation": [(0x01, b"x"), (0xC0, b"y")],
    "stray continuation": [(0x80, b"x")],
    "stray first continuation": [(0x00, b"x")],
    "continuation of a finished message": [(0x01, b"a"), (0x80, b"b"), (0x80, b"x")],
    "text within a text": [(0x01, b"a"), (0x81, b"x")],
    "binary within a text": [(0x01, b"a"), (0x82, b"x")],
    "fragment within a message": [(0x02, b"a"), (0x09 | 0x80, b"ping"), (0x01, b"x")],
}


@pytest.mark.parametrize("pieces", ["together", "apart"])
@pytest.mark.parametrize("name", SEQUENCES)
async def test_frames_out_of_order_are_refused(facing_peer, name, pieces):
    """Reserved bits that nobody negotiated, continuations of nothing and data frames in the midst
    of a fragmented message are protocol errors: CLOSE 1002, and the frame is not delivered."""
    listener = Recorder()
    async with facing_peer(listener) as peer:
        frames = [peer.raw_frame(*frame) for frame in SEQUENCES[name]]
        if pieces == "together":
            peer.send(*frames)
        else:
            for frame in frames:
                peer.send(frame)
                await asyncio.sleep(0.005)
        answers = [frame for frame in await peer.read_to_end() if frame[0] != PONG]
        await peer.end()
        await listener.closed()
    good = [payload for first, payload in SEQUENCES[name][:-1] if first & 0x0F != PING]
    assert payloads(listener) == good
    assert [payload[:2] for _, payload in answers] == [(1002).to_bytes(2, "big")]
    assert peer.transport.disconnect_cause == WSDisconnectCause.PROTOCOL_ERROR


@pytest.mark.parametrize("name", SEQUENCES)
async def test_the_check_of_the_order_is_a_setting(facing_peer, name):
    """With validate_sequence off, the same frames are delivered as they are."""
    listener = Recorder()
    async with facing_peer(listener, validate_sequence=False, enable_auto_pong=False) as peer:
        peer.send(*(peer.raw_frame(*frame) for frame in SEQUENCES[name]))
        await listener.frame(len(SEQUENCES[name]) - 1)
        peer.transport.send(TEXT, b"on")
        assert await peer.read() == (TEXT, b"on")
    assert payloads(listener) == [payload for _, payload in SEQUENCES[name]]


async def test_fragments_and_controls_in_order_are_delivered(facing_peer):
    """A control frame between two fragments is in order (RFC 6455 5.4)."""
    listener = Recorder()
    async with facing_peer(listener, enable_auto_pong=False) as peer:
        frames = [
            (0x01, b"a"),
            (0x89, b"p"),
            (0x00, b"b"),
            (0x8A, b"q"),
            (0x80, b"c"),
            (0x82, b"d"),
        ]
        peer.send(*(peer.raw_frame(*frame) for frame in frames))
        await listener.frame(5)
    assert payloads(listener) == [b"a", b"p", b"b", b"q", b"c", b"d"]


# --- The caller's buffer


@pytest.mark.parametrize("size", [0, 1, 7, 125, 126, 1000, 1025, 65536, 300_000])
async def test_an_external_bytearray_keeps_its_payload(facing_peer, size):
    """send_reuse_external_bytearray leaves the payload as it was, so that it can be sent again, and
    to others."""
    payload = bytes(i % 251 for i in range(size))
    listener = Recorder()
    async with facing_peer(listener) as peer:
        buffer = bytearray(b"h" * 20) + payload
        for _ in range(2):
            peer.transport.send_reuse_external_bytearray(BINARY, buffer, 20)
            assert bytes(buffer[20:]) == payload
            assert bytes(buffer[:6]) == b"h" * 6
            assert await peer.read() == (BINARY, payload)
