"""Send three messages, print the answers, close the connection in order.

python examples/echo_client.py [url]        needs examples/echo_server.py in another terminal
"""

import asyncio
import sys

from picows_fast import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

MESSAGES = ["one", "two", "three"]


class Client(WSListener):
    """Its methods are plain calls from the event loop: no task, no await."""

    def __init__(self) -> None:
        self.answers = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        for message in MESSAGES:
            transport.send(WSMsgType.TEXT, message)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return  # the CLOSE that answers ours, for example
        print(f"received {frame.get_payload_as_utf8_text()}")
        self.answers += 1
        if self.answers == len(MESSAGES):
            transport.send_close(WSCloseCode.OK, "done")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        cause = transport.disconnect_cause
        print(f"disconnected: {cause.name if cause else 'no cause'}")


async def main(url: str) -> None:
    transport, _ = await ws_connect(Client, url)
    await transport.wait_disconnected()
    print(transport.close_handshake)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"))
