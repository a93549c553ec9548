"""The `demo --web` command: the exchange of `demo`, and a page to watch it on, from one port.

Owns what the page is served, by plain HTTP and by WebSocket; the page itself is web.html. Every
change of a book is published as the book's state: a page that is behind gets the newest state of
each symbol (the channel conflates), and the newest trades.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import re
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from picows_fast import (
    Server,
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    ws_create_server,
)
from picows_fast.layers.broadcast import Channel, SlowConsumer
from picows_fast.layers.metrics import Metric, metrics_response, server_metrics
from picows_fast.layers.routing import Router

from .book import generate_book
from .publish import loopback_context, paced
from .runtime import CommandError

DEFAULT_WEB_RATE = 500.0
DEFAULT_WEB_PORT = 8080

_PAGE = Path(__file__).with_name("web.html")
_LEVELS = 10  # of each side, that the page gets
_TRADES = 16  # that a new page gets, and that may wait for one
_STATUS_INTERVAL = 0.5  # seconds
# A page sends a short text now and then.
_MAX_FRAME_SIZE = 4096
_MAX_WRITE_BACKLOG = 1 << 20
# Seconds that pages have to answer CLOSE when the command ends.
_SHUTDOWN_TIMEOUT = 2.0

_encode = json.JSONEncoder(separators=(",", ":")).encode


def page_and_policy() -> tuple[bytes, str]:
    """The page, and a Content-Security-Policy that allows its own script and style only."""
    page = _PAGE.read_bytes()

    def hashes(tag: bytes) -> str:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found
        )

    policy = (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy


def same_origin(request: WSUpgradeRequest) -> bool:
    """Whether a browser's page of this very server asks, or a program that is no browser."""
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


class Books:
    """The exchange's books and last trades, as its messages tell, in the form that a page gets."""

    def __init__(self) -> None:
        self._sides: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self.books: dict[str, tuple[int, dict[str, Any]]] = {}
        """symbol -> (number of the message, book)"""
        self.trades: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_TRADES)

    def apply(self, event: dict[str, Any]) -> str:
        """Take a message of the exchange; give what the page gets."""
        symbol, seq = event["symbol"], event["seq"]
        if event["type"] == "trade":
            trade = {name: event[name] for name in ("symbol", "price", "size", "side")}
            self.trades.append((seq, trade))
            return text_of("trade", seq, trade)
        bids, asks = self._sides.setdefault(symbol, ({}, {}))
        for side, changes in ((bids, event["bids"]), (asks, event["asks"])):
            for price, size in changes:
                if float(size):
                    side[price] = size
                else:
                    side.pop(price, None)
        book = {
            "symbol": symbol,
            "bids": sorted(bids.items(), key=_price, reverse=True)[:_LEVELS],
            "asks": sorted(asks.items(), key=_price)[:_LEVELS],
        }
        self.books[symbol] = seq, book
        return text_of("book", seq, book)


def _price(level: tuple[str, str]) -> float:
    return float(level[0])


def text_of(kind: str, seq: int, body: dict[str, Any], *, is_news: bool = True) -> str:
    """A message for the page; `now`, in ms since 1970, is when it was published; 0: a snapshot."""
    now = time.time() * 1000 if is_news else 0
    return _encode({"type": kind, "seq": seq, "now": now, **body})


class Page(WSListener):
    """The server's side of one open page. It asks for the time, to compare the clocks."""

    def __init__(self, demo: WebDemo) -> None:
        super().__init__()
        self._demo = demo

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._demo.books.subscribe(transport)
        self._demo.trades.subscribe(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            text = frame.get_payload_as_utf8_text()
            if re.fullmatch(r"\d{1,16}(\.\d{1,16})?", text):
                reply = {"type": "clock", "sent": float(text), "now": time.time() * 1000}
                transport.send(WSMsgType.TEXT, _encode(reply))


class WebDemo:
    """The exchange with its page: an async context manager that serves while it is entered."""

    def __init__(
        self, host: str, port: int, rate: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.state = Books()
        self.books = Channel("book", policy=SlowConsumer.CONFLATE, snapshot=self._all_books)
        self.trades = Channel(
            "trade",
            policy=SlowConsumer.DROP_OLDEST,
            max_messages=_TRADES,
            snapshot=self._last_trades,
        )
        self.requests: list[WSUpgradeRequest] = []
        """The opening handshakes of the last pages."""
        self._host, self._port, self._rate, self._tls = host, port, rate, tls
        self._page, self._policy = page_and_policy()
        self._server: Server
        self._routes = routes = Router()
        routes.http("/")(self._serve_page)
        routes.http("/health")(lambda request: "ok\n")
        routes.http("/metrics")(self._serve_metrics)
        routes.websocket("/feed")(self._accept)

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()[:2]
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"

    def _all_books(self, transport: WSTransport) -> Iterator[tuple[WSMsgType, str, str]]:
        for symbol, (seq, book) in self.state.books.items():
            yield WSMsgType.TEXT, text_of("book", seq, book, is_news=False), symbol

    def _last_trades(self, transport: WSTransport) -> Iterator[tuple[WSMsgType, str]]:
        for seq, trade in self.state.trades:
            yield WSMsgType.TEXT, text_of("trade", seq, trade, is_news=False)

    # --- HTTP

    def _serve_page(self, request: WSUpgradeRequest) -> WSUpgradeResponse:
        return WSUpgradeResponse.create_ok_response(
            self._page,
            {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": self._policy,
                # An isolated page has a finer clock.
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Embedder-Policy": "require-corp",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-cache",
            },
        )

    def _serve_metrics(self, request: WSUpgradeRequest) -> WSUpgradeResponse:
        fates = ("published", "sent", "conflated", "dropped", "discarded")
        samples = [
            ({"channel": channel.name, "fate": fate}, getattr(channel, fate))
            for channel in (self.books, self.trades)
            for fate in fates
        ]
        own = Metric("demo_messages_total", "counter", "Messages, client by client.", samples)
        return metrics_response([*server_metrics(self._server.stats()), own])

    def _accept(self, request: WSUpgradeRequest) -> WSListener | WSUpgradeResponse:
        self.requests = [*self.requests[-9:], request]
        if not same_origin(request):
            return WSUpgradeResponse.create_error_response(403, b"a page of another origin\n")
        return Page(self)

    # --- Running

    async def __aenter__(self) -> WebDemo:
        self._server = await ws_create_server(
            self._routes,
            self._host,
            self._port,
            ssl=self._tls,
            enable_auto_close=True,
            max_frame_size=_MAX_FRAME_SIZE,
            max_write_backlog=_MAX_WRITE_BACKLOG,
        )
        self._tasks = [
            asyncio.ensure_future(self._publish()),
            asyncio.ensure_future(self._publish_status()),
        ]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.shutdown(
            code=WSCloseCode.SERVICE_RESTART,  # a page may come back
            timeout=_SHUTDOWN_TIMEOUT,
        )

    async def run(self, seconds: float | None) -> None:
        """Publish for so long, or until something fails; None: until it is cancelled."""
        done, _ = await asyncio.wait(
            self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()

    async def _publish(self) -> None:
        async for text in paced(generate_book(self._rate), 1.0):
            event = json.loads(text)
            message = self.state.apply(event)
            if event["type"] == "trade":
                self.trades.publish(WSMsgType.TEXT, message)
            else:
                self.books.publish(WSMsgType.TEXT, message, key=event["symbol"])

    async def _publish_status(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_INTERVAL)
            status = {
                "clients": len(self.books),
                "slow": self.books.slow,
                "sent": self.books.sent + self.trades.sent,
                "conflated": self.books.conflated,
                "dropped": self.trades.dropped,
            }
            self.books.publish(WSMsgType.TEXT, text_of("status", 0, status), key="status")


async def run(args: argparse.Namespace) -> int:
    """Run the command; 0 when the time is over."""
    tls = loopback_context() if args.tls else None  # a browser asks whether to go on
    demo = WebDemo(args.host, args.port, args.rate, tls)
    try:
        async with demo:
            print(
                f"open {demo.url} in a browser; Ctrl-C ends it\n"
                f"publishing a generated order book at {args.rate:,.0f} messages/s, {args.loop}\n"
                f"also there: {demo.url}health and {demo.url}metrics"
            )
            sys.stdout.flush()
            # Whatever ends it: the pages are told, and try again later.
            await demo.run(args.seconds)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CommandError(f"cannot serve on {args.host}:{args.port}: {reason}") from error
    return 0
