"""ws_create_server: what factories may return, plain HTTP, listening, slow and broken clients."""

from __future__ import annotations

import asyncio
import contextlib
import http
import os
import socket
import ssl

import pytest

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSDisconnectCause,
    WSListener,
    WSMsgType,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_connect,
    ws_create_server,
)

from . import needs
from .peers import TIMEOUT, UPGRADE_REQUEST, Peer, connect_socket, drip
from .support import Echo, Recorder, address, check_echo, client_frame, raw_client, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def ask(url, request, tls=None):
    """Send bytes, return everything that comes back until the end."""
    reader, writer = await asyncio.open_connection(*address(url), ssl=tls)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), TIMEOUT)
    finally:
        writer.close()


def head_and_body(response):
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines), body


PLAIN_REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


# --- What the factory returns


async def test_listener_by_path():
    def choose(request):
        return Echo() if request.path == b"/echo" else None

    async with serving(choose) as url:
        await check_echo(url + "echo")
        with pytest.raises(picows_fast.WSInvalidStatusError) as caught:
            await ws_connect(Recorder, url + "nothing")
        assert caught.value.response.status == http.HTTPStatus.NOT_FOUND


async def test_response_with_headers(io_options):
    def accept(request):
        response = WSUpgradeResponse.create_101_response({"X-Node": "7", "Set-Cookie": "a=b"})
        return WSUpgradeResponseWithListener(response, Echo())

    async with serving(accept, **io_options) as url:
        transport = await check_echo(url, **io_options)
        assert transport.response.headers["X-Node"] == "7"
        assert transport.response.headers["Set-Cookie"] == "a=b"


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (WSUpgradeResponse.create_ok_response(b"fine", {"X-A": "1"}), 200),
        (WSUpgradeResponse.create_ok_response(), 200),
        (WSUpgradeResponse.create_error_response(503, b"busy"), 503),
        (WSUpgradeResponse.create_redirect_response(307, "/other"), 307),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
async def test_plain_http_on_the_same_port(response, status, io_options):
    """A response other than 101 answers plain HTTP, and an upgrade just the same."""

    def answer(request):
        return WSUpgradeResponseWithListener(response, None)

    async with serving(answer, **io_options) as url:
        for request in (PLAIN_REQUEST, UPGRADE_REQUEST):
            got, headers, body = head_and_body(await ask(url, request))
            assert got == status
            assert body == (response.body or b"")
            assert headers["content-length"] == str(len(body))
            assert headers["connection"] == "close"
            if "X-A" in response.headers:
                assert headers["x-a"] == "1"


async def test_plain_http_and_websocket_together(server_tls, client_tls, io_options):
    def answer(request):
        if request.headers.get("Upgrade") is None:
            return WSUpgradeResponseWithListener(
                WSUpgradeResponse.create_ok_response(b"alive"), None
            )
        return Echo()

    async with serving(answer, tls=server_tls, **io_options) as url:
        await check_echo(url, ssl_context=client_tls)
        assert (await ask(url, PLAIN_REQUEST, tls=client_tls)).endswith(b"\r\n\r\nalive")
        await check_echo(url, ssl_context=client_tls)


async def test_head():
    """The headers of the answer, no body (RFC 9110 9.3.2)."""

    def answer(request):
        assert request.method == b"HEAD"
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_ok_response(b"12345"), None)

    async with serving(answer) as url:
        response = await ask(url, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, body = head_and_body(response)
        assert (status, headers["content-length"], body) == (200, "5", b"")


async def test_plain_http_to_a_server_of_listeners_only():
    async with serving(lambda request: Echo()) as url:
        status, headers, _ = head_and_body(await ask(url, PLAIN_REQUEST))
        assert status == http.HTTPStatus.UPGRADE_REQUIRED
        assert headers["upgrade"] == "websocket"


@pytest.mark.parametrize(
    "result", [5, "listener", WSListener, object(), WSUpgradeResponse.create_101_response()]
)
async def test_factory_that_returns_something_else(result, caplog):
    async with serving(lambda request: result) as url:
        assert head_and_body(await ask(url, UPGRADE_REQUEST))[0] == 500
    (record,) = caplog.records
    assert isinstance(record.exc_info[1], TypeError)
    assert "WSListener" in str(record.exc_info[1])


@pytest.mark.parametrize(
    "result",
    [
        lambda: WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(), None),
        lambda: WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": "unasked"}), Echo()
        ),
    ],
    ids=["101 without a listener", "a subprotocol that was not offered"],
)
async def test_upgrades_that_cannot_be(result, caplog):
    async with serving(lambda request: result()) as url:
        assert head_and_body(await ask(url, UPGRADE_REQUEST))[0] == 500
        await asyncio.sleep(0)
    assert caplog.records


@pytest.mark.parametrize("error", [LookupError("secret"), TypeError("secret"), OSError("secret")])
async def test_factory_that_raises(error, caplog, io_options):
    def fail(request):
        raise error

    async with serving(fail, **io_options) as url:
        response = await ask(url, UPGRADE_REQUEST)
        assert head_and_body(response)[0] == 500
        assert b"secret" not in response
    assert [record.exc_info[1] for record in caplog.records] == [error]


def test_factory_that_raises_keyboard_interrupt(io_options):
    """It reaches the loop, and the connection is given up."""

    def fail(request):
        raise KeyboardInterrupt

    async def scenario():
        async with serving(
            fail, websocket_handshake_timeout=0.2, close_timeout=0.2, **io_options
        ) as url:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", picows_fast.parse_url(url).port
            )
            writer.write(UPGRADE_REQUEST)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(scenario())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(asyncio.wait_for(task, TIMEOUT))
    finally:
        loop.close()


@pytest.mark.parametrize("factory", [None, 5, "x"])
async def test_factory_that_cannot_be_called(factory):
    with pytest.raises(TypeError, match="ws_listener_factory"):
        await ws_create_server(factory, "127.0.0.1", 0)


async def test_attributes_of_a_servers_transport(io_options):
    listener = Recorder()
    async with serving(lambda request: listener, **io_options) as url:
        transport, client = await ws_connect(Recorder, url + "x", extra_headers={"X-A": "1"})
        await listener.until(lambda: listener.transport)
        ours = listener.transport
        assert not ours.is_client_side
        assert not ours.is_secure
        assert ours.request.path == b"/x"
        assert ours.request.headers["x-a"] == "1"
        assert ours.response.status == 101
        assert ours.listener is listener
        assert ours.close_handshake is None
        assert ours.disconnect_cause is None
        transport.disconnect(graceful=False)
        await client.closed()
        await listener.closed()
        assert ours.listener is None


# --- Requests in pieces, late, broken


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_request_in_pieces_with_frames_behind(contexts, io_options, size):
    listener = Echo()
    async with serving(
        lambda request: listener, tls=contexts and contexts.server, **io_options
    ) as url:
        sock = await connect_socket(address(url))
        peer = Peer(sock, is_client=True, context=contexts and contexts.client)
        if contexts is not None:
            await peer.start_tls()
        data = UPGRADE_REQUEST + b"".join(client_frame(WSMsgType.TEXT, b"%d" % i) for i in range(5))
        data = peer.encrypt(data)
        await drip(peer, data, [size] * len(data))
        assert b" 101 " in await peer.read_head()
        for i in range(5):
            assert await peer.read_frame() == (1, b"%d" % i)
        peer.close()
        await listener.closed()
    assert listener.events[0] == "connected"


async def test_request_head_and_frame_in_one_piece(io_options):
    """A client need not wait for the response (its first frames are taken as they come)."""
    listener = Echo()
    async with serving(lambda request: listener, **io_options) as url:
        sock = await connect_socket(address(url))
        peer = Peer(sock, is_client=True)
        await peer.send_bytes(UPGRADE_REQUEST + client_frame(WSMsgType.BINARY, bytes(200_000)))
        await peer.read_head()
        assert await peer.read_frame() == (2, bytes(200_000))
        peer.close()
        await listener.closed()


async def test_frames_behind_a_refused_request_are_ignored():
    async with serving(lambda request: None) as url:
        response = await ask(url, UPGRADE_REQUEST + client_frame(WSMsgType.TEXT, b"x") * 100)
        assert head_and_body(response)[0] == 404


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_slow_request_hits_the_deadline(tls, server_tls, client_tls, io_options):
    """The deadline is for the whole handshake: a byte now and then does not move it."""

    def factory(request):
        raise AssertionError("never complete")

    async with serving(
        factory,
        tls=server_tls if tls else None,
        websocket_handshake_timeout=0.15,
        close_timeout=0.2,
        **io_options,
    ) as url:
        reader, writer = await asyncio.open_connection(
            *address(url), ssl=client_tls if tls else None
        )

        async def trickle():
            for byte in UPGRADE_REQUEST[:-2]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        slow = asyncio.create_task(trickle())
        response = await asyncio.wait_for(reader.read(), TIMEOUT)
        assert head_and_body(response)[0] == http.HTTPStatus.REQUEST_TIMEOUT
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        writer.close()


async def test_silent_tls_client_hits_the_deadline(server_tls, io_options):
    async with serving(
        lambda request: Echo(), tls=server_tls, websocket_handshake_timeout=0.05, **io_options
    ) as url:
        assert await ask(url, b"") == b""


async def test_no_deadline(io_options):
    async with serving(
        lambda request: Echo(), websocket_handshake_timeout=None, **io_options
    ) as url:
        peer = Peer(await connect_socket(address(url)), is_client=True)
        await peer.send_bytes(UPGRADE_REQUEST[:20])
        await asyncio.sleep(0.05)
        await peer.send_bytes(UPGRADE_REQUEST[20:])
        assert b" 101 " in await peer.read_head()
        peer.close()


async def test_limits_of_the_request():
    large = UPGRADE_REQUEST[:-2] + b"Cookie: a=" + b"x" * 20_000 + b"\r\n\r\n"
    many = UPGRADE_REQUEST[:-2] + b"X: y\r\n" * 150 + b"\r\n"
    for request, limits, name in (
        (large, {}, "max_head_size (16384 bytes)"),
        (large, {"max_head_size": 32 * 1024}, None),
        (UPGRADE_REQUEST, {"max_head_size": 100}, "max_head_size (100 bytes)"),
        (many, {}, "max_header_count (128)"),
        (many, {"max_header_count": 200}, None),
    ):
        async with serving(lambda request: Echo(), **limits) as url:
            if name is not None:
                status, _, body = head_and_body(await ask(url, request))
                assert status == 431
                assert name in body.decode()
            else:
                peer = Peer(await connect_socket(address(url)), is_client=True)
                await peer.send_bytes(request)
                assert b" 101 " in await peer.read_head()
                peer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"no HTTP\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (UPGRADE_REQUEST.replace(b"Version: 13", b"Version: 8"), 426),
        (UPGRADE_REQUEST.replace(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: !"), 400),
        (UPGRADE_REQUEST.replace(b"GET", b"PUT"), None),
    ],
    ids=["TLS", "no HTTP", "2.0", "no Host", "POST", "header", "URL", "version", "key", "PUT"],
)
async def test_bad_requests(request_bytes, status, io_options):
    async with serving(lambda request: Echo(), **io_options) as url:
        got, headers, _ = head_and_body(await ask(url, request_bytes))
        assert 400 <= got < 500 or got == 505
        if status is not None:
            assert got == status
        assert headers["connection"] == "close" or got == 426
        await check_echo(url)


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
async def test_client_that_goes_away_in_its_request(cut, io_options):
    async with serving(lambda request: Echo(), **io_options) as url:
        for reset in (False, True):
            peer = Peer(await connect_socket(address(url)), is_client=True)
            await peer.send_bytes(UPGRADE_REQUEST[:cut])
            await asyncio.sleep(0.001)
            peer.reset() if reset else peer.close()
        await check_echo(url)


# --- The server object


async def test_close_leaves_connections_alone(io_options):
    server = await ws_create_server(lambda request: Echo(), "127.0.0.1", 0, **io_options)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    transport, client = await ws_connect(Recorder, url)
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    with pytest.raises(OSError):
        await ws_connect(Recorder, url)
    transport.send(WSMsgType.TEXT, "still")
    await client.frame()
    waiting = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    transport.disconnect()
    await asyncio.wait_for(waiting, TIMEOUT)


@pytest.mark.parametrize("way", ["close_clients", "abort_clients"])
async def test_ending_the_clients(way, contexts, io_options):
    listeners = []

    def accept(request):
        listeners.append(Recorder())
        return listeners[-1]

    server = await ws_create_server(
        accept, "127.0.0.1", 0, ssl=contexts and contexts.server, **io_options
    )
    scheme = "wss" if contexts else "ws"
    url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    clients = [
        await ws_connect(
            Recorder, url, ssl_context=contexts and contexts.client, enable_auto_close=True
        )
        for _ in range(3)
    ]
    # One that is still in its handshake.
    _, writer = await asyncio.open_connection("127.0.0.1", picows_fast.parse_url(url).port)
    await asyncio.sleep(0.01)
    server.close()
    getattr(server, way)()
    await asyncio.wait_for(server.wait_closed(), TIMEOUT)
    for transport, client in clients:
        await client.closed()
        if way == "close_clients":
            assert transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME
            assert transport.close_handshake.recv.code == WSCloseCode.GOING_AWAY
        else:
            assert transport.disconnect_cause in (
                WSDisconnectCause.PEER_FIN,
                WSDisconnectCause.PEER_RESET,
                WSDisconnectCause.TLS_TRUNCATED,
            )
    assert all(listener.events.count("disconnected") == 1 for listener in listeners)
    writer.close()


async def test_serve_forever(io_options):
    server = await ws_create_server(
        lambda request: Echo(), "127.0.0.1", 0, start_serving=False, **io_options
    )
    assert not server.is_serving()
    port = server.sockets[0].getsockname()[1]
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0.01)
    assert server.is_serving()
    transport, client = await ws_connect(Recorder, f"ws://127.0.0.1:{port}/")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, TIMEOUT)
    await client.closed()
    assert transport.is_disconnected


async def test_start_serving_later(io_options):
    async with await ws_create_server(
        lambda request: Echo(), "127.0.0.1", 0, start_serving=False, **io_options
    ) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        # As with asyncio: the address is taken, and nobody waits there for an answer.
        with pytest.raises(ConnectionRefusedError):
            await ws_connect(Recorder, url)
        await server.start_serving()
        await server.start_serving()
        await check_echo(url)


@needs.second_loopback
async def test_several_hosts(io_options):
    hosts = ["127.0.0.1", "127.0.0.2"]
    async with await ws_create_server(lambda request: Echo(), hosts, 0, **io_options) as server:
        names = [sock.getsockname() for sock in server.sockets]
        assert sorted(name[0] for name in names) == hosts
        for host, port in names:
            await check_echo(f"ws://{host}:{port}/", **io_options)


@needs.reuse_port
async def test_reuse_port(io_options):
    async with await ws_create_server(
        lambda request: Echo(), "127.0.0.1", 0, reuse_port=True, **io_options
    ) as first:
        port = first.sockets[0].getsockname()[1]
        async with await ws_create_server(
            lambda request: Echo(), "127.0.0.1", port, reuse_port=True, **io_options
        ):
            for _ in range(4):
                await check_echo(f"ws://127.0.0.1:{port}/", **io_options)
        with pytest.raises(OSError, match=str(port)):
            await ws_create_server(lambda request: Echo(), "127.0.0.1", port)


async def test_keep_alive(io_options):
    listener = Recorder()
    async with serving(lambda request: listener, keep_alive=True, **io_options) as url:
        transport, client = await ws_connect(Recorder, url)
        await listener.until(lambda: listener.transport)
        sock = listener.transport.underlying_transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.disconnect(graceful=False)
        await client.closed()


async def test_sock(io_options):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with await ws_create_server(lambda request: Echo(), sock=sock, **io_options) as server:
        assert server.sockets == (sock,)
        await check_echo(f"ws://127.0.0.1:{port}/", **io_options)
    assert sock.fileno() == -1


async def test_unix_path(tmp_path, io_options):
    path = tmp_path / "socket"
    for given in (path, str(path), os.fsencode(path)):
        async with await ws_create_server(
            lambda request: Echo(),
            unix_path=given,
            **io_options,
        ):
            await check_echo("ws://localhost/", unix_path=path, **io_options)
            for _ in range(3):
                await check_echo("ws://localhost/", unix_path=path, **io_options)
        assert not path.exists()


async def test_tls_garbage_is_no_error(server_tls, client_tls, io_options, caplog):
    async with serving(
        lambda request: Echo(), tls=server_tls, close_timeout=0.2, **io_options
    ) as url:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x80" * 50):
            with contextlib.suppress(ConnectionError):
                await ask(url, garbage)
        await check_echo(url, ssl_context=client_tls)
    assert not caplog.records


async def test_many_clients(io_options):
    async with serving(lambda request: Echo(), **io_options) as url:
        connected = await asyncio.gather(*(ws_connect(Recorder, url) for _ in range(100)))
        for i, (transport, _) in enumerate(connected):
            transport.send(WSMsgType.TEXT, str(i))
        for i, (_, client) in enumerate(connected):
            assert (await client.frame())[1] == b"%d" % i
        for transport, _ in connected:
            transport.disconnect()
        for _, client in connected:
            await client.closed()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ssl": True}, TypeError),
        ({"backlog": 0}, ValueError),
        ({"max_frame_size": -1}, ValueError),
        ({"auto_ping_strategy": 7}, ValueError),
        ({"close_timeout": None}, TypeError),
        ({"ssl_context": ssl.create_default_context()}, TypeError),
        ({"extra_headers": {}}, TypeError),
        ({"reuse_port": 1}, TypeError),
    ],
)
async def test_bad_settings(options, error):
    with pytest.raises(error, match=next(iter(options))):
        await ws_create_server(lambda request: Echo(), "127.0.0.1", 0, **options)


async def test_where_to_listen_is_asked_for():
    with pytest.raises(ValueError, match="exactly one"):
        await ws_create_server(lambda request: Echo())


async def test_abrupt_ends_while_serving_continue(io_options):
    """Connections that come and go in all states leave nothing with the server."""
    server = await ws_create_server(
        lambda request: Echo(), "127.0.0.1", 0, close_timeout=0.2, **io_options
    )
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    for i in range(10):
        reader, writer = await raw_client(url)
        writer.write(client_frame(WSMsgType.TEXT, b"x" * 1000)[: 100 * i])
        if i % 2:
            writer.transport.abort()
        else:
            writer.write_eof()
            await reader.read()
        writer.close()
    server.close()
    await asyncio.wait_for(server.wait_closed(), TIMEOUT)


async def test_options_as_an_object():
    options = picows_fast.ServerOptions(subprotocols=["v2"])
    for _ in range(2):
        server = await picows_fast.serve(lambda request: Echo(), "127.0.0.1", 0, options)
        port = server.sockets[0].getsockname()[1]
        transport = await check_echo(f"ws://127.0.0.1:{port}/", subprotocols=["v2"])
        assert transport.subprotocol == "v2"
        server.close()
        await server.wait_closed()
    server = await picows_fast.serve(lambda request: None, "127.0.0.1")
    server.close()
    await server.wait_closed()
    for wrong in ({"backlog": 5}, picows_fast.ClientOptions()):
        with pytest.raises(TypeError, match=r"options of serve\(\) must be ServerOptions or None"):
            await picows_fast.serve(lambda request: None, "127.0.0.1", 0, wrong)
