"""net/tls: code that runs in the midst of its calls, what it hands out, and how it ends.

Where it concerns the streams of net/tls_fd as well, they go through the same tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType, WSState
from picows_fast.net import open as net_open
from picows_fast.net.tcp import TcpStream
from picows_fast.net.tls_bio import USED_BY_THE_STREAM, TlsStream
from picows_fast.net.tls_fd import DirectTlsStream

from .peers import TIMEOUT, UPGRADE_REQUEST, Contexts, connected
from .support import Echo, Recorder, address, serving, until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

LARGE = 200_000  # several pieces of what is given to the ssl module at once


class Interruption(BaseException):
    """What a signal's handler may raise."""


class Hook:
    """Runs `act` once, in the next call of an SSL object's method: before it, or after it."""

    def __init__(self, context, method, is_before=False):
        self.act = None
        self.calls = 0

        def hooked(tls, *arguments):
            self.calls += 1
            if is_before:
                self.run()
            try:
                return getattr(ssl.SSLObject, method)(tls, *arguments)
            finally:
                self.run()

        context.sslobject_class = type("Hooked", (ssl.SSLObject,), {method: hooked})

    def run(self):
        act, self.act = self.act, None
        if act is not None:
            act()


@pytest.fixture
def own_contexts(authority) -> Contexts:
    """Contexts that no other test has: they may be changed."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Contexts(server, client)


@pytest.fixture(params=["direct", "TcpStream", "loop-transport"])
def below(request, monkeypatch):
    """What carries the records: the stream itself, or what TlsStream has below it. Options."""
    left_out = {"loop": {"direct", "TcpStream"}, "tls-bio": {"direct"}}
    transport = request.config.getoption("--transport")
    if request.param in left_out.get(transport, ()):
        pytest.skip(f"about what --transport={transport} replaces")
    if request.param == "TcpStream":

        class Never:
            @staticmethod
            def create(*arguments, **options):
                return None

        monkeypatch.setattr(net_open, "DirectTlsStream", Never)
    return {"use_loop_transport": request.param == "loop-transport"}


def ours(contexts, side):
    return contexts.client if side == "client" else contexts.server


# --- Code in the midst of a call


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
async def test_sending_in_the_midst_of_a_write(side, io_options, own_contexts, is_before):
    """What was being written stays whole, and comes first; so it is if it came from a backlog."""
    hook = Hook(ours(own_contexts, side), "write", is_before)
    first, second, third = (os.urandom(LARGE) for _ in range(3))
    async with (
        connected(side, contexts=own_contexts, **io_options) as pair,
        connected(side, contexts=own_contexts, **io_options) as other,
    ):
        assert type(pair.transport.underlying_transport) is TlsStream

        def send():
            other.transport.send(WSMsgType.BINARY, third)
            pair.transport.send(WSMsgType.BINARY, second)
            pair.transport.send(WSMsgType.TEXT, "behind it")

        for is_corked in (False, True):
            hook.act = send
            if is_corked:
                pair.transport.cork()
            pair.transport.send(WSMsgType.BINARY, first)
            if is_corked:
                pair.transport.uncork()
            assert await pair.peer.read_frame() == (WSMsgType.BINARY, first)
            assert await pair.peer.read_frame() == (WSMsgType.BINARY, second)
            assert await pair.peer.read_frame() == (WSMsgType.TEXT, b"behind it")
            assert await other.peer.read_frame() == (WSMsgType.BINARY, third)
        assert pair.transport.write_backlog == 0


@pytest.mark.parametrize("method", ["read", "pending"])
@pytest.mark.parametrize("act", ["send", "pause", "other"])
async def test_acts_in_the_midst_of_a_read(side, io_options, own_contexts, method, act):
    """Nothing that is read is lost or changes places, whatever is done meanwhile."""
    hook = Hook(ours(own_contexts, side), method)
    # One of them is larger than what streams share to read into: they have memory for those, too.
    payloads = [os.urandom(size) for size in (600_000, 1, 300_000, 2000)]
    async with (
        connected(side, contexts=own_contexts, **io_options) as pair,
        connected(side, contexts=own_contexts, **io_options) as other,
    ):
        answers = 0

        def send():
            nonlocal answers
            answers += 1
            pair.transport.send(WSMsgType.BINARY, payloads[0])

        def pause():
            pair.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.01, pair.transport.resume_reading)

        acts = {
            "send": send,
            "pause": pause,
            "other": lambda: other.transport.disconnect(graceful=False),
        }
        for number, payload in enumerate(payloads):
            hook.act = acts[act]
            await pair.peer.send(WSMsgType.BINARY, payload)
            if number % 2:
                await pair.listener.frame(number)
        hook.act = None
        assert [frame[1] for frame in pair.listener.frames] == payloads
        for _ in range(answers):
            assert (await pair.peer.read_frame())[1] == payloads[0]


@pytest.mark.parametrize("method", ["write", "read", "unwrap"])
@pytest.mark.parametrize("is_graceful", [True, False], ids=["disconnect", "abort"])
async def test_ending_in_the_midst_of_a_call(side, io_options, own_contexts, method, is_graceful):
    """It is done when the call is over; what was sent before goes out first, if it is to."""
    hook = Hook(ours(own_contexts, side), method)
    payload = os.urandom(LARGE)
    async with connected(side, contexts=own_contexts, **io_options) as pair:
        hook.act = lambda: pair.transport.disconnect(is_graceful)
        if method == "read":
            await pair.peer.send(WSMsgType.TEXT, "makes it read")
            await pair.listener.until(lambda: hook.act is None or pair.listener.frames)
            await until(lambda: hook.act is None)
        else:
            pair.transport.send(WSMsgType.BINARY, payload)
            if method == "unwrap":
                pair.transport.disconnect()
        if is_graceful:
            if method != "read":
                assert await pair.peer.read_frame() == (WSMsgType.BINARY, payload)
            assert await pair.peer.read_to_end() == b""
            assert pair.peer.close_notify_seen
        else:
            await pair.peer.read_to_end()
        pair.peer.close()
        await pair.listener.closed()
        assert pair.listener.events.count("disconnected") == 1
        assert pair.transport.state == WSState.CLOSED


@pytest.mark.parametrize("method", ["write", "read"])
async def test_a_call_that_is_broken_off(side, io_options, own_contexts, method):
    """Nobody knows what it has done, so the connection fails."""
    hook = Hook(ours(own_contexts, side), method)
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    def interrupt():
        raise Interruption

    async with connected(side, contexts=own_contexts, **io_options) as pair:
        hook.act = interrupt
        if method == "write":
            with pytest.raises(Interruption):
                pair.transport.send(WSMsgType.TEXT, "cut off")
            assert not errors
        else:
            await pair.peer.send(WSMsgType.TEXT, "cut off")
            await until(lambda: pair.transport.disconnect_cause is not None)
            assert pair.listener.frames == []
        assert pair.transport.disconnect_cause == WSDisconnectCause.TLS_ERROR
        assert "Interruption" in str(pair.transport.disconnect_exception)
        pair.transport.send(WSMsgType.TEXT, "nothing follows")
        await pair.peer.read_to_end()
        pair.peer.close()
        await pair.listener.closed()


async def test_a_method_that_does_what_it_must_not(side, io_options, own_contexts):
    """A subclass whose write() takes more than there is, or nothing, ends its connection."""
    for taken in (0, 100_000, None):

        class Wrong(ssl.SSLObject):
            is_wrong = False
            taken_instead = taken

            def write(self, data):
                done = super().write(data)
                return self.taken_instead if Wrong.is_wrong else done

        ours(own_contexts, side).sslobject_class = Wrong
        async with connected(side, contexts=own_contexts, **io_options) as pair:
            Wrong.is_wrong = True
            pair.transport.send(WSMsgType.TEXT, "x")
            pair.peer.close()
            await pair.listener.closed()
            assert pair.transport.disconnect_cause == WSDisconnectCause.TLS_ERROR
            assert isinstance(pair.transport.disconnect_exception, (TypeError, ValueError))


async def test_a_handshake_that_is_entered_again(io_options, own_contexts, client_tls):
    """SNI's callback comes in the midst of it, and may run anything."""
    acts = []
    listener = Echo()

    def greet(tls, name, context):
        for act in acts:
            act()

    own_contexts.server.sni_callback = greet
    async with serving(lambda request: listener, tls=own_contexts.server, **io_options) as url:
        url = url.replace("127.0.0.1", "localhost")
        transport, client = await picows_fast.ws_connect(Recorder, url, ssl_context=client_tls)
        acts.append(lambda: listener.transport.send(WSMsgType.BINARY, bytes(LARGE)))
        acts.append(lambda: listener.transport.disconnect())
        second, _ = await picows_fast.ws_connect(Recorder, url, ssl_context=client_tls)
        assert (await client.frame())[1] == bytes(LARGE)
        await client.closed()
        assert transport.disconnect_cause == WSDisconnectCause.TLS_CLOSE_NOTIFY
        second.disconnect(graceful=False)
        await second.wait_disconnected()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("act", ["send", "disconnect", "abort"])
async def test_acts_in_the_midst_of_a_renegotiation(own_contexts, below, act):
    """TLS 1.2: a read makes a handshake, and that calls back."""
    context = own_contexts.server
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= 1 << 8  # OpenSSL 3's SSL_OP_ALLOW_CLIENT_RENEGOTIATION
    handshakes = []
    listener = Echo()
    acts = {
        "send": lambda: listener.transport.send(WSMsgType.TEXT, "in the midst"),
        "disconnect": lambda: (acts["send"](), listener.transport.disconnect()),
        "abort": lambda: listener.transport.disconnect(graceful=False),
    }

    def greet(tls, name, context):
        handshakes.append(name)
        if len(handshakes) == 2:
            acts[act]()

    context.sni_callback = greet
    async with serving(lambda request: listener, tls=context, **below) as url:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-tls1_2", "-servername", "localhost"),
            *("-connect", "{}:{}".format(*address(url))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            process.stdin.write(UPGRADE_REQUEST)
            await listener.until(lambda: listener.transport)
            process.stdin.write(b"R\n")
            output = b""
            while act != "abort" and b"in the midst" not in output:
                data = await asyncio.wait_for(process.stdout.read(65536), TIMEOUT)
                assert data
                output += data
            if act == "send":
                process.stdin.write(picows_fast.build_frame(WSMsgType.TEXT, b"\n", mask=True))
                assert (await listener.frame())[1] == b"\n"
                listener.transport.disconnect(graceful=False)
            await listener.closed()
            assert len(handshakes) == 2
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


# --- What is handed out


async def test_the_ssl_object_can_be_asked_and_not_used(side, below, tls_contexts):
    async with connected(side, contexts=tls_contexts, **below) as pair:
        stream = pair.transport.underlying_transport
        tls = stream.get_extra_info("ssl_object")
        assert tls is stream.get_extra_info("ssl_object")
        assert isinstance(tls, ssl.SSLObject)
        for name in USED_BY_THE_STREAM:
            assert hasattr(ssl.SSLObject, name)
            assert name not in dir(tls)
            with pytest.raises(OSError, match=rf"ssl_object\.{name}\b"):
                getattr(tls, name)
        for name, value in (("context", tls_contexts.client), ("session", None), ("x", 1)):
            with pytest.raises(AttributeError):
                setattr(tls, name, value)
        told = tls.version(), tls.cipher(), tls.server_side, tls.context, tls.getpeercert()
        assert told[2:4] == (side == "server", ours(tls_contexts, side))
        assert "SSLObject" in repr(tls)
        pair.transport.disconnect(graceful=False)
        await pair.listener.closed()
        assert told == (
            *(tls.version(), tls.cipher(), tls.server_side, tls.context, tls.getpeercert()),
        )


@pytest.mark.direct_tls
@pytest.mark.parametrize("rx_timestamps", [False, True])
async def test_an_ssl_object_reads_no_strange_descriptor(side, own_contexts, rx_timestamps):
    """The connection is gone, and its descriptor's number is another socket's."""
    grabbed = []

    class Grabbed(ssl.SSLObject):
        def do_handshake(self):
            grabbed.append(self)
            return super().do_handshake()

    ours(own_contexts, side).sslobject_class = Grabbed
    async with connected(side, contexts=own_contexts, rx_timestamps=rx_timestamps) as pair:
        stream = pair.transport.underlying_transport
        assert type(stream) is DirectTlsStream
        view = stream.get_extra_info("socket")
        number = view.fileno()
        pair.transport.disconnect(graceful=False)
        await pair.listener.closed()
        assert view.fileno() == -1
        here, there = socket.socketpair()
        with here, there:
            if here.fileno() != number:
                os.dup2(here.fileno(), number)
            try:
                there.send(b"not for it")
                with pytest.raises(OSError):
                    grabbed[0].read(100)
                with pytest.raises(OSError):
                    view.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
                with pytest.raises(OSError):
                    view.send(b"from nobody")
                assert here.recv(100, socket.MSG_DONTWAIT) == b"not for it"
            finally:
                if here.fileno() != number:
                    os.close(number)


@pytest.mark.native
async def test_the_socket_can_be_asked_and_not_used(side, contexts):
    async with connected(side, contexts=contexts) as pair:
        stream = pair.transport.underlying_transport
        assert isinstance(stream, (TcpStream, TlsStream))
        sock = stream.get_extra_info("socket")
        assert sock is stream.get_extra_info("socket")
        for name in ("close", "detach", "recv", "recv_into", "sendall", "shutdown", "sock"):
            assert not hasattr(sock, name)
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert sock.proto in (0, socket.IPPROTO_TCP)
        assert sock.getsockname() == pair.peer.sock.getpeername()
        assert sock.getpeername() == pair.peer.sock.getsockname()
        assert not sock.get_inheritable()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        with sock.dup() as copy:
            assert copy.getsockname() == sock.getsockname()
        assert sock.gettimeout() == 0
        sock.settimeout(0)
        sock.setblocking(False)
        for blocking in (lambda: sock.settimeout(1), lambda: sock.setblocking(True)):
            with pytest.raises(ValueError):
                blocking()
        assert "SocketView" in repr(sock)


# --- The end


class Leaving(Recorder):
    """Ends the connection in order when the first frame comes."""

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        transport.send_close(1000, "enough")
        transport.disconnect()


@pytest.mark.parametrize("is_behind", [False, True], ids=["", "backlog"])
async def test_ending_while_the_peer_streams(side, below, tls_contexts, is_behind):
    """The peer gets all that was sent, CLOSE, close_notify and FIN, however much it sends."""
    payload = bytes(1_000_000)
    async with connected(
        side, Leaving(), contexts=tls_contexts, small_buffers=is_behind, **below
    ) as pair:
        if is_behind:
            pair.transport.send(WSMsgType.BINARY, payload)
            assert pair.transport.write_backlog
        records = pair.peer.encrypt(pair.peer.frame(WSMsgType.BINARY, bytes(60_000)) * 50)
        await pair.peer.send_raw(records)
        if is_behind:
            assert await pair.peer.read_frame() == (WSMsgType.BINARY, payload)
        assert await pair.peer.read_close() == (1000, "enough")
        assert await pair.peer.read_to_end() == b""
        assert pair.peer.close_notify_seen
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(pair.peer.sock, 100), TIMEOUT) == b""
        # What comes behind that is thrown away, too.
        await pair.peer.send_raw(bytes(1000))
        assert not pair.transport.is_disconnected
        pair.peer.fin()
        await pair.listener.closed()
        assert len(pair.listener.frames) == 1


async def test_a_peer_that_breaks_tls_and_streams_gets_the_alert(side, below, tls_contexts):
    async with connected(side, contexts=tls_contexts, **below) as pair:
        await pair.peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32) + bytes(1_000_000))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            await pair.peer.read_to_end()
        pair.peer.fin()
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.TLS_ERROR


@pytest.mark.native
async def test_a_failure_is_not_taken_for_another_connections(tls_contexts):
    """OpenSSL notes errors for a thread, not for a connection."""
    bios = [ssl.MemoryBIO() for _ in range(2)]
    others = [
        tls_contexts.client.wrap_bio(*bios, server_hostname="localhost"),
        tls_contexts.server.wrap_bio(*bios[::-1], server_side=True),
    ]
    for _ in range(3):
        for other in others:
            with contextlib.suppress(ssl.SSLWantReadError):
                other.do_handshake()
    async with connected("server", contexts=tls_contexts) as pair:
        await pair.peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: pair.transport.disconnect_cause is not None)
        with pytest.raises(ssl.SSLWantReadError):
            others[1].read(100)
        pair.peer.close()
        await pair.listener.closed()
