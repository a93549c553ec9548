"""`async for` over messages, through a queue with a bound: when it is full, reading pauses.

python examples/async_iteration.py [url]        needs examples/echo_server.py
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from picows_fast import WSFrame, WSMsgType, WSTransport, ws_connect
from picows_fast.layers.messages import WSMessageListener

BOUND = 100  # messages


class Messages(WSMessageListener):
    """Each message costs a queue and a wake-up here. Callbacks alone cost neither."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: WSTransport
        self.queue: asyncio.Queue[str | bytes | None] = asyncio.Queue()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        is_text = msg_type == WSMsgType.TEXT
        self.queue.put_nowait(payload.get_payload_as_utf8_text() if is_text else bytes(payload))
        if self.queue.qsize() >= BOUND:
            transport.pause_reading()  # no frame comes any more; TCP slows the peer down

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.queue.put_nowait(None)  # nothing comes behind it

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while (message := await self.queue.get()) is not None:
            if self.transport.is_reading_paused and self.queue.qsize() <= BOUND // 2:
                self.transport.resume_reading()
            yield message
        self.queue.put_nowait(None)  # for an iteration after this one, which is at its end at once


async def main(url: str) -> None:
    transport, messages = await ws_connect(Messages, url, enable_auto_close=True)
    for number in range(1000):
        transport.send(WSMsgType.TEXT, f"message {number}")
    received = 0
    most = 0
    async for _ in messages:
        most = max(most, messages.queue.qsize())
        received += 1
        if received == 1000:
            transport.send_close()
    print(f"{received} messages, at most {most + 1} of them in the queue")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"))
