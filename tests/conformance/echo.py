"""The server and the client that the test suite is run against: they send every message back.

python -m tests.conformance.echo server LOOP [CERTIFICATE KEY]      prints the port
python -m tests.conformance.echo client LOOP URL AGENT [AUTHORITY]
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys

from picows_fast import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSPeerProtocolError,
    WSTransport,
    ws_connect,
    ws_create_server,
)
from picows_fast.layers.messages import WSMessageListener

# What cases 9.* send at most: 16 MiB, and 65,536 fragments with an empty one behind.
MESSAGE_SIZE = 16 * 1024 * 1024
FRAGMENTS = 65_537


class Echo(WSMessageListener):
    def __init__(self) -> None:
        super().__init__(
            max_message_size=MESSAGE_SIZE, max_fragments=FRAGMENTS, check_unfinished_text=True
        )

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        transport.send(msg_type, payload)


class CaseCount(WSMessageListener):
    count = 0

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        self.count = int(payload.get_payload_as_utf8_text())


async def serve(*files: str) -> None:
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
    server = await ws_create_server(
        lambda request: Echo(), "127.0.0.1", 0, ssl=context, max_frame_size=MESSAGE_SIZE
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def run_cases(url: str, agent: str, *files: str) -> None:
    context = ssl.create_default_context(cafile=files[0]) if files else None

    async def until_closed(listener: WSListener, path: str) -> None:
        transport, _ = await ws_connect(
            lambda: listener, url + path, ssl_context=context, max_frame_size=MESSAGE_SIZE
        )
        with contextlib.suppress(WSPeerProtocolError):  # what many cases are about
            await transport.wait_disconnected()

    counter = CaseCount()
    await until_closed(counter, "/getCaseCount")
    for case in range(1, counter.count + 1):
        await until_closed(Echo(), f"/runCase?case={case}&agent={agent}")


def main(command: str, loop_name: str, *arguments: str) -> None:
    if loop_name == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete({"server": serve, "client": run_cases}[command](*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
