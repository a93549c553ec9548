"""One listener for many symbols: each has a connection of its own, and all share one book.

python examples/many_symbols.py [url] [symbol ...]        needs examples/echo_server.py
"""

import asyncio
import json
import sys

from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect


class Book(WSListener):
    """The methods get the transport, so that one object can tell its connections apart."""

    def __init__(self) -> None:
        self.symbols: dict[WSTransport, str] = {}
        self.bids: dict[str, float] = {}

    def subscribe(self, transport: WSTransport, symbol: str) -> None:
        self.symbols[transport] = symbol
        # An exchange would be sent a subscription. The echo server sends the update back.
        transport.send(WSMsgType.TEXT, json.dumps({"bid": 100.0 + len(self.symbols)}))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            symbol = self.symbols[transport]
            self.bids[symbol] = json.loads(frame.get_payload_as_utf8_text())["bid"]
            print(f"{symbol} {self.bids[symbol]}")
            transport.send_close()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        symbol = self.symbols.pop(transport)
        if symbol not in self.bids:
            print(f"{symbol} lost: {transport.disconnect_cause!r}")


async def main(url: str, symbols: list[str]) -> None:
    book = Book()
    # All at once. One that fails does not keep the others from connecting.
    results = await asyncio.gather(
        *(ws_connect(lambda: book, f"{url}?symbol={symbol}") for symbol in symbols),
        return_exceptions=True,
    )
    transports = []
    for symbol, result in zip(symbols, results, strict=True):
        if isinstance(result, BaseException):
            print(f"{symbol} not connected: {result!r}")
        else:
            book.subscribe(result[0], symbol)
            transports.append(result[0])
    await asyncio.gather(*(transport.wait_disconnected() for transport in transports))
    print(f"{len(book.bids)} symbols")


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"
    asyncio.run(main(address, sys.argv[2:] or ["BTC", "ETH", "SOL"]))
