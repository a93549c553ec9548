"""serving: the server object with connections that are not real; shutdown with real ones."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from typing import Any

import pytest
import websockets

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSDisconnectCause,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
    ws_create_server,
)
from picows_fast.server.server import Server

from . import needs
from .peers import TIMEOUT, UPGRADE_REQUEST, Contexts, Peer, connect_socket
from .support import Recorder, live_timers, until
from .test_listening import Accepted, bind, connect, serving

# The server object.


class FakeConnection:
    """Ends when it is told to, one turn of the loop later."""

    disconnect_cause = None

    def __init__(self, server: Server) -> None:
        self.server = server
        self.calls: list[bool] = []
        self.close_codes: list[int] = []
        server.attach(self)

    def send_close(self, close_code: int, close_message: str | None = None) -> None:
        self.close_codes.append(close_code)

    def disconnect(self, graceful: bool = True) -> None:
        self.calls.append(graceful)
        asyncio.get_running_loop().call_soon(self.server.detach, self)

    def _handshake_timed_out(self) -> None:
        self.timed_out = asyncio.get_running_loop().time()

    def _has_been_silent(self) -> bool:
        return False


async def test_server_before_and_after_close() -> None:
    loop = asyncio.get_running_loop()
    sockets = await bind("127.0.0.1", 0, listen=False)
    server = Server(loop, sockets, Accepted())
    assert server.get_loop() is loop
    assert server.sockets == tuple(sockets)
    assert not server.is_serving()
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(sockets[0].getsockname())
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    connect(sockets[0].getsockname()).close()
    server.close()
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    assert sockets[0].fileno() == -1
    await server.wait_closed()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.start_serving()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


async def test_close_while_serving_begins(io_options: dict[str, bool]) -> None:
    """What begins in several turns of the loop must not begin behind the end."""
    server = await ws_create_server(
        lambda request: None, "127.0.0.1", 0, start_serving=False, **io_options
    )
    starting = asyncio.ensure_future(server.start_serving())
    await asyncio.sleep(0)
    server.close()
    await asyncio.gather(starting, return_exceptions=True)
    assert not server.is_serving()
    await asyncio.wait_for(server.wait_closed(), TIMEOUT)


async def test_close_before_serving() -> None:
    sockets = await bind("127.0.0.1", 0, listen=False)
    server = Server(asyncio.get_running_loop(), sockets, Accepted())
    server.close()
    await server.wait_closed()
    assert sockets[0].fileno() == -1


async def test_wait_closed_waits_for_close_and_for_the_connections() -> None:
    async with serving("127.0.0.1", 0) as (server, _):
        waiting = asyncio.ensure_future(server.wait_closed())
        first, second = FakeConnection(server), FakeConnection(server)
        server.detach(first)
        server.detach(first)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        server.close()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert second.calls == []
        server.detach(second)
        await asyncio.wait_for(waiting, 10)
        await server.wait_closed()


async def test_close_clients_and_abort_clients() -> None:
    async with serving("127.0.0.1", 0) as (server, _):
        connections = [FakeConnection(server) for _ in range(3)]
        server.close_clients()
        server.abort_clients()
        assert [connection.calls for connection in connections] == [[True, False]] * 3
        assert [connection.close_codes for connection in connections] == [[1001]] * 3
        server.close()
        await server.wait_closed()


async def test_async_with_closes_server_and_connections() -> None:
    sockets = await bind("127.0.0.1", 0)
    async with Server(asyncio.get_running_loop(), sockets, Accepted()) as server:
        await server.start_serving()
        connection = FakeConnection(server)
    assert connection.calls == [True]
    assert sockets[0].fileno() == -1
    await asyncio.wait_for(server.wait_closed(), 10)


async def test_cancelled_serve_forever_closes_server_and_connections() -> None:
    async with serving("127.0.0.1", 0) as (server, _):
        task = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already"):
            await server.serve_forever()
        connection = FakeConnection(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert connection.calls == [True]
        assert not server.is_serving()


async def test_close_ends_serve_forever() -> None:
    async with serving("127.0.0.1", 0) as (server, _):
        task = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        connection = FakeConnection(server)
        server.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert connection.calls == []
        server.detach(connection)
        await server.wait_closed()


# Shutdown.


async def refused_shutdown(error: type[Exception], match: str, **arguments: Any) -> None:
    async with serving("127.0.0.1", 0) as (server, _):
        with pytest.raises(error, match=match):
            await server.shutdown(**arguments)
        assert server.is_serving()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"code": 1005}, ValueError, "1005"),
        ({"code": 999}, ValueError, "999"),
        ({"code": "1001"}, TypeError, "int"),
        ({"reason": "x" * 124}, ValueError, "123"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": "5"}, TypeError, "timeout"),
        ({"spread": -1}, ValueError, "spread"),
        ({"spread": None}, TypeError, "spread"),
        ({"spread": True}, TypeError, "spread"),
        ({"timeout": 1, "spread": 2}, ValueError, "spread"),
    ],
    ids=str,
)
async def test_bad_arguments_stop_nothing(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    await refused_shutdown(error, match, **arguments)


async def test_one_connection_that_fails_does_not_keep_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(FakeConnection):
        def send_close(self, close_code: int, close_message: str | None = None) -> None:
            raise LookupError("not this one")

    async with serving("127.0.0.1", 0) as (server, _):
        for kind in (Failing, FakeConnection, Failing, FakeConnection):
            server.connection_opened(kind(server))
        await asyncio.wait_for(server.shutdown(timeout=0.1), TIMEOUT)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert server.stats().connections == 0


class Clients:
    """A server of ours, and clients that answer CLOSE."""

    def __init__(self, server: Server, tls: Contexts | None) -> None:
        self.server = server
        self.tls = tls
        self.listeners: list[Recorder] = []
        self.clients: list[tuple[WSTransport, Recorder]] = []
        host, self.port = server.sockets[0].getsockname()[:2]
        self.url = f"{'ws' if tls is None else 'wss'}://{host}:{self.port}/"

    async def connect(self, number: int = 1, **options: Any) -> None:
        for _ in range(number):
            self.clients.append(
                await ws_connect(
                    Recorder,
                    self.url,
                    ssl_context=None if self.tls is None else self.tls.client,
                    enable_auto_close=True,
                    **options,
                )
            )

    async def raw(self) -> Peer:
        """A client that has said nothing yet."""
        sock = await connect_socket(("127.0.0.1", self.port))
        return Peer(sock, is_client=True, context=None if self.tls is None else self.tls.client)

    def closes(self) -> list[tuple[Any, Any]]:
        """What CLOSE said to each client."""
        said = [transport.close_handshake for transport, _ in self.clients]
        return [(close.recv.code, close.recv.reason) for close in said]

    def still_open(self) -> int:
        return sum(transport.close_handshake is None for transport, _ in self.clients)


async def start(tls: Contexts | None = None, **options: Any) -> Clients:
    def accept(request: picows_fast.WSUpgradeRequest) -> WSListener:
        clients.listeners.append(Recorder())
        return clients.listeners[-1]

    server = await ws_create_server(accept, "127.0.0.1", 0, ssl=tls and tls.server, **options)
    clients = Clients(server, tls)
    return clients


on_real_connections = pytest.mark.usefixtures("leaves_nothing")


@on_real_connections
async def test_every_client_gets_its_close(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    clients = await start(contexts, **io_options)
    await clients.connect(5)
    await asyncio.wait_for(clients.server.shutdown(code=1012, reason="new version"), TIMEOUT)
    stats = clients.server.stats()
    assert (stats.connections, stats.opened) == (0, 5)
    assert not clients.server.is_serving()
    for transport, _ in clients.clients:
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
    assert clients.closes() == [(WSCloseCode.SERVICE_RESTART, "new version")] * 5
    # Each answered, and its server saw it.
    for listener in clients.listeners:
        assert listener.frames == [(WSMsgType.CLOSE, b"\x03\xf4", True)]
        assert listener.events[-1] == "disconnected"
    with pytest.raises(OSError):
        await clients.connect()


@on_real_connections
async def test_what_was_sent_before_arrives(io_options: dict[str, bool]) -> None:
    clients = await start(**io_options)
    await clients.connect()
    for listener in clients.listeners:
        assert listener.transport is not None
        for _ in range(10):
            listener.transport.send(WSMsgType.BINARY, bytes(1_000_000))
    await asyncio.wait_for(clients.server.shutdown(), TIMEOUT)
    ((transport, client),) = clients.clients
    await client.closed()
    assert [len(payload) for _, payload, _ in client.frames] == [1_000_000] * 10 + [2]
    assert transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME


@on_real_connections
async def test_handshakes_under_way_are_finished(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    clients = await start(contexts, **io_options)
    await clients.connect()
    peer = await clients.raw()
    if contexts is not None:
        await peer.start_tls()
    await peer.send_bytes(UPGRADE_REQUEST[:-10])
    await until(lambda: clients.server.stats().handshakes == 1)
    ending = asyncio.create_task(clients.server.shutdown(code=1012))
    ((transport, _),) = clients.clients
    await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
    assert not ending.done()
    await peer.send_bytes(UPGRADE_REQUEST[-10:])
    assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
    assert await peer.read_close() == (1012, "")
    await peer.send_close(1012)
    assert await peer.read_to_end() == b""
    peer.close()
    await asyncio.wait_for(ending, TIMEOUT)
    assert clients.listeners[1].events == ["connected", "frame", "disconnected"]


@on_real_connections
async def test_silent_handshakes_have_their_deadline(io_options: dict[str, bool]) -> None:
    clients = await start(websocket_handshake_timeout=0.1, close_timeout=0.1, **io_options)
    peer = await clients.raw()
    await peer.send_bytes(UPGRADE_REQUEST[:1])
    await until(lambda: clients.server.stats().handshakes == 1)
    await asyncio.wait_for(clients.server.shutdown(), TIMEOUT)
    peer.close()


@on_real_connections
async def test_connections_without_a_request_end_at_once(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    """What a browser opens beforehand keeps nobody waiting, and a request that is there counts."""
    clients = await start(contexts, websocket_handshake_timeout=1000, **io_options)
    silent, begun, late = peers = [await clients.raw() for _ in range(3)]
    if contexts is not None:
        for peer in peers:
            await peer.start_tls()
    await begun.send_bytes(UPGRADE_REQUEST[:-1])
    await until(lambda: clients.server.stats().handshakes == 3)
    await asyncio.sleep(0.05)  # until what was sent has been read
    late_request = asyncio.create_task(late.send_bytes(UPGRADE_REQUEST))
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251 - the system takes it over, and the loop does not get to it
    ending = asyncio.create_task(clients.server.shutdown())
    assert await asyncio.wait_for(silent.read_to_end(), TIMEOUT) == b""
    await late_request
    await begun.send_bytes(UPGRADE_REQUEST[-1:])
    for peer in (late, begun):
        assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
        assert await peer.read_close() == (1001, "")
        await peer.send_close(1001)
        assert await peer.read_to_end() == b""
        peer.close()
    await asyncio.wait_for(ending, TIMEOUT)
    stats = clients.server.stats()
    assert (stats.opened, stats.abandoned) == (2, 1)
    silent.close()


async def test_tls_handshakes_under_way_are_finished(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    clients = await start(Contexts(server_tls, client_tls), websocket_handshake_timeout=1000)
    peer = await clients.raw()
    await until(lambda: clients.server.stats().handshakes == 1)
    ending = asyncio.create_task(clients.server.shutdown())
    await asyncio.sleep(0.05)
    await peer.start_tls()
    await peer.send_bytes(UPGRADE_REQUEST)
    assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
    peer.close()
    await asyncio.wait_for(ending, TIMEOUT)


async def test_deadlines_of_handshakes() -> None:
    """One timer for all, which is not there when nobody waits."""
    loop = asyncio.get_running_loop()
    sockets = await bind("127.0.0.1", 0)
    server = Server(loop, sockets, Accepted(), handshake_timeout=0.1)
    timer = int(hasattr(loop, "_scheduled"))  # other loops do not tell
    before = len(live_timers(loop))
    started = loop.time()
    opened, first = FakeConnection(server), FakeConnection(server)
    server.connection_opened(opened)
    await asyncio.sleep(0.05)
    second = FakeConnection(server)
    assert len(live_timers(loop)) == before + timer
    await until(lambda: hasattr(second, "timed_out"))
    assert started + 0.09 < first.timed_out < second.timed_out
    assert not hasattr(opened, "timed_out")
    third = FakeConnection(server)
    assert len(live_timers(loop)) == before + timer
    server.detach(third)
    assert len(live_timers(loop)) == before
    for connection in (opened, first, second):
        server.detach(connection)
    server.close()
    await server.wait_closed()


async def test_a_deadline_that_fails_keeps_the_others() -> None:
    class Failing(FakeConnection):
        def _handshake_timed_out(self) -> None:
            raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: told.append(context))
    server = Server(loop, await bind("127.0.0.1", 0), Accepted(), handshake_timeout=0.01)
    connections = [Failing(server), FakeConnection(server)]
    await until(lambda: hasattr(connections[1], "timed_out"))
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
    for connection in connections:
        server.detach(connection)
    server.close()


@on_real_connections
async def test_deadline(io_options: dict[str, bool], caplog: pytest.LogCaptureFixture) -> None:
    """Clients that do not answer, and one that says nothing, are aborted."""
    clients = await start(websocket_handshake_timeout=None, close_timeout=1000, **io_options)
    peers = [await clients.raw() for _ in range(3)]
    for peer in peers[:2]:
        await peer.send_bytes(UPGRADE_REQUEST)
        await peer.read_head()
    await peers[2].send_bytes(UPGRADE_REQUEST[:-1])
    await clients.connect()
    await until(lambda: clients.server.stats().handshakes == 1)
    await asyncio.sleep(0.05)  # until what was sent has been read
    await asyncio.wait_for(clients.server.shutdown(timeout=1), TIMEOUT)
    assert clients.server.stats().connections == 0
    assert [record.getMessage() for record in caplog.records] == [
        "shutdown: aborting 3 connections after 1 s"
    ]
    for peer in peers[:2]:
        assert await peer.read_close() == (1001, "")
        assert await peer.read_to_end() == b""
    for peer in peers:
        peer.close()
    assert clients.closes() == [(1001, None)]


@on_real_connections
async def test_deadline_of_zero(io_options: dict[str, bool]) -> None:
    clients = await start(close_timeout=1000, **io_options)
    await clients.connect(3)
    await asyncio.wait_for(clients.server.shutdown(timeout=0), TIMEOUT)
    for _, client in clients.clients:
        await client.closed()
    assert clients.closes() == [(1001, None)] * 3


@on_real_connections
async def test_spread(io_options: dict[str, bool]) -> None:
    """No CLOSE comes before its turn, and all come in the end."""
    number, spread = 20, 0.5
    clients = await start(**io_options)
    await clients.connect(number)
    loop = asyncio.get_running_loop()
    closed_at: list[float] = []

    async def wait(transport: WSTransport) -> None:
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        closed_at.append(loop.time())

    waiting = [asyncio.create_task(wait(transport)) for transport, _ in clients.clients]
    started = loop.time()
    await clients.server.shutdown(code=1012, spread=spread, timeout=TIMEOUT)
    await asyncio.gather(*waiting)
    assert all(at >= started + spread * i / number for i, at in enumerate(sorted(closed_at)))
    assert clients.closes() == [(1012, None)] * number


@on_real_connections
async def test_spread_ends_with_the_last_client(io_options: dict[str, bool]) -> None:
    clients = await start(**io_options)
    await clients.connect(3)
    ending = asyncio.create_task(clients.server.shutdown(spread=1000))
    await until(lambda: clients.still_open() == 2)
    for transport, _ in clients.clients:
        transport.disconnect()
    await asyncio.wait_for(ending, TIMEOUT)


@on_real_connections
async def test_cancelled_shutdown_aborts(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    clients = await start(contexts, **io_options)
    await clients.connect(3)
    peer = await clients.raw()
    await until(lambda: clients.server.stats().handshakes == 1)
    ending = asyncio.create_task(clients.server.shutdown(spread=1000))
    await until(lambda: clients.still_open() == 2)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    await asyncio.wait_for(clients.server.wait_closed(), TIMEOUT)
    for _, client in clients.clients:
        await client.closed()
    assert clients.still_open() == 2
    peer.close()


@on_real_connections
async def test_a_second_call_hurries(io_options: dict[str, bool]) -> None:
    clients = await start(**io_options)
    await clients.connect(3)
    first = asyncio.create_task(clients.server.shutdown(spread=1000))
    await until(lambda: clients.still_open() == 2)
    await asyncio.wait_for(clients.server.shutdown(code=1012), TIMEOUT)
    await asyncio.wait_for(first, TIMEOUT)
    for _, client in clients.clients:
        await client.closed()
    assert sorted(clients.closes()) == [(1001, None), (1012, None), (1012, None)]
    await clients.server.shutdown()


@on_real_connections
async def test_shutdown_ends_serve_forever() -> None:
    clients = await start(start_serving=False)
    serving_forever = asyncio.create_task(clients.server.serve_forever())
    await until(clients.server.is_serving)
    await clients.connect()
    await asyncio.wait_for(clients.server.shutdown(), TIMEOUT)
    with pytest.raises(asyncio.CancelledError):
        await serving_forever
    async with clients.server:
        pass


@on_real_connections
async def test_shutdown_in_a_listeners_method(io_options: dict[str, bool]) -> None:
    """A client that asks for it gets its CLOSE like the others."""

    class Switch(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            tasks.append(asyncio.get_running_loop().create_task(server.shutdown(code=1012)))

    tasks: list[asyncio.Task[None]] = []
    server = await ws_create_server(lambda request: Switch(), "127.0.0.1", 0, **io_options)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    transport, _ = await ws_connect(Recorder, url, enable_auto_close=True)
    await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
    assert transport.close_handshake.recv.code == 1012
    await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT)


async def test_another_library_sees_the_code() -> None:
    clients = await start()
    async with websockets.connect(clients.url, proxy=None) as client:
        ending = asyncio.create_task(clients.server.shutdown(code=1012, reason="restart"))
        with pytest.raises(websockets.ConnectionClosed) as caught:
            await asyncio.wait_for(client.recv(), TIMEOUT)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1012, "restart")
        await asyncio.wait_for(ending, TIMEOUT)
    stats = clients.server.stats()
    assert stats.closed[WSDisconnectCause.LOCAL_CLOSE] == 1


@needs.no_sanitizers("two thousand take too long to open")
@on_real_connections
@pytest.mark.timeout(300)
@pytest.mark.parametrize("spread", [0.0, 1.0])
async def test_shutdown_of_two_thousand(caplog: pytest.LogCaptureFixture, spread: float) -> None:
    """Every client with its CLOSE, in both directions, and none is aborted at a deadline."""
    # As long as a machine needs that has other things to do, too.
    deadlines = {"close_timeout": 100, "websocket_handshake_timeout": 100}
    with needs.descriptors(4500):
        clients = await start(backlog=2000, **deadlines)
        for _ in range(40):
            await asyncio.gather(*(clients.connect(**deadlines) for _ in range(50)))
        await asyncio.wait_for(clients.server.shutdown(code=1012, timeout=100, spread=spread), 150)
        assert caplog.records == []
        for transport, _ in clients.clients:
            await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
    assert clients.closes() == [(1012, None)] * 2000
    assert clients.server.stats().closed[WSDisconnectCause.LOCAL_CLOSE] == 2000
