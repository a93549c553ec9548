"""The opening handshake against peers that are sloppy, silent, gone, or lying."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct

import pytest

import picows_fast
from picows_fast import (
    WSHandshakeError,
    WSInvalidHeaderError,
    WSInvalidMessageError,
    WSListener,
    WSMsgType,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)

from .. import needs
from ..proxies import Proxy
from ..support import (
    Echo,
    Recorder,
    accept_response,
    address,
    open_descriptors,
    raw_server,
    read_head,
    serving,
    until,
)

SECRET = "hunter2 at /srv/book.py"


async def connect(url: str, factory=Recorder, **options):
    return await asyncio.wait_for(picows_fast.ws_connect(factory, url, **options), 20)


async def http(url: str, request: bytes) -> bytes:
    """What a server answers to these bytes, until the end or the first frame."""
    reader, writer = await asyncio.open_connection(*address(url))
    try:
        writer.write(request)
        head = await asyncio.wait_for(read_head(reader), 20)
        if b" 101 " in head:
            return head
        return head + await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(**headers: str) -> bytes:
    """An upgrade request; a header given as an empty string is left out."""
    fields = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    return "\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode()


@contextlib.asynccontextmanager
async def recording_server(*responses: bytes):
    """A server that answers the n-th request with the n-th response, then upgrades; gives (URL,
    heads seen)."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        heads.append(head)
        if len(heads) <= len(responses):
            writer.write(responses[len(heads) - 1])
        else:
            writer.write(accept_response(head))
            await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        yield url, heads


# --- What is let through into headers, and to whom


@pytest.mark.parametrize(
    "header",
    [
        ("X-Account", "1\r\nX-Evil: 1"),
        ("X-Account", "1\nX-Evil: 1"),
        ("X-Account", "1\rX-Evil: 1"),
        ("X-Account", "1\0"),
        ("X-Account: 1\r\nX-Evil", "1"),
        ("Host", "localhost\r\nX-Evil: 1"),
    ],
)
async def test_no_header_is_injected_by_a_client(header):
    """CR, LF or NUL in extra_headers is refused with ValueError, and no request goes out."""
    async with recording_server() as (url, heads):
        with pytest.raises(ValueError):
            await connect(url, extra_headers=[header])
        assert heads == []


@pytest.mark.parametrize(
    "target", ["/?a=1\r\nX-Evil: 1", "/\nX-Evil: 1", "/ HTTP/1.1\r\nX-Evil: 1"]
)
async def test_no_header_is_injected_by_a_url(target):
    """A URL with CR, LF or a space does not reach the wire as one."""
    async with recording_server() as (url, heads):
        with contextlib.suppress(ValueError):
            transport, _ = await connect(url.rstrip("/") + target)
            transport.disconnect()
        assert all(b"\nX-Evil" not in head and b"\rX-Evil" not in head for head in heads)


RESPONSES = {
    "101": lambda header: WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_101_response([header]), WSListener()
    ),
    "200": lambda header: WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_ok_response(b"", [header]), None
    ),
    "error": lambda header: WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_error_response(403, b"", [header]), None
    ),
    "redirect": lambda header: WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_redirect_response(302, "ws://a/" + header[1]), None
    ),
}


@pytest.mark.parametrize("value", ["1\r\nX-Evil: 1", "1\nX-Evil: 1", "1\rX-Evil: 1"])
@pytest.mark.parametrize("kind", RESPONSES)
async def test_no_header_is_injected_by_a_server(kind, value, io_options):
    """CR or LF in a header of a response is refused: the client gets a plain 500."""
    async with serving(lambda request: RESPONSES[kind](("X-Account", value)), **io_options) as url:
        answer = await http(url, request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"X-Evil" not in answer


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


CREDENTIALS = {
    "Authorization": "Bearer hunter2",
    "Cookie": "session=hunter2",
    "Proxy-Authorization": "Basic hunter2",
}


@pytest.mark.parametrize("given_as", ["headers", "URL"])
async def test_credentials_do_not_follow_a_redirect_to_another_host(given_as):
    """What the caller gave, and the URL's own credentials, are sent to the host they were meant for
    only."""
    async with recording_server() as (other, other_heads):
        other = other.replace("127.0.0.1", "localhost")
        async with recording_server(redirect(other)) as (url, heads):
            if given_as == "URL":
                url = url.replace("//", "//user:hunter2@")
                transport, _ = await connect(url, extra_headers={"X-Account": "1"})
            else:
                transport, _ = await connect(url, extra_headers={**CREDENTIALS, "X-Account": "1"})
            transport.disconnect()
    assert b"\r\nAuthorization: " in heads[0]
    assert b"X-Account: 1\r\n" in heads[0]
    assert b"X-Account" not in other_heads[0]
    assert b"hunter2" not in other_heads[0]
    assert b"Authorization" not in other_heads[0]


async def test_credentials_follow_a_redirect_within_the_host():
    """A redirect to another path of the same server keeps them."""
    async with recording_server(redirect("/v2")) as (url, heads):
        transport, _ = await connect(url, extra_headers=CREDENTIALS)
        transport.disconnect()
    assert heads[1].startswith(b"GET /v2 HTTP/1.1\r\n")
    assert b"Authorization: Bearer hunter2\r\n" in heads[1]


async def test_credentials_of_the_url_are_not_in_host():
    """User name and password of the URL become Authorization; Host names host and port only."""
    async with recording_server() as (url, heads):
        transport, _ = await connect(url.replace("//", "//user:p%40ss@"))
        transport.disconnect()
        authority = url.removeprefix("ws://").rstrip("/").encode()
    assert re.findall(rb"\r\nHost: ([^\r]*)\r\n", heads[0]) == [authority]
    assert b"Authorization: Basic dXNlcjpwQHNz\r\n" in heads[0]
    assert b"user" not in heads[0].split(b"\r\n")[0]


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, WSHandshakeError])
async def test_the_text_of_a_factorys_error_is_not_sent(error, io_options, caplog):
    """A server's factory that raises gives the client a plain 500; the error's text stays here."""

    def factory(request):
        raise error(SECRET)

    async with serving(factory, **io_options) as url:
        answer = await http(url, request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"hunter2" not in answer
    assert b"book.py" not in answer
    assert SECRET in caplog.text


# --- Connection is a list of tokens


CONNECTION = ["keep-alive, Upgrade", "Upgrade, keep-alive", "keep-alive,upgrade", "x , UPGRADE ,y"]


@pytest.mark.parametrize("value", CONNECTION)
async def test_connection_of_a_request_is_a_token_list(value, io_options):
    """A request with `Connection: keep-alive, Upgrade`, as browsers send it, is accepted."""
    async with serving(lambda request: WSListener(), **io_options) as url:
        answer = await http(url, request(Connection=value))
    assert answer.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("value", CONNECTION)
async def test_connection_of_a_response_is_a_token_list(value, io_options):
    """The same in a response."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = accept_response(await read_head(reader))
        writer.write(head.replace(b"Connection: Upgrade", b"Connection: " + value.encode()))
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        transport, _ = await connect(url, **io_options)
        transport.disconnect()


@pytest.mark.parametrize("value", ["keep-alive", "Upgraded", "keep-alive Upgrade", ""])
async def test_connection_without_the_token_is_refused(value, io_options):
    """A Connection header whose tokens do not include upgrade is refused still."""
    async with serving(lambda request: WSListener(), **io_options) as url:
        answer = await http(url, request(Connection=value))
    assert not answer.startswith(b"HTTP/1.1 101 ")


# --- Servers that go away


BEGINNINGS = [b"", b"H", b"HTTP/1.1 101 Switching Protocols\r\nUpgr", "all but the last byte"]


@pytest.mark.parametrize("ending", ["FIN", "RST"])
@pytest.mark.parametrize("is_secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("sent", BEGINNINGS)
async def test_a_server_that_goes_away_before_or_during_its_response(
    sent, is_secure, ending, io_options, server_tls, client_tls
):
    """ws_connect raises when the connection ends before the response is complete, in whatever
    way."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        writer.write(accept_response(head)[:-1] if isinstance(sent, str) else sent)
        await writer.drain()
        if ending == "RST":
            sock = writer.get_extra_info("socket")
            with socket.socket(fileno=os.dup(sock.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    listeners = []

    def factory():
        listeners.append(Recorder())
        return listeners[-1]

    async with raw_server(answer, tls=server_tls if is_secure else None, upgrade=False) as url:
        options = {"ssl_context": client_tls} if is_secure else {}
        with pytest.raises((WSInvalidMessageError, OSError)) as caught:
            await connect(url, factory, **options, **io_options)
        assert not isinstance(caught.value, TimeoutError)
    assert listeners == []


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"\0" * 70000]
)
async def test_a_server_that_does_not_wait_for_the_request(said, io_options):
    """The same for a server that closes at once, or speaks before it was asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises((WSHandshakeError, ConnectionError)):
            await connect(url, **io_options)


@needs.descriptor_list
async def test_a_connect_that_fails_before_tls_leaves_nothing_open(
    io_options, server_tls, client_tls
):
    """An error between TCP and TLS, as for a TLS session of another context, closes the socket."""
    other = ssl.create_default_context()
    other.load_verify_locations(
        cadata="".join(map(ssl.DER_cert_to_PEM_cert, client_tls.get_ca_certs(True)))
    )
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        transport, _ = await connect(url, ssl_context=other, **io_options)
        session = transport.ssl_session
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()
        ours = asyncio.current_task()
        # Before Python 3.12, waiting with a timeout is a task of its own.
        await until(lambda: asyncio.all_tasks() <= {ours, asyncio.current_task()})
        baseline = open_descriptors()
        for _ in range(3):
            with pytest.raises(ValueError):
                await connect(url, ssl_context=client_tls, ssl_session=session, **io_options)
        await until(lambda: open_descriptors() <= baseline)


# --- Giving up


@contextlib.asynccontextmanager
async def route(kind: str, server_tls, client_tls, **proxy_settings):
    """An echo server of ours to reach in this way; gives (URL, options of ws_connect)."""
    over_tls = kind in ("wss", "wss through http", "wss through https")
    through = kind.rpartition(" ")[2] if "through" in kind else None
    async with contextlib.AsyncExitStack() as stack:
        server = serving(lambda request: Echo(), tls=server_tls if over_tls else None)
        url = await stack.enter_async_context(server)
        options = {"ssl_context": client_tls} if over_tls else {}
        if through is not None:
            proxy = Proxy(
                "http" if through == "https" else through,
                ssl_context=server_tls if through == "https" else None,
                **proxy_settings,
            )
            await stack.enter_async_context(proxy)
            options.update(proxy=proxy.url(), proxy_ssl_context=client_tls)
        yield url, options


KINDS = [
    "ws",
    "wss",
    "ws through http",
    "ws through socks5",
    "wss through http",
    "wss through https",
]


@needs.descriptor_list
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_connect_leaves_nothing_open(kind, io_options, server_tls, client_tls):
    """ws_connect may be cancelled at any moment: no descriptor stays open, here or at the
    server."""
    async with route(kind, server_tls, client_tls) as (url, options):
        transport, _ = await connect(url, **options, **io_options)
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()
        ours = asyncio.current_task()
        # Before Python 3.12, waiting with a timeout is a task of its own.
        await until(lambda: asyncio.all_tasks() <= {ours, asyncio.current_task()})
        baseline = open_descriptors()
        turns = 0
        while True:
            task = asyncio.ensure_future(
                picows_fast.ws_connect(Recorder, url, **options, **io_options)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                transport, _ = task.result()
                transport.disconnect(graceful=False)
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: open_descriptors() <= baseline)
            turns += 1
        await until(lambda: open_descriptors() <= baseline)
        assert turns > 2


async def test_a_connect_cancelled_at_the_last_moment_tells_the_listener(io_options):
    """Cancelled when the listener has been connected already, ws_connect closes the connection, and
    the listener hears of it."""
    made = []

    class Listener(Recorder):
        def on_ws_connected(self, transport):
            super().on_ws_connected(transport)
            task.cancel()

    def factory():
        made.append(Listener())
        return made[0]

    async with serving(lambda request: Echo(), **io_options) as url:
        task = asyncio.ensure_future(picows_fast.ws_connect(factory, url, **io_options))
        with pytest.raises(asyncio.CancelledError):
            await task
        await made[0].closed()
    assert made[0].events == ["connected", "disconnected"]


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.Event().wait()


SILENT = ["ws", "wss", "http", "https", "socks4", "socks5"]


@needs.descriptor_list
@pytest.mark.parametrize("place", SILENT)
async def test_the_deadline_covers_a_silent_server_or_proxy(place, io_options):
    """A server, or a proxy, that accepts and says nothing costs websocket_handshake_timeout: TLS
    and the proxy are inside of it, and nothing stays open."""
    async with raw_server(silence, upgrade=False) as url:
        baseline = open_descriptors()
        options = {}
        if place in ("ws", "wss"):
            url = url.replace("ws", place)
        else:
            url, options["proxy"] = "ws://127.0.0.1:9/", url.replace("ws", place)
        with pytest.raises(asyncio.TimeoutError):
            await picows_fast.ws_connect(
                Recorder, url, websocket_handshake_timeout=0.1, **options, **io_options
            )
        # The end of the connection that the silent server holds is not ours.
        await until(lambda: open_descriptors() <= baseline + 1)


@needs.descriptor_list
@pytest.mark.parametrize("kind", ["wss through http", "wss through https"])
async def test_the_deadline_covers_tls_behind_a_proxy(kind, io_options, server_tls, client_tls):
    """The same for a target that is silent behind a proxy that works."""
    through = kind.rpartition(" ")[2]
    tls = server_tls if through == "https" else None
    async with raw_server(silence, upgrade=False) as url, Proxy("http", ssl_context=tls) as proxy:
        with pytest.raises(asyncio.TimeoutError):
            await picows_fast.ws_connect(
                Recorder,
                url.replace("ws", "wss"),
                proxy=proxy.url(),
                proxy_ssl_context=client_tls,
                websocket_handshake_timeout=0.2,
                **io_options,
            )


async def test_the_deadline_is_for_the_whole_handshake(io_options):
    """A server that sends its response a byte at a time does not put the deadline off."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nX-Drip: ")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    async with raw_server(drip, upgrade=False) as url:
        with pytest.raises(asyncio.TimeoutError):
            await picows_fast.ws_connect(
                Recorder, url, websocket_handshake_timeout=0.15, **io_options
            )


async def test_the_deadline_is_for_all_redirects(io_options):
    """A server that redirects for ever, slowly, does not put the deadline off either."""

    async def again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(redirect("/"))

    async with raw_server(again, upgrade=False) as url:
        with pytest.raises(asyncio.TimeoutError):
            await picows_fast.ws_connect(
                Recorder, url, websocket_handshake_timeout=0.15, max_redirects=1000, **io_options
            )


# --- What nobody asked for


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        (b"Sec-WebSocket-Protocol: chat\r\n", {}),
        (b"Sec-WebSocket-Protocol: chat\r\n", {"subprotocols": ["superchat"]}),
        (b"Sec-WebSocket-Protocol: chat, superchat\r\n", {"subprotocols": ["superchat", "chat"]}),
        (b"Sec-WebSocket-Extensions: permessage-deflate\r\n", {}),
        (b"Sec-WebSocket-Extensions: x-unknown; a=1\r\n", {}),
    ],
)
async def test_what_was_not_asked_for_is_refused(extra, options, io_options):
    """A response that selects a subprotocol or an extension which the client did not offer fails
    the handshake (RFC 6455 4.1)."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accept_response(await read_head(reader), extra))
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(WSInvalidHeaderError) as caught:
            await connect(url, **options, **io_options)
    assert caught.value.name == extra.partition(b":")[0].decode()


async def test_a_server_declines_what_it_does_not_speak(io_options):
    """A server selects neither a subprotocol nor an extension that it was not told to speak."""
    async with serving(lambda request: WSListener(), **io_options) as url:
        answer = await http(
            url,
            request(Sec_WebSocket_Protocol="chat", Sec_WebSocket_Extensions="permessage-deflate"),
        )
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Protocol" not in answer
    assert b"Sec-WebSocket-Extensions" not in answer


@pytest.mark.parametrize("version", ["8", "12", "14", "0", "1", "255"])
async def test_another_version_gets_426(version, io_options):
    """A client of another WebSocket version is told by 426 which one is spoken (RFC 6455 4.4)."""
    async with serving(lambda request: WSListener(), **io_options) as url:
        answer = await http(url, request(Sec_WebSocket_Version=version))
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer


# --- Factories


async def test_a_clients_factory_is_called_once(io_options):
    """A factory that raises TypeError is called once, and its error is what ws_connect raises."""
    calls = []

    def without_arguments():
        calls.append(())
        raise TypeError(SECRET)

    def with_both(request, response):
        calls.append((request, response))
        raise TypeError(SECRET)

    def with_optional(request=None, response=None):
        calls.append((request, response))
        raise TypeError(SECRET)

    async with serving(lambda request: Echo(), **io_options) as url:
        for factory in (without_arguments, with_both, with_optional):
            calls.clear()
            with pytest.raises(TypeError, match=SECRET):
                await connect(url, factory, **io_options)
            assert len(calls) == 1


async def test_a_servers_factory_is_called_once(io_options, caplog):
    """The same for a server's factory: one call for one request."""
    calls = []

    def factory(request):
        calls.append(request)
        raise TypeError(SECRET)

    async with serving(factory, **io_options) as url:
        answer = await http(url, request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert len(calls) == 1


# --- Unix sockets


@pytest.mark.parametrize("given_as", ["unix_path", "sock"])
async def test_a_server_on_a_unix_socket(given_as, tmp_path, io_options):
    """A server on a Unix socket serves one connection after the other, and several at once."""
    path = str(tmp_path / "ws")
    if given_as == "sock":
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        place = {"sock": listening}
    else:
        place = {"unix_path": path}
    server = await picows_fast.ws_create_server(lambda request: Echo(), **place, **io_options)
    try:
        for _ in range(2):
            streams = [await asyncio.open_unix_connection(path) for _ in range(2)]
            for reader, writer in streams:
                writer.write(request() + picows_fast.build_frame(WSMsgType.TEXT, "hi", mask=True))
                assert (await read_head(reader)).startswith(b"HTTP/1.1 101 ")
                assert await reader.readexactly(4) == b"\x81\x02hi"
            for _, writer in streams:
                writer.close()
                await writer.wait_closed()
    finally:
        server.close()
        server.abort_clients()
        await asyncio.wait_for(server.wait_closed(), 20)


@pytest.mark.parametrize("given_as", ["unix_path", "socket_factory", "sock"])
async def test_a_client_on_a_unix_socket(given_as, tmp_path, io_options):
    """A client connects through a Unix socket, sends, receives and ends."""
    path = str(tmp_path / "ws")

    def connected(url=None) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        return sock

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accept_response(await read_head(reader)) + b"\x81\x02hi")
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        if given_as == "unix_path":
            place = {"unix_path": path}
        else:
            place = {given_as: connected if given_as == "socket_factory" else connected()}
        transport, listener = await connect("ws://localhost/", **place, **io_options)
        assert (await listener.frame())[1] == b"hi"
        transport.disconnect()
        await asyncio.wait_for(transport.wait_disconnected(), 20)
