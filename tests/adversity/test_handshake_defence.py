"""What the opening handshake costs against strangers: memory, time, and what they are told.

A server is dripped on, flooded and lied to by clients, a client by servers. Bounds are stated in
bytes; time is counted in calls, not in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import picows_fast
from picows_fast import (
    WSHandshakeError,
    WSInvalidMessageError,
    WSInvalidStatusError,
    WSListener,
    parse_url,
)
from picows_fast.protocol.upgrade import ClientHandshake, ServerHandshake

from ..peers import TIMEOUT, connect_socket
from ..support import Recorder, address, raw_server, serving
from .checks import KIB, LOOP_BUFFERS, MIB, Leftovers, log_below, memory_below

pytestmark = pytest.mark.usefixtures("leaves_nothing")

REQUEST_LINE = b"GET / HTTP/1.1\r\n"
HEADERS = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
REQUEST = REQUEST_LINE + HEADERS + b"\r\n"

OPTIONS = {"websocket_handshake_timeout": 0.2, "close_timeout": 0.1}

# With the chunk of the test's own that is under way. The rest is the connection's.
SHARED = LOOP_BUFFERS + 160 * KIB
ONE_HANDSHAKE = 384 * KIB


def request_with(*lines: bytes) -> bytes:
    return REQUEST_LINE + HEADERS + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def changed(old: bytes, new: bytes) -> bytes:
    assert old in REQUEST
    return REQUEST.replace(old, new)


# name: (what the client sends, the status it gets)
REQUESTS: dict[str, tuple[bytes, int]] = {
    "2,000 headers": (request_with(*(b"X-%d: y" % number for number in range(2000))), 431),
    "200 headers": (request_with(*(b"X-%d: y" % number for number in range(200))), 431),
    "2,000 headers of one name": (request_with(*[b"X: y"] * 2000), 431),
    "a long header": (request_with(b"X: " + b"y" * 20_000), 431),
    "a long header name": (request_with(b"X" * 20_000 + b": y"), 431),
    "a long request line": (changed(b"GET / ", b"GET /" + b"y" * 20_000 + b" "), 431),
    "a long method": (b"A" * 200 + REQUEST, 400),
    "two equal lengths": (request_with(b"Content-Length: 0", b"Content-Length: 0"), 400),
    "two lengths": (request_with(b"Content-Length: 0", b"Content-Length: 5"), 400),
    "two lengths in one": (request_with(b"Content-Length: 5, 6"), 400),
    "a length and chunks": (request_with(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    "a negative length": (request_with(b"Content-Length: -1"), 400),
    "a length with a sign": (request_with(b"Content-Length: +5"), 400),
    "a hexadecimal length": (request_with(b"Content-Length: 0x5"), 400),
    "a length of 300 digits": (request_with(b"Content-Length: " + b"9" * 300), 400),
    "a body": (request_with(b"Content-Length: 5") + b"hello", 413),
    "a body to come": (request_with(b"Content-Length: 999999999"), 413),
    "chunks": (request_with(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", 501),
    "an unknown coding": (request_with(b"Transfer-Encoding: zstd"), None),
    "a folded line": (request_with(b"X: a", b" b"), 400),
    "a line folded by a tab": (request_with(b"X: a", b"\tb"), 400),
    "a bare LF": (REQUEST.replace(b"\r\n", b"\n"), 400),
    "a bare LF at the end": (REQUEST[:-2] + b"\n", 400),
    "a bare CR": (request_with(b"X: a\rY: b"), 400),
    "a NUL": (request_with(b"X: a\0b"), 400),
    "a NUL in a name": (request_with(b"X\0: a"), 400),
    "a space before the colon": (request_with(b"X : a"), 400),
    "no colon": (request_with(b"what is this"), 400),
    "an empty name": (request_with(b": a"), 400),
    "no Host": (changed(b"Host: localhost\r\n", b""), 400),
    "two Hosts": (request_with(b"Host: elsewhere"), 400),
    "two keys": (request_with(b"Sec-WebSocket-Key: BAAAAAAAAAAAAAAAAAAAAA=="), 400),
    "a short key": (changed(b"AA==", b"=="), 400),
    "no upgrade": (changed(b"Upgrade: websocket\r\n", b""), 426),
    "an old version": (changed(b"Version: 13", b"Version: 8"), 426),
    "a list of versions": (changed(b"Version: 13", b"Version: 8, 13"), 426),
    "two versions": (request_with(b"Sec-WebSocket-Version: 13"), 400),
    "a POST": (changed(b"GET", b"POST"), 405),
    "HTTP/1.0": (changed(b"HTTP/1.1", b"HTTP/1.0"), 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "garbage": (bytes(range(256)) * 4, 400),
    "zeros": (bytes(1000), 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "a frame": (b"\x81\x85\0\0\0\0hello", 400),
    "empty lines": (b"\r\n" * 100, 400),
}


async def answer_to(url: str, data: bytes, *, piece: int | None = None) -> bytes:
    """What a server sends until it ends the connection."""
    loop = asyncio.get_running_loop()
    answer = b""
    with await connect_socket(address(url)) as sock:

        async def send() -> None:
            with contextlib.suppress(OSError):
                for at in range(0, len(data), piece or len(data)):
                    await loop.sock_sendall(sock, data[at : at + (piece or len(data))])
                    if piece:
                        await asyncio.sleep(0)

        sending = asyncio.ensure_future(send())
        with contextlib.suppress(ConnectionError):
            while received := await asyncio.wait_for(loop.sock_recv(sock, 65536), TIMEOUT):
                answer += received
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return answer


def check_refusal(answer: bytes, status: int | None) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    got = int(lines[0].split()[1])
    assert lines[0].startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))
    assert 400 <= got < 600
    assert status in (got, None)
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
    assert b"close" in headers[b"connection"]
    assert int(headers[b"content-length"]) == len(body) < 500
    if got == 426:
        assert headers[b"sec-websocket-version"] == b"13"
        assert headers[b"upgrade"] == b"websocket"


@pytest.mark.parametrize("piece", [None, 1000, 7], ids=["whole", "pieces", "small pieces"])
async def test_requests_that_are_refused(io_options, piece, caplog):
    """Each of REQUESTS gets its status and the end of the connection. No listener hears of it."""
    listener = Recorder()
    options = OPTIONS | {"websocket_handshake_timeout": 5} | io_options
    with log_below(caplog, logging.WARNING):
        async with serving(lambda request: listener, **options) as url:
            for name, (data, status) in REQUESTS.items():
                if piece == 7 and len(data) > 2000:
                    continue
                leftovers = Leftovers()
                try:
                    check_refusal(await answer_to(url, data, piece=piece), status)
                except Exception as error:
                    raise AssertionError(name) from error
                await leftovers.none(name)
    assert listener.events == []


@pytest.mark.parametrize("dripped", [REQUEST_LINE + b"X: " + b"y" * 4000, b"", b"GET"])
async def test_dripped_requests_get_408(contexts, io_options, dripped, caplog):
    """A request that comes a byte at a time, or not at all, is ended at the deadline for the whole
    of it.
    """
    listener = Recorder()
    with log_below(caplog, logging.WARNING):
        async with serving(
            lambda request: listener, tls=contexts and contexts.server, **OPTIONS, **io_options
        ) as url:
            reader, writer = await asyncio.open_connection(
                *address(url), ssl=contexts and contexts.client
            )

            async def drip() -> None:
                for byte in dripped:
                    writer.write(bytes((byte,)))
                    await asyncio.sleep(0.001)

            dripping = asyncio.ensure_future(drip())
            answer = await asyncio.wait_for(reader.read(), TIMEOUT)
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    check_refusal(answer, 408)
    assert listener.events == []


@pytest.mark.parametrize(
    "unit",
    [b"X: " + b"y" * 59 + b"\r\n", b"y" * 64],
    ids=["headers", "one line"],
)
async def test_20_megabytes_of_headers(io_options, unit, caplog):
    """They get 431 after the first 16 KiB, and the rest goes nowhere: less than 384 KiB for the
    connection.
    """
    chunk = memoryview(unit * KIB)
    loop = asyncio.get_running_loop()
    options = {"websocket_handshake_timeout": 5, "close_timeout": 5} | io_options
    with log_below(caplog, logging.WARNING, record=logging.WARNING):
        async with (
            serving(lambda request: Recorder(), **options) as url,
            memory_below(peak=SHARED + ONE_HANDSHAKE, held=SHARED),
        ):
            leftovers = Leftovers()
            with await connect_socket(address(url)) as sock:
                await loop.sock_sendall(sock, REQUEST_LINE + b"Host: localhost\r\n")
                sent = 0
                while sent < 20 * MIB:
                    await loop.sock_sendall(sock, chunk)
                    sent += len(chunk)
                # All of it was read, so the answer is not lost to a reset.
                answer = await asyncio.wait_for(loop.sock_recv(sock, 65536), TIMEOUT)
                check_refusal(answer, 431)
            await leftovers.none()


async def test_a_peer_that_is_refused_and_sends_on_is_cut_off(io_options):
    """Its connection ends `close_timeout` seconds after the answer."""
    loop = asyncio.get_running_loop()
    async with serving(lambda request: Recorder(), **OPTIONS, **io_options) as url:
        leftovers = Leftovers()
        with await connect_socket(address(url)) as sock:

            async def send() -> None:
                while True:
                    await loop.sock_sendall(sock, bytes(64 * KIB))

            with pytest.raises(OSError):
                await asyncio.wait_for(send(), TIMEOUT)
        await leftovers.none()


async def test_many_half_open_handshakes(io_options):
    """200 clients that begin a request and stop cost less than 16 KiB each, over the loop's
    transports 96 KiB.
    """
    count = 200
    each = 96 * KIB if io_options["use_loop_transport"] else 16 * KIB
    async with (
        serving(
            lambda request: Recorder(),
            **OPTIONS | {"websocket_handshake_timeout": 1.5},
            **io_options,
        ) as url,
        memory_below(peak=SHARED + count * each, held=SHARED),
    ):
        leftovers = Leftovers()
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(await connect_socket(address(url))) for _ in range(count)]
            for sock in socks:
                sock.send(REQUEST_LINE + b"X: " + b"y" * 1000)
            for sock in socks:
                received = await asyncio.wait_for(
                    asyncio.get_running_loop().sock_recv(sock, 1000), TIMEOUT
                )
                check_refusal(received, 408)
        await leftovers.none()


SECRET = "the password is 1234"


@pytest.mark.parametrize(
    "kind", [RuntimeError, ValueError, TypeError, WSHandshakeError, TimeoutError, OSError]
)
async def test_text_of_a_factorys_exception_is_logged_and_never_sent(io_options, kind, caplog):
    """The client gets 500 without a word of it, the log all of it."""

    def factory(request: object) -> WSListener:
        raise kind(SECRET)

    async with serving(factory, **io_options) as url:
        answer = await answer_to(url, REQUEST)
    check_refusal(answer, 500)
    assert SECRET.encode() not in answer
    assert kind.__name__.encode() not in answer
    assert any(
        SECRET in str(record.exc_info)
        for record in caplog.records
        if record.levelno == logging.ERROR
    )


# --- Linear time: the same number of calls for each byte, however many came before


def calls_made(function: Callable[[], object]) -> int:
    """Calls of Python and C functions, which do not turn with the machine as seconds do."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def dripped(make: Callable[[], Any], data: bytes) -> Callable[[], None]:
    def run() -> None:
        handshake = make()
        for at in range(len(data)):
            handshake.receive_data(data[at : at + 1])

    return run


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (ServerHandshake, REQUEST_LINE),
        (lambda: ClientHandshake(parse_url("ws://localhost/")), b"HTTP/1.1 101 Switching\r\n"),
    ],
    ids=["request", "response"],
)
@pytest.mark.parametrize("line", [b"X: y\r\n", b"X: " + b"y" * 95 + b"\r\n"], ids=["short", "long"])
def test_calls_grow_with_the_bytes(make, start, line):
    """Twice the bytes, one at a time, make no more than twice the calls."""
    count = 60
    once = calls_made(dripped(make, start + line * count))
    twice = calls_made(dripped(make, start + line * count * 2))
    assert twice <= 2 * once
    assert once < 20 * len(start + line * count)


class CountedBytes(bytearray):
    """Counts the bytes that searches go over."""

    searched = 0

    def find(self, sub: Any, start: int = 0, end: int | None = None) -> int:
        limit = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, limit)
        CountedBytes.searched += (found if found >= 0 else limit) - start
        return found


@pytest.mark.parametrize("piece", [1, 10, 1000])
def test_each_byte_is_searched_once(piece):
    """However the head is cut, the search for the end of a line does not begin anew."""
    data = REQUEST_LINE + HEADERS + b"X: " + b"y" * 10_000
    handshake = ServerHandshake()
    handshake.receive_data(data[:piece])
    handshake._reader.received = CountedBytes(handshake._reader.received)
    CountedBytes.searched = 0
    for at in range(piece, len(data), piece):
        handshake.receive_data(data[at : at + piece])
    assert 0 < CountedBytes.searched <= len(data)


# --- Servers that mean harm to a client


async def endless(head: bytes, unit: bytes, writer: asyncio.StreamWriter) -> None:
    """`head`, and then the same for ever, until the client has gone."""
    writer.write(head)
    chunk = unit * max(16 * KIB // len(unit), 1)
    while True:
        writer.write(chunk)
        await writer.drain()


@contextlib.asynccontextmanager
async def hostile_server(head: bytes, unit: bytes, pause: float | None) -> AsyncIterator[str]:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(
            RuntimeError
        ):  # uvloop's answer to writing when the client is gone
            if pause is None:
                await endless(head, unit, writer)
            writer.write(head)
            while True:
                writer.write(unit)
                await writer.drain()
                await asyncio.sleep(pause)

    async with raw_server(behave, upgrade=False) as url:
        yield url


FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

# name: (head, what follows for ever, seconds between two of it, the error)
SERVERS: dict[str, tuple[bytes, bytes, float | None, type[BaseException]]] = {
    "endless headers": (b"HTTP/1.1 101 Switching\r\n", b"X: y\r\n", None, WSInvalidMessageError),
    "an endless header": (b"HTTP/1.1 101 Switching\r\nX: ", b"y", None, WSInvalidMessageError),
    "an endless status line": (b"HTTP/1.1 101 ", b"y", None, WSInvalidMessageError),
    "garbage": (b"", b"\xff\0", None, WSInvalidMessageError),
    "empty lines": (b"", b"\r\n", None, WSInvalidMessageError),
    "endless interim responses": (b"", INTERIM, None, WSInvalidMessageError),
    "an endless body": (FORBIDDEN + b"\r\n", b"no ", None, WSInvalidStatusError),
    "a body of a great length": (
        FORBIDDEN + b"Content-Length: 999999999999\r\n\r\n",
        b"no ",
        None,
        WSInvalidStatusError,
    ),
    "endless chunks": (
        FORBIDDEN + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
        None,
        WSInvalidStatusError,
    ),
    "an endless chunk": (
        FORBIDDEN + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"x",
        None,
        WSInvalidStatusError,
    ),
    "an endless chunk extension": (
        FORBIDDEN + b"Transfer-Encoding: chunked\r\n\r\n1;",
        b"x",
        None,
        WSInvalidStatusError,
    ),
    "endless trailers": (
        FORBIDDEN + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: y\r\n",
        None,
        WSInvalidStatusError,
    ),
    "a slow head": (b"HTTP/1.1 101 Switching\r\n", b"X: y\r\n", 0.01, asyncio.TimeoutError),
    "a slow body": (FORBIDDEN + b"\r\n", b"no ", 0.01, WSInvalidStatusError),
    "slow interim responses": (b"", INTERIM, 0.05, asyncio.TimeoutError),
}


@pytest.mark.parametrize("name", SERVERS)
async def test_hostile_servers(io_options, name, caplog):
    """ws_connect raises by its deadline, leaves nothing, and took less than 640 KiB beside the
    shared buffers.
    """
    head, unit, pause, expected = SERVERS[name]
    error: Any = None
    with log_below(caplog, logging.WARNING):
        async with (
            hostile_server(head, unit, pause) as url,
            memory_below(peak=SHARED + 640 * KIB, held=SHARED + 128 * KIB),
        ):
            try:
                await picows_fast.ws_connect(
                    Recorder, url, websocket_handshake_timeout=0.3, **io_options
                )
            except Exception as caught:
                # Its traceback and context keep the bytes that it is about.
                error = caught.with_traceback(None)
                error.__context__ = None
    assert type(error) is expected
    if isinstance(error, WSInvalidStatusError):
        assert error.response.status == 403
        assert len(error.raw_body) <= 64 * KIB


async def test_redirects_for_ever(io_options):
    """They end after `max_redirects`, and each connection is closed before the next is opened."""
    connections = 0

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with raw_server(redirect, upgrade=False) as url:
        with pytest.raises(picows_fast.WSError, match="more than 3 redirects"):
            await picows_fast.ws_connect(Recorder, url, max_redirects=3, **io_options)
    assert connections == 4
