"""connecting: to real sockets, directly, through factories and through real proxies."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from picows_fast.client.dial import deadline, open_connection, parse_proxy_url
from picows_fast.exceptions import WSInvalidURL, WSProxyError
from picows_fast.protocol.url import WSParsedURL, parse_url

from . import needs
from .proxies import Proxy
from .support import free_port, open_descriptors


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def served(start: Callable[..., Any], handler: Any, *place: Any) -> AsyncIterator[int]:
    """Serve while the body runs; leave no transport behind for a later test to stumble over."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await handler(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await start(handle, *place)
    try:
        name = server.sockets[0].getsockname()
        yield name[1] if isinstance(name, tuple) else 0
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        # abort() closes the socket in the loop's next turn.
        await asyncio.sleep(0)


@asynccontextmanager
async def echo_server(host: str = "127.0.0.1") -> AsyncIterator[int]:
    async with served(asyncio.start_server, _echo, host, 0) as port:
        yield port


async def connect(url: str, **options: Any) -> Any:
    loop = asyncio.get_running_loop()
    async with deadline(loop, 20):
        return await open_connection(parse_url(url), loop=loop, **options)


async def assert_echo(sock: socket.socket) -> None:
    """The socket is ready for use and reaches the echo server."""
    loop = asyncio.get_running_loop()
    assert sock.getblocking() is False
    with sock:
        await loop.sock_sendall(sock, b"hello")
        received = b""
        while len(received) < 5:
            piece = await loop.sock_recv(sock, 5)
            assert piece
            received += piece
        assert received == b"hello"


@contextmanager
def no_unclosed_sockets() -> Iterator[None]:
    gc.collect()  # what earlier tests left
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(w.message) for w in seen if issubclass(w.category, ResourceWarning)] == []


# Direct connections.


async def test_tcp() -> None:
    async with echo_server() as port:
        sock = await connect(f"ws://127.0.0.1:{port}/")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert sock.get_inheritable() is False
        await assert_echo(sock)


# In a process of its own: the threads that a loop starts stay.
_CONNECT = """
import asyncio, os, socket, sys, uvloop
from picows_fast.client.dial import open_connection
from picows_fast.protocol.url import parse_url

async def main():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = parse_url("ws://127.0.0.1:%d/" % listening.getsockname()[1])
        loop = asyncio.get_running_loop()
        if sys.argv[1] == "sock":
            with await open_connection(url, loop=loop, sock=socket.socket()):
                pass
        else:
            with await open_connection(url, loop=loop):
                pass
    print(len(os.listdir("/proc/self/task")))

uvloop.new_event_loop().run_until_complete(main())
"""


@needs.descriptor_list
@pytest.mark.parametrize("given", ["sock", "nothing"])
def test_an_address_starts_no_threads_on_uvloop(given: str) -> None:
    pytest.importorskip("uvloop")
    command = [sys.executable, "-c", _CONNECT, given]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["1"]


@needs.ipv6
async def test_tcp_over_ipv6() -> None:
    async with echo_server("::1") as port:
        sock = await connect(f"ws://[::1]:{port}/")
        assert sock.family == socket.AF_INET6
        await assert_echo(sock)


async def test_host_name_is_resolved_by_the_loop() -> None:
    loop = asyncio.get_running_loop()
    asked: list[Any] = []

    class Resolver:
        async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> list[Any]:
            asked.append((host, port))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

    async with echo_server() as port:
        url = parse_url(f"ws://exchange.test:{port}/")
        await assert_echo(await open_connection(url, loop=Resolver()))  # type: ignore[arg-type]
        url = parse_url(f"ws://127.0.0.1:{port}/")
        await assert_echo(await open_connection(url, loop=Resolver()))  # type: ignore[arg-type]
    # An address is not looked up.
    assert asked == [("exchange.test", port)]


class _TwoAddresses:
    """A loop whose resolver gives an address that never answers, then a good one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, silent: socket.socket) -> None:
        self._loop = loop
        self._silent = silent.getsockname()

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", self._silent),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        if address == self._silent:
            await asyncio.Event().wait()
        await self._loop.sock_connect(sock, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_happy_eyeballs_is_on_by_default() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        both: Any = _TwoAddresses(loop, silent)
        async with echo_server() as port:
            url = parse_url(f"ws://exchange.test:{port}/")
            with no_unclosed_sockets():
                async with deadline(loop, 20):
                    await assert_echo(await open_connection(url, loop=both))
            with pytest.raises(asyncio.TimeoutError):
                async with deadline(loop, 0.5):
                    await open_connection(url, loop=both, happy_eyeballs_delay=None)


async def test_refused_names_the_host() -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError, match=rf"cannot connect to localhost:{port}"):
        await connect(f"ws://localhost:{port}/", family=socket.AF_INET)


async def test_unresolvable_names_the_host() -> None:
    with pytest.raises(socket.gaierror, match=r"cannot resolve 'exchange\.invalid'"):
        await connect("ws://exchange.invalid/")


async def test_local_addr() -> None:
    async with echo_server() as port:
        local_port = free_port()
        sock = await connect(f"ws://127.0.0.1:{port}/", local_addr=("127.0.0.1", local_port))
        assert sock.getsockname() == ("127.0.0.1", local_port)
        await assert_echo(sock)


async def test_local_addr_that_is_not_ours() -> None:
    async with echo_server() as port:
        with no_unclosed_sockets(), pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}"):
            await connect(f"ws://127.0.0.1:{port}/", local_addr=("192.0.2.1", 0))


async def test_unix_path(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with served(asyncio.start_unix_server, _echo, str(path)):
        sock = await connect("ws://exchange.test/", unix_path=path)
        assert sock.family == socket.AF_UNIX
        await assert_echo(sock)


async def test_unix_path_without_a_server(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with no_unclosed_sockets(), pytest.raises(FileNotFoundError, match=path):
        await connect("ws://exchange.test/", unix_path=path)


# sock and socket_factory.


def unconnected(url: WSParsedURL) -> socket.socket:
    return socket.socket()


def connected(url: WSParsedURL) -> socket.socket:
    return socket.create_connection((url.host, url.port))


def nothing(url: WSParsedURL) -> None:
    return None


@pytest.mark.parametrize("factory", [unconnected, connected, nothing])
@pytest.mark.parametrize("is_async", [False, True])
async def test_socket_factory(factory: Callable[[Any], Any], is_async: bool) -> None:
    seen: list[WSParsedURL] = []

    def call(url: WSParsedURL) -> Any:
        seen.append(url)
        return factory(url)

    async def call_later(url: WSParsedURL) -> Any:
        await asyncio.sleep(0)
        return call(url)

    async with echo_server() as port:
        url = f"ws://127.0.0.1:{port}/"
        sock = await connect(url, socket_factory=call_later if is_async else call)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        await assert_echo(sock)
    assert [(u.host, u.port) for u in seen] == [("127.0.0.1", port)]


@pytest.mark.parametrize("factory", [unconnected, connected])
async def test_sock(factory: Callable[[Any], socket.socket]) -> None:
    async with echo_server() as port:
        url = f"ws://127.0.0.1:{port}/"
        given = factory(parse_url(url))
        sock = await connect(url, sock=given)
        assert sock is given
        await assert_echo(sock)


async def test_socket_factory_of_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    def make(url: WSParsedURL) -> socket.socket:
        return socket.socket(socket.AF_UNIX)

    def make_connected(url: WSParsedURL) -> socket.socket:
        sock = make(url)
        sock.connect(path)
        return sock

    url = "ws://exchange.test/"
    async with served(asyncio.start_unix_server, _echo, path):
        await assert_echo(await connect(url, socket_factory=make_connected))
        await assert_echo(await connect(url, socket_factory=make, unix_path=path))
        with no_unclosed_sockets(), pytest.raises(ValueError, match="socket_factory gave an unco"):
            await connect(url, socket_factory=make)


async def test_socket_factory_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"socket_factory must return a socket\.socket or None"):
        await connect("ws://127.0.0.1/", socket_factory=lambda url: 3)


async def test_a_given_socket_is_closed_on_failure() -> None:
    port = free_port()
    given = socket.socket()
    with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}"):
        await connect(f"ws://127.0.0.1:{port}/", sock=given)
    assert given.fileno() == -1
    given = socket.socket(type=socket.SOCK_DGRAM)
    with pytest.raises(ValueError, match="sock must give a stream socket"):
        await connect(f"ws://127.0.0.1:{port}/", sock=given)
    assert given.fileno() == -1


async def test_a_socket_of_a_future_is_closed_when_nobody_waits_for_it() -> None:
    """The socket is there, and the cancellation comes in the same turn of the loop."""
    made = socket.socket()
    future: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(connect("ws://127.0.0.1/", socket_factory=lambda url: future))
    for _ in range(3):
        await asyncio.sleep(0)
    future.set_result(made)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(3):
        await asyncio.sleep(0)
    assert made.fileno() == -1


async def test_an_error_of_the_factory_is_raised() -> None:
    def fail(url: WSParsedURL) -> None:
        raise LookupError("no socket today")

    with pytest.raises(LookupError, match="no socket today"):
        await connect("ws://127.0.0.1/", socket_factory=fail)


# Proxies.


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        ("http://proxy.test", ("http", "proxy.test", 80, None, None)),
        ("http://proxy.test:80/", ("http", "proxy.test", 80, None, None)),
        ("https://proxy.test", ("https", "proxy.test", 443, None, None)),
        ("https://proxy.test:80", ("https", "proxy.test", 80, None, None)),
        ("SOCKS5://Proxy.test", ("socks5", "proxy.test", 1080, None, None)),
        ("socks5h://proxy.test", ("socks5h", "proxy.test", 1080, None, None)),
        ("socks4a://u@[::1]:9", ("socks4a", "::1", 9, "u", None)),
        ("socks4://[::1]", ("socks4", "::1", 1080, None, None)),
        ("http://u%40x:p%3Aw@127.0.0.1:8", ("http", "127.0.0.1", 8, "u@x", "p:w")),
    ],
)
def test_parse_proxy_url(proxy: str, expected: tuple[Any, ...]) -> None:
    parsed = parse_proxy_url(proxy)
    assert parsed.url == proxy
    assert parsed.is_secure is proxy.startswith("https")
    assert (
        parsed.scheme,
        parsed.host,
        parsed.port,
        parsed.username,
        parsed.password,
    ) == expected


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "proxy.test",
        "proxy.test:80",
        "ftp://proxy.test",
        "ws://proxy.test",
        "http://",
        "http://:80",
        "http://hunter2:hunter2@",
        "http://proxy.test:0",
        "http://proxy.test:65536",
        "http://proxy.test:x",
        "http://proxy.test/path",
        "http://proxy.test?query",
        "http://proxy.test#fragment",
        "http://proxy .test",
        "http://proxy.test\r\nX: y",
        "http://u:hunter2@proxy.test\n",
        "socks5://u:hunter2@[::1",
    ],
)
async def test_bad_proxy_url(proxy: str) -> None:
    with pytest.raises(ValueError) as caught:
        await connect("ws://127.0.0.1:1/", proxy=proxy)
    assert isinstance(caught.value, WSInvalidURL)
    assert "hunter2" not in str(caught.value)


KINDS = ["http", "socks4", "socks5"]
SCHEMES = [
    ("http", "http"),
    ("socks4", "socks4"),
    ("socks4a", "socks4"),
    ("socks5", "socks5"),
    ("socks5h", "socks5"),
]


@pytest.mark.parametrize(("scheme", "kind"), SCHEMES)
@pytest.mark.parametrize("pieces", [False, True])
async def test_proxy_resolves_the_target(scheme: str, kind: str, pieces: bool) -> None:
    names = {"exchange.test": "127.0.0.1"}
    async with echo_server() as port, Proxy(kind, names=names, pieces=pieces) as proxy:
        sock = await connect(f"wss://exchange.test:{port}/", proxy=proxy.url(scheme))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        await assert_echo(sock)
        assert proxy.requests == [("exchange.test", port)]


@needs.ipv6
@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_proxy_and_target_over_ipv6(kind: str) -> None:
    async with echo_server("::1") as port, Proxy(kind, host="::1") as proxy:
        await assert_echo(await connect(f"ws://[::1]:{port}/", proxy=proxy.url()))
        assert proxy.requests == [("::1", port)]


async def test_socks4_has_no_ipv6() -> None:
    async with Proxy("socks4") as proxy:
        with no_unclosed_sockets(), pytest.raises(WSProxyError, match="SOCKS4 has no IPv6"):
            await connect("ws://[::1]:1/", proxy=proxy.url())


@pytest.mark.parametrize("kind", KINDS)
async def test_proxy_credentials(kind: str) -> None:
    credentials = ("user" if kind == "socks4" else "us@er", "pass:word")
    user_info = "user" if kind == "socks4" else "us%40er:pass%3Aword"
    async with echo_server() as port, Proxy(kind, credentials=credentials) as proxy:
        url = f"ws://127.0.0.1:{port}/"
        await assert_echo(await connect(url, proxy=proxy.url(user_info=user_info)))
        for wrong in ("", "hunter2", "hunter1:hunter2"):
            with no_unclosed_sockets(), pytest.raises(WSProxyError) as caught:
                await connect(url, proxy=proxy.url(user_info=wrong))
            assert "hunter" not in str(caught.value)
            assert (caught.value.__cause__ is None) == (kind == "http")


async def test_credentials_that_a_proxy_cannot_be_given() -> None:
    async with Proxy("socks5", credentials=("u", "p")) as proxy:
        for wrong in ("u:%E2%82%AC", "u:" + "hunter" * 50):
            with no_unclosed_sockets(), pytest.raises(ValueError) as caught:
                await connect("ws://127.0.0.1:1/", proxy=proxy.url(user_info=wrong))
            assert f"proxy socks5://127.0.0.1:{proxy.port}" in str(caught.value)
            assert "hunter" not in str(caught.value)
            assert "20ac" not in str(caught.value)
            assert "\u20ac" not in str(caught.value)


async def test_credentials_for_an_http_proxy_are_utf8() -> None:
    credentials = ("ü", "€")
    async with echo_server() as port, Proxy("http", credentials=credentials) as proxy:
        url = proxy.url(user_info="%C3%BC:%E2%82%AC")
        await assert_echo(await connect(f"ws://127.0.0.1:{port}/", proxy=url))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trouble", ["refuse", "close_early", "garbage"])
async def test_proxy_that_refuses(kind: str, trouble: str) -> None:
    how: dict[str, Any] = {trouble: True} if trouble != "garbage" else {"answer": b"x" * 20000}
    async with Proxy(kind, **how) as proxy:
        with no_unclosed_sockets(), pytest.raises(WSProxyError) as caught:
            await connect("ws://exchange.test:8/", proxy=proxy.url())
    assert f"proxy {kind}://127.0.0.1:{proxy.port}" in str(caught.value)


async def test_refused_by_an_http_proxy_shows_its_status() -> None:
    async with Proxy("http", refuse=True) as proxy:
        with pytest.raises(WSProxyError, match=r"exchange\.test:8: 403 Forbidden") as caught:
            await connect("ws://exchange.test:8/", proxy=proxy.url())
        assert caught.value.error_code == 403


async def test_refused_by_a_socks_proxy_shows_its_reply_code() -> None:
    python_socks = pytest.importorskip("python_socks")
    for kind, code in (("socks4", 0x5B), ("socks5", 2)):
        async with Proxy(kind, refuse=True) as proxy:
            with pytest.raises(python_socks.ProxyError) as caught:
                await connect("ws://exchange.test:8/", proxy=proxy.url())
            assert isinstance(caught.value, WSProxyError)
            assert caught.value.error_code == code


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: y\r\n\r\n"


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 201 Created\r\n\r\n",
        b"HTTP/1.0 299\r\n\r\n",
        b"HTTP/1.1 200 Verbindung ge\xf6ffnet\r\nno header\r\n folded\r\n\r\n",
        # RFC 9110 9.3.6: these are ignored.
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
        INTERIM + b"HTTP/1.1 202 Accepted\r\n\r\n",
    ],
)
async def test_any_2xx_opens_the_tunnel(
    answer: bytes, pieces: bool, over_tls: bool, contexts: Any
) -> None:
    context = contexts[0] if over_tls else None
    async with (
        echo_server() as port,
        Proxy("http", answer=answer, pieces=pieces, ssl_context=context) as proxy,
    ):
        made = await connect(
            f"ws://127.0.0.1:{port}/", proxy=proxy.url(), proxy_ssl_context=contexts[1]
        )
        if over_tls:
            made.abort()
        else:
            await assert_echo(made)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n", "302 Found"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "101 Switching"),
        (INTERIM + b"HTTP/1.1 407 Who\r\n\r\n", "407 Who"),
        (b"HTTP/1.1 999\r\n\r\n", "999"),
        (b"HTTP/2 200 OK\r\n\r\n", "did not answer in HTTP"),
        (b"HTTP/1.1\r\n\r\n", "did not answer in HTTP"),
        (b"HTTP/1.1 099 x\r\n\r\n", "did not answer in HTTP"),
        (INTERIM * 500, "head over"),
    ],
)
async def test_anything_else_refuses_it(answer: bytes, text: str, contexts: Any) -> None:
    for context in (None, contexts[0]):
        async with Proxy("http", answer=answer, ssl_context=context) as proxy:
            with no_unclosed_sockets(), pytest.raises(WSProxyError, match=text):
                await connect("ws://127.0.0.1:1/", proxy=proxy.url(), proxy_ssl_context=contexts[1])


@pytest.mark.parametrize("scheme", ["http", "https", "socks4", "socks5"])
async def test_proxy_that_is_not_there(scheme: str) -> None:
    port = free_port()
    with no_unclosed_sockets(), pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}"):
        await connect("ws://exchange.test/", proxy=f"{scheme}://127.0.0.1:{port}")


@pytest.mark.parametrize("size", [1, 100])
async def test_bytes_behind_the_response_of_a_proxy_belong_to_the_target(size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"
    async with echo_server() as port, Proxy("http", answer=head + b"z" * size) as proxy:
        sock = await connect(f"ws://127.0.0.1:{port}/", proxy=proxy.url())
        with sock:
            received = b""
            while len(received) < size:
                received += await asyncio.get_running_loop().sock_recv(sock, 1000)
            assert received == b"z" * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factory", [unconnected, connected, nothing])
async def test_socket_factory_gets_the_proxy(kind: str, factory: Callable[[Any], Any]) -> None:
    seen: list[Any] = []

    def call(url: Any) -> Any:
        seen.append(url)
        return factory(url)

    async with echo_server() as port, Proxy(kind) as proxy:
        url = f"ws://127.0.0.1:{port}/"
        proxy_url = proxy.url(user_info="u:p")
        await assert_echo(await connect(url, proxy=proxy_url, socket_factory=call))
        await assert_echo(
            await connect(url, proxy=proxy_url, sock=connected(parse_proxy_url(proxy_url)))
        )
    (endpoint,) = seen
    assert isinstance(endpoint, WSParsedURL)
    assert (endpoint.scheme, endpoint.host, endpoint.port) == (kind, "127.0.0.1", proxy.port)
    assert (endpoint.url, endpoint.user_info) == (proxy_url, ("u", "p"))


@pytest.mark.parametrize("kind", KINDS)
async def test_local_addr_concerns_the_proxy(kind: str) -> None:
    local_port = free_port()
    async with echo_server() as port, Proxy(kind) as proxy:
        sock = await connect(
            f"ws://127.0.0.1:{port}/", proxy=proxy.url(), local_addr=("127.0.0.1", local_port)
        )
        await assert_echo(sock)
        assert proxy.peers == [("127.0.0.1", local_port)]


async def test_without_python_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(ImportError, match=r"pip install 'python-socks"):
        await connect("ws://127.0.0.1/", proxy="socks5://127.0.0.1:1")
    # HTTP is spoken without it.
    async with echo_server() as port, Proxy("http") as proxy:
        await assert_echo(await connect(f"ws://127.0.0.1:{port}/", proxy=proxy.url()))


async def test_unix_path_and_proxy() -> None:
    with pytest.raises(ValueError, match="unix_path and proxy"):
        await connect("ws://127.0.0.1/", proxy="http://127.0.0.1:1", unix_path="x")


# A proxy behind TLS.


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The context of a server for 127.0.0.1, and that of a client which trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


class Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.has_enough = asyncio.Event()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= 5:
            self.has_enough.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("given", ["nothing", "factory"])
async def test_https_proxy(contexts: Any, pieces: bool, given: str) -> None:
    server, client = contexts
    names = {"exchange.test": "127.0.0.1"}
    options = {"socket_factory": unconnected} if given == "factory" else {}
    async with (
        echo_server() as port,
        Proxy(
            "http", names=names, ssl_context=server, credentials=("u", "p"), pieces=pieces
        ) as proxy,
    ):
        transport = await connect(
            f"ws://exchange.test:{port}/",
            proxy=proxy.url(user_info="u:p"),
            proxy_ssl_context=client,
            **options,
        )
        assert not isinstance(transport, socket.socket)
        assert not transport.is_reading()
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        collector = Collector()
        transport.set_protocol(collector)
        transport.resume_reading()
        transport.write(b"hello")
        await asyncio.wait_for(collector.has_enough.wait(), 20)
        assert collector.received == b"hello"
        assert proxy.requests == [("exchange.test", port)]
        transport.abort()
        await asyncio.wait_for(collector.lost.wait(), 20)


async def test_https_proxy_is_verified(contexts: Any) -> None:
    async with Proxy("http", ssl_context=contexts[0]) as proxy:
        with no_unclosed_sockets(), pytest.raises(ssl.SSLCertVerificationError):
            await connect("ws://exchange.test:8/", proxy=proxy.url())
        assert proxy.requests == []


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ({"refuse": True}, "403 Forbidden"),
        ({"close_early": True}, "closed the connection"),
        ({"answer": b"x" * 20000}, "head over"),
        ({"answer": b"HTTP/1.1 200 OK\r\n\r\nearly"}, "sent data behind its response"),
    ],
)
async def test_https_proxy_that_refuses(contexts: Any, trouble: Any, text: str) -> None:
    async with echo_server() as port, Proxy("http", ssl_context=contexts[0], **trouble) as proxy:
        with no_unclosed_sockets(), pytest.raises(WSProxyError, match=text):
            await connect(
                f"ws://127.0.0.1:{port}/", proxy=proxy.url(), proxy_ssl_context=contexts[1]
            )


async def test_https_proxy_that_speaks_no_tls(contexts: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with served(asyncio.start_server, answer, "127.0.0.1", 0) as port:
        proxy = f"https://127.0.0.1:{port}"
        with no_unclosed_sockets(), pytest.raises(ssl.SSLError):
            await connect("ws://127.0.0.1:8/", proxy=proxy, proxy_ssl_context=contexts[1])


# Cancellation and deadlines.


async def assert_nothing_stays_open(start: Callable[[], Awaitable[Any]]) -> int:
    """Cancel the call after 0, 1, 2 ... turns of the loop until it gets through.

    Returns the number of cancelled calls.
    """
    baseline = open_descriptors()
    cancelled = 0
    while True:
        task = asyncio.ensure_future(start())
        for _ in range(cancelled):
            await asyncio.sleep(0)
        if task.done():
            result = task.result()
            if isinstance(result, socket.socket):
                result.close()
            else:
                result.abort()
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        is_through = task.done() and not task.cancelled()
        del task
        # Measured once a turn: the thread of a cancelled name resolution opens files meanwhile.
        for _ in range(2000):
            remaining = open_descriptors() - baseline
            if remaining <= 0:
                break
            await asyncio.sleep(0.001)
        assert remaining <= 0
        if is_through:
            return cancelled
        cancelled += 1


@needs.descriptor_list
@pytest.mark.parametrize("kind", ["direct", "factory", "https", *KINDS])
async def test_cancelled_at_any_await(kind: str, contexts: Any) -> None:
    names = {"exchange.test": "127.0.0.1"}
    async with (
        echo_server() as port,
        Proxy(
            "http" if kind not in KINDS else kind,
            names=names,
            ssl_context=contexts[0] if kind == "https" else None,
        ) as proxy,
    ):
        options: dict[str, Any] = {}
        if kind in ("direct", "factory"):
            url = parse_url(f"ws://localhost:{port}/")
            options["family"] = socket.AF_INET
            if kind == "factory":
                options["socket_factory"] = unconnected
        else:
            url = parse_url(f"ws://exchange.test:{port}/")
            options["proxy"] = proxy.url()
            options["proxy_ssl_context"] = contexts[1]

        loop = asyncio.get_running_loop()
        # The first name resolution starts the loop's threads, and whatever they keep open.
        await loop.getaddrinfo("localhost", port)
        await connect_and_drop(url, options)
        with no_unclosed_sockets():
            cancelled = await assert_nothing_stays_open(
                lambda: open_connection(url, loop=loop, **options)
            )
        assert cancelled > 1


async def connect_and_drop(url: WSParsedURL, options: dict[str, Any]) -> None:
    made = await open_connection(url, loop=asyncio.get_running_loop(), **options)
    made.close() if isinstance(made, socket.socket) else made.abort()
    await asyncio.sleep(0.05)


@needs.descriptor_list
@pytest.mark.parametrize("kind", ["https", *KINDS])
async def test_deadline_over_a_silent_proxy(kind: str, contexts: Any) -> None:
    loop = asyncio.get_running_loop()
    async with Proxy(
        "http" if kind == "https" else kind,
        ssl_context=contexts[0] if kind == "https" else None,
        silent=True,
    ) as proxy:
        baseline = open_descriptors()
        with no_unclosed_sockets(), pytest.raises(asyncio.TimeoutError):
            async with deadline(loop, 0.3):
                await open_connection(
                    parse_url("ws://127.0.0.1:8/"),
                    loop=loop,
                    proxy=proxy.url(),
                    proxy_ssl_context=contexts[1],
                )
        # The proxy's own end of the connection stays open: it never reads again.
        assert open_descriptors() <= baseline + 1


async def test_deadline() -> None:
    loop = asyncio.get_running_loop()
    async with deadline(loop, None):
        await asyncio.sleep(0)
    async with deadline(loop, 60):
        await asyncio.sleep(0)
    with pytest.raises(asyncio.TimeoutError):
        async with deadline(loop, 0.01):
            await asyncio.Event().wait()
