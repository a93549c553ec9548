"""transport.stats() and the traffic in Server.stats(): what is counted, and that it is exact."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

import picows_fast
from picows_fast import FrameCount, TrafficStats, WSListener, WSMsgType
from picows_fast.layers.broadcast import Channel
from picows_fast.layers.messages import WSMessageListener
from picows_fast.layers.metrics import render_metrics, server_metrics

from .support import (
    Echo,
    Recorder,
    TextPings,
    raw_client,
    raw_server,
    read_frame,
    server_frame,
    serving,
    until,
)


async def test_frames_both_ways(io_options):
    server_side = Echo()
    async with serving(lambda request: server_side, **io_options) as url:
        before = time.time_ns()
        transport, _ = await picows_fast.ws_connect(Recorder, url, **io_options)
        opened = time.time_ns()
        transport.send(WSMsgType.TEXT, "four")
        transport.send(WSMsgType.BINARY, bytes(70_000))
        transport.send_reuse_external_bytearray(WSMsgType.BINARY, bytearray(30_014), 14)
        transport.send(WSMsgType.TEXT, "a", False)
        transport.send(WSMsgType.CONTINUATION, "bcd")
        transport.send_ping(b"12345")
        transport.send(WSMsgType.BINARY, bytes(400_000))  # in pieces
        await until(lambda: transport.stats().received.total.frames == 7)
        stats = transport.stats()
        assert stats.sent == TrafficStats(
            continuation=FrameCount(1, 3),
            text=FrameCount(2, 5),
            binary=FrameCount(3, 500_000),
            ping=FrameCount(1, 5),
        )
        assert stats.sent.total == FrameCount(7, 500_013)
        assert stats.received == dataclasses.replace(
            stats.sent, ping=FrameCount(), pong=FrameCount(1, 5)
        )
        assert before - 1e9 <= stats.connected_at_ns <= opened + 1e9
        assert stats.backlog_bytes == 0
        assert (stats.reading_pauses, stats.writing_pauses, stats.pings_sent) == (0, 0, 0)
        assert stats.round_trip_ns is None
        transport.send_close(1000, "bye")
        await transport.wait_disconnected()
        # The figures outlive the connection.
        assert transport.stats().sent.close == FrameCount(1, 5)
        assert transport.stats().received.close.frames == 1
        assert transport.stats().backlog_bytes == 0


TICK = 5e7  # ns, well above the milliseconds in which the kernel counts


@pytest.mark.parametrize("scheme", ["plain", "tls"])
async def test_when_bytes_came_last(scheme, server_tls, client_tls, request):
    tls = scheme == "tls"
    async with serving(lambda request: Echo(), tls=server_tls if tls else None) as url:
        transport, _ = await picows_fast.ws_connect(
            Recorder, url, ssl_context=client_tls if tls else None
        )

        def last():
            return transport.stats().last_received_at_ns

        sent = time.time_ns()
        transport.send(WSMsgType.TEXT, "a")
        await until(lambda: transport.stats().received.text.frames == 1)
        # A figure is too late by as long as the process is held up while it is made, and too early
        # by as much between two clocks: it is asked for until it is right.
        await until(lambda: sent - TICK < last() < time.time_ns() + TICK)
        await asyncio.sleep(0.2)
        await until(lambda: last() < time.time_ns() - TICK)
        sent = time.time_ns()
        transport.send(WSMsgType.TEXT, "b")
        await until(lambda: transport.stats().received.text.frames == 2)
        await until(lambda: sent - TICK < last() < time.time_ns() + TICK)
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()
        if request.config.getoption("--transport") != "loop":  # which has closed the socket
            await until(lambda: last() > sent - TICK)


async def test_last_received_without_tcp(tmp_path):
    """A Unix socket has no such account; auto-ping keeps one."""
    path = str(tmp_path / "socket")
    server = await picows_fast.ws_create_server(lambda request: Echo(), unix_path=path)
    async with server:
        for enabled in (False, True):
            transport, _ = await picows_fast.ws_connect(
                Recorder, "ws://host/", unix_path=path, enable_auto_ping=enabled
            )
            assert (transport.stats().last_received_at_ns is not None) == enabled
            transport.disconnect(graceful=False)
            await transport.wait_disconnected()


class Asks(Recorder):
    """Notes with each frame when data came last."""

    def __init__(self, last_data_received):
        super().__init__()
        self.last_data_received = last_data_received
        self.times = []

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        self.times.append(self.last_data_received(transport))


async def test_when_data_came_last(link, listeners):
    """Its frames tell, with the time of their own read; control frames do not."""
    listener = Asks(listeners.last_data_received)
    times = listener.times
    async with link(listener, enable_auto_ping=True, enable_auto_pong=False) as pair:
        began = time.time_ns()
        await pair.peer.send(WSMsgType.PING, "1")
        await listener.frame(0)
        assert times == [-1]
        assert pair.transport.stats().last_data_received_at_ns is None
        await pair.peer.send_bytes(pair.peer.frame(WSMsgType.BINARY, "a") * 2)
        await listener.frame(2)
        assert times[2] >= times[1] > 0
        for payload in "23":
            await asyncio.sleep(0.001)
            await pair.peer.send(WSMsgType.PONG, payload)
            await pair.peer.send(WSMsgType.PING, payload)
        await listener.frame(6)
        assert set(times[3:]) == {times[2]}
        await pair.peer.send(WSMsgType.TEXT, "b", fin=False)
        await listener.frame(7)
        assert times[7] > times[6]
        await asyncio.sleep(0.001)
        await pair.peer.send(WSMsgType.CONTINUATION, "c")
        await listener.frame(8)
        assert times[8] > times[7]
        told = pair.transport.stats().last_data_received_at_ns
        assert began - TICK < told < time.time_ns() + TICK


async def test_the_time_of_data_is_kept_for_who_asks(link, listeners):
    """Not without auto-ping, unless a layer wants it: from then on."""
    async with link() as pair:
        transport = pair.transport
        await pair.peer.send(WSMsgType.TEXT, "a")
        await pair.listener.frame(0)
        assert transport.stats().last_data_received_at_ns is None
        listeners.keep_times(transport)
        assert listeners.last_data_received(transport) == -1
        await pair.peer.send(WSMsgType.PING, "b")
        await pair.peer.send(WSMsgType.TEXT, "c")
        await pair.listener.frame(1)
        before = listeners.last_data_received(transport)
        assert time.monotonic() - 5 < before <= time.monotonic()
        listeners.keep_times(transport)
        assert listeners.last_data_received(transport) == before
        transport.pause_reading()
        transport.resume_reading()
        await pair.peer.send(WSMsgType.TEXT, "d")
        await pair.listener.frame(2)
        assert listeners.last_data_received(transport) > before


@pytest.mark.parametrize("end", ["abort", "close timeout", "max_write_backlog", "reset", "sent"])
async def test_backlog_that_was_lost(request, link, end):
    options = {"max_write_backlog": 900_000} if end == "max_write_backlog" else {}
    async with link(small_buffers=True, close_timeout=0.1, **options) as pair:
        transport = pair.transport
        transport.send(WSMsgType.BINARY, bytes(800_000))
        waiting = transport.write_backlog
        assert waiting > 0
        assert transport.stats().backlog_lost_bytes == 0
        if end == "abort":
            transport.disconnect(graceful=False)
        elif end == "close timeout":
            transport.send_close(1000)
        elif end == "max_write_backlog":
            assert not transport.send(WSMsgType.BINARY, bytes(800_000))
        elif end == "reset":
            if "loop-transport" in request.node.name:
                pytest.skip("the loop's transport drops what it holds and tells nobody")
            pair.peer.reset()
        else:
            reading = asyncio.create_task(pair.peer.read_to_end())
            transport.disconnect()
            await reading
            pair.peer.close()
        await pair.listener.closed()
        stats = transport.stats()
        assert stats.backlog_bytes == 0
        if end == "sent":
            assert stats.backlog_lost_bytes == 0
        else:
            # Below TLS the last is a close_notify; the system may have taken some more meanwhile.
            assert waiting // 2 < stats.backlog_lost_bytes < 1_700_000


async def test_pauses_and_backlog():
    """A peer that reads nothing, then everything."""
    go_on = asyncio.Event()
    taken = 0

    async def reads_late(reader, writer):
        nonlocal taken
        await go_on.wait()
        while data := await reader.read(1 << 20):
            taken += len(data)

    async with raw_server(reads_late) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url)
        while transport.write_backlog < 1_000_000:
            transport.send(WSMsgType.BINARY, bytes(100_000))
        stats = transport.stats()
        assert stats.backlog_bytes == transport.write_backlog
        assert stats.backlog_highest_bytes == stats.backlog_bytes
        assert stats.writing_pauses == 1
        go_on.set()
        await until(lambda: transport.write_backlog == 0)
        assert transport.stats().backlog_highest_bytes == stats.backlog_highest_bytes
        transport.pause_reading()
        transport.pause_reading()
        transport.resume_reading()
        transport.pause_reading()
        assert transport.stats().reading_pauses == 2
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


async def test_measured_round_trips():
    async with serving(lambda request: Echo()) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url)
        times = await transport.measure_roundtrip_time(5)
        stats = transport.stats()
        assert stats.pings_sent == stats.sent.ping.frames == 5
        assert stats.round_trip_ns == pytest.approx(times[-1] * 1e9, abs=2)
        smoothed = times[0]
        for seconds in times[1:]:
            smoothed += (seconds - smoothed) / 8
        assert stats.round_trip_smoothed_ns == pytest.approx(smoothed * 1e9, abs=10)
        transport.disconnect()
        await transport.wait_disconnected()


async def test_round_trips_of_auto_ping():
    """The peer answers after a while, but for the second ping."""
    pings = 0

    async def answers(reader, writer):
        nonlocal pings
        while True:
            opcode, payload = await read_frame(reader)
            if opcode != WSMsgType.PING:
                return
            pings += 1
            if pings != 2:
                await asyncio.sleep(0.02)
                writer.write(server_frame(WSMsgType.PONG, payload))

    async with raw_server(answers) as url:
        transport, _ = await picows_fast.ws_connect(
            Recorder,
            url,
            enable_auto_ping=True,
            auto_ping_idle_timeout=0.05,
            auto_ping_reply_timeout=30,
            auto_ping_strategy=picows_fast.WSAutoPingStrategy.PING_PERIODICALLY,
        )
        await until(lambda: transport.stats().round_trip_ns is not None)
        first = transport.stats()
        assert first.round_trip_ns == first.round_trip_smoothed_ns > 15_000_000
        assert first.pings_sent == first.sent.ping.frames
        # The answer to the third may be one to the second: nothing is learnt from it.
        await until(lambda: transport.stats().received.pong.frames == 2)
        assert transport.stats().round_trip_ns == first.round_trip_ns
        await until(lambda: transport.stats().round_trip_ns != first.round_trip_ns)
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


class EchoedPings(TextPings):
    pong = b"ping"


async def test_pings_of_the_users_own_making():
    async with serving(lambda request: Echo()) as url:
        transport, _ = await picows_fast.ws_connect(EchoedPings, url)
        (seconds,) = await transport.measure_roundtrip_time(1)
        stats = transport.stats()
        assert (stats.pings_sent, stats.sent.ping.frames, stats.sent.text.frames) == (1, 0, 1)
        assert stats.round_trip_ns == pytest.approx(seconds * 1e9, abs=2)
        transport.disconnect()
        await transport.wait_disconnected()


async def test_messages_that_were_joined():
    class Messages(WSMessageListener):
        def on_ws_message(self, transport, msg_type, payload):
            transport.send(msg_type, payload)

        def on_ws_connected(self, transport):
            self.transport = transport

    server_side = Messages()
    async with serving(lambda request: server_side) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url)
        transport.send(WSMsgType.TEXT, "whole")
        transport.send(WSMsgType.TEXT, "in ", False)
        transport.send(WSMsgType.CONTINUATION, "three ", False)
        transport.send(WSMsgType.CONTINUATION, "parts")
        await until(lambda: transport.stats().received.text.frames == 2)
        assert server_side.transport.stats().messages_joined == 1
        assert server_side.transport.stats().received.continuation == FrameCount(2, 11)
        transport.disconnect()
        await transport.wait_disconnected()


async def test_a_servers_totals():
    """They are of all connections, and stay when one has ended."""
    server = await picows_fast.ws_create_server(lambda request: Echo(), "127.0.0.1", 0)
    async with server:
        assert server.stats().received.total == FrameCount(0, 0)
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        transports = []
        for number in range(3):
            transport, _ = await picows_fast.ws_connect(Recorder, url)
            transport.send(WSMsgType.BINARY, bytes(100 * (number + 1)))
            transports.append(transport)
        await until(lambda: all(each.stats().received.binary.frames for each in transports))
        assert server.stats().received == TrafficStats(binary=FrameCount(3, 600))
        assert server.stats().sent == server.stats().received
        transports[0].disconnect(graceful=False)
        await until(lambda: server.stats().connections == 2)
        assert server.stats().received.binary == FrameCount(3, 600)
        text = render_metrics(server_metrics(server.stats())).decode()
        assert 'picows_fast_frames_total{direction="received",type="binary"} 3\n' in text
        assert 'picows_fast_payload_bytes_total{direction="sent",type="binary"} 600\n' in text
        assert 'picows_fast_frames_total{direction="sent",type="ping"} 0\n' in text


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
async def test_what_a_channel_sends(size):
    channel = Channel()
    server_side = Recorder()
    async with serving(lambda request: server_side) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url)
        channel.subscribe(server_side.transport)
        for _ in range(3):
            channel.publish(WSMsgType.BINARY, bytes(size))
        await until(lambda: transport.stats().received.binary.frames == 3)
        assert server_side.transport.stats().sent.binary == FrameCount(3, 3 * size)
        assert transport.stats().received == server_side.transport.stats().sent
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


async def test_what_breaks_the_rules_is_not_counted():
    server_side = Recorder()
    async with serving(lambda request: server_side) as url:
        reader, writer = await raw_client(url)
        writer.write(b"\x83\x80\0\0\0\0")  # a reserved opcode
        assert (await read_frame(reader))[0] == WSMsgType.CLOSE
        writer.close()
        await server_side.closed()
    stats = server_side.transport.stats()
    assert stats.received.total == FrameCount(0, 0)
    assert stats.sent.close.frames == 1


async def test_before_the_handshake_is_done():
    seen = []

    def factory(request):
        return Recorder()

    class Early(WSListener):
        def on_ws_connected(self, transport):
            seen.append(transport.stats())

    async with serving(factory) as url:
        transport, _ = await picows_fast.ws_connect(Early, url)
        assert seen[0].connected_at_ns is not None
        assert seen[0].received.total.frames == 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            seen[0].pings_sent = 1
        transport.disconnect()
        await transport.wait_disconnected()


@pytest.mark.parametrize("end", ["reset", "abort", "FIN"])
async def test_addresses_are_known_to_the_end(link, end):
    known = []

    class Asking(Recorder):
        def on_ws_disconnected(self, transport):
            ask = transport.underlying_transport.get_extra_info
            known.append((ask("peername"), ask("sockname"), repr(transport)))
            super().on_ws_disconnected(transport)

    async with link(Asking()) as pair:
        peername, sockname = pair.peer.sock.getsockname(), pair.peer.sock.getpeername()
        if end == "abort":
            pair.transport.disconnect(graceful=False)
        elif end == "reset":
            pair.peer.reset()
        else:
            pair.peer.close()
        await pair.listener.closed()
        ((*names, shown),) = known
        assert names == [peername, sockname]
        assert str(peername[1]) in shown
        ask = pair.transport.underlying_transport.get_extra_info
        assert [ask("peername"), ask("sockname")] == names
