"""Peers that mean harm, opposite a client and a server of ours, over TCP and TLS, however bytes
move.

Whatever they do, the connection ends by its deadline for the right reason or goes on working, and
the memory it takes is bounded by the figures given here, whatever the peer sends or leaves unread.
"""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import ctypes
import logging
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import picows_fast
from picows_fast import (
    WSDisconnectCause,
    WSFrame,
    WSHandshakeError,
    WSMsgType,
    WSPeerProtocolError,
    WSState,
    WSTransport,
    WSViolation,
)

from ..frames import BINARY, CLOSE, PING, PONG, TEXT
from ..peers import (
    TIMEOUT,
    UPGRADE_REQUEST,
    Contexts,
    Link,
    Peer,
    connect_socket,
    connected,
    drip,
    listening_socket,
)
from ..support import Recorder, address, serving
from .checks import KIB, LOOP_BUFFERS, MIB, Leftovers, log_below, memory_below, resident_bytes

pytestmark = pytest.mark.usefixtures("leaves_nothing")

Cause = WSDisconnectCause

CLOSE_TIMEOUT = 0.05  # seconds


def openssl_calls() -> Any:
    """The OpenSSL that the ssl module uses, for what the module has no method for; None if out of
    reach.
    """
    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_key_update.argtypes = (ctypes.c_void_p, ctypes.c_int)
        library.SSL_renegotiate.argtypes = (ctypes.c_void_p,)
    except (AttributeError, OSError):
        return None
    return library


needs_openssl_calls = pytest.mark.skipif(
    openssl_calls() is None, reason="needs CPython's ssl over a shared OpenSSL"
)


def openssl_pointer(tls: ssl.SSLObject) -> ctypes.c_void_p:
    # struct PySSLSocket: object header, a reference, the SSL.
    return ctypes.c_void_p.from_address(id(tls._sslobj) + object.__basicsize__ + 8)


def ask_for_key_update(tls: ssl.SSLObject) -> None:
    """Let the next record be a KeyUpdate that asks for one in return."""
    assert openssl_calls().SSL_key_update(openssl_pointer(tls), 1) == 1


PINGING = {
    "enable_auto_ping": True,
    "auto_ping_idle_timeout": 0.05,
    "auto_ping_reply_timeout": 0.05,
}


class Counter(Recorder):
    """Counts frames by type, and keeps only the last: floods are not to be mistaken for our
    memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}
        self.last: tuple[WSMsgType, int, bool] | None = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.counts[frame.msg_type] = self.counts.get(frame.msg_type, 0) + 1
        self.last = (frame.msg_type, frame.payload_size, bool(frame.fin))
        if frame.payload_size == len(MARK) and frame.get_payload_as_bytes() == MARK:
            self._note("mark")
        self._changed.set()

    async def mark(self) -> None:
        await self.until(lambda: "mark" in self.events)


MARK = b"this is where the flood ends"


async def flood(peer: Peer, unit: bytes, total: int) -> int:
    """Send `total` bytes of the same over and over, until the end or an error; how many units were
    sent.
    """
    per_chunk = max(64 * KIB // len(unit), 1)
    chunk = unit * per_chunk
    sent = 0
    with contextlib.suppress(OSError):
        while sent * len(unit) < total:
            await peer.send_bytes(chunk)
            sent += per_chunk
    return sent


async def flood_for_ever(peer: Peer, unit: bytes) -> None:
    """Until we are stopped by the end of the connection."""
    await flood(peer, unit, 1 << 40)


async def goes_on(pair: Link) -> None:
    """The connection works still; then end it."""
    await pair.peer.send(TEXT, MARK)
    await pair.listener.mark()
    assert pair.transport.state == WSState.OPEN
    pair.transport.disconnect(graceful=False)


# --- What they do. Each returns when the connection is to end by itself, or ends it.


async def never_reads_then_disconnect(pair: Link) -> None:
    send_until_it_waits(pair.transport)
    pair.transport.disconnect()


async def never_reads_then_close(pair: Link) -> None:
    send_until_it_waits(pair.transport)
    pair.transport.send_close(1000)


async def never_reads_and_errs(pair: Link) -> None:
    send_until_it_waits(pair.transport)
    await pair.peer.send_bytes(b"\xff" * 100)


async def never_reads_and_ends_its_side(pair: Link) -> None:
    send_until_it_waits(pair.transport)
    pair.peer.fin()


def send_until_it_waits(transport: WSTransport) -> None:
    chunk = bytes(64 * KIB)
    while transport.write_backlog < 256 * KIB:
        transport.send(BINARY, chunk)


async def never_writes(pair: Link) -> None:
    await pair.peer.read_to_end()
    pair.peer.close()


async def drips(pair: Link) -> None:
    data = b"".join(pair.peer.encrypt(pair.peer.frame(TEXT, b"x" * size)) for size in (0, 5, 200))
    await drip(pair.peer, data)
    await goes_on(pair)
    assert pair.listener.counts[TEXT] == 4


async def drips_a_frame_that_never_ends(pair: Link) -> None:
    """Bytes are a sign of life, so only pings that are sent whatever comes notice this."""
    frame = pair.peer.frame(BINARY, bytes(100 * KIB))
    with contextlib.suppress(OSError):
        for byte in frame:
            await pair.peer.send_bytes(bytes((byte,)))
            await asyncio.sleep(0.001)


async def sends_on_after_our_close(pair: Link) -> None:
    pair.transport.send_close(1000)
    await flood_for_ever(pair.peer, pair.peer.frame(TEXT, b"I do not care"))
    assert pair.listener.counts == {}


async def sends_on_after_its_close(pair: Link) -> None:
    await pair.peer.send_close(1000)
    await flood_for_ever(pair.peer, pair.peer.frame(TEXT, b"and another thing"))
    assert pair.listener.counts == {CLOSE: 1}


async def sends_close_for_ever(pair: Link) -> None:
    await flood_for_ever(pair.peer, pair.peer.frame(CLOSE, b"\x03\xe8"))
    assert pair.listener.counts == {CLOSE: 1}


async def floods_pings_and_reads_nothing(pair: Link) -> None:
    await flood(pair.peer, pair.peer.frame(PING, b"p" * 125), 2 * MIB)
    await pair.peer.send(PING, b"the last")
    await pair.peer.send(TEXT, MARK)
    await pair.listener.mark()
    assert 0 < pair.transport.write_backlog < 128 * KIB

    async def read() -> None:
        # The answers that were held back are left out (RFC 6455 5.5.3), the newest is not.
        while (frame := await pair.peer.read_frame()) != (PONG, b"the last"):
            assert frame == (PONG, b"p" * 125)

    await asyncio.wait_for(read(), TIMEOUT)
    pair.transport.disconnect(graceful=False)


async def floods_pings_and_reads(pair: Link) -> None:
    async def read() -> None:
        opcode = PONG
        while opcode == PONG:
            opcode, payload = await pair.peer.read_frame()
        assert payload == b"heard you"

    reading = asyncio.ensure_future(read())
    await flood(pair.peer, pair.peer.frame(PING, b"p" * 125), MIB // 4)
    await pair.peer.send(TEXT, MARK)
    await pair.listener.mark()
    pair.transport.send(TEXT, b"heard you")
    await asyncio.wait_for(reading, TIMEOUT)
    pair.transport.disconnect(graceful=False)


async def floods_pongs(pair: Link) -> None:
    sent = await flood(pair.peer, pair.peer.frame(PONG, b"p" * 125), 2 * MIB)
    await goes_on(pair)
    assert pair.listener.counts == {PONG: sent, TEXT: 1}


async def floods_empty_frames(pair: Link) -> None:
    sent = await flood(pair.peer, pair.peer.frame(BINARY), 100_000)
    await goes_on(pair)
    assert pair.listener.counts == {BINARY: sent, TEXT: 1}


async def floods_fragments_of_one_byte(pair: Link) -> None:
    await pair.peer.send(TEXT, b"", fin=False)
    sent = await flood(pair.peer, pair.peer.frame(WSMsgType.CONTINUATION, b"x", fin=False), 200_000)
    await pair.peer.send(WSMsgType.CONTINUATION, b"", fin=True)
    await goes_on(pair)
    assert pair.listener.counts == {TEXT: 2, WSMsgType.CONTINUATION: sent + 1}


async def announces_a_large_frame(pair: Link) -> None:
    await pair.peer.send_bytes(large_header(pair.peer, 9 * MIB))
    await pair.peer.read_to_end()
    pair.peer.close()


async def announces_a_large_frame_and_begins_it(pair: Link) -> None:
    await pair.peer.send_bytes(large_header(pair.peer, 9 * MIB) + bytes(5 * KIB))
    await pair.peer.read_to_end()
    pair.peer.close()


async def announces_too_large_a_frame(pair: Link) -> None:
    await pair.peer.send_bytes(large_header(pair.peer, 11 * MIB))
    code, _ = await pair.peer.read_close()
    assert code == 1009
    await flood_for_ever(pair.peer, bytes(64 * KIB))
    assert pair.transport.disconnect_exception.violation == WSViolation.FRAME_TOO_BIG


async def announces_an_impossible_length(pair: Link) -> None:
    await pair.peer.send_bytes(large_header(pair.peer, 2**64 - 1))
    assert (await pair.peer.read_close())[0] in (1002, 1009)
    await pair.peer.read_to_end()
    pair.peer.close()


def large_header(peer: Peer, size: int) -> bytes:
    """The header of a BINARY frame, with a mask key of zeros if the peer has to mask."""
    mask = 0x80 if peer.is_client else 0
    return struct.pack("!BBQ", 0x82, mask | 127, size) + bytes(4 if mask else 0)


async def errs_and_floods(pair: Link) -> None:
    await pair.peer.send(WSMsgType.CONTINUATION, b"stray")
    await flood_for_ever(pair.peer, pair.peer.frame(TEXT, b"more"))
    assert pair.listener.counts == {}


async def ends_its_side_and_stays(pair: Link) -> None:
    pair.peer.fin()
    await pair.peer.read_to_end()


async def ignores_our_end(pair: Link) -> None:
    pair.transport.disconnect()
    await pair.peer.read_to_end()


async def ignores_our_end_and_floods(pair: Link) -> None:
    pair.transport.disconnect()
    await flood_for_ever(pair.peer, pair.peer.frame(TEXT, b"still here"))
    assert pair.listener.counts == {}


async def resets_during_a_large_send(pair: Link) -> None:
    pair.transport.send(BINARY, bytes(4 * MIB))
    await pair.peer.readexactly(1000)
    pair.peer.reset()


async def closes_during_a_large_send(pair: Link) -> None:
    pair.transport.send(BINARY, bytes(4 * MIB))
    await pair.peer.readexactly(1000)
    pair.peer.close()


async def closes_while_we_send_on(pair: Link) -> None:
    pair.peer.close()
    while pair.transport.state != WSState.CLOSED:
        pair.transport.send(TEXT, b"hello?")
        await asyncio.sleep(0)


async def resets_in_the_closing_handshake(pair: Link) -> None:
    pair.transport.send_close(1000)
    await pair.peer.read_close()
    pair.peer.reset()


async def floods_a_paused_reader(pair: Link) -> None:
    pair.transport.pause_reading()
    flooding = asyncio.ensure_future(
        flood_for_ever(pair.peer, pair.peer.frame(BINARY, bytes(1000)))
    )
    await asyncio.sleep(0.05)
    assert pair.listener.counts == {}
    pair.transport.disconnect()
    await pair.listener.closed()
    await flooding


@dataclass
class Hostility:
    """`peak`: bytes that are allocated at most, what the peer holds in this process included."""

    behave: Callable[[Link], Awaitable[None]]
    causes: set[Cause]
    options: dict[str, Any] = field(default_factory=dict)
    peak: int = 768 * KIB
    tls_causes: set[Cause] = field(default_factory=set)


HOSTILITIES = [
    Hostility(never_reads_then_disconnect, {Cause.LOCAL_DISCONNECT}, peak=8 * MIB),
    Hostility(never_reads_then_close, {Cause.CLOSE_TIMEOUT}, peak=8 * MIB),
    Hostility(never_reads_and_errs, {Cause.PROTOCOL_ERROR}, peak=8 * MIB),
    Hostility(
        never_reads_and_ends_its_side,
        {Cause.PEER_FIN},
        peak=8 * MIB,
        tls_causes={Cause.TLS_TRUNCATED},
    ),
    Hostility(never_writes, {Cause.PING_TIMEOUT}, PINGING),
    Hostility(drips, {Cause.LOCAL_ABORT}),
    Hostility(
        drips_a_frame_that_never_ends,
        {Cause.PING_TIMEOUT},
        PINGING | {"auto_ping_strategy": 2},
    ),
    Hostility(sends_on_after_our_close, {Cause.CLOSE_TIMEOUT}),
    Hostility(sends_on_after_its_close, {Cause.CLOSE_FRAME}, {"enable_auto_close": True}),
    Hostility(sends_on_after_its_close, {Cause.CLOSE_FRAME}),
    Hostility(sends_close_for_ever, {Cause.CLOSE_FRAME}, {"enable_auto_close": True}),
    Hostility(floods_pings_and_reads_nothing, {Cause.LOCAL_ABORT}, {"small_buffers": True}),
    Hostility(floods_pings_and_reads, {Cause.LOCAL_ABORT}),
    Hostility(floods_pongs, {Cause.LOCAL_ABORT}),
    Hostility(floods_empty_frames, {Cause.LOCAL_ABORT}),
    Hostility(floods_fragments_of_one_byte, {Cause.LOCAL_ABORT}),
    Hostility(announces_a_large_frame, {Cause.PING_TIMEOUT}, PINGING),
    Hostility(announces_a_large_frame_and_begins_it, {Cause.PING_TIMEOUT}, PINGING),
    Hostility(announces_too_large_a_frame, {Cause.PROTOCOL_ERROR}),
    Hostility(announces_an_impossible_length, {Cause.PROTOCOL_ERROR}),
    Hostility(errs_and_floods, {Cause.PROTOCOL_ERROR}),
    Hostility(ends_its_side_and_stays, {Cause.PEER_FIN}, tls_causes={Cause.TLS_TRUNCATED}),
    Hostility(ignores_our_end, {Cause.LOCAL_DISCONNECT}),
    Hostility(ignores_our_end_and_floods, {Cause.LOCAL_DISCONNECT}),
    Hostility(resets_during_a_large_send, {Cause.PEER_RESET}, peak=14 * MIB),
    Hostility(closes_during_a_large_send, {Cause.PEER_RESET}, peak=14 * MIB),
    Hostility(
        closes_while_we_send_on,
        {Cause.PEER_RESET, Cause.PEER_FIN},
        tls_causes={Cause.PEER_RESET, Cause.TLS_TRUNCATED},
    ),
    Hostility(resets_in_the_closing_handshake, {Cause.PEER_RESET}),
    Hostility(floods_a_paused_reader, {Cause.LOCAL_DISCONNECT}),
]


@pytest.mark.parametrize(
    "hostility", HOSTILITIES, ids=lambda hostility: hostility.behave.__name__.replace("_", " ")
)
async def test_hostile_peer(hostility, link, caplog):
    """See the names of the peers. Nothing of what they do deserves more than INFO in the log."""
    listener = Counter()
    with log_below(caplog, logging.WARNING):
        async with link(listener, close_timeout=CLOSE_TIMEOUT, **hostility.options) as pair:
            async with memory_below(peak=hostility.peak, held=96 * KIB):
                await hostility.behave(pair)
                await listener.closed()
            causes = hostility.causes
            if pair.transport.is_secure:
                causes = hostility.tls_causes or causes
            assert pair.transport.disconnect_cause in causes
            assert pair.transport.state == WSState.CLOSED
            assert pair.transport.write_backlog == 0
            with contextlib.suppress(WSPeerProtocolError):
                await asyncio.wait_for(pair.transport.wait_disconnected(), TIMEOUT)
            await asyncio.sleep(0)
            assert listener.events.count("connected") == 1
            assert listener.events.count("disconnected") == 1
            assert listener.events[-1] == "disconnected"


# --- Below WebSocket: TLS


HELLO = b"\x16\x03\x01"  # a record of a handshake, its length to follow (RFC 8446 5.1)

TLS_HANDSHAKES = {
    "silence": (b"", b""),
    "garbage": (b"\x00\x01\x02" * 100, b""),
    "plain HTTP": (UPGRADE_REQUEST, b""),
    "a record that never ends": (HELLO + b"\x40\x00", b"\0"),
    "a message too large": (HELLO + b"\x40\x00\x01\xff\xff\xff", bytes(1000)),
    "warnings for ever": (b"", b"\x15\x03\x01\x00\x02\x01\x5a"),
    "empty records for ever": (b"", HELLO + b"\x00\x00"),
}


@pytest.mark.parametrize("name", TLS_HANDSHAKES)
async def test_tls_handshakes_that_lead_nowhere(
    side, io_options, name, server_tls, client_tls, caplog
):
    """Less than 1 MiB, most of it the buffers that all connections of a loop share, and no more
    than `websocket_handshake_timeout` seconds.
    """
    first, then = TLS_HANDSHAKES[name]
    options = {"websocket_handshake_timeout": 0.1, "close_timeout": 0.05, **io_options}

    async def behave(sock: Any) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await loop.sock_sendall(sock, first)
            chunk = then * (4096 // len(then)) if then else b""
            for _ in range(500 if then else 0):
                await loop.sock_sendall(sock, chunk)
                await asyncio.sleep(0)
            while await loop.sock_recv(sock, 65536):
                pass

    with log_below(caplog, logging.WARNING):
        async with contextlib.AsyncExitStack() as stack:
            if side == "server":
                url = await stack.enter_async_context(
                    serving(lambda request: Recorder(), tls=server_tls, **options)
                )
                leftovers = Leftovers()
                async with memory_below(
                    peak=LOOP_BUFFERS + 512 * KIB, held=LOOP_BUFFERS + 288 * KIB
                ):
                    with await connect_socket(address(url)) as sock:
                        # The server ends the connection, whatever is the matter.
                        await asyncio.wait_for(behave(sock), TIMEOUT)
                    await leftovers.none(name)
                return
            listening = stack.enter_context(listening_socket())
            port = listening.getsockname()[1]
            accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listening))
            connecting = asyncio.ensure_future(
                picows_fast.ws_connect(
                    Recorder, f"wss://127.0.0.1:{port}/", ssl_context=client_tls, **options
                )
            )
            sock, _ = await accepting
            with sock:
                sock.setblocking(False)
                await asyncio.wait_for(behave(sock), TIMEOUT)
            with pytest.raises(
                (ssl.SSLError, TimeoutError, asyncio.TimeoutError, WSHandshakeError)
            ):
                await asyncio.wait_for(connecting, TIMEOUT)


RECORDS = {
    "garbage": b"\xff" * 100,
    "a record of no kind": b"\x63\x03\x03\x00\x05hello",
    "a record that is not from the peer": b"\x17\x03\x03\x00\x40" + bytes(64),
    "a record too large": b"\x17\x03\x03\xff\xff" + bytes(65535),
    "a plain alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a plain warning": b"\x15\x03\x03\x00\x02\x01\x5a",
    "another hello": b"\x16\x03\x03\x00\x40\x01\x00\x00\x3c" + bytes(60),
}


@pytest.mark.parametrize("name", RECORDS)
async def test_records_that_do_not_belong(side, io_options, name, server_tls, client_tls, caplog):
    """Good frames before it are delivered; then the connection ends with TLS_ERROR and an alert."""
    listener = Recorder()
    with log_below(caplog, logging.WARNING):
        async with connected(
            side,
            listener,
            contexts=Contexts(server_tls, client_tls),
            close_timeout=CLOSE_TIMEOUT,
            **io_options,
        ) as pair:
            good = pair.peer.encrypt(pair.peer.frame(TEXT, b"good"))
            await pair.peer.send_raw(good + RECORDS[name])
            await listener.closed()
    assert [frame[1] for frame in listener.frames] == [b"good"]
    assert pair.transport.disconnect_cause == Cause.TLS_ERROR
    assert isinstance(pair.transport.disconnect_exception, ssl.SSLError)
    assert listener.events.count("disconnected") == 1


@pytest.mark.parametrize("unread", [False, True], ids=["open", "closing"])
async def test_flood_over_tls_is_bounded_in_openssl_too(
    side, io_options, unread, server_tls, client_tls
):
    """tracemalloc does not see what OpenSSL holds: the process grows by less than 16 MiB in a flood
    of 64 MiB, also when the connection is being ended and nobody reads any more.
    """
    listener = Counter()
    async with connected(
        side, listener, contexts=Contexts(server_tls, client_tls), close_timeout=2, **io_options
    ) as pair:
        unit = pair.peer.frame(BINARY, bytes(16_000))
        await flood(pair.peer, unit, MIB)  # buffers that are kept
        before = resident_bytes()
        if unread:
            pair.transport.disconnect()
        await flood(pair.peer, unit, 64 * MIB)
        assert resident_bytes() - before < 16 * MIB


@needs_openssl_calls
async def test_key_updates_for_ever(side, io_options, server_tls, client_tls, caplog):
    """Each KeyUpdate may ask for one in return (RFC 8446 4.6.3): a peer that asks on and reads
    nothing is given up when 64 KiB of answers wait for it.
    """
    listener = Counter()
    backlog = 0
    with log_below(caplog, logging.WARNING):
        async with connected(
            side,
            listener,
            contexts=Contexts(server_tls, client_tls),
            small_buffers=True,
            close_timeout=CLOSE_TIMEOUT,
            **io_options,
        ) as pair:
            with contextlib.suppress(OSError):
                while pair.transport.state != WSState.CLOSED:
                    records = b""
                    for _ in range(100):
                        ask_for_key_update(pair.peer.tls)
                        records += pair.peer.encrypt(pair.peer.frame(PONG))
                    await pair.peer.send_raw(records)
                    await asyncio.sleep(0)
                    backlog = max(backlog, pair.transport.write_backlog)
            await listener.closed()
    assert backlog < 128 * KIB
    assert pair.transport.disconnect_cause == Cause.TLS_ERROR
    assert "key update" in str(pair.transport.disconnect_exception)


@needs_openssl_calls
async def test_key_updates_by_a_peer_that_reads(side, io_options, server_tls, client_tls):
    """However many there are, they are answered."""
    listener = Counter()
    contexts = Contexts(server_tls, client_tls)
    async with connected(side, listener, contexts=contexts, **io_options) as pair:
        for _ in range(40):
            for _ in range(100):
                ask_for_key_update(pair.peer.tls)
                await pair.peer.send_raw(pair.peer.encrypt(pair.peer.frame(PONG)))
            pair.transport.send(TEXT, b"still here")
            assert await asyncio.wait_for(pair.peer.read_frame(), TIMEOUT) == (TEXT, b"still here")
        await goes_on(pair)


@needs_openssl_calls
async def test_key_updates_that_are_read_at_once(side, io_options, server_tls, client_tls):
    """Their answers are more than may wait for the peer, but none of them has to."""
    contexts = Contexts(server_tls, client_tls)
    async with connected(side, Counter(), contexts=contexts, **io_options) as pair:
        for _ in range(2):
            pair.transport.pause_reading()
            for _ in range(3000):
                ask_for_key_update(pair.peer.tls)
                await pair.peer.send_raw(pair.peer.encrypt(pair.peer.frame(PONG)))
            pair.transport.resume_reading()
            await pair.peer.send(TEXT, b"are you there")
            await pair.listener.until(lambda: pair.listener.counts.get(TEXT))
            pair.listener.counts.clear()
            pair.transport.send(TEXT, b"still here")
            assert await asyncio.wait_for(pair.peer.read_frame(), TIMEOUT) == (TEXT, b"still here")
        await goes_on(pair)


@needs_openssl_calls
async def test_renegotiation(side, io_options, authority, server_tls, caplog):
    """TLS 1.2 lets a peer begin a handshake anew at any time: a client's wish is refused, a
    server's does not disturb the frames, and one that insists gets no more than the end of the
    connection.
    """
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    contexts = Contexts(server_tls, client)
    listener = Counter()
    with log_below(caplog, logging.WARNING):
        async with connected(side, listener, contexts=contexts, **io_options) as pair:
            pointer = openssl_pointer(pair.peer.tls)
            assert openssl_calls().SSL_renegotiate(pointer) == 1
            if side == "server":
                with pytest.raises(ssl.SSLError, match="NO_RENEGOTIATION"):
                    await pair.peer.start_tls()
            else:
                await pair.peer.send(TEXT, b"theirs")
                await listener.until(lambda: listener.counts.get(TEXT))
                assert pair.transport.state == WSState.OPEN
                pair.transport.send(TEXT, b"ours")
                reading = asyncio.ensure_future(pair.peer.read_frame())
                while not reading.done():
                    # What reading made the peer's TLS say.
                    await pair.peer.send_raw(pair.peer.encrypt(b""))
                    await asyncio.sleep(0.001)
                assert await reading == (TEXT, b"ours")
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        openssl_calls().SSL_renegotiate(pointer)
                        await pair.peer.send(TEXT, b"more")
                        await asyncio.sleep(0)
            assert listener.events.count("disconnected") <= 1
            pair.peer.close()
            await listener.closed()


@needs_openssl_calls
@pytest.mark.parametrize("ask_again", [False, True], ids=["once", "again"])
async def test_data_amid_a_renegotiation(ask_again, io_options, authority, server_tls, caplog):
    """A server goes on sending until it sees our side of the new handshake. What we send meanwhile
    must not look for the handshake's next record among its data.
    """
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    listener = Counter()
    contexts = Contexts(server_tls, client)
    with log_below(caplog, logging.WARNING):
        async with connected("client", listener, contexts=contexts, **io_options) as pair:
            pointer = openssl_pointer(pair.peer.tls)
            for number in range(1, 4):
                assert openssl_calls().SSL_renegotiate(pointer) == 1
                await pair.peer.send(TEXT, b"asked")
                await listener.until(lambda n=2 * number - 1: listener.counts.get(TEXT) == n)
                # The answer to the wish has been sent, and was not read.
                if ask_again:
                    openssl_calls().SSL_renegotiate(pointer)
                pair.peer.sock.sendall(pair.peer.encrypt(pair.peer.frame(TEXT, b"sent on")))
                pair.transport.send(TEXT, b"ours")
                await listener.until(lambda n=2 * number: listener.counts.get(TEXT) == n)
                reading = asyncio.ensure_future(pair.peer.read_frame())
                while not reading.done():
                    await pair.peer.send_raw(pair.peer.encrypt(b""))
                    await asyncio.sleep(0.001)
                assert await reading == (TEXT, b"ours")
            assert pair.transport.state == WSState.OPEN
            pair.peer.close()
            await listener.closed()
