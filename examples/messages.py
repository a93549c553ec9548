"""Whole messages instead of frames: fragments joined, text checked, within limits.

python examples/messages.py
"""

import asyncio
import json

import picows_fast
from picows_fast import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport
from picows_fast.layers.messages import WSMessageListener


class Book(WSMessageListener):
    """The client. `on_ws_message` takes the place of `on_ws_frame`."""

    def __init__(self) -> None:
        super().__init__(max_message_size=1024 * 1024)  # bytes; more ends the connection

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        # A message in one frame is that frame, without a copy. It may be kept, as a frame may.
        if msg_type == WSMsgType.TEXT:
            print(json.loads(payload.get_payload_as_bytes())["bid"])

    def on_ws_control(self, transport: WSTransport, frame: WSFrame) -> None:
        print(f"{frame.msg_type.name}: {frame.get_close_reason()}")
        super().on_ws_control(transport, frame)  # answers CLOSE


class Feed(WSListener):
    """The server: a message in three frames, with a PING in between."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        first, second, third = b'{"bid": "1 \xe2', b"\x82", b'\xac"}'  # the euro sign, cut in three
        transport.send(WSMsgType.TEXT, first, fin=False)
        transport.send(WSMsgType.CONTINUATION, second, fin=False)
        transport.send_ping()
        transport.send(WSMsgType.CONTINUATION, third)
        transport.send_close(WSCloseCode.GOING_AWAY, "closed for today")


async def main() -> None:
    server = await picows_fast.ws_create_server(lambda request: Feed(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport, _ = await picows_fast.ws_connect(Book, f"ws://127.0.0.1:{port}/")
        await transport.wait_disconnected()


if __name__ == "__main__":
    asyncio.run(main())
