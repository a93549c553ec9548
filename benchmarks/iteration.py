"""What `async for` over messages costs beside a callback: CPU time of the receiving process.

    python -m benchmarks.iteration        median of the pairwise ratios, and its spread

A child process floods messages of 100 B; both ways take them in turn, on asyncio's loop.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

MESSAGES = 200_000
PAIRS = 7
BOUND = 1000
PAYLOAD = bytes(100)


class Flood(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.left = MESSAGES
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while self.left and not self.paused:
            self.left -= 1
            self.transport.send(WSMsgType.BINARY, PAYLOAD)


def serve(pipe: Connection) -> None:
    async def main() -> None:
        server = await ws_create_server(lambda r: Flood(), "127.0.0.1", 0, coalesce_writes=True)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


class Callback(WSListener):
    received = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            frame.get_payload_as_bytes()
            self.received += 1
            if self.received == MESSAGES:
                transport.disconnect()


class Queue(WSListener):
    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            self.queue.put_nowait(frame.get_payload_as_bytes())
            if self.queue.qsize() >= BOUND:
                transport.pause_reading()


async def by_callback(url: str) -> None:
    transport, _ = await ws_connect(Callback, url)
    await transport.wait_disconnected()


async def by_queue(url: str) -> None:
    transport, listener = await ws_connect(Queue, url)
    for _ in range(MESSAGES):
        await listener.queue.get()
        if transport.is_reading_paused and listener.queue.qsize() <= BOUND // 2:
            transport.resume_reading()
    transport.disconnect()
    await transport.wait_disconnected()


def nanoseconds(way: object, url: str) -> float:
    started = time.process_time_ns()
    asyncio.run(way(url))  # type: ignore[operator]
    return (time.process_time_ns() - started) / MESSAGES


def main() -> None:
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"ws://127.0.0.1:{ours.recv()}/"
    pairs = [(nanoseconds(by_callback, url), nanoseconds(by_queue, url)) for _ in range(PAIRS)]
    server.terminate()
    ratios = sorted(queue / callback for callback, queue in pairs)
    print(f"callback  {statistics.median(pair[0] for pair in pairs):.0f} ns a message")
    print(f"queue     {statistics.median(pair[1] for pair in pairs):.0f} ns a message")
    print(f"ratio     {statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
