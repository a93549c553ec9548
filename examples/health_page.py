"""WebSocket and a little plain HTTP on one port: a health check, metrics for Prometheus, a page.

python examples/health_page.py [port]
curl http://127.0.0.1:9001/health
curl http://127.0.0.1:9001/metrics
A browser on http://127.0.0.1:9001/ shows the page, which connects to the WebSocket at /feed/page.
"""

import asyncio
import json
import signal
import sys

from picows_fast import (
    Server,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    ws_create_server,
)
from picows_fast.layers.metrics import Metric, metrics_response, server_metrics
from picows_fast.layers.routing import Router

PAGE = b"""<!doctype html>
<title>feed</title>
<h1 id="said">connecting</h1>
<script>
const said = document.getElementById("said");
const feed = new WebSocket(location.href.replace(/^http/, "ws") + "feed/page");
feed.onmessage = event => said.textContent = event.data;
feed.onclose = event => said.textContent = "closed: " + event.code;
</script>
"""

routes = Router()
echoed = 0
server: Server


class Echo(WSListener):
    def __init__(self, name: str) -> None:
        self.name = name

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, f"hello {self.name}")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        global echoed
        echoed += 1
        transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


@routes.websocket("/feed/{name}")
def feed(request: WSUpgradeRequest, name: str) -> WSListener:
    return Echo(name)


@routes.http("/health")
def health(request: WSUpgradeRequest) -> WSUpgradeResponse:
    body = json.dumps({"clients": server.stats().connections}).encode() + b"\n"
    return WSUpgradeResponse.create_ok_response(body, {"Content-Type": "application/json"})


@routes.http("/metrics")
def metrics(request: WSUpgradeRequest) -> WSUpgradeResponse:
    own = Metric("echoed_frames_total", "counter", "Frames that were sent back.", echoed)
    return metrics_response([*server_metrics(server.stats()), own])


@routes.http("/")
def page(request: WSUpgradeRequest) -> WSUpgradeResponse:
    return WSUpgradeResponse.create_ok_response(PAGE, {"Content-Type": "text/html; charset=utf-8"})


async def main(port: int) -> None:
    global server
    server = await ws_create_server(
        routes,
        "127.0.0.1",
        port,
        max_connections=1000,  # plain HTTP is answered above this, too
        max_connections_per_ip=100,
    )
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.shutdown(timeout=10)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
