"""ws_create_server's limits and origins, and what it counts: real clients, floods, silent peers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets

import picows_fast
from picows_fast import (
    ServerStats,
    WSDisconnectCause,
    WSInvalidStatusError,
    WSListener,
    WSTransport,
    WSUpgradeResponse,
    ws_connect,
    ws_create_server,
)
from picows_fast.server.server import Server

from . import needs
from .peers import TIMEOUT, UPGRADE_REQUEST, Contexts, Peer, connect_socket
from .support import Echo, Recorder
from .test_connections import check_sums

pytestmark = pytest.mark.usefixtures("leaves_nothing")

PLAIN_REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def echo_or_health(
    request: picows_fast.WSUpgradeRequest,
) -> WSListener | WSUpgradeResponse | None:
    if request.is_upgrade:
        return Echo()
    return WSUpgradeResponse.create_ok_response(b"ok") if request.path == b"/health" else None


class Running:
    """A server of ours with limits; ends what its clients have left open."""

    def __init__(self, server: Server, contexts: Contexts | None) -> None:
        self.server = server
        self.contexts = contexts
        self.scheme = "ws" if contexts is None else "wss"
        self.address = server.sockets[0].getsockname()
        self.transports: list[WSTransport] = []
        self.peers: list[Peer] = []

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.address[1]}/"

    @property
    def stats(self) -> ServerStats:
        return self.server.stats()

    async def connect(self, url: str | None = None, **options: Any) -> WSTransport:
        context = None if self.contexts is None else self.contexts.client
        options.setdefault("websocket_handshake_timeout", TIMEOUT)  # some wait in a queue
        transport, _ = await asyncio.wait_for(
            ws_connect(Recorder, url or self.url, ssl_context=context, **options), TIMEOUT
        )
        self.transports.append(transport)
        return transport

    async def refused(self, status: int, **options: Any) -> None:
        with pytest.raises(WSInvalidStatusError) as caught:
            await self.connect(**options)
        assert caught.value.response is not None
        assert caught.value.response.status == status

    async def peer(self, data: bytes = b"") -> Peer:
        """A client without TLS, that says this and no more."""
        peer = Peer(await connect_socket(("127.0.0.1", self.address[1])), is_client=True)
        self.peers.append(peer)
        await peer.send_raw(data)
        return peer

    async def leave(self, transport: WSTransport) -> None:
        """End one connection, and wait until the server knows."""
        before = self.stats.connections
        transport.disconnect()
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        await self.until(lambda stats: stats.connections < before)

    async def until(self, condition: Any) -> None:
        async def wait() -> None:
            while not condition(self.stats):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), TIMEOUT)

    async def settled(self) -> ServerStats:
        """What was counted, once nothing is under way."""
        await self.until(lambda stats: not (stats.handshakes or stats.leaving))
        check_sums(self.stats)
        return self.stats


@contextlib.asynccontextmanager
async def running(
    contexts: Contexts | None = None, factory: Any = echo_or_health, **options: Any
) -> AsyncIterator[Running]:
    if not {"sock", "unix_path"} & set(options):
        options |= {"host": "127.0.0.1", "port": 0}
    server = await ws_create_server(factory, ssl=contexts and contexts.server, **options)
    it = Running(server, contexts)
    try:
        yield it
    finally:
        server.close()
        for peer in it.peers:
            peer.close()
        for transport in it.transports:
            transport.disconnect(graceful=False)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        server.abort_clients()
        await asyncio.wait_for(server.wait_closed(), TIMEOUT)
        check_sums(server.stats())


# max_connections


async def test_max_connections(contexts: Contexts | None, io_options: dict[str, bool]) -> None:
    async with running(contexts, max_connections=3, **io_options) as it:
        transports = [await it.connect() for _ in range(3)]
        await it.refused(503)
        await it.refused(503)
        await it.leave(transports[1])
        await it.connect()
        await it.refused(503)
        stats = await it.settled()
        assert stats.refused["max_connections"] == 3
        assert (stats.opened, stats.connections) == (4, 3)


async def test_plain_http_is_answered_when_full(io_options: dict[str, bool]) -> None:
    async with running(max_connections=1, max_connections_per_ip=1, **io_options) as it:
        await it.connect()
        async with aiohttp.ClientSession(it.url.replace("ws", "http", 1)) as session:
            for method, status, body in (("GET", 200, "ok"), ("HEAD", 200, "")):
                async with session.request(method, "/health") as response:
                    assert (response.status, await response.text()) == (status, body)
            async with session.get("/other") as response:
                assert response.status == 404
        stats = await it.settled()
        assert stats.answered == {200: 2, 404: 1}


@pytest.mark.parametrize(
    ("limit", "status"), [("max_connections", 503), ("max_connections_per_ip", 429)]
)
async def test_other_libraries_understand(limit: str, status: int) -> None:
    async with running(**{limit: 1}) as it:
        await it.connect()
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with websockets.connect(it.url, proxy=None):
                pass
        assert caught.value.response.status_code == status
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as also_caught:
                await session.ws_connect(it.url)
            assert also_caught.value.status == status


async def test_many_at_once_get_exactly_the_limit(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    async with running(contexts, max_connections=10, **io_options) as it:
        results = await asyncio.gather(*(it.connect() for _ in range(30)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, WSInvalidStatusError)]
        assert len(refused) == 20
        assert (await it.settled()).connections == 10


async def test_a_refused_upgrade_takes_no_place(io_options: dict[str, bool]) -> None:
    """Neither a request that is not valid, nor a factory that says no, counts as a connection."""

    def choose(request: picows_fast.WSUpgradeRequest) -> WSListener | None:
        if request.path == b"/fail":
            raise LookupError
        return Echo() if request.path == b"/" else None

    async with running(None, choose, max_connections=1, **io_options) as it:
        await it.refused(404, url=it.url + "nothing")
        await it.refused(500, url=it.url + "fail")
        peer = await it.peer(UPGRADE_REQUEST.replace(b"Version: 13", b"Version: 12"))
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 426 ")
        peer.close()
        await it.connect()
        stats = await it.settled()
        assert (stats.refused["request"], stats.refused["error"], stats.answered) == (
            1,
            1,
            {404: 1},
        )


# max_connections_per_ip


@needs.second_loopback
async def test_max_connections_per_ip(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    async with running(contexts, max_connections_per_ip=2, **io_options) as it:
        first = [await it.connect() for _ in range(2)]
        await it.refused(429)
        second = {"local_addr": ("127.0.0.2", 0)}
        for _ in range(2):
            await it.connect(**second)
        await it.refused(429, **second)
        await it.leave(first[0])
        await it.refused(429, **second)
        await it.connect()
        await it.refused(429)
        assert (await it.settled()).refused["max_connections_per_ip"] == 4


@needs.ipv6
async def test_one_address_on_ipv4_and_ipv6(io_options: dict[str, bool]) -> None:
    """A socket for both families sees IPv4 addresses as ::ffff:127.0.0.1."""
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        async with running(sock=sock, max_connections_per_ip=1, **io_options) as it:
            await it.connect()
            await it.refused(429)
            await it.connect(f"ws://[::1]:{it.address[1]}/")
            await it.refused(429, url=f"ws://[::1]:{it.address[1]}/")


async def test_unix_sockets_have_no_address(tmp_path: Path, io_options: dict[str, bool]) -> None:
    path = tmp_path / "socket"
    options = {"unix_path": path, "max_connections_per_ip": 1, "max_connections": 3}
    async with running(**options, **io_options) as it:
        for _ in range(3):
            await it.connect("ws://localhost/", unix_path=path)
        await it.refused(503, url="ws://localhost/", unix_path=path)


async def test_a_burst_from_one_address(
    contexts: Contexts | None, io_options: dict[str, bool]
) -> None:
    async with running(contexts, max_connections_per_ip=5, **io_options) as it:
        results = await asyncio.gather(*(it.connect() for _ in range(30)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, WSInvalidStatusError)]
        assert [result.response.status for result in refused] == [429] * 25  # type: ignore[union-attr]


async def test_a_flood_of_silent_connections_from_one_address(io_options: dict[str, bool]) -> None:
    """More than 32 handshakes at once: the rest is turned away unread. Others are not affected."""
    async with running(max_connections_per_ip=1, **io_options) as it:
        for _ in range(32):
            await it.peer()
        await it.until(lambda stats: stats.handshakes == 32)
        for _ in range(5):
            peer = await it.peer()
            assert (await peer.read_to_end()).startswith(b"HTTP/1.1 429 ")
            peer.close()
        assert it.stats.handshakes == 32
        assert it.stats.refused["max_connections_per_ip"] == 5
        if needs.HAS_SECOND_LOOPBACK:
            await it.connect(local_addr=("127.0.0.2", 0))
        it.peers[0].close()
        await it.until(lambda stats: stats.handshakes == 31)
        await it.connect()
        assert it.stats.abandoned == 1


async def test_a_flood_over_tls_is_turned_away_without_an_answer(
    server_tls: Any, client_tls: Any, io_options: dict[str, bool]
) -> None:
    contexts = Contexts(server_tls, client_tls)
    async with running(contexts, max_connections_per_ip=1, **io_options) as it:
        for _ in range(32):
            await it.peer()
        await it.until(lambda stats: stats.handshakes == 32)
        peer = await it.peer()
        assert await peer.read_to_end() == b""
        it.peers[0].close()
        await it.until(lambda stats: stats.handshakes == 31)
        await it.connect()


# max_pending_handshakes


@pytest.mark.native
async def test_over_the_bound_connections_wait(contexts: Contexts | None) -> None:
    async with running(contexts, max_pending_handshakes=2) as it:
        silent = [await it.peer() for _ in range(2)]
        await it.until(lambda stats: stats.handshakes == 2)
        waiting = [asyncio.create_task(it.connect()) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        assert it.stats.accepted == 2
        silent[0].close()
        await asyncio.gather(*waiting)
        assert it.stats.connections == 3
        assert it.stats.handshakes == 1


async def test_over_the_bound_a_loop_transport_is_refused() -> None:
    """The loop accepts whatever comes, so that nothing can wait."""
    async with running(max_pending_handshakes=2, use_loop_transport=True) as it:
        silent = [await it.peer() for _ in range(2)]
        await it.until(lambda stats: stats.handshakes == 2)
        peer = await it.peer()
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 503 ")
        silent[0].close()
        await it.until(lambda stats: stats.handshakes == 1)
        await it.connect()
        assert it.stats.refused["max_pending_handshakes"] == 1


@pytest.mark.native
async def test_silent_clients_make_room_at_their_deadline() -> None:
    options = {"websocket_handshake_timeout": 0.2, "close_timeout": 0.2}
    async with running(max_pending_handshakes=2, **options) as it:
        for _ in range(6):
            await it.peer(UPGRADE_REQUEST[:30])
        await it.connect()
        await it.until(lambda stats: stats.refused["timeout"] == 6)


@pytest.mark.native
async def test_the_bound_holds_while_many_connect(contexts: Contexts | None) -> None:
    most = 0

    def accept(request: picows_fast.WSUpgradeRequest) -> WSListener | None:
        nonlocal most
        most = max(most, it.stats.handshakes + it.stats.leaving)
        return Echo() if request.path == b"/" else None

    async with running(contexts, accept, max_pending_handshakes=3) as it:
        await asyncio.gather(*(it.connect() for _ in range(40)))
        # Those that were answered, and have not gone, count as well.
        await asyncio.gather(*(it.refused(404, url=it.url + "x") for _ in range(20)))
        stats = await it.settled()
        assert (stats.connections, stats.answered) == (40, {404: 20})
    assert 1 <= most <= 3


@pytest.mark.native
async def test_close_while_connections_wait() -> None:
    async with running(max_pending_handshakes=1) as it:
        silent = await it.peer()
        await it.until(lambda stats: stats.handshakes == 1)
        waiting = await it.peer()
        it.server.close()
        assert await waiting.read_to_end() == b""
        silent.close()
        await asyncio.wait_for(it.server.wait_closed(), TIMEOUT)


# Origins


async def test_origins(contexts: Contexts | None, io_options: dict[str, bool]) -> None:
    calls = []

    def accept(request: picows_fast.WSUpgradeRequest) -> Any:
        calls.append(request.headers.get("Origin"))
        return echo_or_health(request)

    async with running(
        contexts, accept, origins=["https://app.example", "https://*.example"], **io_options
    ) as it:
        for origin in ("https://app.example", "https://www.app.example"):
            await it.connect(extra_headers={"Origin": origin})
        await it.refused(403, extra_headers={"Origin": "https://evil.test"})
        await it.refused(403)
        assert calls == ["https://app.example", "https://www.app.example"]
        assert (await it.settled()).refused["origin"] == 2


async def test_origins_of_other_clients() -> None:
    async with running(origins=["https://app.example", None]) as it:
        async with websockets.connect(it.url, proxy=None, origin="https://app.example"):
            pass
        async with websockets.connect(it.url, proxy=None):
            pass
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with websockets.connect(it.url, proxy=None, origin="https://evil.test"):
                pass
        assert caught.value.response.status_code == 403
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(it.url, origin="https://app.example"):
                pass
            with pytest.raises(aiohttp.WSServerHandshakeError) as also_caught:
                await session.ws_connect(it.url, origin="https://evil.test")
            assert also_caught.value.status == 403
            # Who may read a page is for the browser to decide, by CORS.
            health = it.url.replace("ws", "http", 1) + "health"
            async with session.get(health, headers={"Origin": "https://evil.test"}) as response:
                assert response.status == 200


# Settings and statistics


@pytest.mark.parametrize(
    "name", ["max_connections", "max_connections_per_ip", "max_pending_handshakes"]
)
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), ("5", TypeError), (True, TypeError)]
)
async def test_bad_limits(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        await ws_create_server(echo_or_health, "127.0.0.1", 0, **{name: value})


async def test_pending_handshakes_need_a_deadline() -> None:
    with pytest.raises(ValueError, match="websocket_handshake_timeout"):
        await ws_create_server(
            echo_or_health,
            "127.0.0.1",
            0,
            max_pending_handshakes=5,
            websocket_handshake_timeout=None,
        )


async def test_statistics(contexts: Contexts | None, io_options: dict[str, bool]) -> None:
    def accept(request: picows_fast.WSUpgradeRequest) -> Any:
        if request.path == b"/fail":
            raise LookupError
        return echo_or_health(request)

    async with running(contexts, accept, websocket_handshake_timeout=1, **io_options) as it:
        transports = [await it.connect() for _ in range(4)]
        assert it.stats.connections == 4
        transports[0].send_close(1000)
        transports[1].disconnect(graceful=False)
        transports[2].disconnect()
        for transport in transports[:3]:
            await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        await it.refused(500, url=it.url + "fail")
        silent, gone = await it.peer(), await it.peer()
        await it.until(lambda stats: stats.handshakes >= 1)
        gone.reset()
        await it.until(lambda stats: stats.abandoned == 1)
        await it.until(lambda stats: stats.refused["timeout"] == 1)
        silent.close()
        stats = await it.settled()
        assert (stats.accepted, stats.opened, stats.connections) == (7, 4, 1)
        assert stats.refused["error"] == 1
        ended = {cause: count for cause, count in stats.closed.items() if count}
        assert sum(ended.values()) == 3
        assert ended[WSDisconnectCause.CLOSE_FRAME] == 1
        with pytest.raises(AttributeError):
            stats.accepted = 0  # type: ignore[misc]
    assert it.stats.connections == 0
