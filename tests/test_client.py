"""ws_connect: from a URL to an open connection, and every way that this fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import http
import os
import pickle
import socket
import ssl
import struct

import pytest
import trustme

import picows_fast
from picows_fast import (
    ClientOptions,
    Negotiated,
    ServerOptions,
    WSError,
    WSHandshakeError,
    WSInvalidHeaderError,
    WSInvalidMessageError,
    WSInvalidStatusError,
    WSInvalidUpgradeError,
    WSInvalidURL,
    WSListener,
    WSMsgType,
    WSProxyError,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    connect,
    ws_connect,
)
from picows_fast.layers.messages import WSMessageListener

from .peers import TIMEOUT, connect_socket
from .proxies import Proxy
from .support import (
    Echo,
    Recorder,
    accept_response,
    address,
    check_echo,
    client_frame,
    free_port,
    raw_client,
    raw_server,
    read_frame,
    read_head,
    serving,
    until,
)

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def fields(head):
    """The headers of a request, as a list of pairs."""
    lines = head.decode().split("\r\n")[1:-2]
    return [tuple(line.split(": ", 1)) for line in lines]


@contextlib.asynccontextmanager
async def scripted(*responses, tls=None):
    """A server that answers request after request with these bytes; gives (URL, request heads).

    A response of None upgrades the connection.
    """
    heads = []
    script = list(responses)

    async def answer(reader, writer):
        head = await read_head(reader)
        heads.append(head)
        response = script.pop(0)
        writer.write(accept_response(head) if response is None else response)
        if response is None:
            await reader.read()

    async with raw_server(answer, tls=tls, upgrade=False) as url:
        yield url, heads


def redirect(location, status=302):
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


# --- The request


async def test_request_and_response_are_kept(io_options):
    seen = []

    def accept(request):
        seen.append(request)
        return Echo()

    async with serving(accept, **io_options) as url:
        transport = await check_echo(
            url + "path?x=1&y=%20z", extra_headers={"X-Mine": "1"}, **io_options
        )
    (request,) = seen
    assert request.path == transport.request.path == b"/path?x=1&y=%20z"
    assert request.method == b"GET"
    assert request.version == b"HTTP/1.1"
    assert request.headers["X-Mine"] == "1"
    assert dict(request.headers) == dict(transport.request.headers)
    assert transport.response.status == http.HTTPStatus.SWITCHING_PROTOCOLS
    assert transport.response.headers["upgrade"].lower() == "websocket"
    assert transport.response.body is None


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "1", "Host": "example.org:99"},
        [("X-A", "1"), ("X-A", "2")],
        (pair for pair in [("X-A", "1"), ("X-A", "2")]),
        {"Authorization": "Bearer t", "Cookie": "a=b", "Origin": "https://example.org"},
    ],
    ids=["mapping", "repeated", "generator", "known names"],
)
async def test_extra_headers(headers):
    if not isinstance(headers, (dict, list)):
        headers = [("X-A", "1"), ("X-A", "2")]
        given = (pair for pair in headers)
    else:
        given = headers
    async with scripted(None) as (url, heads):
        transport, _ = await ws_connect(Recorder, url, extra_headers=given)
        transport.disconnect(graceful=False)
    sent = fields(heads[0])
    for pair in headers.items() if isinstance(headers, dict) else headers:
        assert pair in sent
    assert [name for name, _ in sent].count("Host") == 1


async def test_credentials_of_the_url():
    async with scripted(None) as (url, heads):
        transport, _ = await ws_connect(Recorder, url.replace("://", "://us%40er:p%3Ass@"))
        transport.disconnect(graceful=False)
    wanted = base64.b64encode(b"us@er:p:ss").decode()
    assert ("Authorization", f"Basic {wanted}") in fields(heads[0])


async def test_subprotocols(io_options):
    async with serving(lambda request: Echo(), subprotocols=["v2", "v1"], **io_options) as url:
        transport = await check_echo(url, subprotocols=["v1", "v2"], **io_options)
        assert transport.subprotocol == "v2"
        assert transport.negotiated == Negotiated(subprotocol="v2")
        transport = await check_echo(url, subprotocols=("v0", "v1"), **io_options)
        assert transport.subprotocol == "v1"
        transport = await check_echo(url, subprotocols=["v0"], **io_options)
        assert transport.subprotocol is None
        transport = await check_echo(url, **io_options)
        assert transport.subprotocol is None


# --- Factories


async def test_factory_without_arguments():
    async with serving(lambda request: Echo()) as url:
        await check_echo(url, Recorder)
        await check_echo(url, lambda: Recorder())
        await check_echo(url, functools.partial(Recorder))


async def test_factory_with_request_and_response():
    seen = []

    def factory(request, response):
        seen.append((request, response))
        return Recorder()

    class Method:
        def make(self, request, response):
            return factory(request, response)

        def __call__(self, request, response):
            return factory(request, response)

    async with serving(lambda request: Echo()) as url:
        for one in (factory, Method().make, Method(), functools.partial(factory)):
            transport = await check_echo(url, one)
            assert seen[-1] == (transport.request, transport.response)
    assert isinstance(seen[0][0], WSUpgradeRequest)
    assert isinstance(seen[0][1], WSUpgradeResponse)


class NeedsNothing(Recorder):
    def __init__(self, first=1, *rest, key=None):
        super().__init__()
        self.made_from = (first, *rest)


class NeedsBoth(Recorder):
    def __init__(self, request, response):
        super().__init__()
        self.made_from = (request, response)


class TakesAnything(Recorder):
    def __new__(cls, *arguments):
        made = super().__new__(cls)
        made.made_from = arguments
        return made

    def __init__(self, *arguments):
        super().__init__()


class Maker:
    @classmethod
    def of_class(cls, request, response=None):
        return NeedsBoth(request, response)

    @staticmethod
    def of_none(*arguments):
        return NeedsNothing(*arguments)


@functools.wraps(NeedsBoth)
def wrapping(*arguments):
    return NeedsBoth(*arguments)


@pytest.mark.parametrize(
    ("factory", "count"),
    [
        (NeedsNothing, 0),
        (NeedsBoth, 2),
        (TakesAnything, 0),
        (Maker.of_class, 2),
        (Maker().of_none, 0),
        (wrapping, 2),
        (lambda request, response, more=None: NeedsBoth(request, response), 2),
        (lambda request, *rest: NeedsBoth(request, *rest), 2),
        (lambda *, key=None: NeedsNothing(), 0),
        (WSMessageListener, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_what_a_factory_is_called_with(factory, count):
    async with serving(lambda request: Echo()) as url:
        transport, listener = await ws_connect(factory, url)
        if count == 2:
            assert listener.made_from == (transport.request, transport.response)
        else:
            assert getattr(listener, "made_from", ()) in ((), (1,))
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


@pytest.mark.parametrize("result", [None, 5, WSListener, object()])
async def test_factory_that_returns_no_listener(result, io_options):
    async with serving(lambda request: Echo(), **io_options) as url:
        with pytest.raises(TypeError, match="WSListener"):
            await ws_connect(lambda: result, url, **io_options)


@pytest.mark.parametrize("error", [LookupError("mine"), TypeError("mine"), WSHandshakeError("no")])
async def test_factory_that_raises(error, io_options):
    def factory():
        raise error

    async with serving(lambda request: Echo(), **io_options) as url:
        with pytest.raises(type(error)) as caught:
            await ws_connect(factory, url, **io_options)
        assert caught.value is error


@pytest.mark.parametrize(
    "factory", [None, 5, lambda request: None, lambda a, b, c: None, lambda *, key: None]
)
async def test_bad_factories_are_refused_before_anything_is_opened(factory):
    with pytest.raises(TypeError, match="ws_listener_factory"):
        await ws_connect(factory, "ws://127.0.0.1:1/")


async def test_one_listener_for_many_connections():
    shared = Recorder()
    async with serving(lambda request: Echo()) as url:
        transports = [(await ws_connect(lambda: shared, url))[0] for _ in range(3)]
        for transport in transports:
            assert transport.listener is shared
            transport.disconnect(graceful=False)
        await shared.until(lambda: shared.events.count("disconnected") == 3)


# --- Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect(status):
    async with (
        serving(lambda request: Echo()) as target,
        scripted(redirect(target, status)) as (url, _),
    ):
        await check_echo(url)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/elsewhere?x=1", "/elsewhere?x=1"),
        ("below", "/a/below"),
        ("../up", "/up"),
        ("?q", "/a/b?q"),
        ("//{netloc}/same", "/same"),
        ("http://{netloc}/http", "/http"),
        ("/with#fragment", "/with"),
    ],
)
async def test_relative_redirects(location, path):
    responses = [b"", None]
    heads = []

    async def answer(reader, writer):
        head = await read_head(reader)
        heads.append(head)
        response = responses.pop(0)
        writer.write(accept_response(head) if response is None else response)
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        responses[0] = redirect(location.format(netloc=picows_fast.parse_url(url).netloc))
        transport, _ = await ws_connect(Recorder, url + "a/b?old", max_redirects=1)
        transport.disconnect(graceful=False)
    assert heads[1].split(b" ")[1].decode() == path


async def test_too_many_redirects():
    async with scripted(*[redirect("/again")] * 10) as (url, heads):
        with pytest.raises(WSError, match="more than 3 redirects"):
            await ws_connect(Recorder, url, max_redirects=3)
        assert len(heads) == 4
        heads.clear()
        with pytest.raises(WSInvalidStatusError) as caught:
            await ws_connect(Recorder, url, max_redirects=0)
        assert caught.value.response.status == 302
        assert len(heads) == 1


async def test_redirect_to_wss(server_tls, client_tls):
    async with (
        serving(lambda request: Echo(), tls=server_tls) as target,
        scripted(redirect(target)) as (url, _),
    ):
        keeps = ["ssl_context"]
        assert (await check_echo(url, ssl_context=client_tls, redirect_keeps=keeps)).is_secure


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/", "ws://", "javascript:x", "ws://a b/", "mailto:x@y"]
)
async def test_redirect_to_nowhere(location):
    async with scripted(redirect(location), redirect(location), redirect(location)) as (url, _):
        with pytest.raises((WSError, ValueError)):
            await ws_connect(Recorder, url, max_redirects=2)


async def test_redirect_without_a_location():
    async with scripted(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n") as (url, _):
        with pytest.raises(WSInvalidStatusError):
            await ws_connect(Recorder, url)


# What a client gives a server to be known by. Any name may be a key's.
GIVEN = {
    "Authorization": "secret",
    "Cookie": "id=secret",
    "Proxy-Authorization": "secret",
    "X-MBX-APIKEY": "secret",
    "x-anything": "secret",
    "Host": "secret.example",
    "Sec-WebSocket-Protocol": "token.secret",
    "Sec-WebSocket-Extensions": "x-secret",
}


async def test_nothing_that_was_given_crosses_an_origin():
    async with (
        scripted(None) as (target, target_heads),
        scripted(redirect(target), redirect(target)) as (url, heads),
    ):
        url = url.replace("://", "://user:secret@")
        transport, _ = await ws_connect(
            Recorder, url, extra_headers=GIVEN, user_agent="secret/1", ssl_session=None
        )
        transport.disconnect(graceful=False)
    assert b"secret" in heads[0]
    assert b"secret" not in target_heads[0].lower()
    assert dict(fields(target_heads[0]))["User-Agent"] == picows_fast.ClientOptions.user_agent


async def test_what_redirect_keeps_names_crosses_an_origin():
    keeps = ("x-mbx-apikey", "user-agent", "subprotocols")
    async with (
        scripted(None) as (target, target_heads),
        scripted(redirect(target)) as (url, _),
    ):
        transport, _ = await ws_connect(
            Recorder,
            url,
            extra_headers={"X-MBX-APIKEY": "key", "Cookie": "secret"},
            user_agent="feed/1",
            subprotocols=["v1", "v2"],
            redirect_keeps=keeps,
        )
        transport.disconnect(graceful=False)
    sent = dict(fields(target_heads[0]))
    assert (sent["X-MBX-APIKEY"], sent["User-Agent"]) == ("key", "feed/1")
    assert sent["Sec-WebSocket-Protocol"] == "v1, v2"
    assert "Cookie" not in sent


async def test_everything_stays_within_the_origin():
    async with scripted(redirect("/b"), None) as (url, heads):
        transport, _ = await ws_connect(
            Recorder,
            url.replace("://", "://user:secret@"),
            extra_headers={"X-KEY": "secret", "Cookie": "secret"},
            user_agent="feed/1",
            subprotocols=["token"],
        )
        transport.disconnect(graceful=False)

    def given(head):
        return [(name, value) for name, value in fields(head) if name != "Sec-WebSocket-Key"]

    assert given(heads[1]) == given(heads[0])
    assert heads[1].count(b"secret") == 2


async def test_user_agent_that_is_left_out_stays_so():
    async with (
        scripted(None) as (target, target_heads),
        scripted(redirect(target)) as (url, heads),
    ):
        transport, _ = await ws_connect(Recorder, url, user_agent=None)
        transport.disconnect(graceful=False)
    assert "User-Agent" not in dict(fields(heads[0])) | dict(fields(target_heads[0]))


@pytest.mark.parametrize("setting", ["subprotocols", "ssl_context", "unix_path"])
async def test_redirect_that_a_setting_forbids(setting, tmp_path, client_tls, server_tls):
    """Without the setting it would be another connection, with it, it would be given away."""
    reached = []

    async def stranger(reader, writer):
        reached.append(await reader.read(1))

    def redirecting(request):
        return WSUpgradeResponse.create_redirect_response(307, target)

    given = {
        "subprotocols": ["token"],
        "ssl_context": client_tls,
        "unix_path": tmp_path / "socket",
    }[setting]
    place = {"unix_path": given} if setting == "unix_path" else {"host": "127.0.0.1"}
    tls = server_tls if setting == "ssl_context" else None
    async with (
        raw_server(stranger, tls=tls, upgrade=False) as target,
        await picows_fast.ws_create_server(redirecting, **place) as server,
    ):
        url = "ws://localhost/"
        if setting != "unix_path":
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(WSError, match=setting) as caught:
            await ws_connect(Recorder, url, **{setting: given})
    assert not reached
    assert picows_fast.parse_url(target).origin in str(caught.value)
    assert isinstance(caught.value.__cause__, WSInvalidStatusError)


async def test_name_and_session_of_the_first_server_stay_there(authority, client_tls):
    names = []

    def context(name):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(made)
        made.sni_callback = lambda tls, sni, ctx: names.append(sni)
        return made

    def redirecting(request):
        return WSUpgradeResponse.create_redirect_response(307, target)

    async with (
        serving(lambda request: Echo(), tls=context("127.0.0.1")) as target,
        serving(redirecting, tls=context("first.example")) as url,
    ):
        # A session that the second server would take.
        session = (await check_echo(target, ssl_context=client_tls)).ssl_session
        assert session.has_ticket
        transport = await check_echo(
            url,
            ssl_context=client_tls,
            server_hostname="first.example",
            ssl_session=session,
            redirect_keeps=["ssl_context"],
        )
    assert names == [None, "first.example", None]
    assert not transport.underlying_transport.get_extra_info("ssl_object").session_reused


async def test_redirects_for_ever_say_that_a_cookie_was_set():
    cookie = redirect("/again").replace(b"\r\n", b"\r\nSet-Cookie: id=secret\r\n", 1)
    async with scripted(cookie, redirect("/again"), redirect("/again")) as (url, heads):
        with pytest.raises(WSError, match="more than 1 redirects; a cookie was set") as caught:
            await ws_connect(Recorder, url, max_redirects=1)
        assert "secret" not in str(caught.value)
        assert b"ookie" not in heads[1]
        for empty in (b"", b"Set-Cookie:\r\n"):
            again = redirect("/again").replace(b"Content", empty + b"Content", 1)
            async with scripted(again, again) as (other_url, _):
                with pytest.raises(WSError) as caught:
                    await ws_connect(Recorder, other_url, max_redirects=1)
                assert str(caught.value) == "more than 1 redirects"


async def test_an_empty_location_leads_nowhere():
    async with scripted(redirect("")) as (url, heads):
        with pytest.raises(WSInvalidStatusError):
            await ws_connect(Recorder, url)
    assert len(heads) == 1


async def test_a_given_socket_is_used_once():
    async with scripted(redirect("/b"), None) as (url, _):
        sock = await connect_socket(address(url))
        with pytest.raises(WSError, match="socket"):
            await ws_connect(Recorder, url, sock=sock)
        for _ in range(10):  # a transport of the loop's closes it in a later turn
            await asyncio.sleep(0)
        assert sock.fileno() == -1


# --- Proxies


@pytest.mark.parametrize("kind", ["http", "https", "socks4", "socks5"])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_proxies(kind, scheme, server_tls, client_tls, io_options):
    async with (
        serving(lambda request: Echo(), tls=server_tls if scheme == "wss" else None) as url,
        Proxy(
            "http" if kind == "https" else kind,
            ssl_context=server_tls if kind == "https" else None,
            credentials=("user", "pass") if kind != "socks4" else None,
        ) as proxy,
    ):
        user_info = "" if kind == "socks4" else "user:pass"
        transport = await check_echo(
            url,
            proxy=proxy.url(user_info=user_info),
            ssl_context=client_tls,
            proxy_ssl_context=client_tls,
            **io_options,
        )
        assert proxy.requests == [("127.0.0.1", picows_fast.parse_url(url).port)]
        assert transport.is_secure == (scheme == "wss")


@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
async def test_proxy_names_are_the_proxys_to_resolve(kind, server_tls, client_tls, authority):
    names = {"exchange.invalid": "127.0.0.1"}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("exchange.invalid").configure_cert(context)
    async with (
        serving(lambda request: Echo(), tls=context) as url,
        Proxy(
            "http" if kind == "https" else kind,
            names=names,
            ssl_context=server_tls if kind == "https" else None,
        ) as proxy,
    ):
        await check_echo(
            url.replace("127.0.0.1", "exchange.invalid"),
            proxy=proxy.url(),
            ssl_context=client_tls,
            proxy_ssl_context=client_tls,
        )


@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
async def test_large_payloads_through_a_proxy(kind, server_tls, client_tls):
    payload = os.urandom(2_000_000)
    async with (
        serving(lambda request: Echo(), tls=server_tls) as url,
        Proxy(
            "http" if kind == "https" else kind,
            ssl_context=server_tls if kind == "https" else None,
        ) as proxy,
    ):
        transport, client = await ws_connect(
            Recorder,
            url,
            proxy=proxy.url(),
            ssl_context=client_tls,
            proxy_ssl_context=client_tls,
        )
        transport.send(WSMsgType.BINARY, payload)
        assert (await client.frame())[1] == payload
        transport.disconnect()
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
@pytest.mark.parametrize("trouble", ["refuse", "close_early"])
async def test_proxy_that_refuses(kind, trouble, server_tls, client_tls):
    async with Proxy(
        "http" if kind == "https" else kind,
        ssl_context=server_tls if kind == "https" else None,
        **{trouble: True},
    ) as proxy:
        with pytest.raises(WSProxyError):
            await ws_connect(
                Recorder, "ws://127.0.0.1:1/", proxy=proxy.url(), proxy_ssl_context=client_tls
            )


async def test_redirect_through_a_proxy():
    async with (
        serving(lambda request: Echo()) as target,
        scripted(redirect(target)) as (url, _),
        Proxy("http") as proxy,
    ):
        await check_echo(url, proxy=proxy.url())
        assert len(proxy.requests) == 2


async def test_end_of_the_connection_through_an_https_proxy(server_tls, client_tls, caplog):
    """The loop's TLS has no half-open state; nothing is logged about that."""
    async with (
        serving(lambda request: server_side) as url,
        Proxy("http", ssl_context=server_tls) as proxy,
    ):
        server_side = Echo()
        transport, client = await ws_connect(
            Recorder, url, proxy=proxy.url(), proxy_ssl_context=client_tls
        )
        await server_side.until(lambda: server_side.transport)
        server_side.transport.disconnect()
        await client.closed()
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
    assert not caplog.records


# --- Sockets


@pytest.mark.parametrize("kind", ["connected", "unconnected", "none"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_socket_factory(kind, is_async, io_options):
    urls = []

    async def make(url):
        urls.append(url)
        if kind == "none":
            return None
        if kind == "unconnected":
            return socket.socket()
        return await connect_socket((url.host, url.port))

    def make_at_once(url):
        urls.append(url)
        if kind == "none":
            return None
        sock = socket.socket()
        if kind == "connected":
            sock.connect((url.host, url.port))
        return sock

    async with serving(lambda request: Echo(), **io_options) as url:
        await check_echo(url, socket_factory=make if is_async else make_at_once, **io_options)
        assert [given.url for given in urls] == [url]


async def test_sock(io_options, server_tls, client_tls):
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        sock = await connect_socket(address(url))
        transport = await check_echo(url, sock=sock, ssl_context=client_tls, **io_options)
        assert transport.is_secure
        assert sock.fileno() == -1


async def test_local_addr(io_options):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    peers = []

    class Noting(Echo):
        def on_ws_connected(self, transport):
            peers.append(transport.underlying_transport.get_extra_info("peername"))
            super().on_ws_connected(transport)

    async with serving(lambda request: Noting()) as url:
        await check_echo(url, local_addr=("127.0.0.1", port), **io_options)
    assert peers == [("127.0.0.1", port)]


async def test_unix_path(tmp_path, io_options, server_tls, client_tls):
    for tls, path in ((None, tmp_path / "plain"), (server_tls, tmp_path / "tls")):
        server = await picows_fast.ws_create_server(
            lambda request: Echo(), unix_path=path, ssl=tls, **io_options
        )
        async with server:
            await check_echo(
                "wss://localhost/" if tls else "ws://localhost/",
                unix_path=str(path),
                ssl_context=client_tls,
                **io_options,
            )
        assert not path.exists()


# --- TLS


async def test_server_hostname(authority, client_tls, io_options):
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("exchange.example").configure_cert(context)
    context.sni_callback = lambda tls, name, ctx: names.append(name)
    async with serving(lambda request: Echo(), tls=context, **io_options) as url:
        await check_echo(
            url, ssl_context=client_tls, server_hostname="exchange.example", **io_options
        )
        with pytest.raises(ssl.SSLCertVerificationError):
            await ws_connect(Recorder, url, ssl_context=client_tls, **io_options)
        with pytest.raises(ssl.SSLCertVerificationError):
            await ws_connect(
                Recorder, url, ssl_context=client_tls, server_hostname="other.example", **io_options
            )
    assert names == ["exchange.example", None, "other.example"]


@pytest.mark.parametrize(
    ("host", "given", "asked"),
    [
        ("exchange.example.", None, "exchange.example"),
        ("other.example", "exchange.example.", "exchange.example"),
        ("[::1%25lo]", None, None),
    ],
)
async def test_names_are_checked_without_final_dot_and_zone(
    host, given, asked, authority, client_tls, io_options
):
    names, hosts = [], []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("exchange.example", "::1").configure_cert(context)
    context.sni_callback = lambda tls, name, ctx: names.append(name)

    def accept(request):
        hosts.append(request.headers["Host"])
        return Echo()

    async with serving(accept, tls=context, **io_options) as url:
        there = address(url)
        await check_echo(
            f"wss://{host}:{there[1]}/",
            ssl_context=client_tls,
            server_hostname=given,
            socket_factory=lambda url: socket.create_connection(there),
            **io_options,
        )
    assert names == [asked]
    # RFC 9110 7.2: as the URL has it; RFC 6874 4: without the zone.
    assert hosts == [f"{host.replace('%25lo', '')}:{there[1]}"]


async def test_name_of_an_https_proxy_is_checked_without_its_final_dot(authority, client_tls):
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("proxy.example").configure_cert(context)
    context.sni_callback = lambda tls, name, ctx: names.append(name)
    async with (
        serving(lambda request: Echo()) as url,
        Proxy("http", ssl_context=context) as proxy,
    ):
        await check_echo(
            url,
            proxy=f"https://proxy.example.:{proxy.port}",
            proxy_ssl_context=client_tls,
            socket_factory=lambda url: socket.create_connection(("127.0.0.1", proxy.port)),
        )
    assert names == ["proxy.example"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_session_is_resumed(authority, version, io_options):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.minimum_version = client.maximum_version = version
    async with serving(lambda request: Echo(), tls=server, **io_options) as url:
        transport = await check_echo(url, ssl_context=client, **io_options)
        assert not transport.underlying_transport.get_extra_info("ssl_object").session_reused
        session = transport.ssl_session
        assert isinstance(session, ssl.SSLSession)
        for _ in range(2):
            transport = await check_echo(url, ssl_context=client, ssl_session=session, **io_options)
            assert transport.underlying_transport.get_extra_info("ssl_object").session_reused
            session = transport.ssl_session


async def test_client_certificate(authority, io_options):
    clients = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    server.verify_mode = ssl.CERT_REQUIRED
    clients.configure_trust(server)
    certificates = []

    class Noting(Echo):
        def on_ws_connected(self, transport):
            stream = transport.underlying_transport
            certificates.append(stream.get_extra_info("peercert"))
            super().on_ws_connected(transport)

    async with serving(lambda request: Noting(), tls=server, **io_options) as url:
        client = ssl.create_default_context()
        authority.configure_trust(client)
        # With TLS 1.3 the client's handshake is over before the server has refused.
        with pytest.raises((ssl.SSLError, WSHandshakeError, ConnectionError)):
            await ws_connect(Recorder, url, ssl_context=client, **io_options)
        clients.issue_cert("trader@example.org").configure_cert(client)
        await check_echo(url, ssl_context=client, **io_options)
    assert certificates[0]["subjectAltName"] == (("email", "trader@example.org"),)


async def test_alpn(authority, client_tls, io_options):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    server.set_alpn_protocols(["http/1.1"])
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(lambda request: Echo(), tls=server, **io_options) as url:
        transport = await check_echo(url, ssl_context=client, **io_options)
        tls = transport.underlying_transport.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"


async def test_plain_server_for_a_wss_url(client_tls, io_options):
    async with serving(lambda request: Echo(), **io_options) as url:
        with pytest.raises(ssl.SSLError):
            await ws_connect(
                Recorder, url.replace("ws:", "wss:"), ssl_context=client_tls, **io_options
            )


async def test_tls_server_for_a_ws_url(server_tls, io_options):
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        with pytest.raises((WSHandshakeError, ConnectionError)):
            await ws_connect(Recorder, url.replace("wss:", "ws:"), **io_options)


# --- Answers that are none


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", WSInvalidStatusError),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", WSInvalidUpgradeError),
        (
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            WSInvalidHeaderError,
        ),
        (
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
            WSInvalidHeaderError,
        ),
        (b"SSH-2.0-OpenSSH_9\r\n", WSInvalidMessageError),
        (b"\x15\x03\x01\x00\x02\x02\x28", WSInvalidMessageError),
        (b"HTTP/1.1 ", WSInvalidMessageError),
        (b"", WSInvalidMessageError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000, WSInvalidMessageError),
    ],
    ids=["200", "bare 101", "no accept", "wrong accept", "SSH", "TLS", "cut", "empty", "huge"],
)
async def test_wrong_responses(response, error, io_options):
    async def answer(reader, writer):
        await read_head(reader)
        writer.write(response)
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(error) as caught:
            await ws_connect(Recorder, url, **io_options)
        assert type(caught.value) is error


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
async def test_what_a_refusal_says(chunked, pieces, io_options):
    body = b'{"error": "rate limit"}'
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        sent = head + b"8\r\n" + body[:8] + b"\r\nf\r\n" + body[8:] + b"\r\n0\r\n\r\n"
    else:
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        sent = head + body

    async def answer(reader, writer):
        await read_head(reader)
        for i in range(0, len(sent), 1 if pieces else len(sent)):
            writer.write(sent[i : i + (1 if pieces else len(sent))])
            await asyncio.sleep(0)
        await reader.read()  # the client need not wait for the end of the connection

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(WSInvalidStatusError) as caught:
            await asyncio.wait_for(ws_connect(Recorder, url, **io_options), TIMEOUT)
    error = caught.value
    assert error.raw_header == head
    assert error.raw_body == body
    assert error.response.status == http.HTTPStatus.FORBIDDEN
    assert error.response.headers["retry-after"] == "5"
    assert error.response.body == body
    assert "403" in str(error)


async def test_limits_of_the_response():
    cookies = b"".join(b"Set-Cookie: a%d=%s\r\n" % (i, b"x" * 100) for i in range(200))

    async def answer(reader, writer):
        writer.write(accept_response(await read_head(reader), cookies))
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        for limits, text in (
            ({}, r"max_header_count \(128\)"),
            ({"max_head_size": 64 * 1024}, r"max_header_count \(128\)"),
            ({"max_header_count": 300}, r"max_head_size \(16384 bytes\)"),
            ({"max_head_size": 64 * 1024, "max_header_count": 300}, None),
        ):
            if text is None:
                transport, _ = await ws_connect(Recorder, url, **limits)
                assert len(transport.response.headers.getall("Set-Cookie")) == 200
                transport.disconnect(graceful=False)
            else:
                with pytest.raises(WSInvalidMessageError, match=text):
                    await ws_connect(Recorder, url, **limits)
    refusal = b"HTTP/1.1 403 No\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    for limits, size in (({}, 65536), ({"max_refusal_size": 5}, 5),
                         ({"max_refusal_size": 1 << 20}, 100_000)):  # fmt: skip
        async with scripted(refusal) as (url, _):
            with pytest.raises(WSInvalidStatusError) as caught:
                await ws_connect(Recorder, url, **limits)
        assert len(caught.value.raw_body) == size


@pytest.mark.parametrize("empty", ["", " ", " , ,"])
@pytest.mark.parametrize("side", ["client", "server"])
async def test_an_empty_extensions_header_allows_no_reserved_bits(side, empty, io_options):
    header = f"Sec-WebSocket-Extensions:{empty}\r\n".encode()

    async def answer(reader, writer):
        writer.write(
            accept_response(await read_head(reader), header)
            + picows_fast.build_frame(WSMsgType.TEXT, "hi", rsv1=True)
        )
        await reader.read()

    def accept(request):
        headers = {"Sec-WebSocket-Extensions": empty}
        response = WSUpgradeResponse.create_101_response(headers)
        return WSUpgradeResponseWithListener(response, server_side)

    if side == "client":
        async with raw_server(answer, upgrade=False) as url:
            offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
            transport, client = await ws_connect(Recorder, url, extra_headers=offer, **io_options)
            with pytest.raises(picows_fast.WSPeerProtocolError) as caught:
                await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        assert caught.value.violation is picows_fast.WSViolation.RSV_SET
        assert not client.frames
    else:
        server_side = Recorder()
        async with serving(accept, **io_options) as url:
            reader, writer = await raw_client(url, extra=header)
            writer.write(client_frame(WSMsgType.TEXT, b"hi", rsv1=True))
            message = await asyncio.wait_for(read_frame(reader), TIMEOUT)
            assert message == (WSMsgType.CLOSE, message[1])
            assert message[1][:2] == (1002).to_bytes(2, "big")
            writer.close()
        assert not server_side.frames


async def test_refusal_of_our_own_server(io_options):
    response = WSUpgradeResponse.create_error_response(429, b"slow down", {"Retry-After": "7"})
    async with serving(
        lambda request: WSUpgradeResponseWithListener(response, None), **io_options
    ) as url:
        with pytest.raises(WSInvalidStatusError) as caught:
            await ws_connect(Recorder, url, **io_options)
    assert caught.value.response.status == 429
    assert caught.value.raw_body == b"slow down"
    assert caught.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_response_in_pieces_with_frames_behind(size, io_options):
    frames = [picows_fast.build_frame(WSMsgType.TEXT, f"frame {i}") for i in range(10)]

    async def answer(reader, writer):
        data = accept_response(await read_head(reader)) + b"".join(frames)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await asyncio.sleep(0)
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        transport, client = await ws_connect(Recorder, url, **io_options)
        await client.frame(9)
        assert client.events[0] == "connected"
        assert [frame[1] for frame in client.frames] == [b"frame %d" % i for i in range(10)]
        transport.disconnect(graceful=False)
        await client.closed()


async def test_connection_that_is_over_before_ws_connect_returns(io_options):
    """Response, a frame and the end in one piece: the transport is returned, and is closed."""

    async def answer(reader, writer):
        head = await read_head(reader)
        writer.write(
            accept_response(head)
            + picows_fast.build_frame(WSMsgType.TEXT, "hi")
            + picows_fast.build_frame(
                WSMsgType.CLOSE, picows_fast.build_close_payload(1013, "try later")
            )
        )

    async with raw_server(answer, upgrade=False) as url:
        transport, client = await ws_connect(Recorder, url, **io_options)
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        assert client.events == ["connected", "frame", "frame", "disconnected"]
        assert transport.close_handshake.recv.code == 1013
        assert transport.close_handshake.recv.reason == "try later"


async def test_a_bad_frame_behind_the_response(io_options):
    async def answer(reader, writer):
        writer.write(accept_response(await read_head(reader)) + b"\xff" * 10)
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        transport, client = await ws_connect(Recorder, url, **io_options)
        with pytest.raises(picows_fast.WSPeerProtocolError):
            await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        assert client.events == ["connected", "disconnected"]


# --- Deadline, cancellation, errors


async def test_no_deadline(io_options):
    async def answer(reader, writer):
        head = await read_head(reader)
        await asyncio.sleep(0.02)
        writer.write(accept_response(head))
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        transport, client = await ws_connect(
            Recorder, url, websocket_handshake_timeout=None, **io_options
        )
        transport.disconnect(graceful=False)
        await client.closed()


PHASES = {
    "name": ("resolving", "while resolving 127.0.0.1"),
    "factory": ("connecting", "while connecting to {}"),
    "proxy": ("proxy", "while waiting for a tunnel through proxy {}"),
    "tls": ("tls", "in the TLS handshake with {}"),
    "accept": ("upgrade", "in the opening handshake with {}"),
    "tls accept": ("upgrade", "in the opening handshake with {}"),
    "response": ("upgrade", "in the opening handshake with {}"),
}


@pytest.mark.parametrize("place", PHASES)
async def test_deadline(place, io_options, server_tls, client_tls, monkeypatch):
    async def answer(reader, writer):
        if place == "tls":
            await reader.read()
        head = await read_head(reader)
        if place == "response":
            writer.write(accept_response(head)[:-2])
        await reader.read()

    async def slow(*arguments, **options):
        await asyncio.sleep(TIMEOUT)

    if place == "name":
        monkeypatch.setattr(picows_fast.client.dial, "_resolve", slow)
    tls = server_tls if place == "tls accept" else None
    async with raw_server(answer, tls=tls, upgrade=False) as url:
        server = address(url)
        if place == "proxy":
            url, proxy = "ws://exchange.example/", url.replace("ws:", "http:")
        with pytest.raises(asyncio.TimeoutError) as caught:
            await ws_connect(
                Recorder,
                url.replace("ws:", "wss:") if place == "tls" else url,
                # The last two steps begin behind a real TLS handshake.
                websocket_handshake_timeout=0.5 if place == "tls accept" else 0.05,
                socket_factory=slow if place == "factory" else None,
                proxy=proxy if place == "proxy" else None,
                ssl_context=client_tls,
                **io_options,
            )
    error = caught.value
    phase, text = PHASES[place]
    assert (error.phase, error.host, error.port) == (phase, *server)
    assert str(error).startswith("timed out after 0.")
    assert str(error).endswith(text.format("{}:{}".format(*server)))
    assert error.is_transient


@pytest.mark.parametrize("end", ["deadline", "reset", "FIN"])
async def test_a_refusal_whose_body_does_not_end(end, io_options):
    async def answer(reader, writer):
        await read_head(reader)
        writer.write(b"HTTP/1.1 429 No\r\nRetry-After: 30\r\nContent-Length: 9\r\n\r\nslow")
        await writer.drain()
        if end == "deadline":
            await reader.read()
        elif end == "reset":
            await asyncio.sleep(0.05)
            reset_on_close(writer.get_extra_info("socket"))
            writer.transport.abort()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(WSInvalidStatusError) as caught:
            await ws_connect(
                Recorder, url, websocket_handshake_timeout=0.2 if end == "deadline" else 5,
                **io_options,
            )  # fmt: skip
    error = caught.value
    assert (error.response.status, error.raw_body, error.retry_after) == (429, b"slow", 30)
    assert error.is_transient
    assert (error.phase, error.host, error.port) == ("upgrade", *address(url))


# --- Where it failed


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "reset"])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x03\x00\x7a\x02"], ids=["nothing", "a part"])
async def test_tls_that_ends_in_its_handshake(reset, sent, client_tls, io_options):
    """It is no answer in HTTP, and is not called one."""

    async def answer(reader, writer):
        await reader.read(100 if reset else 10_000)
        writer.write(sent)
        if reset:
            reset_on_close(writer.get_extra_info("socket"))
            writer.transport.abort()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
            await ws_connect(
                Recorder, url.replace("ws:", "wss:"), ssl_context=client_tls, **io_options
            )
    error = caught.value
    assert (error.phase, error.host, error.port) == ("tls", *address(url))
    assert str(error).endswith("in the TLS handshake with {}:{}".format(*address(url)))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.is_transient


async def test_reset_in_the_opening_handshake(io_options):
    async def answer(reader, writer):
        await read_head(reader)
        reset_on_close(writer.get_extra_info("socket"))
        writer.transport.abort()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(ConnectionResetError) as caught:
            await ws_connect(Recorder, url, **io_options)
    error = caught.value
    assert (error.phase, error.host, error.port) == ("upgrade", *address(url))
    assert str(error).endswith("in the opening handshake with {}:{}".format(*address(url)))
    assert error.is_transient


async def test_certificate_that_is_not_trusted(server_tls, io_options):
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await ws_connect(Recorder, url, **io_options)
    error = caught.value
    assert (error.phase, error.host, error.port) == ("tls", *address(url))
    assert "in the TLS handshake with {}:{}".format(*address(url)) in str(error)
    assert error.verify_message
    assert error.is_transient is False


async def test_tls_handshake_with_a_deadline_of_its_own(client_tls, io_options):
    async def answer(reader, writer):
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(TimeoutError, match="TLS handshake") as caught:
            await ws_connect(
                Recorder, url.replace("ws:", "wss:"), ssl_handshake_timeout=0.05,
                ssl_context=client_tls, **io_options,
            )  # fmt: skip
    assert (caught.value.phase, caught.value.port) == ("tls", address(url)[1])


@pytest.mark.parametrize(
    ("answer", "error_type"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", WSInvalidStatusError),
        (b"HTTP/1.1 101 X\r\n\r\n", WSInvalidUpgradeError),
        (b"SSH-2.0-x\r\n", WSInvalidMessageError),
        (b"HTTP/1.1 101", WSInvalidMessageError),
        (redirect("ftp://x/"), WSInvalidURL),
    ],
)
async def test_errors_of_the_opening_handshake_say_where(answer, error_type):
    async with scripted(answer) as (url, _):
        with pytest.raises(error_type) as caught:
            await ws_connect(Recorder, url)
    error = caught.value
    assert (error.phase, error.host, error.port) == ("upgrade", *address(url))
    assert error.is_transient == (answer == b"HTTP/1.1 101")


async def test_errors_before_it_say_where():
    port = free_port()
    for proxy in (None, f"http://127.0.0.1:{port}"):
        url = f"ws://127.0.0.1:{port}/" if proxy is None else "ws://exchange.example/"
        with pytest.raises(ConnectionRefusedError) as caught:
            await ws_connect(Recorder, url, proxy=proxy)
        error = caught.value
        assert (error.phase, error.host, error.port) == ("connecting", "127.0.0.1", port)
        assert error.is_transient
    with pytest.raises(socket.gaierror) as caught:
        await ws_connect(Recorder, "ws://exchange.invalid/")
    assert (caught.value.phase, caught.value.host) == ("resolving", "exchange.invalid")
    assert caught.value.is_transient == (caught.value.errno == socket.EAI_AGAIN)
    async with Proxy("http", refuse=True) as proxy:
        with pytest.raises(WSProxyError) as caught:
            await ws_connect(Recorder, "ws://exchange.example/", proxy=proxy.url())
    error = caught.value
    assert (error.phase, error.host, error.port) == ("proxy", "127.0.0.1", proxy.port)
    assert (WSError.phase, WSError.host, WSError.port) == (None, None, None)


@pytest.mark.parametrize("kind", ["listener", "socket"])
async def test_errors_of_the_callers_own_are_left_as_they_are(kind):
    own = OSError(5, "mine")

    def fail(*arguments):
        raise own

    async with serving(lambda request: Echo()) as url:
        factory = (lambda: fail()) if kind == "listener" else Recorder
        options = {"socket_factory": fail} if kind == "socket" else {}
        with pytest.raises(OSError) as caught:
            await ws_connect(factory, url, **options)
    assert caught.value is own
    assert str(own) == "[Errno 5] mine"


@pytest.mark.parametrize("way", ["ws", "wss", "sock", "factory", "http", "https"])
async def test_cancelled_at_every_turn(way, server_tls, client_tls, io_options):
    """Whenever it is cancelled, nothing stays open here and the server is told."""
    listeners, sockets = [], []

    def accept(request):
        listeners.append(Echo())
        return listeners[-1]

    async def connected_socket(url=None):
        sockets.append(socket.socket())
        sockets[-1].setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sockets[-1], server)
            await asyncio.sleep(0)
        except BaseException:
            sockets[-1].close()
            raise
        return sockets[-1]

    async with (
        serving(accept, tls=server_tls if way == "wss" else None, **io_options) as url,
        Proxy("http", ssl_context=server_tls if way == "https" else None) as proxy,
    ):
        server = address(url)
        options = dict(io_options, ssl_context=client_tls, proxy_ssl_context=client_tls)
        if way in ("http", "https"):
            options["proxy"] = proxy.url()
        for turns in range(60):
            if way == "sock":
                options["sock"] = await connected_socket()
            elif way == "factory":
                options["socket_factory"] = connected_socket
            task = asyncio.create_task(ws_connect(Recorder, url, **options))
            for _ in range(turns + (way == "sock")):  # a task that never ran takes nothing
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(result, asyncio.CancelledError):
                result[0].disconnect(graceful=False)
        for listener in listeners:
            await listener.closed()
        await until(lambda: all(sock.fileno() == -1 for sock in sockets))


@pytest.mark.parametrize(
    ("options", "error_type"),
    [
        ({"extra_headers": {"Upgrade": "x"}}, ValueError),
        ({"proxy": "ftp://x"}, ValueError),
        ({"proxy": "https://127.0.0.1"}, asyncio.TimeoutError),
        ({"server_hostname": "x" * 300}, (ValueError, OSError)),
        ({"ssl_handshake_timeout": 0.05}, TimeoutError),
        ({}, asyncio.TimeoutError),
    ],
    ids=["header", "proxy", "silent proxy", "name", "TLS", "deadline"],
)
async def test_a_given_socket_is_closed_whatever_fails(options, error_type, client_tls, io_options):
    async def silent(reader, writer):
        await reader.read()

    async with raw_server(silent, upgrade=False) as url:
        sock = await connect_socket(address(url))
        with pytest.raises(error_type):
            await ws_connect(
                Recorder,
                url.replace("ws:", "wss:"),
                sock=sock,
                ssl_context=client_tls,
                websocket_handshake_timeout=0.2,
                **options,
                **io_options,
            )
        await until(lambda: sock.fileno() == -1)


async def test_nobody_listens(io_options):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match=rf"127\.0\.0\.1:{port}"):
        await ws_connect(Recorder, f"ws://127.0.0.1:{port}/", **io_options)


@pytest.mark.parametrize(
    "url", ["", "http://x/", "ws://", "ws://h:99999/", "ws://h/\n", "nonsense"]
)
async def test_bad_urls(url):
    with pytest.raises(WSInvalidURL) as caught:
        await ws_connect(Recorder, url)
    assert caught.value.url == url


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_frame_size": 0}, ValueError),
        ({"max_frame_size": "1"}, TypeError),
        ({"auto_ping_idle_timeout": -1}, ValueError),
        ({"websocket_handshake_timeout": 0}, ValueError),
        ({"enable_auto_ping": 1}, TypeError),
        ({"ssl_context": True}, TypeError),
        ({"extra_headers": {"A": 1}}, TypeError),
        ({"extra_headers": {"Upgrade": "x"}}, ValueError),
        ({"extra_headers": {"A b": "x"}}, ValueError),
        ({"proxy": "ftp://x"}, ValueError),
        ({"subprotocols": "chat"}, TypeError),
        ({"max_redirects": -1}, ValueError),
        ({"write_low_watermark": 10, "write_high_watermark": 5}, ValueError),
        ({"no_such_setting": 1}, TypeError),
        ({"host": "127.0.0.1"}, TypeError),
    ],
)
async def test_bad_settings(options, error):
    with pytest.raises(error, match=next(iter(options)) if error is TypeError else None):
        await ws_connect(Recorder, "ws://127.0.0.1:1/", **options)


async def test_compatible_settings_are_accepted():
    async with serving(lambda request: Echo(), use_aiofastnet=False) as url:
        await check_echo(
            url,
            use_aiofastnet=True,
            zero_copy_unsafe_ssl_write=True,
            ssl_shutdown_timeout=1,
            ssl_handshake_timeout=5,
            happy_eyeballs_delay=None,
            family=socket.AF_INET,
        )


# --- Settings as an object


async def test_options_as_an_object(io_options):
    """One object serves several connections, and both functions do the same with it."""
    options = ClientOptions(subprotocols=["v2"], extra_headers={"X-Region": "eu"}, **io_options)
    async with serving(lambda request: Echo(), subprotocols=["v2"], **io_options) as url:
        for _ in range(2):
            transport, listener = await connect(Recorder, url, options)
            assert type(listener) is Recorder
            assert transport.subprotocol == "v2"
            assert transport.request.headers["X-Region"] == "eu"
            transport.disconnect()
            await transport.wait_disconnected()
        transport, _ = await connect(Recorder, url)
        assert transport.subprotocol is None
        transport.disconnect()
        await transport.wait_disconnected()


async def test_deadline_of_options():
    async def answer(reader, writer):
        await reader.read()

    async with raw_server(answer, upgrade=False) as url:
        with pytest.raises(asyncio.TimeoutError, match=r"timed out after 0\.05 s") as caught:
            await connect(Recorder, url, ClientOptions(websocket_handshake_timeout=0.05))
    assert caught.value.is_transient


async def test_options_of_a_wrong_type():
    for wrong in ({"enable_auto_ping": True}, ServerOptions(), ClientOptions):
        with pytest.raises(
            TypeError, match=r"options of connect\(\) must be ClientOptions or None"
        ):
            await connect(Recorder, "ws://127.0.0.1:1/", wrong)
