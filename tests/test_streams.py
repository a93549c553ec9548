"""net: TCP, TLS and foreign transports through real connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
import sys

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType

from .adversity.proxy import FaultyProxy, Flow
from .peers import (
    TIMEOUT,
    UPGRADE_REQUEST,
    Contexts,
    Peer,
    connect_socket,
    connected,
    drip,
    listening_socket,
)
from .support import Echo, Recorder, accept_response, address, free_port, raw_server, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture(params=VERSIONS)
def tls(request, authority) -> Contexts:
    """Contexts of one TLS version."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    for context in (server, client):
        context.minimum_version = context.maximum_version = VERSIONS[request.param]
    return Contexts(server, client)


# --- Which stream


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX has them")
async def test_descriptors_are_read_and_written_directly(side):
    """A native stream that cannot be imported would go unnoticed otherwise."""
    async with connected(side) as pair:
        assert type(pair.transport.underlying_transport).__name__ == "TcpStream"
    async with connected(side, use_loop_transport=True) as pair:
        assert type(pair.transport.underlying_transport).__name__ == "ForeignStream"


# --- TLS records, cut anywhere


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_whole_connections_cut_at_every_byte(tls, io_options, size):
    """TLS handshake, opening handshake, frames and closing, each byte in a segment of its own."""
    payload = os.urandom(300)
    async with (
        serving(lambda request: Echo(), tls=tls.server, **io_options) as url,
        FaultyProxy(
            address(url), lambda number: (Flow(piece=size), Flow(piece=size)), scheme="wss"
        ) as proxy,
    ):
        transport, client = await picows_fast.ws_connect(
            Recorder, proxy.url, ssl_context=tls.client, **io_options
        )
        transport.send(WSMsgType.BINARY, payload)
        transport.send(WSMsgType.TEXT, "second")
        assert await client.frame(0) == (WSMsgType.BINARY, payload, True)
        assert await client.frame(1) == (WSMsgType.TEXT, b"second", True)
        transport.send_close(1000, "done")
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)
        assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE


async def test_records_cut_at_every_byte(side, tls):
    async with connected(side, contexts=tls) as pair:
        data = b"".join(
            pair.peer.encrypt(pair.peer.frame(WSMsgType.TEXT, text)) for text in ("a", "bc", "def")
        )
        await drip(pair.peer, data)
        for i, text in enumerate((b"a", b"bc", b"def")):
            assert await pair.listener.frame(i) == (WSMsgType.TEXT, text, True)


async def test_one_frame_in_many_records_and_many_frames_in_one(side, tls):
    async with connected(side, contexts=tls) as pair:
        frame = pair.peer.frame(WSMsgType.BINARY, bytes(range(200)))
        await pair.peer.send_raw(
            b"".join(pair.peer.encrypt(frame[i : i + 1]) for i in range(len(frame)))
        )
        assert (await pair.listener.frame(0))[1] == bytes(range(200))
        await pair.peer.send_bytes(pair.peer.frame(WSMsgType.TEXT, "x") * 1000)
        await pair.listener.frame(1000)


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 100, 16384, 16389, 20000])
async def test_large_frame_with_a_pause_between_records(side, tls, cut):
    payload = os.urandom(60_000)
    async with connected(side, contexts=tls) as pair:
        data = pair.peer.encrypt(pair.peer.frame(WSMsgType.BINARY, payload))
        await pair.peer.send_raw(data[:cut])
        await asyncio.sleep(0.002)
        await pair.peer.send_raw(data[cut:])
        assert (await pair.listener.frame(0))[1] == payload


async def test_large_payloads_both_ways_at_once(tls, io_options):
    payload = os.urandom(3_000_000)
    server_side = Recorder()
    async with serving(lambda request: server_side, tls=tls.server, **io_options) as url:
        transport, client = await picows_fast.ws_connect(
            Recorder, url, ssl_context=tls.client, **io_options
        )
        await server_side.until(lambda: server_side.transport)
        for _ in range(3):
            transport.send(WSMsgType.BINARY, payload)
            server_side.transport.send(WSMsgType.BINARY, payload)
        for i in range(3):
            assert (await client.frame(i))[1] == payload
            assert (await server_side.frame(i))[1] == payload
        transport.send_close(1000)
        await server_side.frame(3)
        server_side.transport.send_close(1000)
        await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


@pytest.mark.parametrize("is_kept", [False, True])
async def test_large_frames_among_small_ones(tls, io_options, is_kept):
    """Memory for large frames goes from one to the next, whatever comes between and behind them."""
    sizes = [1_500_000, 1_500_000, 20, 1_500_000, 5000, 700_000, 1_500_000, 3_000_000, 1, 300_000]
    payloads = [os.urandom(size) for size in sizes * 2]
    kept = []

    class Keeping(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            if is_kept:
                kept.append(memoryview(frame))

    listener = Keeping()
    async with serving(lambda request: listener, tls=tls.server, **io_options) as url:
        transport, _ = await picows_fast.ws_connect(
            Recorder, url, ssl_context=tls.client, **io_options
        )
        # Half of them wait for each other, so that a read has one; half follow close behind.
        for i, payload in enumerate(payloads):
            transport.send(WSMsgType.BINARY, payload)
            if i < len(sizes):
                await listener.frame(i)
        for i, payload in enumerate(payloads):
            assert (await listener.frame(i))[1] == payload
        transport.disconnect()
        await listener.closed()
    assert [bytes(view) for view in kept] == (payloads if is_kept else [])


@pytest.mark.parametrize(
    "size", [0, 1, 125, 126, 16380, 16383, 16384, 16385, 32768, 65535, 65536, 250_000, 600_000]
)
async def test_sizes_around_records(tls, side, size):
    payload = os.urandom(size)
    async with connected(side, contexts=tls) as pair:
        pair.transport.send(WSMsgType.BINARY, payload)
        pair.transport.send(WSMsgType.TEXT, "behind")
        assert await pair.peer.read_frame() == (2, payload)
        assert await pair.peer.read_frame() == (1, b"behind")


async def test_close_notify_is_sent(side, tls, io_options):
    async with connected(side, contexts=tls, **io_options) as pair:
        pair.transport.send(WSMsgType.TEXT, "last")
        pair.transport.disconnect()
        assert await pair.peer.read_frame() == (1, b"last")
        assert await pair.peer.read_to_end() == b""
        assert pair.peer.close_notify_seen
        # Our FIN follows, and the peer's is waited for.
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(pair.peer.sock, 100), TIMEOUT) == b""
        assert not pair.transport.is_disconnected
        await pair.peer.send_raw(pair.peer.close_notify())
        pair.peer.fin()
        await pair.listener.closed()


async def test_extra_info(side, tls, io_options):
    async with connected(side, contexts=tls, **io_options) as pair:
        stream = pair.transport.underlying_transport
        tls_object = stream.get_extra_info("ssl_object")
        assert isinstance(tls_object, ssl.SSLObject)
        assert stream.get_extra_info("sslcontext") is tls_object.context
        assert stream.get_extra_info("cipher") == tls_object.cipher()
        assert stream.get_extra_info("compression") is None
        assert bool(stream.get_extra_info("peercert")) == (side == "client")
        assert stream.get_extra_info("peername") == pair.peer.sock.getsockname()
        assert stream.get_extra_info("sockname") == pair.peer.sock.getpeername()
        assert stream.get_extra_info("nothing of the kind", 5) == 5
        assert pair.transport.is_secure


async def test_plain_extra_info(side, io_options):
    async with connected(side, **io_options) as pair:
        stream = pair.transport.underlying_transport
        assert stream.get_extra_info("ssl_object") is None
        assert pair.transport.ssl_session is None
        assert stream.get_extra_info("peername") == pair.peer.sock.getsockname()
        assert stream.get_extra_info("sockname") == pair.peer.sock.getpeername()
        sock = stream.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert not pair.transport.is_secure
        assert stream.is_reading()
        pair.transport.pause_reading()
        assert not stream.is_reading()
        pair.transport.resume_reading()
        assert stream.is_reading()
        assert stream.get_write_buffer_size() == 0
        assert not stream.is_closing()
        pair.transport.disconnect(graceful=False)
        assert stream.is_closing()
        await pair.listener.closed()
        assert stream.get_extra_info("peername") == pair.peer.sock.getsockname()


# --- Reads that want a write, writes that want a read


def openssl(*arguments):
    path = shutil.which("openssl")
    if path is None:
        pytest.skip("needs the openssl command")
    return [path, *arguments]


class OpenSSL:
    """`openssl s_server` or `s_client`, whose standard input is data or commands."""

    def __init__(self, process):
        self.process = process
        self.output = b""

    async def until(self, text):
        """Wait for a text in its output; return what came before."""

        async def read():
            while text not in self.output:
                data = await self.process.stdout.read(65536)
                assert data, self.output
                self.output += data

        await asyncio.wait_for(read(), TIMEOUT)
        before, _, self.output = self.output.partition(text)
        return before

    def write(self, data):
        self.process.stdin.write(data)


@contextlib.asynccontextmanager
async def running_openssl(*arguments):
    process = await asyncio.create_subprocess_exec(
        *openssl(*arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield OpenSSL(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.fixture(scope="session")
def certificate_file(tmp_path_factory, authority):
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        path
    )
    return str(path)


@pytest.mark.parametrize("command", [b"k", b"K"], ids=["KeyUpdate", "KeyUpdate requested"])
async def test_key_update_by_a_client(server_tls, command):
    """TLS 1.3: the peer changes its keys; with K we have to answer with ours (RFC 8446 4.6.3)."""
    listener = Echo()
    async with serving(lambda request: listener, tls=server_tls) as url:
        port = picows_fast.parse_url(url).port
        async with running_openssl("s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3") as tool:
            tool.write(UPGRADE_REQUEST)
            await tool.until(b"101 Switching Protocols")
            for i in range(3):
                text = b"after update %d\n" % i
                tool.write(command + b"\n")
                await tool.until(b"KEYUPDATE")
                tool.write(picows_fast.build_frame(WSMsgType.TEXT, text, mask=True))
                assert await listener.frame(i) == (WSMsgType.TEXT, text, True)
                await tool.until(text)


@contextlib.asynccontextmanager
async def openssl_server(certificate_file, *options):
    port = free_port()
    async with running_openssl(
        "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificate_file, *options
    ) as tool:
        await tool.until(b"ACCEPT")
        yield tool, f"wss://127.0.0.1:{port}/"


@pytest.mark.parametrize(
    ("version", "command"),
    [("-tls1_3", b"k"), ("-tls1_3", b"K"), ("-tls1_2", b"r")],
    ids=["KeyUpdate", "KeyUpdate requested", "renegotiation"],
)
async def test_server_changes_keys(certificate_file, client_tls, version, command):
    """In TLS 1.2 this is a handshake in the midst of data: reads have to write, writes to read."""
    async with openssl_server(certificate_file, version) as (tool, url):
        connecting = asyncio.create_task(
            picows_fast.ws_connect(Recorder, url, ssl_context=client_tls)
        )
        await tool.until(b"Sec-WebSocket-Key: ")
        key = await tool.until(b"\r\n")
        tool.write(accept_response(b"Sec-WebSocket-Key: " + key + b"\r\n"))
        transport, client = await asyncio.wait_for(connecting, TIMEOUT)
        for i in range(3):
            tool.write(command + b"\n")
            # Data goes both ways while the keys change.
            for _ in range(10):
                transport.send(WSMsgType.TEXT, "from us")
                await asyncio.sleep(0.001)
            tool.write(picows_fast.build_frame(WSMsgType.TEXT, b"update %d\n" % i))
            assert (await client.frame(i))[1] == b"update %d\n" % i
            # Nobody reads what the tool prints, so it must fit into a pipe.
            transport.send(WSMsgType.BINARY, bytes(20_000))
        assert not transport.is_disconnected
        transport.disconnect(graceful=False)
        await client.closed()


# --- Handshakes


async def test_tls_handshake_timeout(io_options):
    """`ssl_handshake_timeout` alone, inside a longer deadline for everything."""

    async def say_nothing(reader, writer):
        await reader.read()

    async with raw_server(say_nothing, upgrade=False) as url:
        with pytest.raises(TimeoutError):
            await picows_fast.ws_connect(
                Recorder,
                url.replace("ws:", "wss:"),
                ssl_handshake_timeout=0.05,
                websocket_handshake_timeout=TIMEOUT,
                **io_options,
            )


async def test_tls_server_drops_clients_that_do_not_finish(server_tls, io_options):
    async with serving(
        lambda request: Echo(), tls=server_tls, ssl_handshake_timeout=0.05, **io_options
    ) as url:
        reader, writer = await asyncio.open_connection(*address(url))
        writer.write(b"\x16\x03\x01\x02\x00\x01")
        assert await asyncio.wait_for(reader.read(), TIMEOUT) is not None
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(500), b"\x16\x03\x01\xff\xff" + bytes(99)],
)
async def test_tls_server_survives_garbage(server_tls, client_tls, io_options, garbage):
    async with serving(
        lambda request: Echo(), tls=server_tls, websocket_handshake_timeout=0.2, **io_options
    ) as url:
        for _ in range(5):
            reader, writer = await asyncio.open_connection(*address(url))
            writer.write(garbage)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), TIMEOUT)
            writer.close()
        transport, client = await picows_fast.ws_connect(
            Recorder, url, ssl_context=client_tls, **io_options
        )
        transport.send(WSMsgType.TEXT, "still here")
        await client.frame()
        transport.disconnect(graceful=False)
        await client.closed()


@pytest.mark.parametrize("first", [b"", b"220 mail ready\r\n", b"x" * 100_000])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_peer_that_speaks_first(io_options, client_tls, first, scheme):
    """Bytes, or the end, may be there before the client has got as far as to ask for them."""
    with listening_socket() as listening:

        async def serve():
            sock, _ = await asyncio.get_running_loop().sock_accept(listening)
            with sock, contextlib.suppress(ConnectionError):
                if first:
                    await asyncio.get_running_loop().sock_sendall(sock, first)

        for _ in range(5):
            serving_one = asyncio.create_task(serve())
            with pytest.raises((picows_fast.WSHandshakeError, OSError)):
                await picows_fast.ws_connect(
                    Recorder,
                    f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/",
                    ssl_context=client_tls,
                    **io_options,
                )
            await serving_one


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_connection_that_ends_before_anybody_looks(io_options, client_tls, reset):
    listening = listening_socket()
    with listening:
        sock = await connect_socket(listening.getsockname())
        accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
        peer = Peer(accepted, is_client=False)
        peer.reset() if reset else peer.close()
        for _ in range(2):
            await asyncio.sleep(0)
        with pytest.raises((picows_fast.WSHandshakeError, OSError)):
            await picows_fast.ws_connect(Recorder, "ws://127.0.0.1/", sock=sock, **io_options)


async def test_bad_tls_arguments_leave_nothing_open(io_options, server_tls, client_tls):
    """What the ssl module refuses is raised as it is, and the connected socket is closed."""
    other = ssl.create_default_context()
    async with serving(lambda request: Echo(), tls=server_tls, **io_options) as url:
        transport, client = await picows_fast.ws_connect(
            Recorder, url, ssl_context=client_tls, **io_options
        )
        transport.send(WSMsgType.TEXT, "x")
        await client.frame()
        session = transport.ssl_session
        assert session is not None
        transport.disconnect(graceful=False)
        await client.closed()
        with pytest.raises(ValueError, match="different SSLContext"):
            await picows_fast.ws_connect(
                Recorder, url, ssl_context=other, ssl_session=session, **io_options
            )
        with pytest.raises(ValueError):
            await picows_fast.ws_connect(
                Recorder, url, ssl_context=client_tls, server_hostname=".bad", **io_options
            )
        # Nothing of the sockets that were given up is left in the loop either.
        for use_loop_transport in (False, True):
            transport, client = await picows_fast.ws_connect(
                Recorder, url, ssl_context=client_tls, use_loop_transport=use_loop_transport
            )
            transport.send(WSMsgType.TEXT, "x")
            await client.frame()
            transport.disconnect(graceful=False)
            await client.closed()


async def test_a_reset_under_many_sends_is_not_worth_a_warning(contexts, io_options, caplog):
    """Nor anything above INFO, by whatever logger: what a peer does is no fault of this side."""
    async with connected("server", contexts=contexts, **io_options) as pair:
        pair.peer.reset()
        for _ in range(100):
            pair.transport.send(WSMsgType.TEXT, "an update")
        pair.transport.cork()
        for _ in range(100):
            pair.transport.send(WSMsgType.TEXT, "an update")
        pair.transport.uncork()
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PEER_RESET
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_client_that_vanishes_in_the_tls_handshake(server_tls, client_tls, io_options):
    """Cut off after every flight and within it; the server goes on."""
    async with serving(
        lambda request: Echo(), tls=server_tls, websocket_handshake_timeout=1, **io_options
    ) as url:
        for cut in (0, 1, 10, 100, 200):
            sock = await connect_socket(address(url))
            peer = Peer(sock, is_client=True, context=client_tls)
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await peer.send_raw(peer._outgoing.read()[:cut])
            await asyncio.sleep(0)
            peer.fin()
            peer.close()


# --- Reading


@pytest.mark.native
async def test_a_flooding_peer_lets_the_others_have_their_turn(side):
    """Reads are capped per turn: a timer fires between the frames of one flood."""
    turns = []

    class Counting(Recorder):
        def on_ws_frame(self, transport, frame):
            turns.append(len(ticks))
            self._changed.set()

    ticks = []
    async with connected(side, Counting()) as pair:

        def tick():
            ticks.append(None)
            handle[0] = loop.call_soon(tick)

        loop = asyncio.get_running_loop()
        handle = [loop.call_soon(tick)]
        data = pair.peer.frame(WSMsgType.BINARY, bytes(60_000)) * 100
        sending = asyncio.create_task(pair.peer.send_bytes(data))
        await pair.listener.until(lambda: len(turns) == 100)
        handle[0].cancel()
        await sending
        assert len(set(turns)) > 100 * 60_000 // (512 * 1024)


@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 4097, 20_000, 300_000])
@pytest.mark.parametrize("cut", [1, 2, 3, 10, 100, 5000])
async def test_unfinished_frames_of_all_sizes(side, io_options, size, cut):
    """All buffers that an unfinished frame goes through: before a read, its own, shared again."""
    payload = os.urandom(size)
    async with connected(side, **io_options) as pair:
        frames = [
            pair.peer.frame(WSMsgType.BINARY, payload),
            pair.peer.frame(WSMsgType.TEXT, "between"),
            pair.peer.frame(WSMsgType.BINARY, payload[::-1]),
        ]
        data = b"".join(frames)
        for edge in (len(frames[0]) - cut, len(frames[0]) + cut, len(data) - cut):
            await pair.peer.send_raw(data[: max(edge, 1)])
            await asyncio.sleep(0.001)
            await pair.peer.send_raw(data[max(edge, 1) :])
        await pair.listener.frame(8)
        assert [frame[1] for frame in pair.listener.frames] == [
            payload,
            b"between",
            payload[::-1],
        ] * 3


async def test_bytes_one_by_one(link):
    async with link() as pair:
        data = b"".join(
            pair.peer.frame(WSMsgType.BINARY, bytes(range(size % 256)) * (size // 256 + 1))
            for size in (0, 1, 126, 300)
        )
        await drip(pair.peer, pair.peer.encrypt(data))
        await pair.listener.frame(3)
        assert [len(frame[1]) for frame in pair.listener.frames] == [0, 1, 126, 88]
