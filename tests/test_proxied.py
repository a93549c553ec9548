"""proxied: servers behind load balancers that speak the PROXY protocol: raw sockets, and HAProxy.

The syntax of the header is tested in test_proxy_protocol.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import picows_fast
from picows_fast import WSMsgType
from picows_fast.protocol.proxy_protocol import ProxyHeaderReader
from picows_fast.server.server import Server

from .peers import TIMEOUT, UPGRADE_REQUEST, Peer, connect_socket, drip
from .support import Echo, Recorder, free_port, until
from .test_connections import check_sums
from .test_open import FailedError, failing
from .test_proxy_protocol import BAD, GOOD, IPV4, TLV, v2

pytestmark = pytest.mark.usefixtures("leaves_nothing")

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 443\r\n"
CLIENT = ("192.0.2.7", 4660)
LOOPBACK = ["127.0.0.0/8", "::1", "unix"]


class Running:
    """A server behind 127.0.0.1, which is a load balancer to it."""

    def __init__(self, server: Any, contexts: Any) -> None:
        self.server = server
        self.contexts = contexts
        self.address = server.sockets[0].getsockname()
        self.served: list[Echo] = []

    async def connect(self) -> Peer:
        sock = await connect_socket(self.address)
        return Peer(sock, is_client=True, context=self.contexts and self.contexts.client)

    def stats(self) -> Any:
        stats = self.server.stats()
        check_sums(stats)
        return stats


@contextlib.asynccontextmanager
async def proxied(contexts: Any = None, **options: Any) -> AsyncIterator[Running]:
    def factory(request: picows_fast.WSUpgradeRequest) -> Echo:
        running.served.append(Echo())
        return running.served[-1]

    options.setdefault("proxy_protocol", LOOPBACK)
    server = await picows_fast.ws_create_server(
        factory, "127.0.0.1", 0, ssl=contexts and contexts.server, **options
    )
    running = Running(server, contexts)
    try:
        yield running
    finally:
        server.close()
        server.abort_clients()
        await asyncio.wait_for(server.wait_closed(), TIMEOUT)
        assert running.stats().handshakes == 0


async def upgrade(peer: Peer) -> None:
    if peer.tls is not None:
        await peer.start_tls()
    await peer.send_bytes(UPGRADE_REQUEST)
    assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")


def client_hello(peer: Peer) -> bytes:
    """What comes behind the header: the beginning of TLS, or the whole request."""
    if peer.tls is None:
        return UPGRADE_REQUEST
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    return peer._outgoing.read()


@pytest.mark.parametrize("name", ["v1 IPv4", "v1 unknown", "v2 IPv6", "v2 Unix", "v2 local"])
async def test_whom_the_connection_is_for(name, contexts, io_options):
    """Header and ClientHello, or request, in one segment: nothing is lost, nothing read twice."""
    data, (source, _) = GOOD[name]
    async with proxied(contexts, **io_options) as running:
        with contextlib.closing(await running.connect()) as peer:
            await peer.send_raw(data + client_hello(peer))
            if peer.tls is not None:
                await upgrade(peer)
            else:
                assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
            direct = peer.sock.getsockname()
            (listener,) = running.served
            info = listener.transport.underlying_transport.get_extra_info
            assert info("peername") == (direct if source is None else source)
            assert info("proxy_peername") == direct
            assert info("sockname") == running.address
            await peer.send(WSMsgType.TEXT, "through")
            assert await peer.read_frame() == (WSMsgType.TEXT, b"through")
            stats = running.stats()
            assert (stats.accepted, stats.opened) == (1, 1)
        await listener.closed()


@pytest.mark.parametrize("data", [V1, v2(0x21, 0x11, IPV4 + TLV)], ids=["v1", "v2"])
async def test_a_header_byte_by_byte(data, contexts, io_options, caplog):
    """Log lines name the client."""
    caplog.set_level(logging.INFO, "picows_fast")
    async with proxied(contexts, **io_options) as running:
        with contextlib.closing(await running.connect()) as peer:
            await drip(peer, data)
            await upgrade(peer)
            (listener,) = running.served
            assert listener.transport.underlying_transport.get_extra_info("peername") == CLIENT
        await listener.closed()
    assert caplog.records
    assert all("192.0.2.7:4660" in record.getMessage() for record in caplog.records)


async def test_long_extensions(contexts, io_options):
    """More than one read, with the request right behind."""
    async with proxied(contexts, **io_options) as running:
        with contextlib.closing(await running.connect()) as peer:
            await peer.send_raw(v2(0x21, 0x11, IPV4 + TLV * 8000) + client_hello(peer))
            if peer.tls is not None:
                await upgrade(peer)
            else:
                assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
            await peer.send(WSMsgType.TEXT, "through")
            assert await peer.read_frame() == (WSMsgType.TEXT, b"through")
        await running.served[0].closed()


async def test_a_bad_header(io_options, caplog):
    """Closed without a response, counted, and told at INFO."""
    caplog.set_level(logging.INFO, "picows_fast")
    async with proxied(**io_options) as running:
        for name, data in BAD.items():
            caplog.clear()
            with contextlib.closing(await running.connect()) as peer:
                await peer.send_raw(data + b"\r\n\r\n")
                assert await end_of(peer.sock) == b"", name
            (record,) = caplog.records
            assert record.levelno == logging.INFO
            assert "127.0.0.1" in record.getMessage()
        stats = running.stats()
        assert stats.refused["proxy_protocol"] == stats.accepted == len(BAD)
        assert (stats.handshakes, stats.leaving) == (0, 0)
        assert not running.served


async def test_connections_from_elsewhere_have_no_header(contexts, io_options):
    """They are served as they are; what they say of an address is not believed."""
    async with proxied(contexts, proxy_protocol=["10.0.0.0/8"], **io_options) as running:
        with contextlib.closing(await running.connect()) as peer:
            await upgrade(peer)
            info = running.served[0].transport.underlying_transport.get_extra_info
            assert info("peername") == peer.sock.getsockname()
            assert info("proxy_peername") is None
        with contextlib.closing(await running.connect()) as peer:
            await peer.send_raw(V1 + UPGRADE_REQUEST)
            answer = await end_of(peer.sock)
            assert answer.startswith(b"HTTP/1.1 400 ") or contexts is not None
        await until(lambda: len(running.served) == 1 and not running.stats().handshakes)
        await running.served[0].closed()


async def test_the_deadline_is_that_of_the_whole_handshake(io_options, monkeypatch):
    """The part of it that the header took is gone."""
    loop = asyncio.get_running_loop()
    given = []

    def attach(self: Server, connection: Any, key: Any = None, due: Any = None) -> None:
        given.append((loop.time(), due))
        real(self, connection, key, due)

    real = Server.attach
    monkeypatch.setattr(Server, "attach", attach)
    async with proxied(websocket_handshake_timeout=0.3, **io_options) as running:
        with (
            contextlib.closing(await running.connect()) as slow,
            contextlib.closing(await running.connect()) as silent,
        ):
            await until(lambda: len(given) == 2)
            await asyncio.sleep(0.02)
            await slow.send_raw(V1 + b"GET /")
            assert await end_of(silent.sock) == b""
            assert (await end_of(slow.sock)).startswith(b"HTTP/1.1 408 ")
        (began, due), _, (handed_over, inherited) = given
        assert due is None
        assert began + 0.3 <= inherited < handed_over + 0.3
        assert running.stats().refused["timeout"] == 2


async def test_limits_count_clients_and_not_their_proxy(io_options):
    async with proxied(max_connections_per_ip=1, **io_options) as running:
        async with contextlib.AsyncExitStack() as stack:
            statuses = []
            for last in (1, 2, 1):
                peer = stack.enter_context(contextlib.closing(await running.connect()))
                header = b"PROXY TCP4 192.0.2.%d 198.51.100.1 4660 443\r\n" % last
                await peer.send_raw(header + UPGRADE_REQUEST)
                statuses.append((await peer.read_head()).split()[1])
            assert statuses == [b"101", b"101", b"429"]
        for listener in running.served:
            await listener.closed()
        assert running.stats().refused["max_connections_per_ip"] == 1


async def test_what_awaits_its_header_counts_as_a_handshake(io_options):
    async with proxied(max_pending_handshakes=2, **io_options) as running:
        async with contextlib.AsyncExitStack() as stack:
            peers = [
                stack.enter_context(contextlib.closing(await running.connect())) for _ in range(2)
            ]
            await until(lambda: running.stats().handshakes == 2)
            if not io_options["use_loop_transport"]:  # else further ones are turned away
                peers.append(stack.enter_context(contextlib.closing(await running.connect())))
            for peer in peers:
                await peer.send_raw(V1)
                await upgrade(peer)
            assert running.stats().opened == len(peers)
        for listener in running.served:
            await listener.closed()


@pytest.mark.parametrize("how", ["nothing", "half", "reset"])
async def test_a_proxy_that_leaves(io_options, how):
    async with proxied(**io_options) as running:
        peer = await running.connect()
        await until(lambda: running.stats().handshakes == 1)
        if how != "nothing":
            await peer.send_raw(V1[:20])
        peer.reset() if how == "reset" else peer.close()
        await until(lambda: running.stats().abandoned == 1)


@pytest.mark.parametrize("way", ["shutdown", "close_clients", "abort_clients"])
async def test_the_server_ends_meanwhile(io_options, way):
    """A silent connection ends at once; one whose header has begun may finish it."""
    async with proxied(**io_options) as running:
        with (
            contextlib.closing(await running.connect()) as silent,
            contextlib.closing(await running.connect()) as begun,
        ):
            await begun.send_raw(V1[:9])
            await until(lambda: running.stats().handshakes == 2)
            await asyncio.sleep(0.01)
            if way != "shutdown":
                getattr(running.server, way)()
                assert await end_of(silent.sock) == await end_of(begun.sock) == b""
                return
            ending = asyncio.ensure_future(running.server.shutdown())
            assert await end_of(silent.sock) == b""
            await begun.send_raw(V1[9:])
            await upgrade(begun)
            assert await begun.read_close() == (1001, "")
            await begun.send_close(1001)
            begun.fin()
            await asyncio.wait_for(ending, TIMEOUT)


async def test_over_a_unix_socket(io_options, tmp_path):
    path = str(tmp_path / "s")
    server = await picows_fast.ws_create_server(
        lambda request: served.append(Echo()) or served[0],
        unix_path=path,
        proxy_protocol=["unix"],
        **io_options,
    )
    served: list[Echo] = []
    async with server:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, path)
            peer = Peer(sock, is_client=True)
            await peer.send_raw(V1)
            await upgrade(peer)
            info = served[0].transport.underlying_transport.get_extra_info
            assert info("peername") == CLIENT
            assert info("proxy_peername") == ""
        await served[0].closed()


async def test_a_set_up_that_fails(io_options, monkeypatch, caplog):
    """At whatever step: the connection is closed, counted, logged once, and the next is served."""
    loop = asyncio.get_running_loop()
    faults = [
        failing(Server, "attach"),
        failing(Server, "attach", when_done=True),
        failing(ProxyHeaderReader, "feed"),
        failing(picows_fast.server.admission, "new_transport"),
    ]
    if not io_options["use_loop_transport"]:
        faults.append(failing(loop, "add_reader"))
    unexpected: list[Any] = []
    loop.set_exception_handler(lambda loop, context: unexpected.append(context["exception"]))
    async with proxied(**io_options) as running:
        for number, fault in enumerate(faults, 1):
            caplog.clear()
            with fault(), contextlib.closing(await running.connect()) as peer:
                with contextlib.suppress(ConnectionError):
                    await peer.send_raw(V1 + UPGRADE_REQUEST)
                assert await end_of(peer.sock) == b""
                await until(lambda n=number: running.stats().refused["error"] == n)
            (record,) = caplog.records
            assert record.message.startswith("could not set up the connection from ('1")
            with contextlib.closing(await running.connect()) as peer:
                await peer.send_raw(V1)
                await upgrade(peer)
            await running.served[-1].closed()
        assert running.stats().opened == len(running.served) == len(faults)
    assert all(isinstance(error, FailedError) for error in unexpected)


async def end_of(sock: socket.socket) -> bytes:
    """What comes until the end."""
    loop = asyncio.get_running_loop()
    data = b""
    try:
        while got := await asyncio.wait_for(loop.sock_recv(sock, 10_000), TIMEOUT):
            data += got
    except ConnectionResetError:
        pass
    return data


# --- HAProxy itself


@contextlib.asynccontextmanager
async def haproxy(folder: Path, port: int, send: str) -> AsyncIterator[int]:
    """A balancer in TCP mode before a server at this port; gives its own port."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("needs HAProxy (Debian: haproxy)")
    own = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
        f"listen balancer\n  bind 127.0.0.1:{own}\n  server one 127.0.0.1:{port} {send}\n"
    )
    process = await asyncio.create_subprocess_exec(program, "-f", str(config), "-db")
    try:
        yield own
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), TIMEOUT)


async def connected_by(url: str, options: dict[str, Any]) -> Any:
    while True:
        try:
            return await picows_fast.ws_connect(Recorder, url, **options)
        except (OSError, picows_fast.WSError):  # the balancer has not started yet
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl check"])
async def test_haproxy(send, contexts, io_options, tmp_path):
    async with (
        proxied(contexts, **io_options) as running,
        haproxy(tmp_path, running.address[1], send) as port,
    ):
        options = {"ssl_context": contexts.client} if contexts else {}
        url = f"{'wss' if contexts else 'ws'}://127.0.0.1:{port}/"
        transport, client = await asyncio.wait_for(connected_by(url, options), TIMEOUT)
        transport.send(WSMsgType.TEXT, "through")
        assert await client.frame() == (WSMsgType.TEXT, b"through", True)
        listener = running.served[-1]
        info = listener.transport.underlying_transport.get_extra_info
        own = transport.underlying_transport.get_extra_info("sockname")
        assert info("peername") == own
        assert info("proxy_peername") not in (None, own)
        transport.disconnect()
        await listener.closed()
