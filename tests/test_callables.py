"""callables: coroutine functions where plain ones are called, refused when they are given."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import warnings
from typing import Any

import pytest

import picows_fast
from picows_fast import WSListener, WSUpgradeRequest
from picows_fast.layers.messages import WSMessageListener
from picows_fast.layers.routing import Router
from picows_fast.transport.callables import is_async

from .support import Echo, Recorder, check_echo, serving

HOOKS = sorted(name for name in vars(WSListener) if not name.startswith("_"))


async def coroutine(*arguments: Any) -> Any:
    return Echo()


async def generator(*arguments: Any) -> Any:
    yield Echo()


class Callable:
    async def __call__(self, *arguments: Any) -> Any:
        return Echo()

    async def method(self, *arguments: Any) -> Any:
        return Echo()

    @staticmethod
    async def static(*arguments: Any) -> Any:
        return Echo()


ASYNC = {
    "function": coroutine,
    "generator": generator,
    "partial": functools.partial(coroutine, 1),
    "nested partial": functools.partial(functools.partial(coroutine), 1),
    "object": Callable(),
    "method": Callable().method,
    "static method": Callable.static,
    "partial of an object": functools.partial(Callable()),
}
if hasattr(inspect, "markcoroutinefunction"):
    ASYNC["marked"] = inspect.markcoroutinefunction(lambda *arguments: coroutine())


def wrapped(function: Any) -> Any:
    """A decorator that makes a plain function of it."""

    @functools.wraps(function)
    def start(*arguments: Any) -> None:
        asyncio.ensure_future(function(*arguments)).cancel()

    return start


@pytest.fixture(autouse=True)
def nothing_is_left_unawaited() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()


@pytest.mark.parametrize("function", ASYNC.values(), ids=ASYNC)
def test_async_is_found(function: Any) -> None:
    assert is_async(function)


@pytest.mark.parametrize(
    "function", [len, Echo, Callable, lambda: None, wrapped(coroutine), WSListener.on_ws_frame, 1]
)
def test_plain_is_let_through(function: Any) -> None:
    assert not is_async(function)


@pytest.mark.parametrize("function", ASYNC.values(), ids=ASYNC)
async def test_async_factories_are_refused_by_clients(function: Any) -> None:
    with pytest.raises(TypeError, match="ws_listener_factory must be a plain function"):
        await picows_fast.ws_connect(function, "ws://127.0.0.1:1/")


async def test_asynchronous_generators_are_refused_by_servers() -> None:
    with pytest.raises(TypeError, match="got an asynchronous generator function: generator"):
        await picows_fast.ws_create_server(generator, "127.0.0.1", 0)  # type: ignore[arg-type]
    routes = Router()
    for add in (routes.websocket, routes.http):
        with pytest.raises(TypeError, match="got an asynchronous generator function: generator"):
            add("/")(generator)  # type: ignore[type-var]


@pytest.mark.parametrize(
    "function", [value for name, value in ASYNC.items() if name != "generator"]
)
async def test_coroutine_functions_are_awaited_by_servers(function: Any) -> None:
    routes = Router()
    routes.websocket("/")(function)
    for factory in (function, routes):
        async with serving(factory) as url:
            await check_echo(url)


@pytest.mark.parametrize("name", HOOKS)
async def test_async_methods_are_refused_when_the_class_is_seen(name: str) -> None:
    listener_class: Any = type("Mine", (Recorder,), {name: coroutine})
    subclass: Any = type("Sub", (listener_class,), {})
    for factory in (listener_class, subclass):
        with pytest.raises(TypeError, match=rf"\.{name} must be a plain method"):
            await picows_fast.ws_connect(factory, "ws://127.0.0.1:1/")
        with pytest.raises(TypeError, match=rf"\.{name} must be a plain method"):
            await picows_fast.ws_create_server(factory, "127.0.0.1", 0)


@pytest.mark.parametrize("name", ["on_ws_message", "on_ws_control"])
async def test_async_methods_of_layers(name: str) -> None:
    listener_class: Any = type("Mine", (WSMessageListener,), {name: coroutine})
    with pytest.raises(TypeError, match=rf"Mine\.{name} must be a plain method"):
        await picows_fast.ws_connect(listener_class, "ws://127.0.0.1:1/")


async def test_the_last_override_counts() -> None:
    wrong: Any = type("Wrong", (Recorder,), {"on_ws_frame": coroutine})
    right: Any = type("Right", (wrong,), {"on_ws_frame": Recorder.on_ws_frame})
    async with serving(lambda request: Echo()) as url:
        transport, _ = await picows_fast.ws_connect(right, url)
        transport.disconnect()
        await transport.wait_disconnected()


@pytest.mark.parametrize("how", ["class", "instance"])
async def test_async_methods_of_what_a_factory_returns(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's call raises; a server's peer gets 500, and the log says why."""

    def factory(request: WSUpgradeRequest | None = None) -> Any:
        if how == "class":
            return type("Mine", (WSListener,), {"on_ws_frame": coroutine})()
        listener = Recorder()
        listener.on_ws_frame = coroutine  # type: ignore[method-assign]
        return listener

    async with serving(lambda request: Echo()) as url:
        with pytest.raises(TypeError, match=r"on_ws_frame must be a plain method"):
            await picows_fast.ws_connect(lambda: factory(), url)
    async with serving(factory) as url:
        with pytest.raises(picows_fast.WSInvalidStatusError, match="500"):
            await picows_fast.ws_connect(Recorder, url)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "on_ws_frame must be a plain method" in str(record.exc_info[1])


async def test_a_clients_factory_that_returns_a_coroutine() -> None:
    async with serving(lambda request: Echo()) as url:
        for result in (coroutine, lambda: asyncio.ensure_future(coroutine())):
            with pytest.raises(
                TypeError, match="must be a plain function that returns a WSListener"
            ):
                await picows_fast.ws_connect(lambda: result(), url)  # noqa: B023
            await asyncio.sleep(0)
