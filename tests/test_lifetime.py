"""How long frames and views of their payloads live, and what they hold, over real connections.

The rules (core, codec): a frame or a view that outlives the callback stays valid, whatever the
connection does afterwards; a kept frame holds a copy of its payload, a kept view the receive buffer
that it points into; frames that nobody keeps are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import subprocess
import sys
import threading
import tracemalloc

import pytest

import picows_fast
from picows_fast import WSListener, WSMsgType

from .support import Recorder, client_frame, raw_client, raw_server, server_frame, serving

KIB = 1024
MIB = 1024 * 1024
FLOOD = 100_000

#: One read takes at most this much, into a buffer that the connections of one loop share.
READ_BUFFER = 256 * KIB

#: New ones for TCP and for TLS may be made while we trace; the rest is for the peer and the loop.
BUFFERS = 2 * READ_BUFFER + 100 * KIB


@pytest.fixture(params=["client", "server"])
def side(request):
    """Which side of the connection is ours; at the other one is a plain socket."""
    return request.param


@pytest.fixture(params=["plain", "tls", "plain, loop transport"])
def transmission(request, server_tls, client_tls):
    """(context of the server, context of the client, settings)"""
    options = {"use_loop_transport": "loop" in request.param}
    return (server_tls, client_tls, options) if request.param == "tls" else (None, None, options)


class Feed:
    """The peer: writes frames as the other side must."""

    def __init__(self, writer, masked):
        self.writer = writer
        self.frame = client_frame if masked else server_frame
        self.sent = 0

    async def send(self, *payloads):
        """Send these frames with one write."""
        self.sent += len(payloads)
        await self.write(b"".join(self.frame(WSMsgType.BINARY, payload) for payload in payloads))

    async def write(self, data):
        for start in range(0, len(data), MIB):
            self.writer.write(data[start : start + MIB])
            await self.writer.drain()

    async def send_each(self, listener, payloads):
        """Send frames so that each comes with a read of its own."""
        for payload in payloads:
            before = listener.count
            await self.send(payload)
            await listener.until(lambda seen=before: listener.count > seen)


class Listener(Recorder):
    """Counts frames and gives each to `look(number, frame)`."""

    def __init__(self, look=lambda number, frame: None):
        super().__init__()
        self.look = look
        self.count = 0

    def on_ws_frame(self, transport, frame):
        self.count += 1
        self._changed.set()
        self.look(self.count - 1, frame)


@contextlib.asynccontextmanager
async def fed(side, transmission, listener, **options):
    """Connect a listener of ours to a Feed; at the end the connection is gone."""
    server_context, client_context, how = transmission
    options = {**how, **options}
    if side == "client":
        feed = asyncio.get_running_loop().create_future()
        over = asyncio.Event()

        async def handler(reader, writer):
            feed.set_result(Feed(writer, masked=False))
            await over.wait()

        async with raw_server(handler, tls=server_context) as url:
            if client_context is not None:
                options["ssl_context"] = client_context
            transport, _ = await picows_fast.ws_connect(lambda: listener, url, **options)
            yield await feed
            over.set()
            transport.disconnect(graceful=False)
            await transport.wait_disconnected()
    else:
        async with serving(lambda request: listener, tls=server_context, **options) as url:
            _reader, writer = await raw_client(url, tls=client_context)
            yield Feed(writer, masked=True)
            writer.transport.abort()
            await listener.closed()
            with contextlib.suppress(Exception):
                await writer.wait_closed()


@functools.cache
def flood(masked):
    """1,000 frames that leave nothing of what was in the buffers before."""
    frame = client_frame if masked else server_frame
    return b"".join(frame(WSMsgType.TEXT, b"\xee" * (20 + 37 * i % 211)) for i in range(1000))


async def send_flood(feed, listener, side):
    chunk = flood(side == "server")
    for _ in range(FLOOD // 1000):
        await feed.write(chunk)
        feed.sent += 1000
    await listener.until(lambda: listener.count == feed.sent)


def numbered(i, size=0):
    """A payload that tells where it belongs."""
    text = b"<%d>" % i
    return text * (max(size, 40 + i % 50) // len(text) + 1)


# --- Valid for as long as they are kept ----------------------------------------------------------


def keep_frame(frame):
    return [frame]


def keep_method_view(frame):
    return [frame.get_payload_as_memoryview()]


def keep_view(frame):
    return [memoryview(frame)]


def keep_frame_and_view(frame):
    return [frame, memoryview(frame)]


def keep_frame_whose_view_is_released_at_once(frame):
    with memoryview(frame):
        return [frame]


def keep_slices(frame):
    with memoryview(frame) as view:
        return [view[:], view[1:][:-1], view[::-1]]


def keep_cast(frame):
    return [memoryview(frame).cast("c")]


def keep_bytes_of_a_view(frame):
    return [bytes(memoryview(frame))]


WAYS = [
    keep_frame,
    keep_method_view,
    keep_view,
    keep_frame_and_view,
    keep_frame_whose_view_is_released_at_once,
    keep_slices,
    keep_cast,
    keep_bytes_of_a_view,
]


def assert_intact(kept, payload):
    """`kept` came from one of WAYS out of a frame with this payload."""
    if len(kept) == 3:
        whole, inner, reverse = kept
        assert bytes(whole) == payload
        assert bytes(inner) == payload[1:-1]
        assert bytes(reverse) == payload[::-1]
        return
    for item in kept:
        assert bytes(item) == payload
        if isinstance(item, picows_fast.WSFrame):
            assert item.get_payload_as_bytes() == payload
            assert item.get_payload_as_ascii_text() == payload.decode()
            assert (item.msg_type, item.fin) == (WSMsgType.BINARY, True)
            assert item.payload_size == len(payload)


async def test_kept_past_100000_frames_and_the_connection(side, transmission):
    """Frames and views of every kind, from reads of one frame, of many, and of parts of one."""
    kept = []

    def look(number, frame):
        if frame.msg_type == WSMsgType.BINARY:
            kept.append(WAYS[number % len(WAYS)](frame))

    listener = Listener(look)
    payloads = [numbered(i) for i in range(400)]
    # 9 and not 8: large ones are kept in every way
    payloads += [numbered(400 + i, (1 + i % 9) * 7000) for i in range(72)]
    async with fed(side, transmission, listener) as feed:
        await feed.send_each(listener, payloads[:50])
        await feed.send(*payloads[50:400])
        await feed.send(*payloads[400:])
        await listener.until(lambda: len(kept) == len(payloads))
        await send_flood(feed, listener, side)
        for items, payload in zip(kept, payloads, strict=True):
            assert_intact(items, payload)
    gc.collect()
    for items, payload in zip(kept, payloads, strict=True):
        assert_intact(items, payload)


async def test_large_frames_are_kept(side, transmission):
    kept = []
    listener = Listener(lambda number, frame: kept.append(WAYS[number % len(WAYS)](frame)))
    payloads = [numbered(i, MIB + i) for i in range(2 * len(WAYS))]
    async with fed(side, transmission, listener) as feed:
        await feed.send(*payloads)
        await listener.until(lambda: len(kept) == len(payloads))
        await feed.send_each(listener, payloads[:2])
    for items, payload in zip(kept, payloads, strict=False):
        assert_intact(items, payload)


# Ways in which the interpreter itself holds an argument. Each returns a function that reads it.


def held_by_generator(frame):
    def payload(frame):
        yield frame.get_payload_as_bytes()

    return functools.partial(next, payload(frame))


def held_on_the_stack_of_a_generator(frame):
    def payload(frame):
        yield (frame, (yield))[0].get_payload_as_bytes()

    generator = payload(frame)
    next(generator)
    return functools.partial(next, generator)


def held_by_coroutine(frame):
    async def payload(frame):
        return frame.get_payload_as_bytes()

    def run(coroutine):
        with pytest.raises(StopIteration) as result:
            coroutine.send(None)
        return result.value.value

    return functools.partial(run, payload(frame))


def held_by_closure(frame):
    def payload():
        return frame.get_payload_as_bytes()

    return payload


def held_by_traceback(frame):
    def fail(frame):
        raise LookupError

    def payload(error):
        return error.__traceback__.tb_next.tb_frame.f_locals["frame"].get_payload_as_bytes()

    try:
        fail(frame)
    except LookupError as error:
        return functools.partial(payload, error)


def held_by_python_frame(frame):
    def payload(python_frame):
        return python_frame.f_locals["frame"].get_payload_as_bytes()

    return functools.partial(payload, sys._getframe())


def held_by_method(frame):
    return frame.get_payload_as_bytes


HOLDERS = [
    held_by_generator,
    held_on_the_stack_of_a_generator,
    held_by_coroutine,
    held_by_closure,
    held_by_traceback,
    held_by_python_frame,
    held_by_method,
]


async def test_held_by_what_the_interpreter_makes(side):
    """Interpreters that lend an argument instead of counting a reference do count these."""
    kept = []
    listener = Listener(lambda number, frame: kept.append(HOLDERS[number % len(HOLDERS)](frame)))
    payloads = [numbered(i) for i in range(10 * len(HOLDERS))]
    async with fed(side, (None, None, {}), listener) as feed:
        await feed.send_each(listener, payloads[: len(HOLDERS)])
        await feed.send(*payloads[len(HOLDERS) :])
        await listener.until(lambda: listener.count == len(payloads))
    assert [payload() for payload in kept] == payloads


@pytest.mark.parametrize("first", ["view", "frame"])
async def test_view_and_frame_are_dropped_in_either_order(first, side, transmission):
    frames, views, left = [], [], {}

    def look(number, frame):
        if frame.msg_type == WSMsgType.BINARY:
            frames.append(frame)
            views.append(memoryview(frame)[1:])
        elif number % 7 == 0 and frames:
            # Half way, in later callbacks: let one of the two go.
            i = len(left)
            if first == "view":
                views.pop(0).release()
                left[i] = frames.pop(0)
            else:
                frames.pop(0)
                left[i] = views.pop(0)

    listener = Listener(look)
    payloads = [numbered(i, 300) for i in range(500)]
    async with fed(side, transmission, listener) as feed:
        await feed.send_each(listener, payloads[:20])
        await feed.send(*payloads[20:])
        await send_flood(feed, listener, side)
    assert len(left) == len(payloads)
    for i, payload in enumerate(payloads):
        assert bytes(left[i]) == (payload if first == "view" else payload[1:])


async def test_kept_by_a_callback_that_raised(side, transmission, caplog):
    """Errors are only logged: each of these frames is also held by an exception for a while."""
    kept = []

    def look(number, frame):
        if frame.msg_type == WSMsgType.BINARY:
            kept.append(WAYS[number % len(WAYS)](frame))
            raise ValueError("after keeping it", frame)

    listener = Listener(look)
    payloads = [numbered(i) for i in range(100)]
    async with fed(side, transmission, listener, disconnect_on_exception=False) as feed:
        await feed.send_each(listener, payloads[:10])
        await feed.send(*payloads[10:])
        await send_flood(feed, listener, side)
        assert len(kept) == len(payloads)
        assert sum("on_ws_frame raised" in record.message for record in caplog.records) == 100
        caplog.clear()
    for items, payload in zip(kept, payloads, strict=True):
        assert_intact(items, payload)


async def test_kept_by_a_callback_that_ended_the_connection(side, transmission, caplog):
    kept = []

    def look(number, frame):
        kept.append([frame, memoryview(frame)])
        if number == 4:
            listener.transport.disconnect(graceful=False)

    listener = Listener(look)
    async with fed(side, transmission, listener) as feed:
        await feed.send(*(numbered(i) for i in range(10)))
        await listener.closed()
    assert len(kept) == 5
    for i, items in enumerate(kept):
        assert_intact(items, numbered(i))


async def test_kept_while_reading_was_paused(side, transmission):
    """Bytes that wait for resume_reading() move; what was kept of those before them does not."""
    kept = []

    def look(number, frame):
        kept.append(WAYS[number % len(WAYS)](frame))
        if number % 5 == 0:
            listener.transport.pause_reading()
            asyncio.get_running_loop().call_soon(listener.transport.resume_reading)

    listener = Listener(look)
    payloads = [numbered(i, (i % 10) ** 4) for i in range(150)]
    async with fed(side, transmission, listener) as feed:
        await feed.send(*payloads)
        await listener.until(lambda: len(kept) == len(payloads))
    for items, payload in zip(kept, payloads, strict=True):
        assert_intact(items, payload)


async def test_control_and_close_frames_are_kept(side, transmission):
    kept = []
    listener = Listener(lambda number, frame: kept.append((frame, memoryview(frame))))
    async with fed(side, transmission, listener, enable_auto_pong=False) as feed:
        await feed.write(
            feed.frame(WSMsgType.PING, b"ping")
            + feed.frame(WSMsgType.PONG, b"pong")
            + feed.frame(WSMsgType.CLOSE, b"\x03\xe8bye")
        )
        await listener.until(lambda: len(kept) == 3)
    payloads = [b"ping", b"pong", b"\x03\xe8bye"]
    assert [frame.get_payload_as_bytes() for frame, _ in kept] == payloads
    assert [bytes(view) for _, view in kept] == payloads
    close = kept[2][0]
    assert (close.get_close_code(), close.get_close_reason()) == (1000, "bye")


def test_under_an_allocator_that_overwrites_what_is_freed():
    """The first test once more: what is read after it was freed would then differ for sure."""
    name = "test_kept_past_100000_frames_and_the_connection"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        + ["-k", f"{name} and asyncio and not loop"],
        env={**os.environ, "PYTHONMALLOC": "debug"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


# --- Frame objects are used again ----------------------------------------------------------------


async def test_frames_that_nobody_keeps_are_used_again(side, transmission):
    seen = set()
    listener = Listener(lambda number, frame: seen.add(id(frame)))
    async with fed(side, transmission, listener) as feed:
        await feed.send_each(listener, [numbered(i) for i in range(50)])
        await feed.send(*(numbered(i) for i in range(1000)))
        await listener.until(lambda: listener.count == 1050)
    assert len(seen) == 1


async def test_a_view_that_is_gone_does_not_keep_its_frame(side, transmission):
    seen = set()

    def look(number, frame):
        seen.add(id(frame))
        view = memoryview(frame)
        assert len(view) == frame.payload_size

    listener = Listener(look)
    async with fed(side, transmission, listener) as feed:
        await feed.send(*(numbered(i) for i in range(1000)))
        await listener.until(lambda: listener.count == 1000)
    assert len(seen) == 1


async def test_a_kept_frame_is_not_used_again(side, transmission):
    kept = []
    listener = Listener(
        lambda number, frame: kept.append(frame if number % 2 else memoryview(frame))
    )
    async with fed(side, transmission, listener) as feed:
        await feed.send(*(numbered(i) for i in range(500)))
        await listener.until(lambda: listener.count == 500)
    holders = [item if number % 2 else item.obj for number, item in enumerate(kept)]
    assert len({id(frame) for frame in holders}) == 500


# --- What keeping costs --------------------------------------------------------------------------


@contextlib.contextmanager
def traced():
    """A function that tells how many bytes are allocated now and were not at the start."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]

        def grown():
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

        yield grown
    finally:
        tracemalloc.stop()


async def test_a_kept_frame_holds_its_payload_and_no_buffer(side, transmission):
    """At most 400 bytes and the payload each, though every one came with 100 KB of others."""
    kept = []

    def look(number, frame):
        if frame.payload_size == 100:
            kept.append(frame)

    listener = Listener(look)
    async with fed(side, transmission, listener) as feed:
        bulk = [bytes(1000)] * 100
        await feed.send(*bulk)
        await listener.until(lambda: listener.count == 100)
        with traced() as grown:
            for i in range(60):
                await feed.send(b"x" * 100, *bulk)
                await listener.until(lambda n=101 * (i + 1) + 100: listener.count == n)
            assert len(kept) == 60
            assert grown() < 60 * (100 + 400) + BUFFERS
        del kept[:]


async def test_small_kept_views_share_buffers(side, transmission):
    """1,000 views from as many reads: what was read, rounded up to 64 bytes, and the buffers.

    A buffer is given up with up to 16 KiB unused; a view and its frame are 400 bytes at most.
    """
    kept = []
    listener = Listener(lambda number, frame: kept.append(memoryview(frame)))
    async with fed(side, transmission, listener) as feed:
        await feed.send_each(listener, [b"first"])
        with traced() as grown:
            await feed.send_each(listener, [numbered(i, 200)[:200] for i in range(1000)])
            per_read = 256  # a frame of 202 to 208 bytes
            assert grown() < 1000 * (per_read * 256 // 240 + 400) + BUFFERS
        for i in range(1000):
            assert kept[i + 1] == numbered(i, 200)[:200]


async def test_large_kept_views_hold_little_more_than_themselves(side, transmission):
    kept = []
    listener = Listener(lambda number, frame: kept.append(memoryview(frame)))
    async with fed(side, transmission, listener) as feed:
        await feed.send_each(listener, [b"first"])
        payloads = [numbered(i, MIB)[:MIB] for i in range(4)]
        data = [feed.frame(WSMsgType.BINARY, payload) for payload in payloads]
        with traced() as grown:
            for i in range(4):
                await feed.write(data[i])
                await listener.until(lambda n=i + 2: listener.count == n)
            assert grown() < 4 * (MIB + 64 * KIB) + BUFFERS
            del kept[:]
            assert grown() < BUFFERS


async def test_what_was_kept_is_given_back(side, transmission):
    """Views and frames of everything that comes; when they are dropped, nothing of it is left."""
    kept = []
    listener = Listener(lambda number, frame: kept.append((frame, memoryview(frame))))
    async with fed(side, transmission, listener) as feed:
        await feed.send_each(listener, [b"first"])
        with traced() as grown:
            await feed.send(*(numbered(i, 500) for i in range(2000)))
            await listener.until(lambda: listener.count == 2001)
            assert grown() > MIB
            kept.clear()
            await feed.send_each(listener, [b"next", b"and next"])
            assert grown() < BUFFERS
            kept.clear()


# --- What is sent --------------------------------------------------------------------------------


class Checking(WSListener):
    """Counts frames, and those that do not consist of one byte only."""

    def __init__(self, expected):
        self.left = expected
        self.bad = 0
        self.done = asyncio.Event()

    def on_ws_frame(self, transport, frame):
        payload = frame.get_payload_as_bytes()
        self.bad += payload != payload[:1] * len(payload)
        self.left -= 1
        if not self.left:
            self.done.set()


def test_event_loops_in_several_threads_do_not_mix_what_they_send(server_tls, client_tls):
    """TLS encrypts without the GIL, so another thread runs while a frame is being sent."""
    count = 100
    results = []

    async def exchange(payload):
        listener = Checking(count)
        async with serving(lambda request: listener, tls=server_tls) as url:
            transport, _ = await picows_fast.ws_connect(WSListener, url, ssl_context=client_tls)
            for _ in range(count):
                transport.send(WSMsgType.BINARY, payload)
                await asyncio.sleep(0)
            await asyncio.wait_for(listener.done.wait(), 20)
            transport.disconnect(graceful=False)
            await transport.wait_disconnected()
        results.append(listener.bad)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=asyncio.run, args=(exchange(fill * 200_000),))
            for fill in (b"A", b"B", b"C")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert results == [0, 0, 0]
