"""What a program can do wrong: objects made past their constructor, copies, calls in the wrong
state or thread, buffers that change while they are sent, numbers without measure.

Each is an exception or does nothing; none crashes the interpreter or spoils the connection.
"""

from __future__ import annotations

import array
import asyncio
import copy
import ctypes
import inspect
import logging
import mmap
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

import picows_fast
from picows_fast import WSListener, WSMsgType, WSState
from picows_fast.core import PICOWS_DEBUG_LL, WSTransport, new_transport
from picows_fast.layers.messages import MessageAssembler, WSMessageListener
from picows_fast.net.loop_transport import ForeignStream
from picows_fast.net.stream import ByteStream, ReadSpace, ReceiveBuffer, StreamHandler
from picows_fast.net.tls_bio import TlsStream
from picows_fast.protocol.codec import FrameParser, WSFrame

from ..peers import TIMEOUT, connected
from ..support import Echo, Recorder, server_frame, serving

if sys.platform != "win32":
    from picows_fast.net.tcp import TcpStream
    from picows_fast.net.tls_fd import DirectTlsStream

pytestmark = pytest.mark.usefixtures("leaves_nothing")

WRONG = (TypeError, ValueError, OverflowError, BufferError)  # ValueError has UnicodeEncodeError
STREAMS = [TlsStream, ForeignStream]
if sys.platform != "win32":
    STREAMS += [TcpStream, DirectTlsStream]


async def check_alive(pair):
    """The connection is open, and everything before this is as if it had not been."""
    assert pair.transport.state == WSState.OPEN
    pair.transport.send(WSMsgType.TEXT, "alive")
    assert await pair.peer.read_frame() == (1, b"alive")
    await pair.peer.send(WSMsgType.TEXT, "alive")
    await pair.listener.until(lambda: (WSMsgType.TEXT, b"alive", True) in pair.listener.frames)


# --- Objects exist whole or not at all


@pytest.mark.parametrize("cls", [WSTransport, *STREAMS])
def test_no_half_made_objects(cls):
    with pytest.raises(TypeError):
        cls()
    for base in (cls, object, StreamHandler, ByteStream):
        with pytest.raises(TypeError):
            base.__new__(cls)


def test_no_stream_and_no_transport_on_nothing():
    with pytest.raises(TypeError):
        TlsStream(None, None)
    with pytest.raises(TypeError):
        new_transport(None, None, None, None, None, None, True, True)


# Every method that Python code can see, the internal ones too, on objects whose __init__ was not
# called. In a process of its own: what this test is for ends the process.
POKE = """
import asyncio, faulthandler, itertools, socket
faulthandler.enable()
from picows_fast.protocol.codec import FrameParser, WSCloseHandshake, WSCloseInfo, WSFrame
from picows_fast.core import WSListener
from picows_fast.layers.messages import MessageAssembler, WSMessageListener
from picows_fast.net.loop_transport import ForeignStream
from picows_fast.net.stream import ByteStream, ReadSpace, ReceiveBuffer, StreamHandler
from picows_fast.net.tcp import TcpStream
from picows_fast.transport.sender import FrameSender

loop = asyncio.new_event_loop()

def bare(cls, *arguments):
    return cls.__new__(cls, *arguments)

def tcp_with_data():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.send(b"data")
    stream = TcpStream(loop, ours)
    stream.start()
    kept.append(theirs)
    return stream

def tcp_with_end():
    stream = tcp_with_data()
    kept.pop().close()
    return stream

def closed(make):
    stream = make()
    stream.abort()
    stream._tell_closed()
    return stream

MAKERS = [
    lambda: bare(WSFrame), lambda: bare(FrameParser), lambda: bare(WSListener),
    lambda: bare(WSCloseInfo), lambda: bare(WSCloseHandshake), lambda: bare(MessageAssembler),
    lambda: bare(WSMessageListener), lambda: bare(ByteStream), lambda: bare(StreamHandler),
    lambda: bare(ReceiveBuffer), lambda: bare(ReadSpace), lambda: bare(FrameSender),
    lambda: ForeignStream(loop),
    tcp_with_data, tcp_with_end, lambda: closed(lambda: ForeignStream(loop)),
    lambda: closed(tcp_with_data),
]
VALUES = [(), (None,), (0,), (-1,), (10**9,), (2**100,), (b"\\x81\\x01a",), (None, None), (1, None)]
kept, calls = [], 0
for make in MAKERS:
    for name in dir(make()):
        for arguments in VALUES:
            it = make()
            try:
                member = getattr(it, name)
                if callable(member):
                    print(type(it).__name__, name, arguments, flush=True)
                    calls += 1
                    member(*arguments)
                    member(*arguments)
            except Exception:
                pass
            if hasattr(it, "abort"):
                try:
                    it.abort()
                except AttributeError:
                    pass    # a stream that is none
            for sock in kept:
                sock.close()
            kept.clear()
loop.run_until_complete(asyncio.sleep(0))
loop.close()
print("calls:", calls)
"""


def test_methods_of_bare_objects_do_not_crash():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(POKE)],
        env={**os.environ, "PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout[-300:] + result.stderr
    assert int(result.stdout.rsplit("calls:", 1)[1]) > 1000


def test_listener_methods_called_by_hand():
    """They are public, so anybody may call them."""
    frame = WSFrame.__new__(WSFrame)
    for listener in (
        WSListener(),
        WSMessageListener(),
        WSMessageListener.__new__(WSMessageListener),
    ):
        with pytest.raises(TypeError):
            listener.send_user_specific_ping(None)
        with pytest.raises(TypeError):
            listener.is_user_specific_pong(None)
        for name in ("on_ws_connected", "on_ws_frame", "on_ws_disconnected"):
            with pytest.raises(TypeError):
                getattr(listener, name)(object(), object())
        assert listener.on_ws_connected(None) is None
    with pytest.raises(TypeError):
        WSMessageListener().on_ws_frame(None, frame)


async def test_init_once_more(link):
    """On objects that are in use."""
    async with link() as pair:
        for thing in (pair.transport, pair.transport.underlying_transport, pair.listener):
            for arguments in ((), (None,), (None, None)):
                try:
                    WSListener.__init__(thing, *arguments)
                except TypeError:
                    pass
                try:
                    if thing is not pair.listener:
                        thing.__init__(*arguments)
                except TypeError:
                    pass
        await check_alive(pair)


async def test_nothing_of_a_connection_can_be_copied(link):
    """A copy would share descriptors and memory with the original."""
    async with link() as pair:
        for thing in (pair.transport, pair.transport.underlying_transport):
            for duplicate in (
                copy.copy,
                copy.deepcopy,
                pickle.dumps,
                lambda it: pickle.dumps(it, 0),
                lambda it: it.__reduce__(),
                lambda it: it.__reduce_ex__(4),
                lambda it: it.__setstate__((1, 2, 3)),
            ):
                with pytest.raises((TypeError, AttributeError)):
                    duplicate(thing)
        await check_alive(pair)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrameParser(is_client=True),
        MessageAssembler,
        WSMessageListener,
        ReceiveBuffer,
        ReadSpace,
        StreamHandler,
        lambda: WSFrame.__new__(WSFrame),
    ],
)
def test_what_owns_memory_cannot_be_copied(make):
    thing = make()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps, lambda it: pickle.dumps(it, 0)):
        with pytest.raises(TypeError):
            duplicate(thing)


# --- The wrong state, the wrong loop

WRONG_CALLS = {
    "send None": lambda t: t.send(None, "x"),
    "send str": lambda t: t.send("TEXT", "x"),
    "send object": lambda t: t.send(object(), "x"),
    "send reserved": lambda t: t.send(5, "x"),
    "send negative": lambda t: t.send(-1, "x"),
    "send huge": lambda t: t.send(2**40, "x"),
    "send huger": lambda t: t.send(2**100, "x"),
    "send int": lambda t: t.send(WSMsgType.TEXT, 5),
    "send type": lambda t: t.send(WSMsgType.TEXT, bytes),
    "send surrogates": lambda t: t.send(WSMsgType.TEXT, "half \ud800"),
    "send scattered": lambda t: t.send(WSMsgType.BINARY, memoryview(b"abcd")[::-1]),
    "send released": lambda t: t.send(WSMsgType.BINARY, released()),
    "send closed mmap": lambda t: t.send(WSMsgType.BINARY, closed_mmap()),
    "send without payload": lambda t: t.send(WSMsgType.TEXT),
    "send keywords": lambda t: t.send(WSMsgType.TEXT, "x", final=True),
    "ping too long": lambda t: t.send_ping(bytes(126)),
    "ping surrogates": lambda t: t.send_ping("\udfff"),
    "pong object": lambda t: t.send_pong(object()),
    "close huge": lambda t: t.send_close(2**31),
    "close huger": lambda t: t.send_close(2**100),
    "close negative": lambda t: t.send_close(-(2**31)),
    "close 65536 + 1000": lambda t: t.send_close(66536),
    "close bytes": lambda t: t.send_close(b"\x03\xe8"),
    "close reason surrogates": lambda t: t.send_close(1000, "\ud800"),
    "close reason scattered": lambda t: t.send_close(1000, memoryview(b"\xc3\x28")),
    "close reason released": lambda t: t.send_close(1000, released()),
    "close reason without code": lambda t: t.send_close(None, "why"),
    "external huge": lambda t: t.send_reuse_external_bytearray(2, bytearray(20), 2**62),
    "external huger": lambda t: t.send_reuse_external_bytearray(2, bytearray(20), 2**64),
    "external negative": lambda t: t.send_reuse_external_bytearray(2, bytearray(20), -(2**63)),
    "external float": lambda t: t.send_reuse_external_bytearray(2, bytearray(20), 14.0),
    "external None": lambda t: t.send_reuse_external_bytearray(2, bytearray(20), None),
    "external small": lambda t: t.send_reuse_external_bytearray(2, bytearray(13), 14),
    "external empty": lambda t: t.send_reuse_external_bytearray(2, bytearray(), 0),
    "external view": lambda t: t.send_reuse_external_bytearray(2, memoryview(bytearray(20)), 14),
    "external control": lambda t: t.send_reuse_external_bytearray(9, bytearray(20), 14, False),
    "disconnect": lambda t: t.disconnect(Unsayable()),
    "send fin": lambda t: t.send(WSMsgType.TEXT, "x", Unsayable()),
    "send rsv3": lambda t: t.send(WSMsgType.TEXT, "x", True, False, False, Unsayable()),
}


class Unsayable:
    """Neither true nor false."""

    def __bool__(self):
        raise ValueError("neither")


def released():
    view = memoryview(bytearray(b"gone"))
    view.release()
    return view


def closed_mmap():
    memory = mmap.mmap(-1, 10)
    memory.close()
    return memory


RIGHT_CALLS = {
    "send": lambda t: t.send(WSMsgType.TEXT, "late"),
    "send large": lambda t: t.send(WSMsgType.BINARY, bytes(1_000_000)),
    "external": lambda t: t.send_reuse_external_bytearray(2, bytearray(5000), 14),
    "send close": lambda t: t.send(WSMsgType.CLOSE, b"\x03\xe8"),
    "send_ping": lambda t: t.send_ping("late"),
    "send_pong": lambda t: t.send_pong("late"),
    "send_close": lambda t: t.send_close(4000, "late"),
    "notify": lambda t: t.notify_user_specific_pong_received(),
    "pause_reading": lambda t: t.pause_reading(),
    "resume_reading": lambda t: t.resume_reading(),
    "cork": lambda t: t.cork(),
    "uncork": lambda t: t.uncork(),
}


async def test_wrong_arguments_in_every_state(link):
    """What is wrong is said in every state, and changes nothing in any."""

    def call_all(transport):
        for name, call in WRONG_CALLS.items():
            try:
                call(transport)
            except WRONG:
                continue
            pytest.fail(f"{name} raised nothing")

    async with link() as pair:
        call_all(pair.transport)
        await check_alive(pair)
        pair.transport.send_close(1000, "state: closing")
        call_all(pair.transport)
        assert await pair.peer.read_close() == (1000, "state: closing")
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await pair.listener.closed()
        assert pair.transport.state == WSState.CLOSED
        call_all(pair.transport)


async def test_right_calls_too_late(link):
    """After CLOSE and after the end they do nothing, in any order, and raise nothing."""
    async with link() as pair:
        pair.transport.send_close(1000)
        for call in RIGHT_CALLS.values():
            call(pair.transport)
        with pytest.raises(picows_fast.WSConnectionClosedError):
            await pair.transport.measure_roundtrip_time(1)
        assert await pair.transport.measure_roundtrip_time(0) == []
        assert pair.transport.close_handshake.sent.code == 1000
        assert await pair.peer.read_frame() == (8, b"\x03\xe8")
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await pair.listener.closed()
        cause = pair.transport.disconnect_cause
        for call in (
            *RIGHT_CALLS.values(),
            lambda t: t.disconnect(),
            lambda t: t.disconnect(False),
        ):
            call(pair.transport)
        with pytest.raises(picows_fast.WSConnectionClosedError):
            await pair.transport.measure_roundtrip_time(1)
        await pair.transport.wait_disconnected()
        assert pair.transport.disconnect_cause == cause
        assert pair.transport.close_handshake.sent.code == 1000
        assert pair.transport.write_backlog == 0
        assert not pair.transport.is_reading_paused
    assert pair.listener.events.count("disconnected") == 1


@pytest.mark.parametrize("rounds", [None, "1", 1.5, -1, -(2**100), object(), b"1"])
async def test_wrong_number_of_rounds(link, rounds):
    async with link() as pair:
        with pytest.raises((TypeError, ValueError)):
            await pair.transport.measure_roundtrip_time(rounds)
        await check_alive(pair)


async def test_more_rounds_than_there_is_time_for(link):
    """A number above all limits costs nothing in advance; cancelling ends it."""
    async with link() as pair:
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(2**100))
        for _ in range(20):
            opcode, payload = await pair.peer.read_frame()
            assert opcode == WSMsgType.PING
            await pair.peer.send(WSMsgType.PONG, payload)
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring


async def test_what_is_underneath(link):
    """The stream that bytes go through is shown, so it can be ended past the WebSocket layer."""
    for act in ("close", "abort"):
        async with link(Recorder(), close_timeout=0.2) as pair:
            stream = pair.transport.underlying_transport
            for name in ("start", "pause_reading", "resume_reading"):
                getattr(stream, name)()
            for arguments in ((-1, -1), (1, 2), (2**63, 0), ("1", 1)):
                with pytest.raises((*WRONG,)):
                    stream.set_write_buffer_limits(*arguments)
            await check_alive(pair)
            getattr(stream, act)()
            getattr(stream, act)()
            await pair.peer.read_to_end()
            pair.peer.close()
            await pair.listener.closed()
            for name in ("start", "pause_reading", "resume_reading", "close", "abort"):
                getattr(stream, name)()
            assert stream.get_write_buffer_size() == 0
            assert stream.is_closing()
            stream.get_extra_info("peername")
            stream.get_extra_info("ssl_object")
        assert pair.listener.events.count("disconnected") == 1


# --- Arguments that act


ENDS = {
    "abort": lambda t: t.disconnect(False),
    "disconnect": lambda t: t.disconnect(),
    "close": lambda t: t.send_close(1000),
}
USES = {
    "type": lambda t, it: t.send(it, "x"),
    "flag": lambda t, it: t.send(WSMsgType.TEXT, "x", it),
    "payload": lambda t, it: t.send(WSMsgType.BINARY, it),
    "code": lambda t, it: t.send_close(it, "x"),
    "reason": lambda t, it: t.send_close(1000, it),
    "offset": lambda t, it: t.send_reuse_external_bytearray(2, bytearray(5000), it),
    "graceful": lambda t, it: t.disconnect(it),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("end", ENDS)
async def test_arguments_that_end_the_connection_while_they_are_looked_at(link, end, use):
    class Acting:
        acted = False

        def act(self):
            self.acted = True
            ENDS[end](pair.transport)

        def __index__(self):
            self.act()
            return 14

        __int__ = __index__

        def __bool__(self):
            self.act()
            return True

        def __buffer__(self, flags):  # from Python 3.12 on; before it is no buffer
            self.act()
            return memoryview(b"late")

    async with link() as pair:
        argument = Acting()
        try:
            USES[use](pair.transport, argument)
        except WRONG:
            pass
        assert argument.acted or sys.version_info < (3, 12)
        if argument.acted:
            assert pair.transport.is_close_frame_sent == (end == "close")
            if end != "close":
                assert pair.transport.underlying_transport.is_closing()
                assert await pair.peer.read_to_end() == b""  # nothing was sent behind it
        pair.peer.close()
    assert pair.listener.events.count("disconnected") == 1


# --- Buffers

SIZES = [1, 100, 1024, 1025, 16 * 1024 + 1, 300_000]


def as_mmap(payload):
    memory = mmap.mmap(-1, len(payload))
    memory[:] = payload
    return memory


BUFFERS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "array": lambda payload: array.array("B", payload),
    "mmap": as_mmap,
    "ctypes": lambda payload: (ctypes.c_char * len(payload)).from_buffer_copy(payload),
    "memoryview": lambda payload: memoryview(bytearray(b"<" + payload + b">"))[1:-1],
    "cast memoryview": lambda payload: memoryview(bytearray(payload)).cast("b"),
    "two dimensions": lambda payload: memoryview(payload).cast("B", (1, len(payload))),
    "subclass": type("Bytes", (bytes,), {}),
    "subclass of bytearray": type("Bytearray", (bytearray,), {}),
}


@pytest.mark.parametrize("kind", BUFFERS)
async def test_buffers_of_every_kind(link, kind):
    """They arrive as they were when send() was called, and are the caller's again at once."""
    async with link(small_buffers=True) as pair:
        for size in SIZES:
            payload = os.urandom(size)
            message = BUFFERS[kind](payload)
            pair.transport.send(WSMsgType.BINARY, message)
            if kind not in ("bytes", "subclass", "two dimensions"):
                memoryview(message).cast("B")[:] = b"\xee" * size
            if isinstance(message, mmap.mmap):
                message.close()
            elif isinstance(message, (bytearray, array.array)):
                message.append(1)
            elif isinstance(message, memoryview):
                message.release()
            assert await pair.peer.read_frame() == (2, payload)


def grow(buffer):
    with pytest.raises(BufferError):
        buffer.extend(bytes(1_000_000))
    with pytest.raises(BufferError):
        buffer.clear()
    buffer[-1:] = b"\xee"  # of the same size, so this is possible


class Resizing(Recorder):
    """Changes a buffer of which send() is at work, in the callbacks that send() may call."""

    buffer: bytearray
    tried = 0

    def pause_writing(self):
        super().pause_writing()
        self.tried += 1
        grow(self.buffer)


@pytest.mark.parametrize("way", ["send", "send_reuse_external_bytearray"])
async def test_a_buffer_is_not_resized_while_it_is_sent(link, way):
    payload = os.urandom(1_000_000)
    async with link(Resizing(), small_buffers=True) as pair:
        listener = pair.listener
        if way == "send":
            listener.buffer = bytearray(payload)
            pair.transport.send(WSMsgType.BINARY, listener.buffer)
        else:
            listener.buffer = bytearray(14) + payload
            pair.transport.send_reuse_external_bytearray(WSMsgType.BINARY, listener.buffer, 14)
        assert listener.tried == 1
        listener.buffer.clear()
        listener.buffer += b"\xee" * 2_000_000
        assert await pair.peer.read_frame() == (2, payload)


@pytest.mark.parametrize("size", [100, 300_000])
@pytest.mark.parametrize("way", ["send", "send_reuse_external_bytearray"])
async def test_a_buffer_is_not_resized_by_a_log_handler(link, way, size):
    """At the level of the data path, sending logs: anybody's code may run in the midst of it."""
    payload = os.urandom(size)
    buffer = bytearray(14) + payload
    tried = []

    class Handler(logging.Handler):
        def emit(self, record):
            if ": sending BINARY" in record.getMessage() and not tried:
                tried.append(record)
                with pytest.raises(BufferError):
                    buffer.clear()

    logger = logging.Logger("traced", PICOWS_DEBUG_LL)
    logger.addHandler(Handler())
    async with link(Recorder(), logger_name=logger) as pair:
        if way == "send":
            pair.transport.send(WSMsgType.BINARY, buffer)
            expected = bytes(14) + payload
        else:
            pair.transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, 14)
            expected = payload
        assert await pair.peer.read_frame() == (2, expected)
    # A server sends large external buffers from where they are, past the place that logs.
    assert tried or (way != "send" and size > 1024 and not pair.transport.is_client_side)


async def test_a_buffer_changes_in_another_thread(link):
    """TLS encrypts without the GIL. What arrives may be a mixture, of a right size."""
    size = 200_000
    async with link() as pair:
        buffer = bytearray(14 + size)
        over = threading.Event()

        def scribble():
            while not over.is_set():
                try:
                    buffer[14:] = b"\xee" * size
                    buffer.append(0)
                except BufferError:
                    pass

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for _ in range(20):
                pair.transport.send(WSMsgType.BINARY, buffer)
                pair.transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, 14)
                for _ in range(2):
                    opcode, payload = await pair.peer.read_frame()
                    assert opcode == WSMsgType.BINARY
                    assert len(payload) in (size, size + 1, 14 + size, 14 + size + 1)
        finally:
            over.set()
            thread.join()
        await check_alive(pair)


async def test_frames_and_views_are_sent_on(link):
    """A frame is itself a buffer: echoing it needs no copy, in the callback or later."""

    class Forwarding(Recorder):
        def on_ws_frame(self, transport, frame):
            if frame.msg_type == WSMsgType.BINARY:
                transport.send(WSMsgType.BINARY, frame)
                with frame.get_payload_as_memoryview() as view:
                    transport.send(WSMsgType.BINARY, view)
                    transport.send(WSMsgType.BINARY, view[1:])
                kept.append(frame)
            super().on_ws_frame(transport, frame)

    kept = []
    async with link(Forwarding()) as pair:
        for size in (1, 5000, 200_000):
            payload = os.urandom(size)
            await pair.peer.send(WSMsgType.BINARY, payload)
            got = [await pair.peer.read_frame() for _ in range(3)]
            assert got == [(2, payload), (2, payload), (2, payload[1:])]
            pair.transport.send(WSMsgType.BINARY, kept.pop())
            assert await pair.peer.read_frame() == (2, payload)
        await check_alive(pair)


# --- Numbers without measure

EXTREMES = {
    "max_frame_size": [1_000_000, 2**63 - 1],
    "read_buffer_init_size": [1, 2**40, 2**63 - 1],
    "close_timeout": [1e300, 2**60],
    "websocket_handshake_timeout": [1e300, 2**60],
    "write_high_watermark": [0, 2**26],
    "max_write_backlog": [2**63 - 1],
}


@pytest.mark.parametrize("name", EXTREMES)
async def test_settings_at_their_ends(link, name):
    """A limit is no promise of memory: what is allocated follows what really comes."""
    for value in EXTREMES[name]:
        options = {name: value}
        if name == "write_high_watermark":
            options["write_low_watermark"] = 0
        async with link(Recorder(), **options) as pair:
            payload = os.urandom(300_000)
            await pair.peer.send(WSMsgType.BINARY, payload)
            assert (await pair.listener.frame())[1] == payload
            pair.transport.send(WSMsgType.BINARY, payload)
            assert await pair.peer.read_frame() == (2, payload)
            await check_alive(pair)


JUNK = [None, object(), -1, 2**100, float("nan"), "x\0y", b"\xff", [], {}, print, 0]


@pytest.mark.parametrize("function", [picows_fast.ws_connect, picows_fast.ws_create_server])
async def test_every_parameter_takes_junk(function):
    """It is refused with an exception, or means something; nothing stays open in either case."""
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    ]
    names += [
        "family",
        "server_hostname",
        "unix_path",
        "sock",
        "local_addr",
        "happy_eyeballs_delay",
    ]
    names += ["ssl_handshake_timeout", "reuse_port", "reuse_address", "start_serving", "keep_alive"]
    names += ["use_loop_transport", "proto", "flags", "interleave", "no_such_parameter"]
    refused = accepted = 0
    async with serving(lambda request: Echo()) as url:
        for name in names:
            for value in JUNK:
                if function is picows_fast.ws_connect:
                    arguments = {"ws_listener_factory": Recorder, "url": url, name: value}
                else:
                    arguments = {"ws_listener_factory": lambda request: Echo()}
                    arguments |= {"host": "127.0.0.1", "port": 0, name: value}
                    if name == "unix_path":
                        del arguments["host"], arguments["port"]
                try:
                    result = await asyncio.wait_for(function(**arguments), TIMEOUT)
                except (*WRONG, OSError, picows_fast.WSError, picows_fast.WSInvalidURL):
                    refused += 1
                    continue
                accepted += 1
                if function is picows_fast.ws_connect:
                    transport, _ = result
                    transport.disconnect(graceful=False)
                    await transport.wait_disconnected()
                else:
                    result.close()
                    await result.wait_closed()
    assert refused > 200
    assert accepted > 20


@pytest.mark.parametrize(
    ("where", "backlog"),
    [({"port": 0}, 2**100), ({"unix_path": "x\0y"}, 100), ({"unix_path": "\0abstract"}, 2**100)],
)
async def test_a_server_that_cannot_listen_leaves_no_socket(where, backlog):
    with pytest.raises((ValueError, OverflowError)):
        await picows_fast.ws_create_server(lambda request: Echo(), **where, backlog=backlog)


async def test_a_server_that_is_cancelled_at_every_turn(io_options):
    for turns in range(100):
        creating = asyncio.create_task(
            picows_fast.ws_create_server(lambda request: Echo(), "127.0.0.1", 0, **io_options)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        if creating.done():
            break
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    assert turns > 0
    server = await creating
    server.close()
    await server.wait_closed()


# --- The parser and the builder by themselves


@pytest.mark.parametrize("data", [None, "text", 5, object(), bytes, memoryview(b"abcd")[::2]])
def test_the_parser_refuses_what_is_no_buffer(data):
    parser = FrameParser(is_client=True)
    parser.feed(server_frame(WSMsgType.TEXT, b"first")[:3])
    with pytest.raises((TypeError, BufferError)):
        parser.feed(data)
    with pytest.raises(ValueError, match="released"):
        parser.feed(released())
    parser.feed(server_frame(WSMsgType.TEXT, b"first")[3:])
    assert parser.next_frame().get_payload_as_bytes() == b"first"


@pytest.mark.parametrize(
    "name", ["max_frame_size", "allowed_rsv", "is_client", "validate_sequence"]
)
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**200, Unsayable(), "x", None, object()])
def test_settings_of_the_parser(name, value):
    arguments = {"is_client": True, name: value}
    try:
        parser = FrameParser(**arguments)
    except WRONG:
        return
    assert name in ("is_client", "validate_sequence")  # anything is true or false
    parser.feed(b"")
    assert parser.next_frame() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no __buffer__ in Python code")
def test_a_buffer_that_feeds_the_parser_it_is_fed_to():
    inner = server_frame(WSMsgType.TEXT, b"inner") * 1000
    outer = server_frame(WSMsgType.TEXT, b"outer")

    class Feeding:
        def __buffer__(self, flags):
            parser.feed(inner)
            return memoryview(outer)

    parser = FrameParser(is_client=True)
    parser.feed(Feeding())
    texts = [frame.get_payload_as_bytes() for frame in parser]
    assert texts == [b"inner"] * 1000 + [b"outer"]


def test_a_parser_set_up_anew_in_the_midst_of_its_work():
    parser = FrameParser(is_client=True)
    parser.feed(server_frame(WSMsgType.TEXT, b"x" * 300) * 5)
    frame = parser.next_frame()
    parser.__init__(is_client=True, max_frame_size=10)
    with pytest.raises(picows_fast.WSPeerProtocolError):
        parser.next_frame()
    assert frame.get_payload_as_bytes() == b"x" * 300


def test_one_parser_in_many_threads():
    """Not of use, as the order is anyone's; but every frame comes whole and once."""
    count, threads = 2000, 4
    parser = FrameParser(is_client=True)
    found = []

    def work(number):
        frame = server_frame(WSMsgType.TEXT, b"%d" % number * 50)
        for _ in range(count):
            parser.feed(frame)
            got = parser.next_frame()
            if got is not None:
                found.append(got.get_payload_as_bytes())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
    finally:
        sys.setswitchinterval(interval)
    found += [frame.get_payload_as_bytes() for frame in parser]
    assert sorted(found) == sorted(b"%d" % i * 50 for i in range(threads) for _ in range(count))


@pytest.mark.parametrize(
    "arguments",
    [
        (2**64, b""),
        (-(2**64), b""),
        (None, b""),
        ("TEXT", b""),
        (object(), b""),
        (WSMsgType.TEXT, "\ud800"),
        (WSMsgType.TEXT, bytes),
        (WSMsgType.TEXT, memoryview(b"abcd")[::2]),
    ],
)
def test_frames_that_cannot_be_built(arguments):
    with pytest.raises(WRONG):
        picows_fast.build_frame(*arguments)
    with pytest.raises(ValueError, match="released"):
        picows_fast.build_frame(WSMsgType.TEXT, released())
    with pytest.raises(ValueError, match="neither"):
        picows_fast.build_frame(WSMsgType.TEXT, b"", mask=Unsayable())


# --- A loop's transport that miscounts


@pytest.mark.parametrize("count", [-1, 64 * 1024 + 1, 2**62])
async def test_a_transport_that_miscounts_what_it_received(count):
    """More bytes than there was room for: an error, and nothing is read behind the end."""
    async with connected("client", use_loop_transport=True) as pair:
        protocol = pair.transport.underlying_transport.protocol
        with pytest.raises(ValueError, match="buffer_updated"):
            protocol.buffer_updated(1)  # none was asked for
        protocol.get_buffer(-1)
        with pytest.raises(ValueError, match="buffer_updated"):
            protocol.buffer_updated(count)
        await check_alive(pair)


def test_streams_take_sockets_only():
    for sock in (None, 5, object(), socket.socket):
        with pytest.raises((TypeError, AttributeError)):
            TcpStream(None, sock)
