"""Loops whose reads are under way while other things happen (overlapped I/O on Windows): the buffer
that the protocol gave is filled later, whatever the connection has done meanwhile.

The test is the loop here: it takes the protocol of a real connection over a transport of asyncio's,
which is kept from reading.
"""

from __future__ import annotations

import contextlib
import gc

import pytest

from picows_fast import WSMsgType

from ..peers import connected
from ..support import Recorder

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Pausing(Recorder):
    """Pauses reading at each frame that says so."""

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        if frame.get_payload_as_bytes().startswith(b"pause"):
            transport.pause_reading()


class Reader:
    """Reads for the loop; `start` and `finish` are the two halves of a read."""

    def __init__(self, pair):
        self.stream = pair.transport.underlying_transport
        self.protocol = self.stream.protocol
        self.stream.transport.pause_reading()

    def start(self):
        self.view = self.protocol.get_buffer(-1)

    def finish(self, data):
        """Fill what the read has room for; more reads get the rest."""
        while True:
            size = min(len(data), len(self.view))
            self.view[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]
            if not data:
                return
            self.start()

    def read(self, data):
        self.start()
        self.finish(data)


@pytest.mark.parametrize("size", [10, 3000, 60_000])
async def test_what_waited_is_used_while_a_read_is_under_way(side, size):
    """The read's bytes follow what waited, and not what was there when it began."""
    async with connected(side, Pausing(), use_loop_transport=True) as pair:
        reader = Reader(pair)
        texts = [b"pause", b"second" * (size // 6), b"third" * (size // 5), b"fourth"]
        first, second, third, fourth = (pair.peer.frame(WSMsgType.BINARY, text) for text in texts)
        # The first pauses, so the second waits; with a piece of the third behind it.
        reader.read(first + second[:5000])
        reader.read(second[5000:] + third[:3])
        reader.start()
        pair.transport.resume_reading()
        await pair.listener.frame(1)
        reader.stream.transport.pause_reading()
        reader.finish(third[3:])
        reader.read(fourth)
        assert [payload for _, payload, _ in pair.listener.frames] == texts


@pytest.mark.parametrize("end", ["abort", "close"])
@pytest.mark.parametrize("waiting", [0, 100, 50_000])
async def test_connection_ends_while_a_read_is_under_way(side, end, waiting):
    """The memory stays as long as the loop has it. (What reads or writes freed memory is shown by
    `make sanitize`.)
    """
    async with connected(side, use_loop_transport=True, close_timeout=0.1) as pair:
        reader = Reader(pair)
        data = pair.peer.frame(WSMsgType.BINARY, bytes(100_000))[:waiting]
        reader.read(data[:10_000])
        reader.read(data[10_000:])
        reader.start()
        if end == "abort":
            pair.transport.disconnect(graceful=False)
        else:
            pair.transport.disconnect()
        pair.peer.close()
        await pair.listener.closed()
        assert reader.view.obj is not None
        gc.collect()
        kept = [bytearray(70_000) for _ in range(50)]  # takes the memory, if it is free
        for i in range(0, len(reader.view), 100):
            reader.view[i] = 0xEE
        assert not any(any(piece) for piece in kept)
        reader.protocol.buffer_updated(5)
        assert pair.listener.frames == []


async def test_protocol_that_is_misused(side):
    """buffer_updated() without get_buffer(), twice, or with more than there is room for."""
    async with connected(side, use_loop_transport=True) as pair:
        reader = Reader(pair)
        for size in (-1, 1, 1 << 62):
            with pytest.raises((ValueError, OverflowError)):
                reader.protocol.buffer_updated(size)
        reader.start()
        room = len(reader.view)
        with pytest.raises(ValueError, match="buffer_updated"):
            reader.protocol.buffer_updated(room + 1)
        reader.read(pair.peer.frame(WSMsgType.TEXT, b"whole"))
        with contextlib.suppress(ValueError):
            reader.protocol.buffer_updated(0)
        assert pair.listener.frames == [(WSMsgType.TEXT, b"whole", True)]
