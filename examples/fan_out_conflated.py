"""A client that stops reading comes back to the newest prices; another one is not held up.

python examples/fan_out_conflated.py
"""

import asyncio

from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server
from picows_fast.layers.broadcast import Channel, SlowConsumer

SYMBOLS = [f"S{number}" for number in range(20)]
UPDATES = 10_000


class Client(WSListener):
    def __init__(self) -> None:
        self.prices: dict[str, str] = {}
        self.up_to_date = asyncio.Event()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            symbol, self.prices[symbol] = frame.get_payload_as_utf8_text().split()[:2]
            if self.prices[symbol] == str(UPDATES):
                self.up_to_date.set()


async def main() -> None:
    newest: dict[str, str] = {}
    prices = Channel("prices", policy=SlowConsumer.CONFLATE)

    class Subscriber(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            prices.subscribe(transport)

    server = await ws_create_server(lambda r: Subscriber(), "127.0.0.1", 0, enable_auto_close=True)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    fast, slow = Client(), Client()
    reading, _ = await ws_connect(lambda: fast, url)
    stalled, _ = await ws_connect(lambda: slow, url)
    stalled.pause_reading()  # and so the server's socket fills
    for number in range(1, UPDATES + 1):
        symbol = SYMBOLS[number % len(SYMBOLS)]
        newest[symbol] = str(number)
        prices.publish(WSMsgType.TEXT, f"{symbol} {number} {'.' * 4000}", key=symbol)
        if number % 16 == 0:
            await asyncio.sleep(0)
    await fast.up_to_date.wait()
    print(f"slow now: {prices.slow}, conflated: {prices.conflated > 0}")
    stalled.resume_reading()
    await slow.up_to_date.wait()
    print(f"both have the newest of each symbol: {fast.prices == slow.prices == newest}")
    print(f"accounted for: {prices.published == prices.sent + prices.conflated}")
    for transport in (reading, stalled):
        transport.send_close()
        await transport.wait_disconnected()
    await server.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
