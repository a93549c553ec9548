"""A server that sends every message back.

python examples/echo_server.py [port]        try it: python -m picows_fast connect ws://127.0.0.1:9001/
"""

import asyncio
import signal
import sys

from picows_fast import (
    WSFrame,
    WSListener,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)


class Echo(WSListener):
    """One client's connection: the factory below makes one listener for each."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        # CLOSE comes here as well. Sending it back ends the connection in order (RFC 6455 5.5.1).
        # Fragments are sent back as the fragments they are: `fin` tells which one is the last.
        transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


def accept(request: WSUpgradeRequest) -> WSListener:
    print(f"client asks for {request.path.decode()}", flush=True)
    return Echo()


async def main(port: int) -> None:
    server = await ws_create_server(accept, "127.0.0.1", port)
    print(f"listening on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.shutdown(timeout=10)  # CLOSE to every client, and time to answer it


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
