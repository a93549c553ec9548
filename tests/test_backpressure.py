"""Flow control both ways: watermarks, pausing, corking, coalescing, at peers that stop reading."""

from __future__ import annotations

import asyncio
import itertools
import os
import random

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType, WSState

from .peers import Contexts, connected
from .support import Recorder, until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

LARGE = 1_500_000  # more than the system holds back with small buffers


def flow(listener):
    return [event for event in listener.events if event.endswith("_writing")]


# --- Outgoing


async def test_pause_and_resume_come_once_per_crossing(link):
    async with link(small_buffers=True) as pair:
        for crossing in range(1, 4):
            pair.transport.send(WSMsgType.BINARY, bytes(LARGE))
            assert flow(pair.listener) == ["pause_writing", "resume_writing"] * (crossing - 1) + [
                "pause_writing"
            ]
            pair.transport.send(WSMsgType.BINARY, bytes(100))
            pair.transport.send(WSMsgType.BINARY, bytes(100_000))
            assert pair.transport.write_backlog > 64 * 1024
            assert len((await pair.peer.read_frame())[1]) == LARGE
            assert len((await pair.peer.read_frame())[1]) == 100
            assert len((await pair.peer.read_frame())[1]) == 100_000
            await pair.listener.until(lambda: flow(pair.listener)[-1] == "resume_writing")
            assert flow(pair.listener) == ["pause_writing", "resume_writing"] * crossing
            assert pair.transport.write_backlog == 0


async def test_watermarks(link):
    """pause_writing comes above the high, resume_writing at or below the low one."""

    class Watching(Recorder):
        backlogs = ()

        def pause_writing(self):
            self.backlogs += (self.transport.write_backlog,)
            super().pause_writing()

        def resume_writing(self):
            self.backlogs += (self.transport.write_backlog,)
            super().resume_writing()

    high, low = 1_000_000, 200_000
    async with link(
        Watching(), small_buffers=True, write_high_watermark=high, write_low_watermark=low
    ) as pair:
        assert pair.transport.underlying_transport.get_write_buffer_limits() == (low, high)
        pair.transport.send(WSMsgType.BINARY, bytes(LARGE - high))
        while not flow(pair.listener):
            before = pair.transport.write_backlog
            assert before <= high
            pair.transport.send(WSMsgType.BINARY, bytes(50_000))
        sent = pair.transport.write_backlog
        assert sent > high
        reading = asyncio.create_task(pair.peer.read_to_end())
        await pair.listener.until(lambda: len(flow(pair.listener)) == 2)
        assert pair.listener.backlogs[0] > high
        assert pair.listener.backlogs[1] <= low
        pair.transport.disconnect()
        await reading
        pair.peer.close()


async def test_watermark_zero(link):
    """With both at 0 the listener hears of every byte that waits."""
    async with link(small_buffers=True, write_high_watermark=0, write_low_watermark=0) as pair:
        pair.transport.send(WSMsgType.BINARY, bytes(LARGE))
        assert flow(pair.listener) == ["pause_writing"]
        await pair.peer.read_frame()
        await pair.listener.until(lambda: len(flow(pair.listener)) == 2)
        assert pair.transport.write_backlog == 0


@pytest.mark.parametrize("way", ["cork", "coalesce_writes"])
async def test_held_back_writes_do_not_make_pausing_flap(link, way):
    """What leaves together is still waiting if the peer does not read: no resume_writing."""
    async with link(small_buffers=True, coalesce_writes=way == "coalesce_writes") as pair:
        pair.transport.cork()
        pair.transport.send(WSMsgType.BINARY, bytes(LARGE))
        pair.transport.uncork()
        for _ in range(3):
            await asyncio.sleep(0)
            assert flow(pair.listener) == ["pause_writing"]
        for _ in range(5):
            if way == "cork":
                pair.transport.cork()
            for _ in range(20):
                pair.transport.send(WSMsgType.BINARY, bytes(40_000))
            if way == "cork":
                pair.transport.uncork()
            await asyncio.sleep(0)
        backlog = pair.transport.write_backlog
        assert backlog > 64 * 1024
        assert flow(pair.listener) == ["pause_writing"]
        for _ in range(5):
            pair.transport.send(WSMsgType.BINARY, bytes(100_000))
            await asyncio.sleep(0)
        assert flow(pair.listener) == ["pause_writing"]
        for _ in range(106):
            await pair.peer.read_frame()
        await pair.listener.until(
            lambda: flow(pair.listener) == ["pause_writing", "resume_writing"]
        )
        assert pair.transport.write_backlog == 0


@pytest.mark.parametrize("coalesce", [False, True])
async def test_pause_and_resume_are_true_whatever_is_sent_and_when(link, coalesce):
    """By a program that sends on while paused, corked too, and is pinged meanwhile. They alternate,
    and never come on the wrong side of their watermark."""

    class Watching(Recorder):
        calls = ()

        def pause_writing(self):
            self.calls += (("pause", self.transport.write_backlog > high),)

        def resume_writing(self):
            self.calls += (("resume", self.transport.write_backlog <= low),)
            if len(self.calls) % 8 == 0:  # at once again
                self.transport.send(WSMsgType.BINARY, bytes(200_000))

    high, low = 60_000, 9_000
    options = {
        "write_high_watermark": high,
        "write_low_watermark": low,
        "coalesce_writes": coalesce,
    }
    sizes = random.Random(7)
    sent = 0
    async with link(Watching(), small_buffers=True, **options) as pair:
        transport = pair.transport
        for _ in range(25):
            while transport.write_backlog < 300_000:
                corked = sizes.random() < 0.3
                if corked:
                    transport.cork()
                for _ in range(sizes.choice([1, 3])):
                    transport.send(WSMsgType.BINARY, bytes(sizes.choice([10, 5_000, 30_000])))
                    sent += 1
                if corked:
                    transport.uncork()
                await asyncio.sleep(0)
            await pair.peer.send(WSMsgType.PING, b"there?")
            leave = sizes.choice([0, low // 2, 100_000])
            while transport.write_backlog > leave:
                await pair.peer.read_frame()
                await asyncio.sleep(0)
        # The last resume_writing() may send again.
        while transport.write_backlog or pair.listener.calls[-1][0] != "resume":
            if transport.write_backlog:
                await pair.peer.read_frame()
            await asyncio.sleep(0)
        names = [name for name, _ in pair.listener.calls]
        assert len(names) > 10
        assert names == ["pause", "resume"] * (len(names) // 2)
        assert all(is_true for _, is_true in pair.listener.calls)


async def test_a_ping_is_answered_while_the_application_keeps_a_backlog(link):
    """Behind what waits when it comes. Of those that come before that has left, the newest is."""
    async with link(small_buffers=True) as pair:

        async def pongs(count):
            """Read until so many PONGs have come; the application keeps its backlog up."""
            seen = []
            while True:
                while pair.transport.write_backlog < 500_000:
                    pair.transport.send(WSMsgType.BINARY, bytes(20_000))
                if len(seen) == count:
                    return seen
                opcode, payload = await asyncio.wait_for(pair.peer.read_frame(), 20)
                if opcode == WSMsgType.PONG:
                    seen.append(payload)
                await asyncio.sleep(0)

        assert await pongs(0) == []
        await pair.peer.send(WSMsgType.PING, b"first")
        assert await pongs(1) == [b"first"]
        for payload in (b"second", b"third", b"fourth"):
            await pair.peer.send(WSMsgType.PING, payload)
        assert await pongs(2) == [b"second", b"fourth"]
        await pair.peer.send(WSMsgType.PING, b"fifth")
        assert await pongs(1) == [b"fifth"]
        assert flow(pair.listener) == ["pause_writing"]


async def test_pings_of_a_peer_that_does_not_read_are_not_all_answered(link):
    """One PONG waits in the backlog, one behind it, however the application goes on."""
    async with link(small_buffers=True) as pair:
        pair.transport.send(WSMsgType.BINARY, bytes(LARGE))
        pongs = pair.transport.stats().sent.pong.frames
        for number in range(300):
            await pair.peer.send(WSMsgType.PING, b"%d" % number)
            if number % 100 == 0:
                pair.transport.send(WSMsgType.BINARY, bytes(1000))
        await until(lambda: pair.transport.stats().received.ping.frames == 300)
        assert pair.transport.stats().sent.pong.frames - pongs == 1
        got = b""
        while got != b"299":
            opcode, payload = await asyncio.wait_for(pair.peer.read_frame(), 20)
            if opcode == WSMsgType.PONG:
                got = payload
        assert pair.transport.stats().sent.pong.frames - pongs == 2


async def test_sending_from_resume_writing(link):
    """A producer that lives on resume_writing alone gets everything out, in order."""

    class Producing(Recorder):
        sent = 0
        paused = False

        def produce(self):
            while self.sent < 60 and not self.paused:
                self.transport.send(WSMsgType.BINARY, self.sent.to_bytes(4, "big") + bytes(50_000))
                self.sent += 1

        def pause_writing(self):
            super().pause_writing()
            self.paused = True

        def resume_writing(self):
            super().resume_writing()
            self.paused = False
            self.produce()

    async with link(Producing(), small_buffers=True) as pair:
        pair.listener.produce()
        assert pair.listener.sent < 60
        for number in range(60):
            _, payload = await pair.peer.read_frame()
            assert payload == number.to_bytes(4, "big") + bytes(50_000)


async def test_write_backlog_counts_what_the_peer_has_not_got(link):
    async with link(small_buffers=True, max_write_backlog=None) as pair:
        assert pair.transport.write_backlog == 0
        pair.transport.send(WSMsgType.BINARY, bytes(2 * LARGE))
        first = pair.transport.write_backlog
        assert LARGE < first <= 2 * LARGE + 100_000
        pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        assert first + 1_000_000 <= pair.transport.write_backlog <= first + 1_100_000
        await pair.peer.read_frame()
        await pair.peer.read_frame()

        await pair.listener.until(lambda: flow(pair.listener)[-1] == "resume_writing")
        while pair.transport.write_backlog:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_no_limit(link):
    async with link(small_buffers=True, max_write_backlog=None) as pair:
        for _ in range(7):
            pair.transport.send(WSMsgType.BINARY, bytes(10_000_000))
        assert pair.transport.write_backlog > 65 << 20
        assert pair.transport.state == WSState.OPEN


# --- cork, uncork, coalesce_writes


async def receives_at_once(peer, size):
    """Check that what was sent is there with one recv."""
    await asyncio.sleep(0.01)
    data = peer.sock.recv(1 << 20)
    assert len(data) == size
    peer.receive(data)


async def test_cork_joins_what_is_sent(side):
    async with connected(side) as pair:
        pair.transport.cork()
        for i in range(10):
            pair.transport.send(WSMsgType.TEXT, f"part {i}")
        pair.transport.send_ping(b"ping")
        assert pair.transport.write_backlog > 0
        await asyncio.sleep(0.01)
        with pytest.raises(BlockingIOError):
            pair.peer.sock.recv(1)
        sent = pair.transport.write_backlog
        pair.transport.uncork()
        assert pair.transport.write_backlog == 0
        await receives_at_once(pair.peer, sent)
        for i in range(10):
            assert await pair.peer.read_frame() == (1, b"part %d" % i)
        assert await pair.peer.read_frame() == (WSMsgType.PING, b"ping")


async def test_corked_frames_share_one_tls_record(side, server_tls, client_tls):
    async with connected(side, contexts=Contexts(server_tls, client_tls)) as pair:
        # Session tickets come before the first data; they are out of the way with it.
        pair.transport.send(WSMsgType.TEXT, "first")
        assert await pair.peer.read_frame() == (1, b"first")
        pair.transport.cork()
        for i in range(10):
            pair.transport.send(WSMsgType.TEXT, f"part {i}")
        pair.transport.uncork()
        await asyncio.sleep(0.01)
        record = pair.peer.sock.recv(1 << 20)
        assert len(record) == 5 + int.from_bytes(record[3:5], "big")
        pair.peer.receive(record)
        for i in range(10):
            assert await pair.peer.read_frame() == (1, b"part %d" % i)


async def test_cork_nests(link):
    async with link() as pair:
        pair.transport.cork()
        pair.transport.cork()
        pair.transport.send(WSMsgType.TEXT, "inner")
        pair.transport.uncork()
        assert pair.transport.write_backlog > 0
        pair.transport.send(WSMsgType.TEXT, "outer")
        pair.transport.uncork()
        assert pair.transport.write_backlog == 0
        pair.transport.uncork()  # one too many does no harm
        pair.transport.send(WSMsgType.TEXT, "free")
        assert pair.transport.write_backlog == 0
        for text in (b"inner", b"outer", b"free"):
            assert await pair.peer.read_frame() == (1, text)
        pair.transport.cork()
        pair.transport.send(WSMsgType.TEXT, "again")
        assert pair.transport.write_backlog > 0


async def test_nothing_stays_corked_at_the_end(link):
    async with link() as pair:
        pair.transport.cork()
        pair.transport.send(WSMsgType.TEXT, "last")
        pair.transport.send_close(1000)
        pair.transport.disconnect()
        assert await pair.peer.read_frame() == (1, b"last")
        assert await pair.peer.read_close() == (1000, "")
        assert await pair.peer.read_to_end() == b""


async def test_corked_bytes_count_for_the_watermarks_and_the_limit(link):
    async with link(max_write_backlog=1_000_000) as pair:
        pair.transport.cork()
        pair.transport.send(WSMsgType.BINARY, bytes(500_000))
        assert flow(pair.listener) == ["pause_writing"]
        pair.transport.send(WSMsgType.BINARY, bytes(600_000))
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.WRITE_BACKLOG


async def test_coalescing_joins_one_turn(side):
    async with connected(side, coalesce_writes=True) as pair:
        pair.transport.send(WSMsgType.TEXT, "one")
        pair.transport.send_ping(b"two")
        pair.transport.send(WSMsgType.BINARY, bytes(40_000))
        pair.transport.send_pong(b"four")
        sent = pair.transport.write_backlog
        assert sent > 40_000
        await receives_at_once(pair.peer, sent)
        assert pair.transport.write_backlog == 0
        assert await pair.peer.read_frame() == (WSMsgType.TEXT, b"one")
        assert await pair.peer.read_frame() == (WSMsgType.PING, b"two")
        assert await pair.peer.read_frame() == (WSMsgType.BINARY, bytes(40_000))
        assert await pair.peer.read_frame() == (WSMsgType.PONG, b"four")


async def test_coalescing_keeps_the_order(link):
    """Data, answers to PINGs and CLOSE leave in the order of the calls, whatever is corked."""

    class Answering(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            transport.send(WSMsgType.TEXT, b"answer " + frame.get_payload_as_bytes())

    async with link(Answering(), coalesce_writes=True) as pair:
        await pair.peer.send_bytes(
            b"".join(
                pair.peer.frame(kind, text)
                for kind, text in (
                    (WSMsgType.TEXT, "1"),
                    (WSMsgType.PING, "2"),
                    (WSMsgType.TEXT, "3"),
                )
            )
        )
        assert await pair.peer.read_frame() == (WSMsgType.TEXT, b"answer 1")
        assert await pair.peer.read_frame() == (WSMsgType.PONG, b"2")
        assert await pair.peer.read_frame() == (WSMsgType.TEXT, b"answer 3")
        pair.transport.send(WSMsgType.TEXT, "a")
        pair.transport.cork()
        pair.transport.send(WSMsgType.TEXT, "b")
        pair.transport.uncork()
        pair.transport.send(WSMsgType.TEXT, "c")
        pair.transport.send_close(1000)
        pair.transport.send(WSMsgType.TEXT, "d")
        for text in (b"a", b"b", b"c"):
            assert await pair.peer.read_frame() == (WSMsgType.TEXT, text)
        assert await pair.peer.read_close() == (1000, "")


async def test_coalesced_writes_before_disconnect(link):
    async with link(coalesce_writes=True) as pair:
        pair.transport.send(WSMsgType.TEXT, "last")
        pair.transport.disconnect()
        assert await pair.peer.read_frame() == (1, b"last")
        assert await pair.peer.read_to_end() == b""


async def test_coalesced_writes_before_abort_are_dropped(link):
    async with link(coalesce_writes=True) as pair:
        pair.transport.send(WSMsgType.TEXT, "dropped")
        pair.transport.disconnect(graceful=False)
        assert await pair.peer.read_to_end() == b""
        await pair.listener.closed()


# --- Incoming


class Stopping(Recorder):
    """Pauses after every frame."""

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        transport.pause_reading()
        transport.pause_reading()


@pytest.mark.parametrize("size", [0, 10, 3000, 20_000, 300_000])
async def test_pausing_in_a_callback_stops_the_frames_of_the_same_read(link, size):
    frames = [(WSMsgType.BINARY, i.to_bytes(1, "big") + bytes(size), True) for i in range(12)]
    async with link(Stopping()) as pair:
        data = b"".join(pair.peer.frame(kind, text) for kind, text, _ in frames)
        sending = asyncio.create_task(pair.peer.send_bytes(data))
        for i in range(len(frames)):
            assert await pair.listener.frame(i) == frames[i]
            await asyncio.sleep(0.001)
            assert len(pair.listener.frames) == i + 1
            assert pair.transport.is_reading_paused
            pair.transport.resume_reading()
            assert not pair.transport.is_reading_paused
            pair.transport.resume_reading()
        await sending
        assert pair.listener.frames == frames


@pytest.mark.parametrize("cut", range(1, 9))
async def test_pausing_with_an_unfinished_frame_behind(link, cut):
    async with link(Stopping()) as pair:
        data = pair.peer.frame(WSMsgType.TEXT, "first") + pair.peer.frame(WSMsgType.TEXT, "second")
        await pair.peer.send_bytes(data[:-cut])
        await pair.listener.frame(0)
        pair.transport.resume_reading()
        await asyncio.sleep(0)
        await pair.peer.send_bytes(data[-cut:])
        assert (await pair.listener.frame(1))[1] == b"second"


async def test_pausing_and_resuming_at_once_in_the_callback(link):
    class Hesitating(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            transport.pause_reading()
            transport.resume_reading()

    async with link(Hesitating()) as pair:
        texts = [b"%d" % i for i in range(300)]
        await pair.peer.send_bytes(b"".join(pair.peer.frame(WSMsgType.TEXT, t) for t in texts))
        await pair.listener.frame(299)
        assert [frame[1] for frame in pair.listener.frames] == texts


async def test_resume_and_pause_again_in_one_turn(link):
    async with link(Stopping()) as pair:
        await pair.peer.send_bytes(pair.peer.frame(WSMsgType.TEXT, "x") * 3)
        await pair.listener.frame(0)
        for _ in range(3):
            pair.transport.resume_reading()
            pair.transport.pause_reading()
        await asyncio.sleep(0.01)
        assert len(pair.listener.frames) == 1
        pair.transport.resume_reading()
        await pair.listener.frame(1)


async def test_pausing_in_on_ws_connected(link):
    class Later(Recorder):
        def on_ws_connected(self, transport):
            super().on_ws_connected(transport)
            transport.pause_reading()

    mask = link.args[0] == "server"
    early = picows_fast.build_frame(WSMsgType.TEXT, "early", mask=mask)
    async with link(Later(), behind_handshake=early * 2) as pair:
        await pair.peer.send(WSMsgType.TEXT, "late")
        await asyncio.sleep(0.01)
        assert pair.listener.frames == []
        pair.transport.resume_reading()
        await pair.listener.frame(2)
        assert [frame[1] for frame in pair.listener.frames] == [b"early", b"early", b"late"]


async def test_a_paused_connection_slows_its_peer_down(link):
    """Nothing is buffered without a bound: the sender is stopped by TCP."""
    async with link() as pair:
        pair.transport.pause_reading()
        data = pair.peer.encrypt(pair.peer.frame(WSMsgType.BINARY, bytes(100_000)) * 400)
        sending = asyncio.create_task(pair.peer.send_raw(data))
        await asyncio.sleep(0.05)
        assert not sending.done()
        pair.transport.resume_reading()
        await pair.listener.frame(399)
        await sending
        assert all(frame[1] == bytes(100_000) for frame in pair.listener.frames)


async def test_pausing_does_not_hide_the_end_for_good(link):
    async with link(Stopping()) as pair:
        data = pair.peer.frame(WSMsgType.TEXT, "1") + pair.peer.frame(WSMsgType.TEXT, "2")
        await pair.peer.send_raw(
            pair.peer.encrypt(data) + (pair.peer.close_notify() if pair.peer.tls else b"")
        )
        pair.peer.fin()
        await pair.listener.frame(0)
        await asyncio.sleep(0.01)
        assert pair.transport.state == WSState.OPEN
        pair.transport.resume_reading()
        await pair.listener.frame(1)
        await asyncio.sleep(0.01)
        assert pair.transport.state == WSState.OPEN
        pair.transport.resume_reading()
        await pair.listener.closed()
    assert pair.transport.disconnect_cause in (
        WSDisconnectCause.PEER_FIN,
        WSDisconnectCause.TLS_CLOSE_NOTIFY,
    )


async def test_tls_error_behind_frames_of_a_paused_connection(side, server_tls, client_tls):
    async with connected(side, Stopping(), contexts=Contexts(server_tls, client_tls)) as pair:
        data = pair.peer.encrypt(pair.peer.frame(WSMsgType.TEXT, "good") * 3)
        await pair.peer.send_raw(data + b"\x17\x03\x03\x00\x20" + bytes(32))
        for i in range(3):
            await pair.listener.frame(i)
            await asyncio.sleep(0)
            assert pair.transport.state == WSState.OPEN
            pair.transport.resume_reading()
        pair.peer.fin()
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.TLS_ERROR


async def test_protocol_error_behind_frames_of_a_paused_connection(link):
    async with link(Stopping()) as pair:
        data = pair.peer.frame(WSMsgType.TEXT, "good")
        await pair.peer.send_bytes(data * 2 + b"\xff" * 20)
        await pair.listener.frame(0)
        pair.transport.resume_reading()
        await pair.listener.frame(1)
        assert pair.transport.state == WSState.OPEN
        pair.transport.resume_reading()
        assert (await pair.peer.read_close())[0] == 1002


async def test_a_connection_reads_when_nobody_pauses_it(link, listeners):
    """None resumes what another one has paused, and each counts once."""
    queue, handshake = listeners.pause_owners
    async with link() as pair:
        transport = pair.transport
        pause = {
            "user": (transport.pause_reading, transport.resume_reading),
            "queue": (
                lambda: listeners.pause_for(transport, queue),
                lambda: listeners.resume_for(transport, queue),
            ),
            "handshake": (
                lambda: listeners.pause_for(transport, handshake),
                lambda: listeners.resume_for(transport, handshake),
            ),
        }
        for count, order in enumerate(itertools.permutations(pause)):
            for name in order:
                pause[name][0]()
                pause[name][0]()
            await pair.peer.send(WSMsgType.TEXT, "x")
            for name in order[1:]:
                pause[name][1]()
                pause[name][1]()
            await asyncio.sleep(0.005)
            assert transport.is_reading_paused
            assert len(pair.listener.frames) == count
            pause[order[0]][1]()
            assert not transport.is_reading_paused
            await pair.listener.frame(count)
            assert transport.stats().reading_pauses == count + 1


async def test_our_close_resumes_for_all_owners(link, listeners):
    queue, _ = listeners.pause_owners
    async with link(close_timeout=20) as pair:
        pair.transport.pause_reading()
        listeners.pause_for(pair.transport, queue)
        pair.transport.send_close(1000)
        assert not pair.transport.is_reading_paused
        listeners.pause_for(pair.transport, queue)
        assert not pair.transport.is_reading_paused
        await pair.peer.send_close(1000)
        await pair.listener.frame(0)
        pair.peer.close()
        await pair.listener.closed()


async def test_pausing_after_close_does_nothing(link):
    async with link(close_timeout=20) as pair:
        pair.transport.send_close(1000)
        pair.transport.pause_reading()
        assert not pair.transport.is_reading_paused
        await pair.peer.send_close(1000)
        await pair.listener.frame(0)
        pair.transport.pause_reading()
        pair.peer.close()
        await pair.listener.closed()


async def test_send_close_on_a_paused_connection_waits_for_the_peers(link):
    """Reading goes on for the peer's CLOSE; what comes before it is dropped."""
    async with link(Stopping(), close_timeout=20) as pair:
        await pair.peer.send_bytes(pair.peer.frame(WSMsgType.TEXT, "x" * 100) * 50)
        await pair.listener.frame(0)
        pair.transport.send_close(1000)
        await pair.peer.send(WSMsgType.TEXT, "more")
        await pair.peer.send_close(4000, "mine")
        await pair.listener.frame(1)
        pair.peer.fin()
        await pair.listener.closed()
    assert [frame[0] for frame in pair.listener.frames] == [WSMsgType.TEXT, WSMsgType.CLOSE]
    assert pair.transport.close_handshake.recv.code == 4000


@pytest.mark.parametrize("way", ["disconnect", "abort", "close_timeout"])
async def test_ending_a_paused_connection(link, way):
    async with link(Stopping(), close_timeout=0.05 if way == "close_timeout" else 20) as pair:
        await pair.peer.send_bytes(pair.peer.frame(WSMsgType.TEXT, "x") * 10)
        await pair.listener.frame(0)
        if way == "abort":
            pair.transport.disconnect(graceful=False)
        else:
            pair.transport.disconnect()
        if way == "disconnect":
            assert await pair.peer.read_to_end() == b""
            assert not pair.peer.reset_seen
            pair.peer.close()
        await pair.listener.closed()
    assert len(pair.listener.frames) == 1


async def test_both_directions_at_their_limit(link):
    """Two sides that send more than the buffers hold, each paused by the other, get all of it."""
    payload = os.urandom(LARGE // 2)

    class Swapping(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            transport.send(WSMsgType.BINARY, frame.get_payload_as_bytes())

    async with link(Swapping(), small_buffers=True) as pair:
        sending = asyncio.create_task(pair.peer.send(WSMsgType.BINARY, payload))
        pair.transport.send(WSMsgType.BINARY, payload)
        assert await pair.peer.read_frame() == (2, payload)
        assert await pair.peer.read_frame() == (2, payload)
        await sending
