"""WebSocket and a little plain HTTP on the same port: a page that says how the server is.

python examples/health_page.py [port]        try it with: curl http://127.0.0.1:9001/health
"""

import asyncio
import contextlib
import json
import sys

from picows_fast import (
    WSFrame,
    WSListener,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

clients = 0


class Echo(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        global clients
        clients += 1

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        global clients
        clients -= 1

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


def accept(request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener | None:
    """Decide by the path. The request's headers are there too, to check a token, say."""
    if request.path == b"/health":
        body = json.dumps({"clients": clients}).encode() + b"\n"
        response = WSUpgradeResponse.create_ok_response(body, {"Content-Type": "application/json"})
        return WSUpgradeResponseWithListener(response, None)  # None: this is no WebSocket
    if request.path == b"/feed":
        return Echo()
    return None  # 404


async def main(port: int) -> None:
    server = await ws_create_server(accept, "127.0.0.1", port)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
