"""A listener factory that decides by the path of the request.

Owns the table of paths, and the answers to a path that is none (404) or is asked in a way it does
not have (405, 426). What is answered elsewhere belongs to the handlers. Knows parameters that are
one segment, `{name}`, and nothing more: for a web site there are web servers.

    routes = Router()

    @routes.websocket("/feed/{symbol}")
    def feed(request, symbol):
        return Feed(symbol)

    @routes.http("/health")
    def health(request):
        return "ok\\n"

    server = await ws_create_server(routes, "0.0.0.0", 9001)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from ..core import WSListener
from ..protocol.http.messages import (
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from ..transport.callables import check_factory, discard_awaitable, is_coroutine_function

__all__ = ["Router"]

WebSocketResult: TypeAlias = WSListener | WSUpgradeResponse | WSUpgradeResponseWithListener | None
HTTPResult: TypeAlias = WSUpgradeResponse | bytes | str | None
# Asked for by a handler, the same may come later.
WebSocketAnswer: TypeAlias = WebSocketResult | Awaitable[WebSocketResult]
HTTPAnswer: TypeAlias = HTTPResult | Awaitable[HTTPResult]
WebSocketHandler = TypeVar("WebSocketHandler", bound=Callable[..., WebSocketAnswer])
HTTPHandler = TypeVar("HTTPHandler", bound=Callable[..., HTTPAnswer])

_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class _Path:
    """What is served at one path: `websocket` and `http` are handlers or None."""

    def __init__(self, segments: tuple[str, ...]) -> None:
        self.segments = segments
        self.names = [_name(segment) for segment in segments]
        self.websocket: Callable[..., WebSocketAnswer] | None = None
        self.http: Callable[..., HTTPAnswer] | None = None
        self.awaits_http = False

    def match(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """The parameters, if these segments are a path of this kind."""
        if len(segments) != len(self.segments):
            return None
        parameters = {}
        for own, name, segment in zip(self.segments, self.names, segments, strict=True):
            if name is None:
                if own != segment:
                    return None
            elif segment:
                parameters[name] = segment
            else:
                return None
        return parameters


class Router:
    """A listener factory: call `websocket` and `http`, then give it to ``ws_create_server``.

    A path starts with "/". A segment `{name}` stands for any one segment that is not empty, and
    the handler gets it as an argument of that name, percent-decoded. Paths without parameters come
    first, then the others in the order in which they were added. "/a" and "/a/" are two paths.
    The query does not count; it is in `request.query`.

    - A path that nobody added gets 404.
    - Plain HTTP to a path that has only a WebSocket gets 426, HEAD 405.
    - WebSocket to a path that has only HTTP gets what plain HTTP gets (RFC 9110 7.8).
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[str, ...], _Path] = {}
        self._patterns: dict[tuple[str, ...], _Path] = {}

    def websocket(self, path: str) -> Callable[[WebSocketHandler], WebSocketHandler]:
        """Decorator: the handler is called as `handler(request, **parameters)`, and returns what a
        listener factory returns. It may be a coroutine function, too.

        Raises TypeError or ValueError if the path is not valid, or has a WebSocket already, and
        TypeError for a handler that is not callable.
        """
        segments = _checked_segments(path)

        def decorate(handler: WebSocketHandler) -> WebSocketHandler:
            check_factory(
                handler, "handler", "what a listener factory returns", WSListener, is_awaited=True
            )
            found = self._path(segments)
            if found.websocket is not None:
                raise ValueError(f"path {path!r} has a WebSocket already")
            found.websocket = handler
            return handler

        return decorate

    def http(self, path: str) -> Callable[[HTTPHandler], HTTPHandler]:
        """Decorator: the handler is called as `handler(request, **parameters)` for GET and HEAD.

        It returns a WSUpgradeResponse, or str or bytes for a response with status 200 and type
        text/plain, or None for 404. The server leaves the body out for HEAD. It may be a coroutine
        function, too.

        Raises TypeError or ValueError if the path is not valid, or has HTTP already, and TypeError
        for a handler that is not callable.
        """
        segments = _checked_segments(path)

        def decorate(handler: HTTPHandler) -> HTTPHandler:
            returns = "a WSUpgradeResponse, str, bytes or None"
            check_factory(handler, "handler", returns, WSListener, is_awaited=True)
            found = self._path(segments)
            if found.http is not None:
                raise ValueError(f"path {path!r} has HTTP already")
            found.http = handler
            found.awaits_http = is_coroutine_function(handler)
            return handler

        return decorate

    def __call__(self, request: WSUpgradeRequest) -> WebSocketAnswer:
        """The listener factory."""
        segments = _request_segments(request)
        if segments is None:
            return None
        path = self._exact.get(segments)
        if path is not None:
            return _answer(path, request, {})
        for path in self._patterns.values():
            parameters = path.match(segments)
            if parameters is not None:
                return _answer(path, request, parameters)
        return None

    def _path(self, segments: tuple[str, ...]) -> _Path:
        table = self._patterns if any(map(_name, segments)) else self._exact
        return table.setdefault(segments, _Path(segments))


def _checked_segments(path: str) -> tuple[str, ...]:
    if not isinstance(path, str):
        raise TypeError(f"path must be a str, got {type(path).__name__}")
    if not path.startswith("/") or "?" in path or "#" in path:
        raise ValueError(f"path must start with '/' and have no query, got {path!r}")
    segments = tuple(path.split("/")[1:])
    names = [name for name in map(_name, segments) if name is not None]
    for segment in segments:
        if ("{" in segment or "}" in segment) and _name(segment) is None:
            raise ValueError(f"a parameter is a whole segment '{{name}}', got {path!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"a parameter's name must not be used twice, got {path!r}")
    if "request" in names:  # it would be the handler's first argument, too
        raise ValueError(f"a parameter must not be named 'request', got {path!r}")
    return segments


def _name(segment: str) -> str | None:
    match = _PARAMETER.fullmatch(segment)
    return None if match is None else match[1]


def _request_segments(request: WSUpgradeRequest) -> tuple[str, ...] | None:
    """The path's segments, decoded after they were split: an encoded slash is part of a segment."""
    path = request.path.partition(b"?")[0]
    try:
        return tuple(unquote_to_bytes(segment).decode() for segment in path.split(b"/")[1:])
    except UnicodeDecodeError:
        return None


def _answer(path: _Path, request: WSUpgradeRequest, parameters: dict[str, str]) -> WebSocketAnswer:
    if path.websocket is not None and (request.is_upgrade or path.http is None):
        if request.is_upgrade:
            return path.websocket(request, **parameters)
        if request.method != b"GET":
            return WSUpgradeResponse.create_error_response(
                HTTPStatus.METHOD_NOT_ALLOWED, None, {"Allow": "GET"}
            )
        return WSUpgradeResponse.create_error_response(
            HTTPStatus.UPGRADE_REQUIRED,
            b"this is a WebSocket\n",
            {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        )
    if path.http is None:
        return None
    if path.awaits_http:
        return _awaited(path.http, request, **parameters)
    result = path.http(request, **parameters)
    if inspect.isawaitable(result):
        return _awaited(lambda: result)
    return _http_response(result)


async def _awaited(
    handler: Callable[..., Any], /, *arguments: Any, **parameters: Any
) -> WSUpgradeResponse | None:
    """The answer of an HTTP handler that is awaited. It is called here, as a task that is cancelled
    before it begins would leave what it returns unawaited."""
    return _http_response(await handler(*arguments, **parameters))


def _http_response(result: HTTPResult) -> WSUpgradeResponse | None:
    if isinstance(result, str):
        result = result.encode()
    if isinstance(result, (bytes, bytearray, memoryview)):
        return WSUpgradeResponse.create_ok_response(result)
    if result is None or isinstance(result, WSUpgradeResponse):
        return result
    raise TypeError(
        "an HTTP handler must return a WSUpgradeResponse, str, bytes or None, "
        f"got {discard_awaitable(result)}"
    )
