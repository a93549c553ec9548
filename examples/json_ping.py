"""Auto-ping where the peer wants JSON instead of PING frames: two ways to recognise its pongs.

python examples/json_ping.py
"""

import asyncio
import json

from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

PONG = b'{"op":"pong"}'


class Exchange(WSListener):
    """Understands {"op":"ping"} only."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT and b"ping" in frame.get_payload_as_bytes():
            transport.send(WSMsgType.TEXT, PONG)


class ByBytes(WSListener):
    """The pong can be told by its bytes: say so, and it never reaches on_ws_frame."""

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, '{"op":"ping"}')

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        # Asked only while a pong is expected.
        return frame.msg_type == WSMsgType.TEXT and frame.get_payload_as_bytes() == PONG


class ByContent(WSListener):
    """Only parsing tells: parse once, in on_ws_frame, and notify the transport."""

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, '{"op":"ping"}')

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        return False

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        if json.loads(frame.get_payload_as_utf8_text())["op"] == "pong":
            transport.notify_user_specific_pong_received()


async def main() -> None:
    async with await ws_create_server(lambda request: Exchange(), "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for listener in (ByBytes, ByContent):
            transport, _ = await ws_connect(listener, url, enable_auto_ping=True)
            times = await transport.measure_roundtrip_time(5)
            print(f"{listener.__name__}: {len(times)} pongs, fastest {min(times) * 1e6:.0f} us")


if __name__ == "__main__":
    asyncio.run(main())
