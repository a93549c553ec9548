"""core: the connection's life as the listener and the transport see it."""

from __future__ import annotations

import asyncio

import pytest

import picows_fast
from picows_fast import WSCloseCode, WSDisconnectCause, WSMsgType, WSState

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
    assert transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
    assert transport.close_handshake.recv.code == WSCloseCode.OK
    assert transport.close_handshake.recv.reason == "bye"
    assert not transport.close_handshake.recv_then_sent
    assert client.events.count("disconnected") == 1


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
    assert transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
