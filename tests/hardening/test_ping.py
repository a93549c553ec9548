"""Dead peers are noticed, and measuring round trips gets in the way of nothing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from picows_fast import WSAutoPingStrategy, WSDisconnectCause

from ..frames import CLOSE, PING, PONG, TEXT
from ..support import Recorder, until
from .peers import Peer, waiting

GOING_AWAY = (1001).to_bytes(2, "big")

STRATEGIES = [WSAutoPingStrategy.PING_WHEN_IDLE, WSAutoPingStrategy.PING_PERIODICALLY]


async def next_ping(peer: Peer) -> bytes:
    while True:
        opcode, payload = await peer.read()
        if opcode == PING:
            return payload


@contextlib.asynccontextmanager
async def answering(peer: Peer):
    """The peer answers every PING while the body runs; gives the list of those it has answered."""
    answered = []

    async def answer() -> None:
        while True:
            payload = await next_ping(peer)
            answered.append(payload)
            peer.send(peer.frame(PONG, payload))

    task = asyncio.ensure_future(answer())
    try:
        yield answered
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# --- Measuring


async def test_two_measurements_at_once_both_end(facing_peer):
    """measure_roundtrip_time() may be called again while it runs: every caller gets its numbers."""
    listener = Recorder()
    async with facing_peer(listener) as peer, answering(peer) as answered:
        measurements = [peer.transport.measure_roundtrip_time(rounds) for rounds in (3, 2, 1)]
        results = await asyncio.wait_for(asyncio.gather(*measurements), 10)
        assert [len(result) for result in results] == [3, 2, 1]
        assert all(0 < seconds < 10 for result in results for seconds in result)
        assert len(answered) == 6
    assert listener.frames == []  # the answers are not the application's business


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("given_up", ["timeout", "cancelled"])
async def test_a_dead_peer_is_noticed_after_a_measurement_was_given_up(
    facing_peer, strategy, given_up
):
    """A measurement that timed out or was cancelled leaves auto-ping on: the peer that never
    answered it gets CLOSE 1001."""
    listener = Recorder()
    async with facing_peer(
        listener,
        enable_auto_ping=True,
        auto_ping_strategy=strategy,
        auto_ping_idle_timeout=0.1,
        auto_ping_reply_timeout=0.1,
    ) as peer:
        measurement = asyncio.ensure_future(peer.transport.measure_roundtrip_time(1))
        await next_ping(peer)
        if given_up == "timeout":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(measurement, 0.01)
        else:
            measurement.cancel()
            with pytest.raises(asyncio.CancelledError):
                await measurement
        frames = await peer.read_to_end()
        await peer.end()
        await listener.closed()
    assert frames[-1][0] == CLOSE
    assert frames[-1][1][:2] == GOING_AWAY
    assert peer.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_auto_ping_goes_on_after_a_measurement_was_given_up(facing_peer, strategy):
    """After a measurement was given up and its PONG came late, auto-ping pings as before, later
    measurements are right, and the peer's death is noticed."""
    listener = Recorder()
    async with facing_peer(
        listener,
        enable_auto_ping=True,
        auto_ping_strategy=strategy,
        auto_ping_idle_timeout=0.05,
        auto_ping_reply_timeout=0.5,
    ) as peer:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(peer.transport.measure_roundtrip_time(1), 0.01)
        late = await next_ping(peer)
        measurement = asyncio.ensure_future(peer.transport.measure_roundtrip_time(1))
        second = await next_ping(peer)
        peer.send(peer.frame(PONG, late))
        await asyncio.sleep(0.02)
        assert not measurement.done()  # the late answer is not taken for this one's
        peer.send(peer.frame(PONG, second))
        assert len(await asyncio.wait_for(measurement, 10)) == 1
        async with answering(peer) as answered:
            await until(lambda: len(answered) >= 3)
        frames = await peer.read_to_end()
        await peer.end()
        await listener.closed()
    assert frames[-1][0] == CLOSE
    assert frames[-1][1][:2] == GOING_AWAY
    assert listener.frames == []


async def test_a_measurement_of_a_dead_peer_ends_with_the_connection(facing_peer):
    """A measurement does not wait for ever: auto-ping's verdict ends it."""
    listener = Recorder()
    async with facing_peer(
        listener,
        enable_auto_ping=True,
        auto_ping_idle_timeout=0.1,
        auto_ping_reply_timeout=0.1,
        close_timeout=0.1,
    ) as peer:
        with pytest.raises(Exception, match="PING_TIMEOUT"):
            await asyncio.wait_for(peer.transport.measure_roundtrip_time(1), 10)
    assert peer.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


# --- Timeouts


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_reply_may_take_longer_than_the_idle_time(facing_peer, strategy):
    """auto_ping_reply_timeout may exceed auto_ping_idle_timeout: a peer that answers keeps its
    connection."""
    listener = Recorder()
    async with facing_peer(
        listener,
        enable_auto_ping=True,
        auto_ping_strategy=strategy,
        auto_ping_idle_timeout=0.02,
        auto_ping_reply_timeout=5,
    ) as peer:
        for _ in range(4):
            payload = await next_ping(peer)
            await asyncio.sleep(0.03)  # longer than the idle time, well within the reply time
            peer.send(peer.frame(PONG, payload))
        peer.send(peer.frame(TEXT, b"still here"))
        assert (await listener.frame())[1] == b"still here"
        assert peer.transport.disconnect_cause is None


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("idle", "reply"), [(0.02, 0.1), (0.1, 0.02), (0.05, 0.05)])
async def test_a_dead_peer_gets_going_away(facing_peer, strategy, idle, reply):
    """A peer that answers no ping within auto_ping_reply_timeout gets CLOSE 1001, whichever timeout
    is longer."""
    listener = Recorder()
    async with facing_peer(
        listener,
        enable_auto_ping=True,
        auto_ping_strategy=strategy,
        auto_ping_idle_timeout=idle,
        auto_ping_reply_timeout=reply,
    ) as peer:
        frames = await peer.read_to_end()
        await peer.end()
        await listener.closed()
    assert frames[0][0] == PING
    assert frames[-1][0] == CLOSE
    assert frames[-1][1][:2] == GOING_AWAY
    assert peer.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT
    assert peer.transport.close_handshake.sent.code == 1001


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_dead_peer_is_noticed_while_much_waits_for_it(facing_peer, strategy):
    """A peer that neither answers nor reads loses its connection: CLOSE cannot reach it, so the
    closing deadline ends it."""
    listener = Recorder()
    async with facing_peer(
        listener,
        enable_auto_ping=True,
        auto_ping_strategy=strategy,
        auto_ping_idle_timeout=0.05,
        auto_ping_reply_timeout=0.05,
        close_timeout=0.05,
    ) as peer:
        peer.writer.transport.pause_reading()
        while waiting(peer.transport) < 1_000_000:
            peer.transport.send(TEXT, bytes(100_000))
        await listener.closed()
    assert peer.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT
