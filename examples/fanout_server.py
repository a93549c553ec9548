"""One feed to many clients. A client that cannot keep up is dropped; the others do not notice.

python examples/fanout_server.py [port] [messages a second]
"""

import asyncio
import json
import signal
import sys

from picows_fast import WSCloseCode, WSListener, WSMsgType, WSTransport, ws_create_server

subscribers: set[WSTransport] = set()


class Subscriber(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        subscribers.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        subscribers.discard(transport)
        print(f"client gone: {transport.disconnect_cause!r}", flush=True)

    def pause_writing(self) -> None:  # and resume_writing, when it has caught up
        print("client is slow", flush=True)


async def publish(rate: int) -> None:
    number = 0
    while True:
        await asyncio.sleep(0.01)
        for _ in range(max(1, rate // 100)):  # on_ws_disconnected never comes out of a send
            number += 1
            message = json.dumps({"trade": number, "price": 100 + number % 10}).encode()
            for transport in subscribers:
                transport.send(WSMsgType.TEXT, message)


async def main(port: int, rate: int) -> None:
    server = await ws_create_server(
        lambda request: Subscriber(),
        "127.0.0.1",
        port,
        coalesce_writes=True,  # what one turn of the loop publishes leaves in one system call
        max_write_backlog=256 * 1024,  # bytes that one client may be behind
        enable_auto_close=True,
        enable_auto_ping=True,  # find clients that have vanished, too
    )
    print(f"listening on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    publishing = asyncio.create_task(publish(rate))
    await stop.wait()
    await server.shutdown(code=WSCloseCode.SERVICE_RESTART, timeout=10, spread=1)
    publishing.cancel()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:] + ["9001", "100"][len(sys.argv) - 1 :])))
