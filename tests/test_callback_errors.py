"""Listener methods that raise, and that end the connection from inside themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSConnectionClosedError,
    WSDisconnectCause,
    WSMsgType,
    WSProtocolError,
    WSState,
)

from .peers import TIMEOUT, check_end, connected, ended
from .support import Recorder, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")

CALLBACKS = (
    "on_ws_connected",
    "on_ws_frame",
    "on_ws_closing",
    "on_ws_disconnected",
    "pause_writing",
    "resume_writing",
    "send_user_specific_ping",
    "is_user_specific_pong",
)


# --- Listener methods that raise


class Failing(Recorder):
    """Raises `error` in the callback of that name, `times` times."""

    def __init__(self, name, error, times=1000):
        super().__init__()
        self.name = name
        self.error = error
        self.left = times

    def fail(self, name):
        if name == self.name and self.left:
            self.left -= 1
            self._note(f"{name} raises")
            raise self.error

    def on_ws_connected(self, transport):
        super().on_ws_connected(transport)
        self.fail("on_ws_connected")

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        self.fail("on_ws_frame")

    def on_ws_closing(self, transport):
        super().on_ws_closing(transport)
        self.fail("on_ws_closing")

    def on_ws_disconnected(self, transport):
        super().on_ws_disconnected(transport)
        self.fail("on_ws_disconnected")

    def pause_writing(self):
        super().pause_writing()
        self.fail("pause_writing")

    def resume_writing(self):
        super().resume_writing()
        self.fail("resume_writing")

    def send_user_specific_ping(self, transport):
        self.fail("send_user_specific_ping")
        super().send_user_specific_ping(transport)

    def is_user_specific_pong(self, frame):
        self.fail("is_user_specific_pong")
        return super().is_user_specific_pong(frame)


async def provoke(pair, name):
    """Make the callback of that name happen; it is the peer who ends the connection, if need be."""
    if name == "on_ws_frame":
        await pair.peer.send(WSMsgType.TEXT, "!")
    elif name == "on_ws_closing":
        await pair.peer.send_close(1000)
    elif name == "on_ws_disconnected":
        pair.transport.disconnect(graceful=False)
    elif name in ("pause_writing", "resume_writing"):
        pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        assert "pause_writing" in pair.listener.events
    elif name == "send_user_specific_ping":
        await pair.listener.until(lambda: "send_user_specific_ping raises" in pair.listener.events)
    elif name == "is_user_specific_pong":
        assert (await pair.peer.read_frame())[0] == WSMsgType.PING
        await pair.peer.send(WSMsgType.TEXT, "is it a pong?")


PINGING = {
    "enable_auto_ping": True,
    "auto_ping_idle_timeout": 0.02,
    "auto_ping_reply_timeout": 10,
}


@pytest.mark.parametrize("name", CALLBACKS)
async def test_callback_error(link, name, caplog):
    error = LookupError("the callback's own")
    listener = Failing(name, error)
    options = PINGING if "ping" in name or "pong" in name else {}
    async with link(listener, small_buffers=True, close_timeout=2, **options) as pair:
        await provoke(pair, name)
        if name != "on_ws_disconnected":
            code, reason = await pair.peer.read_close()
            assert (code, reason) == (WSCloseCode.INTERNAL_ERROR, "")
        await pair.peer.read_to_end()
        pair.peer.close()
        await listener.closed()
        cause = WSDisconnectCause.CALLBACK_ERROR
        if name == "on_ws_disconnected":
            cause = WSDisconnectCause.LOCAL_ABORT
        elif name == "on_ws_closing":
            cause = WSDisconnectCause.CLOSE_FRAME
        if pair.transport.is_client_side:
            for _ in range(2):
                with pytest.raises(LookupError) as caught:
                    await ended(pair.transport)
                assert caught.value is error
        else:
            await ended(pair.transport)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.exc_info[1] is error
        if cause == WSDisconnectCause.CALLBACK_ERROR:
            assert pair.transport.disconnect_exception is error
        await check_end(pair, cause)


@pytest.mark.parametrize("name", [name for name in CALLBACKS if name != "on_ws_disconnected"])
async def test_protocol_error_of_a_callback_chooses_code_and_reason(link, name, caplog):
    """It is a refusal, no error: one line in the log, whatever disconnect_on_exception says."""
    caplog.set_level(logging.INFO)
    error = WSProtocolError(4444, "as the callback said: é" + "x" * 200)
    listener = Failing(name, error)
    options = PINGING if "ping" in name or "pong" in name else {}
    async with link(listener, small_buffers=True, disconnect_on_exception=False, **options) as pair:
        await provoke(pair, name)
        code, reason = await pair.peer.read_close()
        assert code == 4444
        assert reason.startswith("as the callback said: é")
        assert len(reason.encode()) <= 123
        pair.peer.close()
        await listener.closed()
        if name != "on_ws_closing":
            assert pair.transport.disconnect_cause == WSDisconnectCause.LOCAL_REFUSAL
            assert pair.transport.disconnect_exception is error
        if pair.transport.is_client_side:
            with pytest.raises(WSProtocolError) as caught:
                await ended(pair.transport)
            assert caught.value is error
    told = [record for record in caplog.records if " refuses: as the" in record.getMessage()]
    assert [record.exc_info for record in told] == [None]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


@pytest.mark.parametrize(
    "name", [name for name in CALLBACKS if name not in ("on_ws_connected", "on_ws_closing")]
)
async def test_disconnect_on_exception_off(link, name, caplog):
    error = LookupError("logged")
    listener = Failing(name, error, times=1)
    options = PINGING if "ping" in name or "pong" in name else {}
    async with link(listener, small_buffers=True, disconnect_on_exception=False, **options) as pair:
        await provoke(pair, name)
        if name == "on_ws_disconnected":
            await listener.closed()
        else:
            reading = asyncio.create_task(pair.peer.read_to_end())
            await pair.peer.send(WSMsgType.TEXT, "still there")
            await listener.until(lambda: (WSMsgType.TEXT, b"still there", True) in listener.frames)
            assert pair.transport.state == WSState.OPEN
            pair.transport.disconnect()
            await reading
            pair.peer.close()
        await listener.closed()
        await ended(pair.transport)
    assert [record.exc_info[1] for record in caplog.records] == [error]


async def test_disconnect_on_exception_off_does_not_save_a_listener_that_failed_to_start(link):
    listener = Failing("on_ws_connected", LookupError("no start"))
    async with link(listener, disconnect_on_exception=False) as pair:
        assert await pair.peer.read_close() == (WSCloseCode.INTERNAL_ERROR, "")
        pair.peer.close()
        await listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.CALLBACK_ERROR
        if pair.transport.is_client_side:
            with pytest.raises(LookupError):
                await ended(pair.transport)


@pytest.mark.parametrize("size", [100_000, 1], ids=["one read", "byte by byte"])
async def test_disconnect_on_exception_off_goes_on_in_the_same_read(link, size):
    class Raising(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            raise ValueError(frame.get_payload_as_bytes())

    async with link(Raising(), disconnect_on_exception=False) as pair:
        data = b"".join(pair.peer.frame(WSMsgType.TEXT, str(i)) for i in range(20))
        data += pair.peer.frame(WSMsgType.CLOSE, b"\x03\xe8")
        data = pair.peer.encrypt(data)
        for start in range(0, len(data), size):
            await pair.peer.send_raw(data[start : start + size])
            await asyncio.sleep(0)
        await pair.listener.frame(20)
        pair.transport.send_close(1000)
        assert await pair.peer.read_close() == (1000, "")
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.CLOSE_FRAME)
        await ended(pair.transport)
    assert [frame[1] for frame in pair.listener.frames[:20]] == [b"%d" % i for i in range(20)]


async def check_told(pair, error, caplog):
    """Wait for the end. The callback's error was given to who waited, or else logged."""
    pair.peer.close()
    await pair.listener.closed()
    if pair.transport.is_client_side:
        with pytest.raises(LookupError) as raised:
            await ended(pair.transport)
        assert raised.value is error
    else:
        assert [record.exc_info[1] for record in caplog.records] == [error]


async def test_an_error_in_the_callback_of_close_is_not_lost(link, caplog):
    """CLOSE is given out like any frame, and so is what its callback raises."""
    error = LookupError("in the last callback")
    async with link(Failing("on_ws_frame", error)) as pair:
        await pair.peer.send_close(1000, "bye")
        assert await pair.peer.read_close() == (WSCloseCode.INTERNAL_ERROR, "")
        await check_told(pair, error, caplog)
    assert pair.listener.events.count("disconnected") == 1


@pytest.mark.parametrize("graceful", [True, False])
async def test_an_error_after_disconnect_in_the_same_callback_is_not_lost(link, graceful, caplog):
    error = LookupError("too late to choose the close code")

    class Raising(Recorder):
        def on_ws_frame(self, transport, frame):
            transport.disconnect(graceful)
            raise error

    async with link(Raising()) as pair:
        await pair.peer.send(WSMsgType.TEXT, "!")
        await pair.peer.read_to_end()
        await check_told(pair, error, caplog)


async def test_a_second_error_is_logged(link, caplog):
    class Raising(Recorder):
        def on_ws_frame(self, transport, frame):
            raise LookupError("first")

        def on_ws_disconnected(self, transport):
            super().on_ws_disconnected(transport)
            raise KeyError("second")

    async with link(Raising()) as pair:
        await pair.peer.send(WSMsgType.TEXT, "!")
        pair.peer.close()
        await pair.listener.closed()
        if pair.transport.is_client_side:
            with pytest.raises(LookupError, match="first"):
                await ended(pair.transport)
    assert repr(caplog.records[-1].exc_info[1]) == "KeyError('second')"


@pytest.mark.parametrize("name", ["on_ws_frame", "on_ws_disconnected"])
async def test_stop_iteration_of_a_callback(link, name):
    """A future does not take a StopIteration, but waiting has to end all the same."""
    async with link(Failing(name, StopIteration("of next()"))) as pair:
        await provoke(pair, name)
        pair.peer.close()
        await pair.listener.closed()
        if pair.transport.is_client_side:
            with pytest.raises(RuntimeError) as caught:
                await ended(pair.transport)
            assert isinstance(caught.value.__cause__, StopIteration)
        else:
            await ended(pair.transport)


@pytest.mark.parametrize(
    "name", ["on_ws_frame", "on_ws_disconnected", "pause_writing", "resume_writing"]
)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_fatal_errors_reach_the_loop(side, io_options, name, kind):
    """KeyboardInterrupt and SystemExit end the loop, and the connection with them."""
    for new_loop in loop_factories():
        loop = new_loop()
        kept = []

        async def scenario():
            async with connected(
                side, Failing(name, kind("now")), small_buffers=True, **io_options
            ) as pair:
                kept.append(pair)  # noqa: B023
                if name == "pause_writing":
                    loop = asyncio.get_running_loop()
                    loop.call_soon(pair.transport.send, WSMsgType.BINARY, bytes(1_000_000))
                else:
                    await provoke(pair, name)
                await pair.peer.read_to_end()
                pair.peer.close()
                await pair.listener.closed()

        task = loop.create_task(scenario())
        try:
            with pytest.raises(kind):
                loop.run_until_complete(task)
            (pair,) = kept
            assert pair.transport.state != WSState.OPEN
            while not task.done():
                with contextlib.suppress(RuntimeError):  # uvloop stops once more
                    loop.run_until_complete(asyncio.wait([task], timeout=TIMEOUT))
            assert pair.transport.is_disconnected
            assert pair.listener.events.count("disconnected") == 1
        finally:
            loop.close()


@pytest.mark.parametrize("name", ["on_ws_connected", "factory"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_fatal_errors_while_it_opens(side, io_options, name, kind):
    """They reach the loop, once; ws_connect fails, and the connection is ended on both sides."""

    def fail(*request):
        if name == "factory":
            raise kind
        return Failing("on_ws_connected", kind())

    factories = {"client": Recorder, "server": lambda request: Recorder(), side: fail}

    async def scenario():
        async with serving(
            factories["server"], websocket_handshake_timeout=1, close_timeout=1, **io_options
        ) as url:
            _, client = await picows_fast.ws_connect(factories["client"], url, **io_options)
            await client.closed()

    for new_loop in loop_factories():
        loop = new_loop()
        task = loop.create_task(scenario())
        try:
            with pytest.raises(kind):
                loop.run_until_complete(task)
            while not task.done():
                with contextlib.suppress(RuntimeError):  # uvloop stops once more
                    loop.run_until_complete(asyncio.wait([task], timeout=TIMEOUT))
            error = task.exception()
            if side == "client":
                assert isinstance(error, WSConnectionClosedError)
                assert error.cause == (
                    WSDisconnectCause.CALLBACK_ERROR
                    if name == "on_ws_connected"
                    else WSDisconnectCause.HANDSHAKE_FAILED
                )
            elif name == "factory":
                assert isinstance(error, picows_fast.WSInvalidStatusError)
            else:
                assert error is None
        finally:
            loop.close()


def loop_factories():
    yield asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        return
    yield uvloop.new_event_loop


# --- Ending it from inside a callback

ACTIONS = {
    "disconnect": lambda transport: transport.disconnect(),
    "abort": lambda transport: transport.disconnect(graceful=False),
    "close": lambda transport: transport.send_close(1000),
    "send": lambda transport: transport.send(WSMsgType.TEXT, b"from inside"),
    "pause": lambda transport: transport.pause_reading(),
    "resume": lambda transport: transport.resume_reading(),
    "pause and resume": lambda transport: (transport.pause_reading(), transport.resume_reading()),
    "cork": lambda transport: transport.cork(),
    "close and disconnect": lambda transport: (transport.send_close(1000), transport.disconnect()),
    "send large": lambda transport: transport.send(WSMsgType.BINARY, bytes(1_000_000)),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    ("side", "tls", "use_loop_transport"),
    [("client", False, False), ("server", True, False), ("client", False, True)],
    ids=["client", "TLS server", "loop-transport"],
)
async def test_actions_inside_callbacks(
    side, tls, use_loop_transport, name, action, tls_contexts, caplog
):
    """Whatever is called from inside a callback, the connection ends once and for good."""

    class Acting(Failing):
        def fail(self, called):
            if called == name and self.left:
                self.left -= 1
                self._note(f"{name} raises")
                ACTIONS[action](self.transport)

    listener = Acting(name, None, times=3)
    async with connected(
        side,
        listener,
        contexts=tls_contexts if tls else None,
        use_loop_transport=use_loop_transport,
        small_buffers=True,
        close_timeout=0.2,
        **(PINGING if "ping" in name or "pong" in name else {}),
    ) as pair:
        await provoke(pair, name)
        reading = asyncio.create_task(pair.peer.read_to_end())
        await listener.until(lambda: f"{name} raises" in listener.events)
        pair.transport.uncork()
        pair.transport.resume_reading()
        pair.transport.disconnect()
        await reading
        pair.peer.close()
        await listener.closed()
        await ended(pair.transport)
    assert listener.events.count("disconnected") == 1
    assert not caplog.records


async def test_sending_inside_callbacks_keeps_the_order(link):
    class Answering(Recorder):
        def on_ws_connected(self, transport):
            super().on_ws_connected(transport)
            transport.send(WSMsgType.TEXT, "first")

        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            transport.send(WSMsgType.TEXT, b"answer to " + frame.get_payload_as_bytes())
            if frame.get_payload_as_bytes() == b"2":
                transport.send_close(1000, "enough")
                transport.send(WSMsgType.TEXT, "after CLOSE")

        def on_ws_disconnected(self, transport):
            transport.send(WSMsgType.TEXT, "after the end")
            super().on_ws_disconnected(transport)

    async with link(Answering()) as pair:
        await pair.peer.send_bytes(
            b"".join(pair.peer.frame(WSMsgType.TEXT, str(i)) for i in range(5))
        )
        got = [(await pair.peer.read_frame())[1] for _ in range(5)]
        assert got[:4] == [b"first", b"answer to 0", b"answer to 1", b"answer to 2"]
        assert got[4][2:] == b"enough"
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await pair.listener.closed()
    assert [frame[1] for frame in pair.listener.frames] == [b"0", b"1", b"2"]
