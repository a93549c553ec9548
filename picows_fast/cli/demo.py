"""The `demo` command: an exchange and its clients in one process, on loopback.

Every client compares every message with what was published, so that the summary can say that all
arrived, in order and unchanged. Latency is taken from just before the exchange hands a message to
its connections to the moment a client's callback has it, on one clock: the payload of a recorded
feed needs no time stamp for that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import Iterator

from picows_fast import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_connect,
    ws_create_server,
)
from picows_fast.layers.histogram import LatencyHistogram

from .book import generate_book
from .client import describe_end
from .connection import CLOSE_TIMEOUT
from .feedfile import FeedError, FeedSummary, cut_off_note, read_feed, repeat_feed
from .live import LiveLine, format_bytes, format_duration, format_latency
from .plot import check_plot, draw_latency
from .publish import CERTIFICATE, Subscriber, loopback_context, paced
from .runtime import CommandError

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

DEFAULT_SECONDS = 10.0
DEFAULT_RATE = 5000.0

_HOST = "127.0.0.1"
# Messages between what was published and what the slowest client has seen, at most.
_WINDOW = 1 << 15
# Seconds without any progress after which messages still on their way are given up.
_DRAIN_TIMEOUT = 5.0
# Files the process has open besides the two ends of each connection, generously.
_OTHER_FILES = 64


class Published:
    """The latest messages, each with the time it was published (ns), by number."""

    def __init__(self) -> None:
        self.count = 0
        self.payload_bytes = 0
        self.payloads = [b""] * _WINDOW
        self.times = [0] * _WINDOW

    def add(self, payload: bytes) -> None:
        slot = self.count % _WINDOW
        self.payloads[slot] = payload
        self.payload_bytes += len(payload)
        self.count += 1
        self.times[slot] = time.perf_counter_ns()


class DemoClient(WSListener):
    """Compares what it receives with what was published, and takes the time."""

    def __init__(self, number: int, published: Published, exchange: Exchange) -> None:
        super().__init__()
        self.number = number
        self.received = 0
        self.payload_bytes = 0
        self.fault: str | None = None
        self.latency = LatencyHistogram()
        # How long frames had been in this machine's hands, where the kernel tells.
        self.age = LatencyHistogram()
        self.transport: WSTransport | None = None
        self._published = published
        self._exchange = exchange
        self._closing = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        now = time.perf_counter_ns()
        if frame.msg_type == WSMsgType.CLOSE:
            return
        published = self._published
        payload = frame.get_payload_as_bytes()
        if self.received >= published.count:
            self._fail(f"message {self.received + 1} was never published")
            return
        slot = self.received % _WINDOW
        if frame.msg_type != WSMsgType.TEXT or payload != published.payloads[slot]:
            self._fail(f"message {self.received + 1} is not what was published")
            return
        self.latency.record(now - published.times[slot])
        age = frame.age_ns()
        if age is not None:
            self.age.record(age)
        self.received += 1
        self.payload_bytes += len(payload)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self._closing:
            self._fail(describe_end(transport)[0])

    async def connect(self, url: str, ssl_context: ssl.SSLContext | None) -> None:
        await ws_connect(
            lambda: self,
            url,
            ssl_context=ssl_context,
            enable_auto_close=True,
            close_timeout=CLOSE_TIMEOUT,
            rx_timestamps=True,
        )

    async def close(self) -> None:
        """Close with 1000 and wait for the end."""
        self._closing = True
        if self.transport is not None:
            self.transport.send_close(WSCloseCode.OK)
            # A fault of the connection is in the summary already.
            with contextlib.suppress(WSError, OSError):
                await self.transport.wait_disconnected()

    def _fail(self, fault: str) -> None:
        if self.fault is None:
            self.fault = fault
            self._exchange.failed.set()


class Exchange:
    """Publishes to a fixed number of subscribers, none of whom misses a message."""

    def __init__(self, subscriber_count: int) -> None:
        self.published = Published()
        self.clients = [DemoClient(n + 1, self.published, self) for n in range(subscriber_count)]
        self.complete = asyncio.Event()
        self.failed = asyncio.Event()
        self._subscribers: list[_DemoSubscriber] = []

    def accept(self, request: WSUpgradeRequest) -> WSListener | None:
        """Listener factory of the server; 404 for anybody beyond the demo's own clients."""
        if len(self._subscribers) == len(self.clients):
            return None
        subscriber = _DemoSubscriber(self)
        self._subscribers.append(subscriber)
        return subscriber

    def subscribed(self) -> None:
        if sum(s.transport is not None for s in self._subscribers) == len(self.clients):
            self.complete.set()

    async def publish(self, messages: Iterator[tuple[int, str]], speed: float | None) -> None:
        """Publish until there is no more. A subscriber that cannot take more is waited for."""
        published = self.published
        window_end = _WINDOW
        async for text in paced(messages, speed):
            payload = text.encode()
            for subscriber in self._subscribers:
                if not subscriber.writable.is_set():
                    await subscriber.writable.wait()
            while published.count == window_end:
                window_end = min(client.received for client in self.clients) + _WINDOW
                if published.count == window_end:
                    await asyncio.sleep(0.001)
            self.publish_one(payload)

    def publish_one(self, payload: bytes) -> None:
        """Hand one message to every connection."""
        self.published.add(payload)
        for subscriber in self._subscribers:
            if subscriber.transport is not None:
                subscriber.transport.send(WSMsgType.TEXT, payload)

    async def drain(self) -> None:
        """Wait until every client has everything, one failed, or nothing moves any more."""
        total = self.published.count
        last_progress = time.monotonic()
        received = -1
        while not self.failed.is_set():
            now_received = sum(client.received for client in self.clients)
            if now_received == total * len(self.clients):
                return
            if now_received != received:
                received, last_progress = now_received, time.monotonic()
            elif time.monotonic() - last_progress > _DRAIN_TIMEOUT:
                return
            await asyncio.sleep(0.01)

    def highest_backlog(self) -> int:
        """Bytes that waited for one client, at the most."""
        transports = [subscriber.transport for subscriber in self._subscribers]
        return max((t.stats().backlog_highest_bytes for t in transports if t), default=0)

    def faults(self) -> list[str]:
        """What is wrong with what the clients received; empty if every message arrived."""
        total = self.published.count
        return [
            f"client {client.number} received {client.received:,} of {total:,} messages"
            + (f": {client.fault}" if client.fault else "")
            for client in self.clients
            if client.fault or client.received != total
        ]


class _DemoSubscriber(Subscriber):
    """The exchange's side of one client's connection."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self._exchange.subscribed()


class _Figures:
    """Collects the clients' figures, a live line at a time."""

    def __init__(self, exchange: Exchange) -> None:
        self.latency = LatencyHistogram()
        self._exchange = exchange
        self._messages = 0
        self._bytes = 0
        self._start = self._last = time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def collect(self) -> str:
        """The live line for the time since the last one."""
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        self._last = now
        latency = LatencyHistogram()
        messages = payload_bytes = 0
        for client in self._exchange.clients:
            messages += client.received
            payload_bytes += client.payload_bytes
            if client.latency.count:
                latency.merge(client.latency)
                client.latency = LatencyHistogram()
        self.latency.merge(latency)
        line = (
            f"{now - self._start:5.1f} s  {(messages - self._messages) / seconds:>9,.0f} msg/s  "
            f"{format_bytes((payload_bytes - self._bytes) / seconds):>7}/s  "
            f"latency {format_latency(latency)}"
        )
        self._messages, self._bytes = messages, payload_bytes
        return line


async def _show_live(figures: _Figures, live: LiveLine) -> None:
    try:
        while True:
            await asyncio.sleep(live.interval)
            live.show(figures.collect())
    finally:
        # Whatever is over within one interval has its line, too.
        if not live.updates:
            live.show(figures.collect())
        live.end()


def _messages(args: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """What the exchange publishes. A recorded feed starts again if a duration was asked for."""
    if args.feed is None:
        return generate_book(args.rate)
    if args.seconds is None:
        return read_feed(args.feed, allow_cut_off=True)
    return repeat_feed(args.feed)


def _allow_open_files(count: int) -> None:
    """Raise the process's limit if `count` files need it; CommandError if it cannot be."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise CommandError(f"so many clients need {count} open files, the limit is {hard}", 2)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    except (ValueError, OSError) as error:  # the system has a limit of its own
        raise CommandError(f"so many clients need {count} open files: {error}", 2) from error


async def run(args: argparse.Namespace, feed: FeedSummary | None) -> int:
    """Run the command; 0 if every client received every message.

    A signal ends it early: the summary is of what there was, and CancelledError is raised if all of
    that arrived.
    """
    check_plot(args.plot)
    if feed is not None and feed.is_cut_off:
        print(cut_off_note(args.feed, feed), file=sys.stderr)
    _allow_open_files(2 * args.clients + _OTHER_FILES)
    server_ssl = client_ssl = None
    if args.tls:
        server_ssl = loopback_context()
        # They verify the certificate, although its key is public: the demo shows what a wss
        # connection costs, and that includes a real handshake.
        client_ssl = ssl.create_default_context(cafile=str(CERTIFICATE))
    exchange = Exchange(args.clients)
    server = await ws_create_server(
        exchange.accept,
        _HOST,
        0,
        ssl=server_ssl,
        enable_auto_close=True,
        close_timeout=CLOSE_TIMEOUT,
    )
    try:
        scheme = "wss" if args.tls else "ws"
        url = f"{scheme}://{_HOST}:{server.sockets[0].getsockname()[1]}/"
        source = (
            f"a generated order book at {args.rate:,.0f} messages/s"
            if feed is None
            else f"{args.feed}, {feed.messages:,} messages, speed {args.speed or 'max'}"
        )
        print(f"exchange on {url}, {args.clients} clients, {args.loop}\npublishing {source}")
        sys.stdout.flush()
        for client in exchange.clients:
            await client.connect(url, client_ssl)
        await exchange.complete.wait()
        seconds = args.seconds
        if seconds is None and feed is None:
            seconds = DEFAULT_SECONDS
        figures = _Figures(exchange)
        ended_early = await _publish(exchange, figures, args, seconds)
        elapsed = figures.elapsed()
        figures.collect()
        faults = exchange.faults()
        _print_summary(exchange, figures, args, elapsed, faults)
        if args.plot is not None:
            histograms = {"from the exchange": figures.latency, "from the kernel": _ages(exchange)}
            drawn = draw_latency(args.plot, histograms, "Latency to the client's callback")
            print(f"  {'plot':<12} {args.plot if drawn else 'nothing to draw'}", flush=True)
        if faults:
            return 1
        if ended_early:
            raise asyncio.CancelledError
        return 0
    except (OSError, WSError, asyncio.TimeoutError) as error:
        raise CommandError(f"the demo cannot connect to itself: {error}") from error
    finally:
        await asyncio.gather(*(client.close() for client in exchange.clients))
        server.close()
        await server.wait_closed()


async def _publish(
    exchange: Exchange, figures: _Figures, args: argparse.Namespace, seconds: float | None
) -> bool:
    """Publish until the feed or the time ends, something fails or a signal comes: then, True."""
    ended_early = False
    publisher = asyncio.ensure_future(exchange.publish(_messages(args), args.speed))
    failed = asyncio.ensure_future(exchange.failed.wait())
    live = asyncio.ensure_future(_show_live(figures, LiveLine(sys.stdout)))
    try:
        try:
            await asyncio.wait(
                {publisher, failed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            ended_early = True
        publisher.cancel()
        await asyncio.wait({publisher})
        if not publisher.cancelled():
            publisher.result()
        await exchange.drain()
    except FeedError as error:
        # The file was whole when it was checked: it has been changed since.
        raise CommandError(str(error)) from error
    finally:
        tasks = [publisher, failed, live]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ended_early


def _ages(exchange: Exchange) -> LatencyHistogram:
    """From when the kernel had a frame to the callback, over all clients."""
    ages = LatencyHistogram()
    for client in exchange.clients:
        ages.merge(client.age)
    return ages


def _print_summary(
    exchange: Exchange,
    figures: _Figures,
    args: argparse.Namespace,
    elapsed: float,
    faults: list[str],
) -> None:
    published = exchange.published
    received = sum(client.received for client in exchange.clients)
    received_bytes = sum(client.payload_bytes for client in exchange.clients)
    rate = f"{published.count / elapsed:,.0f} messages/s"
    if args.feed is None:
        rate += f" of {args.rate:,.0f} asked for"
    latency, ages = figures.latency, _ages(exchange)
    rows = [
        ("duration", f"{elapsed:.1f} s"),
        ("clients", f"{len(exchange.clients)}"),
        ("event loop", args.loop),
        ("TLS", "yes, certificate verified" if args.tls else "no"),
        ("published", f"{published.count:,} messages, {format_bytes(published.payload_bytes)}"),
        ("", rate),
        ("received", f"{received:,} messages, {format_bytes(received_bytes)}"),
        (
            "",
            f"{received / elapsed:,.0f} messages/s, {format_bytes(received_bytes / elapsed)}/s",
        ),
        ("latency p50", format_duration(latency.percentile(50))),
        ("latency p99", format_duration(latency.percentile(99))),
        ("latency max", format_duration(latency.max)),
        ("frame age", format_latency(ages) if ages.count else "the kernel does not tell"),
        ("backlog max", format_bytes(exchange.highest_backlog())),
    ]
    if faults:
        rows += [("FAILED" if not index else "", fault) for index, fault in enumerate(faults)]
    elif published.count:
        rows.append(("verified", "every client received every message, in order, unchanged"))
    else:
        rows.append(("verified", "nothing was published"))
    print("\nSummary")
    for name, value in rows:
        print(f"  {name:<12} {value}")
    sys.stdout.flush()
