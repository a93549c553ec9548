"""net.open and its users: whatever takes a socket over ends it, also when its own set-up fails."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

import picows_fast
from picows_fast import WSMsgType
from picows_fast.client import connect as client
from picows_fast.net import open as net_open
from picows_fast.server import admission
from picows_fast.server.server import Server

from .peers import TIMEOUT, connect_socket, listening_socket
from .support import Echo, Recorder, open_sockets

pytestmark = pytest.mark.usefixtures("leaves_nothing")

Fault = Callable[[], contextlib.AbstractContextManager[Any]]


class FailedError(Exception):
    """What a step of the set-up is made to raise."""


def failing(owner: Any, name: str, *, when_done: bool = False) -> Fault:
    """Have the first use of something raise, before or after it does what it does."""

    def install() -> contextlib.AbstractContextManager[Any]:
        real = getattr(owner, name)
        uses: list[int] = []

        @functools.wraps(real, updated=())
        def fake(*args: Any, **kwargs: Any) -> Any:
            uses.append(1)
            if len(uses) > 1:
                return real(*args, **kwargs)
            if when_done:
                real(*args, **kwargs)
            raise FailedError(name)

        return mock.patch.object(owner, name, fake)

    return install


def badly_tuned(owner: Any, name: str) -> Fault:
    """The stream is made, and its descriptor cannot be set up."""

    def install() -> contextlib.AbstractContextManager[Any]:
        real = getattr(owner, name)
        given = iter(["not a number"])

        def fake(*args: Any, **kwargs: Any) -> Any:
            return real(*args, **{**kwargs, "busy_poll": next(given, 0.0)})

        return mock.patch.object(owner, name, fake)

    return install


class FailingObject(ssl.SSLObject):
    """Its first handshake fails in a way that no stream expects."""

    armed = False

    def do_handshake(self) -> None:
        if FailingObject.armed:
            FailingObject.armed = False
            raise FailedError("do_handshake")
        super().do_handshake()


@contextlib.contextmanager
def failing_handshake() -> Iterator[None]:
    FailingObject.armed = True
    yield
    FailingObject.armed = False


class NoDirectTls:
    """Has TLS go over a stream, as on Pythons whose OpenSSL cannot be called from C."""

    @staticmethod
    def create(*args: Any, **kwargs: Any) -> None:
        return None


@contextlib.contextmanager
def indirect(fault: Fault) -> Iterator[None]:
    with mock.patch.object(net_open, "DirectTlsStream", NoDirectTls), fault():
        yield


@contextlib.contextmanager
def direct_fails() -> Iterator[None]:
    direct = type("DirectTlsStream", (), {"create": net_open.DirectTlsStream.create})
    with mock.patch.object(net_open, "DirectTlsStream", direct), failing(direct, "create")():
        yield


@contextlib.contextmanager
def watched_already(loop: Any) -> Iterator[None]:
    """Have the loop refuse to watch the next stream, as it watches the descriptor already."""
    numbers: list[int] = []

    def fake(loop: Any, stream: Any, *args: Any, **kwargs: Any) -> Any:
        if not numbers:
            numbers.append(stream.get_extra_info("socket").fileno())
            loop.add_reader(numbers[0], pytest.fail)
            loop.call_soon(loop.remove_reader, numbers[0])
        return real(loop, stream, *args, **kwargs)

    real = client.new_transport
    with (
        mock.patch.object(admission, "new_transport", fake),
        mock.patch.object(client, "new_transport", fake),
    ):
        yield


def faults_of_streams(loop: Any, context: ssl.SSLContext | None, use_loop_transport: bool) -> Any:
    """The steps between a socket and its stream, by name."""
    if context is not None:
        yield "context", failing(context, "wrap_bio")
        yield "TLS handshake", failing_handshake
    if use_loop_transport:
        if context is not None:
            yield "TLS over a transport", failing(net_open, "TlsStream")
        return
    if context is None:
        yield "TcpStream", failing(net_open, "TcpStream")
    else:
        for name in ("TcpStream", "TlsStream"):
            yield name, functools.partial(indirect, failing(net_open, name))
        yield "DirectTlsStream", direct_fails
    if type(loop).__module__.startswith("picows_fast"):
        yield "watching", functools.partial(watched_already, loop)
    else:
        yield "watching", failing(loop, "add_reader")


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def server_context(request, authority) -> ssl.SSLContext | None:
    if not request.param:
        return None
    # Of a class of its own: an attribute of an SSLContext itself cannot be replaced.
    context = type("Context", (ssl.SSLContext,), {})(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    context.sslobject_class = FailingObject
    return context


async def end_of(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    try:
        return await asyncio.wait_for(loop.sock_recv(sock, 1000), TIMEOUT)
    except ConnectionResetError:
        return b""


async def test_an_accepted_connection_whose_set_up_fails(
    server_context, client_tls, io_options, caplog
):
    """It is closed, counted and logged once. The next one gets a descriptor of the same number, and
    its own transport."""
    loop = asyncio.get_running_loop()
    served: list[Echo] = []
    errors = 0

    def factory(request):
        served.append(Echo())
        return served[-1]

    faults: list[tuple[str, Fault]] = [
        ("address_key", failing(admission, "address_key")),
        ("limits", failing(Server, "reason_to_turn_away")),
        ("ServerHandshake", failing(admission, "ServerHandshake")),
        ("new_transport", failing(admission, "new_transport")),
        ("new_transport, made", failing(admission, "new_transport", when_done=True)),
        ("attach", failing(Server, "attach")),
        ("attached", failing(Server, "attach", when_done=True)),
        *faults_of_streams(loop, server_context, io_options["use_loop_transport"]),
    ]
    if not io_options["use_loop_transport"]:
        faults.append(("tuning", badly_tuned(admission, "socket_stream")))
    async with await picows_fast.ws_create_server(
        factory,
        "127.0.0.1",
        0,
        ssl=server_context,
        max_connections_per_ip=50,
        max_pending_handshakes=3,
        websocket_handshake_timeout=TIMEOUT,
        **io_options,
    ) as running:
        address = running.sockets[0].getsockname()
        url = f"{'ws' if server_context is None else 'wss'}://127.0.0.1:{address[1]}/"
        for number, (name, fault) in enumerate(faults, 1):
            caplog.clear()
            # The stream ends by itself then, as with any failed handshake.
            is_refused = name != "TLS handshake"
            errors += is_refused
            with fault(), await connect_socket(address) as sock:
                assert await end_of(sock) == b"", name
                for _ in range(3):  # turns of the loop
                    await asyncio.sleep(0)
                stats = running.stats()
                assert stats.refused["error"] == errors, name
                records = [record for record in caplog.records if record.levelno > logging.DEBUG]
                if is_refused:
                    assert (stats.handshakes, stats.leaving, stats.connections) == (0, 0, 0), name
                    assert [record.name for record in records] == ["picows_fast.server"], name
                    assert (
                        "could not set up the connection from ('127.0.0.1'," in records[0].message
                    )
                    assert records[0].exc_info is not None, name
                transport, listener = await picows_fast.ws_connect(
                    Recorder, url, ssl_context=client_tls
                )
            transport.send(WSMsgType.TEXT, name)
            assert await listener.frame() == (WSMsgType.TEXT, name.encode(), True)
            own = transport.underlying_transport.get_extra_info("sockname")
            theirs = served[-1].transport.underlying_transport.get_extra_info("peername")
            assert own[:2] == theirs[:2], name
            transport.disconnect()
            await served[-1].closed()
            assert len(served) == number, name
        stats = running.stats()
        assert (stats.accepted, stats.opened) == (2 * len(faults), len(faults))
        assert (stats.handshakes, stats.leaving, stats.connections) == (0, 0, 0)


async def test_a_client_whose_set_up_fails(server_context, authority, io_options, caplog):
    """The error is raised and the socket closed, whichever step it was."""
    loop = asyncio.get_running_loop()
    uses_tls = server_context is not None
    context = type("Context", (ssl.SSLContext,), {})(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.sslobject_class = FailingObject
    use_loop_transport = io_options["use_loop_transport"]
    faults: list[tuple[str, Fault]] = [
        ("tune_socket", failing(client, "tune_socket")),
        ("open_stream", failing(client, "open_stream")),
        ("new_transport", failing(client, "new_transport")),
        ("new_transport, made", failing(client, "new_transport", when_done=True)),
        *faults_of_streams(loop, context if uses_tls else None, use_loop_transport),
    ]
    if use_loop_transport:
        faults += [
            ("create_connection", failing(loop, "create_connection")),
            ("ForeignStream", failing(net_open, "ForeignStream")),
        ]
    else:
        faults.append(("tuning", badly_tuned(net_open, "socket_stream")))
    with listening_socket() as listening:
        url = f"{'wss' if uses_tls else 'ws'}://127.0.0.1:{listening.getsockname()[1]}/"
        for name, fault in faults:
            before = open_sockets()
            # Connected already, as connecting watches it, too.
            with fault(), await connect_socket(listening.getsockname()) as sock:
                with pytest.raises((FailedError, TypeError, FileExistsError)):
                    await picows_fast.ws_connect(
                        Recorder, url, sock=sock, ssl_context=context, **io_options
                    )
                accepted, _ = await loop.sock_accept(listening)
                with accepted:
                    assert await end_of(accepted) == b"", name
                await asyncio.sleep(0)
                assert sock.fileno() == -1, name
            assert open_sockets() <= before, name
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.parametrize(
    "options", [{"proxy": "gopher://127.0.0.1/"}, {"proxy": "socks5://127.0.0.1:1/"}]
)
async def test_a_socket_that_was_given_is_closed_whatever_fails(options, monkeypatch):
    """Before anything is connected: a proxy whose URL, or whose package, is not to be had."""
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with listening_socket() as listening, await connect_socket(listening.getsockname()) as sock:
        with pytest.raises((ValueError, ImportError)):
            await picows_fast.ws_connect(Recorder, "ws://localhost/", sock=sock, **options)
        assert sock.fileno() == -1
