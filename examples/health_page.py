"""WebSocket and a little plain HTTP on one port. python examples/health_page.py [port]"""

import asyncio
import signal
import sys

from picows_fast import Server, WSListener, WSMsgType, WSTransport, ws_create_server
from picows_fast import WSUpgradeRequest as Request
from picows_fast import WSUpgradeResponse as Response
from picows_fast.layers.metrics import Metric, metrics_response, server_metrics
from picows_fast.layers.routing import Router

PAGE = b"""<!doctype html><title>feed</title><h1>...</h1><script>
const feed = new WebSocket(location.href.replace(/^http/, "ws") + "feed/page");
feed.onmessage = event => document.querySelector("h1").textContent = event.data;
</script>"""
HTML = {"Content-Type": "text/html; charset=utf-8"}

routes = Router()
server: Server


class Greeter(WSListener):
    greeted = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        Greeter.greeted += 1
        transport.send(WSMsgType.TEXT, f"hello {transport.request.path.decode()}")


@routes.websocket("/feed/{name}")
def feed(request: Request, name: str) -> WSListener:
    return Greeter()


# Decorators may be called as well.
routes.http("/health")(lambda request: f"{server.stats().connections} clients\n")
routes.http("/")(lambda request: Response.create_ok_response(PAGE, HTML))


@routes.http("/metrics")
def metrics(request: Request) -> Response:
    own = Metric("greeted_total", "counter", "Clients that were greeted.", Greeter.greeted)
    return metrics_response([*server_metrics(server.stats()), own])


async def main(port: int) -> None:
    global server
    server = await ws_create_server(routes, "127.0.0.1", port, max_connections=1000)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.shutdown(timeout=10)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
