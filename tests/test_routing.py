"""layers.routing: which handler gets a request, and what is answered where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

import picows_fast
from picows_fast import (
    WSListener,
    WSMsgType,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows_fast.layers.routing import Router

from .peers import TIMEOUT
from .support import Echo, Recorder, serving


def request(path: bytes, *, upgrade: bool = False, method: bytes = b"GET") -> WSUpgradeRequest:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"} if upgrade else {}
    return WSUpgradeRequest(method, path, b"HTTP/1.1", CIMultiDict(headers))


class Seen:
    """Handlers that keep how they were called."""

    def __init__(self) -> None:
        self.router = Router()
        self.calls: list[tuple[str, dict[str, str]]] = []

    def http(self, *paths: str) -> None:
        for path in paths:

            def handler(request: WSUpgradeRequest, path: str = path, **parameters: str) -> str:
                self.calls.append((path, parameters))
                return path

            self.router.http(path)(handler)

    def websocket(self, *paths: str) -> None:
        for path in paths:

            def handler(
                request: WSUpgradeRequest, path: str = path, **parameters: str
            ) -> WSListener:
                self.calls.append((path, parameters))
                return WSListener()

            self.router.websocket(path)(handler)


@pytest.mark.parametrize(
    ("path", "call"),
    [
        (b"/", ("/", {})),
        (b"/?a=b", ("/", {})),
        (b"/health", ("/health", {})),
        (b"/health?verbose", ("/health", {})),
        (b"/he%61lth", ("/health", {})),
        (b"/feed/BTC-USD", ("/feed/{symbol}", {"symbol": "BTC-USD"})),
        (b"/feed/BTC%2FUSD?depth=5", ("/feed/{symbol}", {"symbol": "BTC/USD"})),
        (b"/feed/%E2%82%AC", ("/feed/{symbol}", {"symbol": "\N{EURO SIGN}"})),
        (b"/feed/all", ("/feed/all", {})),
        (b"/feed/", ("/feed/", {})),
        (b"/feed/a/b", ("/feed/{symbol}/{side}", {"symbol": "a", "side": "b"})),
        (b"/feed/a/trades", ("/feed/{symbol}/{side}", {"symbol": "a", "side": "trades"})),
        (b"/x/trades", ("/{any}/trades", {"any": "x"})),
        (b"/health/", None),
        (b"//health", None),
        (b"/HEALTH", None),
        (b"/feed", None),
        (b"/feed/a/", None),
        (b"/feed/a/b/c", None),
        (b"/feed/%FF", None),
        (b"/feed/{symbol}/", None),
        (b"/x/trades/y", None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_paths(path: bytes, call: tuple[str, dict[str, str]] | None, kind: str) -> None:
    seen = Seen()
    getattr(seen, kind)(
        "/{any}/trades/{one}/{two}/{three}",
        "/feed/{symbol}",
        "/feed/{symbol}/{side}",
        "/{any}/trades",
        "/",
        "/health",
        "/feed/all",
        "/feed/",
    )
    result = seen.router(request(path, upgrade=kind == "websocket"))
    assert seen.calls == ([] if call is None else [call])
    if call is None:
        assert result is None
    elif kind == "http":
        assert isinstance(result, WSUpgradeResponse)
        assert result.body == call[0].encode()
    else:
        assert isinstance(result, WSListener)


def test_query() -> None:
    query = request(b"/feed?symbol=BTC%2DUSD&symbol=%E2%82%AC&depth=&x=%FF").query
    assert query.getall("symbol") == ["BTC-USD", "\N{EURO SIGN}"]
    assert query["depth"] == ""
    assert query["x"] == "\N{REPLACEMENT CHARACTER}"
    assert not request(b"/feed").query


def test_http_and_websocket_at_one_path() -> None:
    seen = Seen()
    seen.http("/")
    seen.websocket("/")
    assert isinstance(seen.router(request(b"/", upgrade=True)), WSListener)
    assert isinstance(seen.router(request(b"/")), WSUpgradeResponse)
    assert isinstance(seen.router(request(b"/", method=b"HEAD")), WSUpgradeResponse)


@pytest.mark.parametrize(("method", "status"), [(b"GET", 426), (b"HEAD", 405)])
def test_plain_http_to_a_websocket(method: bytes, status: int) -> None:
    seen = Seen()
    seen.websocket("/feed")
    response = seen.router(request(b"/feed", method=method))
    assert isinstance(response, WSUpgradeResponse)
    assert response.status == status
    name, value = ("Upgrade", "websocket") if status == 426 else ("Allow", "GET")
    assert response.headers[name] == value
    assert seen.calls == []


def test_websocket_to_plain_http_is_plain_http() -> None:
    seen = Seen()
    seen.http("/health")
    assert isinstance(seen.router(request(b"/health", upgrade=True)), WSUpgradeResponse)


NO_BODY = WSUpgradeResponse.create_error_response(503)


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        ("\N{EURO SIGN}", 200, b"\xe2\x82\xac"),
        (b"x", 200, b"x"),
        ("", 200, b""),
        (NO_BODY, 503, None),
    ],
    ids=ascii,
)
def test_what_an_http_handler_returns(result: Any, status: int, body: bytes | None) -> None:
    router = Router()
    router.http("/")(lambda request: result)
    response = router(request(b"/"))
    assert isinstance(response, WSUpgradeResponse)
    assert (response.status, response.body) == (status, body)


def test_what_an_http_handler_must_not_return() -> None:
    router = Router()
    router.http("/none")(lambda request: None)
    router.http("/listener")(lambda request: WSListener())  # type: ignore[arg-type, return-value]
    assert router(request(b"/none")) is None
    with pytest.raises(TypeError, match="WSUpgradeResponse"):
        router(request(b"/listener"))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("feed", ValueError),
        ("", ValueError),
        ("/feed?x=1", ValueError),
        ("/feed#x", ValueError),
        ("/feed/{}", ValueError),
        ("/feed/{a b}", ValueError),
        ("/feed/x{a}", ValueError),
        ("/feed/{a", ValueError),
        ("/{a}/{a}", ValueError),
        ("/{request}", ValueError),
        (b"/feed", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_bad_paths(path: Any, error: type[Exception]) -> None:
    router = Router()
    for add in (router.http, router.websocket):
        with pytest.raises(error, match=r"path|parameter"):
            add(path)


def test_one_handler_for_each() -> None:
    seen = Seen()
    seen.http("/a", "/{b}")
    seen.websocket("/a", "/{b}")
    for path in ("/a", "/{b}"):
        with pytest.raises(ValueError, match="already"):
            seen.http(path)
        with pytest.raises(ValueError, match="already"):
            seen.websocket(path)
    for add in (seen.router.http, seen.router.websocket):
        with pytest.raises(TypeError, match="callable"):
            add("/c")(5)  # type: ignore[type-var]


def test_a_handler_that_is_refused_takes_no_path() -> None:
    async def generator(request: WSUpgradeRequest) -> AsyncIterator[None]:
        yield

    seen = Seen()
    seen.http("/{a}")
    for add in (seen.router.http, seen.router.websocket):
        with pytest.raises(TypeError, match="asynchronous generator function"):
            add("/c")(generator)  # type: ignore[type-var]
    seen.router(request(b"/c"))
    assert seen.calls == [("/{a}", {"a": "c"})]


async def test_over_the_wire(io_options: dict[str, bool]) -> None:
    routes = Router()

    @routes.websocket("/echo/{name}")
    def echo(request: WSUpgradeRequest, name: str) -> WSUpgradeResponseWithListener:
        switch = WSUpgradeResponse.create_101_response({"X-Name": name})
        return WSUpgradeResponseWithListener(switch, Echo())

    @routes.http("/")
    def page(request: WSUpgradeRequest) -> WSUpgradeResponse:
        html = {"Content-Type": "text/html; charset=utf-8"}
        return WSUpgradeResponse.create_ok_response(b"<title>\xe2\x82\xac</title>", html)

    @routes.http("/hello/{name}")
    def hello(request: WSUpgradeRequest, name: str) -> str:
        return f"{request.query.get('greeting', 'hello')} {name}"

    async with serving(routes, **io_options) as url:
        transport, client = await picows_fast.ws_connect(Recorder, url + "echo/a%20b")
        assert transport.response.headers["X-Name"] == "a b"
        transport.send(WSMsgType.TEXT, "x")
        assert await client.frame() == (WSMsgType.TEXT, b"x", True)
        transport.disconnect()
        await client.closed()

        async with aiohttp.ClientSession(url.replace("ws", "http", 1)) as session:
            async with session.get("/") as response:
                assert response.status == 200
                assert response.headers["Connection"] == "close"
                assert response.content_type == "text/html"
                assert await response.text() == "<title>\N{EURO SIGN}</title>"
            async with session.get(
                "/hello/a%2Fb", params={"greeting": "\N{EURO SIGN}"}
            ) as response:
                assert await response.text() == "\N{EURO SIGN} a/b"
            async with session.head("/hello/you") as response:
                assert response.status == 200
                assert response.headers["Content-Length"] == "9"
                assert await response.read() == b""
            for method, path, status in (
                ("GET", "/nothing", 404),
                ("HEAD", "/nothing", 404),
                ("GET", "/echo/x", 426),
                ("HEAD", "/echo/x", 405),
                ("DELETE", "/", 405),
                ("OPTIONS", "/", 405),
            ):
                async with session.request(method, path) as response:
                    assert (method, path, response.status) == (method, path, status)
                    await asyncio.wait_for(response.read(), TIMEOUT)
