"""core: the connection's life as the listener and the transport see it."""

from __future__ import annotations

import array
import asyncio
import functools
import gc
import logging
import os
import threading
import types
import weakref

import pytest

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSConnectionClosedError,
    WSDisconnectCause,
    WSListener,
    WSMsgType,
    WSState,
)

from .peers import connected
from .support import Echo, Recorder, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def connect(url, factory=Recorder, **options):
    return await picows_fast.ws_connect(factory, url, **options)


async def test_echo_and_closing_handshake(io_options):
    server_side = Echo()
    async with serving(lambda request: server_side, **io_options) as url:
        transport, client = await connect(url, **io_options)
        assert transport.state == WSState.OPEN
        transport.send(WSMsgType.TEXT, "hello")
        assert await client.frame() == (WSMsgType.TEXT, b"hello", True)
        transport.send_close(WSCloseCode.OK, "bye")
        assert transport.state == WSState.CLOSING
        await asyncio.wait_for(transport.wait_disconnected(), 10)
        await server_side.closed()
    assert transport.state == WSState.CLOSED
    assert transport.is_disconnected
    assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE
    assert transport.close_handshake.recv.code == WSCloseCode.OK
    assert transport.close_handshake.recv.reason == "bye"
    assert not transport.close_handshake.recv_then_sent
    assert client.events.count("disconnected") == 1


@pytest.mark.parametrize(
    ("arguments", "got"), [(("hello",), "str"), (("text", b"x"), "str"), ((), "nothing")]
)
async def test_send_says_what_it_takes_first(arguments, got):
    async with connected("client") as pair:
        with pytest.raises(
            TypeError, match=rf"^send\(\) takes a WSMsgType first.* got {got} first"
        ):
            pair.transport.send(*arguments)
        with pytest.raises(TypeError, match="takes a WSMsgType first"):
            picows_fast.build_frame("text", b"x")
        with pytest.raises(TypeError, match="bytes-like"):
            pair.transport.send(WSMsgType.TEXT, 5)
        with pytest.raises(TypeError, match="takes at least 2"):
            pair.transport.send(WSMsgType.TEXT)
        assert pair.transport.send(msg_type=1, message="x") is True


async def test_send_says_whether_the_frame_was_taken(link):
    listener = Recorder()
    async with link(listener, small_buffers=True) as pair:
        transport = pair.transport
        assert transport.send(WSMsgType.TEXT, "a") is True
        assert transport.send(WSMsgType.BINARY, bytearray(b"b"), fin=False) is True
        assert transport.send_ping() is True
        assert transport.send_pong("c") is True
        buffer = bytearray(14 + 50_000)
        assert transport.send_reuse_external_bytearray(WSMsgType.CONTINUATION, buffer, 14) is True
        assert transport.send(WSMsgType.BINARY, bytes(1_000_000)) is True  # most of it waits
        assert transport.send_close(1000) is True
        for result in (
            transport.send(WSMsgType.TEXT, "d"),
            transport.send(WSMsgType.CLOSE, b"\x03\xe8"),
            transport.send_ping(),
            transport.send_pong(),
            transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, 14),
            transport.send_close(1000),
        ):
            assert result is False
        opcodes = [(await pair.peer.read_frame())[0] for _ in range(7)]
        assert opcodes == [1, 2, 9, 10, 0, 2, 8]


@pytest.mark.parametrize("end", ["disconnect", "abort", "CLOSE of the peer", "backlog"])
async def test_raise_if_not_sent(link, end):
    options = {"max_write_backlog": 200_000} if end == "backlog" else {}
    async with link(small_buffers=True, raise_if_not_sent=True, **options) as pair:
        transport = pair.transport
        assert transport.send(WSMsgType.TEXT, "a") is True
        if end == "CLOSE of the peer":
            await pair.peer.send_close(1012, "restart")
            await pair.listener.frame()
            transport.send_close(1012)
        elif end == "backlog":
            with pytest.raises(ConnectionError, match="WRITE_BACKLOG"):
                transport.send(WSMsgType.BINARY, bytes(1_000_000))
        else:
            transport.disconnect(graceful=end == "disconnect")
        buffer = bytearray(14 + 50_000)
        for send in (
            functools.partial(transport.send, WSMsgType.TEXT, "b"),
            transport.send_ping,
            transport.send_pong,
            functools.partial(
                transport.send_reuse_external_bytearray, WSMsgType.BINARY, buffer, 14
            ),
        ):
            with pytest.raises(WSConnectionClosedError) as caught:
                send()
            assert caught.value.cause == transport.disconnect_cause
            if end == "CLOSE of the peer":
                assert (caught.value.close_code, caught.value.close_reason) == (1012, "restart")
        assert transport.send_close() is False
        assert transport.send(WSMsgType.CLOSE, b"") is False


async def test_a_callback_that_could_not_send_is_not_what_ended_the_connection(link, caplog):
    class Sender(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            transport.send_close()
            transport.send(WSMsgType.TEXT, "an order")

    async with link(Sender(), raise_if_not_sent=True) as pair:
        await pair.peer.send_close()
        assert await pair.peer.read_close() == (0, "")
        pair.peer.close()
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
        await pair.transport.wait_disconnected()
        assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000, 1_000_000, 5_000_000])
async def test_echo_sizes(size, io_options):
    payload = bytes(i * 7 & 0xFF for i in range(size % 65537)) * (1 + size // 65537)
    payload = payload[:size]
    async with serving(lambda request: Echo(), **io_options) as url:
        transport, client = await connect(url, **io_options)
        transport.send(WSMsgType.BINARY, payload)
        assert (await client.frame())[1] == payload
        transport.disconnect()
        await transport.wait_disconnected()


async def test_tls_echo(server_tls, client_tls, io_options):
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        transport, client = await connect(url, ssl_context=client_tls, **io_options)
        for size in (5, 20_000, 1_000_000):
            transport.send(WSMsgType.BINARY, b"x" * size)
        for i, size in enumerate((5, 20_000, 1_000_000)):
            assert (await client.frame(i))[1] == b"x" * size
        assert transport.is_secure
        assert transport.ssl_session is not None
        transport.send_close(1000)
        await asyncio.wait_for(transport.wait_disconnected(), 10)
    assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE


# --- Sending

PAYLOADS = [
    ("", b""),
    ("text", b"text"),
    ("é€𝄞", "é€𝄞".encode()),
    (b"", b""),
    (b"bytes", b"bytes"),
    (bytearray(b"bytearray"), b"bytearray"),
    (memoryview(b"memoryview")[2:], b"moryview"),
    (array.array("I", [1, 2, 3]), array.array("I", [1, 2, 3]).tobytes()),
    (None, b""),
]


@pytest.mark.parametrize(
    ("message", "payload"),
    PAYLOADS,
    ids=[f"{type(message).__name__}{len(payload)}" for message, payload in PAYLOADS],
)
async def test_kinds_of_messages(side, message, payload):
    async with connected(side) as pair:
        pair.transport.send(WSMsgType.BINARY, message)
        assert await pair.peer.read_frame() == (WSMsgType.BINARY, payload)
        pair.transport.send_ping(message)
        assert await pair.peer.read_frame() == (WSMsgType.PING, payload)
        pair.transport.send_pong(message)
        assert await pair.peer.read_frame() == (WSMsgType.PONG, payload)


async def test_flags_on_the_wire(side):
    """fin, rsv1, rsv2, rsv3 by position and by name, and each alone."""
    async with connected(side) as pair:
        for args, first in (
            ((True, False, False, False), 0x82),
            ((False, False, False, False), 0x02),
            ((True, True, False, False), 0xC2),
            ((True, False, True, False), 0xA2),
            ((True, False, False, True), 0x92),
        ):
            names = ("fin", "rsv1", "rsv2", "rsv3")
            pair.transport.send(WSMsgType.BINARY, b"x", *args)
            pair.transport.send(WSMsgType.BINARY, b"x", **dict(zip(names, args, strict=True)))
            buffer = bytearray(14) + b"x" * 3000
            pair.transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, 14, *args)
            for _ in range(3):
                assert (await pair.peer.readexactly(1))[0] == first
                pair.peer.data[:0] = bytes([first])
                await pair.peer.read_frame()


async def test_fragments(link):
    async with link() as pair:
        for msg_type, text, fin in (
            (WSMsgType.TEXT, "a", False),
            (WSMsgType.CONTINUATION, "b", False),
            (WSMsgType.PING, "p", True),
            (WSMsgType.CONTINUATION, "c", True),
        ):
            pair.transport.send(msg_type, text, fin)
            if msg_type != WSMsgType.PING:  # the answer would be among what is read below
                await pair.peer.send(msg_type, text, fin=fin)
        got = [await pair.peer.read_frame() for _ in range(4)]
        assert [payload for _, payload in got] == [b"a", b"b", b"p", b"c"]
        assert [kind for kind, _ in got] == [1, 0, 9, 0]
        await pair.listener.frame(2)
        assert pair.listener.frames == [
            (WSMsgType.TEXT, b"a", False),
            (WSMsgType.CONTINUATION, b"b", False),
            (WSMsgType.CONTINUATION, b"c", True),
        ]


@pytest.mark.parametrize("size", [0, 1, 100, 1024, 1025, 16384, 16385, 70_000, 1_000_000])
async def test_external_bytearray(link, size):
    payload = os.urandom(size)
    async with link() as pair:
        for offset in (14, 15, 100):
            buffer = bytearray(offset) + payload
            pair.transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, offset)
            assert buffer[offset:] == payload
            assert buffer[: offset - 14] == bytes(offset - 14)
            buffer[:] = bytes(len(buffer))  # free for reuse
            assert await pair.peer.read_frame() == (2, payload)


async def test_the_message_is_free_for_reuse(link):
    """Whatever does not go out at once is kept as a copy."""
    size = 500_000
    async with link(small_buffers=True) as pair:
        buffer = bytearray(size)
        for i in range(5):
            buffer[:] = bytes([i]) * size
            pair.transport.send(WSMsgType.BINARY, buffer)
        buffer[:] = b"\xff" * size
        for i in range(5):
            assert await pair.peer.read_frame() == (2, bytes([i]) * size)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t: t.send(WSMsgType.TEXT, 5), TypeError),
        (lambda t: t.send(WSMsgType.TEXT, ["x"]), TypeError),
        (lambda t: t.send("TEXT", "x"), TypeError),
        (lambda t: t.send(WSMsgType.TEXT), TypeError),
        (lambda t: t.send(3, "x"), ValueError),
        (lambda t: t.send(11, "x"), ValueError),
        (lambda t: t.send(16, "x"), ValueError),
        (lambda t: t.send(-1, "x"), OverflowError),
        (lambda t: t.send(WSMsgType.TEXT, "\ud800"), UnicodeEncodeError),
        (lambda t: t.send(WSMsgType.TEXT, memoryview(b"abcd")[::2]), BufferError),
        (lambda t: t.send(WSMsgType.PING, "x", False), ValueError),
        (lambda t: t.send_ping(bytes(126)), ValueError),
        (lambda t: t.send_pong("x" * 126), ValueError),
        (lambda t: t.send_ping(5), TypeError),
        (lambda t: t.send(WSMsgType.CLOSE, b"\x03"), ValueError),
        (lambda t: t.send(WSMsgType.CLOSE, b"\x03\xee"), ValueError),
        (lambda t: t.send_close(1005), ValueError),
        (lambda t: t.send_close(1006), ValueError),
        (lambda t: t.send_close(999), ValueError),
        (lambda t: t.send_close(5000), ValueError),
        (lambda t: t.send_close(-1), ValueError),
        (lambda t: t.send_close(0, "reason"), ValueError),
        (lambda t: t.send_close(1000, "x" * 124), ValueError),
        (lambda t: t.send_close(1000, b"\xff"), ValueError),
        (lambda t: t.send_close("1000"), TypeError),
        (lambda t: t.send_close(1000, 5), TypeError),
        (lambda t: t.send_reuse_external_bytearray(WSMsgType.TEXT, bytearray(20), 13), ValueError),
        (lambda t: t.send_reuse_external_bytearray(WSMsgType.TEXT, bytearray(20), 21), ValueError),
        (lambda t: t.send_reuse_external_bytearray(WSMsgType.TEXT, bytearray(20), -1), ValueError),
        (lambda t: t.send_reuse_external_bytearray(WSMsgType.TEXT, bytes(20), 14), TypeError),
        (lambda t: t.send_reuse_external_bytearray(WSMsgType.TEXT, None, 14), TypeError),
        (lambda t: t.send_reuse_external_bytearray(3, bytearray(9999), 14), ValueError),
        (lambda t: t.send_reuse_external_bytearray(WSMsgType.PING, bytearray(140), 14), ValueError),
    ],
)
async def test_wrong_arguments_change_nothing(side, call, error):
    async with connected(side) as pair:
        with pytest.raises(error):
            call(pair.transport)
        assert pair.transport.state == WSState.OPEN
        assert not pair.transport.is_close_frame_sent
        pair.transport.send(WSMsgType.TEXT, "fine")
        assert await pair.peer.read_frame() == (1, b"fine")


@pytest.mark.parametrize(
    ("args", "payload"),
    [
        ((), b""),
        ((None,), b""),
        ((WSCloseCode.NO_INFO,), b""),
        ((0,), b""),
        ((1000,), b"\x03\xe8"),
        ((WSCloseCode.GOING_AWAY, "bye"), b"\x03\xe9bye"),
        ((4999, b"bytes"), b"\x13\x87bytes"),
        ((3000, "é" * 61), b"\x0b\xb8" + "é".encode() * 61),
    ],
)
async def test_close_payloads(side, args, payload):
    async with connected(side) as pair:
        pair.transport.send_close(*args)
        assert await pair.peer.read_frame() == (8, payload)


# --- What can be called from where


async def test_foreign_threads_are_refused(link):
    calls = {
        "send": lambda t: t.send(WSMsgType.TEXT, "x"),
        "send_reuse_external_bytearray": lambda t: t.send_reuse_external_bytearray(
            WSMsgType.TEXT, bytearray(20), 14
        ),
        "send_ping": lambda t: t.send_ping(),
        "send_pong": lambda t: t.send_pong(),
        "send_close": lambda t: t.send_close(),
        "disconnect": lambda t: t.disconnect(),
        "abort": lambda t: t.disconnect(False),
        "notify_user_specific_pong_received": lambda t: t.notify_user_specific_pong_received(),
        "pause_reading": lambda t: t.pause_reading(),
        "resume_reading": lambda t: t.resume_reading(),
        "cork": lambda t: t.cork(),
        "uncork": lambda t: t.uncork(),
        "measure_roundtrip_time": lambda t: asyncio.run(t.measure_roundtrip_time(1)),
        "wait_disconnected": lambda t: asyncio.run(t.wait_disconnected()),
    }
    raised = {}

    def call_all():
        for name, call in calls.items():
            try:
                call(pair.transport)
            except RuntimeError as error:
                raised[name] = str(error)

    async with link() as pair:
        thread = threading.Thread(target=call_all)
        thread.start()
        while thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert raised.keys() == calls.keys()
        assert "call_soon_threadsafe" in raised["send"]
        assert pair.transport.state == WSState.OPEN
        assert pair.transport.write_backlog == 0
        # What may be called: reading attributes.
        pair.transport.send(WSMsgType.TEXT, "only this was sent")
        assert await pair.peer.read_frame() == (1, b"only this was sent")


async def test_sending_from_a_thread_by_the_loop(link):
    async with link() as pair:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(
            loop.call_soon_threadsafe, pair.transport.send, WSMsgType.TEXT, "from a thread"
        )
        assert await pair.peer.read_frame() == (1, b"from a thread")


# --- Listeners and transports as objects


def test_transports_are_not_made_by_users():
    with pytest.raises(TypeError, match="ws_connect"):
        picows_fast.WSTransport()


async def test_a_listener_that_overrides_nothing(link):
    async with link(Bare()) as pair:
        await pair.peer.send(WSMsgType.TEXT, "nobody listens")
        await pair.peer.send(WSMsgType.PING, "but this is answered")
        assert await pair.peer.read_frame() == (10, b"but this is answered")
        await pair.peer.send_close(1000)


class Bare(picows_fast.WSListener):
    """Keeps the transport for `connected`, and sees no frame."""

    transport = None

    def on_ws_connected(self, transport):
        self.transport = transport


async def test_methods_may_be_set_on_the_object(link):
    """What is there when the connection is made is what is called."""
    listener = Recorder()
    seen = []
    listener.on_ws_frame = lambda transport, frame: seen.append(frame.get_payload_as_bytes())
    async with link(listener) as pair:
        await pair.peer.send(WSMsgType.TEXT, "x")
        await pair.peer.send(WSMsgType.PING)
        await pair.peer.read_frame()
    assert seen == [b"x"]
    assert listener.frames == []


async def test_nothing_is_kept_alive(link):
    """Listener and transport go when the connection is over and nobody holds them."""
    listener = Recorder()
    async with link(listener) as pair:
        await pair.peer.send(WSMsgType.TEXT, "x")
        await listener.frame()
        pair.peer.close()
        await listener.closed()
        await asyncio.sleep(0.01)
        listener.transport = None
        references = weakref.ref(listener), weakref.ref(pair.transport)
    del listener, pair
    for _ in range(20):  # a loop may hold the server's factory a few turns longer
        gc.collect()
        if not any(reference() for reference in references):
            break
        await asyncio.sleep(0.01)
    assert [reference() for reference in references] == [None, None]


async def test_weak_references_and_repr(side):
    async with connected(side) as pair:
        assert weakref.ref(pair.transport)() is pair.transport
        assert weakref.ref(pair.listener)() is pair.listener
        far = pair.peer.sock.getsockname()
        place = f"ws://127.0.0.1:{far[1]}" if side == "client" else f"127.0.0.1:{far[1]}"
        assert repr(pair.transport).startswith(f"<WSTransport {side} {place} open at ")
        pair.transport.send_close(1000, "x")
        assert " closing at " in repr(pair.transport)
        assert "WSCloseInfo(code=" in repr(pair.transport.close_handshake)


async def test_attributes_are_read_only(side):
    async with connected(side) as pair:
        for name in (
            "underlying_transport",
            "request",
            "response",
            "negotiated",
            "subprotocol",
            "close_handshake",
            "disconnect_cause",
            "disconnect_exception",
            "is_client_side",
            "is_secure",
            "is_close_frame_sent",
            "is_disconnected",
            "state",
            "listener",
            "ssl_session",
            "write_backlog",
            "is_reading_paused",
        ):
            with pytest.raises(AttributeError):
                setattr(pair.transport, name, getattr(pair.transport, name))


async def test_frames_are_given_as_they_came(link):
    """Attributes of the frames of one read: last_in_buffer, tail_size."""

    class Noting(Recorder):
        notes = ()

        def on_ws_frame(self, transport, frame):
            self.notes += ((frame.payload_size, frame.tail_size, frame.last_in_buffer),)
            super().on_ws_frame(transport, frame)

    async with link(Noting()) as pair:
        header = 6 if pair.peer.is_client else 2
        await pair.peer.send_bytes(
            b"".join(pair.peer.frame(WSMsgType.BINARY, bytes(size)) for size in (3, 0, 5))
            + pair.peer.frame(WSMsgType.BINARY, b"cut off")[:3]
        )
        await pair.listener.frame(2)
        assert pair.listener.notes == (
            (3, header + header + 5 + 3, 0),
            (0, header + 5 + 3, 0),
            (5, 3, 1),
        )


async def test_every_kind_of_callable_may_be_on_ws_frame():
    """Only an ordinary method is called without its method object."""
    calls = []

    def free(self, transport, frame):
        calls.append((type(self).__name__, frame.get_payload_as_bytes()))

    class Function(WSListener):
        on_ws_frame = free

    class Static(WSListener):
        @staticmethod
        def on_ws_frame(transport, frame):
            calls.append(("Static", frame.get_payload_as_bytes()))

    class Class(WSListener):
        @classmethod
        def on_ws_frame(cls, transport, frame):
            calls.append((cls.__name__, frame.get_payload_as_bytes()))

    class Partial(WSListener):
        on_ws_frame = functools.partialmethod(free)

    class Wrapped(WSListener):
        @functools.wraps(free)
        def on_ws_frame(self, *arguments, **named):
            assert not named
            free(self, *arguments)

    class Instance(WSListener):
        def __init__(self):
            self.on_ws_frame = types.MethodType(free, self)

    class Other(WSListener):
        def __init__(self):
            self.on_ws_frame = types.MethodType(free, "somebody else")

    class Callable(WSListener):
        class on_ws_frame:  # noqa: N801 - it stands for a method
            def __init__(self, transport, frame):
                calls.append(("Callable", frame.get_payload_as_bytes()))

    class Server(WSListener):
        def on_ws_connected(self, transport):
            for number in range(3):
                transport.send(WSMsgType.TEXT, f"{number}")
            transport.send_close(1000)

    kinds = [Function, Static, Class, Partial, Wrapped, Instance, Other, Callable]
    async with serving(lambda request: Server()) as url:
        for kind in kinds:
            transport, _ = await picows_fast.ws_connect(kind, url, enable_auto_close=True)
            await asyncio.wait_for(transport.wait_disconnected(), 20)
    names = ["str" if kind is Other else kind.__name__ for kind in kinds]
    received = [call for call in calls if len(call[1]) == 1]
    assert received == [(name, b"%d" % number) for name in names for number in range(3)]


# --- Frames that come together

SHORT = b"\x82\x05short"


@pytest.mark.parametrize(
    ("behind", "frames", "code"),
    [
        pytest.param(SHORT, [(2, b"short", True)], None, id="the same"),
        pytest.param(
            b"\x82\x00\x82\x64" + bytes(100),
            [(2, b"", True), (2, bytes(100), True)],
            None,
            id="sizes",
        ),
        pytest.param(b"\x81\x02hi", [(1, b"hi", True)], None, id="text"),
        pytest.param(
            b"\x8a\x02hi" + SHORT, [(10, b"hi", True), (2, b"short", True)], None, id="pong"
        ),
        pytest.param(
            b"\x02\x01a\x80\x01b\x80\x01c",
            [(2, b"a", False), (0, b"b", True)],
            1002,
            id="continuations",
        ),
        pytest.param(b"\x02\x01a\x82\x01b", [(2, b"a", False)], 1002, id="new message inside one"),
        pytest.param(b"\x80\x01c", [], 1002, id="continuation of nothing"),
        pytest.param(b"\x82\x85keysshort", [], 1002, id="masked"),
        pytest.param(b"\xc2\x05short", [], 1002, id="reserved bit"),
        pytest.param(b"\x83\x05short", [], 1002, id="reserved opcode"),
        pytest.param(b"\x82\x65" + bytes(101), [], 1009, id="above max_frame_size"),
        pytest.param(b"\x82\x7e\x00\x65" + bytes(101), [], 1002, id="longer length than needed"),
        pytest.param(
            b"\x82\x7e\x00\x7e" + bytes(126), [], 1009, id="longer length above max_frame_size"
        ),
    ],
)
@pytest.mark.parametrize("cut", [False, True], ids=["in one read", "cut"])
async def test_each_frame_of_a_read_is_checked(behind, frames, code, cut):
    """However much it looks like the one before."""
    listener = Recorder()
    async with connected("client", listener, max_frame_size=100) as pair:
        data = SHORT * 3 + behind
        pieces = [data[:-1], data[-1:]] if cut else [data]
        for piece in pieces:
            await pair.peer.send_bytes(piece)
            await asyncio.sleep(0.005)
        expected = [(2, b"short", True)] * 3 + frames
        await listener.until(lambda: len(listener.frames) >= len(expected))
        if code is not None:
            assert (await pair.peer.read_close())[0] == code
        assert [tuple(frame) for frame in listener.frames] == expected


class ClosingLog:
    """A logger that closes the connection from within send(), as a finalizer may."""

    transport: picows_fast.WSTransport | None = None

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        return True

    def debug(self, *arguments: object, **more: object) -> None:
        pass

    info = warning = error = exception = debug

    def log(self, *arguments: object, **more: object) -> None:
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.send_close(1000, "in the midst")


@pytest.mark.parametrize(
    ("msg_type", "payload"),
    [
        (WSMsgType.TEXT, b"x"),
        (WSMsgType.BINARY, bytes(2_000_000)),
        (WSMsgType.PING, b""),
        (WSMsgType.CLOSE, picows_fast.build_close_payload(1001)),
    ],
    ids=["small", "large", "ping", "close"],
)
async def test_nothing_follows_a_close_that_is_sent_in_the_midst(side, msg_type, payload):
    log = ClosingLog()
    async with connected(side, logger_name=log) as pair:
        log.transport = pair.transport
        assert not pair.transport.send(msg_type, payload)
        assert await pair.peer.read_close() == (1000, "in the midst")
        await pair.peer.send_close(1000)
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""


# --- What layers keep with a connection


class Kept:
    """Can be referred to weakly."""


async def test_each_layer_has_its_slot(link, listeners):
    """One layer's state is not seen by another, and none outlives the connection."""
    first, second = listeners.make_slot(), listeners.make_slot()
    assert second == first + 1
    async with link() as pair:
        transport = pair.transport
        assert listeners.state_of(transport, second) is None
        kept = Kept()
        reference = weakref.ref(kept)
        listeners.keep_state(transport, second, kept)
        assert listeners.state_of(transport, second) is kept
        assert listeners.state_of(transport, first) is None
        assert listeners.state_of(transport, second + 1) is None
        listeners.keep_state(transport, first, "other")
        assert listeners.state_of(transport, second) is kept
        assert listeners.state_of(transport, first) == "other"
        del kept
        transport.disconnect(graceful=False)
        await pair.listener.closed()
        assert reference() is None
        assert listeners.state_of(transport, first) is None
