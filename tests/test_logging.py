"""What is logged, under which logger and level, as docs/guide.md says."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

import picows_fast
from picows_fast import (
    PICOWS_DEBUG_LL,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
)
from picows_fast.transport.logs import SafeLogger, resolve_logger

from .peers import connected
from .support import Echo, Recorder, raw_client, serving


def logged(caplog: pytest.LogCaptureFixture, name: str, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelno) == (f"picows_fast.{name}", level)
    ]


async def echo_once(url: str, **options: object) -> None:
    transport, client = await picows_fast.ws_connect(Recorder, url, **options)
    transport.send(WSMsgType.TEXT, "hello")
    await client.frame()
    transport.disconnect()
    await asyncio.wait_for(transport.wait_disconnected(), 20)


async def test_frames_are_logged_below_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(PICOWS_DEBUG_LL)
    async with serving(lambda request: Echo()) as url:
        await echo_once(url)
    for name in ("client", "server"):
        sent, received = logged(caplog, name, PICOWS_DEBUG_LL)[:: 1 if name == "client" else -1]
        assert "sending TEXT, 5 bytes" in sent
        assert "received WSFrame(TEXT, fin=True" in received
        assert logged(caplog, name, logging.DEBUG) == []


async def test_one_line_for_the_beginning_and_one_for_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    listener = Echo()
    async with serving(lambda request: listener, subprotocols=["v1"]) as url:
        transport, _ = await picows_fast.ws_connect(
            Recorder, f"{url}path?token=SECRET", subprotocols=["SECRET", "v1"]
        )
        peer = "%s:%d" % transport.underlying_transport.get_extra_info("sockname")  # noqa: UP031
        transport.send_close(1000, "bye\n")
        await asyncio.wait_for(transport.wait_disconnected(), 20)
        await listener.closed()
    for name, place in (("client", url.rstrip("/")), ("server", peer)):
        opened, ended = logged(caplog, name, logging.INFO)
        assert re.fullmatch(
            rf"<WSTransport {name} {place} \w+ at 0x[0-9a-f]+>: opened"
            + (", subprotocol v1" if name == "server" else ""),
            opened,
        )
        assert re.fullmatch(
            rf"<WSTransport {name} {place} closed at 0x[0-9a-f]+>: ended after \d+\.\d\d\d s: "
            rf"[A-Z_]+, CLOSE 1000 received: 'bye\\n', CLOSE 1000 sent",
            ended,
        )
        assert logged(caplog, name, logging.DEBUG) == []


async def test_the_end_of_a_connection_that_is_lost(
    link: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with link(small_buffers=True) as pair:
        pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        lost = pair.transport.write_backlog
        pair.transport.disconnect(graceful=False)
        await pair.listener.closed()
        await asyncio.sleep(0)
    name = "server" if pair.peer.is_client else "client"
    _, ended = logged(caplog, name, logging.INFO)
    assert re.search(r"s: LOCAL_ABORT, \d+ bytes were not sent$", ended)
    assert int(ended.split()[-5]) >= lost // 2


async def test_refusals(caplog: pytest.LogCaptureFixture) -> None:
    """One line each, with status and reason; what answers a health check is no news."""
    caplog.set_level(logging.INFO)

    def factory(request: WSUpgradeRequest) -> Any:
        if request.path == b"/health":
            return WSUpgradeResponse.create_ok_response(b"fine")
        return None

    async with serving(factory, origins=["https://a.example"]) as url:
        for path, headers in (
            ("health", {"Origin": "https://a.example"}),
            ("none?token=SECRET", {"Origin": "https://a.example"}),
            ("foreign", {"Origin": "https://b.example"}),
        ):
            with pytest.raises(picows_fast.WSInvalidStatusError):
                await picows_fast.ws_connect(Recorder, url + path, extra_headers=headers)
    for line, status in zip(logged(caplog, "client", logging.INFO), (200, 404, 403), strict=True):
        assert line.startswith(f"{url.rstrip('/')}: not connected: the server answered {status}")
    answered, refused = logged(caplog, "server", logging.INFO)
    assert answered.endswith("answered with 404")
    assert "refused with 403: " in refused
    assert "127.0.0.1:" in answered


async def test_connections_that_are_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(lambda request: Echo(), max_connections_per_ip=1) as url:
        writers = []
        for _ in range(33):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", picows_fast.parse_url(url).port
            )
            writers.append(writer)
        assert (await reader.read()).startswith(b"HTTP/1.1 429 ")
        for writer in writers:
            writer.close()
    (line,) = [line for line in logged(caplog, "server", logging.INFO) if "turned away" in line]
    assert line == (
        "a connection from 127.0.0.1 was turned away before its request: max_connections_per_ip"
    )


@pytest.mark.parametrize("side", ["client", "server"])
async def test_what_breaks_the_protocol_is_told_at_once(
    side: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not when the connection is gone, which takes close_timeout."""
    caplog.set_level(logging.INFO)
    async with connected(side) as pair:
        await pair.peer.send_bytes(b"\xff" * 20)
        await pair.peer.read_close()
        assert "breaks the protocol: reserved" in logged(caplog, side, logging.INFO)[-1]


async def test_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    own = logging.getLogger("desk")
    async with serving(lambda request: Echo(), logger_name="feed") as url:
        await echo_once(url, logger_name=own)
    assert {record.name for record in caplog.records} >= {"picows_fast.feed", "desk"}


class Raises(WSListener):
    transport: WSTransport

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        raise ZeroDivisionError

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.ended.set()


async def test_errors_of_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(lambda request: Raises()) as url:
        transport, client = await picows_fast.ws_connect(Recorder, url)
        transport.send(WSMsgType.TEXT, "hello")
        await client.closed()
    (error,) = logged(caplog, "server", logging.ERROR)
    assert error.endswith("on_ws_frame raised")
    async with serving(lambda request: Echo()) as url:
        transport, _ = await picows_fast.ws_connect(Raises, url)
        transport.send(WSMsgType.TEXT, "hello")
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(transport.wait_disconnected(), 20)
    (error,) = logged(caplog, "client", logging.ERROR)
    assert error.endswith("on_ws_frame raised")


async def test_an_error_that_nobody_waits_for_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(lambda request: Echo()) as url:
        transport, client = await picows_fast.ws_connect(Raises, url)
        transport.send(WSMsgType.TEXT, "hello")
        await client.ended.wait()
        await asyncio.sleep(0)
        del transport, client
        gc.collect()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_what_peers_do_wrong_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(lambda request: Echo()) as url:
        reader, writer = await raw_client(url)
        writer.write(picows_fast.build_frame(WSMsgType.TEXT, "not masked"))
        await reader.read()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", picows_fast.parse_url(url).port)
        writer.write(b"no HTTP at all\r\n\r\n")
        await reader.read()
        writer.close()
    _, violation, refused, _ = sorted(
        logged(caplog, "server", logging.INFO), key=lambda line: "ended" in line
    )
    assert violation.endswith("frame of a client is not masked (RFC 6455 5.1)")
    assert "refused with 400: not a valid request" in refused
    assert logged(caplog, "server", logging.ERROR) == []


@pytest.mark.parametrize("ending", ["CLOSE", "disconnect", "abort", "peer FIN", "peer RST"])
async def test_a_normal_life_is_quiet(
    link: Callable[..., Any], ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames, pings, flow control and any end: nothing but the beginning and the end is told, and
    by asyncio nothing."""
    caplog.set_level(logging.INFO)
    async with link(Echo(), small_buffers=True, enable_auto_ping=True) as pair:
        await pair.peer.send(WSMsgType.TEXT, "hello")
        await pair.peer.read_frame()
        pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        await pair.peer.read_frame()
        pair.transport.pause_reading()
        pair.transport.resume_reading()
        await pair.peer.send(WSMsgType.PING)
        await pair.peer.read_frame()
        if ending == "CLOSE":
            pair.transport.send_close(1000)
            await pair.peer.read_close()
            await pair.peer.send_close(1000)
        elif ending == "peer FIN":
            pair.peer.fin()
        elif ending == "peer RST":
            pair.peer.reset()
        else:
            pair.transport.disconnect(graceful=ending == "disconnect")
        pair.peer.close()
        await pair.listener.closed()
        await asyncio.sleep(0)
    opened, ended = caplog.records
    assert opened.levelno == ended.levelno == logging.INFO
    assert "opened" in opened.getMessage()
    assert "ended" in ended.getMessage()


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ("protocol error", "RFC 6455"),
        ("ping timeout", "pong"),
        ("write backlog", "max_write_backlog"),
    ],
)
async def test_levels(
    link: Callable[..., Any],
    trouble: str,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a peer does is never above INFO: peers must not be able to raise an alarm."""
    caplog.set_level(logging.INFO)
    options: dict[str, Any] = {"close_timeout": 0.05}
    if trouble == "ping timeout":
        options.update(
            enable_auto_ping=True, auto_ping_idle_timeout=0.01, auto_ping_reply_timeout=0.01
        )
    elif trouble == "write backlog":
        options.update(max_write_backlog=100_000, small_buffers=True)
    async with link(**options) as pair:
        if trouble == "protocol error":
            await pair.peer.send_bytes(b"\xff" * 20)
        elif trouble == "write backlog":
            pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        await pair.listener.closed()
        assert {record.levelno for record in caplog.records} == {logging.INFO}
        _, told, *_ = caplog.records
        assert text in told.getMessage()
        assert told.name == f"picows_fast.{'server' if pair.peer.is_client else 'client'}"


class Collecting:
    """Just enough of a logger."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name of logging's method
        return level >= logging.DEBUG

    def log(self, level: int, text: str, *args: Any, **more: Any) -> None:
        self.entries.append(f"{level} {text % args}")

    def debug(self, text: str, *args: Any, **more: Any) -> None:
        self.log(logging.DEBUG, text, *args)

    info = warning = error = exception = debug


async def test_logger_like_object(
    link: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    logger = Collecting()
    async with link(Raises(), logger_name=logger, disconnect_on_exception=False) as pair:
        await pair.peer.send(WSMsgType.TEXT, "x")
        await pair.peer.send(WSMsgType.PING)
        await pair.peer.read_frame()
    assert any("open" in entry for entry in logger.entries)
    assert any("on_ws_frame raised" in entry for entry in logger.entries)
    assert caplog.records == []


def test_resolve_logger() -> None:
    assert resolve_logger(None, "client").logger.name == "picows_fast.client"
    assert resolve_logger("feed", "client").logger.name == "picows_fast.feed"
    adapter = logging.LoggerAdapter(logging.getLogger("x"), {})
    assert resolve_logger(adapter, "client").logger is adapter


class Away:
    """A logger whose handlers raise."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        raise ConnectionError("the log server is away")

    def debug(self, *arguments: object, **more: object) -> None:
        raise ConnectionError("the log server is away")

    info = warning = error = exception = log = debug


def log_in_every_way(logger: SafeLogger) -> int:
    """Log with each method; how often."""
    assert not logger.isEnabledFor(logging.INFO)
    logger.log(logging.INFO, "%s", 1)
    logger.debug("%s", 1)
    logger.info("%s", 1)
    logger.warning("%s", 1)
    logger.error("%s", 1, exc_info=ValueError())
    return 6


async def test_errors_of_handlers_go_to_the_loop() -> None:
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    times = log_in_every_way(SafeLogger(Away()))
    assert [type(error) for error in told] == [ConnectionError] * times


async def test_an_exception_handler_may_raise_too() -> None:
    def handler(loop: object, context: object) -> None:
        raise LookupError

    asyncio.get_running_loop().set_exception_handler(handler)
    log_in_every_way(SafeLogger(Away()))


def test_errors_of_handlers_without_a_loop_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    times = log_in_every_way(SafeLogger(Away()))
    assert capsys.readouterr().err.count("ConnectionError: the log server is away") == times


def test_what_ends_the_program_is_raised() -> None:
    class Ending(Away):
        def info(self, *arguments: object, **more: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeLogger(Ending()).info("")


class FailsOnce(Recorder):
    """Its first frame is an error."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if len(self.frames) == 1:
            raise LookupError


@pytest.mark.parametrize("cut", [None, 10])
async def test_a_log_that_raises_costs_no_frame(link: Callable[..., Any], cut: int | None) -> None:
    """The frames behind that of the error are delivered, a cut one as well: its payload is not
    taken for frames."""
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    payload = picows_fast.build_frame(WSMsgType.TEXT, b"forged", mask=True) * 4
    async with link(FailsOnce(), logger_name=Away(), disconnect_on_exception=False) as pair:
        first = pair.peer.frame(WSMsgType.TEXT, b"first")
        second = pair.peer.frame(WSMsgType.BINARY, payload)
        third = pair.peer.frame(WSMsgType.TEXT, b"third")
        data = first + second + third
        size = len(data) if cut is None else len(first) + cut
        await pair.peer.send_bytes(data[:size])
        await pair.listener.frame()
        await pair.peer.send_bytes(data[size:])
        await pair.listener.frame(2)
        assert [frame[1] for frame in pair.listener.frames] == [b"first", payload, b"third"]
        assert ConnectionError in map(type, told)
