"""Channels: who gets what in which order, in how few system calls, and what slow ones get."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import sys
import threading
import time

import pytest
import websockets.asyncio.client

import picows_fast
from picows_fast import WSCloseCode, WSConnectionClosedError, WSListener, WSMsgType
from picows_fast.layers.broadcast import Channel, SlowConsumer, Subscription

from .peers import UPGRADE_REQUEST, connected
from .support import Recorder, serving, until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

TEXT, BINARY = WSMsgType.TEXT, WSMsgType.BINARY
COUNTERS = ("published", "sent", "conflated", "dropped", "discarded")


@pytest.fixture
def subscriber(contexts, io_options):
    """`peers.connected` for a server's side: plain and TLS, by descriptor and loop transport."""

    def connect(**options):
        return connected("server", contexts=contexts, **io_options, **options)

    return connect


def check(*counted: Subscription | Channel) -> None:
    for one in counted:
        waiting = one.waiting if isinstance(one, Subscription) else sum(s.waiting for s in one)
        rest = one.sent + one.conflated + one.dropped + one.discarded + waiting
        assert one.published == rest, [(name, getattr(one, name)) for name in COUNTERS]


def stall(channel: Channel, subscription: Subscription, size: int = 50_000) -> int:
    """Publish to a client that does not read until it is behind; returns how many messages."""
    for count in itertools.count():
        if subscription.slow_since is not None:
            return count
        channel.publish(BINARY, bytes(size))
        subscription.transport.send(TEXT, b"")  # makes the outbox write at once
        assert count < 10_000
    raise AssertionError


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- Publishing


async def test_a_subscriber_gets_what_is_published(subscriber):
    channel = Channel("prices")
    async with subscriber() as one, subscriber() as two:
        assert channel.publish(TEXT, "nobody") == 0
        first, second = channel.subscribe(one.transport), channel.subscribe(two.transport)
        assert channel.publish(TEXT, "grüße") == 2
        assert channel.publish(BINARY, bytearray(b"\x00\x01")) == 2
        assert channel.publish(BINARY, memoryview(bytes(70_000))) == 2
        assert channel.publish(TEXT, None) == 2
        for peer in (one.peer, two.peer):
            assert await peer.read_frame() == (TEXT, "grüße".encode())
            assert await peer.read_frame() == (BINARY, b"\x00\x01")
            assert await peer.read_frame() == (BINARY, bytes(70_000))
            assert await peer.read_frame() == (TEXT, b"")
        assert (first.published, first.sent, second.sent) == (4, 4, 4)
        assert (channel.messages, channel.published, channel.sent) == (5, 8, 8)
        check(channel, first, second)


async def test_order_is_the_order_of_publishing_across_channels(subscriber):
    channels = [Channel(str(n)) for n in range(3)]
    async with subscriber() as pair:
        for channel in channels:
            channel.subscribe(pair.transport)
        for number in range(60):
            channels[number * 7 % 3].publish(TEXT, str(number))
            if number % 20 == 10:
                await turns()
        for number in range(60):
            assert await pair.peer.read_frame() == (TEXT, str(number).encode())


class PacketListener(socket.socket):
    """A listening socket whose connections keep what each send() gave apart from the next."""

    type = socket.SOCK_STREAM  # what a server asks for


@pytest.mark.skipif(sys.platform != "linux", reason="SOCK_SEQPACKET of Unix sockets is Linux's")
async def test_a_turn_leaves_as_one_system_call(tmp_path):
    """For each client, whatever channels it is on, and however many messages there are."""
    channels, at_once = [Channel("a"), Channel("b")], Channel(join_turn=False)
    loop = asyncio.get_running_loop()
    listening = PacketListener(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(tmp_path / "socket"))
    listeners = []

    def factory(request):
        listeners.append(Recorder())
        return listeners[-1]

    server = await picows_fast.ws_create_server(factory, sock=listening)
    peers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    try:
        for peer in peers:
            peer.setblocking(False)
            peer.connect(str(tmp_path / "socket"))
            peer.send(UPGRADE_REQUEST)
            assert (await loop.sock_recv(peer, 4096)).startswith(b"HTTP/1.1 101 ")
        for listener in listeners:
            for channel in (*channels, at_once):
                channel.subscribe(listener.transport)
        for turn in range(3):
            for number in range(16):
                channels[number % 2].publish(TEXT, f"{turn} {number}")
            for peer in peers:
                with pytest.raises(BlockingIOError):
                    peer.recv(1)
            await turns()
            texts = [f"{turn} {number}" for number in range(16)]
            everything = b"".join(picows_fast.build_frame(TEXT, t, mask=False) for t in texts)
            for peer in peers:
                assert peer.recv(4096) == everything
                with pytest.raises(BlockingIOError):
                    peer.recv(1)
        at_once.publish(TEXT, "now")
        at_once.publish(TEXT, "too")
        for peer in peers:
            assert [peer.recv(4096), peer.recv(4096)] == [b"\x81\x03now", b"\x81\x03too"]
    finally:
        for peer in peers:
            peer.close()
        server.close()
        server.abort_clients()
        await server.wait_closed()


async def test_what_the_application_sends_keeps_its_place(subscriber):
    """Frames that only wait for the end of the turn go ahead of a direct send, and of CLOSE."""
    channel = Channel()
    async with subscriber() as pair:
        subscription = channel.subscribe(pair.transport)
        channel.publish(TEXT, "1")
        pair.transport.send(TEXT, "2")
        channel.publish(TEXT, "3")
        pair.transport.send_close(WSCloseCode.OK)
        assert channel.publish(TEXT, "4") == 0
        assert not subscription.is_active
        for text in (b"1", b"2", b"3"):
            assert await pair.peer.read_frame() == (TEXT, text)
        assert await pair.peer.read_close() == (1000, "")
        assert (subscription.sent, subscription.discarded) == (2, 0)


async def test_no_message_comes_between_the_fragments_of_another(subscriber):
    channel = Channel()
    async with subscriber() as pair:
        channel.subscribe(pair.transport)
        pair.transport.send(TEXT, "a", fin=False)
        channel.publish(TEXT, "whole")
        await turns()
        pair.transport.send_ping(b"p")
        pair.transport.send(WSMsgType.CONTINUATION, "b", fin=False)
        await turns()
        pair.transport.send_reuse_external_bytearray(
            WSMsgType.CONTINUATION, bytearray(14 + 5000), 14
        )
        frames = [await pair.peer.read_frame() for _ in range(5)]
        assert frames == [
            (TEXT, b"a"),
            (WSMsgType.PING, b"p"),
            (WSMsgType.CONTINUATION, b"b"),
            (WSMsgType.CONTINUATION, bytes(5000)),
            (TEXT, b"whole"),
        ]


@pytest.mark.parametrize("coalesce", [False, True])
async def test_corked_and_coalescing_connections(subscriber, coalesce):
    channel = Channel()
    async with subscriber(coalesce_writes=coalesce) as pair:
        channel.subscribe(pair.transport)
        pair.transport.send(TEXT, "1")
        channel.publish(TEXT, "2")
        await turns()
        pair.transport.cork()
        channel.publish(TEXT, "3")
        await turns()
        pair.transport.uncork()
        channel.publish(TEXT, "4")
        for text in (b"1", b"2", b"3", b"4"):
            assert await pair.peer.read_frame() == (TEXT, text)


async def test_publishing_from_another_thread(subscriber):
    channel = Channel()
    async with subscriber() as pair:
        channel.subscribe(pair.transport)
        errors = []

        def publish():
            for number in range(200):
                channel.publish_threadsafe(TEXT, str(number))
            for wrong in (
                lambda: channel.publish(TEXT, "x"),
                lambda: channel.unsubscribe(pair.transport),
                channel.subscription(pair.transport).unsubscribe,
                lambda: Channel().subscribe(pair.transport),
            ):
                try:
                    wrong()
                except RuntimeError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=publish)
        thread.start()
        for number in range(200):
            assert await pair.peer.read_frame() == (TEXT, str(number).encode())
        thread.join()
        assert len(errors) == 4
        assert all("must be called from the event loop's thread" in error for error in errors)


async def test_what_cannot_be_published():
    channel = Channel()
    for msg_type in (WSMsgType.PING, WSMsgType.CLOSE, WSMsgType.CONTINUATION):
        with pytest.raises(ValueError, match="TEXT or BINARY"):
            channel.publish(msg_type, b"")
        with pytest.raises(ValueError, match="TEXT or BINARY"):
            channel.publish_threadsafe(msg_type, b"")
    with pytest.raises(TypeError):
        channel.publish(TEXT, 5)
    for key in (1.5, ("a",), True, []):
        with pytest.raises(TypeError, match="key must be"):
            channel.publish(TEXT, "", key=key)
    assert channel.messages == 0


def test_a_channel_of_one_loop_after_another():
    """As one that is made when its module is imported: for every asyncio.run() that follows."""
    channel = Channel("early")
    assert channel.publish(TEXT, "nobody") == 0
    channel.publish_threadsafe(TEXT, "nobody")
    threads = 0

    async def subscribe() -> None:
        async with connected("server") as pair:
            subscription = channel.subscribe(pair.transport)
            await asyncio.to_thread(channel.publish_threadsafe, TEXT, "hello")
            assert await pair.peer.read_frame() == (TEXT, b"hello")
            check(channel, subscription)

    def publish() -> None:
        nonlocal threads
        assert channel.publish(TEXT, "nobody") == 0
        channel.publish_threadsafe(TEXT, "nobody")
        threads += 1

    for _ in range(2):
        asyncio.run(subscribe())
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()
    assert threads == 2
    assert (channel.messages, channel.published, channel.sent) == (8, 2, 2)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"policy": 9}, ValueError, "policy"),
        ({"policy": "drop"}, ValueError, "policy"),
        ({"max_messages": 0}, ValueError, "max_messages"),
        ({"max_messages": 1.5}, TypeError, "max_messages"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
        ({"close_code": 1006}, ValueError, "1006"),
        ({"close_reason": "x" * 124}, ValueError, "12"),
        ({"snapshot": 1}, TypeError, "snapshot"),
        ({"on_slow": 1}, TypeError, "on_slow"),
        ({"name": None}, TypeError, "name"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings(settings, error, text):
    with pytest.raises(error, match=text):
        Channel(**settings)


# --- Coming and going


async def test_subscribing_and_leaving(subscriber):
    channel, other = Channel("a"), Channel("b")
    async with subscriber() as pair:
        subscription = channel.subscribe(pair.transport)
        other.subscribe(pair.transport)
        assert channel.subscription(pair.transport) is subscription
        assert subscription.transport is pair.transport
        assert subscription.channel is channel
        assert pair.transport in channel
        assert list(channel) == [subscription]
        with pytest.raises(ValueError, match="already"):
            channel.subscribe(pair.transport)
        channel.publish(TEXT, "discarded")
        other.publish(TEXT, "1")
        assert channel.unsubscribe(pair.transport)
        assert not channel.unsubscribe(pair.transport)
        subscription.unsubscribe()
        assert (subscription.is_active, subscription.discarded, len(channel)) == (False, 1, 0)
        again = channel.subscribe(pair.transport)
        channel.publish(TEXT, "2")
        other.publish(TEXT, "3")
        for text in (b"1", b"2", b"3"):
            assert await pair.peer.read_frame() == (TEXT, text)
        check(subscription, again, channel, other)


async def test_a_client_that_goes_leaves_its_channels(subscriber):
    channels = [Channel(str(n)) for n in range(5)]
    async with subscriber() as staying:
        for channel in channels:
            channel.subscribe(staying.transport)
        async with subscriber() as going:
            gone = [channel.subscribe(going.transport) for channel in channels]
            assert [len(channel) for channel in channels] == [2] * 5
            channels[0].publish(TEXT, "x")
            going.transport.disconnect(graceful=False)
            channels[0].publish(TEXT, "y")
            await going.listener.closed()
            assert [len(channel) for channel in channels] == [1] * 5
            assert not any(one.is_active for one in gone)
            late = channels[0].subscribe(going.transport)
            assert not late.is_active
            late.unsubscribe()
            assert not channels[0].unsubscribe(going.transport)
        check(*gone, *channels)
        assert gone[0].discarded == gone[0].published
        for text in (b"x", b"y"):
            assert await staying.peer.read_frame() == (TEXT, text)


async def test_a_clients_transport_is_refused():
    async with connected("client") as pair:
        with pytest.raises(ValueError, match="masked"):
            Channel().subscribe(pair.transport)
    with pytest.raises(TypeError):
        Channel().subscribe(None)
    with pytest.raises(TypeError):
        Subscription()


async def test_a_transport_of_another_loop_is_refused():
    """While there are subscribers; a channel without any belongs to the next one's loop."""
    channel = Channel()
    other = asyncio.new_event_loop()
    try:
        async with connected("server") as pair:
            channel.subscribe(pair.transport)

            async def subscribe() -> None:
                async with connected("server") as another:
                    with pytest.raises(ValueError, match="another event loop"):
                        channel.subscribe(another.transport)
                    Channel(loop=asyncio.get_event_loop()).subscribe(another.transport)

            await asyncio.to_thread(other.run_until_complete, subscribe())
            Channel(loop=other).subscribe(pair.transport)
    finally:
        other.close()


async def test_many_subscriptions():
    channels = [Channel(str(n)) for n in range(20_000)]
    async with connected("server") as one, connected("server") as two:
        for channel in channels:
            channel.subscribe(one.transport)
            channel.subscribe(two.transport)
        for channel in channels[::2]:
            assert channel.unsubscribe(one.transport)
        assert channels[1].publish(TEXT, "x") == 2
        assert await one.peer.read_frame() == (TEXT, b"x")
        two.transport.disconnect(graceful=False)
        await two.listener.closed()
        assert [len(channel) for channel in channels] == [0, 1] * 10_000


# --- Snapshots


async def test_a_snapshot_then_every_later_update(subscriber):
    state: dict[str, int] = {}
    channel = Channel(snapshot=lambda transport: [(TEXT, f"{k}={v}", k) for k, v in state.items()])

    def update(key: str, value: int) -> None:
        state[key] = value
        channel.publish(TEXT, f"{key}={value}", key=key)

    async with contextlib.AsyncExitStack() as stack:
        pairs = []
        for value in range(30):
            update("ab"[value % 2], value)
            if value % 10 == 5:
                pair = await stack.enter_async_context(subscriber())
                update("c", value)
                channel.subscribe(pair.transport)
                update("d", value)
                pairs.append((pair, value))
        for pair, value in pairs:
            seen = []
            while not seen or seen[-1] != b"b=29":
                seen.append((await pair.peer.read_frame())[1])
            # In whatever order the keys came to be: what they were, then d, then all from the next.
            snapshot = len(state) - (1 if value == 5 else 0)
            assert sorted(seen[:snapshot])[:3] == sorted(
                [f"a={value - 1}".encode(), f"b={value}".encode(), f"c={value}".encode()]
            )
            assert seen[snapshot] == f"d={value}".encode()
            numbers = [int(text[2:]) for text in seen[snapshot:] if text[:1] in b"ab"]
            assert numbers == list(range(value + 1, 30))
        check(channel, *channel)


async def test_a_snapshot_that_fails_changes_nothing():
    def fails(transport):
        yield TEXT, "one"
        raise LookupError("no state")

    channel = Channel(snapshot=fails)
    async with connected("server") as pair:
        with pytest.raises(LookupError):
            channel.subscribe(pair.transport)
        assert len(channel) == 0
        pair.transport.send(TEXT, "x")
        assert await pair.peer.read_frame() == (TEXT, b"x")


# --- Slow consumers


@pytest.mark.parametrize("code", [1008, 1013])
async def test_close(subscriber, code):
    channel = Channel(max_messages=20, close_code=code, close_reason="too slow")
    async with subscriber(small_buffers=True) as slow, subscriber() as healthy:
        subscription = channel.subscribe(slow.transport)
        well = channel.subscribe(healthy.transport)
        reading = asyncio.create_task(healthy.peer.read_close())
        while subscription.is_active:
            channel.publish(BINARY, bytes(50_000))
            assert subscription.waiting <= 20
            await turns()
        assert slow.transport.is_close_frame_sent
        assert (channel.closed_slow, channel.slow, len(channel)) == (1, 0, 1)
        assert subscription.discarded >= 20
        assert await slow.peer.read_close() == (code, "too slow")
        await until(lambda: not well.waiting)
        assert well.sent == well.published
        healthy.transport.send_close()
        await reading
        check(channel, subscription, well)


def behind(transport, **limits):
    """The channel that has made this client slow, and two that drop: newest and oldest."""
    filler = Channel()
    newest = Channel(policy=SlowConsumer.DROP_NEWEST, **limits)
    oldest = Channel(policy=SlowConsumer.DROP_OLDEST, **limits)
    filling = filler.subscribe(transport)
    for channel in (newest, oldest):
        channel.subscribe(transport)
    stall(filler, filling)
    return filler, newest, oldest


async def test_drop_newest_and_oldest(subscriber):
    async with subscriber(small_buffers=True) as pair:
        before = time.monotonic()
        filler, newest, oldest = behind(pair.transport, max_messages=3)
        kept_first, kept_last = (one.subscription(pair.transport) for one in (newest, oldest))
        for number in range(10):
            newest.publish(TEXT, f"newest {number}")
            oldest.publish(TEXT, f"oldest {number}")
        assert (kept_first.waiting, kept_first.dropped) == (3, 7)
        assert (kept_last.waiting, kept_last.dropped) == (3, 7)
        assert kept_last.slow_since is not None
        assert before <= kept_last.slow_since <= time.monotonic()
        filler.publish(TEXT, "end")
        seen = []
        while (payload := (await pair.peer.read_frame())[1]) != b"end":
            if payload and payload[0]:
                seen.append(payload.decode())
        assert seen == [f"newest {n}" for n in range(3)] + [f"oldest {n}" for n in range(7, 10)]
        assert kept_last.slow_since is None
        assert (newest.slow, oldest.slow, filler.slow) == (0, 0, 0)
        check(newest, oldest, filler, kept_first, kept_last, filler.subscription(pair.transport))


async def test_limits_in_bytes(subscriber):
    async with subscriber(small_buffers=True) as pair:
        filler, newest, oldest = behind(pair.transport, max_bytes=1000)
        subscriptions = [one.subscription(pair.transport) for one in (newest, oldest)]
        for number in range(10):
            for channel in (newest, oldest):
                channel.publish(BINARY, bytes([number + 1]) * 296)  # 300 in a frame
                channel.publish(BINARY, bytes(2000))
        assert [one.waiting_bytes for one in subscriptions] == [900, 900]
        filler.publish(TEXT, "end")
        seen = []
        while (payload := (await pair.peer.read_frame())[1]) != b"end":
            if len(payload) == 296:
                seen.append(payload[0])
        assert seen == [1, 2, 3, 8, 9, 10]
        check(*subscriptions)


async def test_a_healthy_client_is_not_limited(subscriber):
    """What one turn publishes is not a sign of slowness; a message may exceed max_bytes."""
    for policy in SlowConsumer:
        channel = Channel(policy=policy, max_messages=2, max_bytes=500)
        async with subscriber() as pair:
            subscription = channel.subscribe(pair.transport)
            for number in range(50):
                channel.publish(TEXT, str(number), key="same")
            channel.publish(BINARY, bytes(5000))
            for number in range(50):
                assert await pair.peer.read_frame() == (TEXT, str(number).encode())
            assert (await pair.peer.read_frame())[1] == bytes(5000)
            assert subscription.sent == 51


async def test_a_healthy_client_is_not_conflated_for(subscriber):
    """However much a turn publishes: it is written in several pieces, of which each is taken."""
    channel = Channel(policy=SlowConsumer.CONFLATE)
    async with subscriber() as pair:
        subscription = channel.subscribe(pair.transport)
        for number in range(60):
            channel.publish(TEXT, str(number).ljust(1000), key="same")
        for number in range(60):
            assert await pair.peer.read_frame() == (TEXT, str(number).ljust(1000).encode())
        assert (subscription.sent, subscription.conflated) == (60, 0)


async def test_conflate(subscriber):
    slow_ones = []
    channel = Channel(policy=SlowConsumer.CONFLATE, on_slow=slow_ones.append)
    async with subscriber(small_buffers=True) as pair:
        filler = Channel()
        filling = filler.subscribe(pair.transport)
        subscription = channel.subscribe(pair.transport)
        for key in "abc":
            channel.publish(TEXT, f"{key} before", key=key)
        await turns()
        stall(filler, filling)
        for number in range(2000):
            channel.publish(TEXT, f"{number}", key=number % 7)
            check(subscription)
        channel.publish(TEXT, "no key")
        channel.publish(TEXT, "no key")
        channel.publish(TEXT, "last", key=3)
        assert (subscription.waiting, channel.slow) == (9, 1)
        filler.publish(TEXT, "end")
        seen = []
        while (payload := (await pair.peer.read_frame())[1]) != b"end":
            if payload and payload[0]:
                seen.append(payload.decode())
        expected = [f"{key} before" for key in "abc"]
        expected += [str(n) for n in range(1993, 2000) if n % 7 != 3]
        assert seen == [*expected, "no key", "no key", "last"]
        assert slow_ones == [subscription]
        assert subscription.times_slow == 1
        check(channel, subscription, filler)


async def test_a_conflating_client_that_exceeds_its_limits_is_closed(subscriber):
    channel = Channel(policy=SlowConsumer.CONFLATE, max_messages=100)
    async with subscriber(small_buffers=True) as pair:
        filler = Channel(policy=SlowConsumer.DROP_NEWEST)
        filling = filler.subscribe(pair.transport)
        subscription = channel.subscribe(pair.transport)
        stall(filler, filling)
        for number in range(1000):
            channel.publish(TEXT, str(number), key=number % 100)
        assert subscription.is_active
        channel.publish(TEXT, "one too many", key="other")
        assert not subscription.is_active
        assert not filling.is_active
        assert (await pair.peer.read_close())[0] == 1013
        check(channel, subscription, filler)


async def test_control_frames_do_not_wait_behind_messages(contexts):
    channel = Channel(max_messages=1000)
    async with connected("server", contexts=contexts, small_buffers=True) as pair:
        subscription = channel.subscribe(pair.transport)
        await pair.peer.send(WSMsgType.PING, b"early")
        await pair.peer.send(WSMsgType.PING, b"ping")
        stall(channel, subscription)
        for _ in range(500):
            channel.publish(BINARY, bytes(5000))
        await turns(20)
        waiting = subscription.waiting
        pair.transport.send_ping(b"ours")
        pair.transport.send_close(WSCloseCode.OK)
        assert (subscription.waiting, subscription.discarded) == (0, waiting)
        assert waiting >= 500
        control = []
        while not control or control[-1] != WSMsgType.CLOSE:
            opcode = (await pair.peer.read_frame())[0]
            if opcode >= WSMsgType.CLOSE:
                control.append(opcode)
        assert control[-2:] == [WSMsgType.PING, WSMsgType.CLOSE]
        check(channel, subscription)


@pytest.mark.parametrize("coalesce", [False, True], ids=["", "coalesced"])
@pytest.mark.parametrize("size", [100, 5000, 100_000])
async def test_a_control_frame_waits_for_no_more_than_is_stated(subscriber, size, coalesce):
    """The rest of one message, or of 16 KiB where what was written cannot be taken back."""
    channel = Channel(max_messages=1_000_000, max_bytes=2**30)
    async with subscriber(small_buffers=True, coalesce_writes=coalesce) as pair:
        subscription = channel.subscribe(pair.transport)
        message = bytes(size)
        while subscription.slow_since is None or subscription.waiting * size < 200_000:
            for _ in range(100_000 // size):
                channel.publish(BINARY, message)
            await turns()
        stream = pair.transport.underlying_transport
        takes_back = type(stream).__name__ == "TcpStream" and not coalesce
        largest = max(size + 10, 0 if takes_back else 16 * 1024)
        records = 0 if type(stream).__name__ == "TcpStream" else (largest // 16384 + 1) * 32
        assert 0 < stream.get_write_buffer_size() <= largest + records
        sent = subscription.sent
        pair.transport.send_ping(b"mark")
        for _ in range(10):
            channel.publish(BINARY, message)
        before = 0
        while (frame := await pair.peer.read_frame()) != (WSMsgType.PING, b"mark"):
            assert frame == (BINARY, message)
            before += 1
        assert before == sent
        while subscription.waiting:
            await pair.peer.read_frame()
        check(channel, subscription)


async def test_a_slow_client_that_is_reset(subscriber):
    channel = Channel()
    async with subscriber(small_buffers=True) as pair:
        subscription = channel.subscribe(pair.transport)
        stall(channel, subscription)
        for _ in range(50):
            channel.publish(BINARY, bytes(5000))
        pair.peer.reset()
        await pair.listener.closed()
        assert not subscription.is_active
        assert subscription.discarded >= 50
        assert (channel.slow, len(channel)) == (0, 0)
        check(channel, subscription)


async def test_callbacks_that_publish_and_leave(subscriber):
    """pause_writing comes out of the midst of a write."""
    channel = Channel(join_turn=False, max_messages=10_000)

    class Meddling(Recorder):
        def pause_writing(self):
            super().pause_writing()
            for _ in range(100):
                channel.publish(TEXT, "from pause_writing")
            if self.transport in channel:
                channel.unsubscribe(self.transport)
                channel.subscribe(self.transport)

    async with contextlib.AsyncExitStack() as stack:
        pairs = [
            await stack.enter_async_context(subscriber(small_buffers=True, listener=Meddling()))
            for _ in range(3)
        ]
        subscriptions = [channel.subscribe(pair.transport) for pair in pairs]
        for _ in range(5):
            for pair in pairs:
                if pair.transport not in channel:
                    subscriptions.append(channel.subscribe(pair.transport))
            channel.publish(BINARY, bytes(1_500_000))
            await turns()
        for pair in pairs:
            assert "pause_writing" in pair.listener.events
            pair.transport.disconnect(graceful=False)
            await pair.listener.closed()
        check(channel, *subscriptions)


# --- By brute force


@pytest.mark.parametrize("seed", range(4))
async def test_every_message_is_accounted_for(contexts, seed):
    """Clients that stall at random: what comes is whole, in order, and what the counters say."""
    rng = random.Random(seed)
    policies = [*SlowConsumer][1:] * 5 + [SlowConsumer.CLOSE]
    channels = [Channel(str(number)) for number in range(4)]
    newest: dict[tuple[int, int], int] = {}
    received: list[list[tuple[int, int, int]]] = []
    subscriptions: list[list[Subscription]] = []
    everything: list[Subscription] = []

    async def read(number: int, peer) -> None:
        client = random.Random(seed * 100 + number)
        healthy = client.random() < 0.3
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                opcode, payload = await peer.read_frame()
                if opcode == WSMsgType.CLOSE:
                    return
                where, key, serial, size = payload.split(b" ", 4)[:4]
                assert len(payload) == int(size)
                received[number].append((int(where), int(key), int(serial)))
                if not healthy and client.random() < 0.05 and not finishing.is_set():
                    await asyncio.sleep(client.random() * 0.1)

    finishing = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        pairs = []
        for number in range(5):
            pair = await stack.enter_async_context(
                connected("server", contexts=contexts, small_buffers=True)
            )
            pairs.append(pair)
            received.append([])
            subscriptions.append([])
            for channel in channels:
                policy = rng.choice(policies)
                limits = {"max_messages": rng.choice([1, 5, 50]), "max_bytes": 100_000}
                if policy == SlowConsumer.CONFLATE:
                    limits = {}
                subscription = channel.subscribe(pair.transport, policy=policy, **limits)
                subscriptions[number].append(subscription)
                everything.append(subscription)
        readers = [
            asyncio.create_task(read(number, pair.peer)) for number, pair in enumerate(pairs)
        ]
        for serial in range(800):
            where, key = rng.randrange(4), rng.randrange(10)
            size = rng.choice([40, 40, 300, 5000, 60_000])
            head = f"{where} {key} {serial} {size} ".encode()
            channels[where].publish(BINARY, head.ljust(size, b"."), key=key)
            newest[where, key] = serial
            if rng.random() < 0.01:
                number = rng.randrange(5)
                channel = rng.choice(channels)
                if channel.unsubscribe(pairs[number].transport):
                    subscriptions[number][channels.index(channel)] = None
            if rng.random() < 0.2:
                await asyncio.sleep(rng.choice([0, 0, 0, 0.005]))
                check(*channels, *everything)
        finishing.set()
        await until(lambda: not any(one.waiting for one in everything), 60)
        check(*channels, *everything)
        survivors = {one for one in everything if one.is_active}
        for pair in pairs:
            pair.transport.send_close()
        await asyncio.wait_for(asyncio.gather(*readers), 20)
        for number in range(5):
            serials = [serial for _, _, serial in received[number]]
            assert serials == sorted(set(serials))
            assert len(serials) == sum(
                one.sent for one in everything if one.transport is pairs[number].transport
            )
            for where, subscription in enumerate(subscriptions[number]):
                if subscription in survivors and subscription.policy == SlowConsumer.CONFLATE:
                    last = {key: serial for at, key, serial in received[number] if at == where}
                    expected = {key: last for (at, key), last in newest.items() if at == where}
                    assert last == expected
        check(*channels, *everything)
        assert survivors
        assert sum(one.conflated for one in channels) > 0
        assert sum(one.dropped for one in channels) > 0


async def test_memory_does_not_grow_for_a_stalled_conflating_client():
    channel = Channel(policy=SlowConsumer.CONFLATE)
    mixed = Channel(policy=SlowConsumer.DROP_OLDEST, max_messages=5)
    async with connected("server", small_buffers=True) as pair:
        subscription = channel.subscribe(pair.transport)
        other = mixed.subscribe(pair.transport)
        filler = Channel()
        stall(filler, filler.subscribe(pair.transport))
        mixed.publish(TEXT, "stays at the head")
        for number in range(50_000):
            channel.publish(TEXT, str(number), key=number % 10)
            if number % 1000 == 0:
                leaving = Channel()
                leaving.subscribe(pair.transport)
                leaving.publish(TEXT, "x")
                leaving.unsubscribe(pair.transport)
        assert (subscription.waiting, other.waiting) == (10, 1)
        assert subscription.waiting_bytes == sum(2 + len(str(n)) for n in range(49_990, 50_000))
        check(subscription, other)


# --- Others' clients


async def test_with_websockets():
    channel = Channel()

    class Subscribing(WSListener):
        def on_ws_connected(self, transport):
            channel.subscribe(transport)

    connect = websockets.asyncio.client.connect
    async with (
        serving(lambda request: Subscribing(), enable_auto_close=True) as url,
        connect(url) as one,
        connect(url) as two,
    ):
        await until(lambda: len(channel) == 2)
        for number in range(100):
            channel.publish(TEXT, f"number {number}")
        channel.publish(BINARY, bytes(100_000))
        for client in (one, two):
            for number in range(100):
                assert await client.recv() == f"number {number}"
            assert await client.recv() == bytes(100_000)


async def test_after_the_end_publishing_is_not_an_error():
    channel = Channel()
    async with connected("server") as pair:
        subscription = channel.subscribe(pair.transport)
        pair.peer.fin()
        pair.transport.disconnect()
        channel.publish(TEXT, "x")
        await pair.listener.closed()
        assert channel.publish(TEXT, "x") == 0
        with contextlib.suppress(WSConnectionClosedError):
            await pair.transport.wait_disconnected()
        check(channel, subscription)
