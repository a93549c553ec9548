"""Callers that change their mind: cancelled at every turn of the loop, loops closed in the midst of
everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import socket
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType, WSState

from .. import needs
from ..peers import TIMEOUT, UPGRADE_REQUEST, Contexts, listening_socket
from ..proxies import Proxy
from ..support import Echo, Recorder, address, serving
from .checks import Leftovers, log_below

Cause = WSDisconnectCause


# --- ws_connect


Connect = Callable[[Recorder], Coroutine[Any, Any, Any]]


@contextlib.asynccontextmanager
async def destination(kind: str, contexts: Contexts, **options: Any) -> AsyncIterator[Connect]:
    """A server of ours reached in some way, and the call that connects to it."""
    async with contextlib.AsyncExitStack() as stack:
        tls = contexts.server if "tls" in kind else None
        arguments: dict[str, Any] = {"ssl_context": contexts.client, **options}
        if kind == "unix":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            arguments["unix_path"] = str(Path(folder, "socket"))
            server = await picows_fast.ws_create_server(
                lambda request: Echo(), unix_path=arguments["unix_path"], **options
            )
            stack.push_async_callback(stopped, server)
            url = "ws://localhost/"
        else:
            url = await stack.enter_async_context(
                serving(lambda request: Echo(), tls=tls, **options)
            )
        if kind == "redirect":
            to = url

            async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: ")
                    writer.write(to.encode() + b"\r\n\r\n")
                    await reader.read()
                writer.transport.abort()

            redirecting = await asyncio.start_server(redirect, "127.0.0.1", 0)
            stack.callback(redirecting.close)
            url = f"ws://127.0.0.1:{redirecting.sockets[0].getsockname()[1]}/"
        if kind.startswith("proxy"):
            proxy = await stack.enter_async_context(Proxy(kind.split()[1]))
            arguments["proxy"] = proxy.url()
        if kind == "name":
            # Goes through the resolver, which has a thread.
            url = url.replace("127.0.0.1", "localhost")
            arguments["family"] = socket.AF_INET
            await asyncio.get_running_loop().getaddrinfo("localhost", 80)

        def connect(listener: Recorder) -> Coroutine[Any, Any, Any]:
            return picows_fast.ws_connect(lambda: listener, url, **arguments)

        transport, _ = await connect(Recorder())
        transport.disconnect(graceful=False)
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        await asyncio.sleep(0.02)
        yield connect


async def stopped(server: Any) -> None:
    server.close()
    server.abort_clients()
    await asyncio.wait_for(server.wait_closed(), TIMEOUT)


@needs.descriptor_list
@pytest.mark.parametrize(
    "kind",
    ["direct", "name", "tls", "redirect", "unix", "proxy http", "proxy socks5", "proxy http tls"],
)
async def test_ws_connect_cancelled_at_every_turn(kind, io_options, server_tls, client_tls, caplog):
    """Cancelled after 0, 1, 2 ... turns of the loop, it leaves no task, timer or descriptor, and
    the listener is told of the end if it was told of the beginning.
    """
    with log_below(caplog, logging.WARNING):
        async with destination(kind, Contexts(server_tls, client_tls), **io_options) as connect:
            leftovers = Leftovers()
            turns = 0
            while True:
                listener = Recorder()
                task = asyncio.ensure_future(connect(listener))
                for _ in range(turns):
                    await asyncio.sleep(0)
                is_through = task.done()
                if is_through:
                    transport, connected = task.result()
                    assert connected is listener
                    transport.disconnect(graceful=False)
                    await transport.wait_disconnected()
                else:
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                del task
                await leftovers.none(f"cancelled after {turns} turns")
                if listener.events:
                    await listener.closed()
                if is_through:
                    assert listener.events == ["connected", "disconnected"]
                    break
                assert listener.events in ([], ["connected", "disconnected"])
                turns += 1
            assert turns > 3


@pytest.mark.usefixtures("leaves_nothing")
async def test_deadline_of_ws_connect_at_any_stage(io_options, server_tls, client_tls, caplog):
    """Servers that accept and are silent, in TCP and TLS, do not hold it up."""
    with log_below(caplog, logging.WARNING), contextlib.closing(listening_socket()) as listening:
        for scheme in ("ws", "wss"):
            listener = Recorder()
            with pytest.raises(asyncio.TimeoutError):
                await picows_fast.ws_connect(
                    lambda listener=listener: listener,
                    f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/",
                    ssl_context=client_tls,
                    websocket_handshake_timeout=0.05,
                    **io_options,
                )
            assert listener.events == []
        sockets = [(await asyncio.get_running_loop().sock_accept(listening))[0] for _ in range(2)]
        for sock in sockets:
            sock.close()


# --- The other calls that wait


@pytest.fixture
async def pair(io_options):
    """Two transports of ours, connected with each other."""
    server = Echo()
    async with serving(lambda request: server, **io_options) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url, **io_options)
        await server.until(lambda: server.transport)
        yield transport, server.transport
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


async def cancelled(awaitable: Awaitable[Any], turns: int = 1) -> None:
    task = asyncio.ensure_future(awaitable)
    for _ in range(turns):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("turns", range(4))
async def test_wait_disconnected_cancelled(pair, turns):
    """The connection goes on, others go on waiting, and it can be called again."""
    client, server = pair
    waiting = asyncio.ensure_future(client.wait_disconnected())
    await cancelled(client.wait_disconnected(), turns)
    assert client.state == WSState.OPEN
    await asyncio.sleep(0)
    assert not waiting.done()
    server.disconnect()
    await asyncio.wait_for(waiting, TIMEOUT)
    await asyncio.wait_for(client.wait_disconnected(), TIMEOUT)
    assert client.disconnect_cause == Cause.PEER_FIN


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("turns", range(6))
async def test_measure_roundtrip_time_cancelled(pair, turns):
    """The next measurement is not confused by the answer to a cancelled one, nor held up by it."""
    client, _ = pair
    for _ in range(3):
        await cancelled(client.measure_roundtrip_time(2), turns)
    waiting = [asyncio.ensure_future(client.measure_roundtrip_time(1)) for _ in range(3)]
    waiting[1].cancel()
    await asyncio.wait(waiting, timeout=TIMEOUT)
    assert len(waiting[0].result()) == len(waiting[2].result()) == 1
    client.send(WSMsgType.TEXT, "on")


@pytest.mark.usefixtures("leaves_nothing")
async def test_measure_roundtrip_time_when_the_connection_ends(pair):
    client, server = pair
    server.pause_reading()
    waiting = [asyncio.ensure_future(client.measure_roundtrip_time(1)) for _ in range(2)]
    await asyncio.sleep(0)
    client.disconnect(graceful=False)
    await asyncio.wait(waiting, timeout=TIMEOUT)
    for task in waiting:
        assert isinstance(task.exception(), picows_fast.WSConnectionClosedError)


@pytest.mark.usefixtures("leaves_nothing")
async def test_wait_closed_cancelled(io_options):
    """The server can be waited for again."""
    listener = Echo()
    async with serving(lambda request: listener, **io_options) as url:
        pass
    server = await picows_fast.ws_create_server(
        lambda request: listener, "127.0.0.1", 0, **io_options
    )
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    transport, _ = await picows_fast.ws_connect(Recorder, url, **io_options)
    await listener.until(lambda: listener.transport)
    server.close()
    await cancelled(server.wait_closed())
    assert transport.state == WSState.OPEN
    transport.disconnect()
    await asyncio.wait_for(server.wait_closed(), TIMEOUT)
    await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("again", [False, True], ids=["once", "while closing"])
async def test_serve_forever_cancelled(io_options, again, caplog):
    """It tells the clients CLOSE 1001 and waits for them; cancelled again it stops waiting, not
    closing.
    """
    with log_below(caplog, logging.WARNING):
        server = await picows_fast.ws_create_server(
            lambda request: Recorder(), "127.0.0.1", 0, close_timeout=0.1, **io_options
        )
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        serving = asyncio.ensure_future(server.serve_forever())
        client = Recorder()
        transport, _ = await picows_fast.ws_connect(lambda: client, url, **io_options)
        if again:
            transport.pause_reading()  # it does not hear of the end
        serving.cancel()
        await asyncio.sleep(0)
        if again:
            await asyncio.sleep(0.01)
            assert not serving.done()
            serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(serving), TIMEOUT)
        assert not server.is_serving()
        if again:
            transport.resume_reading()
        await asyncio.wait_for(server.wait_closed(), TIMEOUT)
        if not again:
            await client.closed()
            assert client.frames == [(WSMsgType.CLOSE, (1001).to_bytes(2, "big"), True)]
        transport.disconnect(graceful=False)
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


# --- Loops that are closed with connections open


class State:
    """What is open when the loop is closed. `refs` is what the application holds."""

    def __init__(self, contexts: Contexts | None, io: dict[str, bool]) -> None:
        self.contexts = contexts
        self.io = io
        self.refs: list[Any] = []
        self.socks: list[socket.socket] = []

    async def server(self) -> str:
        server = await picows_fast.ws_create_server(
            lambda request: self.keep(Echo()),
            "127.0.0.1",
            0,
            ssl=self.contexts and self.contexts.server,
            **self.io,
        )
        self.keep(server)
        scheme = "wss" if self.contexts else "ws"
        return f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    def keep(self, held: Any) -> Any:
        self.refs.append(held)
        return held

    async def connected(self) -> Any:
        url = await self.server()
        transport, _ = await picows_fast.ws_connect(
            lambda: self.keep(Recorder()),
            url,
            ssl_context=self.contexts and self.contexts.client,
            enable_auto_ping=True,
            **self.io,
        )
        return self.keep(transport)

    # Each is a state to close the loop in.

    async def open(self) -> None:
        await self.connected()

    async def backlog(self) -> None:
        transport = await self.connected()
        server = next(held for held in self.refs if isinstance(held, Echo))
        await server.until(lambda: server.transport)
        server.transport.pause_reading()
        while transport.write_backlog < 100_000:
            transport.send(WSMsgType.BINARY, bytes(100_000))

    async def closing(self) -> None:
        transport = await self.connected()
        transport.send_close(1000)

    async def corked(self) -> None:
        transport = await self.connected()
        transport.cork()
        transport.send(WSMsgType.TEXT, "held back")

    async def server_in_handshake(self) -> None:
        url = await self.server()
        sock = socket.create_connection(address(url))
        self.socks.append(sock)
        sock.send(UPGRADE_REQUEST[:20])
        await asyncio.sleep(0.01)

    async def client_in_handshake(self) -> None:
        listening = listening_socket()
        self.socks.append(listening)
        scheme = "wss" if self.contexts else "ws"
        task = asyncio.ensure_future(
            picows_fast.ws_connect(
                Recorder,
                f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/",
                ssl_context=self.contexts and self.contexts.client,
                **self.io,
            )
        )
        await asyncio.sleep(0.01)
        # As asyncio.run() does it.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


STATES = ["open", "backlog", "closing", "corked", "server_in_handshake", "client_in_handshake"]


def loop_factories() -> Iterator[Any]:
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    with contextlib.suppress(ImportError):
        import uvloop

        yield pytest.param(uvloop.new_event_loop, id="uvloop")


@needs.descriptor_list
@pytest.mark.parametrize("afterwards", ["forgotten", "used"])
@pytest.mark.parametrize("state_name", STATES)
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("new_loop", list(loop_factories()))
def test_loop_closed_with_connections_open(
    new_loop, is_tls, state_name, afterwards, io_options, server_tls, client_tls, caplog
):
    """Nothing crashes, neither then nor when the objects are used or dropped afterwards, and the
    descriptors are closed once the objects are gone. A warning of an unclosed socket or transport
    is what asyncio gives, too.
    """
    contexts = Contexts(server_tls, client_tls) if is_tls else None
    new_loop().close()  # uvloop's first one opens descriptors that stay
    gc.collect()
    before = Leftovers._open_descriptors()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        state = State(contexts, io_options)
        loop = new_loop()
        # Records would keep the connections.
        with log_below(caplog, logging.ERROR, record=logging.ERROR):
            loop.run_until_complete(getattr(state, state_name)())
            loop.close()
            if afterwards == "used":
                for held in state.refs:
                    use(held)
        for sock in state.socks:
            sock.close()
        del state, loop
        with contextlib.suppress(UnboundLocalError):
            del held
        gc.collect()
        gc.collect()
    unexpected = [
        warning.message for warning in seen if not issubclass(warning.category, ResourceWarning)
    ]
    assert unexpected == []
    for warning in seen:
        assert "unclosed" in str(warning.message)
    assert Leftovers._open_descriptors() <= before


def use(held: Any) -> None:
    """Everything that a program may still call when its loop is gone; RuntimeError is the loop's
    own answer.
    """
    if isinstance(held, picows_fast.WSTransport):
        calls: list[Callable[[], Any]] = [
            functools.partial(held.send, WSMsgType.TEXT, "late"),
            held.send_ping,
            held.pause_reading,
            held.resume_reading,
            held.cork,
            held.uncork,
            functools.partial(held.send_close, 1000),
            held.disconnect,
            functools.partial(held.disconnect, False),
            lambda: held.write_backlog,
        ]
    elif isinstance(held, Recorder):
        calls = [functools.partial(use, held.transport)] if held.transport is not None else []
    else:
        calls = [held.close_clients, held.abort_clients, held.close]
    for call in calls:
        with contextlib.suppress(RuntimeError):
            call()
