"""A server that answers the upgrade by itself, on asyncio's streams, and hands the connection over.

python examples/attach.py
"""

import asyncio
import base64
import hashlib

from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, attach, ws_connect

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_bytes())


class Client(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, "hello")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            print(f"received {frame.get_payload_as_utf8_text()}")
            transport.send_close(1000)


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # This program trusts its only client; a real server checks what RFC 6455 4.2.1 asks for.
    head = await reader.readuntil(b"\r\n\r\n")
    lines = (line.partition(b":") for line in head.split(b"\r\n"))
    headers = {name.lower(): value.strip() for name, _, value in lines}
    accept = hashlib.sha1(headers[b"sec-websocket-key"] + GUID).digest()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
    )
    # What the reader holds has come behind the request. There is no wait between here and attach().
    reader.feed_eof()
    leftover = await reader.read()
    transport = attach(Echo(), writer.transport, role="server", leftover=leftover)
    # A StreamWriter closes its transport when it is freed: this coroutine keeps it.
    await transport.wait_disconnected()
    print("the server's side has ended")


async def main() -> None:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        transport, _ = await ws_connect(Client, f"ws://{host}:{port}/")
        await transport.wait_disconnected()
        await asyncio.sleep(0.1)  # for the other side to say so


if __name__ == "__main__":
    asyncio.run(main())
