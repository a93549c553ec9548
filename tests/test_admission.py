"""admission: a request that waits for its answer, as the factory is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest

import picows_fast
from picows_fast import (
    WSDisconnectCause,
    WSFrame,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows_fast.layers.routing import Router

from .peers import TIMEOUT, UPGRADE_REQUEST, Contexts, Peer, connect_socket
from .support import Echo, Recorder, nothing_left_behind, until

PLAIN_REQUEST = b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
async def leaves_no_coroutine() -> AsyncIterator[None]:
    """Nor anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with nothing_left_behind():
            yield
            gc.collect()


class Waiting:
    """A factory that waits for the test. `request`: its last one; `ends`: how its calls ended."""

    def __init__(self, answer: Callable[[], Any] = Echo) -> None:
        self.answer = answer
        self.calls = 0
        self.ends: list[BaseException | None] = []
        self.may_answer = asyncio.Event()
        self.request: WSUpgradeRequest | None = None

    async def __call__(self, request: WSUpgradeRequest) -> Any:
        self.calls += 1
        self.request = request
        try:
            await self.may_answer.wait()
        except BaseException as error:
            self.ends.append(error)
            raise
        self.ends.append(None)
        return self.answer()

    @property
    def was_cancelled(self) -> bool:
        return [type(end) for end in self.ends] == [asyncio.CancelledError]


class Served:
    """A server of ours, and plain sockets that connect to it."""

    def __init__(self, server: picows_fast.Server, contexts: Contexts | None) -> None:
        self.server = server
        self.contexts = contexts
        self.peers = contextlib.ExitStack()

    async def peer(self, data: bytes = UPGRADE_REQUEST) -> Peer:
        """Connect, and send these bytes."""
        sock = await connect_socket(self.server.sockets[0].getsockname())
        peer = Peer(sock, is_client=True, context=self.contexts and self.contexts.client)
        self.peers.callback(peer.close)
        if self.contexts is not None:
            await peer.start_tls()
        await peer.send_bytes(data)
        return peer

    def waiting(self) -> WSTransport:
        (transport,) = self.server._connections.handshakes()
        assert isinstance(transport, WSTransport)
        return transport


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture(params=["plain", "tls", "loop-transport"])
def serve(request: pytest.FixtureRequest, tls_contexts: Contexts) -> Serve:
    contexts = tls_contexts if request.param == "tls" else None
    io_options = {"use_loop_transport": request.param == "loop-transport"}

    @contextlib.asynccontextmanager
    async def serving(factory: Any, **options: Any) -> AsyncIterator[Served]:
        tls = contexts and contexts.server
        server = await picows_fast.ws_create_server(
            factory, "127.0.0.1", 0, ssl=tls, **io_options, **options
        )
        served = Served(server, contexts)
        try:
            yield served
        finally:
            served.peers.close()
            server.close()
            server.abort_clients()
            await asyncio.wait_for(server.wait_closed(), TIMEOUT)

    return serving


async def status(peer: Peer) -> int:
    return int((await peer.read_head()).split(b" ")[1])


async def check_echo(peer: Peer, text: bytes = b"through") -> None:
    await peer.send(WSMsgType.TEXT, text)
    assert await peer.read_frame() == (WSMsgType.TEXT, text)


# --- What is awaited


class Later:
    """An awaitable that is no coroutine and no future."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.result


def future(result: Any) -> Awaitable[Any]:
    made = asyncio.get_running_loop().create_future()
    made.set_result(result)
    return made


@pytest.mark.parametrize(
    "later",
    [
        lambda result: asyncio.sleep(0.01, result),
        lambda result: asyncio.ensure_future(asyncio.sleep(0.01, result)),
        future,
        Later,
    ],
    ids=["coroutine", "task", "future", "awaitable"],
)
async def test_whatever_can_be_awaited(
    later: Callable[[Any], Awaitable[Any]], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    switch = WSUpgradeResponse.create_101_response({"X-Session": "42"})
    answers: dict[bytes, Any] = {
        b"/echo": Echo(),
        b"/session": WSUpgradeResponseWithListener(switch, Echo()),
        b"/secret": WSUpgradeResponse.create_error_response(401),
        b"/nothing": None,
        b"/five": 5,
    }
    expected = {b"/echo": 101, b"/session": 101, b"/secret": 401, b"/nothing": 404, b"/five": 500}
    async with serve(lambda request: later(answers[request.path])) as served:
        for path, number in expected.items():
            peer = await served.peer(UPGRADE_REQUEST.replace(b" / ", b" " + path + b" "))
            head = await peer.read_head()
            assert int(head.split(b" ")[1]) == number
            assert (b"X-Session: 42\r\n" in head) == (path == b"/session")
            if number == 101:
                await check_echo(peer)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "must return a WSListener, a WSUpgradeResponse or None, got int" in str(
        record.exc_info[1]
    )


async def test_routes(serve: Serve) -> None:
    routes = Router()

    @routes.websocket("/feed/{handler}")
    async def feed(request: WSUpgradeRequest, handler: str) -> Echo | None:
        return Echo() if await asyncio.sleep(0, handler) == "a" else None

    @routes.http("/text/{handler}")
    async def text(request: WSUpgradeRequest, handler: str) -> str:
        return await asyncio.sleep(0, handler)

    @routes.http("/bytes")
    def later_bytes(request: WSUpgradeRequest) -> Awaitable[bytes]:
        return asyncio.sleep(0, b"bytes")

    @routes.http("/five")
    async def five(request: WSUpgradeRequest) -> Any:
        return 5

    async def ask(path: bytes, request: bytes = PLAIN_REQUEST) -> tuple[int, bytes]:
        peer = await served.peer(request.replace(b" /plain ", b" " + path + b" "))
        number, body = await status(peer), b""
        if number != 101:
            body = await peer.read_to_end()
        return number, body

    async with serve(routes) as served:
        upgrade = UPGRADE_REQUEST.replace(b" / ", b" /plain ")
        assert await ask(b"/feed/a", upgrade) == (101, b"")
        assert (await ask(b"/feed/b", upgrade))[0] == 404
        assert await ask(b"/text/it", upgrade) == (200, b"it")
        assert await ask(b"/text/it") == (200, b"it")
        assert await ask(b"/bytes") == (200, b"bytes")
        assert (await ask(b"/five"))[0] == 500


@pytest.mark.parametrize(
    "error",
    [LookupError("secret"), TimeoutError("secret"), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_errors(error: BaseException, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """They are those of a factory that does not wait."""

    async def fail(request: WSUpgradeRequest) -> None:
        await asyncio.sleep(0)
        raise error

    async with serve(fail) as served:
        peer = await served.peer()
        assert await status(peer) == 500
        assert b"secret" not in await peer.read_to_end()
        assert served.server.stats().refused["error"] == 1
    (record,) = caplog.records
    assert record.exc_info is not None
    assert type(record.exc_info[1]) is type(error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt(error: type[BaseException], io_options: dict[str, bool]) -> None:
    """It reaches the loop, and the client gets 500."""

    async def fail(request: WSUpgradeRequest) -> None:
        await asyncio.sleep(0)
        raise error

    async def scenario() -> bytes:
        server = await picows_fast.ws_create_server(fail, "127.0.0.1", 0, **io_options)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(UPGRADE_REQUEST)
            response = await asyncio.wait_for(reader.read(), TIMEOUT)
            writer.close()
            return response

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(scenario())
        with pytest.raises(error):
            loop.run_until_complete(task)
        assert loop.run_until_complete(task).startswith(b"HTTP/1.1 500 ")
    finally:
        loop.close()


# --- What comes behind the request


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
async def test_what_comes_behind_the_request_waits(size: int, serve: Serve) -> None:
    """In order, and bounded: TCP holds what is more than one read."""
    listener = Recorder()
    factory = Waiting(lambda: listener)
    texts = [b"%d" % number + bytes(size // 10) for number in range(20)]
    async with serve(factory) as served:
        frames = [picows_fast.build_frame(WSMsgType.BINARY, text, mask=True) for text in texts]
        peer = await served.peer(UPGRADE_REQUEST + frames[0])
        await until(lambda: factory.calls)
        sending = asyncio.create_task(peer.send_bytes(b"".join(frames[1:])))
        await asyncio.sleep(0.05)
        transport = served.waiting()
        assert not transport.underlying_transport.is_reading()
        assert listener.events == []
        assert sending.done() == (size < 3_000_000)
        factory.may_answer.set()
        await listener.frame(len(texts) - 1)
        assert listener.frames == [(WSMsgType.BINARY, text, True) for text in texts]
        await sending
        assert await status(peer) == 101
        assert transport.underlying_transport.is_reading()
        transport.send(WSMsgType.TEXT, b"through")
        assert await peer.read_frame() == (WSMsgType.TEXT, b"through")


async def test_reading_can_be_paused_when_it_is_accepted(serve: Serve) -> None:
    class Pausing(Recorder):
        def on_ws_connected(self, transport: WSTransport) -> None:
            super().on_ws_connected(transport)
            assert not transport.is_reading_paused
            transport.pause_reading()

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            super().on_ws_frame(transport, frame)
            transport.pause_reading()

    listener = Pausing()
    factory = Waiting(lambda: listener)
    async with serve(factory) as served:
        peer = await served.peer(UPGRADE_REQUEST)
        await until(lambda: factory.calls)
        frames = [peer.frame(WSMsgType.TEXT, text) for text in (b"one", b"two")]
        await peer.send_bytes(b"".join(frames))
        transport = served.waiting()
        await until(lambda: not transport.underlying_transport.is_reading())
        transport.resume_reading()  # nobody has paused it
        factory.may_answer.set()
        assert await status(peer) == 101
        await asyncio.sleep(0.02)
        assert transport.is_reading_paused
        assert listener.events == ["connected"]
        for index, text in enumerate((b"one", b"two")):
            transport.resume_reading()
            assert await listener.frame(index) == (WSMsgType.TEXT, text, True)
            assert transport.is_reading_paused


# --- Nobody waits for the answer any more


async def test_deadline(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    factory = Waiting()
    async with serve(factory, websocket_handshake_timeout=0.05, close_timeout=0.1) as served:
        for behind in (b"", bytes(10)):
            factory.ends.clear()
            peer = await served.peer(UPGRADE_REQUEST + behind)
            assert await status(peer) == 408
            assert b"the request was not answered in time" in await peer.read_to_end()
            await until(lambda: factory.was_cancelled)
        assert served.server.stats().refused["timeout"] == 2
    assert not caplog.records


@pytest.mark.parametrize("way", ["fin", "reset"])
async def test_the_client_leaves(way: str, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    factory = Waiting()
    async with serve(factory) as served:
        peer = await served.peer()
        await until(lambda: factory.calls)
        getattr(peer, way)()
        await until(lambda: factory.was_cancelled)
        await until(lambda: not served.server.stats().handshakes)
        assert served.server.stats().abandoned == 1
    assert not caplog.records


@pytest.mark.parametrize("step", range(4))
async def test_cancelled_at_every_await(step: int, serve: Serve) -> None:
    """Wherever the coroutine waits when the client leaves, it is cancelled there."""
    at: list[Any] = []

    async def several(request: WSUpgradeRequest) -> Echo:
        try:
            for number in range(4):
                at.append(number)
                await asyncio.sleep(0 if number < step else 1000)
        finally:
            await asyncio.sleep(0)
            at.append("over")
        return Echo()

    async with serve(several) as served:
        peer = await served.peer()
        await until(lambda: step in at)
        peer.reset()
        await until(lambda: at == [*range(step + 1), "over"])


async def test_answers_that_come_too_late(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A listener is dropped without a word to it; an error is logged once."""
    listener = Recorder()
    over = 0

    async def stubborn(request: WSUpgradeRequest) -> Recorder:
        nonlocal over
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            over += 1
            if over == 2:
                raise LookupError from None
        return listener

    async with serve(stubborn) as served:
        for number in (1, 2):
            peer = await served.peer()
            await until(lambda: served.server.stats().handshakes)
            await asyncio.sleep(0.01)
            peer.reset()
            await until(lambda: over == number)  # noqa: B023
            await asyncio.sleep(0)
    assert listener.events == []
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_a_task_that_is_cancelled_before_it_begins(serve: Serve) -> None:
    """Its coroutine is not left unawaited."""
    routes = Router()
    calls = 0

    async def never(request: WSUpgradeRequest) -> None:
        nonlocal calls
        calls += 1

    def end_first(request: WSUpgradeRequest) -> Any:
        served.server.abort_clients()
        return routes(request) if request.path == b"/plain" else never(request)

    routes.http("/plain")(never)
    async with serve(end_first) as served:
        for request in (UPGRADE_REQUEST, PLAIN_REQUEST):
            peer = await served.peer(request)
            await peer.read_to_end()
        assert served.server.stats().abandoned == 2
    assert calls == 0


# --- The server


async def test_shutdown_waits_for_the_answer(serve: Serve) -> None:
    factory = Waiting()
    async with serve(factory) as served:
        peer = await served.peer()
        await until(lambda: factory.calls)
        ending = asyncio.create_task(served.server.shutdown(code=1012))
        await asyncio.sleep(0.02)
        assert not ending.done()
        factory.may_answer.set()
        assert await status(peer) == 101
        assert await peer.read_frame() == (WSMsgType.CLOSE, (1012).to_bytes(2, "big"))
        peer.close()
        await asyncio.wait_for(ending, TIMEOUT)
        assert factory.ends == [None]


@pytest.mark.parametrize("way", ["timeout", "cancelled", "close_clients", "async with"])
async def test_ways_to_end_without_the_answer(way: str, serve: Serve) -> None:
    factory = Waiting()
    async with serve(factory) as served:
        server = served.server
        peer = await served.peer()
        await until(lambda: factory.calls)
        if way == "timeout":
            await server.shutdown(timeout=0.02)
        elif way == "cancelled":
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(server.shutdown(), 0.02)
        elif way == "close_clients":
            server.close_clients()
        else:
            async with server:
                pass
        await until(lambda: factory.was_cancelled)
        assert await peer.read_to_end() == b""


async def test_limits_are_looked_at_when_it_is_accepted(serve: Serve) -> None:
    for limit, number in (("max_connections", 503), ("max_connections_per_ip", 429)):
        factory = Waiting()
        async with serve(factory, **{limit: 2}) as served:
            peers = [await served.peer() for _ in range(4)]
            await until(lambda: factory.calls == 4)  # noqa: B023
            factory.may_answer.set()
            assert sorted([await status(peer) for peer in peers]) == [101, 101, number, number]
            stats = served.server.stats()
            assert stats.refused[limit] == 2
            assert stats.connections == 2
            # In front of the factory, too.
            assert await status(await served.peer()) == number
            assert factory.calls == 4
            factory.answer = lambda: None
            assert await status(await served.peer(PLAIN_REQUEST)) == 404


@pytest.mark.native
async def test_requests_that_wait_are_bounded() -> None:
    """Each is a handshake that goes on: connections above max_pending_handshakes wait."""
    factory = Waiting()
    server = await picows_fast.ws_create_server(factory, "127.0.0.1", 0, max_pending_handshakes=2)
    async with server:
        served = Served(server, None)
        peers = [await served.peer() for _ in range(3)]
        await until(lambda: factory.calls == 2)
        await asyncio.sleep(0.02)
        assert factory.calls == server.stats().handshakes == server.stats().accepted == 2
        factory.may_answer.set()
        for peer in peers:
            assert await status(peer) == 101
        assert factory.calls == 3
        served.peers.close()


# --- Whom the request came from


async def test_a_request_knows_its_connection(serve: Serve) -> None:
    factory = Waiting()
    async with serve(factory) as served:
        peer = await served.peer()
        await until(lambda: factory.calls)
        request = factory.request
        assert request is not None
        assert request.peername == peer.sock.getsockname()
        assert request.sockname == peer.sock.getpeername()
        if served.contexts is None:
            assert request.ssl_object is None
        else:
            assert peer.tls is not None
            assert request.ssl_object.version() == peer.tls.version()
            assert request.ssl_object.getpeercert() is None  # the client has none
        for made in (copy.deepcopy(request), pickle.loads(pickle.dumps(request))):
            assert (made.path, made.headers) == (request.path, request.headers)
            assert made.peername is made.sockname is made.ssl_object is None
        peer.reset()
        await until(lambda: factory.was_cancelled)
        assert request.peername[0] == "127.0.0.1"
    assert WSUpgradeRequest().peername is None


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")
async def test_a_request_of_a_proxied_client() -> None:
    factory = Waiting(lambda: None)
    server = await picows_fast.ws_create_server(
        factory, "127.0.0.1", 0, proxy_protocol=["127.0.0.0/8"]
    )
    factory.may_answer.set()
    async with server:
        served = Served(server, None)
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n"
        assert await status(await served.peer(header + UPGRADE_REQUEST)) == 404
        assert factory.request is not None
        assert factory.request.peername == ("192.0.2.7", 5000)
        served.peers.close()


async def test_a_clients_transport_has_its_cause(serve: Serve) -> None:
    """The connection is an ordinary one once it is accepted."""
    listener = Recorder()
    factory = Waiting(lambda: listener)
    factory.may_answer.set()
    async with serve(factory) as served:
        peer = await served.peer()
        assert await status(peer) == 101
        assert listener.transport.request is factory.request
        peer.reset()
        await listener.closed()
        assert listener.transport.disconnect_cause == WSDisconnectCause.PEER_RESET
