"""From a URL to a connected socket: name resolution, TCP or Unix connect, proxy tunnel.

Also what the errors of an attempt say about where it failed (`Progress`).

Owns everything that happens before TLS to the target. Owns neither that TLS nor the opening
handshake, sets no deadline by itself (``deadline`` is offered for the caller's use), and follows
no redirect.

``open_connection`` opens the first hop (the target, or its proxy), then asks the proxy, if there
is one, for a tunnel. The first hop is always opened here, so that Happy Eyeballs, ``local_addr``
and ``socket_factory`` mean the same with and without a proxy. HTTP CONNECT is spoken here, too;
python-socks only speaks SOCKS over the first hop. Whatever ends a call early, cancellation
included, closes what it had opened.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import os
import re
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, cast

import aiohappyeyeballs

from ..exceptions import WSError, WSInvalidURL, WSProxyError, is_transient
from ..net.overdue import Overdue
from ..protocol.http.messages import USER_AGENT
from ..protocol.url import WSParsedURL, parse_url, tls_server_name

if sys.version_info >= (3, 11):
    from asyncio import timeout_at
else:
    from async_timeout import timeout_at  # type: ignore[import-not-found, unused-ignore]

__all__ = ["Progress", "SocketFactory", "deadline", "open_connection", "parse_proxy_url"]

AddrInfo = tuple[Any, ...]

# scheme: (python-socks' ProxyType, default port)
_PROXY_SCHEMES: Final = {
    "http": ("HTTP", 80),
    "https": ("HTTP", 443),
    "socks4": ("SOCKS4", 1080),
    "socks4a": ("SOCKS4", 1080),
    "socks5": ("SOCKS5", 1080),
    "socks5h": ("SOCKS5", 1080),
}
_EXPLICIT_PORT: Final = re.compile(r":[0-9]+$")
_END_OF_HEAD: Final = b"\r\n\r\n"
_MAX_PROXY_HEAD: Final = 16 * 1024  # bytes, interim responses included
# Of a proxy's response only this line is read, and so only this has to be well-formed.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([^\r\n]*))?\r\n")
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}[ \r]")

# Turns of the loop between a read and the caller's going on.
_TURNS_TO_CONNECT: Final = 5

# python-socks ends every tunnel after 60 s unless it is told a time; deadlines are the caller's.
_ONE_YEAR: Final = 365 * 86400.0


SocketFactory = Callable[[WSParsedURL], "socket.socket | Awaitable[socket.socket | None] | None"]


# How the steps of an attempt are written in an error's text; {} is the host.
_PHASES: Final = {
    "resolving": "while resolving {}",
    "connecting": "while connecting to {}",
    "proxy": "while waiting for a tunnel through proxy {}",
    "tls": "in the TLS handshake with {}",
    "upgrade": "in the opening handshake with {}",
}


class Progress:
    """How far an attempt to connect has come.

    ``phase``: "resolving", "connecting", "proxy", "tls" or "upgrade". ``url``: of the host that the
    step concerns: the target, or its proxy.
    """

    __slots__ = ("phase", "url")

    def __init__(self, url: WSParsedURL) -> None:
        self.phase = "resolving"
        self.url = url

    def __str__(self) -> str:
        host = self.url.host
        place = host if self.phase == "resolving" else _authority(host, self.url.port)
        return _PHASES[self.phase].format(place)

    def mark(self, error: BaseException) -> None:
        """Set the attributes ``phase``, ``host``, ``port`` and ``is_transient`` of an error that
        ended the attempt.

        WSError declares them, and knows the last by itself; an OSError takes them as it is.
        """
        if isinstance(error, (WSError, OSError, asyncio.TimeoutError)):
            marked: Any = error
            marked.phase, marked.host, marked.port = self.phase, self.url.host, self.url.port
            if not isinstance(error, WSError):
                marked.is_transient = is_transient(error)


def add_place(error: OSError, place: object) -> None:
    """Append to the text of an error where it happened; its type and its number stay."""
    text = f"{error.strerror or error or type(error).__name__} {place}"
    if isinstance(error.errno, int):
        error.args = (error.errno, text, *error.args[2:])
        error.strerror = text
    else:
        error.args = (text,)


class deadline:  # noqa: N801 - used as a function
    """A context manager that cancels its body after ``seconds``; None: never.

    What has arrived by then is read first, and may be what the body waits for. The body's end is
    seen as ``asyncio.TimeoutError``, which is ``TimeoutError`` from Python 3.11 on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float | None) -> None:
        self._loop = loop
        self._seconds = seconds
        self._timeout: Any = timeout_at(None)
        self._handle: asyncio.TimerHandle | Overdue | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        if self._seconds is not None:
            self._handle = self._loop.call_later(self._seconds, self._on_timer)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        ended: bool | None = await self._timeout.__aexit__(exc_type, exc, traceback)
        return ended

    def _on_timer(self) -> None:
        self._handle = Overdue(self._loop, None, self._end, turns=_TURNS_TO_CONNECT)

    def _end(self) -> None:
        self._handle = None
        # The second is its name in async_timeout, for Python 3.10.
        reschedule = getattr(self._timeout, "reschedule", None) or self._timeout.update
        reschedule(self._loop.time())


def parse_proxy_url(proxy: str) -> WSParsedURL:
    """Parse the URL of a proxy.

    The schemes are http, https, socks4, socks4a, socks5 and socks5h; the port may be left out (80,
    443, 1080); user name and password are percent-decoded. Raises WSInvalidURL, a ValueError, for
    anything else.
    """
    scheme, separator, rest = proxy.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PROXY_SCHEMES:
        raise WSInvalidURL(proxy, f"the scheme of a proxy is one of {', '.join(_PROXY_SCHEMES)}")
    try:
        parsed = parse_url(f"ws://{rest}")
    except WSInvalidURL as exc:
        raise WSInvalidURL(proxy, "host, port or credentials are malformed") from exc
    if parsed.path not in ("", "/") or parsed.query:
        raise WSInvalidURL(proxy, "nothing may follow host and port of a proxy")
    if parsed.port == 0:
        raise WSInvalidURL(proxy, "port 0")
    has_port = _EXPLICIT_PORT.search(parsed.netloc) is not None
    return replace(
        parsed,
        url=proxy,
        scheme=scheme,
        is_secure=scheme == "https",
        port=parsed.port if has_port else _PROXY_SCHEMES[scheme][1],
    )


async def open_connection(
    url: WSParsedURL,
    *,
    loop: asyncio.AbstractEventLoop,
    proxy: str | None = None,
    proxy_ssl_context: ssl.SSLContext | None = None,
    socket_factory: SocketFactory | None = None,
    sock: socket.socket | None = None,
    local_addr: tuple[Any, ...] | None = None,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    happy_eyeballs_delay: float | None = 0.25,
    interleave: int | None = None,
    unix_path: str | bytes | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> socket.socket | asyncio.Transport:
    """Open a byte stream to the URL's host and port, directly or through a proxy.

    Returns a connected, non-blocking stream socket, with TCP_NODELAY if it is TCP. Through an
    https proxy it returns the transport of the TLS connection to that proxy instead: reading is
    paused, nothing is buffered, and it waits for the caller's ``set_protocol``. Tell the two apart
    by ``socket.socket``: not every loop derives its transports from ``asyncio.Transport``.

    ``sock``, or what ``socket_factory`` returns, stands for the first hop: the target, or the
    proxy if there is one. It may be connected or not, and is closed if the call fails. ``family``,
    ``proto``, ``flags``, ``local_addr``, ``happy_eyeballs_delay`` (seconds) and ``interleave``
    concern the first hop too; behind a proxy, the target's name is the proxy's to resolve.
    ``progress`` is kept up to date.

    Raises ValueError or TypeError for unusable arguments, ImportError for a SOCKS proxy if
    python-socks is not installed, OSError naming the host if the network fails, ``ssl.SSLError`` if
    TLS to an https proxy fails, and WSProxyError if the proxy refuses.
    """
    try:
        proxy_url = None if proxy is None else parse_proxy_url(proxy)
        if proxy_url is not None:
            if unix_path is not None:
                raise ValueError("unix_path and proxy must not be used together")
            if _is_socks(proxy_url):
                _import_python_socks()
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    first_hop = url if proxy_url is None else proxy_url
    if progress is None:
        progress = Progress(first_hop)
    progress.url = first_hop
    progress.phase = "connecting"
    if sock is None and socket_factory is not None:
        sock = await _make_socket(socket_factory, first_hop)
    if sock is not None:
        source = "socket_factory" if socket_factory is not None else "sock"
        await _prepare_given_socket(
            loop, sock, source, first_hop, proto, flags, unix_path, progress
        )
    elif unix_path is not None:
        sock = await _connect_unix(loop, unix_path)
    else:
        sock = await _connect_tcp(
            loop,
            first_hop,
            progress,
            local_addr=local_addr,
            family=family,
            proto=proto,
            flags=flags,
            happy_eyeballs_delay=happy_eyeballs_delay,
            interleave=interleave,
        )
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy_url is None:
            return sock
        progress.phase = "proxy"
        if not proxy_url.is_secure:
            await _open_tunnel(_SocketStream(loop, sock, proxy_url), proxy_url, url)
            return sock
    except BaseException:
        sock.close()
        raise
    return await _open_tls_tunnel(loop, sock, proxy_url, proxy_ssl_context, url)


# The first hop.


async def _make_socket(
    socket_factory: SocketFactory, first_hop: WSParsedURL
) -> socket.socket | None:
    made = socket_factory(first_hop)
    if inspect.isawaitable(made):
        try:
            made = await made
        except asyncio.CancelledError:
            # A task or another future may yet have, or already has, a socket that nobody takes.
            if asyncio.isfuture(made):
                made.add_done_callback(_close_result)
            raise
    if made is not None and not isinstance(made, socket.socket):
        raise TypeError(
            f"socket_factory must return a socket.socket or None, got {type(made).__name__}"
        )
    return made


def _close_result(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        result = future.result()
        if isinstance(result, socket.socket):
            result.close()


async def _prepare_given_socket(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    source: str,
    first_hop: WSParsedURL,
    proto: int,
    flags: int,
    unix_path: str | bytes | os.PathLike[str] | None,
    progress: Progress,
) -> None:
    """Make the socket non-blocking and connected; close it on failure."""
    try:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"{source} must give a stream socket, got {sock.type!r}")
        sock.setblocking(False)
        if _is_connected(sock):
            return
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            progress.phase = "resolving"
            infos = await _resolve(
                loop,
                first_hop.host,
                first_hop.port,
                family=sock.family,
                proto=proto or sock.proto,
                flags=flags,
            )
            # One socket, one attempt: after a failed connect its state is unspecified (POSIX).
            address, place = infos[0][4], _authority(first_hop.host, first_hop.port)
        elif unix_path is None:
            raise ValueError(
                f"{source} gave an unconnected socket that is not TCP: connect it, or give "
                f"unix_path for a Unix socket"
            )
        else:
            address, place = os.fspath(unix_path), repr(os.fspath(unix_path))
        progress.phase = "connecting"
        try:
            await _Connector(loop).sock_connect(sock, address)
        except OSError as exc:
            raise _naming(place, exc) from exc
    except BaseException:
        sock.close()
        raise


class _Connector:
    """An event loop whose ``sock_connect`` takes an address for one.

    uvloop's resolves it once more, by a thread: it takes twice the time and starts four, which
    stay. Everything else is the loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        loop = self._loop
        uvloop = sys.modules.get("uvloop")
        if (
            uvloop is None
            or not isinstance(loop, uvloop.Loop)
            or sock.family not in (socket.AF_INET, socket.AF_INET6)
        ):
            await loop.sock_connect(sock, address)
            return
        try:
            sock.connect(address)
            return
        except BlockingIOError:
            pass
        writable = asyncio.Event()
        loop.add_writer(sock, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def _connect_unix(
    loop: asyncio.AbstractEventLoop, unix_path: str | bytes | os.PathLike[str]
) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError("unix_path is not supported on this platform")
    path = os.fspath(unix_path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, path)
    except OSError as exc:
        sock.close()
        raise _naming(repr(path), exc) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_tcp(
    loop: asyncio.AbstractEventLoop,
    first_hop: WSParsedURL,
    progress: Progress,
    *,
    local_addr: tuple[Any, ...] | None,
    family: int,
    proto: int,
    flags: int,
    happy_eyeballs_delay: float | None,
    interleave: int | None,
) -> socket.socket:
    host, port = first_hop.host, first_hop.port
    progress.phase = "resolving"
    infos = await _resolve(loop, host, port, family=family, proto=proto, flags=flags)
    local_infos = None
    if local_addr is not None:
        local_infos = await _resolve(loop, *local_addr[:2], family=family, proto=proto, flags=flags)
    progress.phase = "connecting"
    try:
        return await aiohappyeyeballs.start_connection(
            cast("Any", infos),
            local_addr_infos=cast("Any", local_infos),
            happy_eyeballs_delay=happy_eyeballs_delay,
            interleave=interleave,
            loop=cast("Any", _Connector(loop)),
        )
    except (OSError, RuntimeError) as exc:
        # uvloop reports some failures as RuntimeError. Without the traceback, whose frames'
        # variables refer to the error: only a garbage collection would free that.
        raise _naming(_authority(host, port), exc) from exc.with_traceback(None)


async def _resolve(
    loop: asyncio.AbstractEventLoop,
    host: str | None,
    port: int,
    *,
    family: int,
    proto: int,
    flags: int,
) -> list[AddrInfo]:
    try:
        # An address needs no resolver, and so none of the loop's threads. It is ASCII; what is not
        # bytes goes through IDNA.
        address = None if host is None else host.encode("ascii")
        return list(
            socket.getaddrinfo(
                address, port, family, socket.SOCK_STREAM, proto, flags | socket.AI_NUMERICHOST
            )
        )
    except (socket.gaierror, UnicodeError):
        pass
    try:
        infos = await loop.getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, proto=proto, flags=flags
        )
    except socket.gaierror as exc:
        raise socket.gaierror(exc.errno, f"cannot resolve {host!r}: {exc.strerror}") from exc
    except UnicodeError as exc:
        raise socket.gaierror(socket.EAI_NONAME, f"cannot resolve {host!r}: {exc}") from exc
    if not infos:
        raise socket.gaierror(socket.EAI_NONAME, f"cannot resolve {host!r}: no address")
    return list(infos)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _label(proxy_url: WSParsedURL) -> str:
    return f"proxy {proxy_url.scheme}://{_authority(proxy_url.host, proxy_url.port)}"


def _naming(place: str, exc: BaseException) -> OSError:
    """Return an error like ``exc`` whose text says where the connection was to go."""
    number = getattr(exc, "errno", None)
    text = f"cannot connect to {place}: {getattr(exc, 'strerror', None) or exc}"
    # With an errno, OSError makes itself the fitting subclass.
    return OSError(text) if number is None else OSError(number, text)


# The tunnel.


def _is_socks(proxy_url: WSParsedURL) -> bool:
    return proxy_url.scheme.startswith("socks")


async def _open_tunnel(
    stream: _SocketStream | _TransportStream, proxy_url: WSParsedURL, url: WSParsedURL
) -> None:
    # The zone of an IPv6 address means something on this machine only.
    host = url.host.partition("%")[0]
    target = _authority(host, url.port)
    try:
        if _is_socks(proxy_url):
            await _open_socks_tunnel(stream, proxy_url, host, url.port, target)
        else:
            await _open_http_tunnel(stream, proxy_url, target)
    except OSError as exc:
        raise _naming(f"{target} by {_label(proxy_url)}", exc) from exc


async def _open_http_tunnel(
    stream: _SocketStream | _TransportStream, proxy_url: WSParsedURL, target: str
) -> None:
    """CONNECT (RFC 9110 9.3.6): any 2xx opens the tunnel, whatever its headers say of a body."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: {USER_AGENT}"]
    if proxy_url.user_info is not None:
        credentials = base64.b64encode(":".join(proxy_url.user_info).encode("utf-8"))
        lines.append(f"Proxy-Authorization: Basic {credentials.decode('ascii')}")
    await stream.write("\r\n".join([*lines, "", ""]).encode("ascii"))
    status_line = _STATUS_LINE.match(await stream.read())
    if status_line is None:
        raise WSProxyError(f"{_label(proxy_url)} did not answer in HTTP")
    status, reason = int(status_line[1]), (status_line[2] or b"").decode("utf-8", "replace")
    if not 200 <= status <= 299:
        said = f"{status} {reason}".rstrip()
        raise WSProxyError(f"{_label(proxy_url)} refused to connect to {target}: {said}", status)


def _import_python_socks() -> tuple[Any, Any, Any]:
    """Return (Proxy, ProxyError, ProxyType)."""
    try:
        from python_socks import ProxyError, ProxyType
        from python_socks.async_.asyncio.v2 import Proxy
    except ImportError as exc:
        raise ImportError(
            "SOCKS proxies need the package python-socks: pip install 'python-socks>=2.5'"
        ) from exc
    return Proxy, ProxyError, ProxyType


class _OpenedHop:
    """Stands for the proxy before the proxy, over which python-socks is to open its tunnel."""

    def __init__(self, stream: _SocketStream | _TransportStream) -> None:
        self._stream = stream

    async def connect(self, dest_host: str, dest_port: int, **options: Any) -> Any:
        del dest_host, dest_port, options
        return self._stream


async def _open_socks_tunnel(
    stream: _SocketStream | _TransportStream,
    proxy_url: WSParsedURL,
    host: str,
    port: int,
    target: str,
) -> None:
    proxy_class, proxy_error, proxy_type = _import_python_socks()
    type_name = _PROXY_SCHEMES[proxy_url.scheme][0]
    if type_name == "SOCKS4" and ":" in host:
        raise WSProxyError(f"{_label(proxy_url)} cannot reach {target}: SOCKS4 has no IPv6")
    username = proxy_url.username
    proxy = proxy_class(
        proxy_type[type_name],
        proxy_url.host,
        proxy_url.port,
        username=username,
        password=None if username is None else proxy_url.password or "",
        rdns=True,
        forward=_OpenedHop(stream),
    )
    try:
        await proxy.connect(host, port, timeout=_ONE_YEAR)
    except WSProxyError:
        raise
    except proxy_error as exc:
        code = getattr(exc, "error_code", None)
        raise WSProxyError(
            f"{_label(proxy_url)} refused to connect to {target}: {exc}",
            None if code is None else int(code),
        ) from exc
    except ValueError as exc:
        # Credentials that do not fit; the error's own context would show them, and the text of a
        # UnicodeEncodeError a character of them.
        why = getattr(exc, "reason", exc)
        reason = f"{_label(proxy_url)} cannot be asked for {target}: {why}"
        raise ValueError(reason) from None


async def _open_tls_tunnel(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    proxy_url: WSParsedURL,
    proxy_ssl_context: ssl.SSLContext | None,
    url: WSParsedURL,
) -> asyncio.Transport:
    is_taken = False

    def make_protocol() -> _HeadReader:
        nonlocal is_taken
        is_taken = True
        return _HeadReader(loop, proxy_url)

    try:
        transport, protocol = await loop.create_connection(
            make_protocol,
            sock=sock,
            ssl=proxy_ssl_context or ssl.create_default_context(),
            server_hostname=tls_server_name(proxy_url.host),
        )
    except BaseException as exc:
        # From then on the loop closes it, once it no longer watches the descriptor.
        if not is_taken:
            sock.close()
        if isinstance(exc, ssl.SSLError):
            add_place(exc, f"in the TLS handshake with {_label(proxy_url)}")
        elif isinstance(exc, OSError):
            raise _naming(_label(proxy_url), exc) from exc
        raise
    stream = _TransportStream(transport, protocol)
    try:
        await _open_tunnel(stream, proxy_url, url)
    except BaseException:
        await stream.close()
        raise
    return transport


class _SocketStream:
    """A plain connection to a proxy; python-socks reads from it and writes to it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, proxy_url: WSParsedURL
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._proxy_url = proxy_url

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def read(self) -> bytes:
        """Return the whole head of the final HTTP response, and nothing of what follows it."""
        # What follows belongs to the target, so it has to stay in the system: hence single bytes.
        head = b""
        for _ in range(_MAX_PROXY_HEAD):
            head += await self.read_exactly(1)
            if head.endswith(_END_OF_HEAD):
                if _INTERIM.match(head) is None:
                    return head
                head = b""
        raise _head_too_long(self._proxy_url)

    async def read_exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            received = await self._loop.sock_recv(self._sock, n - len(data))
            if not received:
                raise _closed_early(self._proxy_url)
            data += received
        return data

    async def close(self) -> None:
        self._sock.close()

    # Their names before python-socks 3.
    write_all = write
    read_exact = read_exactly


class _TransportStream:
    """A TLS connection to a proxy, which speaks HTTP."""

    def __init__(self, transport: asyncio.Transport, protocol: _HeadReader) -> None:
        self._transport = transport
        self._protocol = protocol

    async def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def read(self) -> bytes:
        return await self._protocol.head

    async def close(self) -> None:
        self._transport.abort()
        await self._protocol.lost.wait()


class _HeadReader(asyncio.Protocol):
    """Reads the head of the final HTTP response, then pauses the transport."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proxy_url: WSParsedURL) -> None:
        self.head: asyncio.Future[bytes] = loop.create_future()
        self.lost = asyncio.Event()
        self._proxy_url = proxy_url
        self._received = b""
        self._interim_size = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.head.done():
            return
        self._received += data
        while True:
            end = self._received.find(_END_OF_HEAD)
            if end < 0 or _INTERIM.match(self._received) is None:
                break
            self._interim_size += end + len(_END_OF_HEAD)
            self._received = self._received[end + len(_END_OF_HEAD) :]
        if end < 0:
            if self._interim_size + len(self._received) > _MAX_PROXY_HEAD:
                self._fail(_head_too_long(self._proxy_url))
            return
        if self._transport is not None:
            self._transport.pause_reading()
        if end + len(_END_OF_HEAD) == len(self._received):
            self.head.set_result(self._received)
        else:
            # In TLS and in WebSocket the client speaks first, so this is not the target.
            self._fail(WSProxyError(f"{_label(self._proxy_url)} sent data behind its response"))

    def eof_received(self) -> None:
        self._fail(_closed_early(self._proxy_url))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or _closed_early(self._proxy_url))
        self.lost.set()

    def _fail(self, exc: Exception) -> None:
        if not self.head.done():
            self.head.set_exception(exc)
            # If nobody comes to read the head any more, that is no error of its own.
            self.head.exception()


def _closed_early(proxy_url: WSParsedURL) -> WSProxyError:
    return WSProxyError(
        f"{_label(proxy_url)} closed the connection before the tunnel was open", ended_early=True
    )


def _head_too_long(proxy_url: WSParsedURL) -> WSProxyError:
    return WSProxyError(f"{_label(proxy_url)} sent a response head over {_MAX_PROXY_HEAD} bytes")
