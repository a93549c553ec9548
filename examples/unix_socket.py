"""A server and a client on a Unix socket: two processes of one machine, without TCP between them.

python examples/unix_socket.py
"""

import asyncio
import os
import tempfile
from pathlib import Path

from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


class Client(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, "hello")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        print(f"received {frame.get_payload_as_utf8_text()}")
        transport.disconnect()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "feed.sock")
        # The file's permissions say who may connect; the server removes the file when it closes.
        async with await ws_create_server(lambda request: Echo(), unix_path=path):
            # The URL still gives Host and path of the request; nothing is resolved.
            transport, _ = await ws_connect(Client, "ws://localhost/book", unix_path=path)
            await transport.wait_disconnected()
        print(f"left in the folder: {os.listdir(folder)}")


if __name__ == "__main__":
    asyncio.run(main())
