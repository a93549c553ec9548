"""Memory: what a peer can make us hold, what is given back, and whose bytes are touched."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import random
import socket
import sys

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSFrame, WSListener, WSMsgType, WSTransport

from .. import needs
from ..frames import BINARY, CLOSE, PING, PONG, TEXT
from ..support import Recorder, client_frame, raw_server, read_frame, serving, until
from .peers import (
    KIB,
    MIB,
    deaf_client,
    set_send_buffer,
    traced_memory,
    waiting,
)


class Counter(Recorder):
    """A Recorder that keeps sizes in place of payloads."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.sizes.append(frame.payload_size)
        self._note("frame")


# --- Mask keys


CONNECT_FORK_AND_SEND = """
import asyncio, os, sys
import picows_fast

async def main():
    transport, _ = await picows_fast.ws_connect(picows_fast.WSListener, sys.argv[1])
    for _ in range(3):
        transport.send(picows_fast.WSMsgType.TEXT, "parent")
    child = os.fork()
    if child == 0:
        for _ in range(3):
            transport.send(picows_fast.WSMsgType.TEXT, "child")
        os._exit(0)
    os.waitpid(child, 0)
    for _ in range(3):
        transport.send(picows_fast.WSMsgType.TEXT, "parent")
    transport.send_close(1000)
    await transport.wait_disconnected()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def key_reader():
    """A server that notes the mask key of each data frame, by connection; gives (URL, lists of
    keys)."""
    connections: list[list[bytes]] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keys: list[bytes] = []
        connections.append(keys)
        while True:
            first, second = await reader.readexactly(2)
            assert second & 0x80
            keys.append(await reader.readexactly(4))
            await reader.readexactly(second & 0x7F)
            if first & 0x0F == CLOSE:
                return

    async with raw_server(read) as url:
        yield url, connections


@needs.fork
async def test_mask_keys_differ_between_processes():
    """No two processes send the same mask keys: neither two of the same program nor a forked child
    and its parent."""
    async with key_reader() as (url, connections):
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CONNECT_FORK_AND_SEND, url
            )
            assert await asyncio.wait_for(process.wait(), 30) == 0
    assert [len(keys) for keys in connections] == [10, 10]
    keys = connections[0] + connections[1]
    assert len(set(keys)) == len(keys)


async def test_mask_keys_do_not_come_from_a_seeded_generator(io_options):
    """Who knows the seed of the C library's or of Python's generator does not know the mask
    keys."""
    libc = ctypes.CDLL(None)
    state = random.getstate()
    async with key_reader() as (url, connections):
        for _ in range(2):
            libc.srand(1)
            libc.srandom(1)
            random.seed(1)
            transport, _ = await picows_fast.ws_connect(Recorder, url, **io_options)
            for _ in range(20):
                transport.send(TEXT, b"x")
            transport.send_close(1000)
            await asyncio.wait_for(transport.wait_disconnected(), 20)
    random.setstate(state)
    keys = connections[0] + connections[1]
    assert len(keys) == 42
    assert len(set(keys)) == len(keys)


# --- Exact bounds


SEND_UP_TO_A_GUARD_PAGE = """
import asyncio, ctypes, mmap, sys
import picows_fast

PAGE = mmap.PAGESIZE

async def main():
    memory = mmap.mmap(-1, 2 * PAGE)
    memory[:PAGE] = bytes(i % 251 for i in range(PAGE))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + PAGE), PAGE, 0) == 0
    transport, _ = await picows_fast.ws_connect(picows_fast.WSListener, sys.argv[1])
    for size in range(1, 300):
        transport.send(picows_fast.WSMsgType.BINARY, memoryview(memory)[PAGE - size : PAGE])
    transport.send_close(1000)
    await transport.wait_disconnected()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
async def test_masking_reads_nothing_behind_the_payload():
    """A payload whose end is the end of readable memory is masked and sent: not a byte behind it is
    read, whatever its length and alignment."""
    received: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            opcode, payload = await read_frame(reader)
            if opcode == CLOSE:
                return
            received.append(payload)

    async with raw_server(read) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SEND_UP_TO_A_GUARD_PAGE, url
        )
        assert await asyncio.wait_for(process.wait(), 30) == 0
    page = bytes(i % 251 for i in range(mmap.PAGESIZE))
    assert received == [page[-size:] for size in range(1, 300)]


async def test_masking_stays_within_the_payload_that_is_sent(io_options):
    """Sending from an external bytearray touches nothing behind its end, whatever the length is
    modulo 4."""
    canary = bytes(range(0xA0, 0xA8))
    received: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            received.append((await read_frame(reader))[1])

    async with raw_server(read) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url, **io_options)
        for size in range(1, 70):
            buffer = bytearray(14) + b"p" * size + canary
            del buffer[14 + size :]  # in place: the memory behind the end is the bytearray's still
            end = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + len(buffer)
            transport.send_reuse_external_bytearray(BINARY, buffer, 14)
            # A bytearray ends with a NUL; what is behind that nobody has a reason to touch.
            assert ctypes.string_at(end + 1, len(canary) - 1) == canary[1:], size
        await until(lambda: len(received) == 69)
        transport.disconnect()
        await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert received == [b"p" * size for size in range(1, 70)]


async def test_unmasking_stays_within_the_frame(facing_peer):
    """Each frame of a burst arrives as it was sent: unmasking one does not reach into the next, and
    a frame whose neighbour is not complete yet is unmasked without it."""
    listener = Recorder()
    sent = [bytes((size + i) & 0xFF for i in range(size)) for size in range(140)]
    async with facing_peer(listener) as peer:
        stream = b"".join(peer.frame(BINARY, payload) for payload in sent)
        peer.send(stream)
        await listener.frame(len(sent) - 1)
        for start in range(0, len(stream), 997):
            peer.send(stream[start : start + 997])
            await asyncio.sleep(0)
        await listener.frame(2 * len(sent) - 1)
    assert [payload for _, payload, _ in listener.frames] == 2 * sent


# --- Views


@pytest.mark.parametrize("size", [10, 5_000, 100_000])
async def test_kept_views_stay_valid(facing_peer, size):
    """A memoryview of a payload that outlives its callback shows the same bytes after later frames,
    and after the connection has gone."""

    class Keeper(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.views: list[memoryview] = []

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            self.views.append(frame.get_payload_as_memoryview())
            self._note("frame")

    listener = Keeper()
    count = 40
    async with facing_peer(listener) as peer:
        for i in range(count):
            peer.send(peer.frame(BINARY, bytes([i]) * size))
            if i % 3 == 0:
                await listener.until(lambda i=i: len(listener.views) > i)
        await listener.until(lambda: len(listener.views) == count)
        for i, view in enumerate(listener.views):
            assert view == bytes([i]) * size
        peer.transport.disconnect(graceful=False)
        await listener.closed()
    del peer
    for i, view in enumerate(listener.views):
        assert view == bytes([i]) * size


# --- What a peer may make us hold


async def test_a_frame_above_the_limit_is_neither_buffered_nor_delivered(facing_peer):
    """A frame larger than max_frame_size is refused by its header, with CLOSE 1009; its payload is
    not kept."""
    limit = 64 * KIB
    listener = Counter()
    async with facing_peer(listener, max_frame_size=limit) as peer:
        peer.send(peer.frame(BINARY, bytes(limit)))
        await listener.until(lambda: listener.sizes)
        # The header alone is enough.
        frame = peer.frame(BINARY, bytes(16 * MIB))
        with traced_memory() as memory:
            peer.send(frame[:14])
            opcode, payload = await peer.read()
            assert (opcode, payload[:2]) == (CLOSE, (1009).to_bytes(2, "big"))
            for start in range(14, len(frame), 256 * KIB):
                if peer.writer.transport.is_closing():
                    break
                peer.send(frame[start : start + 256 * KIB])
                with contextlib.suppress(ConnectionError):
                    await peer.writer.drain()
            peer.send(peer.frame(TEXT, b"behind it"))
            await peer.end()
            await listener.closed()
            assert memory.peak < 2 * MIB
    assert listener.sizes == [limit]
    assert peer.transport.disconnect_cause == WSDisconnectCause.PROTOCOL_ERROR


@pytest.mark.parametrize("size", [64 * KIB + 1, 1 * MIB])
async def test_a_whole_frame_above_the_limit_is_not_delivered(facing_peer, size):
    """The same when the frame arrives at once, whole."""
    listener = Counter()
    async with facing_peer(listener, max_frame_size=64 * KIB) as peer:
        peer.send(peer.frame(BINARY, bytes(size)))
        opcode, payload = await peer.read()
        assert (opcode, payload[:2]) == (CLOSE, (1009).to_bytes(2, "big"))
        await peer.end()
        await listener.closed()
    assert listener.sizes == []


@pytest.mark.parametrize("limit", [1 * MIB, None], ids=["1 MiB", "default"])
async def test_what_waits_for_a_peer_that_never_reads_is_limited(limit, io_options):
    """No more than max_write_backlog bytes, 64 MiB unless set, and one frame wait for a peer that
    does not read; then the connection ends, and the cause says so."""
    options = {} if limit is None else {"max_write_backlog": limit}
    bound = limit or 64 * MIB
    frame = bound // 16
    listener = Recorder()
    async with serving(lambda request: listener, **options, **io_options) as url:
        with contextlib.closing(await deaf_client(url)):
            await listener.until(lambda: listener.transport)
            transport = listener.transport
            set_send_buffer(transport)
            payload = bytes(frame)
            most = 0
            for _ in range(64):
                transport.send(BINARY, payload)
                most = max(most, waiting(transport))
            assert bound - frame <= most <= bound + frame + 14
            await listener.closed()
            assert waiting(transport) == 0
    assert transport.disconnect_cause == WSDisconnectCause.WRITE_BACKLOG
    assert "pause_writing" in listener.events
    assert listener.events.count("disconnected") == 1


async def test_memory_for_a_peer_that_never_reads_is_limited(io_options):
    """The same in terms of memory: what is allocated is at most twice the limit, and all given
    back."""
    limit = 4 * MIB
    listener = Counter()
    async with serving(lambda request: listener, max_write_backlog=limit, **io_options) as url:
        with contextlib.closing(await deaf_client(url)):
            await listener.until(lambda: listener.transport)
            set_send_buffer(listener.transport)
            payload = bytes(50_000)
            with traced_memory() as memory:
                for _ in range(1000):
                    listener.transport.send(BINARY, payload)
                await listener.closed()
                assert memory.peak < 2 * limit + MIB
                assert memory.held < 100 * KIB


async def test_a_flood_of_pings_leaves_no_pile_of_pongs(io_options):
    """A peer that sends PINGs and does not read gets the answer to the newest one when it reads
    again (RFC 6455 5.5.3); what waits for it meanwhile is bounded by the high watermark."""
    listener = Recorder()
    count = 30_000
    high = 32 * KIB
    options = {"write_high_watermark": high, **io_options}
    async with serving(lambda request: listener, **options) as url:
        sock = await deaf_client(url)
        await listener.until(lambda: listener.transport)
        transport = listener.transport
        set_send_buffer(transport)
        frames = [client_frame(PING, i.to_bytes(125, "big")) for i in range(count)]
        frames.append(client_frame(TEXT, b"done"))
        await asyncio.get_running_loop().sock_sendall(sock, b"".join(frames))
        await listener.frame()
        assert waiting(transport) <= high + 2 * 127
        assert "pause_writing" in listener.events
        reader, writer = await asyncio.open_connection(sock=sock)
        answered = []
        while not answered or answered[-1] != count - 1:
            opcode, payload = await asyncio.wait_for(read_frame(reader), 20)
            assert opcode == PONG
            answered.append(int.from_bytes(payload, "big"))
        assert answered == sorted(answered)
        assert len(answered) < count // 10
        writer.close()
        await writer.wait_closed()
    assert listener.frames == [(TEXT, b"done", True)]


async def test_reading_stops_while_it_is_paused(io_options):
    """A paused connection stops the sender: nothing is taken from the socket, so nothing piles up
    here."""
    listener = Counter()
    async with serving(lambda request: listener, **io_options) as url:
        sock = await deaf_client(url)
        await listener.until(lambda: listener.transport)
        listener.transport.pause_reading()
        loop = asyncio.get_running_loop()
        frame = client_frame(BINARY, bytes(MIB))
        with traced_memory() as memory:
            sending = asyncio.ensure_future(loop.sock_sendall(sock, frame * 32))
            await asyncio.sleep(0.1)
            assert not sending.done()
            assert memory.peak < 33 * MIB  # the sender's own bytes, and no copy of them
        assert listener.sizes == []
        listener.transport.resume_reading()
        await asyncio.wait_for(sending, 20)
        await listener.until(lambda: len(listener.sizes) == 32)
        sock.close()


# --- What is given back


async def test_memory_of_large_frames_is_given_back(io_options):
    """Connections that received a 9 MiB frame each hold no more, when idle, than before. Their loop
    keeps the memory of one, until there was some traffic of the usual size."""
    count = 20
    listeners: list[Counter] = []

    def factory(request) -> Counter:
        listeners.append(Counter())
        return listeners[-1]

    frame = client_frame(BINARY, bytes(9 * MIB))
    small = client_frame(BINARY, b"x" * 100)
    loop = asyncio.get_running_loop()
    async with serving(factory, **io_options) as url:
        socks = [await deaf_client(url) for _ in range(count)]
        for sock in socks:
            await loop.sock_sendall(sock, small)
        for listener in listeners:
            await listener.until(lambda listener=listener: listener.sizes)
        with traced_memory() as memory:
            for sock in socks:
                await loop.sock_sendall(sock, frame)
            for listener in listeners:
                await listener.until(lambda listener=listener: len(listener.sizes) == 2)
            assert memory.held < 9 * MIB + KIB + count * 10 * KIB
            for received in range(3, 9):
                for sock in socks:
                    await loop.sock_sendall(sock, small)
                for listener in listeners:
                    await listener.until(
                        lambda listener=listener, n=received: len(listener.sizes) == n
                    )
            assert memory.held < count * 10 * KIB
        for sock in socks:
            sock.close()
    assert [listener.sizes for listener in listeners] == [[100, 9 * MIB, *[100] * 6]] * count


async def test_memory_of_large_frames_goes_with_their_connection(io_options):
    """A large frame's memory, which the loop keeps for the next one, is not kept for nobody."""
    listener = Counter()
    loop = asyncio.get_running_loop()
    async with serving(lambda request: listener, **io_options) as url:
        with traced_memory() as memory:
            sock = await deaf_client(url)
            for received in (1, 2):
                await loop.sock_sendall(sock, client_frame(BINARY, bytes(9 * MIB)))
                await listener.until(lambda n=received: len(listener.sizes) == n)
            sock.close()
            await listener.closed()
            assert memory.held < 2 * MIB  # the loop's buffers for reads


TLS_SERVER = """
import asyncio, ctypes, ssl, sys
import picows_fast

COUNT, SIZE, USE_LOOP_TRANSPORT = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
transports = []
received = 0

def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

class Listener(picows_fast.WSListener):
    def on_ws_connected(self, transport):
        transports.append(transport)

    def on_ws_frame(self, transport, frame):
        global received
        received += 1

async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)

async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    server = await picows_fast.ws_create_server(
        lambda request: Listener(), "127.0.0.1", 0, ssl=context, max_write_backlog=None,
        use_loop_transport=USE_LOOP_TRANSPORT,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await until(lambda: received == COUNT)
    before = resident()
    print("ready", flush=True)
    await until(lambda: received == 2 * COUNT)
    # The loop keeps the memory of one frame.
    print((resident() - before - SIZE) // COUNT, flush=True)
    for transport in transports:
        transport.send(picows_fast.WSMsgType.BINARY, bytes(SIZE))
        await until(lambda: transport.write_backlog == 0)
    print((resident() - before - SIZE) // COUNT, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs Linux and glibc",
)
@needs.no_sanitizers("AddressSanitizer keeps freed memory for a while, to notice its use")
async def test_memory_of_large_frames_over_tls_is_given_back(
    authority, client_tls, io_options, tmp_path
):
    """The same over TLS, whose library's buffers only the process's size tells: a connection
    holds less than 200 KiB more after a large frame received, and less than 400 after one sent."""
    count, size = 20, 4 * MIB
    certificate = tmp_path / "certificate.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", TLS_SERVER, certificate, str(count), str(size)),
        str(io_options["use_loop_transport"]),
        stdout=asyncio.subprocess.PIPE,
    )

    async def line() -> str:
        return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()

    listeners = [Counter() for _ in range(count)]
    try:
        url = f"wss://127.0.0.1:{await line()}/"
        for listener in listeners:
            await picows_fast.ws_connect(lambda made=listener: made, url, ssl_context=client_tls)
            listener.transport.send(BINARY, b"small")
        assert await line() == "ready"
        for listener in listeners:
            listener.transport.send(BINARY, bytes(size))
            await until(lambda listener=listener: waiting(listener.transport) == 0)
        assert int(await line()) < 200 * KIB
        assert int(await line()) < 400 * KIB
    finally:
        process.kill()
        await process.wait()
    for listener in listeners:
        await listener.closed()
    assert [listener.sizes for listener in listeners] == [[size]] * count


@pytest.mark.native
async def test_an_idle_connection_holds_a_few_kib():
    """A connection between two frames owns no receive buffer: some KiB each, headers and objects
    included."""
    count = 100
    listeners: list[WSListener] = []

    def factory(request) -> WSListener:
        listeners.append(Counter())
        return listeners[-1]

    async with serving(factory) as url:
        loop = asyncio.get_running_loop()
        warm_up = await deaf_client(url)
        with traced_memory() as memory:
            socks: list[socket.socket] = []
            for _ in range(count):
                sock = await deaf_client(url)
                await loop.sock_sendall(sock, client_frame(BINARY, bytes(3000)))
                socks.append(sock)
            for listener in listeners[1:]:
                await listener.until(lambda listener=listener: listener.sizes)
            assert memory.held / count < 12 * KIB
        for sock in [warm_up, *socks]:
            sock.close()


# --- The caller's buffers


@pytest.mark.parametrize("method", ["send", "send_reuse_external_bytearray"])
async def test_a_buffer_may_be_reused_when_send_returns(facing_peer, method):
    """A large frame that the peer has not taken yet does not refer to the caller's buffer: what is
    written there next does not show on the wire."""
    size = 2 * MIB
    buffer = bytearray(14) + bytes(i & 0xFF for i in range(256)) * (size // 256)
    expected = bytes(buffer[14:])
    listener = Recorder()
    async with facing_peer(listener) as peer:
        peer.writer.transport.pause_reading()
        set_send_buffer(peer.transport)
        if method == "send":
            peer.transport.send(BINARY, memoryview(buffer)[14:])
        else:
            peer.transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, 14)
        assert waiting(peer.transport) > MIB
        buffer[14:] = b"\xff" * size
        del buffer[100:]  # not even its memory is in use
        peer.transport.send(TEXT, b"next")
        set_send_buffer(peer.transport, MIB)
        peer.writer.transport.resume_reading()
        opcode, payload = await peer.read()
        assert opcode == BINARY
        assert payload == expected
        assert await peer.read() == (TEXT, b"next")
