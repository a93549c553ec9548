"""Channels while code of the application runs in the midst of a publish or a write, and raises.

It comes from pause_writing, on_slow, log handlers, the event loop's methods that a stream calls,
weakref callbacks and the garbage collector. Whatever it does, no other client misses a message, and
each message is counted once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import weakref

import pytest

from picows_fast import WSListener, WSMsgType
from picows_fast.layers.broadcast import Channel, SlowConsumer, Subscription

from .peers import connected
from .support import Recorder, until
from .test_broadcast import TEXT, check, stall, turns

pytestmark = [
    pytest.mark.usefixtures("leaves_nothing"),
    # Python code runs inside asyncio's own add_writer() only.
    pytest.mark.asyncio(loop_factories=["asyncio"]),
]

BINARY = WSMsgType.BINARY


class Failing(logging.Handler):
    """A log whose server is away, as one that sends its records over a network."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@contextlib.contextmanager
def failing_log(error: BaseException):
    handler = Failing(error)
    logger = logging.getLogger("picows_fast.server")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


async def three_clients(stack: contextlib.AsyncExitStack, listener: WSListener, **options):
    """Two that read, and between them one that does not."""
    return [
        await stack.enter_async_context(
            connected("server", listener=one, small_buffers=True, **options)
        )
        for one in (Recorder(), listener, Recorder())
    ]


@pytest.mark.parametrize("error", [ConnectionError("the log is away"), KeyboardInterrupt()])
async def test_a_log_that_raises_costs_nobody_a_message(monkeypatch, error):
    told: list[BaseException] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_exception_handler", lambda c: told.append(c["exception"]))
    channel = Channel(max_messages=10)
    async with contextlib.AsyncExitStack() as stack:
        pairs = await three_clients(stack, Recorder())
        slow = channel.subscribe(pairs[1].transport)
        stall(channel, slow)
        others = [channel.subscribe(pair.transport) for pair in (pairs[0], pairs[2])]
        raised: list[BaseException] = []
        with failing_log(error):
            for number in range(12):
                try:
                    channel.publish(TEXT, str(number))
                except KeyboardInterrupt as caught:
                    raised.append(caught)
        for pair in (pairs[0], pairs[2]):
            for number in range(12):
                assert await pair.peer.read_frame() == (TEXT, str(number).encode())
        assert (raised, told) == (
            ([error], []) if isinstance(error, KeyboardInterrupt) else ([], [error])
        )
        assert not slow.is_active
        check(channel, slow, *others)


@pytest.mark.parametrize("when", ["in put", "at the end of the turn"])
async def test_a_callback_that_raises_what_is_the_loops(monkeypatch, when):
    """KeyboardInterrupt is raised when everybody has the message."""

    class Interrupted(Recorder):
        def pause_writing(self):
            raise KeyboardInterrupt

    loop = asyncio.get_running_loop()
    turn: list[object] = []
    channel = Channel(join_turn=when != "in put")
    async with contextlib.AsyncExitStack() as stack:
        pairs = await three_clients(
            stack, Interrupted(), write_high_watermark=0, write_low_watermark=0
        )
        subscriptions = [channel.subscribe(pair.transport) for pair in pairs]
        message = bytes(1_000_000)
        if when == "in put":
            with pytest.raises(KeyboardInterrupt):
                channel.publish(BINARY, message)
        else:
            call_soon = loop.call_soon
            monkeypatch.setattr(loop, "call_soon", lambda call, *a: turn.append(call))
            channel.publish(BINARY, message)
            monkeypatch.setattr(loop, "call_soon", call_soon)
            (write,) = turn
            with pytest.raises(KeyboardInterrupt):
                write()
        assert (await asyncio.wait_for(pairs[0].peer.read_frame(), 20))[1] == message
        assert (await asyncio.wait_for(pairs[2].peer.read_frame(), 20))[1] == message
        check(channel, *subscriptions)
        pairs[1].peer.reset()
        await pairs[1].listener.closed()


async def test_a_turn_that_cannot_be_scheduled(monkeypatch):
    """That client is lost; the next publish() is as good as any."""
    told: list[BaseException] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_exception_handler", lambda c: told.append(c["exception"]))
    channel = Channel()
    async with connected("server") as one, connected("server") as two:
        first, second = channel.subscribe(one.transport), channel.subscribe(two.transport)
        calls = iter([MemoryError()])
        call_soon = loop.call_soon

        def failing_call_soon(*args, **kwargs):
            for error in calls:
                raise error
            return call_soon(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon", failing_call_soon)
        channel.publish(TEXT, "x")
        assert [type(error) for error in told] == [MemoryError]
        assert (first.is_active, first.discarded) == (False, 1)
        channel.publish(TEXT, "y")
        assert [(await two.peer.read_frame())[1] for _ in "xy"] == [b"x", b"y"]
        check(channel, first, second)
        await one.listener.closed()
        assert one.transport.disconnect_exception is told[0]


async def test_what_a_callback_publishes_comes_after_what_called_it():
    """To every client, and across channels, whichever comes first in the list."""

    class Answering(Recorder):
        def pause_writing(self):
            super().pause_writing()
            for channel in (other, one):
                assert channel.publish(TEXT, "second") == 3
                channel.subscribe(late.transport)

    one, other = Channel(join_turn=False), Channel(join_turn=False)
    async with contextlib.AsyncExitStack() as stack:
        late = await stack.enter_async_context(connected("server"))
        pairs = await three_clients(
            stack, Answering(), write_high_watermark=0, write_low_watermark=0
        )
        for channel in (one, other):
            for pair in (pairs[1], pairs[0], pairs[2]):
                channel.subscribe(pair.transport)
        one.publish(BINARY, bytes(1_000_000))
        for pair in pairs:
            assert await pair.peer.read_frame() == (BINARY, bytes(1_000_000))
            for _ in range(2):
                assert await pair.peer.read_frame() == (TEXT, b"second")
        # It came too late for all of them.
        one.publish(TEXT, "third")
        assert await late.peer.read_frame() == (TEXT, b"third")
        check(one, other)


def act_in_the_midst(loop: asyncio.AbstractEventLoop, monkeypatch, act) -> None:
    """Call `act` once from inside a stream's write: TcpStream asks the loop to watch its socket."""
    add_writer = loop.add_writer
    calls = iter([act])

    def acting_add_writer(*args):
        for call in calls:
            call()
        return add_writer(*args)

    monkeypatch.setattr(loop, "add_writer", acting_add_writer)


@pytest.mark.parametrize("policy", [SlowConsumer.CONFLATE, SlowConsumer.DROP_OLDEST])
@pytest.mark.parametrize("does", ["publish", "leave", "send", "abort", "disconnect"])
@pytest.mark.native
async def test_messages_that_are_being_written(monkeypatch, policy, does):
    """They are not conflated, dropped or discarded, unless they come back."""
    loop = asyncio.get_running_loop()
    channel = Channel(policy=policy, max_messages=4)
    async with connected("server", small_buffers=True) as pair:
        subscription: Subscription = channel.subscribe(pair.transport)

        def act() -> None:
            nonlocal subscription
            if does == "publish":
                for number in range(20):  # more than the outbox has entries
                    channel.publish(TEXT, f"late {number}", key=number % 4)
            elif does == "leave":
                channel.unsubscribe(pair.transport)
            elif does == "send":
                pair.transport.send(TEXT, "its own")
            elif does == "abort":
                pair.transport.disconnect(graceful=False)
                subscription = None  # the outbox alone has had it
            else:
                pair.transport.disconnect()
            assert channel.published == 4 + 20 * (does == "publish")
            if subscription is not None:
                check(subscription)

        act_in_the_midst(loop, monkeypatch, act)
        for key in range(4):
            channel.publish(BINARY, b"%d" % key + bytes(200_000), key=key)
        await turns()
        check(channel, *[subscription] if subscription else [])
        received = []

        async def read() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    received.append((await pair.peer.read_frame())[1])

        reader = asyncio.create_task(read())
        await until(lambda: channel.waiting == 0)
        if does in ("publish", "send", "leave"):
            pair.transport.disconnect()
        await asyncio.wait_for(reader, 20)
        pair.peer.fin()
        own = received.count(b"its own")
        if does != "abort":
            assert len(received) - own == channel.sent
        if does == "publish":
            newest = [f"late {number}".encode() for number in range(16, 20)]
            assert received[-4:] == newest
        elif does == "send":
            assert (own, channel.sent) == (1, 4)
        check(channel, *[subscription] if subscription else [])


async def test_a_weakref_callback_that_publishes():
    """The last reference to a subscription goes when its messages have left the outbox."""
    channel, other = Channel("leaving"), Channel("staying")
    async with connected("server", small_buffers=True) as pair:
        staying = other.subscribe(pair.transport)
        leaving = channel.subscribe(pair.transport)
        stall(other, staying)
        for number in range(1000):
            channel.publish(TEXT, str(number))

        def publish(reference: object) -> None:
            for number in range(5):
                other.publish(TEXT, f"last {number}")

        reference = weakref.ref(leaving, publish)
        leaving.unsubscribe()
        del leaving
        texts: list[bytes] = []
        while len(texts) < 5:
            opcode, payload = await pair.peer.read_frame()
            if opcode == TEXT and payload:
                texts.append(payload)
        assert reference() is None
        assert texts == [b"last %d" % number for number in range(5)]
        check(channel, other, staying)


@pytest.mark.parametrize("policy", [SlowConsumer.CLOSE, SlowConsumer.DROP_OLDEST])
async def test_no_memory_for_the_outbox(monkeypatch, policy):
    """A message for which there is no room is treated as one beyond the limits."""
    _testcapi = pytest.importorskip("_testcapi")
    channel = Channel(policy=policy)
    async with connected("server") as one, connected("server") as two:
        first = channel.subscribe(one.transport)
        second = channel.subscribe(two.transport)
        # What it takes to publish without enlarging anything is in reserve by then.
        for number in range(8):
            channel.publish(TEXT, str(number))
        failed = 0
        for start in range(60):
            _testcapi.set_nomemory(start, start + 1)
            try:
                channel.publish(TEXT, "x")
            except MemoryError:
                failed += 1
            finally:
                _testcapi.remove_mem_hooks()
            check(channel, first, second)
        assert failed < 60
        for pair, subscription in ((one, first), (two, second)):
            pair.transport.disconnect(graceful=False)
            await pair.listener.closed()
            check(channel, subscription)
            assert subscription.dropped == 0 or policy == SlowConsumer.DROP_OLDEST


class Meddler:
    """Does something at random, wherever it is called from."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.channels: list[Channel] = []
        self.transports: list = []
        self.all: list[Subscription] = []
        self.serial = 0
        self.publishing = False
        self.depth = 0
        self.acts = 0

    def publish(self) -> None:
        channel = self.rng.choice(self.channels)
        self.serial += 1
        size = self.rng.choice([20, 200, 5000, 60_000])
        text = b"%d " % self.serial
        key = self.rng.randrange(8)
        self.publishing = True  # until it is encoded the garbage collector must not publish
        try:
            channel.publish(BINARY, text.ljust(size, b"."), key=key)
        finally:
            self.publishing = False

    def act(self, *_: object, may_publish: bool = True) -> None:
        if self.depth > 2 or not self.channels:
            return
        self.depth += 1
        self.acts += 1
        try:
            check(*self.all)
            transport, channel = self.rng.choice(self.transports), self.rng.choice(self.channels)
            draw = self.rng.random()
            if draw < 0.6:
                if may_publish:
                    self.publish()
            elif draw < 0.75:
                channel.unsubscribe(transport)
            elif draw < 0.97:
                if channel.subscription(transport) is None:
                    self.subscribe(channel, transport)
            elif draw < 0.98:
                transport.send(TEXT, "its own")
            check(*self.all)
        finally:
            self.depth -= 1

    def subscribe(self, channel: Channel, transport) -> None:
        policy = self.rng.choice(list(SlowConsumer)[1:])
        limits = {"max_messages": self.rng.choice([1, 5, 50])}
        if policy == SlowConsumer.CONFLATE:
            limits = {}
        self.all.append(channel.subscribe(transport, policy=policy, **limits))

    def collected(self, phase: str, info: dict[str, int]) -> None:
        if self.rng.random() < 0.02:
            self.act(may_publish=not self.publishing)


@pytest.mark.parametrize("seed", range(3))
async def test_acts_at_random(contexts, seed, monkeypatch):
    """From every place at once: each client gets what the counters say, whole and in order."""
    meddler = Meddler(seed)
    loop = asyncio.get_running_loop()
    add_writer = loop.add_writer

    def acting_add_writer(*args):
        meddler.act()
        return add_writer(*args)

    class Meddling(Recorder):
        def pause_writing(self):
            meddler.act()

        def resume_writing(self):
            meddler.act()

    def subscriptions_of(number: int) -> list[Subscription]:
        return [one for one in meddler.all if one.transport is meddler.transports[number]]

    serials: list[list[int]] = [[] for _ in range(3)]

    async def read(number: int, peer) -> None:
        client = random.Random(seed * 10 + number)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while (frame := await peer.read_frame())[0] != WSMsgType.CLOSE:
                if frame[0] == BINARY:
                    serials[number].append(int(frame[1].split(b" ")[0]))
                if client.random() < 0.05 and not finishing.is_set():
                    await asyncio.sleep(client.random() * 0.05)

    finishing = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        pairs = [
            await stack.enter_async_context(
                connected(
                    "server",
                    listener=Meddling(),
                    contexts=contexts,
                    small_buffers=True,
                    write_high_watermark=2000,
                    write_low_watermark=0,
                    coalesce_writes=number == 2,
                )
            )
            for number in range(3)
        ]
        meddler.transports = [pair.transport for pair in pairs]
        channels = [
            Channel(str(number), on_slow=meddler.act, join_turn=number > 0) for number in range(3)
        ]
        for channel in channels:
            for transport in meddler.transports:
                meddler.channels = channels
                meddler.subscribe(channel, transport)
        readers = [asyncio.create_task(read(n, pair.peer)) for n, pair in enumerate(pairs)]
        monkeypatch.setattr(loop, "add_writer", acting_add_writer)
        threshold = gc.get_threshold()
        gc.callbacks.append(meddler.collected)
        gc.set_threshold(5)
        try:
            for _ in range(500):
                meddler.publish()
                if meddler.rng.random() < 0.2:
                    await asyncio.sleep(meddler.rng.choice([0, 0, 0, 0.003]))
        finally:
            gc.callbacks.remove(meddler.collected)
            gc.set_threshold(*threshold)
        meddler.channels = []
        finishing.set()
        await until(lambda: not any(one.waiting for one in meddler.all), 60)
        check(*channels, *meddler.all)
        for transport in meddler.transports:
            transport.send_close()
        await asyncio.wait_for(asyncio.gather(*readers), 20)
        for number in range(3):
            assert serials[number] == sorted(set(serials[number]))
            assert len(serials[number]) == sum(one.sent for one in subscriptions_of(number))
        assert meddler.acts > 30
