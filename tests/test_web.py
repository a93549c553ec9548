"""`demo --web`: what is served, and the page in real browsers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import picows_fast
from picows_fast import WSInvalidStatusError, WSMsgType
from picows_fast.cli.book import generate_book
from picows_fast.cli.web import Books, WebDemo, page_and_policy, same_origin

from .browsers import browser, program
from .commands import Commands, commands_fixture  # noqa: F401
from .support import Recorder, until

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture
async def demo() -> AsyncIterator[WebDemo]:
    async with WebDemo("127.0.0.1", 0, 500.0) as running:
        yield running


async def http(url: str, path: str, method: str = "GET", headers: str = "") -> tuple[str, str]:
    """(head, body) of a response."""
    parsed = picows_fast.parse_url(url.replace("http", "ws", 1))
    reader, writer = await asyncio.open_connection(parsed.host, parsed.port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, body


# --- What is served


async def test_plain_http(demo: WebDemo) -> None:
    head, body = await http(demo.url, "/")
    assert head.startswith("HTTP/1.1 200 ")
    assert body.startswith("<!doctype html>")
    policy = re.search(r"(?m)^Content-Security-Policy: (.*)\r$", head)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    assert (await http(demo.url, "/", "HEAD"))[1] == ""
    assert (await http(demo.url, "/health"))[1] == "ok\n"
    assert (
        'demo_messages_total{channel="book",fate="sent"}' in (await http(demo.url, "/metrics"))[1]
    )
    assert (await http(demo.url, "/feed"))[0].startswith("HTTP/1.1 426 ")
    assert (await http(demo.url, "/other"))[0].startswith("HTTP/1.1 404 ")


async def test_the_page_needs_nothing_else() -> None:
    page, policy = page_and_policy()
    text = page.decode()
    addresses = set(re.findall(r"https?://[^\s'\"]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|link|img|iframe)[^>]*\ssrc=", text)
    assert not re.search(r"\s(style|on\w+)=\"", text)  # the policy would not let them
    assert policy.count("'sha256-") == 2


async def test_the_feed(demo: WebDemo) -> None:
    """First the state, then what follows; the clock on request."""
    await until(lambda: demo.state.books)
    transport, client = await picows_fast.ws_connect(
        Recorder, demo.url.replace("http", "ws") + "feed"
    )
    transport.send(WSMsgType.TEXT, "1234.5")
    transport.send(WSMsgType.TEXT, "not a time")
    seen: dict[str, list[dict[str, object]]] = {}
    while not {"book", "trade", "status", "clock"} <= set(seen):
        await client.frame(sum(map(len, seen.values())))
        for _, payload, _ in client.frames[sum(map(len, seen.values())) :]:
            message = json.loads(payload)
            seen.setdefault(message["type"], []).append(message)
    assert seen["book"][0]["now"] == 0  # of the snapshot
    assert seen["book"][-1]["now"] != 0
    assert seen["clock"][0]["sent"] == 1234.5
    assert len(seen["clock"]) == 1
    assert seen["status"][0]["clients"] == 1
    transport.disconnect()
    await transport.wait_disconnected()


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        (None, True),
        ("http://127.0.0.1:%d", True),
        ("http://elsewhere.example", False),
        ("null", False),
    ],
)
async def test_pages_of_others_are_refused(
    demo: WebDemo, origin: str | None, is_let_in: bool
) -> None:
    url = demo.url.replace("http", "ws") + "feed"
    headers = {}
    if origin is not None:
        headers["Origin"] = origin % picows_fast.parse_url(url).port if "%" in origin else origin
    if is_let_in:
        transport, _ = await picows_fast.ws_connect(Recorder, url, extra_headers=headers)
        assert same_origin(demo.requests[-1])
        transport.disconnect()
        await transport.wait_disconnected()
    else:
        with pytest.raises(WSInvalidStatusError, match="403"):
            await picows_fast.ws_connect(Recorder, url, extra_headers=headers)


async def test_books_are_those_of_the_exchange() -> None:
    """Sides are in order, never cross, and hold what the last change said."""
    books = Books()
    sizes: dict[tuple[str, str, str], str] = {}
    messages = generate_book(1000.0)
    for _ in range(3000):
        event = json.loads(next(messages)[1])
        shown = json.loads(books.apply(event))
        assert shown["symbol"] == event["symbol"]
        if event["type"] == "trade":
            assert shown["price"] == event["price"]
            continue
        for side in ("bids", "asks"):
            for price, size in event[side]:
                sizes[event["symbol"], side, price] = size
            for price, size in shown[side]:
                assert sizes[event["symbol"], side, price] == size != "0"
        bids = [float(price) for price, _ in shown["bids"]]
        asks = [float(price) for price, _ in shown["asks"]]
        assert bids == sorted(bids, reverse=True)
        assert asks == sorted(asks)
        assert not bids or not asks or bids[0] < asks[0]
    assert len(books.trades) == books.trades.maxlen


# --- The command


async def test_command(commands: Commands) -> None:
    command = await commands.start("demo", "--web", "--port", "0", "--rate", "100")
    url = re.search(r"http://\S+", await command.line())
    assert url is not None
    assert (await http(url[0], "/health"))[1] == "ok\n"
    transport, client = await picows_fast.ws_connect(
        Recorder, url[0].replace("http", "ws") + "feed", enable_auto_close=True
    )
    await client.frame(3)
    command.interrupt()
    await client.closed()
    assert transport.close_handshake.recv.code == 1012
    assert (await command.finish()).code == 130


async def test_command_over_tls_ends_by_itself(commands: Commands) -> None:
    result = await commands.run("demo", "--web", "--port", "0", "--tls", "--seconds", "0.2")
    assert result.code == 0
    assert "https://127.0.0.1:" in result.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--web", "--clients", "3"], "browsers"),
        (["--web", "--feed", "x"], "browsers"),
        (["--port", "1"], "--web"),
        (["--web", "--port", "70000"], "65535"),
    ],
)
async def test_command_refuses(commands: Commands, arguments: list[str], reason: str) -> None:
    result = await commands.run("demo", *arguments)
    assert result.code == 2
    assert reason in result.err


async def test_a_port_that_is_taken(commands: Commands, demo: WebDemo) -> None:
    port = picows_fast.parse_url(demo.url.replace("http", "ws")).port
    result = await commands.run("demo", "--web", "--port", port)
    assert result.code == 1
    assert f"cannot serve on 127.0.0.1:{port}" in result.err


# --- In browsers


@pytest.mark.parametrize("name", ["chromium", "firefox"])
async def test_in_a_browser(name: str, tmp_path: Path) -> None:
    """The page loads, shows the feed, and comes back when the server does."""
    if program(name) is None:
        pytest.skip(f"{name} is not installed")
    async with browser(name, tmp_path) as page:
        async with WebDemo("127.0.0.1", 0, 200.0) as demo:
            port = picows_fast.parse_url(demo.url.replace("http", "ws")).port
            await page.open(demo.url)
            await page.until("document.documentElement.dataset.state === 'live'")
            await page.until("document.querySelectorAll('.book').length === 3")
            await page.until("document.getElementById('age50').textContent.endsWith('s')")
            await page.until("document.getElementById('clients').textContent === '1'")
            assert await page.evaluate("document.getElementById('state').textContent") == "live"
            symbols = "[...document.querySelectorAll('.book h2')].map(one => one.textContent)"
            assert await page.evaluate(symbols) == ["BTC-USD", "ETH-USD", "SOL-USD"]
            shown = "document.querySelector('.book .key').textContent"
            before = await page.evaluate(shown)
            await page.until(f"{shown} !== {json.dumps(before)}")
            # A level of the book has the look that only the page's own style gives it.
            style = "getComputedStyle(document.querySelector('.book .bids')).backgroundImage"
            assert "gradient" in await page.evaluate(style)

            (request,) = demo.requests
            tokens = request.headers["Connection"].lower().split(", ")
            assert "upgrade" in tokens  # older Firefox: keep-alive, Upgrade
        # The server is gone: the page says so, and tries again.
        await page.until("document.documentElement.dataset.state === 'waiting'")
        assert "attempt" in await page.evaluate("document.getElementById('state').textContent")
        await page.until("Number(document.documentElement.dataset.attempts) >= 2")
        async with WebDemo("127.0.0.1", port, 200.0) as demo:
            await page.until("document.documentElement.dataset.state === 'live'")
            assert await page.evaluate("document.documentElement.dataset.connections") == "2"
            received = int(await page.evaluate("document.documentElement.dataset.received"))
            await page.until(f"Number(document.documentElement.dataset.received) > {received}")
            assert len(demo.requests) == 1
