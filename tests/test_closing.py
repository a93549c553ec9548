"""How connections end: every cause by a real peer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl

import pytest

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSDisconnectCause,
    WSMsgType,
    WSPeerProtocolError,
    WSState,
    WSViolation,
    build_frame,
)

from .peers import TIMEOUT, check_end, connected, ended
from .support import Echo, Recorder, address, raw_client, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")


# --- Causes


async def test_we_send_close_first(link):
    async with link() as pair:
        pair.transport.send_close(4321, "done")
        assert pair.transport.is_close_frame_sent
        assert pair.transport.state == WSState.CLOSING
        assert await pair.peer.read_frame() == (8, (4321).to_bytes(2, "big") + b"done")
        await pair.peer.send(WSMsgType.TEXT, "not given out any more")
        await pair.peer.send_close(1000, "yes")
        if pair.transport.is_client_side:
            pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.LOCAL_CLOSE)
        await ended(pair.transport)
    handshake = pair.transport.close_handshake
    assert (handshake.sent.code, handshake.sent.reason) == (4321, "done")
    assert (handshake.recv.code, handshake.recv.reason) == (WSCloseCode.OK, "yes")
    assert not handshake.recv_then_sent
    assert [frame[0] for frame in pair.listener.frames] == [WSMsgType.CLOSE]
    assert not pair.peer.reset_seen


@pytest.mark.parametrize("automatic", [False, True], ids=["answered", "enable_auto_close"])
@pytest.mark.parametrize(("code", "reason"), [(0, ""), (1000, ""), (3999, "why"), (1001, "é")])
async def test_peer_sends_close_first(link, automatic, code, reason):
    async with link(Recorder() if automatic else Echo(), enable_auto_close=automatic) as pair:
        await pair.peer.send_close(code, reason)
        answer = await pair.peer.read_close()
        assert answer == (code, "" if automatic else reason)
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.CLOSE_FRAME)
        await ended(pair.transport)
    handshake = pair.transport.close_handshake
    assert (handshake.recv.code, handshake.recv.reason) == (code, reason or None)
    assert handshake.sent.code == code
    assert handshake.recv_then_sent
    assert not pair.peer.reset_seen


async def test_peers_close_is_never_answered(link):
    async with link(close_timeout=0.05) as pair:
        await pair.peer.send_close(1000)
        assert await pair.peer.read_to_end() == b""
        await check_end(pair, WSDisconnectCause.CLOSE_FRAME)
        await ended(pair.transport)
    assert pair.transport.close_handshake.sent is None
    assert pair.transport.close_handshake.recv_then_sent  # the peer's came first


async def test_close_frames_that_cross(link):
    """Each side has begun; neither calls the other's an answer that was not one."""
    async with link() as pair:
        pair.transport.pause_reading()  # until our CLOSE is sent
        await pair.peer.send_close(4000)
        pair.transport.send_close(4001)
        assert await pair.peer.read_close() == (4001, "")
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.LOCAL_CLOSE)
    assert not pair.transport.close_handshake.recv_then_sent


async def test_disconnect(link):
    async with link() as pair:
        pair.transport.send(WSMsgType.TEXT, "last")
        pair.transport.disconnect()
        pair.transport.disconnect()
        assert pair.transport.state == WSState.CLOSING
        pair.transport.send(WSMsgType.TEXT, "nothing")
        assert await pair.peer.read_frame() == (1, b"last")
        assert await pair.peer.read_to_end() == b""
        assert not pair.peer.reset_seen
        assert pair.peer.tls is None or pair.peer.close_notify_seen
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.LOCAL_DISCONNECT)
        await ended(pair.transport)
    assert pair.transport.close_handshake is None


async def test_abort(link):
    async with link() as pair:
        pair.transport.disconnect(graceful=False)
        await check_end(pair, WSDisconnectCause.LOCAL_ABORT)
        await ended(pair.transport)
        await pair.peer.read_to_end()


@pytest.mark.parametrize("act", ["close", "abort"])
async def test_ends_by_the_underlying_transport(link, act):
    """They are ends like any other: with a state, a cause and a deadline, and all that was sent."""
    async with link(close_timeout=0.1) as pair:
        stream = pair.transport.underlying_transport
        pair.transport.cork()
        pair.transport.send(WSMsgType.TEXT, "last")
        for _ in range(2):
            getattr(stream, act)()
        assert stream.is_closing()
        assert (pair.transport.state == WSState.CLOSING) == (act == "close")
        pair.transport.send(WSMsgType.TEXT, "nothing")
        if act == "close":
            assert await pair.peer.read_frame() == (1, b"last")
            assert await pair.peer.read_to_end() == b""
            # The peer does not end its side: the deadline does it.
            await check_end(pair, WSDisconnectCause.LOCAL_DISCONNECT)
        else:
            await check_end(pair, WSDisconnectCause.LOCAL_ABORT)
        await ended(pair.transport)
        for after in ("close", "abort", "pause_reading", "resume_reading"):
            getattr(stream, after)()
    assert pair.listener.frames == []


async def test_pausing_by_the_underlying_transport(link):
    """What the stream is told, the connection knows."""
    async with link() as pair:
        stream = pair.transport.underlying_transport
        stream.pause_reading()
        assert pair.transport.is_reading_paused
        assert pair.transport.stats().reading_pauses == 1
        await pair.peer.send(WSMsgType.TEXT, "later")
        await asyncio.sleep(0.02)
        assert pair.listener.frames == []
        stream.resume_reading()
        assert not pair.transport.is_reading_paused
        await pair.listener.frame()


async def test_raw_bytes(link):
    """They go out in order, and not behind CLOSE."""
    async with link(small_buffers=True) as pair:
        stream = pair.transport.underlying_transport
        large = os.urandom(300_000)
        pair.transport.send(WSMsgType.BINARY, large)  # some of it waits
        raw = bytearray(own_frame(pair, b"raw"))
        stream.write(raw)
        raw[:] = bytes(len(raw))
        stream.writelines([own_frame(pair, b"a"), memoryview(own_frame(pair, b"b"))])
        pair.transport.send(WSMsgType.TEXT, "behind")
        for payload in (large, b"raw", b"a", b"b", b"behind"):
            assert (await pair.peer.read_frame())[1] == payload
        with pytest.raises(TypeError):
            stream.write("text")
        with pytest.raises(RuntimeError, match=r"write\(\)"):
            await asyncio.get_running_loop().run_in_executor(None, stream.write, b"x")
        pair.transport.send_close(1000)
        stream.write(own_frame(pair, b"too late"))
        assert await pair.peer.read_close() == (1000, "")
        pair.transport.disconnect()
        stream.write(own_frame(pair, b"too late"))
        assert await pair.peer.read_to_end() == b""


def own_frame(pair, payload):
    """A whole frame as this side sends it."""
    return build_frame(WSMsgType.BINARY, payload, mask=pair.transport.is_client_side)


async def test_raw_bytes_count_for_the_backlog(link):
    async with link(small_buffers=True, max_write_backlog=1 << 20) as pair:
        while pair.transport.disconnect_cause is None:
            pair.transport.underlying_transport.write(own_frame(pair, bytes(100_000)))
        await check_end(pair, WSDisconnectCause.WRITE_BACKLOG)


async def test_abort_after_disconnect_does_not_wait(link):
    async with link() as pair:
        pair.transport.disconnect()
        await asyncio.sleep(0)
        pair.transport.disconnect(graceful=False)
        await check_end(pair, WSDisconnectCause.LOCAL_DISCONNECT)


async def test_disconnect_has_a_deadline(link):
    async with link(close_timeout=0.05) as pair:
        pair.transport.disconnect()
        await check_end(pair, WSDisconnectCause.LOCAL_DISCONNECT)


async def test_protocol_error(link):
    async with link(close_timeout=0.05) as pair:
        await pair.peer.send(WSMsgType.TEXT, "good")
        await pair.peer.send(WSMsgType.CONTINUATION, "stray")
        code, reason = await pair.peer.read_close()
        assert code == WSCloseCode.PROTOCOL_ERROR
        assert "continuation" in reason
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.PROTOCOL_ERROR)
        if pair.transport.is_client_side:
            for _ in range(2):
                with pytest.raises(WSPeerProtocolError) as caught:
                    await ended(pair.transport)
                assert caught.value.violation == WSViolation.UNEXPECTED_CONTINUATION
        else:
            await ended(pair.transport)
    assert pair.listener.frames == [(WSMsgType.TEXT, b"good", True)]
    assert pair.transport.disconnect_exception.violation == WSViolation.UNEXPECTED_CONTINUATION


async def test_ping_timeout(link):
    async with link(
        enable_auto_ping=True,
        auto_ping_idle_timeout=0.02,
        auto_ping_reply_timeout=0.02,
        close_timeout=0.05,
    ) as pair:
        assert (await pair.peer.read_frame())[0] == WSMsgType.PING
        assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY
        await check_end(pair, WSDisconnectCause.PING_TIMEOUT)
        await ended(pair.transport)


async def test_close_timeout(link):
    async with link(close_timeout=0.05) as pair:
        pair.transport.send_close(1000)
        assert await pair.peer.read_close() == (1000, "")
        await check_end(pair, WSDisconnectCause.CLOSE_TIMEOUT)
        await ended(pair.transport)


async def test_close_timeout_is_not_prolonged_by_a_peer_that_goes_on_sending(link):
    async with link(close_timeout=0.1) as pair:
        pair.transport.send_close(1000)

        async def flood():
            try:
                while True:
                    await pair.peer.send(WSMsgType.BINARY, bytes(1000))
                    await asyncio.sleep(0.002)
            except OSError:
                pass

        flooding = asyncio.create_task(flood())
        await check_end(pair, WSDisconnectCause.CLOSE_TIMEOUT)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    assert pair.listener.frames == []


async def test_write_backlog(link):
    async with link(max_write_backlog=1 << 20, small_buffers=True) as pair:
        sent = 0
        while pair.transport.disconnect_cause is None:
            pair.transport.send(WSMsgType.BINARY, bytes(100_000))
            sent += 100_000
            assert sent < 50_000_000
            assert pair.transport.write_backlog <= (1 << 20) + 200_000
        await check_end(pair, WSDisconnectCause.WRITE_BACKLOG)
        await ended(pair.transport)


async def test_peer_fin(side, io_options):
    async with connected(side, **io_options) as pair:
        await pair.peer.send(WSMsgType.TEXT, "last words")
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        await check_end(pair, WSDisconnectCause.PEER_FIN)
        await ended(pair.transport)
    assert pair.listener.frames == [(WSMsgType.TEXT, b"last words", True)]


async def test_peer_fin_in_the_midst_of_a_frame(side, io_options):
    async with connected(side, **io_options) as pair:
        await pair.peer.send_bytes(pair.peer.frame(WSMsgType.BINARY, bytes(9000))[:8000])
        pair.peer.fin()
        await check_end(pair, WSDisconnectCause.PEER_FIN)
        await ended(pair.transport)
    assert pair.listener.frames == []


async def test_what_waits_is_still_sent_to_a_peer_that_has_ended_its_side(side, io_options):
    payload = os.urandom(1_000_000)
    async with connected(side, small_buffers=True, **io_options) as pair:
        pair.transport.send(WSMsgType.BINARY, payload)
        pair.peer.fin()
        assert await pair.peer.read_frame() == (2, payload)
        assert await pair.peer.read_to_end() == b""
        await check_end(pair, WSDisconnectCause.PEER_FIN)


async def test_peer_reset(link):
    async with link() as pair:
        pair.peer.reset()
        await check_end(pair, WSDisconnectCause.PEER_RESET)
        await ended(pair.transport)
    assert isinstance(pair.transport.disconnect_exception, ConnectionError)


async def test_peer_reset_while_we_send(link):
    async with link(small_buffers=True) as pair:
        pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        pair.peer.reset()
        for _ in range(5):
            pair.transport.send(WSMsgType.BINARY, bytes(100_000))
            await asyncio.sleep(0)
        await check_end(pair, WSDisconnectCause.PEER_RESET)
        await ended(pair.transport)


async def test_disconnect_from_a_peer_whose_reset_is_not_read_yet(link):
    async with link() as pair:
        pair.peer.reset()
        pair.transport.disconnect()
        await check_end(pair, WSDisconnectCause.LOCAL_DISCONNECT)
        await ended(pair.transport)


@pytest.mark.native
async def test_frames_before_a_reset_that_only_sending_notices(side):
    async with connected(side, use_loop_transport=False) as pair:
        await pair.peer.send(WSMsgType.TEXT, "before")
        pair.peer.reset()
        # The reset is known to the system by now, the frame unread: sending fails first.
        for _ in range(3):
            pair.transport.send(WSMsgType.TEXT, "x")
        await check_end(pair, WSDisconnectCause.PEER_RESET)
    assert pair.listener.frames == [(WSMsgType.TEXT, b"before", True)]
    assert isinstance(pair.transport.disconnect_exception, ConnectionError)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs TCP_USER_TIMEOUT")
async def test_network_error(link):
    """The system gives up on a peer that does not take data any more."""
    async with link(small_buffers=True, max_write_backlog=None) as pair:
        sock = pair.transport.underlying_transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50)
        pair.transport.send(WSMsgType.BINARY, bytes(10_000_000))
        await check_end(pair, WSDisconnectCause.NETWORK_ERROR)
        await ended(pair.transport)
    assert pair.transport.disconnect_exception.errno == errno.ETIMEDOUT


async def test_tls_close_notify(side, tls_contexts, io_options):
    async with connected(side, contexts=tls_contexts, **io_options) as pair:
        await pair.peer.send_raw(
            pair.peer.encrypt(pair.peer.frame(WSMsgType.TEXT, "last")) + pair.peer.close_notify()
        )
        assert await pair.peer.read_to_end() == b""
        assert pair.peer.close_notify_seen
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.TLS_CLOSE_NOTIFY)
        await ended(pair.transport)
    assert pair.listener.frames == [(WSMsgType.TEXT, b"last", True)]


async def test_tls_truncated(side, tls_contexts, io_options):
    async with connected(side, contexts=tls_contexts, **io_options) as pair:
        await pair.peer.send(WSMsgType.TEXT, "last")
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        await check_end(pair, WSDisconnectCause.TLS_TRUNCATED)
        await ended(pair.transport)
    assert pair.listener.frames == [(WSMsgType.TEXT, b"last", True)]
    assert isinstance(pair.transport.disconnect_exception, ssl.SSLError)


async def test_tls_truncated_in_the_midst_of_a_record(side, tls_contexts, io_options):
    async with connected(side, contexts=tls_contexts, **io_options) as pair:
        record = pair.peer.encrypt(pair.peer.frame(WSMsgType.TEXT, "never complete"))
        await pair.peer.send_raw(record[:-1])
        pair.peer.fin()
        await check_end(pair, WSDisconnectCause.TLS_TRUNCATED)
    assert pair.listener.frames == []


@pytest.mark.parametrize(
    "garbage",
    [b"\x17\x03\x03\x00\x20" + bytes(32), b"GET / HTTP/1.1\r\n\r\n", bytes(100)],
    ids=["bad record", "plain text", "zeros"],
)
async def test_tls_error(side, tls_contexts, io_options, garbage):
    async with connected(side, contexts=tls_contexts, close_timeout=0.5, **io_options) as pair:
        good = pair.peer.encrypt(pair.peer.frame(WSMsgType.TEXT, "good"))
        await pair.peer.send_raw(good + garbage)
        with pytest.raises(ssl.SSLError):  # our alert
            await pair.peer.read_to_end()
        pair.peer.close()
        await check_end(pair, WSDisconnectCause.TLS_ERROR)
        await ended(pair.transport)
    assert pair.listener.frames == [(WSMsgType.TEXT, b"good", True)]
    assert isinstance(pair.transport.disconnect_exception, ssl.SSLError)


# --- Nothing is lost, nobody hangs


@pytest.mark.parametrize("way", ["close", "disconnect"])
async def test_all_that_was_sent_arrives_at_a_slow_peer_that_is_sending_too(link, way):
    """No RST destroys data: our descriptor is closed when the peer has had everything."""
    payload = os.urandom(1_000_000)
    async with link(small_buffers=True) as pair:
        flood = pair.peer.encrypt(pair.peer.frame(WSMsgType.BINARY, bytes(1000)) * 3000)
        sending = asyncio.create_task(pair.peer.send_raw(flood))
        pair.transport.send(WSMsgType.BINARY, payload)
        if way == "close":
            pair.transport.send_close(1000)
        else:
            pair.transport.disconnect()
        await asyncio.sleep(0.02)
        assert await pair.peer.read_frame() == (2, payload)
        await sending
        if way == "close":
            assert await pair.peer.read_close() == (1000, "")
            await pair.peer.send_close(1000)
        pair.peer.fin()
        assert await pair.peer.read_to_end() == b""
        assert not pair.peer.reset_seen
        await pair.listener.closed()


async def test_wait_disconnected_by_many_and_cancelled(link):
    async with link() as pair:
        waiters = [asyncio.create_task(pair.transport.wait_disconnected()) for _ in range(5)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
        assert waiters[0].cancelled()
        assert not waiters[1].done()
        pair.transport.disconnect(graceful=False)
        await asyncio.wait_for(asyncio.gather(*waiters[1:]), TIMEOUT)
        await ended(pair.transport)


async def test_the_listener_is_told_before_wait_disconnected_returns(link):
    async with link() as pair:
        waiter = asyncio.create_task(ended(pair.transport))
        waiter.add_done_callback(lambda _: pair.listener.events.append("waited"))
        await asyncio.sleep(0)
        pair.peer.close()
        await waiter
        await asyncio.sleep(0)
    assert pair.listener.events[-2:] == ["disconnected", "waited"]


async def test_the_descriptor_is_closed_when_the_listener_is_told(side, io_options):
    class Looking(Recorder):
        fileno = None

        def on_ws_disconnected(self, transport):
            self.fileno = transport.underlying_transport.get_extra_info("socket").fileno()
            super().on_ws_disconnected(transport)

    async with connected(side, Looking(), **io_options) as pair:
        assert pair.transport.underlying_transport.get_extra_info("socket").fileno() >= 0
        pair.transport.disconnect(graceful=False)
        await pair.listener.closed()
    if not io_options["use_loop_transport"]:
        assert pair.listener.fileno == -1


# --- Servers: connections that never opened


async def test_handshake_timeout(contexts, io_options):

    def factory(request):
        raise AssertionError("there is no request")

    async with serving(
        factory,
        tls=contexts and contexts.server,
        websocket_handshake_timeout=0.1,
        close_timeout=0.1,
        **io_options,
    ) as url:
        reader, writer = await asyncio.open_connection(
            *address(url), ssl=contexts and contexts.client
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_handshake_failed_at_the_client():
    async with serving(lambda request: None) as url:
        with pytest.raises(picows_fast.WSInvalidStatusError) as caught:
            await picows_fast.ws_connect(Recorder, url)
        assert caught.value.response.status == 404


async def test_causes_of_connections_that_never_opened(io_options, caplog):
    """Nobody gets the transport of one, so its cause is in the log."""
    caplog.set_level(logging.DEBUG, "picows_fast")
    async with serving(
        lambda request: None, websocket_handshake_timeout=0.1, close_timeout=0.1, **io_options
    ) as url:
        with pytest.raises(picows_fast.WSInvalidStatusError):
            await picows_fast.ws_connect(Recorder, url, **io_options)
        for request in (b"", b"no HTTP\r\n\r\n"):
            reader, writer = await asyncio.open_connection(*address(url))
            writer.write(request)
            await reader.read()
            writer.close()
    causes = [
        (record.name, record.getMessage().rpartition(": ")[2])
        for record in caplog.records
        if record.levelno == logging.DEBUG and record.name.startswith("picows_fast")
    ]
    assert sorted(causes) == [
        ("picows_fast.client", "HANDSHAKE_FAILED"),
        ("picows_fast.server", "HANDSHAKE_FAILED"),
        ("picows_fast.server", "HANDSHAKE_FAILED"),
        ("picows_fast.server", "HANDSHAKE_TIMEOUT"),
    ]


async def test_certificate_that_is_not_trusted(server_tls, io_options):
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        with pytest.raises(ssl.SSLCertVerificationError):
            await picows_fast.ws_connect(
                Recorder, url, ssl_context=ssl.create_default_context(), **io_options
            )


async def test_clients_that_vanish_leave_a_server_working():
    async with serving(lambda request: Echo()) as url:
        for _ in range(20):
            _, writer = await raw_client(url)
            writer.transport.abort()
        transport, client = await picows_fast.ws_connect(Recorder, url)
        transport.send(WSMsgType.TEXT, "alive")
        assert (await client.frame())[1] == b"alive"
        transport.disconnect(graceful=False)
        await client.closed()


# --- on_ws_closing


class Closing(Recorder):
    """Notes what can be seen and done when the end begins."""

    def __init__(self, in_closing=None):
        super().__init__()
        self.in_closing = in_closing
        self.seen = []

    def on_ws_closing(self, transport):
        self._note("closing")
        self.seen.append((transport.state, transport.disconnect_cause))
        if self.in_closing is not None:
            self.in_closing(transport)


@pytest.mark.parametrize(
    "end",
    ["send_close", "disconnect", "abort", "CLOSE", "FIN", "protocol error", "callback", "backlog"],
)
async def test_on_ws_closing_comes_once_when_the_end_begins(link, end):
    sent = []
    listener = Closing(lambda transport: sent.append(transport.send(WSMsgType.TEXT, "more")))
    if end == "callback":
        listener.pause_writing = lambda: 1 / 0
    options = {"max_write_backlog": 100_000} if end == "backlog" else {}
    async with link(listener, small_buffers=True, close_timeout=0.2, **options) as pair:
        transport = pair.transport
        cause = None
        if end == "send_close":
            transport.send_close(1000)
            assert listener.events[-1] == "closing"  # at once, before the call has returned
        elif end in ("disconnect", "abort"):
            transport.disconnect(graceful=end == "disconnect")
            assert (listener.events[-1] == "closing") == (end == "disconnect")
        elif end == "CLOSE":
            await pair.peer.send_close(1000)
            await listener.frame()
            transport.send_close(1000)
            assert listener.events == ["connected", "closing", "frame"]
        elif end == "FIN":
            pair.peer.close()
        elif end == "protocol error":
            await pair.peer.send_bytes(b"\xff" * 10)
        else:
            transport.send(WSMsgType.BINARY, bytes(1_000_000))
        await listener.until(lambda: "closing" in listener.events)
        pair.peer.close()
        await listener.closed()
        assert listener.events.count("closing") == 1
        assert listener.events[-2:].count("disconnected") == 1
        assert listener.events.index("closing") < listener.events.index("disconnected")
        ((state, cause),) = listener.seen
        assert state == WSState.CLOSING
        if end != "send_close":
            assert cause == transport.disconnect_cause
        # Behind the peer's CLOSE, and before ours, frames may still be sent.
        assert sent == [end == "CLOSE"]


async def test_what_on_ws_closing_may_do(link):
    """Answer the peer's CLOSE, or end the connection: then no frame comes, nor does CLOSE."""
    async with link(Closing(lambda transport: transport.send_close(4000))) as pair:
        await pair.peer.send_close(1000)
        assert await pair.peer.read_close() == (4000, "")
        pair.peer.close()
        await pair.listener.closed()
        assert pair.listener.events == ["connected", "closing", "frame", "disconnected"]
    async with link(Closing(lambda transport: transport.disconnect())) as pair:
        await pair.peer.send_close(1000)
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await pair.listener.closed()
        assert pair.listener.events == ["connected", "closing", "disconnected"]


async def test_on_ws_closing_is_not_for_what_never_opened(io_options):
    listener = Closing()
    with contextlib.suppress(picows_fast.WSHandshakeError):
        async with serving(lambda request: None, **io_options) as url:
            await picows_fast.ws_connect(lambda: listener, url, **io_options)
    assert listener.events == []
