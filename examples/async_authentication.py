"""A server that asks elsewhere who may connect. python examples/async_authentication.py [port]

curl -i http://127.0.0.1:9001/                                  426: it is a WebSocket
python -m picows_fast connect ws://127.0.0.1:9001/              401
python -m picows_fast connect -H "Authorization: Bearer swordfish" ws://127.0.0.1:9001/
"""

import asyncio
import signal
import sys

from picows_fast import (
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    ws_create_server,
)

TOKENS = {"swordfish": "alice"}


class Session(WSListener):
    def __init__(self, user: str) -> None:
        self.user = user

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, f"hello {self.user}")


async def find_user(token: str) -> str | None:
    await asyncio.sleep(0.05)  # a database or another service, say
    return TOKENS.get(token)


async def accept(request: WSUpgradeRequest) -> WSListener | WSUpgradeResponse:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # Cancelled here if the client leaves; the client gets 408 after websocket_handshake_timeout.
    user = await find_user(token) if scheme == "Bearer" else None
    if user is None:
        print(f"{request.peername[0]} has no valid token", flush=True)
        return WSUpgradeResponse.create_error_response(401, None, {"WWW-Authenticate": "Bearer"})
    return Session(user)


async def main(port: int) -> None:
    # No more requests than this wait at once: others wait in the system's queue.
    server = await ws_create_server(accept, "127.0.0.1", port, max_pending_handshakes=100)
    print(f"listening on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.shutdown(timeout=10)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
