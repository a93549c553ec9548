"""A slow and jumbled network: what was sent arrives whole and in order, or the connection ends in
time.
"""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType, WSState

from ..support import Echo, Recorder, address, serving
from .checks import KIB, MIB, Leftovers, log_below, memory_below
from .proxy import FaultyProxy, Flow
from .test_cuts import Reference, Scene, closed, delivered, without_pongs

pytestmark = pytest.mark.usefixtures("leaves_nothing")

Cause = WSDisconnectCause

CHUNK = bytes(64 * KIB)


async def converse_whole(reference: Reference, up: Flow, down: Flow) -> None:
    """A conversation through these flows comes to the same end as an undisturbed one."""
    client, server, error = await reference.scene.converse(up, down)
    assert error is None
    assert without_pongs(client) == reference.frames["down"]
    assert without_pongs(server) == reference.frames["up"]
    for listener in (client, server):
        assert listener.transport.disconnect_cause == closed(listener.transport)
        assert listener.events[0] == "connected"
        assert listener.events.count("disconnected") == 1
        assert listener.events[-1] == "disconnected"
        assert listener.transport.close_handshake.recv.code == 1000
        assert listener.transport.close_handshake.sent.code == 1000


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_small_pieces(contexts, io_options, size, caplog):
    """Every write is cut into pieces, each of which arrives in a turn of its own."""
    with log_below(caplog, logging.WARNING):
        async with Scene(contexts, **io_options) as scene, Reference(scene) as reference:
            await converse_whole(reference, Flow(piece=size), Flow(piece=size))


async def test_pieces_at_random(contexts, io_options, caplog):
    """One direction crawls while the other does not, in all combinations of sizes."""
    rng = random.Random(3)
    with log_below(caplog, logging.WARNING):
        async with Scene(contexts, **io_options) as scene, Reference(scene) as reference:
            for _ in range(5):
                up, down = (Flow(piece=rng.choice((None, 5, 17, 100))) for _ in range(2))
                await converse_whole(reference, up, down)


async def test_latency(contexts, io_options, caplog):
    """Each write takes a while."""
    with log_below(caplog, logging.WARNING):
        async with Scene(contexts, **io_options) as scene, Reference(scene) as reference:
            flows = [Flow(piece=64 * KIB, pause=0.005) for _ in range(2)]
            await converse_whole(reference, *flows)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_end_overtakes_data_of_the_other_direction(direction, io_options, caplog):
    """One direction is held back at some byte until the other has ended: its receiver sees FIN
    first.

    Whoever ended its stream still gets everything that was sent before it was known.
    """
    with log_below(caplog, logging.WARNING):
        async with Scene(**io_options) as scene, Reference(scene) as reference:
            total = len(reference.sent[direction])
            leftovers = Leftovers()
            for place in range(0, total, 9):
                flows = {"up": Flow(), "down": Flow()}
                held, free = flows[direction], flows["down" if direction == "up" else "up"]
                held.hold_at, held.hold = place, free.ended
                # The other direction ends by itself only if the conversation has come far enough.
                ending = asyncio.get_running_loop().call_later(0.02, held.hold.set)
                client, server, error = await scene.converse(flows["up"], flows["down"])
                ending.cancel()
                assert error is None
                assert without_pongs(client) == delivered(
                    bytes(flows["down"].forwarded), to_client=True
                )
                assert without_pongs(server) == delivered(
                    bytes(flows["up"].forwarded), to_client=False
                )
                for listener in (client, server):
                    assert listener.events.count("disconnected") == 1
                    assert listener.transport.disconnect_cause == closed(listener.transport)
                await leftovers.none(f"held at byte {place} of {direction}")


@pytest.mark.parametrize("sender", ["client", "server"])
async def test_data_and_end_arrive_together(contexts, io_options, sender, caplog):
    """Everything that one side sends until it ends its stream arrives in one piece with the end."""
    client, server = Recorder(), Recorder()
    join = Flow()
    flows = (join, Flow()) if sender == "client" else (Flow(), join)
    with log_below(caplog, logging.WARNING):
        async with (
            serving(lambda request: server, tls=contexts and contexts.server, **io_options) as url,
            FaultyProxy(address(url), lambda number: flows, scheme=url.split(":")[0]) as proxy,
        ):
            await picows_fast.ws_connect(
                lambda: client, proxy.url, ssl_context=contexts and contexts.client, **io_options
            )
            await server.until(lambda: server.transport)
            receiver = server if sender == "client" else client
            transport = (client if sender == "client" else server).transport
            join.join_at = len(join.forwarded)
            for number in range(50):
                transport.send(WSMsgType.TEXT, str(number))
            transport.send(WSMsgType.BINARY, bytes(300 * KIB))
            transport.disconnect()
            await receiver.closed()
            await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert [frame[1] for frame in receiver.frames[:50]] == [b"%d" % number for number in range(50)]
    assert receiver.frames[50][1] == bytes(300 * KIB)
    cause = Cause.TLS_CLOSE_NOTIFY if contexts else Cause.PEER_FIN
    assert receiver.transport.disconnect_cause == cause
    assert transport.disconnect_cause == Cause.LOCAL_DISCONNECT


@pytest.mark.parametrize("stalled", ["up", "down"])
async def test_a_link_that_stalls(contexts, io_options, stalled, caplog):
    """Auto-ping notices that nothing comes through, whichever direction it is that has died."""
    listener = Recorder()
    flows = {"up": Flow(), "down": Flow()}
    with log_below(caplog, logging.WARNING):
        async with (
            serving(lambda request: Echo(), tls=contexts and contexts.server, **io_options) as url,
            FaultyProxy(
                address(url), lambda number: (flows["up"], flows["down"]), scheme=url.split(":")[0]
            ) as proxy,
        ):
            transport, _ = await picows_fast.ws_connect(
                lambda: listener,
                proxy.url,
                ssl_context=contexts and contexts.client,
                enable_auto_ping=True,
                auto_ping_idle_timeout=0.1,
                auto_ping_reply_timeout=0.1,
                close_timeout=0.05,
                **io_options,
            )
            transport.send(WSMsgType.TEXT, "before")
            await listener.frame()
            flows[stalled].stall_at = 0
            await listener.closed()
    assert transport.disconnect_cause == Cause.PING_TIMEOUT
    assert transport.state == WSState.CLOSED
    assert listener.events.count("disconnected") == 1


@pytest.mark.parametrize("way", ["none", "drip"])
async def test_backlog_for_a_stalled_link(contexts, io_options, way, caplog):
    """What is sent into a link that takes nothing, or a byte at a time, is kept up to
    `max_write_backlog`, and no longer than the connection: less than 4 MiB at once, the proxy's and
    the server's share included.
    """
    client = Recorder()
    up = Flow()
    async with (
        serving(lambda request: Echo(), tls=contexts and contexts.server, **io_options) as url,
        FaultyProxy(address(url), lambda number: (up, Flow()), scheme=url.split(":")[0]) as proxy,
    ):
        transport, _ = await picows_fast.ws_connect(
            lambda: client,
            proxy.url,
            ssl_context=contexts and contexts.client,
            max_write_backlog=MIB,
            **io_options,
        )
        if way == "none":
            up.stall_at = 0
        else:
            up.piece = 1
        async with memory_below(peak=4 * MIB, held=256 * KIB):
            for _ in range(1000):
                transport.send(WSMsgType.BINARY, CHUNK)
                await asyncio.sleep(0)
                if transport.state == WSState.CLOSED:
                    break
            await client.closed()
            assert "pause_writing" in client.events
            assert transport.write_backlog == 0
    assert transport.disconnect_cause == Cause.WRITE_BACKLOG
    assert client.events.count("disconnected") == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
