"""Ends that cross, overtake each other or get lost on the way, between a client and a server of
ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType, WSState, WSTransport

from ..peers import TIMEOUT, Contexts
from ..support import Recorder, address, serving
from .checks import KIB, log_below
from .proxy import FaultyProxy, Flow, reset_on_close

pytestmark = pytest.mark.usefixtures("leaves_nothing", "quiet")

Cause = WSDisconnectCause


@dataclass
class Pair:
    """A client and a server of ours, and the proxy's flows between them."""

    client: Recorder = field(default_factory=Recorder)
    server: Recorder = field(default_factory=Recorder)
    up: Flow = field(default_factory=Flow)
    down: Flow = field(default_factory=Flow)
    proxy: Any = None

    @property
    def transports(self) -> tuple[WSTransport, WSTransport]:
        assert self.client.transport is not None
        assert self.server.transport is not None
        return self.client.transport, self.server.transport

    async def ended(self) -> None:
        """Both are told, once, and everything is over."""
        for listener in (self.client, self.server):
            await listener.closed()
            await asyncio.wait_for(listener.transport.wait_disconnected(), TIMEOUT)
            assert listener.events.count("disconnected") == 1
            assert listener.events[-1] == "disconnected"
            assert listener.transport.state == WSState.CLOSED
            assert listener.transport.write_backlog == 0

    @property
    def causes(self) -> tuple[Cause, Cause]:
        client, server = self.transports
        return client.disconnect_cause, server.disconnect_cause


@contextlib.asynccontextmanager
async def paired(contexts: Contexts | None, **options: Any) -> AsyncIterator[Pair]:
    pair = Pair()
    async with (
        serving(lambda request: pair.server, tls=contexts and contexts.server, **options) as url,
        FaultyProxy(
            address(url), lambda number: (pair.up, pair.down), scheme=url.split(":")[0]
        ) as pair.proxy,
    ):
        await picows_fast.ws_connect(
            lambda: pair.client, pair.proxy.url, ssl_context=contexts and contexts.client, **options
        )
        await pair.server.until(lambda: pair.server.transport)
        yield pair
        await pair.ended()


@pytest.fixture
def quiet(caplog):
    """Nothing here deserves more than INFO."""
    with log_below(caplog, logging.WARNING):
        yield


@pytest.mark.parametrize(
    "automatic", [False, True], ids=["answered by nobody", "enable_auto_close"]
)
async def test_closes_that_cross(contexts, io_options, automatic):
    """Both say CLOSE before they hear the other's: each has begun, none answers, and the server
    ends the stream.
    """
    async with paired(contexts, close_timeout=5, enable_auto_close=automatic, **io_options) as pair:
        client, server = pair.transports
        client.send_close(1000, "bye")
        server.send_close(1001, "going")
        await pair.ended()
        assert pair.causes == (Cause.LOCAL_CLOSE, Cause.LOCAL_CLOSE)
        for transport, code in ((client, 1001), (server, 1000)):
            assert transport.close_handshake.recv.code == code
            assert not transport.close_handshake.recv_then_sent
    assert len(pair.client.frames) == len(pair.server.frames) == 1


async def test_disconnects_that_cross(contexts, io_options):
    """Both end their streams at once, with data under way that nobody reads any more."""
    async with paired(contexts, close_timeout=5, **io_options) as pair:
        for transport in pair.transports:
            transport.send(WSMsgType.BINARY, bytes(200 * KIB))
            transport.disconnect()
        await pair.ended()
        assert pair.causes == (Cause.LOCAL_DISCONNECT, Cause.LOCAL_DISCONNECT)


@pytest.mark.parametrize("ends", ["client", "server"])
async def test_disconnect_while_the_other_sends(contexts, io_options, ends):
    """What was sent before the end arrives, although the other side was sending and its data was
    dropped unread.
    """
    async with paired(contexts, close_timeout=5, **io_options) as pair:
        ending, sending = pair.transports if ends == "client" else pair.transports[::-1]
        receiver = pair.server if ends == "client" else pair.client
        for _ in range(20):
            sending.send(WSMsgType.BINARY, bytes(64 * KIB))
        ending.send(WSMsgType.BINARY, b"x" * 300 * KIB)
        ending.send(WSMsgType.TEXT, "the last")
        ending.disconnect()
        await pair.ended()
        assert ending.disconnect_cause == Cause.LOCAL_DISCONNECT
        assert sending.disconnect_cause in (Cause.PEER_FIN, Cause.TLS_CLOSE_NOTIFY)
    assert [len(frame[1]) for frame in receiver.frames] == [300 * KIB, len("the last")]


async def test_close_behind_a_backlog(contexts, io_options):
    """CLOSE and the end keep their place behind data that a slow link takes its time for."""
    async with paired(contexts, close_timeout=10, enable_auto_close=True, **io_options) as pair:
        client, _ = pair.transports
        pair.up.piece = 16 * KIB
        for number in range(10):
            client.send(WSMsgType.BINARY, bytes([number]) * 100 * KIB)
        client.send_close(1000)
        await pair.ended()
        assert pair.causes == (Cause.LOCAL_CLOSE, Cause.CLOSE_FRAME)
    assert [frame[1][:1] for frame in pair.server.frames[:-1]] == [bytes([n]) for n in range(10)]
    assert pair.server.frames[-1][0] == WSMsgType.CLOSE


@pytest.mark.parametrize("ends", ["client", "server"])
async def test_an_end_that_gets_lost(contexts, io_options, ends):
    """FIN never gets through: who sent it gives up after close_timeout, and its reset gets
    through.
    """
    async with paired(contexts, close_timeout=0.1, **io_options) as pair:
        lost = pair.up if ends == "client" else pair.down
        lost.hold_end = asyncio.Event()
        lost.hold = asyncio.Event()  # and close_notify neither
        ending, other = pair.transports if ends == "client" else pair.transports[::-1]
        ending.disconnect()
        await (pair.client if ends == "client" else pair.server).closed()
        assert ending.disconnect_cause == Cause.LOCAL_DISCONNECT
        assert other.state == WSState.OPEN
        for sock in (pair.proxy.passages[0].client, pair.proxy.passages[0].server):
            reset_on_close(sock)
        lost.hold_end.set()
        lost.hold.set()
        await pair.ended()


@pytest.mark.parametrize("cut", ["fin", "reset"])
async def test_cut_behind_the_closing_handshake(contexts, io_options, cut):
    """CLOSE has gone both ways: how the stream ends then does not matter, TLS truncated or not."""
    async with paired(contexts, close_timeout=5, enable_auto_close=True, **io_options) as pair:
        client, _ = pair.transports
        # The server's CLOSE gets through, what follows it (close_notify, FIN) does not.
        size = 4 if contexts is None else 4 + 22
        pair.down.cut_at, pair.down.cut = len(pair.down.forwarded) + size, cut
        client.send_close(1000)
        await pair.ended()
        assert pair.causes == (Cause.LOCAL_CLOSE, Cause.CLOSE_FRAME)
        assert client.close_handshake.recv.code == 1000


async def test_reset_of_both_at_once_in_a_conversation(contexts, io_options):
    """While both send all the time."""
    async with paired(contexts, close_timeout=5, **io_options) as pair:
        pair.up.cut_at, pair.up.cut = len(pair.up.forwarded) + 100_000, "reset"
        while WSState.OPEN in (transport.state for transport in pair.transports):
            for transport in pair.transports:
                transport.send(WSMsgType.BINARY, bytes(1000))
            await asyncio.sleep(0)
        await pair.ended()
        assert pair.causes == (Cause.PEER_RESET, Cause.PEER_RESET)


@pytest.mark.parametrize("cut", ["fin", "reset", "half"])
async def test_many_connections_cut_at_once(contexts, io_options, cut):
    """A link with 50 connections fails: each ends by itself, and the server goes on serving."""
    listeners: list[Recorder] = []
    flows: list[Flow] = []

    def factory(request: object) -> Recorder:
        listeners.append(Recorder())
        return listeners[-1]

    def script(number: int) -> tuple[Flow, Flow]:
        flows.append(Flow(cut=cut))
        return flows[-1], Flow()

    tls = {"ssl_context": contexts and contexts.client}
    async with serving(factory, tls=contexts and contexts.server, **io_options) as url:
        async with FaultyProxy(address(url), script, scheme=url.split(":")[0]) as proxy:
            clients = await asyncio.gather(
                *(
                    picows_fast.ws_connect(Recorder, proxy.url, **tls, **io_options)
                    for _ in range(50)
                )
            )
            for flow, (transport, _) in zip(flows, clients, strict=True):
                flow.cut_at = len(flow.forwarded) + 3
                transport.send(WSMsgType.TEXT, "on the way")
            for transport, listener in clients:
                await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
                assert listener.events == ["connected", "disconnected"]
            for listener in listeners:
                await listener.closed()
                assert listener.events == ["connected", "disconnected"]
        transport, client = await picows_fast.ws_connect(Recorder, url, **tls, **io_options)
        await listeners[-1].until(lambda: listeners[-1].transport)
        listeners[-1].transport.send(WSMsgType.TEXT, "still here")
        assert (await client.frame())[1] == b"still here"
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


@pytest.mark.parametrize("size", [10, 100_000, 600_000])
async def test_reset_behind_unread_data(link, size):
    """Data and RST are there when the loop looks, which happens once: uvloop gives up a descriptor
    with an error after one call, whatever is left to read.
    """
    async with link(Recorder()) as pair:
        payload = bytes(size)
        await pair.peer.send(WSMsgType.TEXT, b"first")
        await pair.listener.frame()
        data = pair.peer.encrypt(b"".join(pair.peer.frame(WSMsgType.BINARY, b"") for _ in range(3)))
        data += pair.peer.encrypt(pair.peer.frame(WSMsgType.BINARY, payload))
        # In one go, without a turn of the loop.
        with contextlib.suppress(BlockingIOError):
            while data:
                data = data[pair.peer.sock.send(data) :]
        pair.peer.reset()
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PEER_RESET
