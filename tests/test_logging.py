"""What is logged, under which logger and level, as docs/guide.md says."""

from __future__ import annotations

import asyncio
import logging

import pytest

import picows_fast
from picows_fast import PICOWS_DEBUG_LL, WSFrame, WSListener, WSMsgType, WSTransport

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
        opened, closed = logged(caplog, name, logging.DEBUG)
        assert opened.endswith("open, b'/'")
        assert closed.endswith("LOCAL_DISCONNECT" if name == "client" else "PEER_FIN")


async def test_nothing_to_say_of_a_connection_in_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(lambda request: Echo()) as url:
        await echo_once(url)
    assert [record for record in caplog.records if record.name.startswith("picows_fast")] == []


async def test_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    own = logging.getLogger("desk")
    async with serving(lambda request: Echo(), logger_name="feed") as url:
        await echo_once(url, logger_name=own)
    assert {record.name for record in caplog.records} >= {"picows_fast.feed", "desk"}


class Raises(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        raise ZeroDivisionError


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
    assert logged(caplog, "client", logging.ERROR) == []


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
    violation, refused = logged(caplog, "server", logging.INFO)
    assert violation.endswith("frame of a client is not masked (RFC 6455 5.1)")
    assert "refused: not a valid request" in refused
    assert logged(caplog, "server", logging.ERROR) == []
