"""Recorded exchange sessions at full speed arrive as they were, however their bytes are cut."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, build_frame
from picows_fast.cli.feedfile import read_feed

from .support import raw_client, raw_server, serving

FEEDS = ("binance_futures", "bybit", "coinbase", "kraken", "kraken_futures")
LARGEST_CUT = 70_000  # more than a read of the loop's transport, less than one of ours

Cuts = Callable[[int], Iterator[int]]


class PythonCollector(WSListener):
    """The same as `Collector` in tests/cython_user/listeners.pyx."""

    def __init__(self, expected: int) -> None:
        self.payloads: list[bytes] = []
        self.done = asyncio.Event()
        self._expected = expected

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT and frame.fin:
            self.payloads.append(frame.get_payload_as_bytes())
            if len(self.payloads) == self._expected:
                self.done.set()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.done.set()


class Publisher(WSListener):
    """Sends all messages as fast as the peer takes them, the first of them with the response."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._waiting = iter(payloads)
        self._paused = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._publish()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._publish()

    def _publish(self) -> None:
        while not self._paused and (payload := next(self._waiting, None)) is not None:
            self._transport.send(WSMsgType.TEXT, payload)


@functools.cache
def payloads_of(path: Path) -> tuple[bytes, ...]:
    return tuple(text.encode() for _, text in read_feed(path))


@functools.lru_cache(maxsize=2)
def stream_of(path: Path, mask: bool) -> bytes:
    """The whole session as the bytes that one side sends."""
    return b"".join(
        build_frame(WSMsgType.TEXT, payload, mask=mask) for payload in payloads_of(path)
    )


@pytest.fixture(params=FEEDS)
def feed(request: pytest.FixtureRequest, feeds: Path) -> Path:
    path = feeds / f"{request.param}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture(params=["Python", "Cython"])
def collector(request: pytest.FixtureRequest, feed: Path) -> Callable[[], Any]:
    """A factory of listeners that wait for all of the feed."""
    if request.param == "Python":
        cls: Any = PythonCollector
    else:
        listeners: ModuleType = request.getfixturevalue("listeners")
        cls = listeners.Collector
    return functools.partial(cls, len(payloads_of(feed)))


def whole(size: int) -> Iterator[int]:
    yield size


def seeded(seed: int) -> Cuts:
    def cuts(size: int) -> Iterator[int]:
        """Sizes from 1 to LARGEST_CUT, of each magnitude as many."""
        random_ = random.Random(seed)
        while size > 0:
            cut = min(size, int(LARGEST_CUT ** random_.random()))
            yield cut
            size -= cut

    return cuts


@pytest.fixture(params=[whole, seeded(1), seeded(2)], ids=["whole", "seed1", "seed2"])
def cuts(request: pytest.FixtureRequest) -> Cuts:
    result: Cuts = request.param
    return result


async def write_in_cuts(writer: asyncio.StreamWriter, data: bytes, cuts: Cuts) -> None:
    start = 0
    for size in cuts(len(data)):
        writer.write(data[start : start + size])
        start += size
        await writer.drain()
        await asyncio.sleep(0)  # the other side, on the same loop, reads what is there


def check(received: list[bytes], feed: Path) -> None:
    expected = payloads_of(feed)
    for index, (got, wanted) in enumerate(zip(received, expected, strict=False)):
        if got != wanted:
            pytest.fail(
                f"{feed.name}: message {index} of {len(expected)} differs: {len(got)} bytes "
                f"{got[:80]!r} instead of {len(wanted)} bytes {wanted[:80]!r}"
            )
    assert len(received) == len(expected)


async def finished(listener: Any, transport: WSTransport) -> None:
    await asyncio.wait_for(listener.done.wait(), 30)
    transport.disconnect()
    await asyncio.wait_for(transport.wait_disconnected(), 20)


def test_the_feeds_are_what_their_description_says(feeds: Path) -> None:
    sizes = {name: len(payloads_of(feeds / f"{name}.jsonl.gz")) for name in FEEDS}
    assert sizes == {
        "binance_futures": 1535,
        "bybit": 3342,
        "coinbase": 9946,
        "kraken": 4321,
        "kraken_futures": 7175,
    }
    assert {path.name for path in feeds.glob("*.gz")} == {f"{name}.jsonl.gz" for name in FEEDS}


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_published_at_full_speed(
    feed, tls, server_tls, client_tls, io_options, collector
) -> None:
    payloads = payloads_of(feed)
    async with serving(
        lambda request: Publisher(payloads), tls=server_tls if tls else None, **io_options
    ) as url:
        transport, listener = await picows_fast.ws_connect(
            collector, url, ssl_context=client_tls, **io_options
        )
        await finished(listener, transport)
    check(listener.payloads, feed)


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_client_reads_cut_bytes(
    feed, tls, server_tls, client_tls, io_options, collector, cuts
) -> None:
    """Over wss, each cut is a record."""

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_in_cuts(writer, stream_of(feed, False), cuts)
        await reader.read()

    async with raw_server(send, tls=server_tls if tls else None) as url:
        transport, listener = await picows_fast.ws_connect(
            collector, url, ssl_context=client_tls, **io_options
        )
        await finished(listener, transport)
    check(listener.payloads, feed)


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_server_reads_cut_bytes(
    feed, tls, server_tls, client_tls, io_options, collector, cuts
) -> None:
    """The other direction, in which payloads are masked."""
    listener = collector()
    async with serving(
        lambda request: listener, tls=server_tls if tls else None, **io_options
    ) as url:
        _, writer = await raw_client(url, tls=client_tls if tls else None)
        await write_in_cuts(writer, stream_of(feed, True), cuts)
        await asyncio.wait_for(listener.done.wait(), 30)
        writer.close()
    check(listener.payloads, feed)


@contextlib.asynccontextmanager
async def cutting_proxy(url: str, seed: int) -> AsyncIterator[str]:
    """A relay that cuts the TCP streams anew; gives the URL to connect to instead."""
    target = picows_fast.parse_url(url)
    tasks = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cuts: Cuts) -> None:
        try:
            while data := await reader.read(1 << 16):
                await write_in_cuts(writer, data, cuts)
            writer.write_eof()
        except ConnectionError:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        up_reader, up_writer = await asyncio.open_connection(target.host, target.port)
        try:
            await asyncio.gather(
                relay(reader, up_writer, seeded(seed)), relay(up_reader, writer, seeded(seed + 1))
            )
        finally:
            writer.close()
            up_writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"{target.scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_published_through_a_cutting_proxy(
    feed, tls, server_tls, client_tls, io_options, collector
) -> None:
    """TLS records are cut anywhere, too."""
    payloads = payloads_of(feed)
    async with (
        serving(
            lambda request: Publisher(payloads), tls=server_tls if tls else None, **io_options
        ) as server_url,
        cutting_proxy(server_url, seed=len(payloads)) as url,
    ):
        transport, listener = await picows_fast.ws_connect(
            collector, url, ssl_context=client_tls, **io_options
        )
        await finished(listener, transport)
    check(listener.payloads, feed)
