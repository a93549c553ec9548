"""Channels with many clients: one that stalls among them, a recorded feed, many subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import tracemalloc
from pathlib import Path

import pytest

import picows_fast
from benchmarks.processes import in_c
from picows_fast import WSCloseCode, WSListener, WSMsgType
from picows_fast.cli.feedfile import read_feed
from picows_fast.layers.broadcast import Channel, SlowConsumer, Subscription

from . import needs
from .peers import SYSTEM_HOLDS, connected
from .support import serving, until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

TEXT, BINARY = WSMsgType.TEXT, WSMsgType.BINARY

HEALTHY = 99
KEYS = 50
FEED_CLIENTS = 500
SUBSCRIBERS, CHANNELS = 100, 1000
# Bytes of one subscription: its object, and its place in the channel and with the client.
SUBSCRIPTION_MEMORY = 384


class Collector(WSListener):
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == BINARY:
            self.payloads.append(frame.get_payload_as_bytes())


class Subscribing(WSListener):
    """A server's side of a client that is on one channel."""

    def __init__(self, channel: Channel, subscriptions: list[Subscription]) -> None:
        self._channel = channel
        self._subscriptions = subscriptions

    def on_ws_connected(self, transport):
        self._subscriptions.append(self._channel.subscribe(transport))


def is_sum(one: Subscription) -> bool:
    rest = one.sent + one.conflated + one.dropped + one.discarded + one.waiting
    return one.published == rest


async def all_sent(subscriptions: list[Subscription]) -> None:
    await until(lambda: not any(one.waiting for one in subscriptions), 60)


async def test_one_that_stalls_costs_the_others_nothing():
    """They get everything; it needs memory for its keys, and comes back to their newest state."""
    channel = Channel(policy=SlowConsumer.CONFLATE)
    subscriptions: list[Subscription] = []
    async with connected("server", small_buffers=True) as slow:
        stalled = channel.subscribe(slow.transport)
        async with serving(
            lambda request: Subscribing(channel, subscriptions), enable_auto_close=True
        ) as url:
            clients = [await picows_fast.ws_connect(Collector, url) for _ in range(HEALTHY)]
            published = []
            size = 1000
            for number in range(max(1000, 3 * SYSTEM_HOLDS // size)):
                published.append(f"{number % KEYS} {number} ".encode().ljust(size, b"."))
                channel.publish(BINARY, published[-1], key=number % KEYS)
                assert stalled.waiting <= KEYS or stalled.slow_since is None
                if number % 16 == 0:
                    await asyncio.sleep(0)
            await all_sent(subscriptions)
            assert stalled.waiting == KEYS
            assert stalled.waiting_bytes == KEYS * (size + 4)
            assert channel.slow == 1
            for transport, client in clients:
                await until(lambda client=client: len(client.payloads) == len(published), 60)
                assert client.payloads == published
                transport.disconnect()
                await transport.wait_disconnected()
        for one in (stalled, *subscriptions):
            assert is_sum(one)
        assert {one.sent for one in subscriptions} == {len(published)}
        newest: dict[bytes, bytes] = {}
        for _ in range(stalled.sent + stalled.waiting):
            payload = (await slow.peer.read_frame())[1]
            newest[payload.split()[0]] = payload
        assert sorted(newest.values()) == sorted(published[-KEYS:])
        assert (stalled.waiting, stalled.waiting_bytes, channel.slow) == (0, 0, 0)


def fnv_1a(data: bytes) -> str:
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"


@functools.cache
def recorded(path: Path) -> tuple[list[bytes], str]:
    """The messages of a feed, and the digest of all that a client gets."""
    payloads = [text.encode() for _, text in read_feed(path)]
    frames = [picows_fast.build_frame(TEXT, payload, mask=False) for payload in payloads]
    close = picows_fast.build_close_payload(WSCloseCode.GOING_AWAY, None)
    frames.append(picows_fast.build_frame(WSMsgType.CLOSE, close, mask=False))
    return payloads, fnv_1a(b"".join(frames))


@needs.c_reference
@needs.no_sanitizers("500 clients are a matter of time")
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_recorded_feed_at_full_speed(feeds):
    path = feeds / "kraken.jsonl.gz"
    if not path.is_file():
        pytest.skip("the feed is absent")
    payloads, digest = recorded(path)
    channel = Channel(path.name, max_messages=len(payloads))
    subscriptions: list[Subscription] = []
    async with serving(lambda request: Subscribing(channel, subscriptions), backlog=1024) as url:
        port = picows_fast.parse_url(url).port
        with in_c("drain", None, port=port, clients=FEED_CLIENTS, digests=1) as draining:
            await asyncio.to_thread(draining.answer)
            await until(lambda: len(channel) == FEED_CLIENTS, 60)
            for number, payload in enumerate(payloads):
                channel.publish(TEXT, payload)
                if number % 16 == 0:
                    await asyncio.sleep(0)
            await all_sent(subscriptions)
            for one in subscriptions:
                one.transport.send_close(WSCloseCode.GOING_AWAY)
                one.transport.disconnect()
            await asyncio.gather(*(one.transport.wait_disconnected() for one in subscriptions))
            received = await asyncio.to_thread(draining.finish)
    assert received["digests"] == [digest] * FEED_CLIENTS
    assert channel.sent == channel.published == FEED_CLIENTS * len(payloads)
    assert (channel.discarded, channel.closed_slow) == (0, 0)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_hundred_thousand_subscriptions():
    """What they need; to publish, leave and end asks for no more than those concerned."""
    channels = [Channel(str(number)) for number in range(CHANNELS)]
    async with contextlib.AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(connected("server")) for _ in range(SUBSCRIBERS)]
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for channel in channels:
            for pair in pairs:
                channel.subscribe(pair.transport)
        gc.collect()
        memory = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert memory <= SUBSCRIBERS * CHANNELS * SUBSCRIPTION_MEMORY
        assert channels[500].publish(TEXT, "x") == SUBSCRIBERS
        for pair in pairs:
            assert await pair.peer.read_frame() == (TEXT, b"x")
        for channel in channels[::2]:
            assert channel.unsubscribe(pairs[0].transport)
        for pair in pairs[1:]:
            pair.transport.disconnect(graceful=False)
            await pair.listener.closed()
        assert [len(channel) for channel in channels] == [0, 1] * (CHANNELS // 2)
        assert channels[1].publish(TEXT, "y") == 1
        assert await pairs[0].peer.read_frame() == (TEXT, b"y")
