"""Join the fragments of a message (RFC 6455 5.4). The library hands over frames, as they come.

python examples/fragments.py
"""

import asyncio

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport

MAX_MESSAGE_SIZE = 1024 * 1024  # max_frame_size limits each fragment, not their sum


class Messages(WSListener):
    def __init__(self) -> None:
        self.parts = bytearray()  # a list of them would grow with fragments that are empty
        self.unfinished = False

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type >= WSMsgType.CLOSE:
            return  # a control frame may come between two fragments
        if frame.fin and not self.unfinished:
            self.on_message(transport, frame.get_payload_as_bytes())  # not fragmented
            return
        if len(self.parts) + frame.payload_size > MAX_MESSAGE_SIZE:
            raise picows_fast.WSProtocolError(1009, "message too big")  # the code of our CLOSE
        self.parts += frame.get_payload_as_memoryview()
        self.unfinished = not frame.fin
        if frame.fin:
            message = bytes(self.parts)
            self.parts.clear()
            self.on_message(transport, message)

    def on_message(self, transport: WSTransport, message: bytes) -> None:
        # Decode whole messages only: a fragment may end inside a character.
        print(message.decode())
        transport.disconnect()


class Storyteller(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        first, second, third = b"bid 1 \xe2", b"\x82", b"\xac"  # the euro sign, cut in three
        transport.send(WSMsgType.TEXT, first, fin=False)
        transport.send(WSMsgType.CONTINUATION, second, fin=False)
        transport.send_ping()
        transport.send(WSMsgType.CONTINUATION, third)


async def main() -> None:
    server = await picows_fast.ws_create_server(lambda request: Storyteller(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport, _ = await picows_fast.ws_connect(Messages, f"ws://127.0.0.1:{port}/")
        await transport.wait_disconnected()


if __name__ == "__main__":
    asyncio.run(main())
