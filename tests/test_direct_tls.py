"""net/tls_fd: when it is used, when it steps aside, and that both ways of TLS do the same.

What TLS connections do in general is tested everywhere with this way; here are its conditions.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl

import pytest

import picows_fast
from picows_fast import WSDisconnectCause, WSMsgType
from picows_fast.net import open as net_open
from picows_fast.net import tls_fd
from picows_fast.net.tls_bio import TlsStream
from picows_fast.net.tls_fd import DirectTlsStream

from .support import Echo, Recorder, serving


async def echo(url, client_tls, *, size=300_000):
    transport, client = await picows_fast.ws_connect(Recorder, url, ssl_context=client_tls)
    transport.send(WSMsgType.BINARY, b"small")
    transport.send(WSMsgType.BINARY, bytes(size))
    assert (await client.frame(1))[1] == bytes(size)
    transport.send_close(1000)
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE
    return transport


def has_shared_openssl():
    try:
        import _ssl
    except ImportError:
        return False
    return hasattr(_ssl, "__file__")


@pytest.mark.direct_tls
@pytest.mark.skipif(not has_shared_openssl(), reason="OpenSSL is part of this Python's executable")
def test_available_here():
    assert tls_fd.AVAILABLE


@pytest.mark.direct_tls
async def test_both_sides_use_it(server_tls, client_tls):
    sides = []
    async with serving(lambda request: sides.append(Echo()) or sides[-1], tls=server_tls) as url:
        transport = await echo(url, client_tls)
        assert type(transport.underlying_transport) is DirectTlsStream
        assert type(sides[0].transport.underlying_transport) is DirectTlsStream


@pytest.mark.direct_tls
@pytest.mark.parametrize("side", ["server", "client", "both"])
async def test_stepping_aside(server_tls, client_tls, side, monkeypatch):
    """The other way is taken over the same descriptor, and speaks to this one."""
    contexts = {"server": [server_tls], "client": [client_tls], "both": [server_tls, client_tls]}[
        side
    ]
    create = DirectTlsStream.create

    class Sometimes:
        @staticmethod
        def create(loop, sock, context, **options):
            return None if context in contexts else create(loop, sock, context, **options)

    monkeypatch.setattr(net_open, "DirectTlsStream", Sometimes)
    sides = []
    async with serving(lambda request: sides.append(Echo()) or sides[-1], tls=server_tls) as url:
        transport = await echo(url, client_tls)
        ours = type(transport.underlying_transport)
        theirs = type(sides[0].transport.underlying_transport)
        assert ours is (TlsStream if side != "server" else DirectTlsStream)
        assert theirs is (TlsStream if side != "client" else DirectTlsStream)


class Doctored:
    """Lies in memory as _ssl._SSLSocket does, and is something else."""

    __slots__ = ("context", "socket", "ssl")

    def __init__(self, context):
        # Slots lie in the order of their names: these two on both sides of OpenSSL's pointer.
        self.ssl = context
        self.socket = self


@pytest.mark.parametrize("is_doctored", [False, True])
async def test_objects_that_are_not_known_are_left_alone(server_tls, client_tls, is_doctored):
    """A context that makes objects of another kind gets the way by public means."""

    class Wrapped:
        def __init__(self, tls):
            self._tls = tls

        def __getattr__(self, name):
            if name == "_sslobj":
                return Doctored(context) if is_doctored else object()
            return getattr(self._tls, name)

    class Context(ssl.SSLContext):
        def wrap_bio(self, *arguments, **options):
            return Wrapped(super().wrap_bio(*arguments, **options))

    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with serving(lambda request: Echo(), tls=server_tls) as url:
        transport = await echo(url, context)
        assert type(transport.underlying_transport) is TlsStream


@pytest.mark.parametrize("name", ["read", "write", "unwrap", "_msg_callback"])
async def test_a_context_that_wants_to_be_called_is(server_tls, authority, name):
    """What reading in C would pass over, or be called by, has the way by public means."""
    calls = []
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if name == "_msg_callback":
        context._msg_callback = lambda *arguments: calls.append(arguments)
    else:

        def called(tls, *arguments):
            calls.append(arguments)
            return getattr(ssl.SSLObject, name)(tls, *arguments)

        context.sslobject_class = type("Called", (ssl.SSLObject,), {name: called})
    async with serving(lambda request: Echo(), tls=server_tls) as url:
        transport = await echo(url, context)
        assert type(transport.underlying_transport) is TlsStream
        assert calls


@pytest.mark.direct_tls
async def test_a_class_that_only_adds_something(server_tls, authority):
    """It is read and written in C, and the handshake is its own."""

    class Counting(ssl.SSLObject):
        handshakes = 0

        def do_handshake(self):
            self.handshakes += 1
            return super().do_handshake()

    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.sslobject_class = Counting
    async with serving(lambda request: Echo(), tls=server_tls) as url:
        transport = await echo(url, context)
        assert type(transport.underlying_transport) is DirectTlsStream
        assert transport.underlying_transport.get_extra_info("ssl_object").handshakes > 1


@pytest.mark.parametrize(
    ("version", "is_it"),
    [
        ("OpenSSL 3.0.19 27 Jan 2026", True),
        ("OpenSSL 1.1.1k  FIPS 25 Mar 2021", True),
        ("OpenSSL 3.6.0-beta1 16 Sep 2025", True),
        ("LibreSSL 3.8.2", False),
        ("OpenSSL 1.1.1 (compatible; AWS-LC 1.40.0)", False),
        ("OpenSSL 1.1.1 (compatible; BoringSSL)", False),
    ],
)
def test_which_library_is_openssl(version, is_it):
    assert tls_fd.is_openssl(version) == is_it


async def test_a_stream_without_openssls_objects_cannot_be_made():
    with socket.socket() as sock, pytest.raises(TypeError, match="create"):
        DirectTlsStream(asyncio.get_running_loop(), sock)


@pytest.mark.direct_tls
async def test_the_ssl_object_may_be_kept_and_used_by_others(server_tls, client_tls):
    """What is written to it behind our back, during the connection or after, goes nowhere."""
    async with serving(lambda request: Echo(), tls=server_tls) as url:
        transport, listener = await picows_fast.ws_connect(Recorder, url, ssl_context=client_tls)
        tls = transport.underlying_transport.get_extra_info("ssl_object")
        with pytest.raises(OSError):  # ssl.SSLError among them
            tls.write(b"not a frame")
        transport.disconnect(False)
        await transport.wait_disconnected()
        del transport, listener
        gc.collect()
        with pytest.raises(OSError):
            tls.write(b"not a frame")
        assert tls.version()


async def test_a_write_in_the_midst_of_another_connections_handshake(authority, client_tls):
    """The connections take turns with the memory that records are put together in."""
    echoes = []

    class Remembered(Echo):
        def on_ws_connected(self, transport):
            super().on_ws_connected(transport)
            echoes.append(transport)

    def greet(tls, name, context):
        for transport in echoes:
            transport.send(WSMsgType.TEXT, f"{len(echoes)}" * 1000)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.sni_callback = greet  # not on the context of other tests: picows crashes on such a one
    clients = []
    async with serving(lambda request: Remembered(), tls=context) as url:
        for _ in range(3):
            _, client = await picows_fast.ws_connect(
                Recorder, url.replace("127.0.0.1", "localhost"), ssl_context=client_tls
            )
            clients.append(client)
        assert [(await clients[0].frame(at))[1] for at in (0, 1)] == [b"1" * 1000, b"2" * 1000]
        assert (await clients[1].frame(0))[1] == b"2" * 1000
        for client in clients:
            client.transport.disconnect(False)
